"""The tables of the vault, and what makes a vault of each older version one of the next."""

from __future__ import annotations

from pfi.device.vault_excluded import EXCLUDED_SCHEMA
from pfi.device.vault_feedback import FEEDBACK_SCHEMA

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
