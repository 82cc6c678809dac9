"""Streams: one user's history as questions in time order, each asked before it is learnt from.

Predict, then learn (prequential evaluation, Dawid 1984; Gama et al. 2013): what a step may use
is what came before it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pfi.errors import ConfigError
from pfi.evaluate.study.config import StreamConfig
from pfi.records import History, Record, User
from pfi.tasks import Example, Task

#: What a device may do with new records, over the shared adapter.
POLICIES = {
    "never": "the shared adapter alone: nothing is learnt from new records",
    "memory": "records retrieved from those seen so far",
    "adapter": "a personal adapter, updated as records come",
    "both": "that adapter, and records retrieved from those seen so far",
}


@dataclass(frozen=True)
class Step:
    """One question of a stream.

    Attributes:
        step: its place in the stream, from 0.
        seen: how many records came before it; all of them may be used, and none else.
        record: id of the record (or question) that it was made from.
        prompt: without retrieved records.
        fields: the input fields, which serve as retrieval query.
        gold: the expected answer.
        shown: ids of records that the prompt was made with, which retrieval leaves out.
    """

    step: int
    seen: int
    record: str
    prompt: str
    fields: Mapping[str, str]
    gold: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    """A user's records, oldest first, and the questions made from them.

    Attributes:
        flipped: the first record after the user's taste has changed; None where it does not.
    """

    user: str
    records: History
    steps: Sequence[Step]
    flipped: int | None = None

    def seen(self, records: int) -> History:
        """The first records."""
        return self.records[:records]


def make_stream(
    task: Task,
    user: User,
    config: StreamConfig,
    strangers: Sequence[Record],
    rng_of: Callable[[str], random.Random],
    most: int | None = None,
) -> Stream:
    """The stream of a user.

    Args:
        task: how a record becomes a question.
        user: their history, dated or in the order of the file.
        config: how much of it, and whether the labels change.
        strangers: records of others, for tasks that contrast a user with others.
        rng_of: a generator for the choices of one step, by record id.
        most: only the last records of the history, before ``config.steps`` is applied.
    """
    questions = [q for q in user.questions if q.gold is not None] if config.questions else []
    history = user.history
    if questions:
        history = history.before(min((q.time for q in questions if q.time), default=None))
    if most is not None:
        history = history[-most:]
    history = history[: config.steps]
    flipped = None
    change: Mapping[str, str] = {}
    if config.flip is not None:
        flipped, change = round(config.flip * len(history)), changed_labels(task, history)
        later = (replace(r, output=change.get(r.output, r.output)) for r in history[flipped:])
        history = History(user.id, [*history[:flipped], *later])
    steps = []
    for seen, record in enumerate(history):
        found = _ask(task, history, seen, strangers, rng_of(record.id))
        if found is not None:
            example, shown = found
            steps.append(
                Step(seen, seen, record.id, example.prompt, example.fields, example.target, shown)
            )
    n = len(history)
    for place, q in enumerate(questions, n):
        gold = q.gold or ""
        steps.append(Step(place, n, q.id, q.prompt, q.fields, change.get(gold, gold)))
    return Stream(user.id, history, steps, flipped)


def _ask(
    task: Task, history: History, seen: int, strangers: Sequence[Record], rng: random.Random
) -> tuple[Example, tuple[str, ...]] | None:
    """A record as a question, by the task's practice, from nothing but itself and its past."""
    record = history[seen]
    shown: tuple[str, ...] = ()
    if task.practice == "citation":
        # The new paper is the right option, so that nothing learnt so far has named it.
        title = record.input.get("title")
        past = [r for r in history[:seen] if r.input.get("title") not in (None, "", title)]
        own = {r.input.get("title") for r in past} | {title}
        strangers = [r for r in strangers if r.input.get("title") not in own]
        if not past:
            return None
        asked = rng.choice(past)
        shown = (asked.id,)
        made = task.examples(History(history.user_id, [asked, record]), rng, strangers)
        made = [example for example in made if example.record_id == asked.id]
    else:
        made = task.examples(History(history.user_id, [record]), rng, strangers)
    return (made[0], shown) if made else None


def changed_labels(task: Task, history: Sequence[Record]) -> dict[str, str]:
    """The planted change of taste, for every label a user has used.

    A scale is turned round. Of other labels each becomes the user's next in frequency, and the
    rarest the most frequent; whoever uses one label gets the task's next one.
    """
    if task.kind == "score":
        return dict(zip(task.labels, reversed(task.labels), strict=True))
    counts = Counter(record.output for record in history if record.output in task.labels)
    order = sorted(counts, key=lambda label: (-counts[label], task.labels.index(label)))
    if len(order) == 1:
        order.append(task.labels[(task.labels.index(order[0]) + 1) % len(task.labels)])
    return dict(zip(order, order[1:] + order[:1], strict=True))


def check_flip(task: Task) -> None:
    """Whether the labels of a task's records can be changed.

    Raises:
        ConfigError: its records have none.
    """
    if not task.labels or task.practice != "direct":
        what = f"the records of {task.name} have no labels that could change"
        fix = "give --tasks with labels (LaMP_2M, LaMP_2N, LaMP_3), or leave stream.flip out"
        raise ConfigError(what, where="stream.flip", fix=fix)
