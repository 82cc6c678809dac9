"""Histories of browsers: their SQLite files, JSON and CSV, as pages with how often they were seen.

A browser's own SQLite files are copied before they are opened, for it may be using them, and read
as files of strangers: read-only, no other tables, no functions, no endless queries.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from pfi.errors import DataError
from pfi.readers.browser_times import core_data, moment
from pfi.readers.dates import DateStyle
from pfi.readers.exports import Member
from pfi.readers.json_tree import OPENED, JsonTree, Spot
from pfi.readers.values import Unusable

#: Longest line of a CSV file, longest value of a database, most pages, largest database.
LINE_LIMIT = 100_000
VALUE_LIMIT = 1 << 20
PAGES_LIMIT = 5_000_000
DATABASE_LIMIT = 16 << 30
#: Steps of SQLite's machine after which a query counts as endless: some minutes.
STEPS_LIMIT = 20_000_000_000
_STEPS_BETWEEN = 10_000_000
_COPY = 1 << 20


class Visit(NamedTuple):
    """A page that was seen, at its latest."""

    title: str
    url: str
    seen: int
    time: datetime | None


@dataclass
class _Page:
    """What is known of a page so far: rows of the file that are of it, the count that it states."""

    title: str
    time: datetime | None
    rows: int
    count: int


class _Pages:
    """Pages by address, from rows that may be one visit each or one page each."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._pages: dict[str, _Page] = {}

    def add(self, visit: Visit) -> None:
        url = visit.url.partition("#")[0]
        page = self._pages.get(url)
        if page is None:
            if len(self._pages) >= PAGES_LIMIT:
                what = f"the history has more than {PAGES_LIMIT} pages"
                raise DataError(what, path=self._place, fix="give a part of it")
            self._pages[url] = _Page(visit.title, visit.time, 1, visit.seen)
            return
        page.rows += 1
        page.count = max(page.count, visit.seen)
        if visit.time is not None and (page.time is None or visit.time >= page.time):
            page.time, page.title = visit.time, visit.title or page.title
        page.title = page.title or visit.title

    def __len__(self) -> int:
        return len(self._pages)

    def __iter__(self) -> Iterator[Visit]:
        for url, page in self._pages.items():
            yield Visit(page.title, url, max(page.rows, page.count), page.time)


def history(
    member: Member, form: str, beside: Mapping[str, Member] | None = None
) -> Iterator[Visit | Unusable]:
    """The pages of a file that were seen, each once; `Unusable` for what is damaged.

    Args:
        member: the file.
        form: see `browser_files.kind_of`.
        beside: files of the same folder by name, for what a browser has not moved into its file.

    Raises:
        DataError: the file cannot be read.
    """
    if form == "history:sqlite":
        yield from _from_sqlite(member, beside or {})
    elif form == "history:csv":
        yield from _from_csv(member)
    else:
        yield from _from_json(member)


# SQLite ---------------------------------------------------------------------------------


