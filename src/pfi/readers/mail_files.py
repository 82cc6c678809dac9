"""Mails in mbox files, Maildirs, MH folders, single files and zips of these, one at a time.

Files are read as they come, so that a mailbox of any size takes the memory of one mail.  (The
standard library's `mailbox` splits at every line that begins with `From ` and holds whole mails.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from pfi.errors import DataError
from pfi.readers.exports import Member, all_members, is_zip, open_member, parts
from pfi.readers.inflate import GZIP, Inflated, points_for

#: What is kept of a mail, in bytes; texts come before attachments.
MAIL_LIMIT = 2 << 20
#: Levels of folders that are looked at.
DEPTH = 16
_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 16
_HEADERS_LIMIT = 1 << 18
#: Longest line that can begin a mail of an mbox; what is kept of a block for the next one.
_FROM_LIMIT, _CARRIED = 1000, 2048

_FROM = re.compile(rb"From (.*\d{1,2}:\d\d.*\d{4}.*|- *)\r?\n?$")
_HEADER = re.compile(
    rb"(?i)^(return-path|received|from|to|subject|date|message-id|delivered-to|"
    rb"mime-version|content-type|x-[\w-]+|dkim-signature|reply-to|cc|bcc|sender|"
    rb"user-agent|references|in-reply-to|authentication-results|arc-[\w-]+): ?"
)
_SINGLE = (".eml", ".emlx")
#: Names that hold mail in a zip; to look into every photo of an export would take long.
_ZIPPED = ("", ".mbox", ".mbx", ".mbs", *_SINGLE, ".gz")


class Place(NamedTuple):
    """Where a mail is: the file's number in the list of files, and its first byte."""

    file: int
    start: int


class MailFile(NamedTuple):
    """A file that holds mail.

    Attributes:
        member: to open it.
        many: whether it is an mbox.
        folder: what the person's mail program calls the folder that it is (in).
    """

    member: Member
    many: bool
    folder: str


def mail_files(path: Path) -> list[MailFile]:
    """The files of a source that hold mail, in the order of their paths.

    Raises:
        DataError: there is no such file or folder, or a zip is refused.
    """
    if path.is_file() and not is_zip(path):
        member = _ungzipped(open_member(path, path.name))
        folder = folder_name(path.parent.name, PurePosixPath(path.name))
        return [MailFile(member, _begins(member, _FROM), folder)]
    zipped = path.is_file()
    wanted = _may_hold_mail if zipped else _anything
    found = all_members(parts(path), wanted, depth=DEPTH)
    return list(filter(None, (_mail_file(member, path.name) for member in found)))


def files_of(found: Sequence[Member], root: str) -> list[MailFile]:
    """Those members of an export that hold mail."""
    held = (_mail_file(member, root) for member in found if _may_hold_mail(member.name))
    return [file for file in held if file]


def _anything(name: str) -> bool:
    return True


