"""The pipeline: generators, filters, synthetic records, for many users in step (CDCDA-PLM)."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.filters.filters import FilterCount, apply_filters
from pfi.augment.filters.judge import Judge
from pfi.augment.generators import default_generators, get_generator
from pfi.augment.guard import Guard
from pfi.augment.teachers.teacher import Call, Reply, Usage
from pfi.errors import DataError
from pfi.records import History, Record
from pfi.tasks import Task
from pfi.tasks.task import Trim

Run = Generator[list[Call], list[Reply | None], list[Draft]]


@dataclass(frozen=True)
class Augmented:
    """What augmentation made for one user.

    Attributes:
        user: whose records they resemble.
        records: the synthetic records that passed the filters, the best first.
        unfiltered: as many as were wanted, as they came, but for those that are no records.
        counts: what every filter kept and dropped.
        usage: what the teacher's answers took, whether they were paid now or cached.
    """

    user: str
    records: tuple[Record, ...] = ()
    unfiltered: tuple[Record, ...] = ()
    counts: tuple[FilterCount, ...] = ()
    usage: Usage = field(default_factory=Usage)

    @property
    def drafts(self) -> int:
        """How many drafts the generators made."""
        return self.counts[0].before if self.counts else len(self.unfiltered)


class Augmenter:
    """Makes synthetic records for users of one task.

    Args:
        task: the task.
        config: how.
        client: through which the teacher is asked.
        judge: what the filters measure with.
        trim: shortens a text to a number of the device model's tokens.
        pool: public records, or those of others; see ``Subject``.
        names: people whose names are redacted beside those found in a user's records.

    Raises:
        ConfigError: there is no such generator.
    """

    def __init__(
        self,
        task: Task,
        config: AugmentConfig,
        client: TeacherClient,
        judge: Judge,
        trim: Trim,
        *,
        pool: Sequence[Record] = (),
        names: Sequence[str] = (),
    ) -> None:
        self.task, self.config, self.client, self.judge = task, config, client, judge
        self.trim, self.pool, self.names = trim, pool, names
        chosen = config.strategies or default_generators(task, config.teacher.kind, bool(pool))
        self.generators = {name: get_generator(name) for name in chosen}

    def augment(self, histories: Sequence[History]) -> list[Augmented]:
        """Synthetic records for every user; none for a user without records.

        Raises:
            TeacherError: the teacher cannot be reached; what was answered is kept.
        """
        present = [history for history in histories if history]
        drafts, usage = self._drafts(present)
        made = {}
        for history in present:
            user = history.user_id
            made[user] = self._judge(self._subject(history), drafts[user], usage[user])
        return [made.get(history.user_id) or Augmented(history.user_id) for history in histories]

    # Drafts -------------------------------------------------------------------------

    def first_calls(self, history: History, guard: Guard) -> list[Call]:
        """What would be asked first; later calls of some generators follow from its answers."""
        guarded = guard if self.client.redacts else None
        return [call for run in self._runs(history, guarded) for call in _begin(run)[0]]

    def guard(self, history: History) -> Guard:
        """What hides a user's identifiers from a teacher elsewhere."""
        return Guard(history, self.names)

    def _subject(self, history: History, guard: Guard | None = None) -> Subject:
        """A user as generators and filters see them; with a guard, as others may."""
        seed = self.config.seed
        if guard is None:
            return Subject(self.task, history, self.pool, self.trim, seed)
        hidden = guard.hide_all(history)
        return Subject(self.task, hidden, self.pool, self.trim, seed, guard.hide)

    def _runs(self, history: History, guard: Guard | None) -> list[Run]:
        subject = self._subject(history, guard)
        total = math.ceil(self.config.records * self.config.drafts)
        each = math.ceil(total / len(self.generators)) if self.generators else 0
        return [run(subject, self.config, each) for run in self.generators.values()]

    def _drafts(
        self, histories: Sequence[History]
    ) -> tuple[dict[str, list[Draft]], dict[str, Usage]]:
        """All users' drafts; a step of every generator of every user is one batch of calls."""
        drafts: dict[str, list[list[Draft]]] = {}
        guards: dict[str, Guard] = {}
        if self.client.redacts:
            guards = {history.user_id: self.guard(history) for history in histories}
        usage = {history.user_id: Usage() for history in histories}
        open_runs: list[tuple[str, int, Run, list[Call]]] = []
        for history in histories:
            user = history.user_id
            runs = self._runs(history, guards.get(user))
            drafts[user] = [[] for _ in runs]
            for i, run in enumerate(runs):
                calls, made = _begin(run)
                drafts[user][i] = made
                if calls:
                    open_runs.append((user, i, run, calls))
        while open_runs:
            replies = iter(
                self.client.ask([call for *_, calls in open_runs for call in calls], guards)
            )
            going: list[tuple[str, int, Run, list[Call]]] = []
            for user, i, run, calls in open_runs:
                given = [next(replies) for _ in calls]
                for reply in given:
                    usage[user] += reply.usage if reply else Usage()
                following, drafts[user][i] = _advance(run, given)
                if following:
                    going.append((user, i, run, following))
            open_runs = going
        found = {user: [d for made in runs for d in made] for user, runs in drafts.items()}
        for user, guard in guards.items():
            found[user] = [guard.reveal(draft) for draft in found[user]]
        return found, usage

    # Records ------------------------------------------------------------------------

    def _judge(self, subject: Subject, drafts: Sequence[Draft], usage: Usage) -> Augmented:
        filtered = apply_filters(
            subject, drafts, self.config.filters, self.config.records, self.judge
        )
        records = [self._record(draft, i) for i, draft in enumerate(filtered.kept)]
        plain = (self._record(draft, i) for i, draft in enumerate(drafts) if not draft.problem)
        unfiltered = [record for record in plain if record is not None]
        subject.rng("unfiltered").shuffle(unfiltered)  # or the first generator's would be all
        return Augmented(
            subject.user,
            tuple(record for record in records if record is not None),
            tuple(unfiltered[: self.config.records]),
            tuple(filtered.counts),
            usage,
        )

    def _record(self, draft: Draft, number: int) -> Record | None:
        """The draft as a record; None if it holds no text or no valid text."""
        try:
            name = f"synthetic-{draft.strategy}-{number}"
            return draft.record(name, self.task.name, self.client.teacher.name)
        except DataError:
            return None


