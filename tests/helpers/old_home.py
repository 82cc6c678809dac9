"""A home as a pfi from before encryption made it: plain files, and no keys."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pfi._util.sqlite import sqlite3
from pfi.augment.cache import Answer, TeacherStore
from pfi.augment.teachers.teacher import Usage
from pfi.memory.store import MemoryStore
from pfi.privacy.ledger.entries import Entry, canonical, digest, line_of
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.adapters.store import AdapterInfo, AdapterStore
from pfi.profile.vault.vault import Vault
from pfi.records import History, Record

SECRET = "quxblorft"  # in every text
ABOUT: dict[str, Any] = {"device": "old", "to": "host", "kind": "call", "policy": "none"}


class Weights:
    """An adapter of a few bytes."""

    def to_bytes(self) -> dict[str, bytes]:
        return {"adapter_config.json": b"{}", "adapter_model.safetensors": SECRET.encode()}


def record(n: int, **changes: Any) -> Record:
    text = f"the {SECRET}ing of the harbour, number {n}"
    one = Record(f"r{n}", "LaMP_4", {"text": text}, f"A {SECRET} day", datetime.now(UTC))
    return replace(one, **changes)


def make_old_home(root: Path, *, records: int = 30, version: int = 4) -> Path:
    """A home `old` with records, teachers' answers, a memory, a ledger and adapters.

    Args:
        root: the folder of all homes.
        records: how many.
        version: of the vault's tables.
    """
    home = root / "old"
    home.mkdir(parents=True)
    with Vault(home / "vault.db") as vault:
        vault.add(record(n) for n in range(records))
    with sqlite3.connect(home / "vault.db") as db:
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%excluded%'"
        for (name,) in db.execute(query).fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for table in ("excluded", "settings"):
            db.execute(f"DROP TABLE {table}")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with TeacherStore(home / "teacher.db") as store:
        store.pay([Answer("k", 0, f"a {SECRET} answer", "", Usage(3, 4, 0.5))])
    with MemoryStore(home / "memory" / "memory.db") as memory:
        memory.sync({"LaMP_4": History("me", [record(n) for n in range(records)])})
    ledger = Ledger(home / "ledger.jsonl")
    for n in range(3):
        ledger.append(**ABOUT, payload=f"{SECRET} {n} \ud800", shows=[f"r{n}"])
    ledger.append(**ABOUT, payload=b"\x00\x01")
    for kind in ("personal", "shared"):
        adapters = AdapterStore(home / "adapters" / kind)
        adapters.add(Weights(), AdapterInfo(task="LaMP_4", backbone="tiny"))
        adapters.use("0001")
    (home / "config.yaml").write_text(f"backbone: tiny\nembedder: none\nnames: [{SECRET} Lopes]\n")
    return home


def add_oldest_entry(path: Path, payload: str) -> None:
    """Append an entry as the first version of the ledger did: its hash covers the text too."""
    *_, last = Ledger(path).entries()
    data = payload.encode()
    entry = Entry(
        **ABOUT,
        n=last.n + 1,
        time="2024-01-01T00:00:00.000000+00:00",
        bytes=len(data),
        sha256=digest(data),
        payload=payload,
        previous=last.hash,
        hash="",
    )
    values = {name: value for name, value in entry.to_dict().items() if name != "hash"}
    entry = replace(entry, hash=digest(canonical(values).encode()))
    assert entry.old and not entry.intact and json.loads(line_of(entry))["payload"] == payload
    with path.open("ab") as file:
        file.write(line_of(entry))
