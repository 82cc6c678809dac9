"""The loop that decodes a batch, over rows whose tokens are written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pfi.inference import decoding, generation
from pfi.inference.generation import decode, greedy_ids
from pfi.inference.torch.sampling import greedy
from pfi.models.generation_config import GenerationSettings

END = 9


@dataclass
class Rows:
    """Rows that say their own tokens, one after the other, whatever is appended to them."""

    answers: list[list[int]]
    alive: list[int] = field(init=False)
    at: int = 0
    kept: list[list[int]] = field(default_factory=list)
    appended: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.answers)))

    def first(self) -> torch.Tensor:
        logits = torch.zeros(len(self.alive), 10)
        for row, number in enumerate(self.alive):
            answer = self.answers[number]
            logits[row, answer[self.at] if self.at < len(answer) else END] = 5.0
        self.at += 1
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.appended.append(tokens.tolist())
        return self.first()

    def keep(self, rows: Sequence[int]) -> None:
        self.alive = [self.alive[row] for row in rows]
        self.kept.append(list(self.alive))


@dataclass
class Model:
    """As much of a backbone as the loop uses."""

    seq2seq: bool = False
    max_length: int = 100
    end_ids: frozenset[int] = frozenset({END, 8})
    end_id: int = END
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    model: Any = field(
        default_factory=lambda: SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=3))
    )
    slots: list[Any] = field(default_factory=list)

    @contextmanager
    def rows(self, slots: Any) -> Iterator[None]:
        self.slots.append(slots)
        yield


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of the next batch, put in by a test; then what they were begun with."""
    prepared: list[Any] = []

    def start(backbone: Any, prompts: Any, new: int, slots: Any) -> Rows:
        rows: Rows = prepared[0]
        prepared.append(([list(prompt) for prompt in prompts], new, slots))
        return rows

    monkeypatch.setattr(decoding, "start", start)
    return prepared


def run(
    rows: Rows, begun: list[Any], model: Any, most: int, prompts: Any = None, **more: Any
) -> Any:
    begun[:] = [rows]
    prompts = prompts or [[1]] * len(rows.answers)
    numbers = more.get("numbers", range(len(prompts)))
    return decode(model, prompts, most, more.get("pick", greedy), list(numbers), more.get("slots"))


def test_an_answer_ends_with_an_end_token_or_at_its_length(begun: list[Any]) -> None:
    rows = Rows([[1, 2, END, 4], [5, 8, 6], [1, 2, 3, 4, 5], [END]])
    assert run(rows, begun, Model(), 4) == [[1, 2], [5], [1, 2, 3, 4], []]
    assert begun[1] == ([[1]] * 4, 4, None)
    assert len(rows.appended) == 3  # four tokens need three steps after the first


def test_rows_that_have_ended_leave_once_they_are_a_quarter(begun: list[Any]) -> None:
    rows = Rows([[END], *([[n % 7] * 6 for n in range(1, 8)])])
    assert run(rows, begun, Model(), 6)[1] == [1] * 6
    assert rows.kept == []  # one of eight stays in the batch
    rows = Rows([[END], [1] * 2, [2] * 6, [3] * 6])
    assert run(rows, begun, Model(), 6, slots=[7, 6, 5, 4]) == [[], [1] * 2, [2] * 6, [3] * 6]
    assert rows.kept == [[1, 2, 3], [2, 3]]
    assert rows.appended[:3] == [[1, 2, 3], [1, 2, 3], [2, 3]]
    assert begun[1][2] == [7, 6, 5, 4]


def test_each_pass_has_the_slots_of_the_rows_that_are_left(begun: list[Any]) -> None:
    model = Model()
    run(Rows([[END], [1] * 3]), begun, model, 3, slots=[7, 6])
    assert model.slots == [[7, 6], [6]]
    plain = Model()
    run(Rows([[END], [1] * 3]), begun, plain, 3)
    assert plain.slots == [None, None]


