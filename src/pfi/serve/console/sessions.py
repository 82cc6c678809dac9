"""Who is signed in: random ids in a cookie, each for one profile, kept in this process only.

A sign-in code is for one use within minutes; nothing of either is written to the disk.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

IDLE_SECONDS = 12 * 3600.0
#: However much it is used.
LONGEST_SECONDS = 7 * 24 * 3600.0
CODE_SECONDS = 600.0
_MOST = 1000


@dataclass
class Session:
    """One browser: whose profile it may see, which token or code let it in, and when it was used.

    Attributes:
        profile: its name.
        token: id of the token that it signed in with; "" for a code.
        begun: by the clock of ``Sessions``.
        used: the last time, by the same.
    """

    profile: str
    token: str
    begun: float
    used: float


class Sessions:
    """The sessions and sign-in codes of one process; any thread may ask.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._codes: dict[str, tuple[str, float]] = {}

    def new(self, profile: str, token: str = "") -> str:
        """Sign a browser in; returns the text of its cookie."""
        text = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._open) >= _MOST:  # the one that was not used for longest
                del self._open[min(self._open, key=lambda key: self._open[key].used)]
            now = self._clock()
            self._open[_digest(text)] = Session(profile, token, now, now)
        return text

    def find(self, text: str) -> Session | None:
        """The session of a cookie; None when there is none, or it was idle or open for too long."""
        key, now = _digest(text), self._clock()
        with self._lock:
            found = self._open.get(key)
            if (
                found is None
                or now - found.used > IDLE_SECONDS
                or now - found.begun > LONGEST_SECONDS
            ):
                self._open.pop(key, None)
                return None
            found.used = now
            return found

    def end(self, text: str) -> None:
        """Sign a browser out."""
        with self._lock:
            self._open.pop(_digest(text), None)

    def end_all(self, profile: str) -> None:
        """Sign out every browser of a profile."""
        with self._lock:
            self._open = {k: s for k, s in self._open.items() if s.profile != profile}

    def new_code(self, profile: str) -> str:
        """A code that signs one browser in, once, within ``CODE_SECONDS``."""
        text = secrets.token_urlsafe(24)
        with self._lock:
            now = self._clock()
            self._codes = {k: c for k, c in self._codes.items() if now <= c[1]}
            self._codes[_digest(text)] = profile, now + CODE_SECONDS
        return text

    def take_code(self, text: str) -> str | None:
        """The profile that a code opens; afterwards it opens nothing."""
        with self._lock:
            profile, until = self._codes.pop(_digest(text), ("", 0.0))
            return profile if profile and self._clock() <= until else None


def _digest(text: str) -> str:
    # Looked up by hash, so that the time of the look-up tells nothing of the text.
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
