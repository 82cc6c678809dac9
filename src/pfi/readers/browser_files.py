"""What browsers write: bookmarks as HTML or JSON, history as SQLite, CSV or JSON.

A browser's own SQLite files are copied before they are opened, for it may be using them.
"""

from __future__ import annotations

import csv
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from pfi.errors import DataError
from pfi.readers.pieces import bounded_lines, open_file, parse_json
from pfi.readers.values import Unusable, past_time

#: Largest JSON file and longest line that is read.
JSON_LIMIT = 256 << 20
LINE_LIMIT = 100_000
_CHUNK = 1 << 16
_CHROME_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
_SQLITE = b"SQLite format 3\0"


class Bookmark(NamedTuple):
    """A page that was kept; `folders` from the outermost, without the browser's own roots."""

    title: str
    url: str
    folders: tuple[str, ...]
    tags: tuple[str, ...]
    time: datetime | None


class Visit(NamedTuple):
    """A page that was seen, at its latest."""

    title: str
    url: str
    seen: int
    time: datetime | None


def kind_of(path: Path) -> str | None:
    """What a file holds, and its form, like `history:sqlite`; None if it is not a browser's."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return None
    lower = head.lower()
    if head.startswith(_SQLITE):
        return "history:sqlite"
    if b"netscape-bookmark-file" in lower or (b"<dl>" in lower and b"<dt>" in lower):
        return "bookmarks:html"
    if path.suffix.lower() in (".csv", ".tsv") and b"url" in lower.partition(b"\n")[0]:
        return "history:csv"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        if b'"roots"' in head or b'"checksum"' in head or b"text/x-moz-place" in head:
            return "bookmarks:json"
        if b'"Browser History"' in head or (b'"url"' in lower and b'"title"' in lower):
            return "history:json"
    return None


# Bookmarks ------------------------------------------------------------------------------


class _Netscape(HTMLParser):
    """The HTML that every browser exports: folders are headings before lists."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Bookmark] = []
        self._folders: list[str] = []
        self._next = ""
        self._root = False
        self._attributes: dict[str, str] | None = None
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "h3":
            self._text = []
            self._root = "personal_toolbar_folder" in values or "unfiled_bookmarks_folder" in values
        elif tag == "a":
            self._finish()
            self._attributes, self._text = values, []
        elif tag == "dl":
            self._folders.append(self._next)
            self._next = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "h3" and self._text is not None:
            self._next = "" if self._root else "".join(self._text).strip()
            self._text = None
        elif tag == "a":
            self._finish()
        elif tag == "dl" and self._folders:
            self._folders.pop()

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def _finish(self) -> None:
        if self._attributes is None:
            return
        values, title = self._attributes, " ".join("".join(self._text or []).split())
        self._attributes = self._text = None
        tags = tuple(tag.strip() for tag in values.get("tags", "").split(",") if tag.strip())
        folders = tuple(filter(None, self._folders))
        time = _unix(values.get("add_date"))
        self.found.append(Bookmark(title, values.get("href", ""), folders, tags, time))


def bookmarks(path: Path, form: str) -> Iterator[Bookmark]:
    """The bookmarks of a file, in its order.

    Raises:
        DataError: the file cannot be read.
    """
    if form == "bookmarks:html":
        yield from _from_html(path)
        return
    value = _json(path)
    roots = value.get("roots") if isinstance(value, dict) else None
    if isinstance(roots, dict):
        for node in roots.values():
            yield from _from_chrome(node, top=True)
    else:
        yield from _from_firefox(value)


def _from_html(path: Path) -> Iterator[Bookmark]:
    reader = _Netscape()
    with open_file(path) as file:
        decoded = file.read(_CHUNK)
        rest = b""
        while decoded:
            # Chunks end between lines, so that no character is cut.
            piece, newline, rest = (rest + decoded).rpartition(b"\n")
            reader.feed((piece + newline).decode("utf-8", "replace"))
            yield from reader.found
            reader.found.clear()
            decoded = file.read(_CHUNK)
        reader.feed(rest.decode("utf-8", "replace"))
        reader.close()
    yield from reader.found


def _from_chrome(node: Any, *, top: bool = False) -> Iterator[Bookmark]:
    """Bookmarks of Chrome and its kin below one node; without recursion, for nests are deep."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(node, ())]
    while stack:
        node, folders = stack.pop()
        if not isinstance(node, dict):
            continue
        name, children = _text(node.get("name")), node.get("children")
        if isinstance(children, list):
            inner = folders if top or not name else (*folders, name)
            stack.extend((child, inner) for child in reversed(children))
        elif isinstance(node.get("url"), str):
            time = _micro(node.get("date_added"), _CHROME_EPOCH)
            yield Bookmark(name, node["url"], folders, (), time)
        top = False


def _from_firefox(value: Any) -> Iterator[Bookmark]:
    """Bookmarks of Firefox's JSON backup; its outermost two levels are its own."""
    stack: list[tuple[Any, tuple[str, ...], int]] = [(value, (), 0)]
    while stack:
        node, folders, depth = stack.pop()
        if not isinstance(node, dict):
            continue
        title, children = _text(node.get("title")), node.get("children")
        if isinstance(children, list):
            inner = (*folders, title) if depth > 1 and title else folders
            stack.extend((child, inner, depth + 1) for child in reversed(children))
        elif isinstance(node.get("uri"), str):
            tags = tuple(tag.strip() for tag in _text(node.get("tags")).split(",") if tag.strip())
            time = _micro(node.get("dateAdded"), datetime.fromtimestamp(0, UTC))
            yield Bookmark(title, node["uri"], folders, tags, time)