def test_each_row_draws_by_its_own_number(begun: list[Any]) -> None:
    seen: list[list[int]] = []

    def pick(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        seen.append(list(numbers))
        return logits.argmax(-1)

    run(Rows([[END], [1, 2], [3, 4]]), begun, Model(), 2, numbers=[30, 10, 20], pick=pick)
    assert seen == [[30, 10, 20], [10, 20]]


def test_a_row_ends_where_the_context_does(begun: list[Any]) -> None:
    prompts = [[1] * 7, [1] * 9, [1] * 3]
    answers = [[2] * 9] * 3
    model = Model(max_length=10)
    assert [len(a) for a in run(Rows(answers), begun, model, 6, prompts)] == [3, 1, 6]
    encoder = Model(max_length=5, seq2seq=True)  # the decoder has places of its own
    assert [len(a) for a in run(Rows(answers), begun, encoder, 9, prompts)] == [5, 5, 5]


def test_the_models_own_penalty_counts_prompt_and_answer(begun: list[Any]) -> None:
    """Logit 5 over 2 is below 3, so that a token which was there gives way to the next best."""

    class Twice(Rows):
        def first(self) -> torch.Tensor:
            logits = super().first()
            logits[:, 7] = 3.0
            return logits

    model = Model(generation=GenerationSettings(repetition_penalty=2.0))
    rows = Twice([[1, 2, 2], [4, 4, 1]])
    # In the prompt 1; then what was said itself. 7, said once, is 1.5 and less than 2.5.
    assert run(rows, begun, model, 3, [[1], [1]]) == [[7, 2, 2], [4, 7, 1]]
    decoder = Model(generation=model.generation, seq2seq=True)
    rows = Twice([[1, 3], [3, 1]])
    assert run(rows, begun, decoder, 2, [[1], [1]]) == [[1, 7], [7, 1]]


def test_likeliest_tokens_are_closed_where_they_end_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[Any] = []

    def answer(
        backbone: Any, prompts: Any, tokens: int, pick: Any, numbers: Any, slots: Any
    ) -> Any:
        passes.append([list(prompt) for prompt in prompts])
        assert backbone.generation.repetition_penalty is None and pick is greedy and slots is None
        return [[prompt[-1]] * min(tokens, len(prompt)) for prompt in prompts]

    monkeypatch.setattr(generation, "decode", answer)
    model: Any = Model(generation=GenerationSettings(repetition_penalty=2.0))
    prompts = [[1, 2, 3], [4], [5, 6]]
    assert greedy_ids(model, prompts, 2, batch_size=2) == [[3, 3], [4, END], [6, 6]]
    assert passes == [[[4], [5, 6]], [[1, 2, 3]]]  # of similar length


def test_batches_hold_prompts_of_similar_length_and_a_banks_are_sorted_by_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[Any] = []

    def answer(
        backbone: Any, prompts: Any, tokens: int, pick: Any, numbers: Any, slots: Any
    ) -> Any:
        passes.append((list(numbers), None if slots is None else list(slots)))
        return [[len(prompt)] for prompt in prompts]

    monkeypatch.setattr(generation, "decode", answer)
    monkeypatch.setattr(generation, "answer_text", lambda prompter, row, new: f" {new[0]} ")
    model: Any = SimpleNamespace(
        seq2seq=False, max_length=50, prompter=None, prompt_ids=lambda text, limit: list(text)
    )
    texts = ["xxxx", "x", "xxx", "xx"]
    assert generation.generate(model, texts, 5, batch_size=2) == ["4", "1", "3", "2"]
    assert passes == [([1, 3], None), ([2, 0], None)]
    passes.clear()
    done = generation.generate(model, texts, 5, batch_size=3, slots=[3, 9, 8, 7])
    assert done == ["4", "1", "3", "2"]
    assert passes == [([3, 2, 1], [7, 8, 9]), ([0], [3])]
