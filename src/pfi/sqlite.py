"""What the project's SQLite files share: transactions, and errors that a user can act on.

Connections are opened with ``isolation_level=None``, so that transactions are explicit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfi.errors import StorageError


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


@contextmanager
def user_errors(name: str, path: Path, recovery: str) -> Iterator[None]:
    """Turn what a user's disk can cause into a StorageError; bugs pass as they are.

    Args:
        name: what the file is to the user, e.g. ``vault``.
        path: the file.
        recovery: what to do once it is moved away because it is damaged.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise
    except sqlite3.OperationalError as error:
        busy = "locked" in str(error)
        fix = "wait for the other pfi process or end it" if busy else None
        what = f"the {name} is in use" if busy else f"the {name} cannot be used: {error}"
        raise StorageError(what, where=str(path), fix=fix) from error
    except sqlite3.DatabaseError as error:
        fix = f"restore the file from a backup, or move it away and {recovery}"
        raise StorageError(f"the {name} is damaged: {error}", where=str(path), fix=fix) from error
    except OSError as error:
        what = f"the {name} cannot be opened: {error.strerror}"
        raise StorageError(what, where=str(path)) from error
