"""Reading large JSON files piece by piece: containers that are entered, all else as values.

One value at a time is held, so that an export of any size is read in bounded memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from pfi.errors import DataError
from pfi.readers.pieces import JsonArray

#: Where in a file a value is: keys of objects, and `*` for any place in a list.
Spot = tuple[str, ...]


class _Opened:
    """Stands for an object or list that is entered."""

    def __repr__(self) -> str:
        return "OPENED"


OPENED: Final = _Opened()


class JsonTree(JsonArray):
    """The values of a JSON file, of which some containers are walked through.

    Args:
        place: how errors call the file.
        enter: whether the object or list at a spot is walked through instead of given whole.
    """

    def __init__(self, place: Path, enter: Callable[[Spot], bool]) -> None:
        super().__init__(place)
        self._enter = enter

    @property
    def line(self) -> int:
        """The line that has been reached."""
        return self._line

    def values(self, file: IO[bytes]) -> Iterator[tuple[Spot, Any]]:
        """Yield `(spot, value)` in the order of the file, `OPENED` for what is entered.

        Raises:
            DataError: it cannot be read, is cut off, not UTF-8 or not JSON, from there on.
        """
        head = file.read(4)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            raise DataError("the file is not UTF-8", path=self.path, fix="save it as UTF-8")
        try:
            self._buffer = self._decoder.decode(head.removeprefix(codecs.BOM_UTF8))
        except UnicodeDecodeError as error:
            what, fix = "the file is not UTF-8", "save it as UTF-8"
            raise DataError(what, path=self.path, fix=fix) from error
        yield from self._walk(file, ())
        if self._peek(file):
            self._fail("is followed by more text", "remove what follows", entry=False)

    def _walk(self, file: IO[bytes], spot: Spot) -> Iterator[tuple[Spot, Any]]:
        opening = self._peek(file)
        if opening == "":
            self._fail("is cut off", "it is incomplete: copy or download it again", entry=False)
        if opening not in "[{" or not self._enter(spot):
            yield spot, self._value(file)
            return
        self._use(self._at + 1)
        yield spot, OPENED
        closing = "]" if opening == "[" else "}"
        if self._peek(file) != closing:
            while True:
                key = "*"
                if opening == "{":
                    if self._peek(file) not in ('"', ""):
                        self._fail("has a key that is not text", "correct the file", entry=False)
                    key = str(self._value(file))
                    self._expect(file, ":", "has no value")
                yield from self._walk(file, (*spot, key))
                self._count += not spot
                if self._peek(file) != ",":
                    break
                self._use(self._at + 1)
        self._expect(file, closing, f"is followed by neither a comma nor {closing!r}")
