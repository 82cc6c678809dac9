"""What a process that holds secrets for long gives up: core dumps, secrets in its environment."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress


def refuse_core_dumps() -> None:
    """Have no memory written to a disk when this process crashes, or one that it starts."""
    with suppress(ImportError, ValueError, OSError):  # not everywhere there is
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forget_variable(name: str) -> None:
    """Take a variable out of the environment, from where other processes can read it too.

    Processes started from now on do not inherit it.  On Linux its place in the memory that
    `/proc/PID/environ` shows is overwritten.
    """
    if name not in os.environ:
        return
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            getenv = ctypes.CDLL(None).getenv
            getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
            if address := getenv(os.fsencode(name)):
                ctypes.memset(address, ord("x"), len(ctypes.string_at(address)))
    os.environ.pop(name, None)
