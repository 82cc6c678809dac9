"""The sequences of a llama.cpp context: whose prompt prefixes they hold, and scores of targets.

A prompt is read once, and so are prefixes that prompts share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfi.inference.llama.c import Context
from pfi.inference.llama.sampling import highest

#: Whose it is, and the adapter's key.
Group = tuple[str, str]
#: Tokens of a prompt that are read together.  llama.cpp's sums depend on how many tokens a pass
#: has, so prompts are cut at multiples of this, and what is kept of them is a whole number of
#: chunks: a prompt of which some is known already is computed as one of which nothing is.
CHUNK = 64


@dataclass(eq=False)
class Slot:
    """A sequence of a context.

    Attributes:
        at: its number.
        group: of the tokens that it holds.
        tokens: whose keys and values it holds.
        whole: of these, how many were read in whole chunks of a prompt.
        busy: whether a request has it.
        used: when a request last had it.
    """

    at: int
    group: Group = ("", "")
    tokens: list[int] = field(default_factory=list)
    whole: int = 0
    busy: bool = False
    used: int = 0

    def shared(self, group: Group, prompt: Sequence[int]) -> int:
        """With how many of its tokens a prompt of a group begins, but for the prompt's last."""
        own = group[0] and self.group == group
        return _common(self.tokens, prompt[:-1]) if own else 0

    def usable(self, group: Group, prompt: Sequence[int]) -> int:
        """Of these, how many need not be read again: whole chunks that were read as such."""
        return _whole_chunks(min(self.shared(group, prompt), self.whole))


#: A sequence, and the prompt that is being read into it.
Reading = tuple[Slot, Sequence[int]]


class Slots:
    """All sequences of a context.  One thread uses it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.all = [Slot(at) for at in range(context.sequences)]
        self._time = 0

    def take(self, group: Group, prompt: Sequence[int]) -> Slot:
        """A free sequence, which there must be; it may hold the prompt's beginning already.

        What another sequence of the group has read of that beginning is copied, which costs far
        less than reading it. Keys and values of other groups are never used, nor those of nobody,
        nor those that were not read in whole chunks. The last token is always left to compute: its
        logits are needed.
        """
        free = [slot for slot in self.all if not slot.busy]

        def shared(slot: Slot) -> int:
            return slot.shared(group, prompt)

        best = max(free, key=shared)
        # A sequence that shares little is another conversation, of use to whoever comes back to it.
        if 2 * shared(best) < min(len(best.tokens), len(prompt)):
            best = min(free, key=lambda slot: slot.used)
        source = max(self.all, key=lambda slot: slot.usable(group, prompt))
        kept = source.usable(group, prompt)
        if kept > best.usable(group, prompt):
            self.context.copy(source.at, best.at)
            best.tokens, best.whole = list(source.tokens), source.whole
        self._time += 1
        self.cut(best, kept)
        best.busy, best.group, best.used = True, group, self._time
        return best

    def worth_waiting(
        self, group: Group, prompt: Sequence[int], reading: Iterable[Reading]
    ) -> bool:
        """Whether a prompt that is being read begins as this one, further than anything read yet.

        Once it is read, `take` copies what both begin with.
        """
        heads = [other for slot, other in reading if group[0] and slot.group == group]
        if not heads:  # as nearly always
            return False
        known = max(slot.usable(group, prompt) for slot in self.all)
        return any(_whole_chunks(_common(other, prompt[:-1])) > known for other in heads)

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
        slot.whole = min(slot.whole, length)
        self.context.cut(slot.at, length)


def next_chunk(slot: Slot, coming: Sequence[int], room: int) -> int:
    """How many of a prompt's next tokens are read in a pass: up to a chunk's end, or none.

    Args:
        slot: where the prompt is read.
        coming: its tokens that are not read yet.
        room: tokens that the pass has room for; a whole chunk at first.
    """
    size = min(CHUNK - len(slot.tokens) % CHUNK, len(coming))
    return size if size <= room else 0


def add_chunk(slot: Slot, tokens: Sequence[int]) -> None:
    """A part of a prompt has been read."""
    if slot.whole == len(slot.tokens) and len(tokens) % CHUNK == 0:
        slot.whole += len(tokens)
    slot.tokens += tokens


def _whole_chunks(tokens: int) -> int:
    return tokens // CHUNK * CHUNK


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


def score(
    slots: Slots, slot: Slot, prompt: Sequence[int], targets: Sequence[Sequence[int]]
) -> list[float]:
    """The log-probability of each target, summed; natural logarithm.

    Args:
        slots: of the context.
        slot: which one; it holds a true beginning of the prompt, and all of it afterwards.
        prompt: the tokens before the targets.
        targets: each with a token at least.

    Raises:
        BackboneError: llama.cpp fails, or the model's scores are no numbers.
    """
    last = _read(slots, slot, prompt[len(slot.tokens) :], only_last=True)[-1]
    scores = [0.0] * len(targets)
    path: list[int] = []  # tokens behind the prompt in the slot
    logs = [last]  # log-probabilities behind the prompt and behind each token of the path
    for at in sorted(range(len(targets)), key=lambda i: list(targets[i])):
        target = targets[at]
        inner = list(target[:-1])
        same = next(
            (i for i, (a, b) in enumerate(zip(path, inner, strict=False)) if a != b),
            min(len(path), len(inner)),
        )
        slots.cut(slot, len(prompt) + same)
        logs = [*logs[: same + 1], *_read(slots, slot, inner[same:])]
        path = inner
        scores[at] = float(sum(log[token] for log, token in zip(logs, target, strict=True)))
    slots.cut(slot, len(prompt))
    return scores


def _read(slots: Slots, slot: Slot, tokens: Sequence[int], *, only_last: bool = False) -> list[Any]:
    """Add tokens to a slot; the log-probabilities behind each, or behind the last one."""
    found: list[Any] = []
    for begin in range(0, len(tokens), CHUNK):
        part, place = tokens[begin : begin + CHUNK], len(slot.tokens)
        last = len(tokens) - begin - 1
        entries = [
            (token, place + i, slot.at, not only_last or i == last) for i, token in enumerate(part)
        ]
        found += [_log_softmax(logits) for logits in slots.context.decode(entries)]
        if only_last:
            add_chunk(slot, part)
        else:
            slot.tokens += part
    return found


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    values = values - highest(values)
    return values - np.log(np.exp(values).sum())
