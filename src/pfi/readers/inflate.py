"""Random access within compressed data: members of zips, gzip files.

Inflating begins again at the nearest of some restart points (copies of the decompressor, some 50 kB
each), which are set while the data is first read.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import IO

#: Restart points that one stream keeps; they are this many bytes apart at least.
_POINTS = 400
_APART = 4 << 20
_PIECE = 1 << 16

#: `wbits` of `zlib`: raw deflate as in zips, and gzip.
RAW, GZIP = -15, 31


class RestartPoints:
    """Where inflating one stream can begin again; shared by all who read the same stream."""

    def __init__(self, apart: int = _APART) -> None:
        self.apart = apart
        self._at: list[int] = []
        self._states: list[tuple[int, zlib._Decompress]] = []

    def due(self, position: int) -> bool:
        """Whether a point should be set at `position`, in bytes of what comes out."""
        return position >= (self._at[-1] if self._at else 0) + self.apart

    def add(self, position: int, consumed: int, state: zlib._Decompress) -> None:
        """Remember the state after `consumed` bytes of input gave `position` bytes of output.

        When there are too many, every second is let go.
        """
        if len(self._at) >= 2 * _POINTS:
            del self._at[::2], self._states[::2]
            self.apart *= 2
        self._at.append(position)
        self._states.append((consumed, state.copy()))

    def before(self, position: int) -> tuple[int, int, zlib._Decompress] | None:
        """The nearest point not after `position`: output, input, state."""
        index = bisect_right(self._at, position) - 1
        if index < 0:
            return None
        consumed, state = self._states[index]
        return self._at[index], consumed, state.copy()


def points_for(size: int) -> RestartPoints:
    """Restart points for a stream of about `size` bytes, in bounded memory."""
    return RestartPoints(max(_APART, size // _POINTS))


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading."""
    return path.open("rb")


class _Held(io.RawIOBase):
    """A seekable stream of what others' bytes hold; these are closed with it."""

    _input: IO[bytes]
    _position: int

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._input.close()
        super().close()


class Inflated(_Held):
    """Compressed bytes as a seekable stream of what they hold.

    Args:
        opener: opens the compressed bytes.
        wbits: `RAW` or `GZIP` (of which several may follow each other).
        start: where the compressed bytes begin in what is opened.
        length: how many compressed bytes there are; None: up to the end.
        size: what comes out at most, in bytes; None: no bound.
        crc: the checksum of what comes out, compared by whoever reads all from the beginning.
        points: restart points, to be shared by all who open the same bytes.
    """

    def __init__(
        self,
        opener: Callable[[], IO[bytes]],
        wbits: int,
        *,
        start: int = 0,
        length: int | None = None,
        size: int | None = None,
        crc: int | None = None,
        points: RestartPoints | None = None,
    ) -> None:
        self._input, self._wbits, self._start = opener(), wbits, start
        self._length, self._size, self._crc = length, size, crc
        self._summed, self._sum = 0, 0  # how far the checksum has come
        self._points = points or RestartPoints()
        self._position = 0
        self._restart(0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; from the end only where the size is known."""
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            if self._size is None:
                raise io.UnsupportedOperation("the size is not known")
            offset += self._size
        offset = max(0, offset)
        restart = self._points.before(offset)
        if offset < self._position or (restart and restart[0] > self._position):
            self._restart(offset)
        while self._position < offset and self._take(min(_PIECE, offset - self._position)):
            pass
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _restart(self, offset: int) -> None:
        point = self._points.before(offset)
        self._position, self._consumed, self._state = point or (
            0, 0, zlib.decompressobj(self._wbits),
        )  # fmt: skip
        self._pending = b""
        self._input.seek(self._start + self._consumed)

    def _take(self, count: int) -> bytes:
        """The next bytes, at most `count`; empty at the end.

        Raises:
            EOFError: the compressed bytes end too early.
            zlib.error: they are damaged, or the checksum differs.
        """
        if self._size is not None:
            count = min(count, self._size - self._position)
        while count > 0:
            if self._state.eof and not self._next_stream():
                break
            if not self._pending:
                self._pending = self._compressed()
            data = self._state.decompress(self._pending, count)
            rest = self._state.unconsumed_tail or self._state.unused_data
            self._consumed += len(self._pending) - len(rest)
            ended = not self._pending and not data and not self._state.eof
            self._pending = rest
            if ended:
                raise EOFError("it ends too early")
            if data:
                self._check(data)
                self._position += len(data)
                if not self._state.eof and self._points.due(self._position):
                    self._points.add(self._position, self._consumed, self._state)
                return data
        return b""

    def _check(self, data: bytes) -> None:
        if self._crc is None or self._summed != self._position:
            return
        self._sum, self._summed = zlib.crc32(data, self._sum), self._summed + len(data)
        if self._summed == self._size and self._sum != self._crc:
            raise zlib.error("the checksum differs")

    def _next_stream(self) -> bool:
        """Go on with the next of several gzip streams; False if there is none."""
        if self._wbits != GZIP:
            return False
        pending = self._pending or self._compressed()
        self._pending = pending.lstrip(b"\0")  # padding of tapes
        self._consumed += len(pending) - len(self._pending)
        if not self._pending:
            return False
        self._state = zlib.decompressobj(self._wbits)
        return True

    def _compressed(self) -> bytes:
        left = _PIECE if self._length is None else min(_PIECE, self._length - self._consumed)
        return self._input.read(left) if left > 0 else b""


class Stored(_Held):
    """Bytes that an archive holds without compressing them, as a seekable stream.

    Args:
        opener: opens the bytes of the archive.
        start: where the stream begins in them.
        length: of the stream, in bytes.
        crc: its checksum, compared by whoever reads all from the beginning; None if there is none.
    """

    def __init__(
        self, opener: Callable[[], IO[bytes]], *, start: int, length: int, crc: int | None = None
    ) -> None:
        self._input, self._start, self._length, self._crc = opener(), start, length, crc
        self._position = self._summed = self._sum = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_CUR: self._position, io.SEEK_END: self._length}.get(whence, 0)
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(0, self._length - self._position))
        self._input.seek(self._start + self._position)
        data = self._input.read(count) if count else b""
        if count and not data:
            raise EOFError("it ends too early")
        if self._crc is not None and self._summed == self._position:
            self._sum, self._summed = zlib.crc32(data, self._sum), self._summed + len(data)
            if data and self._summed == self._length and self._sum != self._crc:
                raise zlib.error("the checksum differs")
        self._position += len(data)
        buffer[: len(data)] = data
        return len(data)
