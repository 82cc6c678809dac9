"""The file of a device's memory: one SQLite file that several processes use at a time.

It is a copy of what the vault holds, for search: a file that is damaged, no memory or of
another format is replaced by an empty one.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pfi._util.sqlite import Closes, connect, scrub, sqlite3, transaction, user_errors
from pfi.errors import StorageError

SCHEMA_VERSION = 2  # texts without spaces are searched by pairs of characters
#: Marks the file as a memory: "pfi" and a number.
APPLICATION_ID = 0x70666901
BUSY_SECONDS = 30.0

_SCHEMA = (
    "CREATE TABLE tasks (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    # Numbers are never given twice, so that a search that began before sees no other record.
    """CREATE TABLE records (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        task INTEGER NOT NULL,
        id TEXT NOT NULL,
        digest BLOB NOT NULL,
        text TEXT NOT NULL,
        UNIQUE (id, task)
    ) STRICT""",
    "CREATE INDEX records_by_task ON records (task)",
    "CREATE TABLE vectors (number INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT",
    # Whose the vectors are, how many deletions may have left bytes behind, and a note.
    """CREATE TABLE state (
        embedder TEXT NOT NULL,
        width INTEGER NOT NULL,
        traces INTEGER NOT NULL,
        mark TEXT NOT NULL
    ) STRICT""",
    "INSERT INTO state VALUES ('', 0, 0, '')",
)


class MemoryFile(Closes):
    """A connection to the file `path`, which is made when missing; threads may share it.

    Attributes:
        lock: held while the connection is used.
        generation: another number after each time that the file was replaced.

    Raises:
        StorageError: the file is locked or cannot be written.
    """

    def __init__(
        self, path: Path, *, key: bytes | None = None, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self.path, self._key = path, key
        self.lock = threading.RLock()
        self.generation = 0
        self._changes = 0
        self._busy_seconds = busy_seconds
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        """Connect; whatever is no memory of this format makes room for an empty one."""
        self._connect()
        try:
            if not self._is_memory():
                self._start_anew()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                self._db.close()
                raise
            self._start_anew()

    def _connect(self) -> None:
        self._db = connect(
            self.path, key=self._key, busy_seconds=self._busy_seconds, any_thread=True
        )

    def _is_memory(self) -> bool:
        """Whether the file is one of ours; an empty file becomes one."""
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last batches
        if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._create()
        format_ = self._pragma("application_id"), self._pragma("user_version")
        return format_ == (APPLICATION_ID, SCHEMA_VERSION)

    def _create(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        with transaction(self._db):
            # Asked again: another process may have made it while we waited.
            if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _start_anew(self) -> None:
        self._db.close()
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").unlink()
        self._connect()
        if not self._is_memory():
            raise StorageError("the memory cannot be made", where=str(self.path))
        self.generation += 1

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    # For the store ------------------------------------------------------------------

    def _scrub(self) -> None:
        """Leave no bytes of what was deleted, be it by a process that was killed on the way."""
        with self.lock:
            traces = self._db.execute("SELECT traces FROM state").fetchone()[0]
            if traces:
                scrub(self._db)
                clean = "UPDATE state SET traces = 0 WHERE traces = ?"  # or others deleted more
                self._db.execute(clean, (traces,))

    def replace(self) -> None:
        """Put an empty memory in the place of a damaged one."""
        with self.lock:
            self._start_anew()

    @property
    def mark(self) -> str:
        """What whoever syncs the store noted of its last sync; empty in a new file."""
        with self.errors(), self.lock:
            return self._mark()

    @mark.setter
    def mark(self, mark: str) -> None:
        with self.errors(), self.lock:
            self._db.execute("UPDATE state SET mark = ?", (mark,))

    def _mark(self) -> str:
        return str(self._db.execute("SELECT mark FROM state").fetchone()[0])

    def version(self) -> tuple[int, int, int]:
        """Another one after every change, whoever made it."""
        with self.lock:
            return self.generation, self._changes, self._pragma("data_version")

    # Plumbing -----------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; using the store or its memories afterwards is a bug."""
        self._db.close()

    def errors(self) -> AbstractContextManager[None]:
        """Turns what a user's disk can cause into a StorageError."""
        return user_errors("memory", self.path, "it is built again from the vault", self._key)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is damaged or no database; SQLite raises a subclass for all else."""
    return type(error) is sqlite3.DatabaseError
