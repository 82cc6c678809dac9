"""What an adapter makes a model forget, and how a training is held back: data, figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import FAMILIES
from pfi.errors import ConfigError
from pfi.memory.off_topic import general_questions
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank, holding
from pfi.models.bank.packing import Piece
from pfi.models.scoring import losses_and_hits
from pfi.tasks import Example
from pfi.train import forgetting as module
from pfi.train import general
from pfi.train.config import ForgettingConfig, TrainConfig
from pfi.train.forgetting import Forgetting, General, GeneralProbe
from pfi.train.general import anchored_pieces, probe_passages, probe_questions, with_anchors
from pfi.train.job import Job
from pfi.train.objectives import CrossEntropy
from pfi.train.preferences import Preference, PreferenceConfig, train_preferences
from pfi.train.trainers import get_trainer

Folder = Callable[[str], Path]
FEW = ForgettingConfig(passages=3, questions=5)


def adapter_over(backbone: Backbone, size: float) -> Adapter:
    """Random factors; all zero for size 0."""
    bank = AdapterBank(backbone, TrainConfig(rank=2), 1)
    slot = bank.new(0)
    generator = torch.Generator().manual_seed(1)
    bank.weights[slot] += size * torch.randn(bank.width, generator=generator)
    return bank.adapter(slot)


# The data -----------------------------------------------------------------------------


def test_the_probe_is_as_it_is_told() -> None:
    text = (resources.files("pfi.train") / "general.txt").read_text("utf-8")
    assert len(text.encode()) < 150_000
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "public domain" in " ".join(head) and "CC0" in " ".join(head)
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    assert all(len(row) == 3 and all(row) for row in rows)
    assert len(probe_passages()) == 200 and len(probe_questions()) == 100
    for _, _, passage in (row for row in rows if row[0] != "question"):
        assert 60 <= len(passage.split()) <= 84
    texts = [row[2] for row in rows]
    assert len(texts) == len({*texts})


def test_what_is_trained_on_is_not_measured_on() -> None:
    text = (resources.files("pfi.train") / "general.txt").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    works = {kind: {row[1] for row in rows if row[0] == kind} for kind in ("passage", "practice")}
    assert works["passage"] & works["practice"] == {"Speech"}

    def words(line: str) -> str:
        return re.sub(r"\W+", " ", line).lower()

    assert not {*map(words, probe_questions())} & {*map(words, general_questions())}


# What is measured -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_changes_nothing_forgets_nothing(
    backbone_folder: Folder, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    probe = GeneralProbe(backbone, FEW)
    found = probe.forgetting(adapter_over(backbone, 0.0))
    assert found.rise == pytest.approx(0, abs=1e-6) and found.after.agreement == 1.0
    assert found.after.answer_loss == pytest.approx(found.before.answer_loss)
    other = probe.forgetting(adapter_over(backbone, 0.3))
    assert abs(other.rise) > 1e-3
    assert other.after.agreement is not None and other.after.agreement < 1


def test_figures_are_those_of_the_merged_model_read_plainly(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    adapter = adapter_over(backbone, 0.3)
    found = GeneralProbe(backbone, FEW).forgetting(adapter)
    plain, merged = backbone, backbone.with_adapters([adapter])

    def log_probs(model: Backbone, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model.model(torch.tensor([ids])).logits[0].float(), -1)

    for model, figures in ((plain, found.before), (merged, found.after)):
        losses: list[float] = []
        for text in probe_passages()[:3]:
            ids = backbone.token_ids(text)
            scores = log_probs(model, ids)
            losses += [-float(scores[i, token]) for i, token in enumerate(ids[1:])]
        assert figures.text_loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)

    same: list[bool] = []
    losses = []
    for question in probe_questions()[:5]:
        prompt = backbone.prompt_ids(question)
        ids, ended = list(prompt), False
        while len(ids) < len(prompt) + 16 and not ended:  # greedy, without a cache
            token = int(log_probs(plain, ids)[-1].argmax())
            ended = token in backbone.end_ids
            ids.append(token)
        scores = log_probs(merged, ids)
        for i in range(len(prompt), len(ids)):
            same.append(int(scores[i - 1].argmax()) == ids[i])
            losses.append(-float(scores[i - 1, ids[i]]))
    assert found.after.agreement == pytest.approx(sum(same) / len(same))
    assert found.after.answer_loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_the_model_does_by_itself_is_measured_once(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    first = GeneralProbe(backbone, FEW, tmp_path).before
    asked: list[int] = []
    real = module.greedy_ids

    def count(*given: Any) -> Any:
        asked.append(1)
        return real(*given)

    monkeypatch.setattr(module, "greedy_ids", count)
    assert GeneralProbe(backbone, FEW, tmp_path).before == first and not asked
    (file,) = tmp_path.iterdir()
    file.write_text('{"figures": 3}')
    assert GeneralProbe(backbone, FEW, tmp_path).before == first and len(asked) == 1
    # Other weights, other figures.
    other = backbone.with_adapters([adapter_over(backbone, 0.3)])
    assert GeneralProbe(other, FEW, tmp_path).before != first
    assert len(asked) == 2 and len([*tmp_path.iterdir()]) == 2


def test_no_questions_no_agreement(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("gpt2"))
    probe = GeneralProbe(backbone, ForgettingConfig(passages=2, questions=0))
    found = probe.forgetting(adapter_over(backbone, 0.3))
    assert found.after.agreement is None and found.figures().keys() == {
        "text_loss",
        "text_loss_before",
    }
    assert "questions" not in str(found)


def test_what_is_too_much_and_how_it_is_told() -> None:
    before = General(3.2, 0.5, 1.0)
    found = Forgetting(before, General(3.25, 0.6, 0.94), 0.1)
    assert not found.exceeded and found.rise == pytest.approx(0.05)
    assert str(found) == (
        "general text: loss 3.20 -> 3.25 nats a token (+2 %); general questions: 94 % of tokens as "
        "the model answered before"
    )
    assert found.sentence.startswith("General text") and found.sentence.endswith(".")
    assert Forgetting(before, General(3.4), 0.1).exceeded
    assert not Forgetting(before, General(9.0), None).exceeded
    assert Forgetting(before, General(math.nan), 0.1).exceeded  # a broken adapter is no good one


# Anchors --------------------------------------------------------------------------------


def own_examples(count: int) -> list[Example]:
    return [Example(f"a quick {i}", "brown fox", {}, str(i)) for i in range(count)]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_anchors_are_text_and_what_the_model_would_say(
    backbone_folder: Folder, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    found = anchored_pieces(backbone, 3, 600)
    assert found == anchored_pieces(backbone, 3, 600) != anchored_pieces(backbone, 4, 600)
    assert all(piece.anchored and piece.targets for piece in found)
    whole = {tuple(general.text_piece(backbone, text).ids) for text in general._lines("practice")}
    assert [tuple(piece.ids) in whole for piece in found] == [True] * 16 + [False] * 16
    asked = {tuple(general.question_ids(backbone, q, 32)) for q in general_questions()}
    for piece in found[16:]:
        assert tuple(piece.ids[: -piece.targets]) in asked
    short = anchored_pieces(backbone, 3, 100)
    assert 0 < len(short) < 32 and {p.ids[0] for p in short} <= {p.ids[0] for p in found}


def test_every_step_has_its_share_of_anchors_and_all_are_used() -> None:
    plan, config = [[0, 1], [2, 3], [4, 0], [1, 2]], TrainConfig(batch_size=2, general=0.5)
    found = with_anchors(plan, 5, 3, config, 0)
    assert [step[:2] for step in found] == plan and all(len(step) == 4 for step in found)
    used = [i for step in found for i in step[2:]]
    assert {*used[:3]} == {5, 6, 7} == {*used[3:6]}
    few = with_anchors(plan, 5, 3, config.model_copy(update={"general": 0.01}), 0)
    assert all(len(step) == 3 for step in few)


def test_an_anchored_loss_is_half_the_square_of_its_change() -> None:
    own, held = Piece([1, 2, 3], 2), Piece([4, 5, 6], 2, anchored=True)
    objective = CrossEntropy()
    losses = objective.losses([own, held], torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.arange(4.0))
    assert losses.tolist() == pytest.approx([3.0, 0.5 * 1 + 0.5 * 4])
    assert objective.divisor([own, held]) == 2 == objective.divisor([held])


def test_a_training_is_held_to_the_model_without_an_adapter(backbone_folder: Folder) -> None:
    """As many steps as without; other general text changes less, where it began elsewhere too."""
    backbone = load_backbone(backbone_folder("llama"))
    words = "brown fox and the lazy dog of the film"
    examples = [Example(f"a quick {i}", words, {}, str(i)) for i in range(8)]
    texts = [general.text_piece(backbone, text) for text in probe_passages()[:8]]
    before = torch.cat(losses_and_hits(backbone, texts))[:, 0]
    values: dict[str, Any] = {"rank": 4, "epochs": 8, "batch_size": 4, "learning_rate": 5e-3}
    for start in (None, adapter_over(backbone, 0.05)):
        drift = {}
        for share in (0.0, 0.5):
            config = TrainConfig(**values, general=share)
            job = Job("a", examples, seed=1, start=start)
            ((_, result),) = get_trainer("bank").train_many(backbone, [job], config)
            assert result is not None and result.examples == 8 and result.steps == 16
            bank, slot = holding(backbone, result.adapter)
            after = torch.cat(losses_and_hits(bank.backbone, texts, slots=[slot] * 8))[:, 0]
            drift[share] = float(((after - before) ** 2).mean())
        assert drift[0.5] < 0.7 * drift[0.0], (start is None, drift)


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_jobs_with_anchors_train_together(backbone_folder: Folder, layers: str) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    config = TrainConfig(rank=2, epochs=2, batch_size=2, general=0.3, held_back=0.2, layers=layers)
    jobs = [Job(f"u{n}", own_examples(n), seed=n) for n in (1, 4, 5)]
    together = {
        job.id: result.losses
        for job, result in get_trainer("bank").train_many(backbone, jobs, config)
        if result is not None
    }
    for job in jobs:
        ((_, alone),) = get_trainer("bank").train_many(backbone, [job], config)
        assert alone is not None and together[job.id] == pytest.approx(alone.losses, rel=1e-4)


def test_the_reference_engine_and_preferences_have_no_anchors(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    with pytest.raises(ConfigError, match="user's examples only"):
        next(iter(get_trainer("peft").train_many(backbone, [], TrainConfig(general=0.2))))
    pairs = [Preference(f"a quick {i}", "fox", "dog") for i in range(4)]
    config = PreferenceConfig(rank=2, epochs=1, general=0.5)
    assert train_preferences(backbone, pairs, config).examples == 4