class _Table(NamedTuple):
    """A table of a browser's and its columns: title, address, count, time, a condition.

    Of several columns for one thing the first that is there is taken; a count or time may be the
    sum or the latest of two.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    kept: str = ""


_TABLES = [
    _Table("urls", (("title",), ("url",), ("visit_count",), ("last_visit_time",)), "hidden"),
    _Table("moz_places", (("title",), ("url",), ("visit_count", "visit_count_local"),
                          ("last_visit_date", "last_visit_date_local")), "hidden"),
    _Table("history", (("title",), ("url",), ("visits",), ("date",)), "deleted"),
    _Table("history", (("title",), ("url",), (), ("atime",)), "redirect"),
]  # fmt: skip
_SAFARI = """SELECT v.title, i.url, i.visit_count, v.visit_time
             FROM history_visits AS v JOIN history_items AS i ON v.history_item = i.id
             ORDER BY v.visit_time, v.id"""
_ALLOWED = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_FUNCTION,
}  # fmt: skip
_FUNCTIONS = {"coalesce", "max"}


def _from_sqlite(member: Member, beside: Mapping[str, Member]) -> Iterator[Visit]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        log = beside.get(f"{member.file_name}-wal")
        try:
            _copy(member, copy)
            if log is not None:  # what the browser has not moved into the file yet
                _copy(log, copy.with_name(copy.name + "-wal"))
        except OSError as error:
            what = f"the file cannot be copied ({error.strerror})"
            raise DataError(
                what, path=member.place, fix="close the browser and try again"
            ) from error
        try:
            with closing(open_database(copy, log=log is not None)) as db:
                query, apple = _query(db, member.place)
                pages = _Pages(member.place)
                for title, url, count, time in db.execute(query):
                    if isinstance(url, str):
                        seen = count if isinstance(count, int) else 1
                        when = core_data(time) if apple else moment(time)
                        pages.add(Visit(_text(title), url, seen, when))
                yield from pages
        except sqlite3.Error as error:
            fix = "close the browser and copy the file again"
            raise DataError(f"the file is damaged ({error})", path=member.place, fix=fix) from error


def open_database(path: Path, *, log: bool) -> sqlite3.Connection:
    """Open a stranger's database to read tables only; not `pfi._util.sqlite`, which is for ours.

    Args:
        path: nobody else uses it.
        log: whether a write-ahead log lies beside it.
    """
    uri = f"{path.as_uri()}?mode=ro" + ("" if log else "&immutable=1")
    db = sqlite3.connect(uri, uri=True, isolation_level=None)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_LIMIT)
    for pragma in ("query_only = 1", "trusted_schema = 0", "cell_size_check = 1", "mmap_size = 0"):
        db.execute(f"PRAGMA {pragma}")
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    steps = 0

    def endless() -> bool:
        nonlocal steps
        steps += _STEPS_BETWEEN
        return steps > STEPS_LIMIT

    def allowed(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        fine = action in _ALLOWED
        if action == sqlite3.SQLITE_FUNCTION:
            fine = (second or "").lower() in _FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            fine = first == "table_info"
        return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY

    db.set_progress_handler(endless, _STEPS_BETWEEN)
    db.set_authorizer(allowed)
    return db


def is_history(path: Path) -> bool:
    """Whether an SQLite file has the tables of a browser's history."""
    try:
        with closing(open_database(path.resolve(), log=False)) as db:
            _query(db, path)
    except (sqlite3.Error, DataError, OSError):
        return False
    return True


def _query(db: sqlite3.Connection, place: Path) -> tuple[str, bool]:
    """What to ask of a browser's history, and whether its times are Apple's.

    Raises:
        DataError: it has no tables of a browser.
    """
    sql = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
    # Not virtual tables, which are programs.
    tables = {n.lower() for n, made in db.execute(sql) if str(made)[:13].upper() == "CREATE TABLE "}
    if {"history_items", "history_visits"} <= tables:
        return _SAFARI, True
    for table in _TABLES:
        if table.name not in tables:
            continue
        there = {row[1].lower() for row in db.execute(f"PRAGMA table_info({table.name})")}
        chosen = [next((name for name in names if name in there), "") for names in table.columns]
        if not (chosen[1] and chosen[3]):
            continue
        title, url, count, time = (name or "NULL" for name in chosen)
        if chosen[2].endswith("_local") and "visit_count_remote" in there:
            count = f"{count} + visit_count_remote"
        if chosen[3].endswith("_local") and "last_visit_date_remote" in there:
            time = f"max({time}, last_visit_date_remote)"
        kept = f"WHERE coalesce({table.kept}, 0) = 0" if table.kept in there else ""
        if table.name == "moz_places":  # it has pages that were only bookmarked, too
            kept += f"{' AND' if kept else 'WHERE'} {count} > 0"
        return f"SELECT {title}, {url}, {count}, {time} FROM {table.name} {kept} ORDER BY 4", False
    fix = "give Chrome's History, Firefox's places.sqlite or Safari's History.db"
    raise DataError("it is no browser's history", path=place, fix=fix)


def _copy(member: Member, target: Path) -> None:
    with member.open() as source, target.open("wb") as copy:
        left = DATABASE_LIMIT
        while data := source.read(_COPY):
            left -= len(data)
            if left < 0:
                what = f"the database has more than {DATABASE_LIMIT} bytes"
                raise DataError(what, path=member.place, fix="give a part of the history")
            copy.write(data)


# JSON and CSV ---------------------------------------------------------------------------

