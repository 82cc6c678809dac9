"""Beginnings of prompts whose keys and values are kept, for the same owner and adapter only.

A user's summary, instructions and the turns so far are read once; the longest beginning that a
new prompt shares is copied instead of computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

#: Whose it is, and the adapter's key.
Group = tuple[str, str]
#: Shorter beginnings are not worth a copy.
LEAST = 8


@dataclass(eq=False)
class _Entry:
    group: Group
    tokens: np.ndarray
    held: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.held.numel() * self.held.element_size() + self.tokens.nbytes


class PrefixCache:
    """Keys and values by tokens, the least recently used ones dropped beyond ``limit`` bytes.

    Attributes:
        bytes: what is held now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._groups: dict[Group, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, group: Group, tokens: Sequence[int]) -> torch.Tensor | None:
        """The longest beginning known: ``(layers, 2, length, heads, width)``, or None."""
        wanted = np.asarray(tokens, dtype=np.int64)
        found = [
            (_common(self._entries[at].tokens, wanted), at) for at in self._groups.get(group, [])
        ]
        length, at = max(found, default=(0, -1))
        if length < LEAST:
            return None
        self._entries.move_to_end(at)
        return self._entries[at].held[:, :, :length]

    def known(self, group: Group, tokens: Sequence[int]) -> bool:
        """Whether all of these tokens are the beginning of an entry."""
        wanted = np.asarray(tokens, dtype=np.int64)
        entries = (self._entries[at].tokens for at in self._groups.get(group, []))
        return any(_common(entry, wanted) == len(wanted) for entry in entries)

    def put(self, group: Group, tokens: Sequence[int], held: torch.Tensor) -> None:
        """Keep keys and values of these tokens; entries that are their beginning go."""
        entry = _Entry(group, np.asarray(tokens, dtype=np.int64), held)
        if len(tokens) < LEAST or entry.bytes > self.limit:
            return
        for at in list(self._groups.get(group, [])):
            old = self._entries[at].tokens
            if _common(old, entry.tokens) == len(old):
                self._drop(at)
        while self.bytes + entry.bytes > self.limit:
            self._drop(next(iter(self._entries)))
        self._entries[self._next] = entry
        self._groups.setdefault(group, []).append(self._next)
        self._next += 1
        self.bytes += entry.bytes

    def forget(self, owner: str) -> None:
        """Drop all that is an owner's."""
        for at in [at for at, entry in self._entries.items() if entry.group[0] == owner]:
            self._drop(at)

    def _drop(self, at: int) -> None:
        entry = self._entries.pop(at)
        self.bytes -= entry.bytes
        self._groups[entry.group].remove(at)
        if not self._groups[entry.group]:
            del self._groups[entry.group]


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    other = np.flatnonzero(first[:length] != second[:length])
    return int(other[0]) if len(other) else length
