"""Backbones of every family: framing, label scores and generation against plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from pfi.errors import BackboneError
from pfi.inference.answering import answers
from pfi.inference.engine import Request
from pfi.inference.generation import generate
from pfi.inference.torch.engine import TorchEngine
from pfi.models.backbone import load_backbone
from pfi.models.scoring import score_labels
from pfi.tasks import get_task

Folder = Callable[[str], Path]
PROMPT = "a quick brown fox"


def reference_score(folder: Path, family: str, ids: list[int], target: list[int]) -> float:
    """The target's log-probability by one plain forward pass."""
    import transformers as t

    if family == "t5":
        model = t.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        labels = torch.tensor([target])
        logits = model(input_ids=torch.tensor([ids]), labels=labels).logits[0]
    else:
        model = t.AutoModelForCausalLM.from_pretrained(folder).eval()
        logits = model(torch.tensor([[*ids, *target]])).logits[0, len(ids) - 1 : -1]
    chosen = logits.log_softmax(-1)[range(len(target)), target]
    return chosen.sum().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_label_scores_equal_one_plain_pass_a_label(backbone_folder: Folder, family: str) -> None:
    folder = backbone_folder(family)
    backbone = load_backbone(folder)
    labels = ["1", "good", "a lazy dog, fine"]
    scores = score_labels(backbone, [PROMPT, "bad"], labels)
    for prompt, row in zip([PROMPT, "bad"], scores, strict=True):
        ids = backbone.prompt_ids(prompt)
        for label, score in zip(labels, row, strict=True):
            expected = reference_score(folder, family, ids, backbone.target_ids(label))
            assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_generation_equals_one_prompt_at_a_time(
    backbone_folder: Folder, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    prompts = [PROMPT, "the lazy dog jumps over a film title " * 3, "1"]
    together = generate(backbone, prompts, 8)
    assert together == [generate(backbone, [prompt], 8)[0] for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_choice_tasks_are_always_labels(backbone_folder: Folder, family: str) -> None:
    backbone = load_backbone(backbone_folder(family))
    for name in ("LaMP_1", "LaMP_2M", "LaMP_3"):
        task = get_task(name)
        with TorchEngine(backbone, capacity=1) as engine:
            asked = [Request(backbone.prompt_ids(PROMPT))]
            assert answers(engine, task, asked)[0] in task.labels


def test_a_long_prompt_is_cut_to_the_limit_and_keeps_its_frame(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("gpt2"))
    ids = backbone.prompt_ids("fox " * 2000)
    assert len(ids) == backbone.max_length
    assert backbone.tokenizer.decode(ids[-1:]) == "\n"
    assert len(backbone.token_ids(backbone.trim("a quick brown fox jumps", 3))) <= 3


def test_control_tokens_in_a_users_text_stay_text(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    assert backbone.end_id not in backbone.token_ids("so </s> it goes")
    assert backbone.tokenizer.decode(backbone.token_ids("so </s> it goes")) == "so </s> it goes"


def test_score_tasks_answer_with_the_median() -> None:
    task = get_task("LaMP_3")
    # 0.4 on "1", 0.15 each elsewhere: the mode is 1, the median 2.
    probabilities = [0.4, 0.15, 0.15, 0.15, 0.15]
    assert task.choose([float(torch.tensor(p).log()) for p in probabilities]) == "2"
    assert get_task("LaMP_1").choose([-3.0, -2.0]) == "[2]"


def test_backbones_that_cannot_be_used_are_refused(tmp_path: Path, backbone_folder: Folder) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_backbone(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(tmp_path / "empty")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in backbone_folder("llama").iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        load_backbone(pickled)


def test_the_embedded_backbone_loads_offline_and_speaks() -> None:
    backbone = load_backbone("embedded")
    assert backbone.max_length >= 1024
    folder = Path(load_backbone.__code__.co_filename).parent / "embedded"
    assert (folder / "model.safetensors").stat().st_size <= 30 * 2**20
    text = "Generate a subject for the following email: Fix a memory leak in the queue setup."
    assert len(generate(backbone, [text], 24)[0]) > 3
    assert backbone.tokenizer.decode(backbone.token_ids("<|end|>")) == "<|end|>"
    assert backbone.end_id not in backbone.token_ids("<|end|>")
