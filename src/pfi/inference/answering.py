"""Answers to a task's questions: allowed labels by probability, free text by decoding."""

from __future__ import annotations

from collections.abc import Sequence

from pfi.inference.generation import generate
from pfi.models.backbone import Backbone
from pfi.models.scoring import score_labels
from pfi.tasks import Task


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
    return [task.choose(row) for row in scores]
