"""Whose a token is, asked for every request: the tokens of all profiles as they are now.

They are read again as soon as a vault's files have changed, whoever changed them, so that what is
revoked opens nothing from then on; and what cannot be read opens nothing either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pfi.errors import PfiError
from pfi.profile.home import Home
from pfi.serve.auth import (
    Caller,
    Scope,
    Token,
    alive,
    digest_of,
    included,
    matches,
    note_use,
    read_tokens,
)

#: Tokens are read again after this time even where no file seems to have changed.
FRESH_SECONDS = 2.0
#: For so long a vault that could not be read is not tried again.
_PAUSE_SECONDS = 1.0
#: A use is noted again after this time.
_USED = timedelta(hours=1)
#: Inode, time and size of a file; None where there is none.
_Stamp = tuple[tuple[int, int, int] | None, ...]


class _Kept:
    """The tokens of one profile, as they were last read; any thread may ask."""

    def __init__(self, profile: str, home: Home, clock: Callable[[], float]) -> None:
        self.profile, self.home, self._clock = profile, home, clock
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._read = float("-inf")
        self._wrong: PfiError | None = None
        self.tokens: tuple[Token, ...] = ()

    def refresh(self) -> None:
        """Bring the tokens up to date.

        Raises:
            PfiError: the vault cannot be read; there are no tokens then.
        """
        with self._lock:
            now, stamp = self._clock(), self._stamp_now()
            if self._wrong is not None and now - self._read < _PAUSE_SECONDS:
                raise self._wrong
            if stamp == self._stamp and now - self._read <= FRESH_SECONDS:
                return
            try:
                tokens = tuple(read_tokens(self.home))
            except PfiError as error:
                self.tokens, self._wrong, self._read = (), error, self._clock()
                self._stamp = None
                raise
            self.tokens, self._wrong = tokens, None
            self._stamp, self._read = stamp, now  # of before: a change meanwhile is seen

    def _stamp_now(self) -> _Stamp:
        stamps: list[tuple[int, int, int] | None] = []
        for name in ("", "-wal"):
            try:
                stat = self.home.vault_file.with_name(self.home.vault_file.name + name).stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(stamps)


class Gatekeeper:
    """Tells whose a token is; any thread may ask.

    Args:
        homes: the profiles that are served, by name.
        clock: seconds that only grow.
        now: the time of day, for what expires.
    """

    def __init__(
        self,
        homes: Mapping[str, Home],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kept = {name: _Kept(name, home, clock) for name, home in homes.items()}
        self._clock_time, self._latest = now, now()
        self._noted: dict[tuple[str, str], datetime] = {}
        #: Threads that check, so that nothing else that waits keeps a check waiting.
        self.pool = ThreadPoolExecutor(4, "pfi-check")
        self._notes = ThreadPoolExecutor(1, "pfi-note")

    def caller(self, text: str) -> Caller | None:
        """The caller that a token stands for, in its first profile; None when nobody's.

        Raises:
            PfiError: see ``callers``.
        """
        return next(iter(self.callers(text)), None)

    def callers(self, text: str) -> tuple[Caller, ...]:
        """Whom a token stands for in each profile that it opens; nobody where it opens none.

        Raises:
            PfiError: it is none of the tokens that can be read, and some cannot be.
        """
        digest = digest_of(text)
        if digest is None:
            return ()
        # A token that is known says which profiles have to be looked at again.
        names = set[str]()
        for kept, token in self._find(digest):
            names |= {kept.profile, *token.profiles}
        wrong = None
        for kept in [one for name, one in self._kept.items() if not names or name in names]:
            try:
                kept.refresh()
            except PfiError as error:
                wrong = error
        known = self._find(digest)
        if not known and wrong is not None:
            raise wrong
        now = self._now()
        opened = [(kept, token) for kept, token in known if token in alive(kept.tokens, now)]
        for kept, token in opened:
            self._note(kept, token)
        return tuple(
            Caller(kept.profile, token.id, included(token.scopes)) for kept, token in opened
        )

    def still(self, profile: str, token: str, scope: Scope) -> bool:
        """Whether a token, by its id, opens a profile now.

        Raises:
            PfiError: the vault cannot be read.
        """
        return any(one.id == token and one.opens(scope) for one in self._alive(profile))

    def has_tokens(self, profile: str) -> bool:
        """Whether programs can reach a profile at all.

        Raises:
            PfiError: the vault cannot be read.
        """
        return bool(self._alive(profile))

    def close(self) -> None:
        """Check no more; what is to be noted is noted."""
        self._notes.shutdown(wait=True)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _now(self) -> datetime:
        """The time of day; it never goes back, so that a clock set back prolongs nothing."""
        self._latest = max(self._latest, self._clock_time())
        return self._latest

    def _alive(self, profile: str) -> list[Token]:
        kept = self._kept[profile]
        kept.refresh()
        return alive(kept.tokens, self._now())

    def _find(self, digest: str) -> list[tuple[_Kept, Token]]:
        """The token in each profile that has it."""
        # All of them are looked at, so that time tells nothing.
        return [
            (kept, token)
            for kept in self._kept.values()
            for token in kept.tokens
            if matches(token, digest)
        ]

    def _note(self, kept: _Kept, token: Token) -> None:
        """Have it written that a token is used, at most once in a while."""
        now = self._now()
        key = kept.profile, token.id
        if (before := self._noted.get(key)) is not None and now - before < _USED:
            return
        self._noted[key] = now

        def write() -> None:
            with suppress(PfiError):  # a full disk is no reason to refuse an answer
                note_use(kept.home, token.id, now)

        with suppress(RuntimeError):  # closed
            self._notes.submit(write)
