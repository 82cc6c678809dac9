"""Connector for browsers: bookmarks as page and folder, history as subject and site.

Addresses lose what follows `?` and `#`, where searches, names and keys of sessions are, unless
that is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.browser_files import Bookmark, bookmarks, is_list_of_pages, kind_of
from pfi.readers.browser_history import Visit, history, is_history
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.report import ImportReport
from pfi.readers.takeout import is_takeout
from pfi.readers.values import Unusable
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

_TITLE_LIMIT = 300
_ADDRESS_LIMIT = 200
#: Files of a browser's profile and of exports that a folder is searched for.
_FILES = (
    "Bookmarks", "History", "places.sqlite", "History.db", "Bookmarks.plist", "ephy-history.db",
    "history.sqlite", "BrowserHistory.json", "History.json", "Bookmarks.html",
)  # fmt: skip
#: What a browser has not moved into its database yet lies beside it.
_LOG = "-wal"
_DATABASES = (".db", ".sqlite", ".sqlite3", ".db3", "")
#: Files of an archive that may be bookmarks or histories, by suffix; what they are is looked at.
_EXPORTED = (".html", ".htm", ".json", ".csv", ".plist", ".db", ".sqlite")
#: Where the words of a search are in an address.
_WORDS = ("q", "query", "search_query", "p", "text", "wd", "k", "search")
#: Ends of titles that only say which site it is, like ` - Wikipedia`.
_SITE_END = re.compile(r"\s+[-–—|·•]\s+[^-–—|·•]{2,40}$")
_LOCAL = re.compile(
    r"localhost|\d+\.\d+\.\d+\.\d+|\[.*\]|[^.]*|.*\.(local|lan|internal|home)", re.I
)


class BrowserOptions(Options):
    """Options of the `browser` connector."""

    address: Literal["site", "page"] = Field(
        "site", description="what history answers with: the site, or the address of the page"
    )
    visits: int = Field(
        2, ge=1, description="pages of the history that were seen less are left out"
    )
    queries: bool = Field(
        False, description="keep what follows ? in addresses, and read what you searched for"
    )


class BrowserConnector(Connector[BrowserOptions]):
    """Reads one record a bookmark or page."""

    name = "browser"
    summary = "bookmarks and history of a browser, as folders and sites of pages"
    options = BrowserOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a file of bookmarks or history, a browser's profile, or its export."""
        if path.is_dir():
            return any((path / name).is_file() and _is_browsers(path / name) for name in _FILES)
        if is_zip(path):
            return not is_takeout(path) and bool(_files(path))
        return path.is_file() and _is_browsers(path)

    def read(self, path: Path, options: BrowserOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a bookmark or page, in the order of the file.

        Raises:
            DataError: it is neither bookmarks nor a history, or nothing in it can be used.
        """
        files = _files(path)
        if not files:
            fix = "give bookmarks (HTML, Chrome's Bookmarks) or a history; see docs/connectors.md"
            raise DataError("it is neither bookmarks nor a history", path=path, fix=fix)
        yield from page_records(files, options, report, f"browser:{path.name}")
        report.require_records(path, "give bookmarks with folders, or a history")


def page_records(
    files: Sequence[Member], options: BrowserOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    """The records of a browser's files, each once; other files are passed over.

    A file of bookmarks without any dates, as Safari writes them, gives records without a time, or
    of the time of the file where others of `files` have dates.

    Raises:
        DataError: the first file that is a browser's cannot be read.
    """
    beside = {member.file_name: member for member in files}
    kinds = [(member, kind) for member in files if (kind := kind_of(member)) is not None]
    undated = {
        member.name
        for member, kind in kinds
        if kind.startswith("bookmarks") and _undated(member, kind)
    }
    ids: set[str] = set()
    for member, kind in kinds:
        if kind.startswith("bookmarks"):
            items: Iterator[Bookmark | Visit | Unusable] = iter(bookmarks(member, kind))
        else:
            items = history(member, kind, beside)
        time: datetime | None = None
        if member.name in undated:
            report.note(f"the bookmarks of {member.file_name} have no dates")
            time = _time_of_file(member) if len(undated) < len(kinds) else None
        for number in count(1):
            place = f"{member.file_name}, entry {number}"
            try:
                item = next(items)
            except StopIteration:
                break
            except DataError as error:
                if not report.read:
                    raise
                report.skip(f"the file ends there: {error.what}", place)
                break
            if isinstance(item, Bookmark) and time is not None:
                item = item._replace(time=time)
            try:
                record = _record(item, options, source, dated=member.name not in undated)
                if record.id in ids:
                    raise Unusable("it repeats a page")
            except (Unusable, DataError) as problem:
                reason = problem.reason if isinstance(problem, Unusable) else problem.what
                report.skip(reason, place)
                continue
            ids.add(record.id)
            report.read += 1
            yield record


def _files(path: Path) -> list[Member]:
    """The files of a browser that a path gives: itself, those of a folder, those of a zip."""
    if path.is_dir():
        names = {*_FILES, *(f"{name}{_LOG}" for name in _FILES)}
        return members(path, lambda name: name in names, depth=1)
    if is_zip(path):
        wanted = members(path, lambda name: name.lower().endswith((*_EXPORTED, _LOG)))
        return [m for m in wanted if m.name.endswith(_LOG) or _is_strongly(m, kind_of(m))]
    found = members(path, lambda name: True)
    log = path.with_name(path.name + _LOG)
    if kind_of(found[0]) is None:
        return []
    return [*found, *(members(log, lambda name: True) if log.is_file() else [])]


def _is_browsers(path: Path) -> bool:
    """Whether a file is bookmarks or a history, by its beginning and name."""
    [member] = members(path, lambda name: True)
    kind = kind_of(member)
    if kind == "history:sqlite":
        return path.suffix.lower() in _DATABASES and is_history(path)
    suffixes = (".html", ".htm", ".plist", ".csv", ".tsv", ".json", "")
    return path.suffix.lower() in suffixes and _is_strongly(member, kind)


def _is_strongly(member: Member, kind: str | None) -> bool:
    """Whether a file's kind is beyond doubt: lists with addresses and titles may be anything."""
    if kind in ("history:csv", "history:json"):
        with member.open() as stream:
            return is_list_of_pages(stream.read(4096)) or "history" in member.file_name.lower()
    return kind is not None


def _undated(member: Member, kind: str) -> bool:
    """Whether no bookmark of a file has a time."""
    try:
        return all(bookmark.time is None for bookmark in bookmarks(member, kind))
    except DataError:
        return False


def _time_of_file(member: Member) -> datetime | None:
    """When a file, or the zip that it is in, was last changed."""
    for place in (member.place, *member.place.parents):
        if place.is_file():
            return datetime.fromtimestamp(int(place.stat().st_mtime), UTC)
    return None


def _record(
    item: Bookmark | Visit | Unusable, options: BrowserOptions, source: str, *, dated: bool
) -> Record:
    """The record of a bookmark or page.

    Raises:
        Unusable: it has none.
    """
    if isinstance(item, Unusable):
        raise item
    site, page = _address(item.url, options.queries)
    if item.time is None and dated:  # the records of a history have a time, or none has
        raise Unusable("it has no time")
    title = item.title[:_TITLE_LIMIT].strip()
    if isinstance(item, Bookmark):
        folder = " / ".join(item.folders) or ", ".join(item.tags)
        if not folder:
            raise Unusable("it is in no folder and has no tags")
        text = f"{title} ({page})" if title and title != item.url else page
        task, fields, output = "bookmark_folder", {"page": text}, folder
    else:
        searched = _searched(item.url) if options.queries else ""
        if item.seen < options.visits and not searched:
            raise Unusable("it was seen too seldom")
        subject = searched or _SITE_END.sub("", title)
        if not subject or "://" in subject:
            raise Unusable("it has no title")
        answer = site if options.address == "site" else page
        task, fields, output = "page_site", {"subject": subject}, answer
    key = f"{task}\0{fields}\0{output}".encode("utf-8", "replace")
    id_ = hashlib.blake2b(key, digest_size=8).hexdigest()
    return Record(id_, task, fields, output, item.time, source=source)


def _address(url: str, queries: bool) -> tuple[str, str]:
    """The site and the page of an address, without names and keys that may be in it.

    Raises:
        Unusable: it is not a page of the web.
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise Unusable("its address is not understood") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Unusable("it is not a page of the web")
    if _LOCAL.fullmatch(host):
        raise Unusable("it is a page of this machine or network")
    site = host.removeprefix("www.") + (f":{port}" if port not in (None, 80, 443) else "")
    path = unquote(parts.path, errors="replace").rstrip("/")
    page = f"{site}{path}"[:_ADDRESS_LIMIT]
    if queries and parts.query:
        page = f"{page}?{parts.query}"[: 2 * _ADDRESS_LIMIT]
    return site, page


def _searched(url: str) -> str:
    """The words that a search engine was asked; empty if it was not."""
    parts = urlsplit(url.strip())
    try:
        values = parse_qs(parts.query, max_num_fields=100)
    except ValueError:
        return ""
    if not re.search(r"search|/results|find|duckduckgo|^$|^/$", f"{parts.path}") and not re.search(
        r"search|duckduckgo|google|bing", parts.netloc
    ):
        return ""
    found = next((values[name][0] for name in _WORDS if values.get(name)), "")
    return " ".join(found.split())[:_TITLE_LIMIT]