def _may_hold_mail(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _ZIPPED or path.parent.name in ("cur", "new")


def _mail_file(member: Member, root: str) -> MailFile | None:
    """A member as a file of mails; None if it holds none."""
    path = PurePosixPath(member.name)
    member = _ungzipped(member)
    if _in_maildir(path) or path.suffix.lower() in _SINGLE or _is_message(path):
        if path.name.startswith(".") or (_is_message(path) and not _begins(member, _HEADER)):
            return None
        return MailFile(member, False, folder_name(root, path))
    if not _begins(member, _FROM):
        return None
    return MailFile(member, True, folder_name(root, path))


def _in_maildir(path: PurePosixPath) -> bool:
    return path.parent.name in ("cur", "new")


def _is_message(path: PurePosixPath) -> bool:
    """Whether a file is named as in an MH folder."""
    return path.name.isdecimal() and path.name.isascii()


def _ungzipped(member: Member) -> Member:
    """What a gzip file holds; any other member as it is."""
    if not member.name.lower().endswith(".gz"):
        return member
    opener = partial(_inflated, member.opener, points_for(member.size * 8))
    return Member(member.name[:-3], member.place, opener, member.size)


def _inflated(opener: Callable[[], IO[bytes]], points: object) -> IO[bytes]:
    return cast("IO[bytes]", Inflated(opener, GZIP, points=points))  # type: ignore[arg-type]


def is_mbox(path: Path) -> bool:
    """Whether a file begins as an mbox does, in gzip too."""
    return _begins(_ungzipped(open_member(path, path.name)), _FROM)


def is_mail(path: Path) -> bool:
    """Whether a file begins as a mail does, or is named like one."""
    named = path.suffix.lower() in _SINGLE
    return named or _begins(open_member(path, path.name), _HEADER)


def _begins(member: Member, pattern: re.Pattern[bytes]) -> bool:
    try:
        with member.open() as stream:
            return pattern.match(stream.readline(_FROM_LIMIT)) is not None
    except (OSError, DataError):
        return False


def folder_name(root: str, path: PurePosixPath) -> str:
    """What the person's mail program calls the folder that a file is (in).

    Args:
        root: the name of the folder that is imported.
        path: of the file, in that folder.
    """
    if _in_maildir(path):
        name = path.parent.parent.name or root
    elif path.suffix.lower() in _SINGLE or path.name == "mbox" or _is_message(path):
        name = path.parent.name or root
    else:
        name = path.name.removesuffix(".gz")
        name = PurePosixPath(name).stem if name.lower().endswith((".mbox", ".mbx")) else name
    return name.lstrip(".").rpartition(".")[2] if name.startswith(".") else name


def mails(files: Sequence[MailFile]) -> Iterator[tuple[Place, bytes]]:
    """Yield every mail, at most `MAIL_LIMIT` bytes of it.

    Raises:
        DataError: a file cannot be read.
    """
    for number, file in enumerate(files):
        try:
            with file.member.open() as stream:
                if file.many:
                    for start, data in _mbox(stream, 0, _BLOCK):
                        yield Place(number, start), data
                else:
                    yield Place(number, 0), _single(stream, file)
        except OSError as error:
            what = f"the file cannot be read ({error.strerror})"
            raise DataError(what, path=file.member.place, fix="give readable files") from error


def read_mail(files: Sequence[MailFile], place: Place) -> bytes:
    """One mail again; empty if its file is there no more."""
    file = files[place.file]
    try:
        with file.member.open() as stream:
            if not file.many:
                return _single(stream, file)
            return next(_mbox(stream, place.start, _SMALL_BLOCK))[1]
    except (OSError, DataError, StopIteration):
        return b""


def headers_of(data: bytes) -> bytes:
    """The part of a mail before its text."""
    match = re.compile(rb"\r?\n\r?\n").search(data, 0, _HEADERS_LIMIT)
    return data[: match.end()] if match else data[:_HEADERS_LIMIT]


def _single(stream: IO[bytes], file: MailFile) -> bytes:
    if not file.member.name.lower().endswith(".emlx"):
        return stream.read(MAIL_LIMIT)
    size = stream.readline(40).strip()  # Apple's begin with the number of bytes
    return stream.read(min(int(size) if size.isdigit() else MAIL_LIMIT, MAIL_LIMIT))


def _mbox(stream: IO[bytes], start: int, block: int) -> Iterator[tuple[int, bytes]]:
    """Yield the first byte and the text of every mail from `start`, where one begins, on."""
    stream.seek(start)
    mail: _Mail | None = None
    carried, offset, ended = b"", start, False
    while not ended:
        read = stream.read(block)
        ended = len(read) < block
        data, done = carried + read, 0
        for begin, end in _separators(data, at_start=offset == start):
            if mail:
                mail.add(data[done:begin])
                yield mail.start, mail.data()
            mail, done = _Mail(offset + begin), end
        keep = len(data) if ended else max(done, len(data) - _CARRIED)
        if mail:
            mail.add(data[done:keep])
            if mail.full and block == _SMALL_BLOCK:
                break  # who reads one mail needs not know where it ends
        carried, offset = data[keep:], offset + keep
    if mail:
        yield mail.start, mail.data()


class _Mail:
    """The beginning of one mail of an mbox."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def full(self) -> bool:
        return self._size >= MAIL_LIMIT

    def add(self, piece: bytes) -> None:
        piece = piece[: MAIL_LIMIT - self._size]
        self._pieces.append(piece)
        self._size += len(piece)

    def data(self) -> bytes:
        return b"".join(self._pieces)


def _separators(data: bytes, *, at_start: bool) -> Iterator[tuple[int, int]]:
    """Where in a block the lines are that begin a mail: after an empty line, or at the start."""
    end = data.find(b"\n") + 1
    if at_start and _FROM.match(data, 0, end):
        yield 0, end
    at = data.find(b"\nFrom ")
    while at >= 0:
        end = data.find(b"\n", at + 1, at + _FROM_LIMIT) + 1
        blank = data[at - 1 : at] == b"\n" or data[at - 2 : at] == b"\n\r"
        if end and blank and _FROM.match(data[at + 1 : end]):
            yield at + 1, end
        at = data.find(b"\nFrom ", at + 1)
