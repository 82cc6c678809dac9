"""The memory of a device on its disk: texts, words and vectors in one SQLite file.

It is a copy of what the vault holds, for search, so that `sync` can fill it again at any time.
What is deleted is overwritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pfi._util.sqlite import sqlite3, transaction
from pfi.memory._file import BUSY_SECONDS, MemoryFile, is_damage
from pfi.memory.config import SearchConfig
from pfi.memory.embedders import Embedder
from pfi.memory.index import Listed, Memory
from pfi.memory.vectors import STORED, VectorCache
from pfi.memory.words import WordIndex, add_texts, create_index, remove_texts
from pfi.records import History, Record
from pfi.tasks import Task, get_task

BATCH = 256
AUTO = SearchConfig(how="auto")

#: Called with how many records are indexed, and how many there are to index.
Progress = Callable[[int, int], None]
#: Gives the records with these ids, by id; those that are gone are left out.
Fetch = Callable[[Sequence[str]], Mapping[str, Record]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync changed, in records; one with a new text is removed and added."""

    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as the store knows it: its row's number and the digest of its text."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store holds of a task at one moment.

    Attributes:
        mark: see `MemoryStore.mark`.
        version: see `MemoryStore.version`.
        numbers: of the rows, by record id.
    """

    mark: str
    version: tuple[int, int, int]
    numbers: Mapping[str, int]


def digest(text: str) -> bytes:
    """What tells a record's text from its former one."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class MemoryStore(MemoryFile):
    """The index of one device's records, in the file `path`, made when missing.

    Several processes may use one file, and several threads one store: every change is one
    transaction.  Without an embedder there are words only; vectors that are there stay.

    Args:
        path: the file.
        embedder: makes the vectors.
        key: what the file is encrypted with; None for a plain one.

    Raises:
        StorageError: the file is locked or cannot be written, or this SQLite has no FTS5.
    """

    def __init__(
        self,
        path: Path,
        embedder: Embedder | None = None,
        *,
        key: bytes | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        super().__init__(path, key=key, busy_seconds=busy_seconds)
        self.embedder = embedder
        self.cache = VectorCache(limit=256)

    # Writing ------------------------------------------------------------------------

    def sync(
        self, records_by_task: Mapping[str, History], progress: Progress | None = None
    ) -> Synced:
        """Make the store hold exactly these records; only new ones are indexed.

        They are written in batches: when this is interrupted the whole batches before are
        kept, and the next sync goes on.  A damaged file is replaced.

        Args:
            records_by_task: a history for each task's name.
            progress: told how far it has come.

        Raises:
            ConfigError: there is no such task.
            StorageError: the file cannot be written.
        """
        wanted = {
            name: {record.id: get_task(name).document_text(record) for record in history}
            for name, history in records_by_task.items()
        }
        with self.errors():
            try:
                return self._sync(wanted, progress)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.replace()
                return self._sync(wanted, progress)

    def _sync(self, wanted: Mapping[str, Mapping[str, str]], progress: Progress | None) -> Synced:
        self._fit_embedder()
        gone: list[int] = []
        new: list[tuple[str, str, str]] = []  # task, id and text
        for name in {**wanted, **dict.fromkeys(self._sizes())}:
            texts, stored = wanted.get(name, {}), self.entries(name)
            same = {
                i for i, text in texts.items() if i in stored and stored[i].digest == digest(text)
            }
            gone += [entry.number for id_, entry in stored.items() if id_ not in same]
            new += [(name, id_, text) for id_, text in texts.items() if id_ not in same]
        removed = self._remove(gone)
        bare = self._without_vectors()
        total, added = len(new) + len(bare), 0
        for start in range(0, len(new), BATCH):
            added += self._insert(new[start : start + BATCH])
            if progress is not None:
                progress(min(start + BATCH, len(new)), total)
        for start in range(0, len(bare), BATCH):
            self._embed(bare[start : start + BATCH])
            if progress is not None:
                progress(min(len(new) + start + BATCH, total), total)
        self._scrub()
        return Synced(added, removed)

    def _fit_embedder(self) -> None:
        """Drop the vectors of another embedder."""
        if self.embedder is None or self._stored_embedder() == self._own_embedder():
            return
        with self.lock, transaction(self._db):
            self._db.execute("DELETE FROM vectors")
            change = "UPDATE state SET embedder = ?, width = ?, traces = traces + 1"
            self._db.execute(change, self._own_embedder())
            self._changes += 1

    def _insert(self, rows: Sequence[tuple[str, str, str]]) -> int:
        """Index new records, (task, id, text) each; how many were not there meanwhile."""
        # Before the transaction: this takes long, and other processes would wait.
        vectors = self._vectors_of([text for *_, text in rows])
        added = 0
        with self.lock, transaction(self._db):
            usable = vectors if self._stored_embedder() == self._own_embedder() else None
            for i, (name, id_, text) in enumerate(rows):
                task = self._number_of(name)
                cursor = self._db.execute(
                    "INSERT OR IGNORE INTO records (task, id, digest, text) VALUES (?, ?, ?, ?)",
                    (task, id_, digest(text), text),
                )
                if not cursor.rowcount:
                    continue
                added += 1
                add_texts(self._db, f"words_{task}", [(int(cursor.lastrowid or 0), text)])
                if usable is not None:
                    pair = (cursor.lastrowid, usable[i].tobytes())
                    self._db.execute("INSERT INTO vectors VALUES (?, ?)", pair)
            self._changes += 1
        return added

    def _number_of(self, task: str) -> int:
        """The number of a task, whose table of words is made with it."""
        row = self._db.execute("SELECT number FROM tasks WHERE name = ?", (task,)).fetchone()
        if row is not None:
            return int(row[0])
        cursor = self._db.execute("INSERT INTO tasks (name) VALUES (?)", (task,))
        create_index(self._db, f"words_{cursor.lastrowid}")
        return int(cursor.lastrowid or 0)

    def _embed(self, rows: Sequence[tuple[int, str]]) -> None:
        """Give records, (number, text) each, their vectors."""
        vectors = self._vectors_of([text for _, text in rows])
        assert vectors is not None
        with self.lock, transaction(self._db):
            if self._stored_embedder() != self._own_embedder():
                return
            for (number, _), vector in zip(rows, vectors, strict=True):
                self._db.execute(  # not for one that was deleted meanwhile
                    "INSERT OR REPLACE INTO vectors SELECT number, ? FROM records WHERE number = ?",
                    (vector.tobytes(), number),
                )
            self._changes += 1

    def _vectors_of(self, texts: Sequence[str]) -> NDArray[np.float16] | None:
        return None if self.embedder is None else self.embedder.embed(texts).astype(STORED)

    def delete(self, ids: Iterable[str]) -> int:
        """Erase the records with these ids, of all tasks: their text, words and vectors.

        Returns:
            How many there were.

        Raises:
            StorageError: the file cannot be written, or is read elsewhere just now.
        """
        with self.errors():
            numbers = []
            with self.lock:
                for id_ in dict.fromkeys(ids):
                    find = "SELECT number FROM records WHERE id = ?"
                    numbers += [number for (number,) in self._db.execute(find, (id_,)).fetchall()]
            erased = self._remove(numbers)
            self._scrub()
        return erased

    def _remove(self, numbers: Sequence[int]) -> int:
        """Erase rows, all or none; how many there were."""
        if not numbers:
            return 0
        with self.lock, transaction(self._db):
            find = "SELECT task, number, text FROM records WHERE number = ?"
            rows = [row for n in numbers for row in self._db.execute(find, (n,)).fetchall()]
            for task, group in groupby(sorted(rows), key=lambda row: row[0]):
                table = f"words_{task}"
                for _, number, text in group:
                    remove_texts(self._db, table, [(number, text)])
                    for name in ("records", "vectors"):
                        self._db.execute(f"DELETE FROM {name} WHERE number = ?", (number,))
                # FTS5 only notes that a row is gone.  When all its parts become one, the
                # words go too (its option secure-delete is missing before SQLite 3.42).
                self._db.execute(f"INSERT INTO {table}({table}) VALUES ('optimize')")
            self._db.execute("UPDATE state SET traces = traces + 1")
            self._changes += 1
        return len(rows)

    # Reading ------------------------------------------------------------------------

    def memory(self, task: Task, history: History, config: SearchConfig = AUTO) -> StoredMemory:
        """A task's memory; it is searched as `Memory(task, history)` is, without building it.

        Args:
            task: the task.
            history: what the store was synced with.  Where the two differ the answers are those
                of a memory of `history`, but its words are then indexed anew.
            config: how it is searched.

        Raises:
            ConfigError: the settings ask for a search by meaning, and there is no embedder.
        """
        return StoredMemory(self, task, history, config)

    def listed_memory(
        self,
        task: Task,
        listed: Sequence[Listed],
        fetch: Fetch,
        config: SearchConfig = AUTO,
        *,
        mark: str,
    ) -> ListedMemory | None:
        """A task's memory that is given no more than a list of the records.

        It answers as `Memory` of the records does; only those that it finds are fetched.

        Args:
            task: the task, with the same searched texts as when the store was synced.
            listed: the records, oldest first.
            fetch: gives records.
            config: how it is searched.
            mark: of the sync that made the store hold exactly these records.

        Returns:
            None where the store is not as of that sync (any more), or is damaged.

        Raises:
            ConfigError: the settings ask for a search by meaning, and there is no embedder.
        """
        with self.errors():
            try:
                snapshot = self.snapshot(task.name)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.replace()
                return None
        if snapshot.mark != mark or snapshot.numbers.keys() != {record.id for record in listed}:
            return None
        return ListedMemory(self, task, listed, snapshot, fetch, config)

    def sizes(self) -> dict[str, int]:
        """The number of records by task."""
        with self.errors():
            return self._sizes()

    def _sizes(self) -> dict[str, int]:
        query = "SELECT name, count(*) FROM tasks JOIN records ON task = tasks.number GROUP BY name"
        with self.lock:
            return dict(self._db.execute(query).fetchall())

    def entries(self, task: str) -> dict[str, Entry]:
        """What is stored of a task, by record id."""
        query = """SELECT id, records.number, digest FROM records JOIN tasks ON task = tasks.number
                   WHERE name = ?"""
        with self.lock:
            rows = self._db.execute(query, (task,)).fetchall()
        return {id_: Entry(number, code) for id_, number, code in rows}

    def snapshot(self, task: str) -> Snapshot:
        """What is stored of a task, with the mark and the version of that moment."""
        # The + keeps to the index that has all that is asked for, so that no text is read.
        query = """SELECT id, records.number FROM records JOIN tasks ON +task = tasks.number
                   WHERE name = ?"""
        with self.lock:
            self._db.execute("BEGIN")
            try:
                mark = self._mark()
                numbers = dict(self._db.execute(query, (task,)).fetchall())
                return Snapshot(mark, self.version(), numbers)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def word_index(self, task: str, rows: Sequence[int]) -> WordIndex:
        """The words of a task that has records; `rows` are the row numbers by position."""
        with self.lock:
            find = "SELECT number FROM tasks WHERE name = ?"
            (number,) = self._db.execute(find, (task,)).fetchone()
        return WordIndex(self._db, f"words_{number}", rows, self.lock)

    def vectors(self, task: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Row numbers, ascending, and vectors, (n, width), of a task; none of another embedder."""
        query = """SELECT records.number, vector FROM records
                   JOIN vectors ON vectors.number = records.number
                   JOIN tasks ON task = tasks.number WHERE name = ? ORDER BY records.number"""
        name, width = self._own_embedder()
        with self.lock:
            same = self._stored_embedder() == (name, width)
            rows = self._db.execute(query, (task,)).fetchall() if same else []
        numbers = np.array([number for number, _ in rows], dtype=np.int64)
        packed = np.frombuffer(b"".join(vector for _, vector in rows), dtype=STORED)
        return numbers, packed.astype(np.float32).reshape(len(rows), width)

    def _without_vectors(self) -> list[tuple[int, str]]:
        if self.embedder is None:
            return []
        query = """SELECT number, text FROM records
                   WHERE number NOT IN (SELECT number FROM vectors) ORDER BY number"""
        with self.lock:
            return self._db.execute(query).fetchall()

    def _stored_embedder(self) -> tuple[str, int]:
        with self.lock:
            name, width = self._db.execute("SELECT embedder, width FROM state").fetchone()
        return name, width

    def _own_embedder(self) -> tuple[str, int]:
        return ("", 0) if self.embedder is None else (self.embedder.name, self.embedder.width)


class _StoreBacked(Memory):
    """Search over records that a store holds.

    Records that are deleted from the store are not found from then on, whoever deleted them.
    """

    _version: tuple[int, int, int]  # of the store, as of the last `_reload`

    def __init__(
        self, store: MemoryStore, task: Task, records: Iterable[Record], config: SearchConfig
    ) -> None:
        super().__init__(task, records, embedder=store.embedder, config=config, vectors=store.cache)
        self._store = store

    def _begin(self) -> None:
        """Once the records are listed: none of them was found in the store yet."""
        self._known = np.zeros(len(self), dtype=bool)  # those that were in the store
        self._erased = np.zeros(len(self), dtype=bool)  # and are not any more
        self._generation = self._store.generation

    def _reload(self) -> None:
        """Find each record's row again."""
        raise NotImplementedError

    def _note(self, rows: NDArray[np.int64], total: int) -> None:
        """Take note of the records' rows, by position, -1 for none, of so many of the task."""
        stored = rows >= 0
        if self._generation != self._store.generation:
            # An empty file took the place of a damaged one: nothing was deleted.
            self._generation = self._store.generation
            self._known[:] = False
        self._erased |= self._known & ~stored
        self._known |= stored
        self._rows = rows
        self._whole = bool(total) and total == int(stored.sum())
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
        return self._reading(lambda: super(_StoreBacked, self)._word_scores(query))

    def holding(self, word: str) -> NDArray[np.int64]:
        return self._reading(lambda: super(_StoreBacked, self).holding(word))

    def _make_word_index(self) -> WordIndex:
        if self._whole:
            return self._store.word_index(self._task.name, self._rows.tolist())
        found = self._records_at(np.flatnonzero(~self._erased).tolist())
        texts = {place: self._task.document_text(record) for place, record in found.items()}
        return WordIndex.of(texts, len(self))

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
            matrix[missing] = self._vectors.embed(self._embedder, self._texts(missing))
        return matrix


class StoredMemory(_StoreBacked):
    """Search over a history, of which the store need not hold all; see ``MemoryStore.memory``."""

    def __init__(
        self, store: MemoryStore, task: Task, history: History, config: SearchConfig
    ) -> None:
        super().__init__(store, task, history, config)
        self._digests = [digest(text) for text in self._texts(range(len(self)))]
        self._begin()
        self._reading(self._reload)

    def _reload(self) -> None:
        self._version = self._store.version()  # first: what changes from now on is noticed
        entries = self._store.entries(self._task.name)
        rows = np.full(len(self), -1, dtype=np.int64)
        for place, record in enumerate(self._records):
            entry = entries.get(record.id)
            if entry is not None and entry.digest == self._digests[place]:
                rows[place] = entry.number
        self._note(rows, len(entries))


class ListedMemory(_StoreBacked):
    """Search over records that are fetched when found; see ``MemoryStore.listed_memory``.

    No text is compared: the store's mark tells that it has the records' texts, and afterwards
    the rows' numbers do, since a row's text never changes.
    """

    def __init__(
        self,
        store: MemoryStore,
        task: Task,
        listed: Sequence[Listed],
        snapshot: Snapshot,
        fetch: Fetch,
        config: SearchConfig,
    ) -> None:
        super().__init__(store, task, (), config)
        self._listed, self._fetch, self._mark = listed, fetch, snapshot.mark
        self._begin()
        self._match(snapshot)

    def _reload(self) -> None:
        self._match(self._store.snapshot(self._task.name))

    def _match(self, snapshot: Snapshot) -> None:
        self._version = snapshot.version
        numbers = [snapshot.numbers.get(record.id, -1) for record in self._listed]
        rows = np.array(numbers, dtype=np.int64)
        if snapshot.mark != self._mark:  # others of the same id may have come
            same = self._generation == self._store.generation
            rows[(rows != self._rows) | (not same)] = -1
        self._note(rows, len(snapshot.numbers))

    def _records_at(self, places: Sequence[int]) -> dict[int, Record]:
        listed = {place: self._listed[place] for place in places}
        fetched = self._fetch([record.id for record in listed.values()]) if listed else {}
        found = {}
        for place, known in listed.items():
            record = fetched.get(known.id)
            # Another one of that id may not fit the question's time.
            if record is None or (record.time, record.source) != (known.time, known.source):
                self._erased[place] = True
            else:
                found[place] = record
        return found
