"""Bearer tokens: each opens the models of one profile, and only its SHA-256 is stored.

The hashes are in the profile's vault.  A token has 256 random bits, so one fast hash is enough
(there is nothing to guess), and the comparison takes the same time wherever it fails.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pfi.errors import ConfigError, StorageError
from pfi.profile.home import TOKENS, Home

PREFIX = "pfi-"
#: A revoked token opens nothing after this many seconds.
FRESH_SECONDS = 2.0
#: Longer texts than any token are not even hashed.
_LONGEST = 200
_MOST = 100


@dataclass(frozen=True)
class Token:
    """What is known of a token.

    Attributes:
        id: names it in lists; not secret.
        sha256: of the whole token, 64 hex digits.
        label: what it is for, in the user's words.
        created: when, ISO 8601.
    """

    id: str
    sha256: str
    label: str
    created: str


@dataclass(frozen=True)
class Caller:
    """Who sends a request: the profile that its token opens, and the token's id."""

    profile: str
    token: str


def tokens_of(home: Home) -> list[Token]:
    """The tokens of a profile, oldest first.

    Raises:
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault:
        return [Token(**entry) for entry in vault.setting(TOKENS) or []]


def new_token(home: Home, label: str = "") -> tuple[Token, str]:
    """Make a token; its text is returned once and kept nowhere.

    Raises:
        ConfigError: there are too many.
        StorageError: the vault cannot be used.
    """
    text = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    token = Token(secrets.token_hex(4), _sha256(text), label[:100], created)
    known = tokens_of(home)
    if len(known) >= _MOST:
        raise ConfigError(f"there are {len(known)} tokens", fix="revoke some of them")
    _write(home, [*known, token])
    return token, text


def revoke_token(home: Home, token: str) -> Token:
    """Forget a token by its id; a running server does so within seconds.

    Raises:
        ConfigError: there is no such token.
        StorageError: the vault cannot be used.
    """
    known = tokens_of(home)
    found = next((entry for entry in known if entry.id == token), None)
    if found is None:
        raise ConfigError(f"there is no token {token!r}", fix="`pfi tokens list` shows them")
    _write(home, [entry for entry in known if entry != found])
    return found


def _write(home: Home, tokens: list[Token]) -> None:
    with home.open_vault() as vault:
        vault.set_setting(TOKENS, [asdict(token) for token in tokens])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Gatekeeper:
    """Tells whose a token is; any thread may ask.

    Args:
        homes: the profiles that are served, by name.
        clock: seconds that only grow.
    """

    def __init__(
        self, homes: Mapping[str, Home], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._homes, self._clock = homes, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, list[Token]]] = {}
        self._searched = float("-inf")

    def caller(self, text: str) -> Caller | None:
        """The caller that a token stands for; None when nobody's."""
        if not text.startswith(PREFIX) or len(text) > _LONGEST or not text.isascii():
            return None
        digest = _sha256(text)
        with self._lock:
            now = self._clock()
            found = self._find(digest)
            if found is not None:
                if now - self._known[found.profile][0] > FRESH_SECONDS:
                    self._read(found.profile, now)
                    found = self._find(digest)  # it may be revoked
            elif now - self._searched > FRESH_SECONDS / 2:  # it may be new
                self._searched = now
                for profile in self._homes:
                    self._read(profile, now)
                found = self._find(digest)
        return found

    def has_tokens(self, profile: str) -> bool:
        """Whether a profile can be reached at all."""
        with self._lock:
            self._read(profile, self._clock())
            return bool(self._known[profile][1])

    def _find(self, digest: str) -> Caller | None:
        found = None
        for profile, (_, tokens) in self._known.items():
            for token in tokens:  # all of them, so that time tells nothing
                if hmac.compare_digest(token.sha256, digest):
                    found = Caller(profile, token.id)
        return found

    def _read(self, profile: str, now: float) -> None:
        try:
            tokens = tokens_of(self._homes[profile])
        except StorageError:
            tokens = []  # what cannot be checked opens nothing
        self._known[profile] = now, tokens
