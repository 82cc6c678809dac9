"""Whether a question is like a user's records: a floor on likeness, calibrated on the records.

What was learnt from a user's records helps with questions like them and harms others: a model
trained on notes answers "the capital of France" with a note.  So a question below the floor is
answered without them (until a gate is fitted, and free text always).

Likeness is the probability that a question is one about the records rather than a general one.  A
logistic regression with fixed signs weighs how much of the question's words the records hold, how
much the general questions in ``general_questions.txt`` hold, and the cosine to the nearest record
where there is a sentence model.  It is fitted for each user: on their own records, each left out
in turn, against the general questions, each left out in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pfi.memory.index import Memory
from pfi.memory.words import WordIndex, words
from pfi.records import History
from pfi.tasks import Task

#: A long text is judged by parts of so many different words, which are compared with records as
#: short questions are; at most so many parts.
WINDOW, WINDOWS = 12, 8
#: Records and general questions that a floor is fitted on.
SAMPLE = 96
#: Fewer records say too little of how alike they are.
LEAST = 8
#: Share of the user's own questions that a floor may turn away.
TURNED_AWAY = 0.03
#: A word in this share of texts counts as half unknown; the rarest words count ln(1/RARE).
RARE = 0.005
#: However many records hold a word, it counts as one of so many: it may be what they are about.
COMMON = 0.25
_STEPS, _RATE, _RIDGE = 400, 0.5, 0.01


class Floor(BaseModel):
    """Which questions are like the records of one task.

    Attributes:
        records: how many there were when it was fitted.
        embedder: the sentence model's name; empty without one.
        weights: of the words that records hold, that general questions hold, and of the cosine.
        bias: added to their sum.
        floor: likeness from which on a question is like the records.
        turned_away: share of the general questions below the floor, each left out in turn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    records: int
    embedder: str
    weights: tuple[float, float, float]
    bias: float
    floor: float
    turned_away: float = 0.0

    def likeness(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The likeness of questions, (n,) in [0, 1], from their features, (n, 3)."""
        return _sigmoid(features @ np.array(self.weights) + self.bias)

    def fits(self, records: int, embedder: str) -> bool:
        """Whether it may serve records of this number, which change little by little."""
        return self.embedder == embedder and abs(records - self.records) <= self.records // 10


@dataclass(frozen=True)
class Likeness:
    """How like the records a question is, in [0, 1], and the least that is like them."""

    value: float
    floor: float

    @property
    def off_topic(self) -> bool:
        """Whether the question is below the floor."""
        return self.value < self.floor


def likeness(memory: Memory, floor: Floor, query: str) -> Likeness:
    """How like the records of a memory a question is."""
    (value,) = floor.likeness(np.array([_features(memory, query)]))
    return Likeness(float(value), floor.floor)


def default_floor(records: int, embedder: str) -> Floor:
    """The floor of fewer than ``LEAST`` records: some words in common, or a near meaning."""
    weights = (16.0, 0.0, 12.0 if embedder else 0.0)
    bias = -8.0 if embedder else -4.0
    return Floor(records=records, embedder=embedder, weights=weights, bias=bias, floor=0.5)


def fit_floor(memory: Memory, task: Task) -> Floor:
    """Fit the floor of a task's records; the same records give the same floor.

    Args:
        memory: the records.
        task: how a record becomes a question.
    """
    records = int(memory.allowed().sum())
    own = []
    for record in memory.sample(SAMPLE):
        for example in task.examples(History("", [record]), Random(record.id))[:1]:
            query = task.query_text(example.fields)
            own.append(_features(memory, query, exclude=[record.id]))
    if len(own) < LEAST:
        return default_floor(records, memory.embedder_name)
    general = [
        _features(memory, question, general=number)
        for number, question in enumerate(general_questions())
    ]
    features = np.array([*own, *general])
    positive = np.arange(len(features)) < len(own)
    weights, bias = _fit(features, positive)
    value = _sigmoid(features @ weights + bias)
    floor = min(0.5, float(np.quantile(value[positive], TURNED_AWAY)))
    return Floor(
        records=records,
        embedder=memory.embedder_name,
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        bias=bias,
        floor=floor,
        turned_away=float(np.mean(value[~positive] < floor)),
    )


def _fit(
    features: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float]:
    """Logistic regression by projected gradient descent, both classes of equal weight.

    More of a question's words in the records never makes it less like them: signs are fixed.
    """
    scale = np.maximum(features.std(0), 1e-3)
    scaled = features / scale
    counts = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    weights, bias = np.zeros(features.shape[1]), 0.0
    for _ in range(_STEPS):
        error = (_sigmoid(scaled @ weights + bias) - positive) * counts
        weights = weights - _RATE * (scaled.T @ error + _RIDGE * weights)
        weights[[0, 2]] = weights[[0, 2]].clip(0, None)
        weights[1] = min(weights[1], 0.0)
        bias -= _RATE * float(error.sum())
    return weights / scale, bias


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))), np.float64)


# Features -----------------------------------------------------------------------------


def _features(
    memory: Memory, query: str, *, exclude: Iterable[str] = (), general: int | None = None
) -> list[float]:
    """What tells whether a question is about the records, (3,), see ``Floor.weights``.

    Args:
        memory: the records.
        query: the question.
        exclude: ids of records that do not count.
        general: the place of the general question that does not count.
    """
    asked = words(query)[: WINDOW * WINDOWS]
    allowed = memory.allowed(exclude)
    others = np.ones(len(general_questions()), dtype=bool)
    if general is not None:
        others[general] = False
    parts = [asked[at : at + WINDOW] for at in range(0, len(asked), WINDOW)]
    covered = [_covered(memory, part, allowed, others) for part in parts if part]
    cosine = memory.nearest(query, exclude=exclude)
    mean = np.mean(covered, axis=0) if covered else np.zeros(2)
    return [float(mean[0]), float(mean[1]), 0.0 if cosine is None else cosine]


def _covered(
    memory: Memory,
    asked: Sequence[str],
    allowed: NDArray[np.bool_],
    others: NDArray[np.bool_],
) -> tuple[float, float]:
    """The share of some words that the record, and the general question, with most of them holds.

    Rare words count more, by how common they are among records, or among general questions.
    """
    own, general = np.zeros(len(allowed)), np.zeros(len(others))
    total = 0.0
    for word in asked:
        records, questions = memory.holding(word), _general_index().holding(word)
        records, questions = records[allowed[records]], questions[others[questions]]
        common = min(COMMON, len(records) / max(1, allowed.sum()))
        common = max(common, len(questions) / others.sum())
        weight = max(0.0, -float(np.log(min(1.0, common + RARE))))
        own[records] += weight
        general[questions] += weight
        total += weight
    if not total:
        return 0.0, 0.0
    most = float(own.max(where=allowed, initial=0.0))
    return most / total, float(general.max(initial=0.0)) / total


@cache
def general_questions() -> tuple[str, ...]:
    """Questions that anybody may ask, of many kinds."""
    text = (resources.files("pfi.memory") / "general_questions.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


def general_holding(word: str) -> NDArray[np.float64]:
    """1 for each general question that holds a word, else 0, (number of questions,)."""
    holding = np.zeros(len(general_questions()))
    if word:
        holding[_general_index().holding(word)] = 1.0
    return holding


@cache
def _general_index() -> WordIndex:
    return WordIndex.of(dict(enumerate(general_questions())), len(general_questions()))
