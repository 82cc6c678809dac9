"""Files in a tar, plain or compressed with gzip, each readable from any place on.

The archive is read once to find what is in it; nothing is unpacked to disk.  Links and devices are
no files, and headers are bounded as the data is.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, NamedTuple, cast

from pfi.errors import DataError
from pfi.readers.inflate import GZIP, Inflated, RestartPoints, Stored, open_file, points_for

__all__ = ["TarEntry", "is_tar", "tar_entries"]

#: Entries that an archive may have, bytes of one, and how far it may swell beyond a small size.
ENTRIES_LIMIT = 200_000
SIZE_LIMIT = 64 << 30
RATIO_LIMIT = 200
SMALL = 16 << 20
#: Bytes of headers of one file: long names and what else archivers note of it.
_HEADER_LIMIT = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 512
_BROKEN = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)
_REPAIR = "download the export again"


class TarEntry(NamedTuple):
    """A file in a tar: its path as written, its bytes, and what opens it."""

    name: str
    size: int
    opener: Callable[[], IO[bytes]]


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, or a gzip of one, by its first header."""
    try:
        with path.open("rb") as file:
            head = file.read(_BLOCK)
        if head.startswith(_GZIP_MAGIC):
            with Inflated(partial(open_file, path), GZIP) as stream:
                head = stream.read(_BLOCK) or b""
        tarfile.TarInfo.frombuf(head, "utf-8", "replace")
    except _BROKEN:
        return False
    return True


def tar_entries(path: Path) -> list[TarEntry]:
    """The files of a tar, in its order.

    Raises:
        DataError: it is damaged, has too many files or would swell like a bomb.
    """
    status = path.stat()
    return _entries(path, status.st_size, status.st_mtime_ns)


# Every connector that is asked whether it knows an archive would read it whole otherwise.
@lru_cache(maxsize=4)
def _entries(path: Path, packed: int, changed: int) -> list[TarEntry]:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    opener = partial(_opened, path, points_for(8 * packed) if zipped else None)
    limit = min(SIZE_LIMIT, max(SMALL, RATIO_LIMIT * packed)) if zipped else packed
    entries: list[TarEntry] = []
    try:
        with opener() as stream:
            headers = _Headers(stream, limit)
            with tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:") as archive:
                while (info := _next(archive, headers)) is not None:
                    if len(entries) >= ENTRIES_LIMIT:
                        what = f"the archive has more than {ENTRIES_LIMIT} files"
                        raise DataError(what, path=path, fix="unpack it and give the folder")
                    if not info.isreg():
                        continue
                    if info.issparse() or info.offset_data + info.size > limit:
                        what = f"{info.name[:80]!r} in the archive would swell to {info.size} bytes"
                        fix = "if it is yours, unpack it and give the folder"
                        raise DataError(what, path=path, fix=fix)
                    part = partial(_part, opener, info.offset_data, info.size)
                    entries.append(TarEntry(info.name, info.size, part))
    except (*_BROKEN, RecursionError) as error:
        what = f"the archive cannot be read ({error})"
        raise DataError(what, path=path, fix=_REPAIR) from error
    return entries


def _opened(path: Path, points: RestartPoints | None) -> IO[bytes]:
    """What an archive holds, inflated if `points` are given."""
    if points is None:
        return open_file(path)
    return cast("IO[bytes]", Inflated(partial(open_file, path), GZIP, points=points))


class _Headers:
    """A stream of which only headers are read, so many bytes for each file at most."""

    def __init__(self, inner: IO[bytes], limit: int) -> None:
        self._inner, self._limit = io.BufferedReader(cast("io.RawIOBase", inner), _BLOCK), limit
        self.left = _HEADER_LIMIT

    def read(self, size: int = -1) -> bytes:
        self.left -= max(size, _BLOCK)  # at the end, too, where some readers ask for ever
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header is too long")
        return self._inner.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or not 0 <= offset <= self._limit:
            raise tarfile.ReadError("it would swell like a bomb, or ends too early")
        return self._inner.seek(offset)

    def tell(self) -> int:
        return self._inner.tell()


def _next(archive: tarfile.TarFile, headers: _Headers) -> tarfile.TarInfo | None:
    """The next entry; the archive keeps nothing of those before."""
    headers.left = _HEADER_LIMIT
    archive.members = []  # type: ignore[attr-defined]
    archive.pax_headers = {}
    return archive.next()


def _part(opener: Callable[[], IO[bytes]], start: int, size: int) -> IO[bytes]:
    return cast("IO[bytes]", Stored(opener, start=start, length=size))
