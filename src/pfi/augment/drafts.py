"""What generators see and make: a subject, one user as they see them, and drafts.

Filters judge drafts before they become synthetic records.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pfi.memory.index import Memory
from pfi.records import History, Provenance, Record
from pfi.tasks import Task
from pfi.tasks.task import Trim


@dataclass(frozen=True)
class Subject:
    """One user and what synthetic records for them may be made from.

    Attributes:
        task: the task of all records.
        history: the user's real records, oldest first; never empty.
        pool: other people's or public records. Generators do not look at their outputs; the
            embedded teacher's writing keeps texts of the pool as they are.
        trim: shortens a text to a number of tokens.
        seed: of every choice that is made for this user.
        hide: what a record of the pool has to pass before its text is used, if anything; the
            history has passed it already.
    """

    task: Task
    history: History
    pool: Sequence[Record]
    trim: Trim
    seed: int
    hide: Callable[[Record], Record] | None = None

    @property
    def user(self) -> str:
        """The user's id."""
        return self.history.user_id

    def rng(self, *parts: object) -> random.Random:
        """A generator for one purpose, the same whenever and wherever it is asked for."""
        return random.Random(f"{self.seed} {self.user} {' '.join(map(str, parts))}")

    @cached_property
    def memory(self) -> Memory:
        """The index over the user's real records."""
        return Memory(self.task, self.history)


@dataclass(frozen=True)
class Draft:
    """A record that a teacher made, not yet judged.

    Attributes:
        input: the input fields, by the names of ``Task.inputs``.
        output: what the user would have written or chosen; empty where the task derives it.
        strategy: name of the generator that made it.
        template: name and short hash of the prompt template.
        seeds: ids of the real records that the teacher was shown.
        source: id of the record that was varied or of the pool that was relabelled, or "".
        confidence: how far the teacher's votes agree on the output, in [0, 1].
        votes: how many votes that rests on; 0 when none were held.
        scores: what the filters measured, by filter; they add to it.
        problem: why it cannot be a record, where the teacher's answer was malformed; else "".
    """

    input: Mapping[str, str]
    output: str
    strategy: str
    template: str
    seeds: tuple[str, ...] = ()
    source: str = ""
    confidence: float = 1.0
    votes: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    def record(self, id: str, task: str, teacher: str) -> Record:
        """The synthetic record that it becomes."""
        made = Provenance(
            teacher,
            self.strategy,
            self.template,
            self.seeds,
            self.source,
            self.confidence,
            dict(self.scores),
        )
        source = f"{teacher} ({self.strategy})"
        return Record(id, task, self.input, self.output, None, "synthetic", source, made)
