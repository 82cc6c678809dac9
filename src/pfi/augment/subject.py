"""A subject: one user as strategies and filters see them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pfi.memory.index import Memory
from pfi.records import History, Record
from pfi.tasks import Task
from pfi.tasks.task import Trim


@dataclass(frozen=True)
class Subject:
    """One user and what synthetic records for them may be made from.

    Attributes:
        task: the task of all records.
        history: the user's real records, oldest first; never empty.
        pool: other people's or public records. Strategies do not look at their outputs; the
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
