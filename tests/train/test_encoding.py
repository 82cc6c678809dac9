"""Examples as tokens: prompt and answer within the context, and where answers end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pfi.errors import ConfigError
from pfi.models.backbone import load_backbone
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import Job, encode
from pfi.train.objectives import DPO
from pfi.train.preferences import Preference
from pfi.train.trainers import get_trainer

Folder = Callable[[str], Path]
LONG = "a quick brown fox jumps over the lazy dog " * 80


@pytest.mark.parametrize(("context", "most"), [(768, 640), (64, 640), (768, 48), (41, 64)])
def test_prompt_and_answer_fit_the_shorter_of_both_limits(
    backbone_folder: Folder, context: int, most: int
) -> None:
    backbone = replace(load_backbone(backbone_folder("llama")), max_length=context)
    length = min(context, most)
    for prompt, target in ((LONG, LONG), ("1", LONG), (LONG, "good"), ("1", "good")):
        asked, answer = encode(backbone, Example(prompt, target, {}, "1"), most)
        assert asked and answer and len(asked) + len(answer) <= length
        whole = backbone.target_ids(target)
        assert answer == whole[: len(answer)]
        assert (answer[-1] == backbone.end_id) == (len(answer) == len(whole))
        if target == LONG:
            assert len(answer) == length // 2
        else:
            assert answer == whole
        if prompt == LONG:
            assert len(asked) + len(answer) == length
    pair = DPO().encode(backbone, Preference(LONG, LONG, "good", weight=1.0), most)
    assert all(len(piece) <= length for piece in pair)
    assert pair[0].ids[-1] != backbone.end_id == pair[1].ids[-1]


def test_a_frame_that_fills_the_context_is_refused_in_a_line(backbone_folder: Folder) -> None:
    import copy

    backbone = load_backbone(backbone_folder("llama"))
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = LONG[:90] + "{{ messages[0].content }}"  # type: ignore[assignment]
    framed = replace(backbone, tokenizer=tokenizer, max_length=40)
    frame = len(framed.prompt_ids("")) + 1
    asked, answer = encode(replace(framed, max_length=frame + 3), Example("1", LONG, {}, "1"), 640)
    assert len(asked) + len(answer) <= frame + 3 and answer
    with pytest.raises(ConfigError, match="max_length") as raised:
        encode(replace(framed, max_length=frame - 4), Example("1", LONG, {}, "1"), 640)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("engine", ["bank", "peft"])
def test_long_records_train_within_learnt_positions(
    backbone_folder: Folder, tmp_path: Path, engine: str
) -> None:
    import transformers as t

    folder = tmp_path / "short"
    tokenizer = load_backbone(backbone_folder("gpt2")).tokenizer
    config = t.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    t.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    jobs = [Job("u", [Example(LONG, LONG, {}, "1"), Example("1", LONG, {}, "2")])]
    trained = get_trainer(engine).train_many(
        load_backbone(folder), jobs, TrainConfig(rank=2, epochs=1)
    )
    results = [result for _, result in trained]
    assert results[0] is not None and results[0].steps == 1
