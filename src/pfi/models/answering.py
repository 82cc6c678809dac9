"""Answers to a task's questions: allowed labels by probability, free text by decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfi.models.backbone import Backbone
from pfi.models.generation import generate
from pfi.models.scoring import score_labels
from pfi.tasks import Task


def choose(task: Task, scores: Sequence[float]) -> str:
    """The answer for one question's label scores.

    The likeliest label; for an ordered scale the median of the distribution over the labels,
    which minimises the expected absolute error.
    """
    if task.kind == "score":
        cumulated = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0).cumsum(0)
        return task.labels[min(int((cumulated < 0.5).sum()), len(task.labels) - 1)]
    return task.labels[max(range(len(scores)), key=scores.__getitem__)]


def answer(
    backbone: Backbone,
    task: Task,
    prompts: Sequence[str],
    max_prompt: int | None = None,
    *,
    slots: Sequence[int] | None = None,
) -> list[str]:
    """One answer a prompt: a label for choice and score tasks, greedy text otherwise.

    Args:
        backbone: the model; a bank's takes slots.
        task: what kind of answer is wanted.
        prompts: the questions.
        max_prompt: longest prompt in tokens.
        slots: whose adapter each prompt uses, see ``Backbone.rows``.
    """
    if task.kind == "text":
        new = task.max_new_tokens
        return generate(backbone, prompts, new, max_prompt=max_prompt, slots=slots)
    scores = score_labels(backbone, prompts, task.labels, max_prompt, slots=slots)
    return [choose(task, row) for row in scores]
