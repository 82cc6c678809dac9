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


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that left a device.

    Attributes:
        n: number of the entry, from 1.
        time: when, ISO 8601 in UTC.
        device: whose device it left.
        to: the host that it was sent to.
        kind: what it is, e.g. ``teacher call``.
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
