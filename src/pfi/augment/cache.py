"""The teacher store: every answer that was paid for, and what was spent in total.

No other file knows that it is SQLite.  An answer and its cost are written in one transaction, so
that a kill at any point leaves both or neither.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pfi._util.sqlite import Closes, connect, scrub, sqlite3, transaction, user_errors
from pfi.augment.budget import PICODOLLARS, Budget, pico
from pfi.augment.teachers.teacher import Usage
from pfi.errors import StorageError
from pfi.privacy.ledger.entries import fingerprint

SCHEMA_VERSION = 2
BATCH = 500
BUSY_SECONDS = 30.0
FLIGHT_SECONDS = 3600.0  # after which calls in flight are given up, whoever made them

#: Which records a call showed, by fingerprint; not known of answers without a row.
_SHOWN = """CREATE TABLE shown (
        key TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (key, record)
    ) STRICT, WITHOUT ROWID"""
_SCHEMA = (
    _SHOWN,
    """CREATE TABLE answers (
        key TEXT PRIMARY KEY,
        attempt INTEGER NOT NULL,
        text TEXT,
        problem TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        picodollars INTEGER NOT NULL,
        time TEXT NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE spent (
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        picodollars INTEGER NOT NULL
    ) STRICT""",
    "INSERT INTO spent VALUES (0, 0, 0)",
    """CREATE TABLE flights (
        id INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        started REAL NOT NULL,
        tokens INTEGER NOT NULL,
        picodollars INTEGER NOT NULL
    ) STRICT""",
)
_COLUMNS = "key, attempt, text, problem, prompt_tokens, completion_tokens, picodollars"

_OPEN: set[str] = set()  # owners in this process; a killed one may have had the same pid


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher made of one call.

    Attributes:
        key: of the call, as it was sent.
        attempt: which attempt it was, from 0.
        text: the answer; None if it could not be used.
        problem: why not, else "".
        usage: what it cost.
    """

    key: str
    attempt: int
    text: str | None
    problem: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to make the first `count` of some calls.

    Attributes:
        flight: number to hand back with `pay` or `release`; None when count is 0.
        count: how many calls may be made now.
        wait: whether the next may be made once calls in flight have been paid for; otherwise
            what was spent already leaves no room for it.
    """

    flight: int | None
    count: int
    wait: bool


class TeacherStore(Closes):
    """Teachers' answers and their cost, in the file `path`, made when missing.

    Any number of threads and processes of one machine may use one file; each process opens it
    for itself.  Calls in flight are noted in it as well, so that they keep one budget together.

    Raises:
        StorageError: the file is damaged, no store, locked, or written by a newer pfi.
    """

    def __init__(
        self, path: Path, *, key: bytes | None = None, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self.path, self._key = path, key
        self._pid = os.getpid()
        self._owner = f"{self._pid} {secrets.token_hex(8)}"
        self._lock = threading.Lock()
        with self._translate():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(path, key=key, busy_seconds=busy_seconds, any_thread=True)
            try:
                self._prepare(time.monotonic() + busy_seconds)
            except BaseException:
                self._db.close()
                raise
        _OPEN.add(self._owner)

    def _prepare(self, deadline: float) -> None:
        while self._version() == 0:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                with transaction(self._db):
                    if self._version() == 0:  # nobody else made it while we waited
                        if self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                            what = "this is not a store of teachers' answers"
                            raise StorageError(what, where=str(self.path))
                        for statement in _SCHEMA:
                            self._db.execute(statement)
                        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            except sqlite3.OperationalError as error:
                # SQLite doesn't wait by itself for another process that changes the mode.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if self._version() > SCHEMA_VERSION:
            raise StorageError(
                f"the store has format {self._version()}, this pfi reads up to {SCHEMA_VERSION}",
                where=str(self.path),
                fix="update pfi",
            )
        if self._version() < SCHEMA_VERSION:
            with transaction(self._db):
                if self._version() < SCHEMA_VERSION:
                    self._db.execute(_SHOWN)
                    self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("PRAGMA synchronous = FULL")  # paid for: must outlive a power cut
        self._db.execute("SELECT * FROM spent, answers, flights, shown LIMIT 1").fetchone()

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    # Answers ------------------------------------------------------------------------

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are there for `keys`, by key.

        Raises:
            StorageError: the store cannot be read.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Answer] = {}
        with self._use() as db:
            for start in range(0, len(wanted), BATCH):
                part = wanted[start : start + BATCH]
                marks = ", ".join("?" * len(part))
                query = f"SELECT {_COLUMNS} FROM answers WHERE key IN ({marks})"
                for key, attempt, text, problem, *cost in db.execute(query, part):
                    found[key] = Answer(key, attempt, text, problem, _usage(cost))
        return found

    def pay(
        self,
        answers: Sequence[Answer],
        flight: int | None = None,
        shown: Mapping[str, Iterable[str]] | None = None,
    ) -> dict[str, Answer]:
        """Store answers and add up what they cost, all in one transaction, and end the flight.

        A key that somebody else has stored meanwhile keeps that answer; both were paid.

        Args:
            answers: what to store.
            flight: the flight that they end.
            shown: ids of the records that each call rests on, by its key, where known.

        Returns:
            What is in the store now for their keys.

        Raises:
            StorageError: the store cannot be written.
        """
        now = datetime.now(UTC).isoformat()
        with self._use() as db, transaction(self._db):
            for answer in answers:
                cost = _cost(answer.usage)
                row = (answer.key, answer.attempt, answer.text, answer.problem, *cost, now)
                db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                records = [
                    (answer.key, fingerprint(id_)) for id_ in (shown or {}).get(answer.key, ())
                ]
                db.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?)", records)
                db.execute(
                    """UPDATE spent SET prompt_tokens = prompt_tokens + ?,
                       completion_tokens = completion_tokens + ?, picodollars = picodollars + ?""",
                    cost,
                )
            db.execute("DELETE FROM flights WHERE id = ?", (flight,))
        return self.get(answer.key for answer in answers)

    def erase(self, wanted: Callable[[frozenset[str] | None], bool]) -> int:
        """Erase the answers that are `wanted`; what they cost stays counted.

        Args:
            wanted: asked for each answer with the fingerprints of the records that its call
                rests on, or None where they are not known.

        Returns:
            How many there were.

        Raises:
            StorageError: the store cannot be written, or is in use.
        """
        with self._use() as db:
            with transaction(db):
                gone = [(key,) for key in self._resting_on(wanted)]
                db.executemany("DELETE FROM answers WHERE key = ?", gone)
                db.executemany("DELETE FROM shown WHERE key = ?", gone)
            scrub(db)
        return len(gone)

    def count(self, wanted: Callable[[frozenset[str] | None], bool]) -> int:
        """How many answers `erase` would erase.

        Raises:
            StorageError: the store cannot be read.
        """
        with self._use():
            return len(self._resting_on(wanted))

    def _resting_on(self, wanted: Callable[[frozenset[str] | None], bool]) -> list[str]:
        """The keys of the answers that are wanted by the records that they rest on."""
        shown: dict[str, set[str]] = {}
        for key, record in self._db.execute("SELECT key, record FROM shown"):
            shown.setdefault(key, set()).add(record)
        keys = [key for (key,) in self._db.execute("SELECT key FROM answers")]
        return [k for k in keys if wanted(frozenset(shown[k]) if k in shown else None)]

    # Money --------------------------------------------------------------------------

    def spent(self) -> Usage:
        """What all answers cost that were ever paid for.

        Raises:
            StorageError: the store cannot be read.
        """
        with self._use() as db:
            return _usage(db.execute("SELECT * FROM spent").fetchone())

    def take(self, costs: Sequence[Usage], budget: Budget) -> Grant:
        """Leave to make as many of some calls, from the first, as surely stay in the budget.

        What was spent, the most that all calls in flight of all processes can cost and the
        `costs` of the granted ones do not exceed the budget together.  Calls in flight of a
        process that has died no longer count.

        Args:
            costs: the most that each call can cost, in order.
            budget: the limit.

        Raises:
            StorageError: the store cannot be written.
        """
        with self._use() as db, transaction(self._db):
            self._give_up_dead()
            prompt, completion, paid = db.execute("SELECT * FROM spent").fetchone()
            query = "SELECT coalesce(sum(tokens), 0), coalesce(sum(picodollars), 0) FROM flights"
            away_tokens, away = db.execute(query).fetchone()
            tokens = money = count = 0
            wait = False
            for cost in costs:
                more_tokens, more = tokens + cost.tokens, money + pico(cost.usd)
                all_tokens, all_money = prompt + completion + more_tokens, paid + more
                if not budget.holds(away_tokens + all_tokens, away + all_money):
                    wait = count > 0 or budget.holds(all_tokens, all_money)
                    break
                tokens, money, count = more_tokens, more, count + 1
            if not count:
                return Grant(None, 0, wait)
            row = (self._owner, time.time(), tokens, money)
            cursor = db.execute("INSERT INTO flights VALUES (NULL, ?, ?, ?, ?)", row)
            return Grant(cursor.lastrowid, count, wait)

    def release(self, flight: int | None) -> None:
        """End a flight that brought no answers.

        Raises:
            StorageError: the store cannot be written.
        """
        if flight is not None:
            with self._use() as db, transaction(self._db):
                db.execute("DELETE FROM flights WHERE id = ?", (flight,))

    def _give_up_dead(self) -> None:
        old = time.time() - FLIGHT_SECONDS
        self._db.execute("DELETE FROM flights WHERE started < ?", (old,))
        for (owner,) in self._db.execute("SELECT DISTINCT owner FROM flights").fetchall():
            if not _alive(owner):
                self._db.execute("DELETE FROM flights WHERE owner = ?", (owner,))

    # Plumbing -----------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; using the store afterwards is a bug."""
        if os.getpid() != self._pid:  # closing a forked connection would drop the parent's locks
            return
        if self._owner in _OPEN:
            _OPEN.remove(self._owner)
            with suppress(StorageError), self._use() as db, transaction(self._db):
                db.execute("DELETE FROM flights WHERE owner = ?", (self._owner,))
        self._db.close()

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone."""
        if os.getpid() != self._pid:
            raise RuntimeError("a teacher store does not survive a fork: open it in each process")
        with self._lock, self._translate():
            yield self._db

    def _translate(self) -> AbstractContextManager[None]:
        return user_errors("teacher store", self.path, "pay for its answers again", self._key)


def _alive(owner: str) -> bool:
    """Whether the process of a flight's owner still runs, and is not another of its number."""
    pid = int(owner.split()[0])
    if pid == os.getpid():
        return owner in _OPEN
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _cost(usage: Usage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, pico(usage.usd)


def _usage(row: Sequence[int]) -> Usage:
    return Usage(row[0], row[1], row[2] / PICODOLLARS)
