"""The parts of sampling by hand, in PyTorch and in numpy: penalties, biases, masks, shares."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pfi.errors import BackboneError
from pfi.inference.engine import Penalties, Sampling
from pfi.inference.llama import sampling as of_numpy
from pfi.inference.llama.sampling import Draw
from pfi.inference.torch import sampling as of_torch
from pfi.models.generation_config import GenerationSettings


def penalties(prompt: list[int], answer: list[int], **own: float) -> Penalties:
    one = Penalties(Sampling(**own).resolved(GenerationSettings()), prompt)  # type: ignore[arg-type]
    for token in answer:
        one.add(token)
    return one


def both(one: Penalties, logits: list[float]) -> list[float]:
    """The logits with penalties, which both give alike."""
    before = torch.tensor([logits])
    ours = of_torch.penalised(before, [one])[0].tolist()
    array = np.array(logits, np.float32)
    assert of_numpy.penalised(array, one).tolist() == pytest.approx(ours)
    assert before[0].tolist() == array.tolist() == logits  # left as they were
    return ours  # type: ignore[no-any-return]


def test_a_repetition_makes_a_token_less_likely_on_either_side_of_zero() -> None:
    one = penalties([0, 1, 9], [2], repetition_penalty=2.0)  # the model has no logit for 9
    assert both(one, [4.0, -4.0, 0.0, 3.0]) == [2.0, -8.0, 0.0, 3.0]


def test_presence_counts_once_and_frequency_each_time_in_the_answer_alone() -> None:
    one = penalties([0], [1, 1, 2], presence_penalty=0.5, frequency_penalty=0.25)
    assert both(one, [1.0, 1.0, 1.0, 1.0]) == [1.0, 0.0, 0.25, 1.0]
    together = penalties([0], [1], repetition_penalty=2.0, presence_penalty=0.5)
    assert both(together, [4.0, 4.0, 4.0, 4.0]) == [2.0, 1.5, 4.0, 4.0]


def test_each_row_has_its_own_penalties() -> None:
    logits = torch.ones(3, 4)
    rows = [
        penalties([], [1], presence_penalty=1.0),
        None,
        penalties([], [2], presence_penalty=0.5),
    ]
    changed = of_torch.penalised(logits, rows)
    assert changed.tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0.5, 1]]
    half = of_torch.penalised(logits.bfloat16(), rows)
    assert half.dtype == torch.bfloat16 and half.tolist() == changed.tolist()
    assert of_torch.penalised(logits, [None, penalties([], [1])]) is logits


def test_biases_are_added_where_the_model_has_a_logit() -> None:
    bias = [(0, 1.5), (2, -2.0), (3, 9.0), (-1, 9.0)]
    logits = torch.zeros(2, 3)
    assert of_torch.biased(logits, [(), bias]).tolist() == [[0, 0, 0], [1.5, 0, -2]]
    assert not logits.any() and of_torch.biased(logits, [(), ()]) is logits
    assert of_torch.biased(logits, [[(3, 1.0)], ()]) is logits
    array = np.zeros(3, np.float32)
    assert of_numpy.biased(array, bias).tolist() == [1.5, 0, -2] and not array.any()


def test_what_is_not_allowed_cannot_be_sampled() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    masked = of_torch.allowed_only(logits, {1: np.array([True, False, True])})
    assert masked.tolist() == [[1, 2, 3], [1, -math.inf, 3]]
    assert of_torch.allowed_only(logits, {}) is logits and logits.isfinite().all()


def test_the_likeliest_tokens_with_their_probabilities() -> None:
    shares = [0.5, 0.1, 0.25, 0.15]
    logits = torch.tensor(shares).log() + 3
    total = float(np.log(np.exp(logits.numpy()).sum()))
    for count, tokens in ((0, []), (1, [0]), (2, [0, 2]), (9, [0, 2, 3, 1])):
        ours = of_torch.likeliest(logits, count)
        theirs = of_numpy.likeliest(logits.numpy(), count, total)
        for found in (ours, theirs):
            assert [token for token, _ in found] == tokens
            expected = [math.log(shares[token]) for token in tokens]
            assert [value for _, value in found] == pytest.approx(expected, abs=1e-6)


# One answer in numpy ------------------------------------------------------------------


class Grammar:
    """Allows what it is told to, and ends after so many tokens."""

    def __init__(self, allowed: list[bool], most: int) -> None:
        self.mask, self.most, self.tokens = np.array(allowed), most, []  # type: ignore[var-annotated]

    def begin(self) -> Grammar:
        return self

    def allowed(self, size: int) -> Any:
        assert size == len(self.mask)
        return self.mask

    def add(self, token: int) -> None:
        self.tokens.append(token)

    @property
    def ended(self) -> bool:
        return len(self.tokens) >= self.most


def draw(prompt: tuple[int, ...] = (), **own: Any) -> Draw:
    return Draw(Sampling(**own).resolved(GenerationSettings()), prompt)


def test_a_grammar_decides_what_is_sampled_and_when_it_ends() -> None:
    logits = np.array([1.0, 5.0, 2.0], np.float32)
    grammar = Grammar([True, False, True], 1)
    one = draw(grammar=grammar)
    assert not one.ended
    assert one.take(logits, free=True)[0] == 1 and grammar.tokens == [] and not one.ended
    token, log_probability, _ = one.take(logits)
    assert token == 2 and grammar.tokens == [2] and one.ended
    # How likely it was is the model's own word, whatever else was allowed.
    assert log_probability == pytest.approx(float(torch.tensor(logits).log_softmax(0)[2]))
    assert not draw().ended


def test_an_answer_is_told_with_the_models_own_probabilities() -> None:
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    expected = torch.tensor(logits).log_softmax(0).tolist()
    one = draw(top_logprobs=2, logit_bias=((2, 9.0),))
    token, log_probability, top = one.take(logits)
    assert token == 2 and log_probability == pytest.approx(expected[2])
    assert [t for t, _ in top] == [0, 1]
    assert [value for _, value in top] == pytest.approx(expected[:2])
    penal = draw((0,), repetition_penalty=2.0)
    assert [penal.take(logits)[0] for _ in range(2)] == [1, 0]  # 3 / 2 < 2, then 2 / 2 < 1.5


def test_biases_and_penalties_work_together() -> None:
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    one = draw(presence_penalty=2.0, logit_bias=((1, 0.5),))
    assert [one.take(logits)[0] for _ in range(3)] == [0, 1, 0]


def test_the_largest_bias_overflows_nothing() -> None:
    one = draw(temperature=1.0, logit_bias=((1, 100.0),))
    assert one.take(np.array([5.0, 0.0, 4.0], np.float32))[0] == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error(wrong: float) -> None:
    with pytest.raises(BackboneError, match="no numbers"):
        of_numpy.highest(np.array([1.0, wrong], np.float32))
    assert of_numpy.highest(np.array([1.0, -np.inf], np.float32)) == 1.0
    with pytest.raises(BackboneError):
        draw().take(np.array([1.0, wrong], np.float32))


@pytest.mark.parametrize(
    ("own", "likeliest"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 4}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # of what is left two thirds are enough
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 0.25}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"temperature": 0.5}, [25 / 34.5, 6.25 / 34.5, 2.25 / 34.5, 1 / 34.5]),
    ],
)
def test_which_share_each_token_has(own: dict[str, Any], likeliest: list[float]) -> None:
    """Of 1000 numbers in equal steps, in both engines."""
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    numbers = [(n + 0.5) / 1000 for n in range(1000)]
    one = draw(**{"temperature": 1.0, **own})
    taken = []
    for number in numbers:
        one._random = SimpleNamespace(random=lambda number=number: number)  # type: ignore[assignment]
        taken.append(one.take(logits.numpy())[0])
    drawn = of_torch.nucleus(
        logits.expand(1000, -1) / own.get("temperature", 1.0), own.get("top_p", 1.0), numbers,
        own.get("top_k", 0), own.get("min_p", 0.0),
    )  # fmt: skip
    for tokens in (taken, drawn.tolist()):
        shares = [tokens.count(token) / 1000 for token in range(4)]
        assert shares == pytest.approx(likeliest, abs=0.0021)
