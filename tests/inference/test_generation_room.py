"""Room for the prompt and for the answer in one context, and the last token that may be sampled."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pfi.inference import generation
from pfi.inference.engine import Sampling
from pfi.inference.llama.sampling import Draw
from pfi.inference.torch.sampling import Nucleus, nucleus
from pfi.models.generation_config import GenerationSettings


def backbone(length: int, *, seq2seq: bool = False) -> Any:
    """A model of so many places, whose prompts are as long as they may be."""
    return SimpleNamespace(
        seq2seq=seq2seq,
        max_length=length,
        prompt_ids=lambda text, limit: list(range(min(len(text), limit))),
        prompter=None,
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The length of each prompt that was decoded, and the most new tokens."""
    seen: list[tuple[int, int]] = []

    def decode(
        model: Any, prompts: Any, most: int, pick: Any, numbers: Any, slots: Any
    ) -> list[list[int]]:
        seen.extend((len(prompt), most) for prompt in prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(generation, "decode", decode)
    monkeypatch.setattr(generation, "answer_text", lambda *given: "")
    return seen


@pytest.mark.parametrize(
    ("length", "wanted", "prompt", "answer"),
    [
        (20, 6, 14, 6),
        (20, 19, 1, 19),  # one place is left for the prompt
        (20, 20, 10, 10),  # none would be: half for each
        (20, 900, 10, 10),
        (3, 7, 2, 1),
        (1, 1, 0, 1),  # an answer has a token at least
    ],
)
def test_an_answer_leaves_room_for_the_prompt_and_a_prompt_for_the_answer(
    decoded: list[tuple[int, int]], length: int, wanted: int, prompt: int, answer: int
) -> None:
    generation.generate(backbone(length), ["x" * 100], wanted)
    assert decoded == [(prompt, answer)]


def test_an_encoder_has_places_of_its_own(decoded: list[tuple[int, int]]) -> None:
    generation.generate(backbone(20, seq2seq=True), ["x" * 100], 30)
    assert decoded == [(20, 30)]


def test_a_shorter_prompt_may_be_asked_for(decoded: list[tuple[int, int]]) -> None:
    generation.generate(backbone(20), ["x" * 100, "xy"], 6, max_prompt=5)
    assert sorted(decoded) == [(2, 6), (5, 6)]


# The last token -----------------------------------------------------------------------

#: Three tokens may be sampled, each a third; the one in their midst and the last two may not.
LIKELY = torch.tensor([[0.0, -torch.inf, 0.0, 0.0, -torch.inf, -torch.inf]])


@pytest.mark.parametrize("drawn", [1.0, 1 - 2**-53])
@pytest.mark.parametrize("chosen", [(1.0, 0), (0.9, 0), (1.0, 4), (1.0, 3)])
def test_a_number_that_was_rounded_up_to_one_samples_no_impossible_token(
    drawn: float, chosen: tuple[float, int]
) -> None:
    top_p, top_k = chosen
    assert int(nucleus(LIKELY, top_p, [drawn], top_k)) in (0, 2, 3)
    own = Draw(Sampling(temperature=1.0, top_p=top_p, top_k=top_k).resolved(GenerationSettings()))
    own._random = SimpleNamespace(random=lambda: drawn)  # type: ignore[assignment]
    assert own.take(LIKELY[0].numpy())[0] in (0, 2, 3)


def test_the_smallest_number_samples_the_first_token_that_may_be() -> None:
    behind = torch.tensor([[-torch.inf, 1.0, 0.0]])
    assert int(nucleus(behind, 1.0, [0.0])) == 1
    own = Draw(Sampling(temperature=1.0).resolved(GenerationSettings()))
    own._random = SimpleNamespace(random=lambda: 0.0)  # type: ignore[assignment]
    assert own.take(behind[0].numpy())[0] == 1


def test_a_nucleus_ends_with_the_token_that_makes_it_whole() -> None:
    """Of 1/2, 1/4, 3/16, 1/16 a share of 3/4 is two tokens, a little more is three."""
    logits = torch.tensor([[8.0, 4.0, 3.0, 1.0]]).log()
    for top_p, most in ((0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.9, 2), (0.95, 3)):
        drawn = {int(nucleus(logits, top_p, [n / 64])) for n in range(64)}
        assert max(drawn) == most


def test_rows_draw_from_their_own_seeds() -> None:
    flat = torch.zeros(2, 4000)
    numbered = Nucleus(1.0, 1.0, 7)
    expected = [int(random.Random(f"7:{row}").random() * 4000) for row in (3, 5)]
    assert numbered(flat, [3, 5]).tolist() == pytest.approx(expected, abs=1)
    again = Nucleus(1.0, 1.0, 7)
    assert again(flat[:1], [5]).tolist() == pytest.approx(expected[1:], abs=1)
    named = Nucleus(1.0, 1.0, ["a", "b"])
    wanted = [int(random.Random(name).random() * 4000) for name in ("a", "b")]
    assert named(flat, [0, 1]).tolist() == pytest.approx(wanted, abs=1)
    # The temperature divides: at 1/2 the odds of 1 to 3 become 1 to 9.
    odds = torch.tensor([[1.0, 3.0]]).log().expand(2000, -1)
    share = float(np.mean(Nucleus(0.5, 1.0, 0)(odds, range(2000)).tolist()))
    assert share == pytest.approx(0.9, abs=0.03)


def test_of_tokens_that_are_alike_the_first_ones_are_ranked_first() -> None:
    flat = np.zeros(1000, np.float32)
    own = Draw(Sampling(temperature=1.0, top_k=3).resolved(GenerationSettings()))
    for drawn, token in ((0.0, 0), (0.5, 1), (0.99, 2)):
        own._random = SimpleNamespace(random=lambda drawn=drawn: drawn)  # type: ignore[assignment]
        assert own.take(flat)[0] == token
