"""What the gate rests on: its choices tried on questions whose answers are known.

For a user those are their own newest records, which the adapter on trial has not learnt from
and whose prompts show older records only; for the prior they are other users' questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch

from pfi.gate.choices import (
    NOTHING,
    Choice,
    Floats,
    GateConfig,
    Tried,
    mixing_weights,
    plain_choices,
)
from pfi.inference.answering import answer
from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval, lookalikes
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import NO_ADAPTER, AdapterBank
from pfi.models.scoring import score_labels, score_targets
from pfi.records import History, Question, Record
from pfi.tasks import METRICS, Task


@dataclass(frozen=True)
class Trial:
    """A question of a user, made ready for any choice.

    Attributes:
        user: whose it is.
        prompt: without retrieved records.
        target: the answer if known.
        records: what may be retrieved for it, best first.
        likeness: how like the user's records it is, in [0, 1].
    """

    user: str
    prompt: str
    target: str
    records: Sequence[Record]
    likeness: float = 1.0


def divide(config: GateConfig, past: History) -> tuple[History, History]:
    """A user's records as older ones and the newest, which choices are tried on.

    None are held back of fewer than twice ``config.least`` records: what is left would say
    little about an adapter that learns from all of them.
    """
    wanted = min(config.most, max(config.least, round(config.held_back * len(past))))
    if len(past) < 2 * config.least:
        return past, past[len(past) :]
    return past.split(wanted)


def record_trials(
    task: Task,
    past: History,
    newest: History,
    memory: Memory,
    most: int,
    rng: random.Random,
    pool: Sequence[Record],
) -> list[Trial]:
    """Trials made from a user's newest records; each may show records older than itself."""
    records = {record.id: record for record in newest}
    shown = lookalikes(task, past)
    trials = []
    for example in task.examples(past, rng, pool):
        record = records.get(example.record_id)
        if record is None:
            continue
        same = {i for text in example.fields.values() for i in shown.get(text, ())}
        query = task.query_text(example.fields)
        allowed: Any = {"before": record.time, "exclude": {record.id, *same}}
        found = memory.search(query, most, **allowed)
        like = memory.likeness(query, **allowed)
        trials.append(Trial(past.user_id, example.prompt, example.target, found, like))
    return trials


def question_trials(
    task: Task,
    questions: Sequence[Question],
    memory_at: Callable[[datetime | None], Memory],
    most: int,
) -> list[Trial]:
    """Trials made from a user's questions, with records from before each."""
    trials = []
    for question in questions:
        memory, query = memory_at(question.time), task.query_text(question.fields)
        found, like = memory.search(query, most), memory.likeness(query)
        trials.append(Trial(question.user_id, question.prompt, question.gold or "", found, like))
    return trials


class Mixer:
    """A bank that holds users' adapters at every weight that a gate may choose.

    Args:
        base: the backbone, with the shared adapter merged in.
        shape: of the adapters.
        adapters: by user; None for one without.
        config: the gate's.
    """

    def __init__(
        self,
        base: Backbone,
        shape: AdapterConfig,
        adapters: Mapping[str, Adapter | None],
        config: GateConfig,
    ) -> None:
        known = {user: adapter for user, adapter in adapters.items() if adapter is not None}
        used = mixing_weights(config)
        bank = AdapterBank(base, shape, capacity=max(1, len(known) * len(used)))
        self._slots = {
            (user, weight): bank.add(adapter.scaled(weight))
            for user, adapter in known.items()
            for weight in used
        }
        self.backbone = bank.backbone

    def slot(self, user: str, weight: float) -> int:
        """Where a user's adapter is at this weight; ``NO_ADAPTER`` for none."""
        return self._slots.get((user, weight), NO_ADAPTER)


