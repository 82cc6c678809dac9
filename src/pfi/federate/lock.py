"""A run folder has one process that writes to it: a lock that ends with the process."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path

from pfi._util.files import try_lock
from pfi.errors import StorageError

FILE = ".lock"
_WAIT = 3.0  # seconds: a killed server's ServerApp notices within one that it is alone
_LOOK = 0.1
#: Locks of this process: the open file and how many hold it, by the file's real path.
_held: dict[str, tuple[int, int]] = {}


class RunLock:
    """Holds a run folder for this process, until `release` or the end of its holder.

    A process may hold a folder several times, as one that goes on with a run whose last try failed
    does.  A process that is killed holds nothing: the system gives the lock back.

    Args:
        folder: made when missing.
        name: of the lock; locks of different names do not exclude each other.
        wait: seconds in which another process may let go.

    Raises:
        StorageError: another process holds it.
    """

    def __init__(self, folder: Path, name: str = FILE, *, wait: float = _WAIT) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = os.path.realpath(folder / name)
        file, count = _held.get(path, (-1, 0))
        if not count:
            file = _acquired(path, wait, folder)
        _held[path] = file, count + 1
        self.release = weakref.finalize(self, _release, path)


def _acquired(path: str, wait: float, folder: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + wait
    while True:
        if try_lock(file):
            return file
        if time.monotonic() >= end:
            os.close(file)
            fix = "wait for it or stop it, or give another folder"
            what = "another process works in this folder"
            raise StorageError(what, where=str(folder), fix=fix)
        time.sleep(_LOOK)


def _release(path: str) -> None:
    file, count = _held.pop(path)
    if count > 1:
        _held[path] = file, count - 1
    else:
        os.close(file)
