"""The vault's tables of feedback and of the last answers; see `pfi.profile.learn.feedback`.

They are part of the vault's file: a correction and the record that it makes are one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pfi._util.sqlite import sqlite3, transaction
from pfi.profile.vault.copies import Copies
from pfi.records import Record

Rating = Literal["good", "bad"]
Trust = Literal["", "doubtful", "trusted"]

FEEDBACK_SCHEMA = (
    """CREATE TABLE feedback (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        batch TEXT NOT NULL,
        task TEXT NOT NULL,
        time TEXT NOT NULL,
        input TEXT NOT NULL,
        answer TEXT NOT NULL,
        correction TEXT,
        rating TEXT,
        better_than TEXT,
        record TEXT,
        trust TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX feedback_by_batch ON feedback (batch)",
    "CREATE INDEX feedback_by_record ON feedback (record)",
    """CREATE TABLE answers (
        seq INTEGER PRIMARY KEY,
        task TEXT NOT NULL,
        time TEXT NOT NULL,
        input TEXT NOT NULL,
        answer TEXT NOT NULL
    ) STRICT""",
    "CREATE TABLE refreshes (task TEXT PRIMARY KEY, time TEXT NOT NULL) STRICT",
)
#: A condition on the table of records.
NOT_DOUBTFUL = (
    "NOT EXISTS (SELECT 1 FROM feedback WHERE record = records.id AND trust = 'doubtful')"
)
_COLUMNS = "id, batch, task, time, input, answer, correction, rating, better_than, record, trust"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the user said of one answer.

    Attributes:
        id: unique within the vault.
        batch: what was given together, and can be undone together.
        task: the name of the task that the question was asked as.
        time: when it was given.
        input: the question's input fields.
        answer: the model's answer, or the better one of two.
        correction: what the answer should have been.
        rating: what the answer is, as a whole.
        better_than: another answer to the same question, which is worse.
        record: the id of the record that it made, or None.
        trust: `doubtful` feedback is learnt from no more; `trusted` counts like own records.
    """

    id: str
    batch: str
    task: str
    time: datetime
    input: Mapping[str, str]
    answer: str
    correction: str | None = None
    rating: Rating | None = None
    better_than: str | None = None
    record: str | None = None
    trust: Trust = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Feedback that was given together.

    Attributes:
        name: what it is called.
        tasks: the names of its tasks.
        entries: how many answers it is about.
        records: how many records it made.
        first, last: when it was given.
        trust: as for each of its entries.
    """

    name: str
    tasks: tuple[str, ...]
    entries: int
    records: int
    first: datetime
    last: datetime
    trust: Trust


@dataclass(frozen=True, slots=True)
class Shown:
    """A question that was asked and the answer that was shown."""

    task: str
    time: datetime
    input: Mapping[str, str]
    answer: str


