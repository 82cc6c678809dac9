"""Answers to a task's questions: allowed labels by probability, free text by decoding.

Whoever asks a task's questions asks here: a profile, a study, the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pfi.inference.engine import AdapterRef, Engine, Request, Sampling, Scoring, text_of
from pfi.models.adapters import Adapter, stacked
from pfi.tasks import Task


def sampling_of(task: Task) -> Sampling:
    """How a task's free text is decoded unless told otherwise: greedy, at the task's length."""
    return Sampling(max_tokens=task.max_new_tokens)


def answers(engine: Engine, task: Task, asked: Sequence[Request]) -> list[str]:
    """One answer a question, as it is scored.

    Args:
        engine: what answers.
        task: what kind of answer is wanted: a label for choice and score tasks, else free text.
        asked: the questions.

    Raises:
        ConfigError: a prompt leaves no room for an answer.
    """
    if task.kind == "text":
        return [task.parse(text_of(stream)) for stream in engine.generate_all(asked)]
    return [task.parse(task.choose(row)) for row in label_scores(engine, task, asked)]


def label_scores(engine: Engine, task: Task, asked: Sequence[Request]) -> list[list[float]]:
    """The log-probability of every label of a task, end token included, after every question.

    Returns:
        ``len(asked)`` rows of ``len(task.labels)`` natural logarithms.
    """
    labels = [engine.prompter.target_ids(label) for label in task.labels]
    return engine.score_all([Scoring(q.prompt, labels, q.adapter, q.owner) for q in asked])


def target_scores(engine: Engine, asked: Sequence[Request], targets: Sequence[str]) -> list[float]:
    """The log-probability of each question's own target a token, end token included, in nats.

    Of a target that is longer than the context its beginning counts.
    """
    prompter = engine.prompter
    wanted = [
        prompter.target_ids(
            target, max(1, prompter.max_length - (0 if prompter.seq2seq else len(question.prompt)))
        )
        for question, target in zip(asked, targets, strict=True)
    ]
    scores = engine.score_all(
        [Scoring(q.prompt, [ids], q.adapter, q.owner) for q, ids in zip(asked, wanted, strict=True)]
    )
    return [row[0] / len(ids) for row, ids in zip(scores, wanted, strict=True)]


#: An adapter that may have to be read: what names its weights, how to read it, and its weight.
Part = tuple[str, Callable[[], Adapter], float]


def combined(parts: Sequence[Part]) -> AdapterRef | None:
    """Several adapters as one that an engine may load; None where none has a weight above 0."""
    used = [part for part in parts if part[2]]
    if not used:
        return None
    key = "|".join(f"{name}*{weight:g}" for name, _, weight in used)
    return AdapterRef(key, lambda: stacked([(load(), weight) for _, load, weight in used]))
