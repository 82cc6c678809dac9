"""The vault's table of records that are kept out of use: neither retrieved nor learnt from.

Unlike an erasure this can be undone; what was trained with them before stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pfi._util.sqlite import transaction

if TYPE_CHECKING:
    from pfi._util.sqlite import sqlite3

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
