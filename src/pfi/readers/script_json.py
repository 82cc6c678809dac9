"""JSON in scripts: files with one assignment, `window.YTD.tweets.part0 = [...]`.

Nothing is run; what follows the sign is read as JSON, a value of its list at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any, cast

from pfi.errors import DataError
from pfi.readers.exports import Member
from pfi.readers.json_tree import OPENED, JsonTree

#: Bytes in which the assignment must begin.
_HEAD = 1 << 10
_ASSIGNED = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:(?:var|let|const)\s+)?([A-Za-z_$][\w.$]*)\s*=\s*")
_END = b"; \t\r\n"
#: Bytes that may be the end and are held back until more comes.
_HELD = 1 << 16


def assigned_name(file: Member) -> str:
    """What a script assigns to, as `window.YTD.tweets.part0`; "" if it is no assignment."""
    try:
        with file.open() as stream:
            match = _ASSIGNED.match(stream.read(_HEAD))
    except DataError:
        return ""
    return match[1].decode() if match else ""


def assigned_items(file: Member) -> Iterator[Any]:
    """The values of the list that a script assigns, or that a JSON file holds.

    Raises:
        DataError: it cannot be read, or is not JSON, from there on.
    """
    with file.open() as stream:
        match = _ASSIGNED.match(stream.read(_HEAD))
        stream.seek(match.end() if match else 0)
        values = cast("IO[bytes]", _Unended(stream))
        for spot, value in JsonTree(file.place, lambda at: at == ()).values(values):
            if spot == ("*",) and value is not OPENED:
                yield value


class _Unended:
    """A stream without the semicolon and white space at its end."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner, self._held = inner, b""

    def read(self, size: int) -> bytes:
        while data := self._inner.read(size):
            data = self._held + data
            kept = data.rstrip(_END) if len(data) <= _HELD + size else data
            self._held = data[len(kept) :]
            if kept:
                return kept
        return b""
