"""Writing, fingerprinting and locking files.

A file is written to a temporary name in its own folder, fsynced and renamed, so that a reader
sees the old file or the new one, never half of either.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_atomic(path: Path, data: str | bytes, *, private: bool = False) -> None:
    """Replace `path` with `data` (text as UTF-8); missing parent folders are made.

    Args:
        path: the file.
        data: what it holds afterwards.
        private: only its owner may read it; otherwise it follows the umask.

    Raises:
        OSError: the folder cannot be written.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
    try:
        # Not tempfile: its files are private to the owner, these may follow the umask.
        mode = 0o600 if private else 0o666
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, obj: Any, *, private: bool = False) -> None:
    """Write `obj` as indented UTF-8 JSON with a final newline; `private` as in `write_atomic`.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        OSError: the folder cannot be written.
    """
    # json.dumps would hold a list of all the pieces, which takes ten times the memory.
    text = io.StringIO()
    for piece in json.JSONEncoder(ensure_ascii=False, indent=2, allow_nan=False).iterencode(obj):
        text.write(piece)
    write_atomic(path, text.getvalue() + "\n", private=private)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as 64 hex digits; the file is read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_full(path: Path) -> bool:
    """Whether the disk that a file or folder lies on has no room for a page more."""
    try:
        return shutil.disk_usage(path).free < 4096
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; systems that cannot open folders skip this."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other threads and processes that do the same out; waits for them.

    The file stays, empty.

    Args:
        path: the file.
        on_wait: called once if another holds the lock.

    Raises:
        OSError: the folder cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with lock(file, on_wait):
            yield
    finally:
        os.close(file)


@contextmanager
def lock(file: int, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the file's exclusive lock; waits for it, and calls `on_wait` once if it has to."""
    if not try_lock(file):
        if on_wait is not None:
            on_wait()
        if sys.platform == "win32":
            while not try_lock(file):
                time.sleep(0.01)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Not left to close(): a process forked meanwhile would keep the lock.
        if sys.platform == "win32":
            _lock_far_behind(file, msvcrt.LK_UNLCK)
        else:
            fcntl.flock(file, fcntl.LOCK_UN)


def try_lock(file: int) -> bool:
    """Take the file's exclusive lock, which ends when the file is closed; False if it is held."""
    try:
        if sys.platform == "win32":
            _lock_far_behind(file, msvcrt.LK_NBLCK)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_far_behind(file: int, mode: int) -> None:
    """Lock a byte far behind the end: on Windows locked bytes cannot be read by others."""
    if sys.platform == "win32":
        os.lseek(file, 1 << 40, os.SEEK_SET)
        msvcrt.locking(file, mode, 1)
