"""What browsers write: which file is what, and bookmarks as HTML, JSON or property list."""

from __future__ import annotations

import plistlib
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from typing import IO, Any, NamedTuple

from pfi.errors import DataError
from pfi.readers.browser_times import moment
from pfi.readers.exports import Member
from pfi.readers.pieces import parse_json

#: Largest JSON file or property list that is read.
JSON_LIMIT = 256 << 20
_CHUNK = 1 << 16
_SQLITE = b"SQLite format 3\0"
#: Safari's own lists and what they hold that is no folder of anybody's.
_SAFARI_LISTS = {"BookmarksBar", "BookmarksMenu", "com.apple.ReadingList"}


class Bookmark(NamedTuple):
    """A page that was kept; `folders` from the outermost, without the browser's own roots."""

    title: str
    url: str
    folders: tuple[str, ...]
    tags: tuple[str, ...]
    time: datetime | None


def kind_of(member: Member) -> str | None:
    """What a file holds, and its form, like `history:sqlite`; None if it is not a browser's."""
    try:
        with member.open() as file:
            head = file.read(4096)
    except DataError:
        return None
    suffix = member.file_name.lower().rpartition(".")[2]
    lower = head.lower()
    if head.startswith(_SQLITE):
        return "history:sqlite"
    if suffix == "plist" and (head.startswith(b"bplist") or b"webbookmarktype" in lower):
        return "bookmarks:plist"
    if suffix in ("csv", "tsv"):
        wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        first = (head.decode("utf-16", "replace").encode() if wide else head).lower()
        return "history:csv" if b"url" in first.partition(b"\n")[0] else None
    if b"netscape-bookmark-file" in lower or (b"<dl>" in lower and b"<dt>" in lower):
        return "bookmarks:html"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        if b'"roots"' in head or b'"checksum"' in head or b"text/x-moz-place" in head:
            return "bookmarks:json"
        if is_list_of_pages(head) or (b'"url"' in lower and b'"title"' in lower):
            return "history:json"
    return None


def is_list_of_pages(head: bytes) -> bool:
    """Whether a JSON file begins as Takeout's or Safari's history does."""
    return b'"Browser History"' in head or (b'"data_type"' in head and b'"history"' in head)


# Bookmarks ------------------------------------------------------------------------------


class _Netscape(HTMLParser):
    """The HTML that every browser exports: folders are headings before lists."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.bookmarks: list[Bookmark] = []
        self._folders: list[str] = []
        self._next = ""
        self._root = False
        self._attributes: dict[str, str] | None = None
        self._text: list[str] | None = None
        self._described = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "dd":
            self._finish()
            self._described = True  # links in a description are no bookmarks
        elif tag in ("dt", "dl", "h3"):
            self._described = False
        if tag == "h3":
            self._text = []
            self._root = "personal_toolbar_folder" in values or "unfiled_bookmarks_folder" in values
        elif tag == "a" and not self._described:
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
        time = moment(values.get("add_date"))
        self.bookmarks.append(Bookmark(title, values.get("href", ""), folders, tags, time))


def bookmarks(member: Member, form: str) -> Iterator[Bookmark]:
    """The bookmarks of a file, in its order.

    Raises:
        DataError: the file cannot be read.
    """
    with member.open() as file:
        if form == "bookmarks:html":
            yield from _from_html(file)
            return
        data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        what = f"the file has more than {JSON_LIMIT} bytes"
        raise DataError(what, path=member.place, fix="export less")
    if form == "bookmarks:plist":
        try:
            yield from _from_safari(plistlib.loads(data))
        except (ValueError, OverflowError, RecursionError, plistlib.InvalidFileException) as error:
            what = f"the file is no property list ({error})"
            raise DataError(what, path=member.place, fix="export bookmarks as HTML") from error
        return
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except ValueError as error:
        what = f"the file is not JSON ({error})"
        raise DataError(what, path=member.place, fix="export again") from error
    roots = value.get("roots") if isinstance(value, dict) else None
    if isinstance(roots, dict):
        for node in roots.values():
            yield from _from_chrome(node, top=True)
    else:
        yield from _from_firefox(value)


def _from_html(file: IO[bytes]) -> Iterator[Bookmark]:
    reader = _Netscape()
    decoded = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
    rest = b""
    while decoded:
        # Chunks end between lines, so that no character is cut.
        piece, newline, rest = (rest + decoded).rpartition(b"\n")
        reader.feed((piece + newline).decode("utf-8", "replace"))
        yield from reader.bookmarks
        reader.bookmarks.clear()
        decoded = file.read(_CHUNK)
    reader.feed(rest.decode("utf-8", "replace"))
    reader.close()
    yield from reader.bookmarks


def _from_safari(value: Any) -> Iterator[Bookmark]:
    """Bookmarks of Safari's property list; dates are only in its reading list."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(value, ())]
    while stack:
        node, folders = stack.pop()
        if not isinstance(node, dict):
            continue
        name, children = _text(node.get("Title")), node.get("Children")
        if isinstance(children, list):
            own = name and name not in _SAFARI_LISTS
            inner = (*folders, name) if own else folders
            stack.extend((child, inner) for child in reversed(children))
        elif isinstance(node.get("URLString"), str):
            about = node.get("URIDictionary")
            title = _text(about.get("title")) if isinstance(about, dict) else ""
            reading = node.get("ReadingList")
            time = moment(reading.get("DateAdded")) if isinstance(reading, dict) else None
            yield Bookmark(title, node["URLString"], folders, (), time)


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
            time = moment(node.get("date_added"))
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
            time = moment(node.get("dateAdded"))
            yield Bookmark(title, node["uri"], folders, tags, time)


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
