"""What the gate rests on: its choices tried on questions whose answers are known.

For a user those are their own newest records, which the adapter on trial has not learnt from
and whose prompts show older records only; for the prior they are other users' questions.  They
are asked as any question is: the same prompts, the same engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from pfi.gate.choices import NOTHING, Choice, Floats, GateConfig, Signal, plain_choices
from pfi.gate.prior import Tried
from pfi.inference.answering import answers, label_scores, sampling_of, target_scores
from pfi.inference.engine import AdapterRef, Engine, Request
from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval, lookalikes
from pfi.records import History, Question, Record
from pfi.tasks import METRICS, Task

#: A label that is less likely counts as this likely: one question shall not decide.
_LEAST_LIKELY = 1e-4
#: What answers for a user at a weight of their personal adapter; None for the backbone alone.
Weighted = Callable[[str, float], AdapterRef | None]


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
    history: History,
    newest: Sequence[Record],
    memory_of: Callable[[History], Memory],
    most: int,
    seed: int,
    pool: Sequence[Record] = (),
) -> list[Trial]:
    """Trials made from a user's newest records, each as it would have been asked at its time.

    Not even the words of a record that is newer than a trial count for it.

    Args:
        task: how records become questions.
        history: the user's records, oldest first.
        newest: its last ones.
        memory_of: a memory of the records from before a trial.
        most: records that may be retrieved for a trial.
        seed: of the choices that some tasks need.
        pool: records of other users, see ``Task.examples``.
    """
    trials = []
    for place, record in enumerate(newest, len(history) - len(newest)):
        known = history.before(record.time) if history.dated else history[:place]
        memory = memory_of(known)
        shown = lookalikes(task, known)
        for example in task.examples(history[: place + 1], random.Random(seed), pool):
            if example.record_id != record.id:
                continue
            same = {i for text in example.fields.values() for i in shown.get(text, ())}
            query = task.query_text(example.fields)
            allowed: Any = {"before": record.time, "exclude": {record.id, *same}}
            records = memory.search(query, most, **allowed)
            like = memory.likeness(query, **allowed)
            trials.append(Trial(history.user_id, example.prompt, example.target, records, like))
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
        records, like = memory.search(query, most), memory.likeness(query)
        trials.append(Trial(question.user_id, question.prompt, question.gold or "", records, like))
    return trials


@dataclass(frozen=True)
class Asker:
    """Asks trials under choices.

    Attributes:
        engine: what answers.
        task: whose questions.
        retrieval: how prompts are filled.
        weighted: what answers for a user at a weight; of 0 the shared adapter alone.
    """

    engine: Engine
    task: Task
    retrieval: Retrieval
    weighted: Weighted

    def request(self, trial: Trial, choice: Choice) -> Request:
        """What an engine is asked for a trial under a choice."""
        records = trial.records[: choice.k]
        filled = self.retrieval.fill(self.task, trial.prompt, records)
        adapter = self.weighted(trial.user, choice.weight_at(trial.likeness))
        return Request(filled.ids, adapter, sampling_of(self.task))

    def try_choices(self, trials: Sequence[Trial], config: GateConfig) -> dict[str, Tried]:
        """By user what every choice gains over ``NOTHING``."""
        tried = plain_choices(config)
        # Choices that come to the same for a question (a user without an adapter) are tried once.
        rows: dict[tuple[int, tuple[int, ...], str], int] = {}
        requests, targets, asked = [], [], []
        for number, trial in enumerate(trials):
            for choice in tried:
                request = self.request(trial, choice)
                key = number, tuple(request.prompt), request.adapter.key if request.adapter else ""
                if key not in rows:
                    rows[key] = len(rows)
                    requests.append(request)
                    targets.append(trial.target)
                asked.append(rows[key])
        values, likely = worths(self.engine, self.task, requests, targets, config.signal)

        def over_nothing(values: Floats) -> Floats:
            table = values[asked].reshape(len(trials), len(tried))
            return table - table[:, :1]

        gains = over_nothing(values)
        likelier = None if likely is None else over_nothing(likely)
        sure = np.zeros(len(trials))
        if config.per_question:
            plain = [self.request(trial, NOTHING) for trial in trials]
            sure = confidences(self.engine, self.task, plain)
        places: dict[str, list[int]] = {}
        for number, trial in enumerate(trials):
            places.setdefault(trial.user, []).append(number)
        return {
            user: Tried(gains[at], sure[at], None if likelier is None else likelier[at])
            for user, at in places.items()
        }

    def answers(
        self, questions: Sequence[Trial], chosen: Mapping[str, Choice], sure: float
    ) -> list[str]:
        """The questions' answers, each with as much as its user's choice lets through.

        Args:
            questions: what is asked.
            chosen: by user.
            sure: confidence from which on the shared adapter's answer stands, where the choice
                says so.
        """
        unsure = [i for i, question in enumerate(questions) if chosen[question.user].if_unsure]
        plain = [self.request(questions[i], NOTHING) for i in unsure]
        known = confidences(self.engine, self.task, plain)
        left = {i for i, value in zip(unsure, known, strict=True) if value >= sure}
        return answers(
            self.engine,
            self.task,
            [
                self.request(question, NOTHING if i in left else chosen[question.user])
                for i, question in enumerate(questions)
            ],
        )


def confidences(engine: Engine, task: Task, asked: Sequence[Request]) -> Floats:
    """How sure a model is of its answers, ``(questions,)`` in [0, 1].

    The probability of the likeliest label, or the mean one of the tokens of its free text.

    Args:
        engine: what answers.
        task: whose questions.
        asked: with the shared adapter alone.
    """
    if not asked:
        return np.zeros(0)
    if task.kind != "text":
        return _shares(label_scores(engine, task, asked)).max(-1)
    return np.exp(target_scores(engine, asked, answers(engine, task, asked)))


def worths(
    engine: Engine, task: Task, asked: Sequence[Request], targets: Sequence[str], signal: Signal
) -> tuple[Floats, Floats | None]:
    """How good the model's answers are, ``(questions,)``, greater is better, once or twice.

    By the metric: of labels the probability of the right one, or of an ordered scale the negative
    expected distance to it, which vary less from question to question than the metrics; of free
    text the task's main metric.  By likelihood: the logarithm of that of the right text a token,
    or of the right label among all.

    Args:
        engine: what answers.
        task: whose questions.
        asked: the questions.
        targets: their right answers.
        signal: what is wanted.

    Returns:
        by the metric, or by the likelihood if that alone is wanted; and by the likelihood if
        both are.
    """
    if task.kind == "text":
        likely = target_scores(engine, asked, targets) if signal != "metric" else []
        by_metric = _metrics(engine, task, asked, targets) if signal != "likelihood" else None
        by_likelihood = np.array(likely)
    else:
        shares = _shares(label_scores(engine, task, asked))
        places = [task.labels.index(target) if target in task.labels else -1 for target in targets]
        right = shares[np.arange(len(targets)), places]
        known = np.array(places) >= 0
        by_likelihood = np.where(known, np.log(np.maximum(right, _LEAST_LIKELY)), 0.0)
        by_metric = np.where(known, right, 0.0)
        if task.kind == "score":
            values = np.array([float(label) for label in task.labels])
            wanted = np.array([float(target) for target in targets])
            by_metric = -(shares * np.abs(values - wanted[:, None])).sum(1)
    if by_metric is None or signal == "likelihood":
        return by_likelihood, None
    return by_metric, by_likelihood if signal == "both" else None


def _metrics(
    engine: Engine, task: Task, asked: Sequence[Request], targets: Sequence[str]
) -> Floats:
    """The main metric of each free text, greater is better."""
    metric = METRICS[task.main_metric]
    sign = 1.0 if metric.higher_is_better else -1.0
    pairs = zip(answers(engine, task, asked), map(task.parse, targets), strict=True)
    return np.array([sign * metric.compute([a], [b], task.labels) for a, b in pairs])


def _shares(scores: Sequence[Sequence[float]]) -> Floats:
    """Probabilities of labels from the logarithms of their likelihoods, ``(rows, labels)``."""
    logs = np.array(scores, np.float64)
    likely = np.exp(logs - logs.max(-1, keepdims=True))
    shares: Floats = likely / likely.sum(-1, keepdims=True)
    return shares
