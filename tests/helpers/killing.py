"""Ending work with SIGKILL at a chosen point, in a forked process."""

from __future__ import annotations

import mmap
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from pfi._util.sqlite import sqlite3

_NAMES = ("unlink", "replace", "rename")
_CALLS = (*_NAMES, "open", "write", "fsync", "ftruncate")


def killed_at(point: int, work: Callable[[], Any], *, names: bool = False) -> bool:
    """Do ``work`` in a process that is killed before its ``point``-th step; whether it was.

    Args:
        point: from 0.
        work: what to do.
        names: steps are only calls that rename or remove a file; else all that change one, of
            Python's or SQLite's.
    """
    return _run(point, work, names)[0]


def steps_of(work: Callable[[], Any], *, names: bool = False) -> int:
    """How many such steps ``work`` has; it is done."""
    killed, steps = _run(1 << 30, work, names)
    assert not killed
    return steps


def _run(point: int, work: Callable[[], Any], names: bool) -> tuple[bool, int]:
    done = mmap.mmap(-1, 8)  # shared with the child
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _count(point, done, names)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status), int.from_bytes(done[:], "little")


def _count(last: int, done: mmap.mmap, names: bool) -> None:
    def step() -> None:
        count = int.from_bytes(done[:], "little")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        done[:] = (count + 1).to_bytes(8, "little")

    def counted(true: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            step()
            return true(*args, **named)

        return call

    class Counted(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            step()
            return super().execute(*args)

        def close(self) -> None:
            step()
            super().close()

    os.fsync = lambda fd: None  # takes long, and a kill, unlike a power cut, loses no writes
    for name in _NAMES if names else _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    if names:
        return
    true_connect = sqlite3.connect
    sqlite3.connect = lambda *args, **named: true_connect(*args, factory=Counted, **named)  # type: ignore[assignment,misc]