def try_choices(
    task: Task,
    mixer: Mixer,
    trials: Sequence[Trial],
    config: GateConfig,
    retrieval: Retrieval,
    max_prompt: int | None,
) -> dict[str, Tried]:
    """By user what every choice gains over ``NOTHING``."""
    tried = plain_choices(config)
    # Choices that come to the same for a question (a user without an adapter) are tried once.
    rows: dict[tuple[int, int, int], int] = {}
    asked = []
    for i, trial in enumerate(trials):
        for choice in tried:
            slot = mixer.slot(trial.user, choice.weight_at(trial.likeness))
            asked.append(rows.setdefault((i, choice.k, slot), len(rows)))
    filled = {
        (i, k): retrieval.fill(task, trials[i].prompt, trials[i].records[:k])
        for i, k in dict.fromkeys((i, k) for i, k, _ in rows)
    }
    prompts = [filled[i, k] for i, k, _ in rows]
    targets = [trials[i].target for i, _, _ in rows]
    slots = [slot for _, _, slot in rows]
    found = utilities(task, mixer.backbone, prompts, targets, slots, max_prompt)
    gains = found[asked].reshape(len(trials), len(tried))
    gains = gains - gains[:, :1]
    sure = np.zeros(len(trials))
    if config.per_question:
        sure = confidences(task, mixer.backbone, [trial.prompt for trial in trials], max_prompt)
    places: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        places.setdefault(trial.user, []).append(i)
    return {user: Tried(gains[at], sure[at]) for user, at in places.items()}


def confidences(
    task: Task, backbone: Backbone, prompts: Sequence[str], max_prompt: int | None
) -> Floats:
    """How sure a bank's backbone without adapters is of its answers, ``(prompts,)`` in [0, 1].

    The probability of the likeliest label, or the mean one of the tokens of its free text.
    """
    plain = [NO_ADAPTER] * len(prompts)
    if task.kind != "text":
        scores = score_labels(backbone, prompts, task.labels, max_prompt, slots=plain)
        return _shares(scores).max(-1)
    answers = answer(backbone, task, prompts, max_prompt, slots=plain)
    return np.exp(score_targets(backbone, prompts, answers, max_prompt, slots=plain))


def utilities(
    task: Task,
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Sequence[str],
    slots: Sequence[int],
    max_prompt: int | None,
) -> Floats:
    """How good the model's answers are, ``(prompts,)``, greater is better.

    Labels: the probability of the right one, or of an ordered scale the negative expected
    distance to it, which vary less from question to question than the metrics.  Free text: the
    task's main metric.  (The likelihood of the right text would be cheaper, but adapters raise
    it where their texts are no better; see dev/log.md.)
    """
    if task.kind == "text":
        metric = METRICS[task.main_metric]
        sign = 1.0 if metric.higher_is_better else -1.0
        given = answer(backbone, task, prompts, max_prompt, slots=slots)
        pairs = zip(map(task.parse, given), map(task.parse, targets), strict=True)
        return np.array([sign * metric.compute([a], [b], task.labels) for a, b in pairs])
    scores = score_labels(backbone, prompts, task.labels, max_prompt, slots=slots)
    likely = _shares(scores)
    if task.kind == "score":
        values = np.array([float(label) for label in task.labels])
        wanted = np.array([float(target) for target in targets])
        return -(likely * np.abs(values - wanted[:, None])).sum(1)
    places = [task.labels.index(target) if target in task.labels else -1 for target in targets]
    right = likely[np.arange(len(targets)), places]
    return np.where(np.array(places) < 0, 0.0, right)


def _shares(scores: Sequence[Sequence[float]]) -> Floats:
    """Probabilities of labels from the logarithms of their likelihoods, ``(rows, labels)``."""
    return torch.softmax(torch.tensor(scores, dtype=torch.float64), -1).numpy()


def mixed_answers(
    task: Task,
    mixer: Mixer,
    questions: Sequence[Trial],
    chosen: Mapping[str, Choice],
    sure: float,
    retrieval: Retrieval,
    max_prompt: int | None,
) -> list[str]:
    """The questions' answers, each with as much as its user's choice lets through.

    Args:
        task: the task.
        mixer: has the users' adapters.
        questions: what is asked.
        chosen: by user.
        sure: confidence from which on the shared adapter's answer stands, where the choice
            says so.
        retrieval: how prompts are filled.
        max_prompt: longest prompt in tokens; what fits beside the answer when None.
    """
    asked = [i for i, question in enumerate(questions) if chosen[question.user].if_unsure]
    plain = [questions[i].prompt for i in asked]
    known = confidences(task, mixer.backbone, plain, max_prompt) if asked else np.zeros(0)
    left = {i for i, value in zip(asked, known, strict=True) if value >= sure}
    prompts, slots = [], []
    for i, question in enumerate(questions):
        choice = NOTHING if i in left else chosen[question.user]
        prompts.append(retrieval.fill(task, question.prompt, question.records[: choice.k]))
        slots.append(mixer.slot(question.user, choice.weight_at(question.likeness)))
    return answer(mixer.backbone, task, prompts, max_prompt, slots=slots)