def _begin(run: Run) -> tuple[list[Call], list[Draft]]:
    """The first calls of a generator, or its drafts if it needs none."""
    try:
        return next(run), []
    except StopIteration as ended:
        return [], ended.value


def _advance(run: Run, replies: list[Reply | None]) -> tuple[list[Call], list[Draft]]:
    """The next calls of a generator after these replies, or its drafts."""
    try:
        return run.send(replies), []
    except StopIteration as ended:
        return [], ended.value


def label_counts(task: Task, records: Sequence[Record]) -> Mapping[str, int]:
    """How often each label is the output; empty for a task without labels."""
    if not task.labels or not task.output:
        return {}
    return {label: sum(r.output == label for r in records) for label in task.labels}


def describe(task: Task, history: History, made: Augmented) -> dict[str, Any]:
    """What a report says of one user's augmentation, as plain values."""
    confidence = [record.made.confidence for record in made.records if record.made]
    return {
        "real": len(history),
        "drafts": made.drafts,
        "records": len(made.records),
        "unfiltered": len(made.unfiltered),
        "filters": [count.to_dict() for count in made.counts],
        "confidence": sum(confidence) / len(confidence) if confidence else None,
        "labels_real": label_counts(task, history),
        "labels_synthetic": label_counts(task, made.records),
        "prompt_tokens": made.usage.prompt_tokens,
        "completion_tokens": made.usage.completion_tokens,
        "usd": made.usage.usd,
    }
