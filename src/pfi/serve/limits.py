"""How much one token may ask for: requests and tokens a minute, and requests at a time.

A bucket holds a minute's worth and fills up steadily, so a quiet minute allows a burst.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError


class Bucket:
    """What is left of a minute's allowance.

    Args:
        per_minute: how much a minute allows.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()

    @property
    def level(self) -> float:
        """What may be taken now; negative after more was taken."""
        now = self._clock()
        gained = (now - self._at) * self.per_minute / 60
        self._level, self._at = min(self._level + gained, float(self.per_minute)), now
        return self._level

    def take(self, amount: float) -> None:
        """Take some, even more than there is."""
        self._level = self.level - amount

    def wait(self, amount: float) -> float:
        """Seconds until that much is there; 0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class Limits:
    """The allowances of all tokens; used by the event loop's thread alone.

    Args:
        config: the limits.
        clock: seconds that only grow.
    """

    def __init__(self, config: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._requests: dict[str, Bucket] = defaultdict(
            lambda: Bucket(config.requests_per_minute, clock)
        )
        self._tokens: dict[str, Bucket] = defaultdict(
            lambda: Bucket(config.tokens_per_minute, clock)
        )
        self._running: Counter[str] = Counter()

    def count(self, token: str) -> None:
        """Count a request.

        Raises:
            ApiError: 429, the token has none left; it says how long to wait.
        """
        self._wait("requests", self._requests[token], 1.0)
        self._wait("tokens", self._tokens[token], 1.0)
        self._requests[token].take(1)

    def _wait(self, what: str, bucket: Bucket, amount: float) -> None:
        if seconds := bucket.wait(amount):
            raise ApiError(
                429,
                f"Rate limit reached: {bucket.per_minute} {what} per minute.",
                code="rate_limit_exceeded",
                headers=_retry(seconds),
            )

    @contextmanager
    def running(self, token: str) -> Iterator[None]:
        """Hold one of the places for requests that are worked on.

        Raises:
            ApiError: 429, the token holds its share; 503, all are taken.
        """
        if self._running[token] >= self._config.running_per_token:
            raise ApiError(
                429,
                f"{self._config.running_per_token} requests of this token are being answered.",
                code="rate_limit_exceeded",
                headers=_retry(1),
            )
        if self._running.total() >= self._config.running:
            raise ApiError(503, "The server is busy.", code="server_overloaded", headers=_retry(1))
        self._running[token] += 1
        try:
            yield
        finally:
            self._running[token] -= 1

    def spend(self, token: str, tokens: int) -> None:
        """Take tokens that were read or written."""
        self._tokens[token].take(tokens)

    def headers(self, token: str) -> dict[str, str]:
        """What is left, in the words of the OpenAI API."""
        return {
            f"x-ratelimit-{name}-{kind}": str(value)
            for kind, buckets in (("requests", self._requests), ("tokens", self._tokens))
            for name, value in (
                ("limit", buckets[token].per_minute),
                ("remaining", max(0, math.floor(buckets[token].level))),
            )
        }


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
