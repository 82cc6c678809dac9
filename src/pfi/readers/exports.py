"""Files of an export as they were downloaded: a file, those of a folder, or the members of a zip.

Nothing is unpacked to disk.  A zip that names places outside itself, is encrypted, or swells far
beyond what an export does is refused.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pfi.errors import DataError

#: Members that a zip may have, and bytes that one that is read may have.
MEMBERS_LIMIT = 200_000
SIZE_LIMIT = 8 << 30
#: Text shrinks to a tenth or so; what shrinks more than this, and is not small, is a zip bomb.
RATIO_LIMIT = 200
SMALL = 16 << 20

_BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
_REPAIR = "download the export again"


@dataclass(frozen=True)
class Member:
    """One file of an export.

    Attributes:
        name: its path within the export, with slashes.
        place: how errors and reports call it.
    """

    name: str
    place: Path
    opener: Callable[[], IO[bytes]]

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.name).name

    def open(self) -> IO[bytes]:
        """Open it for reading; what goes wrong while reading is a `DataError` too.

        Raises:
            DataError: it cannot be opened.
        """
        try:
            return io.BufferedReader(_Guarded(self.opener(), self.place))
        except _BROKEN as error:
            raise _unreadable(self.place, error) from error


class _Guarded(io.RawIOBase):
    """A stream whose errors are told as those of the source."""

    def __init__(self, inner: IO[bytes], place: Path) -> None:
        self._inner, self._place = inner, place

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._inner.read(len(buffer))
        except _BROKEN as error:
            raise _unreadable(self._place, error) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _unreadable(place: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"the file cannot be read ({reason})", path=place, fix=_REPAIR)


def members(path: Path, wanted: Callable[[str], bool]) -> list[Member]:
    """The wanted files of an export, in the order of their paths.

    Args:
        path: a file (always wanted), a zip, or a folder, of which two levels are looked at.
        wanted: whether a file is, by its path within the folder or zip.

    Raises:
        DataError: there is nothing at `path`, or the zip is damaged, encrypted or refused.
    """
    if path.is_dir():
        return [
            Member(name, file, lambda file=file: file.open("rb"))  # type: ignore[misc]
            for file in sorted([*path.glob("*"), *path.glob("*/*")])
            if wanted(name := file.relative_to(path).as_posix())
            and file.is_file()
            and not file.is_symlink()
        ]
    if not path.is_file():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    if is_zip(path):
        return sorted(_zipped(path, wanted), key=lambda member: member.name)
    return [Member(path.name, path, lambda: path.open("rb"))]


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def _zipped(path: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _BROKEN as error:
        what = f"the zip cannot be read ({error})"
        raise DataError(what, path=path, fix=_REPAIR) from error
    if len(entries) > MEMBERS_LIMIT:
        what = f"the zip has more than {MEMBERS_LIMIT} files"
        raise DataError(what, path=path, fix="unpack it and give the folder")
    for entry in entries:
        name = entry.filename
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":":
            what = f"the zip names a file outside itself ({name[:80]!r})"
            raise DataError(what, path=path, fix="it is not an export as it was downloaded")
        if entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16) or not wanted(name):
            continue
        swollen = entry.file_size > RATIO_LIMIT * max(entry.compress_size, 1)
        if entry.file_size > SIZE_LIMIT or (swollen and entry.file_size > SMALL):
            what = f"{name[:80]!r} in the zip would swell to {entry.file_size} bytes"
            raise DataError(what, path=path, fix="if it is yours, unpack it and give the folder")
        if entry.flag_bits & 1:
            what = f"{name[:80]!r} in the zip is encrypted"
            raise DataError(what, path=path, fix="unpack it with its password and give the folder")
        yield Member(name, path / name, lambda entry=entry: _open(path, entry))  # type: ignore[misc]


def _open(path: Path, entry: zipfile.ZipInfo) -> IO[bytes]:
    # The file below stays open until the member is closed.
    with zipfile.ZipFile(path) as archive:
        return archive.open(entry)