# History --------------------------------------------------------------------------------

_CHROME = """SELECT title, url, visit_count, last_visit_time FROM urls
             WHERE hidden = 0 ORDER BY last_visit_time, id"""
_FIREFOX = """SELECT title, url, visit_count, last_visit_date FROM moz_places
              WHERE hidden = 0 AND visit_count > 0 ORDER BY last_visit_date, id"""


def history(path: Path, form: str) -> Iterator[Visit | Unusable]:
    """The pages of a file that were seen; `Unusable` for what is damaged.

    Raises:
        DataError: the file cannot be read.
    """
    if form == "history:sqlite":
        yield from _from_sqlite(path)
    elif form == "history:csv":
        yield from _from_csv(path)
    else:
        value = _json(path)
        if isinstance(value, dict):  # Google's takeout has the list under a name
            value = next((each for each in value.values() if isinstance(each, list)), [])
        for row in value if isinstance(value, list) else []:
            yield _visit(row) if isinstance(row, dict) else Unusable("it is not a page")


def _from_sqlite(path: Path) -> Iterator[Visit]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        try:
            shutil.copyfile(path, copy)
            for suffix in ("-wal", "-shm"):  # what the browser has not moved into the file yet
                beside = path.with_name(path.name + suffix)
                if beside.is_file():
                    shutil.copyfile(beside, copy.with_name(copy.name + suffix))
        except OSError as error:
            what = f"the file cannot be copied ({error.strerror})"
            raise DataError(what, path=path, fix="close the browser and try again") from error
        try:
            # Not pfi._util.sqlite: the file is not ours, and not encrypted.
            with closing(sqlite3.connect(copy)) as db:
                db.execute("PRAGMA query_only = 1")
                db.execute("PRAGMA trusted_schema = 0")
                db.text_factory = lambda data: data.decode("utf-8", "replace")
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
                if not tables & {"urls", "moz_places"}:
                    fix = "give Chrome's History or Firefox's places.sqlite"
                    raise DataError("it is no browser's history", path=path, fix=fix)
                chrome = "urls" in tables
                epoch = _CHROME_EPOCH if chrome else datetime.fromtimestamp(0, UTC)
                for title, url, count, time in db.execute(_CHROME if chrome else _FIREFOX):
                    if isinstance(url, str):
                        number = count if isinstance(count, int) else 1
                        yield Visit(_text(title), url, number, _micro(time, epoch))
        except sqlite3.Error as error:
            fix = "close the browser and copy the file again"
            raise DataError(f"the file is damaged ({error})", path=path, fix=fix) from error


def _from_csv(path: Path) -> Iterator[Visit | Unusable]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = (line or "" for _, line in bounded_lines(path, "utf-8-sig", LINE_LIMIT))
    rows = csv.reader(lines, delimiter=delimiter)
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
            header = [cell.strip().lower() for cell in row]
        elif row:
            yield _visit(dict(zip(header, row, strict=False)))


_TIMES = (
    "last_visit_time", "lastvisittime", "visit_time", "visittime", "time_usec", "last_visit_date",
    "datetime", "date", "time", "timestamp", "visited_at",
)  # fmt: skip
_COUNTS = ("visit_count", "visitcount", "visits")


def _visit(row: Mapping[str, Any]) -> Visit | Unusable:
    """A page from a row with the names that exports use."""
    values = {str(key).lower(): value for key, value in row.items()}
    url = _text(values.get("url") or values.get("navigatedtourl"))
    if not url:
        return Unusable("it has no address")
    times = [values[name] for name in _TIMES if values.get(name) not in (None, "")]
    if "date" in values and "time" in values and not values.get("visit_time"):
        times.insert(0, f"{values['date']} {values['time']}")
    time = next((found for value in times if (found := _any_time(value)) is not None), None)
    counts = [str(values[name]) for name in _COUNTS if name in values]
    count = next((int(text) for text in counts if text.isascii() and text.isdecimal()), 1)
    return Visit(_text(values.get("title")), url, min(count, 1 << 30), time)


# Values ---------------------------------------------------------------------------------


def _any_time(value: Any) -> datetime | None:
    """A time as text, or as seconds, milliseconds or microseconds since 1970 or 1601."""
    if isinstance(value, str) and value.strip().replace(".", "", 1).isdecimal():
        value = float(value) if len(value) < 40 else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 1e16 < value < 1e17:  # microseconds since 1601
            return _micro(int(value), _CHROME_EPOCH)
        for scale, least in ((1e6, 1e14), (1e3, 1e11)):
            if value > least:
                return _unix(value / scale)
        return _unix(value)
    try:
        return past_time(value)
    except Unusable:
        return None


def _unix(value: Any) -> datetime | None:
    try:
        time = past_time(value)
    except Unusable:
        return None
    return time if time is not None and time.year > 1970 else None


def _micro(value: Any, epoch: datetime) -> datetime | None:
    """A time from microseconds since `epoch`, to whole seconds."""
    try:
        time = epoch + timedelta(seconds=int(value) // 1_000_000)
        return past_time(time.isoformat()) if time.year > 1970 else None
    except (TypeError, ValueError, OverflowError, Unusable):
        return None


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _json(path: Path) -> Any:
    with open_file(path) as file:
        data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise DataError(f"the file has more than {JSON_LIMIT} bytes", path=path, fix="export less")
    try:
        return parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"the file is not JSON ({error})", path=path, fix="export again") from error
