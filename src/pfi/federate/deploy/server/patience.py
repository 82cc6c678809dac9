"""How long replies are waited for where nobody says: by how long they usually take.

A device that hangs while its link lives would hold every round for as long as is waited at most.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from statistics import median

LONGEST = 3600.0  # seconds, before anything is known
_SHORTEST = 60.0  # seconds: a device may be busy, or its network away for a moment
_TIMES = 4.0  # a device may be so many times slower than most
_ENOUGH = 0.5  # share of those asked whose replies say how long this time takes
_REMEMBERED = 20  # askings of a kind


class Patience:
    """Remembers how long replies took, by kind of message.

    Args:
        longest: seconds that are waited while nothing is known, and at most.
        shortest: seconds that are waited at least.
        clock: seconds.
    """

    def __init__(
        self,
        longest: float = LONGEST,
        shortest: float = _SHORTEST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest, self.shortest, self.clock = longest, min(shortest, longest), clock
        self._took: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def start(self, kind: str, asked: int, seconds: float | None = None) -> Waiting:
        """Begin to wait for replies of that kind; ``seconds``, where given, is the limit."""
        return Waiting(self, kind, asked, seconds)

    def usual(self, kind: str) -> float | None:
        """Seconds within which half of the replies came, in the median of the last askings."""
        took = self._took.get(kind)
        return median(took) if took else None

    def remember(self, kind: str, seconds: float) -> None:
        """Note within how many seconds half of the replies came."""
        self._took[kind].append(seconds)


class Waiting:
    """One asking.

    Attributes:
        replied: how many have.
    """

    def __init__(self, patience: Patience, kind: str, asked: int, seconds: float | None) -> None:
        self._patience, self._kind, self._asked, self._fixed = patience, kind, asked, seconds
        self._start = patience.clock()
        self._usual = patience.usual(kind)  # before this one
        self._half: float | None = None
        self.replied = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the clients were asked."""
        return self._patience.clock() - self._start

    @property
    def limit(self) -> float:
        """Seconds since then after which a reply is late.

        The larger of what is usual and of what half of the replies took this time: a few that are
        fast, because they have next to nothing to do, make the others no more late.
        """
        if self._fixed is not None:
            return self._fixed
        known = [seconds for seconds in (self._usual, self._half) if seconds is not None]
        if not known:
            return self._patience.longest
        wanted = _TIMES * max(known)
        return min(max(wanted, self._patience.shortest), self._patience.longest)

    @property
    def over(self) -> bool:
        """Whether that time is past."""
        return self.elapsed > self.limit

    def reply(self) -> None:
        """One has replied."""
        self.replied += 1
        if self._half is None and self.replied >= _ENOUGH * self._asked:
            self._half = self.elapsed
            self._patience.remember(self._kind, self._half)
