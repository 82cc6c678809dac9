"""The vault's tables: their making, records as rows and back, and records kept out of use.

What makes a vault of each older version one of the next is here too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import NamedTuple

from pfi._util.sqlite import sqlite3, transaction
from pfi.profile.vault.feedback import FEEDBACK_SCHEMA
from pfi.records import Origin, Provenance, Record

SCHEMA_VERSION = 6

#: A value that every change to the records replaces by one never used before.
_MARKS = (
    "CREATE TABLE marks (mark TEXT NOT NULL) STRICT",
    "INSERT INTO marks VALUES (hex(randomblob(16)))",
    *(
        f"""CREATE TRIGGER mark_{change}_{table} AFTER {change} ON {table}
            BEGIN UPDATE marks SET mark = hex(randomblob(16)); END"""
        for table in ("records", "feedback")  # a history leaves out doubtful feedback
        for change in ("INSERT", "UPDATE", "DELETE")
    ),
)
#: By name, as JSON: what is private and no record.
_SETTINGS = ("CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",)
#: No more than the ids of records in the vault; the memory notes a change by the vault's mark.
EXCLUDED_SCHEMA = (
    "CREATE TABLE excluded (record TEXT PRIMARY KEY) STRICT",
    """CREATE TRIGGER excluded_erased AFTER DELETE ON records
       BEGIN DELETE FROM excluded WHERE record = OLD.id; END""",
    *(
        f"""CREATE TRIGGER mark_{change}_excluded AFTER {change} ON excluded
            BEGIN UPDATE marks SET mark = hex(randomblob(16)); END"""
        for change in ("INSERT", "DELETE")
    ),
)
#: Of a row of `records`: it may be used.
NOT_EXCLUDED = "NOT EXISTS (SELECT 1 FROM excluded WHERE excluded.record = records.id)"
SCHEMA = (
    """CREATE TABLE records (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        hash TEXT NOT NULL UNIQUE,
        task TEXT NOT NULL,
        origin TEXT NOT NULL,
        time TEXT,
        added TEXT NOT NULL,
        source TEXT NOT NULL,
        input TEXT NOT NULL,
        output TEXT NOT NULL,
        made TEXT
    ) STRICT""",
    "CREATE INDEX records_by_task ON records (task)",
    *FEEDBACK_SCHEMA,
    *_MARKS,
    *_SETTINGS,
    *EXCLUDED_SCHEMA,
)
#: What makes a vault of each older version one of the next version.
MIGRATIONS = {
    1: ("ALTER TABLE records ADD COLUMN made TEXT",),
    2: FEEDBACK_SCHEMA,
    3: _MARKS,
    4: _SETTINGS,
    5: EXCLUDED_SCHEMA,
}


COLUMNS = "id, task, input, output, time, origin, source, added, made"


def row_of(record: Record) -> dict[str, str | None]:
    """A record as a row, by column; it counts as added now."""
    fields = json.dumps(dict(record.input), ensure_ascii=False)
    return {
        "id": record.id,
        "hash": record.content_hash,
        "task": record.task,
        "origin": record.origin,
        "time": record.time.astimezone(UTC).isoformat() if record.time else None,
        "added": datetime.now(UTC).isoformat(),
        "source": record.source,
        "input": fields,
        "output": record.output,
        "made": json.dumps(record.made.to_dict(), ensure_ascii=False) if record.made else None,
    }


def record_of(row: Sequence[str | None], *, fill_time: bool) -> Record:
    """The record of a row of `COLUMNS`.

    Args:
        row: the values.
        fill_time: let an undated record have the time at which it was added.
    """
    id_, task, fields, output, time, origin, source, added, made = row
    when = time_of(time or added if fill_time else time)
    values = (str(id_), str(task), json.loads(str(fields)), str(output), when)
    kind: Origin = "synthetic" if origin == "synthetic" else "real"
    provenance = Provenance.from_dict(json.loads(made)) if made else None
    return Record(*values, kind, str(source), provenance)


def time_of(text: str | None) -> datetime | None:
    """A time of the vault."""
    return datetime.fromisoformat(text) if text else None


class Outline(NamedTuple):
    """A record without its content: what a search filters by."""

    id: str
    time: datetime | None
    source: str


class ExcludedTable:
    """The records of an open vault that are kept out of use.

    Args:
        db: the vault's connection.
        translate: turns SQLite's errors into a StorageError.
    """

    def __init__(
        self, db: sqlite3.Connection, translate: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._db, self._translate = db, translate

    def ids(self) -> set[str]:
        """The ids of the records that are kept out of use."""
        with self._translate():
            return {id_ for (id_,) in self._db.execute("SELECT record FROM excluded")}

    def add(self, ids: Collection[str]) -> int:
        """Keep records out of use, all or none; how many were in use until now."""
        query = "INSERT OR IGNORE INTO excluded SELECT id FROM records WHERE id = ?"
        return self._change(query, ids)

    def remove(self, ids: Collection[str]) -> int:
        """Use records again, all or none; how many were not in use until now."""
        return self._change("DELETE FROM excluded WHERE record = ?", ids)

    def _change(self, query: str, ids: Collection[str]) -> int:
        with self._translate(), transaction(self._db):
            return sum(self._db.execute(query, (id_,)).rowcount for id_ in ids)
