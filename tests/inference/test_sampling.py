"""Sampling settings: as transformers computes them, in both engines, whatever the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_world import read, sharpen, transformers_greedy
from llama_world import make_engine, make_world, needs_llama

from pfi.errors import ConfigError
from pfi.inference.engine import (
    Engine,
    Penalties,
    Request,
    Sampling,
    check_sampling,
    generation_defaults,
    most_tokens,
)
from pfi.inference.generation import generate
from pfi.inference.llama.sampling import Draw
from pfi.inference.llama.sampling import penalised as numpy_penalised
from pfi.inference.torch.engine import TorchEngine
from pfi.inference.torch.sampling import nucleus, penalised
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.generation_config import GenerationSettings

Folder = Callable[[str], Path]
SETTINGS: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 4000},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_p": 0.7},
    {"top_p": 0.9, "top_k": 20},
    {"top_k": 20, "min_p": 0.1},
    {"top_p": 0.8, "min_p": 0.3},
    {"top_p": 0.95, "top_k": 40, "min_p": 0.02},
]


def allowed(logits: torch.Tensor, chosen: dict[str, Any]) -> list[set[int]]:
    """The tokens that transformers samples from, by row."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList()
    if chosen.get("top_k"):
        warpers.append(TopKLogitsWarper(chosen["top_k"]))
    if chosen.get("top_p"):
        warpers.append(TopPLogitsWarper(chosen["top_p"]))
    if chosen.get("min_p"):
        warpers.append(MinPLogitsWarper(chosen["min_p"]))
    warped = warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone())
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in warped]


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_tokens_are_sampled_from_those_that_transformers_leaves(chosen: dict[str, Any]) -> None:
    torch.manual_seed(4)
    logits = torch.randn(6, 300) * 3
    kept = allowed(logits, chosen)
    numbers = [(i + 0.5) / 400 for i in range(400)]
    top_p, top_k, min_p = (chosen.get(k, d) for k, d in (("top_p", 1), ("top_k", 0), ("min_p", 0)))
    for row, wanted in zip(logits, kept, strict=True):
        drawn = nucleus(row.expand(400, -1), top_p, numbers, top_k, min_p).tolist()
        assert set(drawn) <= wanted
        probability = torch.softmax(row[sorted(wanted)], -1)
        for token, share in zip(sorted(wanted), probability.tolist(), strict=True):
            assert drawn.count(token) / 400 == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_both_engines_draw_the_same_from_the_same_numbers(chosen: dict[str, Any]) -> None:
    torch.manual_seed(5)
    logits = torch.randn(40, 500) * 4
    sampling = Sampling(temperature=0.8, seed=11, **chosen)
    draw, numbers = Draw(sampling.resolved(GenerationSettings())), random.Random(11)
    for row in logits:
        token = nucleus(
            row[None] / torch.tensor([[0.8]]),
            sampling.top_p,
            [numbers.random()],
            sampling.top_k,
            sampling.min_p,
        )
        assert draw.take(row.numpy())[0] == int(token)


def test_a_rows_token_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(6)
    logits = torch.randn(9, 3000) * torch.linspace(0, 6, 9)[:, None]
    drawn = [0.05 + 0.1 * row for row in range(9)]
    for chosen in ((0.9, 0, 0.0), (1.0, 50, 0.0), (0.99, 2000, 0.1), (1.0, 0, 0.3)):
        together = nucleus(logits, chosen[0], drawn, *chosen[1:]).tolist()
        alone = [
            int(nucleus(logits[i : i + 1], chosen[0], drawn[i : i + 1], *chosen[1:]))
            for i in range(9)
        ]
        assert together == alone


