"""One task's memory over the index on disk: what ``Memory`` computes is read instead."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pfi.data.records import History
from pfi.memory.config import SearchConfig
from pfi.memory.file import is_damage
from pfi.memory.index import Memory
from pfi.memory.words import WordIndex
from pfi.sqlite import sqlite3

if TYPE_CHECKING:
    from pfi.memory.store import MemoryStore
    from pfi.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as the store knows it: its row's number and the digest of its text."""

    number: int
    digest: bytes


def digest(text: str) -> bytes:
    """What tells a record's text from its former one."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class StoredMemory(Memory):
    """Search over records that a store holds; made by ``MemoryStore.memory``.

    Records that are deleted from the store are not found from then on, whoever deleted them.
    """

    def __init__(
        self, store: MemoryStore, task: Task, history: History, config: SearchConfig
    ) -> None:
        super().__init__(task, history, embedder=store.embedder, config=config, vectors=store.cache)
        self._store = store
        n = len(self)
        self._digests = [digest(self._text(place)) for place in range(n)]
        self._known = np.zeros(n, dtype=bool)  # those that were in the store
        self._erased = np.zeros(n, dtype=bool)  # and are not any more
        self._generation = store.generation
        self._reading(self._reload)

    def _reload(self) -> None:
        """Find each record's row again."""
        store = self._store
        self._version = store.version()  # first: what changes from now on is noticed
        entries = store.entries(self._task.name)
        rows = np.full(len(self), -1, dtype=np.int64)
        for place, record in enumerate(self._records):
            entry = entries.get(record.id)
            if entry is not None and entry.digest == self._digests[place]:
                rows[place] = entry.number
        stored = rows >= 0
        if self._generation != store.generation:
            # An empty file took the place of a damaged one: nothing was deleted.
            self._generation = store.generation
            self._known[:] = False
        self._erased |= self._known & ~stored
        self._known |= stored
        self._rows = rows
        self._whole = bool(entries) and len(entries) == int(stored.sum())
        self._whole &= bool((stored | self._erased).all())
        self._word_index = None

    def _reading(self, read: Callable[[], T]) -> T:
        """What ``read`` gives; where the file is damaged, as computed without it."""
        with self._store.errors():
            try:
                return read()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                with self._lock:
                    self._store.replace()
                    self._reload()
                return read()

    def _allowed(
        self, before: datetime | None, exclude: Iterable[str], source: str | None
    ) -> NDArray[np.bool_]:
        with self._lock:
            if self._reading(self._store.version) != self._version:
                self._reading(self._reload)
            return super()._allowed(before, exclude, source) & ~self._erased

    def _word_scores(self, query: str) -> NDArray[np.float64]:
        return self._reading(lambda: super(StoredMemory, self)._word_scores(query))

    def _make_word_index(self) -> WordIndex:
        if self._whole:
            return self._store.word_index(self._task.name, self._rows.tolist())
        places = np.flatnonzero(~self._erased).tolist()
        return WordIndex.of({place: self._text(place) for place in places}, len(self))

    def _make_matrix(self) -> NDArray[np.float32]:
        assert self._embedder is not None
        numbers, vectors = self._reading(lambda: self._store.vectors(self._task.name))
        matrix = np.empty((len(self), self._embedder.width), dtype=np.float32)
        at = np.searchsorted(numbers, self._rows)
        at[at == len(numbers)] = 0
        found = numbers[at] == self._rows if len(numbers) else np.zeros(len(self), dtype=bool)
        matrix[found] = vectors[at[found]]
        missing = np.flatnonzero(~found).tolist()
        if missing:
            texts = [self._text(place) for place in missing]
            matrix[missing] = self._vectors.embed(self._embedder, texts)
        return matrix
