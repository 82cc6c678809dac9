"""What a JSON file is, by a glance at its beginning: which keys it has where, and short values."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pfi.errors import DataError
from pfi.readers.json_tree import JsonTree, Spot

__all__ = ["Outline", "outline"]

#: Bytes that are looked at.
LIMIT = 1 << 16


class Outline(dict[Spot, Any]):
    """The first value at each spot, `OPENED` for containers; `*` stands for any place in a list."""

    def keys_at(self, *spot: str) -> set[str]:
        """The keys of the object at a spot."""
        return {key[-1] for key in self if key[:-1] == spot and key}


def outline(stream: IO[bytes], depth: int = 4) -> Outline:
    """The outline of a JSON file's beginning; empty if it is none.

    Args:
        stream: at its beginning.
        depth: containers deeper than this are not entered.
    """
    head = io.BytesIO(stream.read(LIMIT))
    spots = Outline()
    with suppress(DataError):  # it is cut off, or no JSON from there on
        for spot, value in JsonTree(Path("head"), lambda at: len(at) < depth).values(head):
            spots.setdefault(spot, value)
    return spots
