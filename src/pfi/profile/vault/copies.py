"""Whether a text repeats a record: five of its words in a row, or a whole field of fewer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pfi.records import Record

RUN = 5
#: A field of fewer words is a label, a name or a phrase that anybody may use.
LEAST = 3
_WORD = re.compile(r"\w+")


class Copies:
    """Finds texts that repeat any of these records."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        for record in records:
            for text in (*record.input.values(), record.output):
                found = words(text)
                if len(found) >= LEAST:
                    self._runs |= runs(found, min(RUN, len(found)))

    def repeated_in(self, text: str) -> bool:
        """Whether the text holds such a run of words."""
        found = words(text)
        return any(not self._runs.isdisjoint(runs(found, n)) for n in range(LEAST, RUN + 1))


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return [word.casefold() for word in _WORD.findall(text)]


def runs(found: list[str], length: int) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}
