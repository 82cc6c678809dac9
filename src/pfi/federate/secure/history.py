"""What a device remembers of the secure sums that it was in.

Two sums of the same updates, over sets that differ in one client, give that client's update away.
So a device is in one sum for each broadcast, and what it sends again, under whatever broadcast, it
sends only in the same set or in one that differs by many.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pfi.federate.remembered import Remembered
from pfi.federate.secure import checks

#: Sums that are remembered, of each federation.
_KEPT = 64
#: Numbers in a sketch of an update.
_SKETCH = 32
#: Updates whose directions are no further apart are the same but for little.  Two that are further
#: apart hide, in a difference of sums, one update under what the others changed by.
_ALIKE = 0.1
_DAY = 24 * 3600 * 1000  # milliseconds
_RECENT = 10 * 60 * 1000


class Sum(BaseModel):
    """A sum that a device sent its masked update for.

    Attributes:
        broadcast: digest of what it was sent to begin with.
        cohort: who was asked.
        left: who was in the sum, once the device has signed that.
        sketch: of its update's direction; empty for an update of zeros.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    broadcast: str
    cohort: list[str]
    left: list[str] | None = None
    sketch: list[float] = []


class _Past(BaseModel):
    """Of one federation: the last round that was joined, and the last sums."""

    model_config = ConfigDict(extra="forbid", strict=True)

    last: int = -1
    key: int = Field(default_factory=lambda: secrets.randbits(63))
    sums: list[Sum] = []

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        """They had the number of the last round alone."""
        return {"last": value} if type(value) is int else value


class Rounds:
    """The rounds that a device joined and the sums that it was in, by federation.

    Were a round's number used twice, also after a restart, keys and shares of the first could be
    replayed in the second.

    Args:
        path: a JSON file; None keeps them in memory only, for simulations.
        clock: milliseconds since 1970; rounds are numbered by the server's.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = lambda: time.time() * 1000
    ) -> None:
        self._clock = clock
        # Damaged, it is not taken for empty: an old round could be replayed.
        fix = "write the highest round of each federation into it"
        self._past = Remembered(_Past, path, what="the list of joined rounds", fix=fix)

    def join(self, federation: str, round: int, broadcast: str, cohort: Sequence[str]) -> None:
        """Join a round, written down before anything is sent.

        Raises:
            FederationError: the round is not newer than the last one joined, or numbered a day
                ahead; the broadcast was summed with another cohort; or the file is damaged.
        """

        def joined(past: _Past) -> None:
            latest = self._clock() + _DAY
            # Noted when a clock was wrong, by an earlier pfi: it would shut all rounds out.
            far = past.last > latest
            checks.fresh(round, int(self._clock()) - _RECENT if far else past.last)
            checks.not_ahead(round, latest)
            for earlier in past.sums:
                if earlier.broadcast == broadcast:
                    checks.same_cohort(sorted(cohort) == earlier.cohort)
            past.last = round

        self._past.change(federation, joined)

    def direction(self, federation: str, vector: NDArray[np.floating[Any]]) -> list[float]:
        """A sketch of an update, ``(length,)``, that is compared with those of other rounds."""
        keys: list[int] = []
        self._past.change(federation, lambda past: keys.append(past.key))
        return sketch(vector, keys[0])

    def send(
        self,
        federation: str,
        broadcast: str,
        cohort: Sequence[str],
        direction: Sequence[float],
        smallest: int,
    ) -> None:
        """Note that the masked update is about to be sent.

        Args:
            federation: its name.
            broadcast: digest of what the device was sent.
            cohort: who was asked.
            direction: of the update, before it was rounded.
            smallest: fewest clients by which two sets of almost the same update have to differ.

        Raises:
            FederationError: it is what was sent before, and the sets differ by too few.
        """

        def noted(past: _Past) -> None:
            for earlier in past.sums:
                if alike(direction, earlier.sketch):
                    _check_apart(cohort, earlier.cohort, smallest)
            if not any(earlier.broadcast == broadcast for earlier in past.sums):
                entry = Sum(broadcast=broadcast, cohort=sorted(cohort), sketch=list(direction))
                past.sums = [*past.sums, entry][-_KEPT:]

        self._past.change(federation, noted)

    def sign(self, federation: str, broadcast: str, left: Sequence[str], smallest: int) -> None:
        """Note who is in the sum, before the device signs that.

        Raises:
            FederationError: it signed another set for this broadcast, or, for almost the same
                update, one that differs by too few.
        """

        def signed(past: _Past) -> None:
            entry = next(earlier for earlier in past.sums if earlier.broadcast == broadcast)
            checks.same_survivors(entry.left is None or sorted(left) == entry.left)
            for earlier in past.sums:
                if earlier is not entry and alike(entry.sketch, earlier.sketch):
                    _check_apart(left, earlier.left or earlier.cohort, smallest)
            entry.left = sorted(left)

        self._past.change(federation, signed)


def _check_apart(now: Sequence[str], before: Sequence[str], smallest: int) -> None:
    checks.sets_apart(len(set(now) ^ set(before)), smallest)


def sketch(vector: NDArray[np.floating[Any]], key: int) -> list[float]:
    """A few numbers that keep the angles between updates: sums of random signs (a count sketch).

    Args:
        vector: ``(length,)``.
        key: the device's own, so that no server can aim between its numbers.

    Returns:
        ``_SKETCH`` numbers of length 1; none for a vector of zeros.
    """
    rng = np.random.default_rng(key)
    total, block = np.zeros(_SKETCH), _SKETCH << 12
    for start in range(0, vector.size, block):
        part = np.zeros(-(-min(block, vector.size - start) // _SKETCH) * _SKETCH)
        values = vector[start : start + block]
        signs = rng.integers(0, 2, values.size, np.int8) * 2 - 1
        part[: values.size] = values.astype(np.float64) * signs
        total += part.reshape(-1, _SKETCH).sum(axis=0)
    norm = float(np.linalg.norm(total))
    return (total / norm).tolist() if norm > 0 else []


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of updates that point the same way but for little."""
    if len(one) != len(other) or not one:
        return False
    return float(np.linalg.norm(np.subtract(one, other))) < _ALIKE
