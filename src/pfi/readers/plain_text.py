"""Paragraphs of plain text files, in whatever encoding, without the lines that quote."""

from __future__ import annotations

import re

from pfi.errors import DataError
from pfi.readers.document_text import QUOTED, Document
from pfi.readers.encodings import stream_encoding
from pfi.readers.exports import Member
from pfi.readers.values import Unusable

__all__ = ["text_document"]

#: Largest file that is read, in bytes.
SIZE_LIMIT = 8 << 20
#: Longest first line that is a title, in characters.
_TITLE = 80
_QUOTE = re.compile(r"\s{0,3}>")
_RULE = re.compile(r"\s*([-=_*~#])\1{2,}\s*")
_STOP = re.compile(r"[.,;:!?。，；：！？]$")


def text_document(member: Member) -> Document:
    """The text of a plain text file.

    Raises:
        Unusable: it is too large or no text.
    """
    if member.size > SIZE_LIMIT:
        raise Unusable(f"it is larger than {SIZE_LIMIT >> 20} MB")
    try:
        with member.open() as stream:
            encoding = stream_encoding(stream)
            stream.seek(0)
            text = stream.read(SIZE_LIMIT).decode(encoding, "replace")
    except DataError as error:
        raise Unusable("it cannot be read") from error
    if "\0" in text:
        raise Unusable("it is no text")
    document = Document()
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    blocks = re.split(r"\n[ \t]*\n|\f", text.strip())
    for number, block in enumerate(blocks):
        _add(document, block.split("\n"), first=not number, alone=len(blocks) == 1)
    return document


def _add(document: Document, lines: list[str], *, first: bool, alone: bool) -> None:
    """Add a paragraph, and a title that stands above the first one."""
    own = [line.rstrip() for line in lines if not _QUOTE.match(line)]
    if len(own) < len(lines):
        document.drop(QUOTED, len(lines) - len(own))
    own = [line for line in own if not _RULE.fullmatch(line)]
    underlined = len(lines) > 1 and _RULE.fullmatch(lines[1]) is not None
    if first and own and (underlined or (len(own) == 1 and not alone)) and _is_title(own[0]):
        document.add(own[0], heading=True)
        own = own[1:]
        if not own:
            return
    document.add("\n".join(own))


def _is_title(line: str) -> bool:
    return len(line) <= _TITLE and not _STOP.search(line.strip())
