"""The metrics of the LaMP benchmark, computed by libraries, over lists of answers.

Rules reproduced from the benchmark's own evaluation: labels are compared as they are written,
an unknown label is wrong and belongs to no class of the macro average; a score that is no
number counts as the end of the scale farther from the gold one; ROUGE is the F measure
without stemming.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

Compute = Callable[[Sequence[str], Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Metric:
    """A metric over aligned predictions, golds and the task's labels.

    Attributes:
        compute: the value over a list of answers.
        higher_is_better: the direction of improvement.
        per_question: whether the value is the mean of per-question values.
    """

    compute: Compute
    higher_is_better: bool = True
    per_question: bool = True


def _indices(answers: Sequence[str], labels: Sequence[str]) -> list[int]:
    positions = {label: i for i, label in enumerate(labels)}
    return [positions.get(answer, -1) for answer in answers]


def accuracy(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Share of answers whose label is the gold one; unknown labels are never right."""
    pairs = zip(_indices(predictions, labels), _indices(golds, labels), strict=True)
    return float(np.mean([p == g >= 0 for p, g in pairs]))


def macro_f1(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 over all labels of the task; a label that never occurs counts as 0.

    By counts: the checks of scikit-learn take 4 ms a call, and a bootstrap makes 1,000 calls.
    """
    pairs = zip(_indices(golds, labels), _indices(predictions, labels), strict=True)
    gold, predicted = np.array(list(pairs), dtype=int).reshape(-1, 2).T
    size = len(labels)
    right = np.bincount(gold[(gold == predicted) & (gold >= 0)], minlength=size)
    given = np.bincount(predicted[predicted >= 0], minlength=size)
    true = np.bincount(gold[gold >= 0], minlength=size)
    return float(np.mean(2 * right / np.maximum(given + true, 1)))


def parse_score(answer: str, gold: float, low: float = 1.0, high: float = 5.0) -> float:
    """The answer as a number; one that is none counts as the end of the scale farther off."""
    try:
        number = float(answer)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    return low if abs(low - gold) > abs(high - gold) else high


def _errors(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    scale = [float(label) for label in labels] or [1.0, 5.0]
    numbers = [float(gold) for gold in golds]
    scores = [
        parse_score(p, g, min(scale), max(scale)) for p, g in zip(predictions, numbers, strict=True)
    ]
    return np.asarray(scores) - np.asarray(numbers)


def mae(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Mean absolute error of scores."""
    return float(np.abs(_errors(predictions, golds, labels)).mean())


def rmse(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Root mean squared error of scores."""
    return float(np.sqrt((_errors(predictions, golds, labels) ** 2).mean()))


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


@lru_cache(maxsize=65536)
def _rouge_pair(prediction: str, gold: str) -> dict[str, float]:
    scores = _rouge_scorer().score(gold, prediction)
    return {name: score.fmeasure for name, score in scores.items()}


def rouge_1(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Mean ROUGE-1 F (unigram overlap)."""
    pairs = zip(predictions, golds, strict=True)
    return float(np.mean([_rouge_pair(p, g)["rouge1"] for p, g in pairs]))


def rouge_l(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Mean ROUGE-L F (longest common subsequence)."""
    pairs = zip(predictions, golds, strict=True)
    return float(np.mean([_rouge_pair(p, g)["rougeL"] for p, g in pairs]))


def edit_similarity(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]
) -> float:
    """Mean similarity of characters, case and punctuation included (difflib ratio).

    Style lives in what ROUGE ignores, so tasks about style also report this one.
    """
    from difflib import SequenceMatcher

    pairs = zip(predictions, golds, strict=True)
    return float(np.mean([SequenceMatcher(None, p, g, autojunk=False).ratio() for p, g in pairs]))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "macro_f1": Metric(macro_f1, per_question=False),
    "mae": Metric(mae, higher_is_better=False),
    "rmse": Metric(rmse, higher_is_better=False, per_question=False),
    "rouge_1": Metric(rouge_1),
    "rouge_l": Metric(rouge_l),
    "edit_similarity": Metric(edit_similarity),
}
