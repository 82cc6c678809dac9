"""Files of an export as they were downloaded: a file, those of a folder, or of a zip or tar.

Nothing is unpacked to disk, and members of an archive can be read from any place on.  One that
names places outside itself, is encrypted, or swells far beyond what an export does is refused.

    for member in members(path, lambda name: name.endswith(".json")):
        with member.open() as stream:
            ...

An export may come in several zips (`takeout-20240501T000000Z-001.zip`, `-002.zip`): give all of
them, `all_members(parts(path), wanted)`.  A zip within a zip is one more export,
`nested_members(member, wanted)`.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from pfi.errors import DataError
from pfi.readers.inflate import RAW, Inflated, RestartPoints, Stored, open_file, points_for
from pfi.readers.tar_files import is_tar, tar_entries

#: Members that a zip may have, and bytes that one that is read may have.
MEMBERS_LIMIT = 200_000
SIZE_LIMIT = 8 << 30
#: Text shrinks to a tenth or so; what shrinks more than this, and is not small, is a zip bomb.
RATIO_LIMIT = 200
SMALL = 16 << 20
#: Files that a folder may have.
FILES_LIMIT = 1_000_000

_BUFFER = 1 << 17
_PART = re.compile(r"(.*\D)0*(\d{1,3})\.(zip|tgz|tar\.gz)", re.I)
_LOCAL_HEADER = struct.Struct("<4s22x2H")

_BROKEN = (
    OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
    struct.error,
)  # fmt: skip
_REPAIR = "download the export again"


@dataclass(frozen=True)
class Member:
    """One file of an export.

    Attributes:
        name: its path within the export, with slashes.
        place: how errors and reports call it.
        opener: opens it, seekable.
        size: its bytes.
        changed: when the file was changed last; in a zip it has no time zone, and counts as UTC.
    """

    name: str
    place: Path
    opener: Callable[[], IO[bytes]]
    size: int = 0
    changed: datetime | None = None

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.name).name

    def open(self) -> IO[bytes]:
        """Open it for reading from any place; what goes wrong while reading is a `DataError` too.

        Raises:
            DataError: it cannot be opened.
        """
        try:
            return io.BufferedReader(_Guarded(self.opener(), self.place), _BUFFER)
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

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._inner.seek(offset, whence)
        except _BROKEN as error:
            raise _unreadable(self._place, error) from error

    def tell(self) -> int:
        return self._inner.tell()

    def close(self) -> None:
        self._inner.close()
        super().close()


def _unreadable(place: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"the file cannot be read ({reason})", path=place, fix=_REPAIR)


def members(path: Path, wanted: Callable[[str], bool], *, depth: int = 2) -> list[Member]:
    """The wanted files of an export, in the order of their paths.

    Args:
        path: a file (always wanted), a zip, a tar (also with gzip), or a folder.
        wanted: whether a file is, by its path within the folder or archive, with slashes, composed
            (Unicode NFC).
        depth: how many levels of a folder are looked at; of an archive it is all.

    Raises:
        DataError: there is nothing at `path`, or the archive is damaged, encrypted or refused.
    """
    if path.is_dir():
        files = (
            (file, _composed(file.relative_to(path).as_posix())) for file in _walk(path, depth)
        )
        return sorted((open_member(file, name) for file, name in files if wanted(name)), key=_name)
    if not path.is_file():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    if is_zip(path):
        return sorted(_zipped(path, partial(open_file, path), wanted), key=_name)
    if is_tar(path):
        return sorted(_tarred(path, wanted), key=_name)
    return [open_member(path, path.name)]


def nested_members(member: Member, wanted: Callable[[str], bool]) -> list[Member]:
    """The wanted files of a zip that is itself a file of an export, in the order of their paths.

    Raises:
        DataError: it is no zip, or damaged, encrypted or refused.
    """
    return sorted(_zipped(member.place, member.open, wanted), key=_name)


def all_members(
    paths: Iterable[Path], wanted: Callable[[str], bool], *, depth: int = 2
) -> list[Member]:
    """The wanted files of an export that came in several parts; of one name the first is taken.

    Raises:
        DataError: as `members`.
    """
    by_name: dict[str, Member] = {}
    for path in paths:
        for member in members(path, wanted, depth=depth):
            by_name.setdefault(member.name, member)
    return sorted(by_name.values(), key=_name)


def parts(path: Path) -> list[Path]:
    """The archives that an export came in, of which `path` is one, by their numbers.

    A name that ends in a number, as `takeout-20240501T000000Z-001.zip`, has the others beside it;
    any other path is its own only part.
    """
    match = _PART.fullmatch(path.name)
    if not match or not is_archive(path):
        return [path]
    numbered = []
    for file in path.parent.iterdir():
        other = _PART.fullmatch(file.name)
        if other and other[1] == match[1] and not file.is_symlink() and is_archive(file):
            numbered.append((int(other[2]), file.name, file))
    return [file for _, _, file in sorted(numbered)]


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar (also with gzip), by its first bytes."""
    return path.is_file() and (is_zip(path) or is_tar(path))