#: Keys of the lists of pages: Takeout's, Safari's own export, of others the longest list.
_LISTS = ("Browser History", "history")
_ADDRESSES = ("url", "navigatedtourl", "uri", "address", "link", "href")
_TITLES = ("title", "pagetitle", "name")
_TIMES = (
    "lastvisittime", "visittime", "timeusec", "lastvisitdate", "visitedon", "visitedat", "datetime",
    "visitdate", "lastvisited", "date", "time", "timestamp", "dt", "visitedtime",
)  # fmt: skip
_COUNTS = ("visitcount", "visits", "count")


def _from_json(member: Member) -> Iterator[Visit | Unusable]:
    """The pages of a list of pages, which may lie under a name beside other lists."""
    lists: dict[Spot, _Pages] = {}
    problems: dict[Spot, list[Unusable]] = {}
    style = DateStyle()
    with member.open() as stream:
        enter = lambda spot: len(spot) < 2 and spot != ("*",)  # noqa: E731
        for spot, value in JsonTree(member.place, enter).values(stream):
            if value is OPENED or not spot or spot[-1] != "*":
                continue
            visit = (
                _visit(value, style) if isinstance(value, dict) else Unusable("it is not a page")
            )
            if isinstance(visit, Unusable):
                problems.setdefault(spot, []).append(visit)
            else:
                lists.setdefault(spot, _Pages(member.place)).add(visit)
    named: list[Spot] = [
        (name, "*") for name in _LISTS if (name, "*") in lists or (name, "*") in problems
    ]
    every: set[Spot] = {*lists, *problems}
    spots = named or sorted(every, key=lambda spot: -len(lists.get(spot, ())))
    if spots:
        yield from problems.get(spots[0], [])
        yield from lists.get(spots[0], [])


def _from_csv(member: Member) -> Iterator[Visit | Unusable]:
    style = DateStyle()
    for row in _rows(member):  # the dates of all rows say which number is the day
        if isinstance(row, dict):
            for value in _times(row):
                style.learn(value)
    pages = _Pages(member.place)
    for row in _rows(member):
        visit = _visit(row, style) if isinstance(row, dict) else row
        if isinstance(visit, Unusable):
            yield visit
        else:
            pages.add(visit)
    yield from pages


def _rows(member: Member) -> Iterator[dict[str, str] | Unusable]:
    with member.open() as stream:
        head = stream.read(4)
        stream.seek(0)
        wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = io.TextIOWrapper(stream, "utf-16" if wide else "utf-8-sig", "replace", newline="")
        lines = _lines(text)
        first = next(lines, "")
        delimiter = max(",;\t", key=first.count)
        rows = csv.reader(_chain(first, lines), delimiter=delimiter)
        header: list[str] = []
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield Unusable("the row is not valid CSV")
                continue
            if not header:
                header = [cell.strip() for cell in row]
            elif row:
                yield dict(zip(header, row, strict=False))


def _chain(first: str, lines: Iterable[str]) -> Iterator[str]:
    yield first
    yield from lines


def _lines(text: IO[str]) -> Iterator[str]:
    """Lines of bounded length; one that is longer comes as an empty one."""
    while line := text.readline(LINE_LIMIT):
        if len(line) == LINE_LIMIT and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = text.readline(LINE_LIMIT)
            line = "\n"
        yield line


def _visit(row: Mapping[str, Any], style: DateStyle) -> Visit | Unusable:
    """A page from a row with the names that exports use."""
    values = {re.sub(r"[\W_]+", "", str(key)).lower(): value for key, value in row.items()}
    url = next((_text(values[name]) for name in _ADDRESSES if _text(values.get(name))), "")
    if not url:
        return Unusable("it has no address")
    time = next((when for value in _times(row) if (when := moment(value, style))), None)
    counts = [str(values[name]) for name in _COUNTS if name in values]
    count = next((int(t) for t in counts if t.isascii() and t.isdecimal() and len(t) < 10), 1)
    about = values.get("metadata")
    if isinstance(about, dict):
        values = {**about, **values}
    title = next((_text(values[name]) for name in _TITLES if _text(values.get(name))), "")
    return Visit(title, url, count, time)


def _times(row: Mapping[str, Any]) -> list[Any]:
    """The values of a row that may be its time, the likeliest first."""
    values = {re.sub(r"[\W_]+", "", str(key)).lower(): value for key, value in row.items()}
    times = [values[name] for name in _TIMES if values.get(name) not in (None, "")]
    if values.get("date") and values.get("time") and not values.get("visittime"):
        times.insert(0, f"{values['date']} {values['time']}")
    return times


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
