"""Entries of the ledger: what a line holds, and the hashes that say it is as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

FIRST = "0" * 64  # what the first entry has for `previous`
CHANGED = "was changed after it was written"

#: Kinds of what a device sends in a federation.  A stage of a secure sum is ``secure keys``,
#: ``secure shares``, ``secure survivors`` or ``secure unmask``; the one that carries the masked
#: update is an ``update``.
UPDATE, MEASURE, READY, FINISH, SECURE = "update", "measure", "ready", "finish", "secure"
#: Earlier versions noted all but measures as ``update``.  What a device sends when it is ready for
#: a secure sum, and when the last round is over, is the same bytes each time; hence by hash:
_OLD_READY = "e0847e6ef6b19932924b59aee72c6ba56eca5661e3fdae193c0f9a215156981c"
_OLD_FINISH = "44429f1ea41169443e092b44a03e7841a436d4608034ccc0e17d21df5e378f58"
#: Where the masked update is among what follows a ready in an old ledger.
_OLD_MASKED = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that left a device.

    Attributes:
        n: number of the entry, from 1.
        time: when, ISO 8601 in UTC.
        device: whose device it left.
        to: the host that it was sent to.
        kind: what it is, e.g. ``teacher`` or ``update``.
        policy: the protection it was under, e.g. ``redact``.
        bytes: size of the payload.
        sha256: of the payload (text as UTF-8).
        payload: the text that left, whole; None for binary payloads, for erased text, and for
            text that is sealed where its key is not known.
        previous: `hash` of the entry before; zeros for the first.
        hash: sha256 of the canonical JSON of all the other values, with `true` in the place of
            text, which `sha256` stands for.
        shows: fingerprints of the records that the payload tells of; None if that is not known.
        cipher: the sealed text as it is in the file, base64; no part of the hash, as the text.
    """

    n: int
    time: str
    device: str
    to: str
    kind: str
    policy: str
    bytes: int
    sha256: str
    payload: str | None
    previous: str
    hash: str
    shows: tuple[str, ...] | None = None
    cipher: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, with the text where it is known."""
        values = asdict(self)
        del values["cipher"]
        if self.shows is None:  # as in entries from before there was such a value
            del values["shows"]
        return values

    @property
    def erased(self) -> bool:
        """Whether its text was erased."""
        return self.payload is None and self.cipher is None and self.hash != hash_of(self)

    @property
    def intact(self) -> bool:
        """Whether `hash` says that all but the text is as it was written."""
        return self.hash == hash_of(self, text=True)

    @property
    def old(self) -> bool:
        """Whether `hash` is of all values, the text too, as earlier versions took it."""
        return self.payload is not None and self.hash == _hash(self.to_dict())


class Updates:
    """Tells which entries of a ledger carried an update, given all of them in their order.

    In ledgers of earlier versions all messages of a secure round are of the kind ``update``: being
    ready, keys, shares, the masked update and two more.  There the third after each being ready
    counts; a round that ended before it counts for nothing.
    """

    def __init__(self) -> None:
        #: Messages since the device was ready, by host and policy, in rounds of earlier versions.
        self._after_ready: dict[tuple[str, str], int] = {}

    def carried(self, entry: Entry) -> bool:
        """Whether this one did; the next one that is asked for has to be a later one."""
        where = entry.to, entry.policy
        if entry.kind == READY:
            self._after_ready.pop(where, None)  # from here on kinds say what messages are
        if entry.kind != UPDATE or entry.sha256 == _OLD_FINISH:
            return False
        if entry.sha256 == _OLD_READY:
            self._after_ready[where] = 0
            return False
        if where not in self._after_ready:
            return True
        self._after_ready[where] += 1
        return self._after_ready[where] == _OLD_MASKED


def fingerprint(id_: str) -> str:
    """What stands for a record's id in files that outlive the record."""
    return hashlib.sha256(id_.encode()).hexdigest()[:16]


def canonical(value: Mapping[str, Any]) -> str:
    """The one spelling of a JSON object that hashes are taken of: ASCII, sorted, compact.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def next_entry(about: Mapping[str, Any], last: Entry | None) -> Entry:
    """The entry after `last`, with its hash; `about` has the other values."""
    entry = Entry(
        **about,
        n=last.n + 1 if last else 1,
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        previous=last.hash if last else FIRST,
        hash="",
    )
    return replace(entry, hash=hash_of(entry, text=entry.payload is not None))


def line_of(entry: Entry) -> bytes:
    """The entry as a line of the file: its text sealed, where it is."""
    values = entry.to_dict()
    if entry.cipher is not None:
        values["payload"] = {"sealed": entry.cipher}
    return canonical(values).encode() + b"\n"


def hash_of(entry: Entry, *, text: bool = False) -> str:
    """The `hash` of an entry whose payload was text, or not."""
    return _hash({**entry.to_dict(), "payload": True if text else None})


def _hash(values: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in values.items() if name != "hash"}
    return digest(canonical(rest).encode())


def digest(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def fault(entry: Entry, line: bytes, *, blank: bool = False) -> str | None:
    """What is wrong with an entry and its line by themselves.

    Args:
        blank: its text may be erased or sealed, which another entry has to tell of.
    """
    if line_of(entry) != line + b"\n":
        return CHANGED
    if entry.payload is None and entry.cipher is not None:
        return None if entry.intact or blank else CHANGED
    if entry.payload is None:
        return CHANGED if entry.erased and not blank else None
    data = utf8(entry.payload)
    same = (len(data), digest(data)) == (entry.bytes, entry.sha256)
    return None if same and (entry.intact or entry.old) else CHANGED


def utf8(text: str) -> bytes:
    """The bytes of a text; a lone surrogate must not stop the ledger."""
    return text.encode("utf-8", "surrogatepass")
