"""Where a ledger's head is kept beside it, so that its owner notices what a chain alone cannot
show: that the newest entries were cut off, or that the whole file was written anew.

The head is the number and the hash of the newest entry.  Whoever changes the file would have to
change what keeps the head as well, which in a profile is the encrypted vault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pfi.privacy.ledger.entries import Entry


@dataclass(frozen=True)
class Head:
    """The newest entry of a ledger: its number, which counts entries, and its hash."""

    count: int
    hash: str


class Anchor(Protocol):
    """Keeps a ledger's head."""

    def read(self) -> Head | None:
        """The newest head that was told; None if none was."""
        ...

    def tell(self, head: Head) -> None:
        """Keep a head, unless a newer one is known."""
        ...

    def replace(self, head: Head | None) -> None:
        """Keep this head whatever was known."""
        ...


def departure(
    head: Head | None, last: Entry | None, entry_at: Callable[[int], Entry | None]
) -> str | None:
    """How a ledger differs from what its anchor knows, or None.

    More entries are as they should be: a kill can come between an entry and its being told.

    Args:
        head: what the anchor knows.
        last: the ledger's newest entry.
        entry_at: the entry of a number.
    """
    if head is None:
        return None
    count = 0 if last is None else last.n
    if last is None or count < head.count:
        return f"has {count} entries, and {head.count} were written: the newest are missing"
    entry = last if count == head.count else entry_at(head.count)
    if entry is None or entry.hash != head.hash:
        return f"was written anew: entry {head.count} is another than the one that was written"
    return None
