"""What was erased, as keyed fingerprints, so that an import does not bring it back unasked.

A fingerprint tells nothing without its key, and both lie in the vault, which is encrypted: they
move with an archive and go with the profile.  It is of a record's texts, whatever its id, source
and task are, with its time; of longer texts also without it, as files give other times when they
are copied, and short ones ("Thank you!") are often written again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import unicodedata
from collections.abc import Collection, Iterable
from datetime import UTC

from pfi.profile.vault.vault import Vault
from pfi.records import Record

#: The vault's setting that has the key and the fingerprints.
SETTING = "erased fingerprints"
_BYTES = 12  # of a fingerprint: a million of them and as many records share none by chance
_LONG = 40  # characters of texts that are hardly written twice


class ErasedRecords:
    """The fingerprints of a vault's erased records.

    Args:
        key: of the fingerprints.
        prints: those that are known.
    """

    def __init__(self, key: bytes, prints: Iterable[bytes] = ()) -> None:
        self._key, self._prints = key, set(prints)

    @classmethod
    def of(cls, vault: Vault) -> ErasedRecords:
        """What a vault knows; nothing where nothing was erased."""
        return cls._read(vault.setting(SETTING))

    @classmethod
    def _read(cls, value: object) -> ErasedRecords:
        if not isinstance(value, dict):
            return cls(secrets.token_bytes(32))
        data = base64.b64decode(value["prints"])
        prints = (data[at : at + _BYTES] for at in range(0, len(data), _BYTES))
        return cls(bytes.fromhex(value["key"]), prints)

    def __len__(self) -> int:
        return len(self._prints)

    def has(self, record: Record) -> bool:
        """Whether a record with these texts was erased."""
        if not self._prints:
            return False
        texts, dated = self._of(record)
        if dated in self._prints:
            return True
        return (record.time is None or _length(record) >= _LONG) and texts in self._prints

    def _of(self, record: Record) -> tuple[bytes, bytes]:
        """The fingerprints of a record's texts, and of them with its time."""
        words = [_plain(text) for text in (*record.input.values(), record.output)]
        texts = json.dumps(sorted(words)).encode()
        time = record.time.astimezone(UTC).isoformat() if record.time else ""
        return self._print(texts), self._print(texts + time.encode())

    def _print(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, hashlib.sha256)[:_BYTES]

    def add(self, records: Iterable[Record]) -> None:
        """Remember records that are to be erased."""
        self._prints.update(print_ for record in records for print_ in self._of(record))

    def discard(self, records: Iterable[Record]) -> None:
        """Forget records that were taken in again."""
        self._prints.difference_update(print_ for record in records for print_ in self._of(record))

    def value(self) -> dict[str, str] | None:
        """For the vault's setting."""
        if not self._prints:
            return None
        data = base64.b64encode(b"".join(sorted(self._prints))).decode()
        return {"key": self._key.hex(), "prints": data}


def remember(vault: Vault, ids: Collection[str]) -> None:
    """Note what is about to be erased; nothing is noted twice, so it may be done again.

    What was made from a person's records is no import's.
    """
    records = [record for record in vault.find(ids=set(ids)) if record.origin == "real"]
    if not records:
        return
    with vault.change_setting(SETTING) as setting:
        erased = ErasedRecords._read(setting.value)
        erased.add(records)
        setting.value = erased.value()


def allow_again(vault: Vault, records: Iterable[Record]) -> None:
    """Forget that these were erased: their owner has taken them in again."""
    with vault.change_setting(SETTING) as setting:
        erased = ErasedRecords._read(setting.value)
        erased.discard(records)
        setting.value = erased.value()


def forget_all(vault: Vault) -> None:
    """Forget what was erased, as where everything is."""
    vault.set_setting(SETTING, None)


def _plain(text: str) -> str:
    """A text as it is compared: spaces and spellings of characters do not matter."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _length(record: Record) -> int:
    return sum(map(len, (*record.input.values(), record.output)))
