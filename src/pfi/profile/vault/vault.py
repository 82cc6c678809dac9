"""The vault: the one place where a device's records and feedback are stored.

Only this file and `vault_feedback` know that it is SQLite; with a key it is encrypted, see
`pfi._util.sqlite`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from pfi._util.sqlite import Closes, connect, scrub, transaction, user_errors
from pfi.errors import StorageError
from pfi.profile.vault.copies import Copies
from pfi.profile.vault.feedback import NOT_DOUBTFUL, FeedbackTables
from pfi.profile.vault.tables import (
    COLUMNS,
    MIGRATIONS,
    NOT_EXCLUDED,
    SCHEMA,
    SCHEMA_VERSION,
    ExcludedTable,
    Outline,
    record_of,
    row_of,
    time_of,
)
from pfi.records import History, Origin, Record
from pfi.tasks import as_request, source_tasks, tasks

BATCH = 500
BUSY_SECONDS = 30.0

_USED = f"{NOT_DOUBTFUL} AND {NOT_EXCLUDED}"


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """How much of one task a vault holds; `first` and `last` are None without dated records."""

    task: str
    records: int
    synthetic: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """How much of one task came from one source; `excluded` records are kept out of use."""

    source: str
    task: str
    records: int
    synthetic: int
    excluded: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Outlines:
    """The real records of a task without their content, as of one moment.

    Attributes:
        task: the name of the task.
        mark: see `Vault.mark`.
        dated: whether records without a time count as of when they were added.
        records: oldest first.
    """

    task: str
    mark: str
    dated: bool
    records: Sequence[Outline]


@dataclass
class Setting:
    """The value of a setting, to be changed."""

    value: Any


class Vault(Closes):
    """The records of one device, made at `path` when missing.

    Several processes may use one vault: each batch is one transaction, and a writer waits for
    another one for up to `BUSY_SECONDS`.

    Raises:
        StorageError: the file is damaged, no vault, locked, or written by a newer pfi.
    """

    def __init__(
        self, path: Path, *, key: bytes | None = None, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self.path, self._key = path, key
        with self._translate():
            self._db = connect(path, key=key, busy_seconds=busy_seconds)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        if self._version() == 0:
            self._db.execute("PRAGMA journal_mode = WAL")
            with transaction(self._db):
                if self._version() == 0:  # nobody else made it while we waited
                    if self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                        raise StorageError("this is not a pfi vault", where=str(self.path))
                    for statement in SCHEMA:
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if self._version() > SCHEMA_VERSION:
            raise StorageError(
                f"the vault has format {self._version()}, this pfi reads up to {SCHEMA_VERSION}",
                where=str(self.path),
                fix="update pfi",
            )
        if self._version() < SCHEMA_VERSION:
            with transaction(self._db):
                # Asked again: another process may have done it while we waited.
                for version in range(self._version(), SCHEMA_VERSION):
                    for statement in MIGRATIONS[version]:
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        # A deleted record is overwritten, not only unlinked.
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("SELECT count(*) FROM records").fetchone()

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    # Writing ------------------------------------------------------------------------

    def add(self, records: Iterable[Record]) -> tuple[int, int]:
        """Store records; one whose content is stored already is passed over, whatever its id.

        An id that other content has taken gets a suffix made of the content, so that nothing is
        overwritten and adding the same records again still adds nothing.  Records are written
        in batches: when this is interrupted the whole batches before it are kept.

        Returns:
            How many were added and how many were already there.

        Raises:
            StorageError: the vault cannot be written.
        """
        added = seen = 0
        remaining = iter(records)
        while batch := list(islice(remaining, BATCH)):
            rows = [row_of(record) for record in batch]
            with self._translate(), transaction(self._db):
                new = sum(self._insert(row) for row in self._stamped(rows))
            added += new
            seen += len(batch) - new
        return added, seen

    def _stamped(self, rows: Sequence[dict[str, str | None]]) -> list[dict[str, str | None]]:
        """Within a transaction: rows that count as added after all that are there.

        So they are new to a version that has read those, also where the clock was set back.
        """
        newest = self._newest()
        if newest is None:
            return [*rows]
        after = (newest + timedelta(microseconds=1)).isoformat()
        return [{**row, "added": max(str(row["added"]), after)} for row in rows]

    def _newest(self) -> datetime | None:
        (newest,) = self._db.execute("SELECT max(added) FROM records").fetchone()
        return datetime.fromisoformat(newest) if newest else None

    def time(self) -> datetime:
        """Now, and no earlier than the newest record was added, whatever the clock says."""
        with self._translate():
            newest = self._newest()
        now = datetime.now(UTC)
        return now if newest is None else max(now, newest)

    def _insert(self, row: dict[str, str | None]) -> bool:
        find = self._db.execute
        if find("SELECT 1 FROM records WHERE hash = ?", (row["hash"],)).fetchone():
            return False
        if find("SELECT 1 FROM records WHERE id = ?", (row["id"],)).fetchone():
            row = {**row, "id": f"{row['id']}~{str(row['hash'])[:12]}"}
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        find(f"INSERT INTO records ({names}) VALUES ({marks})", row)
        return True

    def delete(self, ids: Iterable[str]) -> int:
        """Erase the records with these ids, all or none; returns how many there were.

        What was said of them goes with them: feedback, what other feedback repeats of them, and
        the last answers of their tasks.  Nothing stays in the file nor in the log beside it.

        Raises:
            StorageError: the vault cannot be written, or others read it; they are erased then, but
                the file may still hold them until this is called again.
        """
        ids = list(ids)
        copies = Copies(self.find(ids=set(ids)))
        with self._translate():
            with transaction(self._db):
                self.feedback.forget_copies(copies)
                erased = 0
                for id_ in ids:
                    task = "(SELECT task FROM records WHERE id = ?)"
                    self._db.execute(f"DELETE FROM answers WHERE task = {task}", (id_,))
                    self.feedback.forget_record(id_)
                    cursor = self._db.execute("DELETE FROM records WHERE id = ?", (id_,))
                    erased += cursor.rowcount
            scrub(self._db)
        return erased

    def clear(self) -> int:
        """Erase all records and all that was said; settings stay.  How many records there were.

        Raises:
            StorageError: as for `delete`.
        """
        with self._translate():
            with transaction(self._db):
                erased = self._db.execute("DELETE FROM records").rowcount
                for table in ("feedback", "answers", "refreshes"):
                    self._db.execute(f"DELETE FROM {table}")
            scrub(self._db)
        return erased

    def replace_made(self, task: str, teacher: str | None, records: Sequence[Record]) -> int:
        """Put records in the place of those that a teacher made for a task, all or none.

        A record whose content is stored already is passed over, as in `add`.

        Args:
            task: the name of the task.
            teacher: whose records make room; None for those of all teachers.
            records: the new ones; none erases only.

        Returns:
            How many were erased.

        Raises:
            StorageError: the vault cannot be written.
        """
        rows = [row_of(record) for record in records]
        query = "DELETE FROM records WHERE task = ? AND origin = 'synthetic' AND made IS NOT NULL"
        mine = "" if teacher is None else " AND json_extract(made, '$.teacher') = ?"
        with self._translate():
            with transaction(self._db):
                erased = self._db.execute(query + mine, (task, *([teacher] if teacher else [])))
                for row in rows:
                    self._insert(row)
            self._empty_log()
        return erased.rowcount

    def _empty_log(self) -> None:
        # The log beside the database still holds the old pages.
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Settings -----------------------------------------------------------------------

    def setting(self, name: str) -> Any | None:
        """What `set_setting` stored under a name; None if nothing."""
        with self._translate():
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_setting(self, name: str, value: Any | None) -> None:
        """Store a JSON value under a name in the place of the one before; None removes it.

        Raises:
            StorageError: the vault cannot be written.
        """
        with self.change_setting(name) as setting:
            setting.value = value

    @contextmanager
    def change_setting(self, name: str) -> Iterator[Setting]:
        """A setting to read and change; nobody else changes it meanwhile.

        Raises:
            StorageError: the vault cannot be written.
        """
        with self._translate(), transaction(self._db):
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            setting = Setting(json.loads(row[0]) if row else None)
            yield setting
            if setting.value is None:
                self._db.execute("DELETE FROM settings WHERE name = ?", (name,))
            else:
                new = json.dumps(setting.value, ensure_ascii=False, allow_nan=False)
                self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, new))

    # Feedback -----------------------------------------------------------------------

    @property
    def feedback(self) -> FeedbackTables:
        """What the user said of answers, and the last answers."""
        return FeedbackTables(self._db, self._translate, self._store_one, self._empty_log)

    @property
    def excluded(self) -> ExcludedTable:
        """The records that are kept out of use."""
        return ExcludedTable(self._db, self._translate)

    def _store_one(self, record: Record) -> str | None:
        """Within a transaction: a record's id once stored, None if its content is there already."""
        (row,) = self._stamped([row_of(record)])
        return record.id if self._insert(row) else None

    # Reading ------------------------------------------------------------------------

    def history(self, task: str, *, origin: Origin | None = None, user_id: str = "me") -> History:
        """The records of one task, oldest first; empty when there are none.

        Those of doubtful feedback and those kept out of use are left out.  Where only some of
        the records have a time, the others count as of when they were added: they are no
        younger than that, and so never answer a question from before it.

        A task whose records are `all` has those of other tasks too, each as a request and the
        words that the user wrote, see `pfi.tasks.as_request`.

        Args:
            task: the name of the task.
            origin: only `real` or only `synthetic` records; None for both.
            user_id: whose history it is called.
        """
        sources = source_tasks(task)
        query = f"""SELECT {COLUMNS} FROM records WHERE task IN (SELECT value FROM json_each(?))
                    AND origin LIKE ? AND {_USED} ORDER BY seq"""
        with self._translate():
            rows = self._db.execute(query, (json.dumps(sources), origin or "%")).fetchall()
        dated = any(row[4] is not None for row in rows)
        records: Iterable[Record | None] = (record_of(row, fill_time=dated) for row in rows)
        if len(sources) > 1:
            records = (as_request(record, tasks()[task]) for record in records if record)
        return History(user_id, (record for record in records if record is not None))

    def outlines(self, task: str) -> Outlines:
        """The records of `history(task, origin="real")`, in its order, without their content."""
        if len(source_tasks(task)) > 1:  # which of them it holds, only their content tells
            mark, history = self.mark, self.history(task, origin="real")
            records = [Outline(record.id, record.time, record.source) for record in history]
            return Outlines(task, mark, history.dated, records)
        query = f"""SELECT id, time, added, source FROM records
                    WHERE task = ? AND origin = 'real' AND {_USED} ORDER BY seq"""
        with self._translate():
            self._db.execute("BEGIN")  # the mark is that of the rows
            try:
                mark, rows = self.mark, self._db.execute(query, (task,)).fetchall()
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        dated = any(time is not None for _, time, _, _ in rows)
        records = [
            Outline(id_, time_of(time or added if dated else None), source)
            for id_, time, added, source in rows
        ]
        if dated:
            records.sort(key=_time)
        return Outlines(task, mark, dated, records)

    def outlined(self, outlines: Outlines, ids: Sequence[str]) -> dict[str, Record]:
        """Some of the records that were outlined, by id; those that are gone are left out."""
        sources = source_tasks(outlines.task)
        # The + keeps to the index of ids: by that of tasks all records of the task are read.
        query = f"""SELECT {COLUMNS} FROM records
                    WHERE +task IN (SELECT value FROM json_each(?)) AND origin = 'real' AND {_USED}
                    AND id IN (SELECT value FROM json_each(?))"""
        values = json.dumps(sources), json.dumps(list(ids))
        with self._translate():
            rows = self._db.execute(query, values).fetchall()
        records = {str(row[0]): record_of(row, fill_time=outlines.dated) for row in rows}
        if len(sources) > 1:
            task = tasks()[outlines.task]
            requests = {id_: as_request(record, task) for id_, record in records.items()}
            records = {id_: record for id_, record in requests.items() if record is not None}
        return records

    def added_since(self, task: str, time: datetime) -> set[str]:
        """The ids of real records stored after a time, but those left out of `history`."""
        query = f"""SELECT id FROM records WHERE task IN (SELECT value FROM json_each(?))
                    AND origin = 'real' AND added > ? AND {_USED}"""
        values = json.dumps(source_tasks(task)), time.astimezone(UTC).isoformat()
        with self._translate():
            rows = self._db.execute(query, values).fetchall()
        return {id_ for (id_,) in rows}

    def added(self, ids: Collection[str]) -> dict[str, datetime]:
        """When each of these records was stored, by id; those that are not there are left out."""
        with self._translate():
            rows = self._db.execute("SELECT id, added FROM records").fetchall()
        return {id_: datetime.fromisoformat(added) for id_, added in rows if id_ in ids}

    @property
    def mark(self) -> str:
        """Another value after every change to what histories hold, never used before."""
        with self._translate():
            return str(self._db.execute("SELECT mark FROM marks").fetchone()[0])

    def find(
        self,
        *,
        ids: Collection[str] | None = None,
        task: str | None = None,
        source: str | None = None,
        before: datetime | None = None,
        text: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """The records that meet all conditions, newest first; of all tasks and origins.

        An undated record counts as of when it was added.

        Args:
            ids: one of these ids.
            task: of this task.
            source: from a source that starts so.
            before: older than this.
            text: a field or the output contains it, in small or capital letters.
            limit: so many at most.
        """
        # Only where ids are given, so that they are looked up by their index.
        named = "" if ids is None else "AND id IN (SELECT value FROM json_each(?5))"
        query = f"""SELECT {COLUMNS} FROM records
                    WHERE (?1 IS NULL OR task = ?1)
                    AND (?2 IS NULL OR substr(source, 1, length(?2)) = ?2)
                    AND (?3 IS NULL OR coalesce(time, added) < ?3) {named}
                    ORDER BY coalesce(time, added) DESC, seq DESC LIMIT ?4"""
        until = before.astimezone(UTC).isoformat() if before else None
        most = -1 if limit is None or text is not None else limit
        values = [task, source, until, most]
        if ids is not None:
            values.append(json.dumps(list(ids)))
        with self._translate():
            rows = self._db.execute(query, values).fetchall()
        records = (record_of(row, fill_time=False) for row in rows)
        return islice((r for r in records if text is None or _contains(r, text)), limit)

    def made_from(self, ids: Collection[str]) -> list[Record]:
        """The synthetic records that a teacher made from any of these records."""
        query = f"SELECT {COLUMNS} FROM records WHERE made IS NOT NULL ORDER BY seq"
        with self._translate():
            rows = self._db.execute(query).fetchall()
        records = (record_of(row, fill_time=False) for row in rows)
        return [r for r in records if r.made and not {*r.made.seeds, r.made.source}.isdisjoint(ids)]

    def summary(self) -> list[TaskSummary]:
        """Every task with records, the one with most records first."""
        query = """SELECT task, count(*) AS n, sum(origin = 'synthetic'), min(time), max(time)
                   FROM records GROUP BY task ORDER BY n DESC, task"""
        with self._translate():
            rows = self._db.execute(query).fetchall()
        return [TaskSummary(t, n, made, time_of(a), time_of(b)) for t, n, made, a, b in rows]

    def sources(self) -> list[SourceSummary]:
        """Every source with records, by task, the one with most records first."""
        query = f"""SELECT source, task, count(*) AS n, sum(origin = 'synthetic'),
                           sum(NOT ({NOT_EXCLUDED})), min(time), max(time)
                    FROM records GROUP BY source, task ORDER BY n DESC, source, task"""
        with self._translate():
            rows = self._db.execute(query).fetchall()
        return [
            SourceSummary(source, task, n, made, out, time_of(first), time_of(last))
            for source, task, n, made, out, first, last in rows
        ]

    def tasks(self) -> dict[str, int]:
        """The number of records by task, most first."""
        query = "SELECT task, count(*) AS n FROM records GROUP BY task ORDER BY n DESC, task"
        with self._translate():
            return dict(self._db.execute(query).fetchall())

    def count(self) -> int:
        """The number of records of all tasks."""
        with self._translate():
            return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    # Plumbing -----------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; using the vault afterwards is a bug."""
        self._db.close()

    def _translate(self) -> AbstractContextManager[None]:
        return user_errors("vault", self.path, "import again", self._key)


class SessionVault(Vault):
    """A vault that its session closes, whoever is done with it before; see `Home.vault_session`."""

    def close(self) -> None:
        """Leave it open."""

    def end(self) -> None:
        """Close the file."""
        super().close()


class Session(threading.local):
    """How often a thread has entered a vault's session, and the vault once it is open."""

    depth: int = 0
    vault: SessionVault | None = None


def _time(outline: Outline) -> datetime:
    assert outline.time is not None
    return outline.time


def _contains(record: Record, text: str) -> bool:
    wanted = text.casefold()
    return any(wanted in part.casefold() for part in (*record.input.values(), record.output))