class FeedbackTables:
    """Feedback, the last answers and the times of refreshes in an open vault.

    Args:
        db: the vault's connection.
        translate: turns SQLite's errors into a StorageError.
        store: stores a record within a transaction; its id, or None if it is there already.
        empty_log: overwrites what the log still holds of erased rows.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        translate: Callable[[], AbstractContextManager[None]],
        store: Callable[[Record], str | None],
        empty_log: Callable[[], None],
    ) -> None:
        self._db, self._translate = db, translate
        self._store, self._empty_log = store, empty_log

    # Feedback -----------------------------------------------------------------------

    def add(self, entries: Iterable[tuple[Feedback, Record | None]]) -> list[Feedback]:
        """Store feedback and the records that it makes, all or nothing.

        An entry of a batch that is doubtful or trusted is so too.  One that says what another
        of its batch says already is passed over.

        Returns:
            the entries that were stored, with the ids of their records.
        """
        added = []
        with self._translate(), transaction(self._db):
            for entry, record in entries:
                if self._has(entry):
                    continue
                entry = replace(
                    entry,
                    record=self._store(record) if record else None,
                    trust=self._trust(entry.batch),
                )
                names = _COLUMNS.split(", ")
                marks = ", ".join("?" * len(names))
                values = [getattr(entry, name) for name in names]
                values[names.index("time")] = entry.time.astimezone(UTC).isoformat()
                values[names.index("input")] = _json(entry.input)
                self._db.execute(f"INSERT INTO feedback ({_COLUMNS}) VALUES ({marks})", values)
                added.append(entry)
        return added

    def _has(self, entry: Feedback) -> bool:
        query = """SELECT 1 FROM feedback WHERE batch = ? AND task = ? AND input = ? AND answer = ?
                   AND correction IS ? AND rating IS ? AND better_than IS ?"""
        same = (entry.batch, entry.task, _json(entry.input), entry.answer)
        said = (entry.correction, entry.rating, entry.better_than)
        return self._db.execute(query, (*same, *said)).fetchone() is not None

    def _trust(self, batch: str) -> Trust:
        query = "SELECT trust FROM feedback WHERE batch = ? LIMIT 1"
        found = self._db.execute(query, (batch,)).fetchone()
        return found[0] if found else ""

    def entries(self, task: str | None = None, batch: str | None = None) -> list[Feedback]:
        """Feedback in the order in which it was given, of a task or batch if named."""
        query = f"""SELECT {_COLUMNS} FROM feedback
                    WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR batch = ?2) ORDER BY seq"""
        with self._translate():
            rows = self._db.execute(query, (task, batch)).fetchall()
        return [
            Feedback(id_, name, of, datetime.fromisoformat(time), json.loads(fields), *rest)
            for id_, name, of, time, fields, *rest in rows
        ]

    def batches(self) -> list[Batch]:
        """Every batch, in the order in which they were begun."""
        query = """SELECT batch, json_group_array(DISTINCT task), count(*), count(record),
                          min(time), max(time), max(trust)
                   FROM feedback GROUP BY batch ORDER BY min(seq)"""
        with self._translate():
            rows = self._db.execute(query).fetchall()
        return [
            Batch(name, tuple(json.loads(of)), count, made, _time(first), _time(last), trust)
            for name, of, count, made, first, last, trust in rows
        ]

    def mark(self, batches: Sequence[str], trust: Trust) -> None:
        """Say of whole batches whether they are to be learnt from, all or none.

        Records that were left out until now count as added now.
        """
        now = datetime.now(UTC).isoformat()
        query = """UPDATE records SET added = ? WHERE id IN
                   (SELECT record FROM feedback WHERE batch = ? AND trust = 'doubtful')"""
        with self._translate(), transaction(self._db):
            for batch in batches:
                if trust != "doubtful":
                    self._db.execute(query, (now, batch))
                self._db.execute("UPDATE feedback SET trust = ? WHERE batch = ?", (trust, batch))

    def remove(self, batch: str) -> tuple[int, list[str]]:
        """Erase a batch and the records that it made, all or nothing.

        Returns:
            how many entries there were, and the ids of the erased records.
        """
        with self._translate():
            with transaction(self._db):
                query = "DELETE FROM feedback WHERE batch = ? RETURNING record"
                gone = [record for (record,) in self._db.execute(query, (batch,)).fetchall()]
                records = [record for record in gone if record is not None]
                for record in records:
                    self._db.execute("DELETE FROM records WHERE id = ?", (record,))
            self._empty_log()
        return len(gone), records

    def forget_record(self, record: str) -> None:
        """Within a transaction: erase what was said of a record that is about to be erased."""
        where = "(SELECT task, input FROM records WHERE id = ?)"
        self._db.execute(f"DELETE FROM answers WHERE (task, input) IN {where}", (record,))
        query = f"record = ? OR record IS NULL AND (task, input) IN {where}"
        self._db.execute(f"DELETE FROM feedback WHERE {query}", (record, record))

    def forget_copies(self, copies: Copies) -> None:
        """Within a transaction: erase answers that repeat records about to be erased.

        Where feedback made a record of its own, that and the feedback itself stay.
        """
        query = "SELECT id, record, input, answer, correction, better_than FROM feedback"
        for id_, record, fields, *texts in self._db.execute(query).fetchall():
            if not any(copies.repeated_in(t) for t in (*json.loads(fields).values(), *texts) if t):
                continue
            if record is None:
                self._db.execute("DELETE FROM feedback WHERE id = ?", (id_,))
            else:
                change = "UPDATE feedback SET answer = '', better_than = NULL WHERE id = ?"
                self._db.execute(change, (id_,))

    # The last answers ---------------------------------------------------------------

    def remember(self, shown: Shown, keep: int) -> None:
        """Note an answer and erase all but the last ``keep``."""
        row = (shown.task, shown.time.isoformat(), _json(shown.input), shown.answer)
        with self._translate():
            with transaction(self._db):
                if keep:
                    query = "INSERT INTO answers (task, time, input, answer) VALUES (?, ?, ?, ?)"
                    self._db.execute(query, row)
                last = "(SELECT seq FROM answers ORDER BY seq DESC LIMIT ?)"
                gone = self._db.execute(f"DELETE FROM answers WHERE seq NOT IN {last}", (keep,))
            if gone.rowcount:
                self._empty_log()

    def answers(self) -> list[Shown]:
        """The last answers, the latest first."""
        query = "SELECT task, time, input, answer FROM answers ORDER BY seq DESC"
        with self._translate():
            rows = self._db.execute(query).fetchall()
        return [Shown(task, _time(time), json.loads(fields), a) for task, time, fields, a in rows]

    # Refreshes ----------------------------------------------------------------------

    def note_refresh(self, task: str, time: datetime) -> None:
        """Note when a refresh of a task had read the vault, whatever came of it."""
        query = "INSERT OR REPLACE INTO refreshes (task, time) VALUES (?, ?)"
        with self._translate():
            self._db.execute(query, (task, time.astimezone(UTC).isoformat()))

    def last_refresh(self, task: str) -> datetime | None:
        """When the last refresh of a task had read the vault."""
        with self._translate():
            found = self._db.execute(
                "SELECT time FROM refreshes WHERE task = ?", (task,)
            ).fetchone()
        return _time(found[0]) if found else None


def _json(fields: Mapping[str, str]) -> str:
    return json.dumps(dict(fields), ensure_ascii=False)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
