"""The sequences of a llama.cpp context, and whose beginnings of prompts they still hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pfi.models.llama_c import Context

#: Whose it is, and the adapter's key.
Group = tuple[str, str]


@dataclass(eq=False)
class Slot:
    """A sequence of a context.

    Attributes:
        at: its number.
        group: of the tokens that it holds.
        tokens: whose keys and values it holds.
        busy: whether a request has it.
        used: when a request last had it.
    """

    at: int
    group: Group = ("", "")
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: int = 0


class Slots:
    """All sequences of a context.  One thread uses it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.all = [Slot(at) for at in range(context.sequences)]
        self._time = 0

    def take(self, group: Group, prompt: Sequence[int]) -> Slot:
        """A free sequence, which there must be; it may hold the prompt's beginning already.

        Keys and values of other groups are never used, nor those of nobody. The last token is
        always left to compute: its logits are needed.
        """
        free = [slot for slot in self.all if not slot.busy]

        def shared(slot: Slot) -> int:
            own = group[0] and slot.group == group
            return _common(slot.tokens, prompt[:-1]) if own else 0

        best = max(free, key=shared)
        # A sequence that shares little is another conversation, of use to whoever comes back to it.
        if 2 * shared(best) < min(len(best.tokens), len(prompt)):
            best = min(free, key=lambda slot: slot.used)
        self._time += 1
        self.cut(best, shared(best))
        best.busy, best.group, best.used = True, group, self._time
        return best

    @property
    def free(self) -> int:
        """How many sequences are free."""
        return sum(not slot.busy for slot in self.all)

    def forget(self, owner: str) -> None:
        """Drop what is held of an owner's prompts; of those in work, as soon as they end."""
        for slot in self.all:
            if slot.group[0] == owner:
                slot.group = ("", slot.group[1])
                if not slot.busy:
                    self.cut(slot, 0)

    @property
    def held(self) -> int:
        """Tokens whose keys and values are held for requests to come."""
        return sum(len(slot.tokens) for slot in self.all if not slot.busy)

    def cut(self, slot: Slot, length: int) -> None:
        """Forget a sequence's tokens from this place on."""
        del slot.tokens[length:]
        self.context.cut(slot.at, length)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))
