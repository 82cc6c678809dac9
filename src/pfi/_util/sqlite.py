"""What the project's SQLite files share: opening, closing, transactions, errors for users.

The library is SQLCipher 4, which encrypts each page (AES-256-CBC with HMAC-SHA512).  All files
are opened with it, those without a key as well: two SQLite libraries in one process that open
the same file would break each other's locks.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pfi._util.files import disk_full
from pfi.errors import StorageError

if TYPE_CHECKING:  # which SQLCipher's module spells out nothing of
    import sqlite3
else:
    from sqlcipher3 import dbapi2 as sqlite3

__all__ = [
    "Closes",
    "connect",
    "is_plain",
    "key_text",
    "scrub",
    "sqlite3",
    "transaction",
    "user_errors",
]

_PAGE = 4096
_PLAIN = b"SQLite format 3\0"


def connect(
    path: Path, *, key: bytes | None = None, busy_seconds: float = 30.0, any_thread: bool = False
) -> sqlite3.Connection:
    """Open a file, made when missing, that its owner alone can read; transactions are explicit.

    Args:
        path: the file.
        key: 32 bytes that it is encrypted with; None for a plain file.
        busy_seconds: how long a writer elsewhere is waited for.
        any_thread: allow other threads than this one.
    """
    # Made by us first: SQLite would follow the umask, and what is stored is private.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=not any_thread
    )
    try:
        db.execute("PRAGMA cipher_log_level = NONE")  # it would write to stderr
        if key is not None:
            db.execute(f'PRAGMA key = "{key_text(key)}"')
    except BaseException:
        db.close()
        raise
    return db


def key_text(key: bytes) -> str:
    """A key as SQLCipher takes it: as it is, without stretching, and with the salt of its files.

    The salt, which a file begins with, comes from the key: so it tells whose a file is.
    """
    return f"x'{key.hex()}{_salt(key).hex()}'"


def _salt(key: bytes) -> bytes:
    return hashlib.sha256(b"pfi salt" + key).digest()[:16]


def is_plain(path: Path) -> bool:
    """Whether a file is a SQLite file that is not encrypted.

    Raises:
        OSError: it cannot be read.
    """
    return _head(path) == _PLAIN


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


class Closes(ABC):
    """What a ``with`` block closes at its end."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_to_attached(db: sqlite3.Connection) -> None:
    """Within a transaction: copy all of a file to the empty one that is attached as ``new``."""
    db.execute("SELECT sqlcipher_export('new')")
    for pragma in ("user_version", "application_id"):  # which are not copied with the tables
        value = db.execute(f"PRAGMA main.{pragma}").fetchone()[0]
        db.execute(f"PRAGMA new.{pragma} = {value}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing; a writer elsewhere is waited for first."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself on some errors, a full disk among them.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def scrub(db: sqlite3.Connection) -> None:
    """Leave nothing of rows that were deleted in the file, nor in the log beside it.

    Overwriting what is deleted is not enough: pages that were divided or moved before may hold
    copies of it.

    Raises:
        sqlite3.OperationalError: others use the file for longer than the connection waits;
            nothing but time is lost.
    """
    db.execute("PRAGMA temp_store = MEMORY")  # the copy that VACUUM works on goes to no file
    deadline = time.monotonic() + db.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    while True:
        try:
            db.execute("VACUUM")
            busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            raise sqlite3.OperationalError("the log is locked by a reader")
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait for others who write or empty the log meanwhile.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def user_errors(name: str, path: Path, recovery: str, key: bytes | None = None) -> Iterator[None]:
    """Turn what a user's disk can cause into a StorageError; bugs pass as they are.

    Args:
        name: what the file is to the user, e.g. ``vault``.
        path: the file.
        recovery: what to do once it is moved away because it is damaged.
        key: what it is encrypted with.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise
    except sqlite3.DatabaseError as error:
        fix: str | None = f"restore the file from a backup, or move it away and {recovery}"
        if not isinstance(error, sqlite3.OperationalError) or "malformed" in str(error):
            what = f"the {name} {_wrong(path, key) or f'is damaged: {error}'}"
        elif "locked" in str(error):
            what, fix = f"the {name} is in use", "wait for the other pfi process or end it"
        elif "full" in str(error) or disk_full(path.parent):
            what, fix = f"the {name} cannot be used: no space left on the device", "free some"
        else:
            what, fix = f"the {name} cannot be used: {error}", None
        raise StorageError(what, where=str(path), fix=fix) from error
    except OSError as error:
        what = f"the {name} cannot be opened: {error.strerror}"
        raise StorageError(what, where=str(path)) from error


def _wrong(path: Path, key: bytes | None) -> str | None:
    """What is wrong with a file that does not open, as far as it can be told from outside."""
    try:
        head, size = _head(path), path.stat().st_size
    except OSError:
        return None
    if size % _PAGE:
        return f"is damaged: cut short or overwritten ({size} bytes)"
    if key is None:
        return None if head == _PLAIN else "is encrypted, or its beginning is damaged"
    if head == _salt(key):
        return None
    if head == _PLAIN:
        return "is not encrypted, so it was not written by this profile"
    return "was encrypted with another key: it is another profile's, or its beginning is damaged"