def _name(member: Member) -> str:
    return member.name


def _composed(name: str) -> str:
    # macOS writes decomposed names: `e` and an accent instead of `é`.
    return unicodedata.normalize("NFC", name)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """The files of a folder, without links.

    Raises:
        DataError: there are too many.
    """
    waiting, count = [(folder, 1)], 0
    while waiting:
        current, level = waiting.pop()
        for entry in current.iterdir():
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if level < depth:
                    waiting.append((entry, level + 1))
            elif entry.is_file():
                count += 1
                if count > FILES_LIMIT:
                    what = f"the folder has more than {FILES_LIMIT} files"
                    raise DataError(what, path=folder, fix="give a smaller folder")
                yield entry


def open_member(file: Path, name: str) -> Member:
    """A file that is in no zip as a member."""
    status = file.stat()
    changed = datetime.fromtimestamp(int(status.st_mtime), UTC)
    return Member(name, file, partial(open_file, file), status.st_size, changed)


def _zipped(
    path: Path, opener: Callable[[], IO[bytes]], wanted: Callable[[str], bool]
) -> Iterator[Member]:
    """The wanted members of a zip, which `opener` opens.

    Raises:
        DataError: the zip is damaged, encrypted or refused.
    """
    try:
        with opener() as stream, zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            size = stream.seek(0, io.SEEK_END)
    except _BROKEN as error:
        what = f"the zip cannot be read ({error})"
        raise DataError(what, path=path, fix=_REPAIR) from error
    if len(entries) > MEMBERS_LIMIT:
        what = f"the zip has more than {MEMBERS_LIMIT} files"
        raise DataError(what, path=path, fix="unpack it and give the folder")
    if sum(entry.compress_size for entry in entries) > size:
        what = "files in the zip overlap, as in a zip bomb"
        raise DataError(what, path=path, fix="it is not an export as it was downloaded")
    for entry in entries:
        name = _composed(_entry_name(entry))
        _check_name(path, name)
        if (
            entry.is_dir()
            or stat.S_ISLNK(entry.external_attr >> 16)
            or name.startswith("__MACOSX/")
            or not wanted(name)
        ):
            continue
        swollen = entry.file_size > RATIO_LIMIT * max(entry.compress_size, 1)
        if entry.file_size > SIZE_LIMIT or (swollen and entry.file_size > SMALL):
            what = f"{name[:80]!r} in the zip would swell to {entry.file_size} bytes"
            raise DataError(what, path=path, fix="if it is yours, unpack it and give the folder")
        if entry.flag_bits & 1:
            what = f"{name[:80]!r} in the zip is encrypted"
            raise DataError(what, path=path, fix="unpack it with its password and give the folder")
        inner = partial(_open, opener, entry, points_for(entry.file_size))
        yield Member(name, path / name, inner, entry.file_size, _changed(entry))


def _tarred(path: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The wanted files of a tar; of several of one name the last, which replaces the others.

    Raises:
        DataError: the tar is damaged or refused.
    """
    by_name: dict[str, Member] = {}
    for entry in tar_entries(path):
        name = _composed(entry.name.removeprefix("./"))
        _check_name(path, name)
        # macOS keeps what else it knows of a file beside it, under its name with `._`.
        if not PurePosixPath(name).name.startswith("._") and wanted(name):
            by_name[name] = Member(name, path / name, entry.opener, entry.size)
    yield from by_name.values()


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":":
        what = f"the archive names a file outside itself ({name[:80]!r})"
        raise DataError(what, path=path, fix="it is not an export as it was downloaded")


def _entry_name(entry: zipfile.ZipInfo) -> str:
    """A member's name; many programs write UTF-8 without saying so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except ValueError:
        return entry.filename


def _changed(entry: zipfile.ZipInfo) -> datetime | None:
    """When a member was changed; 1980 is what programs write that do not know."""
    try:
        time = datetime(*entry.date_time, tzinfo=UTC)
    except ValueError:
        return None
    return time if time.year > 1980 else None


def _open(
    opener: Callable[[], IO[bytes]], entry: zipfile.ZipInfo, points: RestartPoints
) -> IO[bytes]:
    if entry.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        # The file below stays open until the member is closed.
        with zipfile.ZipFile(opener()) as archive:
            return archive.open(entry)
    with opener() as file:
        file.seek(entry.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member is not where the zip says")
    start = entry.header_offset + _LOCAL_HEADER.size + name + extra
    if entry.compress_type == zipfile.ZIP_STORED:
        if entry.compress_size != entry.file_size:
            raise zipfile.BadZipFile("a member has two sizes")
        window = Stored(opener, start=start, length=entry.file_size, crc=entry.CRC)
        return cast("IO[bytes]", window)
    stream = Inflated(
        opener, RAW, start=start, length=entry.compress_size,
        size=entry.file_size, crc=entry.CRC, points=points,
    )  # fmt: skip
    return cast("IO[bytes]", stream)
