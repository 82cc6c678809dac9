"""Votes: one output from several answers of the teacher, and how far they agree on it.

Labels: the majority, and its share.  Scores: the median; a vote one step away from it counts
half, one further away nothing.  Texts: the medoid by ROUGE-L, and its mean likeness to the
others.  Ties go to the answer that came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pfi.tasks import Task
from pfi.tasks.metrics import rouge_l


@dataclass(frozen=True)
class Vote:
    """What several answers come to.

    Attributes:
        output: one of the answers.
        confidence: how far the answers agree on it, in [0, 1]; 1 for a single answer.
        votes: how many answers counted.
    """

    output: str
    confidence: float
    votes: int


def hold(task: Task, answers: Sequence[str]) -> Vote | None:
    """The vote that suits the task; answers that are no labels of it do not count.

    Returns:
        None when no answer counts.
    """
    if task.labels:
        answers = [answer for answer in answers if answer in task.labels]
    answers = [answer for answer in answers if answer]
    if not answers:
        return None
    if task.kind == "choice":
        return majority(answers)
    if task.kind == "score":
        return median(answers, task.labels)
    return medoid(answers)


def majority(answers: Sequence[str]) -> Vote:
    """The most frequent answer; the confidence is its share."""
    output, times = Counter(answers).most_common(1)[0]  # equal counts: the first seen
    return Vote(output, times / len(answers), len(answers))


def median(answers: Sequence[str], labels: Sequence[str]) -> Vote:
    """The middle score; of two middle ones the more frequent, then the first given.

    The confidence is the mean over the answers of ``max(0, 1 - steps / 2)``, where steps count
    along the ordered labels: 1 for an answer that is the median, 0.5 for a neighbour of it.
    """
    scale = sorted(labels, key=float)
    ordered = sorted(answers, key=scale.index)
    middle = {ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]}
    output = max(answers, key=lambda answer: (answer in middle, answers.count(answer)))
    at = scale.index(output)
    agree = [max(0.0, 1 - abs(scale.index(answer) - at) / 2) for answer in answers]
    return Vote(output, sum(agree) / len(agree), len(answers))


def medoid(answers: Sequence[str]) -> Vote:
    """The text most like the others; the confidence is its mean likeness to them."""
    if len(answers) == 1:
        return Vote(answers[0], 1.0, 1)
    means = []
    for i, one in enumerate(answers):
        others = [likeness(one, other) for j, other in enumerate(answers) if j != i]
        means.append(sum(others) / len(others))
    best = max(range(len(answers)), key=lambda i: means[i])
    return Vote(answers[best], means[best], len(answers))


def likeness(one: str, other: str) -> float:
    """ROUGE-L F of two texts; 1 for equal ones, also where they hold no words."""
    return 1.0 if one == other else rouge_l([one], [other], [])