def test_penalties_are_those_of_transformers_and_of_the_usual_formula() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(7)
    logits = torch.randn(3, 50) * 4
    prompts, new = [[4, 5, 4], [9, 70], [1]], [[6, 6, 4], [], [2]]
    sampling = Sampling(repetition_penalty=1.3)
    own = [penalties(sampling, p, n) for p, n in zip(prompts, new, strict=True)]
    ours = penalised(logits, own)
    for row, (prompt, answer) in enumerate(zip(prompts, new, strict=True)):
        ids = torch.tensor([[*prompt, *answer]])
        theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[row : row + 1].clone())[0]
        assert torch.equal(ours[row], theirs)
        assert np.array_equal(numpy_penalised(logits[row].numpy(), own[row]), theirs.numpy())

    # Of the answer alone: once for a token that is in it, and for each time that it is.
    sampling = Sampling(repetition_penalty=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    own = [penalties(sampling, p, n) for p, n in zip(prompts, new, strict=True)]
    expected = logits.clone()
    expected[0, 6] -= 0.5 + 2 * 0.25
    expected[0, 4] -= 0.5 + 0.25
    expected[2, 2] -= 0.5 + 0.25
    before = logits.clone()
    torch.testing.assert_close(penalised(logits, own), expected)
    assert torch.equal(logits, before)
    assert penalised(logits, [None, None, None]) is logits
    assert not Penalties(Sampling().resolved(GenerationSettings()), [4])
    for row in range(3):
        found = numpy_penalised(logits[row].numpy(), own[row])
        np.testing.assert_allclose(found, expected[row].numpy(), rtol=1e-6)


def penalties(sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Penalties:
    one = Penalties(sampling, prompt)
    for token in answer:
        one.add(token)
    return one


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": float("nan")},
        {"min_p": 1.1},
        {"min_p": -0.1},
        {"min_p": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"frequency_penalty": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        most_tokens(Request([5], sampling=Sampling(**wrong)), 32)
    assert "\n" not in str(raised.value) and next(iter(wrong)) in str(raised.value)


def test_the_least_and_the_most_are_taken() -> None:
    for chosen in ({"top_k": 0}, {"min_p": 1.0}, {"presence_penalty": -2}, {"top_k": 10**9}):
        check_sampling(Sampling(**chosen))  # type: ignore[arg-type]


def test_a_models_own_settings_are_those_of_its_conversations(backbone_folder: Folder) -> None:
    prompter = load_backbone(backbone_folder("llama")).prompter
    assert generation_defaults(prompter) == Sampling()
    own = GenerationSettings.of(
        {
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "min_p": 0.05,
            "repetition_penalty": 1.05,
            "min_length": 50,
            "num_beams": 4,
        },
        "x",
    )
    assert generation_defaults(replace(prompter, generation=own)) == Sampling(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.05
    )
    greedy = GenerationSettings.of({"temperature": 0.6, "repetition_penalty": 1.1}, "x")
    assert generation_defaults(replace(prompter, generation=greedy)) == Sampling(
        repetition_penalty=1.1
    )


# Engines ------------------------------------------------------------------------------------

PROMPTS = ["a quick brown fox", "1", "good film, bad book good film", "over the dog"]
NEW = 14


def settled(backbone: Backbone, **own: Any) -> Backbone:
    return replace(backbone, generation=GenerationSettings(**own))


def reference(backbone: Backbone, prompt: str, penalty: float | None) -> str:
    """Greedy text of transformers itself."""
    new = transformers_greedy(backbone, prompt, NEW, repetition_penalty=penalty)
    ends = [at for at, token in enumerate(new) if token in backbone.end_ids]
    return backbone.prompter.text(new[: min(ends, default=NEW)]).rstrip("\ufffd")


def answered(engine: Engine, backbone: Backbone, sampling: Sampling) -> list[str]:
    asked = [Request(backbone.prompt_ids(prompt), None, sampling, "me") for prompt in PROMPTS]
    return [read(stream)[0].rstrip("\ufffd") for stream in engine.generate_all(asked)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_models_own_repetition_penalty_counts_in_a_study_and_on_a_device(
    backbone_folder: Folder, family: str
) -> None:
    plain = sharpen(load_backbone(backbone_folder(family)))
    backbone = settled(plain, repetition_penalty=1.9)
    expected = [reference(backbone, prompt, 1.9) for prompt in PROMPTS]
    without = [reference(backbone, prompt, None) for prompt in PROMPTS]
    assert expected != without, "the penalty changes nothing"
    with TorchEngine(backbone, max_rows=3) as engine:
        assert answered(engine, backbone, Sampling(max_tokens=NEW)) == expected
        off = Sampling(max_tokens=NEW, repetition_penalty=1.0)
        assert answered(engine, backbone, off) == without
    assert generate(backbone, PROMPTS, NEW) == [text.strip() for text in expected]
    with TorchEngine(plain) as engine:
        given = Sampling(max_tokens=NEW, repetition_penalty=1.9)
        assert answered(engine, plain, given) == expected


def test_answers_with_different_settings_side_by_side_are_those_alone(
    backbone_folder: Folder,
) -> None:
    backbone = sharpen(load_backbone(backbone_folder("llama")))
    chosen = [
        Sampling(NEW, 0.9, seed=1, **more)
        for more in (*SETTINGS, {"repetition_penalty": 1.5}, {"presence_penalty": 1.5}, {})
    ]
    asked = [
        Request(backbone.prompt_ids(PROMPTS[at % 4]), None, one) for at, one in enumerate(chosen)
    ]
    with TorchEngine(backbone, max_rows=16) as engine:
        together = [read(stream) for stream in engine.generate_all(asked)]
        alone = [read(engine.generate(one)) for one in asked]
    assert together == alone
    assert len({text for text, _, _ in together}) > 4


@needs_llama
def test_llama_cpp_samples_with_the_same_settings(backbone_folder: Folder, tmp_path: Path) -> None:
    world, path = make_world(backbone_folder("llama"), "sampled", adapters=0)
    backbone = world.backbone
    backbone = settled(backbone, repetition_penalty=1.4)
    world.backbone = backbone
    with TorchEngine(backbone) as torch_engine, make_engine(world, path) as llama_engine:
        for more in (
            {},
            {"repetition_penalty": 1.0},
            {"presence_penalty": 1.5, "frequency_penalty": 0.5},
            {"temperature": 0.7, "seed": 3, "top_k": 12, "min_p": 0.05},
            {"temperature": 1.1, "seed": 4, "top_k": 30, "top_p": 0.9},
        ):
            sampling = Sampling(NEW, **more)  # type: ignore[arg-type]
            ours = answered(torch_engine, backbone, sampling)
            assert answered(llama_engine, backbone, sampling) == ours
