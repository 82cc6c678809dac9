"""Mails in mbox files, Maildirs, single files and folders of these, one at a time.

Files are read as they come, so that a mailbox of any size takes the memory of one mail.  (The
standard library's `mailbox` splits at every line that begins with `From ` and holds whole mails.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pfi.errors import DataError

#: What is kept of a mail, in bytes; texts come before attachments.
MAIL_LIMIT = 2 << 20
_PIECE = 1 << 16
_HEADERS_LIMIT = 1 << 18

_FROM = re.compile(rb"From (.*\d{1,2}:\d\d.*\d{4}.*|- *)\r?\n?$")
_HEADER = re.compile(
    rb"(?i)^(return-path|received|from|to|subject|date|message-id|delivered-to|"
    rb"mime-version|content-type|x-[\w-]+|dkim-signature|reply-to|cc|bcc): ?"
)
_SINGLE = (".eml", ".emlx")


class Place(NamedTuple):
    """Where a mail is: the file's number in the list of files, and its first byte."""

    file: int
    start: int


def mail_files(path: Path) -> list[Path]:
    """The files of a source that hold mail, in the order of their paths.

    Raises:
        DataError: there is no such file or folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    return [
        file
        for file in sorted(path.rglob("*"))
        if not file.is_symlink() and file.is_file() and _holds_mail(file)
    ]


def _holds_mail(file: Path) -> bool:
    if file.suffix.lower() in _SINGLE or in_maildir(file):
        return not file.name.startswith(".")
    return is_mbox(file)


def in_maildir(file: Path) -> bool:
    """Whether a file is a message of a Maildir."""
    return file.parent.name in ("cur", "new") and (file.parent.parent / "cur").is_dir()


def is_mbox(file: Path) -> bool:
    """Whether a file begins as an mbox does."""
    return _FROM.match(_first_line(file)) is not None


def is_mail(file: Path) -> bool:
    """Whether a file begins as a mail does, or is named like one."""
    return file.suffix.lower() in _SINGLE or _HEADER.match(_first_line(file)) is not None


def _first_line(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.readline(1000)
    except OSError:
        return b""


def folder_name(file: Path, root: Path) -> str:
    """What the person's mail program calls the folder that a file is (in)."""
    if in_maildir(file):
        name = file.parent.parent.name
    elif file.suffix.lower() in _SINGLE or file.name == "mbox":
        name = file.parent.name
    else:
        name = file.stem if file.suffix.lower() == ".mbox" else file.name
    return name.lstrip(".")


def mails(files: list[Path]) -> Iterator[tuple[Place, bytes]]:
    """Yield every mail, at most `MAIL_LIMIT` bytes of it.

    Raises:
        DataError: a file cannot be read.
    """
    for number, file in enumerate(files):
        try:
            if is_mbox(file):
                for start, data in _mbox(file):
                    yield Place(number, start), data
            else:
                yield Place(number, 0), _single(file)
        except OSError as error:
            what = f"the file cannot be read ({error.strerror})"
            raise DataError(what, path=file, fix="give readable files") from error


def read_mail(files: list[Path], place: Place) -> bytes:
    """One mail again; empty if its file is there no more."""
    try:
        if not is_mbox(files[place.file]):
            return _single(files[place.file])
        return next(_mbox(files[place.file], place.start))[1]
    except (OSError, StopIteration):
        return b""


def headers_of(data: bytes) -> bytes:
    """The part of a mail before its text."""
    match = re.compile(rb"\r?\n\r?\n").search(data, 0, _HEADERS_LIMIT)
    return data[: match.end()] if match else data[:_HEADERS_LIMIT]


def _single(file: Path) -> bytes:
    with file.open("rb") as stream:
        if file.suffix.lower() == ".emlx":  # Apple's begin with the number of bytes
            size = stream.readline(40).strip()
            return stream.read(min(int(size) if size.isdigit() else MAIL_LIMIT, MAIL_LIMIT))
        data = stream.read(MAIL_LIMIT)
    return data


def _mbox(file: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the first byte and the text of every mail from `start` on."""
    with file.open("rb") as stream:
        stream.seek(start)
        at = begun = start
        blank, fresh, size = True, True, 0
        kept: list[bytes] | None = None
        while piece := stream.readline(_PIECE):
            if fresh and blank and piece.startswith(b"From ") and _FROM.match(piece):
                if kept is not None:
                    yield begun, b"".join(kept)
                begun, kept, size = at, [], 0
            elif kept is not None and size < MAIL_LIMIT:
                kept.append(piece)
                size += len(piece)
            at += len(piece)
            blank = fresh and piece in (b"\n", b"\r\n")
            fresh = piece.endswith(b"\n")
        if kept is not None:
            yield begun, b"".join(kept)
