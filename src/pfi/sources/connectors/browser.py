"""Connector for browsers: bookmarks as page and folder, history as subject and site.

Addresses lose what follows `?` and `#`, where searches, names and keys of sessions are, unless
that is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.browser_files import Bookmark, Visit, bookmarks, history, kind_of
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

_TITLE_LIMIT = 300
_ADDRESS_LIMIT = 200
#: Files of a browser's profile that a folder is searched for.
_FILES = ("Bookmarks", "History", "places.sqlite")
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
        """Whether it is a file of bookmarks or history, or a browser's profile."""
        if path.is_dir():
            return any((path / name).is_file() for name in _FILES)
        if path.suffix.lower() in (".csv", ".tsv", ".json"):
            kind = kind_of(path) or ""
            return kind.startswith("bookmarks:") or (bool(kind) and "history" in path.name.lower())
        return kind_of(path) is not None and (
            path.name in _FILES or path.suffix.lower() in (".html", ".htm", "")
        )

    def read(self, path: Path, options: BrowserOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a bookmark or page, in the order of the file.

        Raises:
            DataError: it is neither bookmarks nor a history, or nothing in it can be used.
        """
        files = (
            [path / name for name in _FILES if (path / name).is_file()] if path.is_dir() else [path]
        )
        ids: set[str] = set()
        source = f"browser:{path.name}"
        for file in files:
            kind = kind_of(file)
            if kind is None:
                fix = (
                    "give bookmarks (HTML, Chrome's Bookmarks) or a history; see docs/connectors.md"
                )
                raise DataError("it is neither bookmarks nor a history", path=file, fix=fix)
            found: Iterator[Bookmark | Visit | Unusable] = (
                bookmarks(file, kind) if kind.startswith("bookmarks") else history(file, kind)
            )
            number = 0
            while True:
                number += 1
                place = f"{file.name}, entry {number}"
                try:
                    item = next(found)
                except StopIteration:
                    break
                except DataError as error:
                    if not report.read:
                        raise
                    report.skip(f"the file ends there: {error.what}", place)
                    break
                try:
                    record = _record(item, options, source)
                    if record.id in ids:
                        raise Unusable("it repeats a page")
                except (Unusable, DataError) as problem:
                    reason = problem.reason if isinstance(problem, Unusable) else problem.what
                    report.skip(reason, place)
                    continue
                ids.add(record.id)
                report.read += 1
                yield record
        report.require_records(path, "give bookmarks with folders, or a history")


def _record(item: Bookmark | Visit | Unusable, options: BrowserOptions, source: str) -> Record:
    """The record of a bookmark or page.

    Raises:
        Unusable: it has none.
    """
    if isinstance(item, Unusable):
        raise item
    site, page = _address(item.url, options.queries)
    if item.time is None:  # the records of a history have a time, or none has
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
