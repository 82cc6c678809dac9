"""Bearer tokens: each opens one profile to what its scopes say, and only its SHA-256 is stored.

The hashes are in the profile's vault.  A token has 256 random bits, so one fast hash is enough
(there is nothing to guess), and the comparison takes the same time wherever it fails.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pfi.errors import ConfigError, DataError, PfiError
from pfi.profile.home import TOKENS, Home

PREFIX = "pfi-"
Scope = Literal["answer", "memory", "admin"]
#: Each scope includes those before it: ``answer`` asks the models, ``memory`` is also shown the
#: records that answers rest on, ``admin`` also signs in to the console.
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: What a token is that says nothing of scopes, as those from before there were any: the least.
LEAST: tuple[Scope, ...] = ("answer",)
#: Days that an admin's token lasts where nothing else is said.
ADMIN_DAYS = 90
_MOST = 100
_LONGEST_LABEL = 100


def included(scopes: Collection[str]) -> frozenset[str]:
    """The scopes with all that they include; names that are none count as nothing."""
    highest = max((SCOPES.index(name) for name in SCOPES if name in scopes), default=-1)
    return frozenset(SCOPES[: highest + 1])


@dataclass(frozen=True)
class Token:
    """What is known of a token.

    Attributes:
        id: names it in lists; not secret.
        sha256: of the whole token, 64 hex digits.
        label: what it is for, in the user's words.
        created: when, ISO 8601.
        scopes: what it opens.
        expires: when it stops to open anything, ISO 8601; None for never.
        used: when it was last used, ISO 8601 and to the hour; None for never.
        parent: id of the token in whose session it was made; it ends with that one.
        profiles: names of all that it was made for, where it is more than one; each has an entry
            of its own, and opens nothing without.
    """

    id: str
    sha256: str
    label: str
    created: str
    scopes: tuple[str, ...] = LEAST
    expires: str | None = None
    used: str | None = None
    parent: str | None = None
    profiles: tuple[str, ...] = ()

    def opens(self, scope: Scope) -> bool:
        """Whether it has a scope."""
        return scope in included(self.scopes)

    def expired(self, now: datetime) -> bool:
        """Whether its time is over; a clock that was set back before its last use counts as that.

        A time that cannot be read is over.
        """
        if self.expires is None:
            return False
        try:
            end = datetime.fromisoformat(self.expires)
            latest = max(now, datetime.fromisoformat(self.used)) if self.used else now
            return latest >= end
        except (TypeError, ValueError):
            return True


@dataclass(frozen=True)
class Caller:
    """Who sends a request: the profile that its token opens, the token's id, and its scopes."""

    profile: str
    token: str
    scopes: frozenset[str] = field(default=frozenset(LEAST), compare=False)

    def may(self, scope: Scope) -> bool:
        """Whether the token has a scope."""
        return scope in self.scopes


