"""The ledger's file: lines that are appended and synced, or replaced all at once by a rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pfi._util.files import lock, sync_folder
from pfi.errors import StorageError

_BLOCK = 1 << 16


class LedgerFile:
    """The lines of the file `path`, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The whole lines by number, from 1, without their ends.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):  # else: being written, or torn by a crash
                        yield number, line[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            what = f"the ledger cannot be read: {error.strerror}"
            raise StorageError(what, where=str(self.path)) from error

    def last(self, file: int) -> tuple[int, bytes | None]:
        """Where the next line goes, and the line before it; reads only that one."""
        position = os.lseek(file, 0, os.SEEK_END)
        tail = b""
        while position and tail.count(b"\n") < 2:
            step = min(position, max(_BLOCK, len(tail)))  # doubling: long lines stay linear
            position -= step
            os.lseek(file, position, os.SEEK_SET)
            tail = _read(file, step) + tail
        if b"\n" not in tail:  # nothing, or only a torn first line
            return 0, None
        stop = tail.rindex(b"\n")
        line = tail[tail.rfind(b"\n", 0, stop) + 1 : stop]
        return position + stop + 1, line

    def write(self, file: int, end: int, data: bytes) -> None:
        """Put a line at the end, and wait until it is on the disk."""
        try:
            os.ftruncate(file, end)
            os.lseek(file, end, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
            if end == 0:
                sync_folder(self.path.parent)
        except OSError:
            os.ftruncate(file, end)  # e.g. the disk is full; nothing was sent
            raise

    def remove_torn(self, file: int, end: int) -> None:
        """Remove a line torn by a crash at `end`, and files that a killed `rewrite` left."""
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            left.unlink()
        os.ftruncate(file, end)

    def rewrite(self, lines: Mapping[int, bytes], end: bytes) -> None:
        """Replace the file by itself with other `lines` at some numbers, and one more."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                for number, line in self.lines():
                    file.write(lines.get(number, line + b"\n"))
                file.write(end)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The open file, for this thread of this process alone."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        while True:
            file = os.open(self.path, flags, 0o600)
            try:
                with lock(file):
                    # An erasure may have put another file in its place while we waited.
                    if self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat()):
                        yield file
                        return
            finally:
                os.close(file)


def _read(file: int, count: int) -> bytes:
    parts = []
    while count and (part := os.read(file, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
