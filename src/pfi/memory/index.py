"""Memory: BM25 search over one user's own records (SQLite FTS5, in memory).

FTS5 ships with Python, needs no model, and is the index that a device keeps on disk too.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from pfi.data.records import Record
from pfi.errors import StorageError

if TYPE_CHECKING:
    from pfi.tasks import Task

_WORD = re.compile(r"\w+")
#: Longer queries cost time and bring little; the first words are used.
MAX_QUERY_WORDS = 256


class Memory:
    """An index over a user's records of one task.

    Args:
        task: says which text of a record is searched.
        records: the user's records, oldest first.

    Raises:
        StorageError: this Python's SQLite was built without FTS5.
    """

    def __init__(self, task: Task, records: Iterable[Record]) -> None:
        self._records = list(records)
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._index.execute(
                "CREATE VIRTUAL TABLE documents USING fts5(text, tokenize='porter unicode61')"
            )
        except sqlite3.OperationalError as error:
            fix = "use a Python whose SQLite includes FTS5 (python.org builds do)"
            raise StorageError("memory needs SQLite's FTS5", fix=fix) from error
        self._index.executemany(
            "INSERT INTO documents(rowid, text) VALUES (?, ?)",
            ((i, task.document_text(record)) for i, record in enumerate(self._records)),
        )

    def __len__(self) -> int:
        return len(self._records)

    def search(
        self,
        query: str,
        k: int,
        *,
        before: datetime | None = None,
        exclude: Iterable[str] = (),
    ) -> list[Record]:
        """The ``k`` records most like ``query``, best first; the latest fill up missing places.

        Args:
            query: free text.
            k: how many.
            before: only records strictly older than this are found.
            exclude: ids of records that must not be found.
        """
        excluded = set(exclude)

        def allowed(record: Record) -> bool:
            if record.id in excluded:
                return False
            return before is None or record.time is None or record.time < before

        found: list[int] = []
        words = list(dict.fromkeys(w.lower() for w in _WORD.findall(query)))[:MAX_QUERY_WORDS]
        if words and k > 0:
            expression = " OR ".join(f'"{word}"' for word in words)
            rows = self._index.execute(
                "SELECT rowid FROM documents WHERE documents MATCH ? ORDER BY rank, rowid DESC",
                (expression,),
            )
            found = [i for (i,) in rows if allowed(self._records[i])][:k]
        for i in range(len(self._records) - 1, -1, -1):
            if len(found) >= k:
                break
            if i not in found and allowed(self._records[i]):
                found.append(i)
        return [self._records[i] for i in found]