def read_tokens(home: Home) -> list[Token]:
    """The tokens of a profile as they are stored, oldest first; entries that are none are left out.

    Raises:
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault:
        return _tokens(vault.setting(TOKENS))


def tokens_of(home: Home) -> list[Token]:
    """The tokens of a profile that have not expired, oldest first.

    Raises:
        StorageError: the vault cannot be used.
    """
    return alive(read_tokens(home), _now())


def new_token(
    home: Home,
    label: str = "",
    *,
    scopes: Sequence[str] = LEAST,
    expires: datetime | None = None,
    parent: str | None = None,
) -> tuple[Token, str]:
    """Make a token; its text is returned once and kept nowhere.

    Args:
        home: the profile that it opens.
        label: what it is for.
        scopes: what it opens.
        expires: when it ends; never if None.
        parent: id of the token in whose session it is made: it ends no later than that one, has
            no scope that the other lacks, and is no `admin`.

    Raises:
        ConfigError: a scope is none, the end is past, there are too many, or the parent may not.
        StorageError: the vault cannot be used.
    """
    token, text = _drawn(label, scopes, expires)
    return _stored(home, replace(token, parent=parent)), text


def new_shared_token(
    homes: Mapping[str, Home],
    label: str = "",
    *,
    scopes: Sequence[str] = LEAST,
    expires: datetime | None = None,
) -> tuple[Token, str]:
    """Make one token that opens several profiles; each vault has an entry of its own.

    Args:
        homes: the profiles by name.
        label: what it is for.
        scopes: what it opens, in each.
        expires: when it ends; never if None.

    Raises:
        ConfigError: as ``new_token``, or several profiles would have one administrator.
        StorageError: a vault cannot be used; then no profile has the token.
    """
    if len(homes) > 1 and "admin" in scopes:
        what = "a token for several profiles opens no console"
        raise ConfigError(what, where="scope", fix="make an admin token for each profile")
    token, text = _drawn(label, scopes, expires)
    if len(homes) > 1:
        token = replace(token, profiles=tuple(homes))
    done: list[Home] = []
    try:
        for home in homes.values():
            _stored(home, token)
            done.append(home)
    except PfiError:
        for home in done:
            revoke_token(home, token.id)
        raise
    return token, text


def _drawn(label: str, scopes: Sequence[str], expires: datetime | None) -> tuple[Token, str]:
    """A new token that no vault has yet, and its text."""
    now = _now()
    if not scopes or (unknown := [name for name in scopes if name not in SCOPES]):
        what = f"there is no scope {unknown[0]!r}" if scopes else "the token opens nothing"
        raise ConfigError(what, where="scope", fix=f"use {', '.join(SCOPES)}")
    if expires is not None and expires <= now:
        raise ConfigError("the token would have ended already", where="expires")
    text = PREFIX + secrets.token_urlsafe(32)
    token = Token(
        secrets.token_hex(4),
        _sha256(text),
        label[:_LONGEST_LABEL],
        now.isoformat(timespec="seconds"),
        tuple(name for name in SCOPES if name in scopes),
        expires.astimezone(UTC).isoformat(timespec="seconds") if expires else None,
    )
    return token, text


def _stored(home: Home, token: Token) -> Token:
    """Put a token into a vault; as it came, or bounded by its parent."""
    with home.open_vault() as vault, vault.change_setting(TOKENS) as setting:
        known = alive(_tokens(setting.value), _now())
        if len(known) >= _MOST:
            raise ConfigError(f"there are {len(known)} tokens", fix="revoke some of them")
        if token.parent is not None:
            parent = next((one for one in known if one.id == token.parent), None)
            token = _bounded(token, parent)
        setting.value = [asdict(one) for one in (*known, token)]
    return token


def _bounded(token: Token, parent: Token | None) -> Token:
    """A token that its parent may make.

    Raises:
        ConfigError: the parent is gone, or may not.
    """
    if parent is None or not parent.opens("admin"):
        raise ConfigError("only an admin token that still opens the profile makes others")
    if token.opens("admin"):
        what = "a token makes no admin tokens"
        raise ConfigError(what, fix="run `pfi tokens new --scope admin` on the machine itself")
    ends = [end for end in (token.expires, parent.expires) if end is not None]
    return replace(token, expires=min(ends, key=datetime.fromisoformat) if ends else None)


def revoke_token(home: Home, token: str) -> tuple[Token, ...]:
    """Forget a token by its id, and those that were made in its sessions.

    Returns:
        What was forgotten, the token itself first.

    Raises:
        ConfigError: there is no such token.
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault, vault.change_setting(TOKENS) as setting:
        known = _tokens(setting.value)
        named = next((one for one in known if one.id == token), None)
        if named is None:
            raise ConfigError(f"there is no token {token!r}", fix="`pfi tokens list` shows them")
        kept = _rooted([one for one in known if one != named])
        setting.value = [asdict(one) for one in kept]
    return (named, *(one for one in known if one != named and one not in kept))


def note_use(home: Home, token: str, now: datetime) -> None:
    """Note that a token was used; no more exactly than to the hour.

    Raises:
        StorageError: the vault cannot be written.
    """
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0).isoformat()
    with home.open_vault() as vault, vault.change_setting(TOKENS) as setting:
        setting.value = [
            asdict(replace(one, used=max(one.used or "", hour)) if one.id == token else one)
            for one in _tokens(setting.value)
        ] or None


def _tokens(stored: Any) -> list[Token]:
    """Tokens from what a vault holds.

    Raises:
        DataError: it makes no sense, and so opens nothing.
    """
    return [_token(entry) for entry in stored or [] if isinstance(entry, Mapping)]


def _token(entry: Mapping[str, Any]) -> Token:
    try:
        known = {name: entry[name] for name in Token.__dataclass_fields__ if name in entry}
        lists = {"scopes": known.get("scopes", LEAST), "profiles": known.get("profiles", ())}
        return Token(**{**known, **{name: tuple(value) for name, value in lists.items()}})
    except TypeError as error:
        raise DataError("the list of tokens is damaged", path="vault") from error


def alive(tokens: Sequence[Token], now: datetime) -> list[Token]:
    """The tokens that open something: not expired, and their parents neither."""
    return _rooted([one for one in tokens if not one.expired(now)])


def _rooted(tokens: Sequence[Token]) -> list[Token]:
    """The tokens whose parents are there, and theirs."""
    ids = {one.id for one in tokens}
    kept = [one for one in tokens if one.parent is None or one.parent in ids]
    return kept if len(kept) == len(tokens) else _rooted(kept)


def _now() -> datetime:
    return datetime.now(UTC)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def matches(token: Token, digest: str) -> bool:
    """Whether a token is the one with this SHA-256; takes the same time wherever they differ."""
    return hmac.compare_digest(str(token.sha256), digest)


def digest_of(text: str) -> str | None:
    """The SHA-256 of what may be a token; None where it is none, however long."""
    if not text.startswith(PREFIX) or len(text) > 200 or not text.isascii():
        return None
    return _sha256(text)
