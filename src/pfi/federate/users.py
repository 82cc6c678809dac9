"""Clients' data: what a population is, what a device learns from, a file of users as one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pfi._util.seeds import seed_of
from pfi.datasets.lamp import LampUsers, open_users
from pfi.records import History
from pfi.tasks import Example, Task


def local_examples(task: Task, history: History, seed: int) -> list[Example]:
    """What a client learns from, the same on a device and in simulation.

    Args:
        task: how records become examples.
        history: the client's own; no other client's records are there.
        seed: of the choices that some tasks need.
    """
    return task.examples(history, random.Random(seed_of(seed, "examples")))


class Population(Protocol):
    """The clients' data, read when its turn comes."""

    def clients(self) -> Sequence[str]:
        """All clients, in an order that stays."""
        ...

    def examples(self, client: str) -> Sequence[Example]:
        """What a client learns from."""
        ...

    def rank(self, client: str) -> int | None:
        """The largest rank that a client can train; None if it has no limit."""
        ...


class Users:
    """The users of one task and split as a ``Population``; a history is read when its turn comes.

    Args:
        folder: holds one folder a task.
        task: the task.
        split: whose histories.
        limit: a random sample of this many users.
        seed: of the sample and of the examples' choices.

    Raises:
        DataError: the file is missing or damaged.
    """

    def __init__(
        self, folder: Path, task: Task, split: str, *, limit: int | None = None, seed: int = 0
    ) -> None:
        self._task, self._seed = task, seed
        self._users: LampUsers = open_users(folder, task, split, limit=limit, seed=seed)
        self._places = {name: place for place, name in enumerate(self._users.ids)}

    def clients(self) -> Sequence[str]:
        """All of them; one without examples fails when it is asked."""
        return self._users.ids

    def history(self, client: str) -> History:
        """A user's records."""
        return self._users[self._places[client]].history

    def examples(self, client: str) -> Sequence[Example]:
        """What a user learns from."""
        return local_examples(self._task, self.history(client), self._seed)

    def rank(self, client: str) -> int | None:
        """No limit."""
        return None
