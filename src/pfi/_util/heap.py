"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import cache
from typing import Any

#: Seconds between two times; asking takes some milliseconds.
_PAUSE = 0.5


@cache
def _library() -> Any:
    """glibc, or None where the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def release_freed() -> None:
    """Give back what is freed but still held by glibc's heap; does nothing elsewhere.

    Tensors of ever other sizes leave holes in it: it grew by a gigabyte in a few training steps.
    """
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def keep_few_kernels() -> None:
    """Let oneDNN keep code for 256 shapes of products, not for 1024.

    In bfloat16 each takes most of a megabyte, and prompts have many lengths.  It has an effect
    before the first product of a process, and where the variable is not set already.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


class Releaser:
    """As ``release_freed``, but not more often than every half second."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= _PAUSE:
            release_freed()
            self._last = time.monotonic()
