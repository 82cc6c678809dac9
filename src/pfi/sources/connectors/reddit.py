"""Connector for Reddit's export of an account: this person's own comments and posts.

`comments.csv` and `posts.csv` hold Markdown; what a comment answers is not in the export.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pfi.errors import DataError
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.markdown_text import plain
from pfi.readers.report import ImportReport
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.assistants import LEAST_WORDS, QUOTED
from pfi.sources.connectors import Connector
from pfi.sources.posts import Post, PostOptions, post_records
from pfi.sources.threads import time_or_none

_FILE = re.compile(r"(?:.*/)?(comments|posts|statistics)(?: ?\(\d+\))?\.csv", re.I)
_COMMENTS = frozenset(("id", "date", "subreddit", "body", "parent"))
_POSTS = frozenset(("id", "date", "subreddit", "title", "url", "body"))
_STATISTICS = frozenset(("statistic", "value"))
_DEPTH = 3
#: Characters of one cell; a post has 40,000 at most.
_CELL_LIMIT = 1 << 20
_HEAD = 1 << 14
#: Characters of a post from which its title is to be told.
_TITLE_TEXT = 1200

#: What Reddit puts in the place of words that are gone.
_GONE = re.compile(r"\s*\[ ?(?:deleted|removed)(?: by \w+)? ?\]\s*", re.I)
_SPOILER = re.compile(r">!(.+?)!<", re.S)
#: A post's own page, and pictures of its own: then the title is not another page's.
_OWN_PAGE = re.compile(
    r"\s*|/r/.*|https?://(?:[\w-]+\.)?reddit\.com/(?:r|user|u)/[\w-]+/comments/.*"
    r"|https?://(?:[iv]\.redd\.it|(?:www\.)?reddit\.com/gallery)/.*",
    re.I,
)
#: Lines that programs sign with.
_PROGRAM = re.compile(r"\bI am a bot\b|\bthis action was performed automatically\b", re.I)


class RedditOptions(PostOptions):
    """Options of the `reddit` connector."""


class RedditConnector(Connector[RedditOptions]):
    """Reads one record a comment or post."""

    name = "reddit"
    summary = "your own comments and posts in Reddit's export"
    options = RedditOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the export, its folder, or its `comments.csv` or `posts.csv`."""
        if path.is_file() and path.suffix.lower() != ".csv" and not is_archive(path):
            return False
        return any(_kind(file) in (_COMMENTS, _POSTS) for file in _files(path)[:8])

    def read(self, path: Path, options: RedditOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of the comments, then of the posts.

        Raises:
            DataError: there is no export, or nothing in it can be used.
        """
        kinds = [(file, _kind(file)) for file in _files(path)]
        if not any(kind in (_COMMENTS, _POSTS) for _, kind in kinds):
            fix = "give the zip as Reddit sends it, its folder, or its comments.csv"
            raise DataError("there are no comments or posts of Reddit", path=path, fix=fix)
        source = f"reddit:{path.name}"
        for file in (file for file, kind in kinds if kind is _STATISTICS):
            report.identify(_account(file), {})
        comments = [file for file, kind in kinds if kind is _COMMENTS]
        yield from post_records(_comments(comments, report), options, report, source)
        for file in (file for file, kind in kinds if kind is _POSTS):
            yield from _submissions(file, options, report, source)
        report.require_records(path, "its comments may be too short to learn from")


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: _FILE.fullmatch(name) is not None, depth=_DEPTH)


def _kind(file: Member) -> frozenset[str] | None:
    """Which table a file is, by its columns."""
    with file.open() as stream:
        line = stream.readline(_HEAD).decode("utf-8-sig", "replace")
    columns = {cell.strip().lower() for cell in next(csv.reader([line]), [])}
    return next((kind for kind in (_POSTS, _COMMENTS, _STATISTICS) if kind <= columns), None)


def _rows(file: Member, report: ImportReport) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `(place, cells by column)`; a row that is no CSV ends the file."""
    csv.field_size_limit(max(csv.field_size_limit(), _CELL_LIMIT))
    with file.open() as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "replace", newline="")
        rows = csv.DictReader(text)
        while True:
            place = f"{file.file_name}, line {rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                report.skip(f"the file ends there: the row is not valid CSV ({error})", place)
                return
            if row is None:
                return
            yield place, {k.strip().lower(): v for k, v in row.items() if isinstance(v, str) and k}


def _account(file: Member) -> list[str]:
    rows = {
        row.get("statistic", "").lower(): row.get("value", "")
        for _, row in _rows(file, ImportReport())
    }
    name = rows.get("account name", "").strip()
    return [f"u/{name}"] if name else []


def _comments(files: list[Member], report: ImportReport) -> Iterator[Post]:
    for file in files:
        for place, row in _rows(file, report):
            text = _words(row.get("body", ""), report, place)
            if row.get("id", "").strip() and text:
                # Every comment answers a post or a comment of somebody, often of oneself.
                yield Post(f"comment-{row['id'].strip()}", text, _time(row), reply=True)


def _submissions(
    file: Member, options: RedditOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    """Of each post the title to tell from its text, and the text; or a title that says it all."""
    posts: list[Post] = []
    for place, row in _rows(file, report):
        id_, title = row.get("id", "").strip(), html.unescape(row.get("title", "")).strip()
        if not id_:
            report.skip("it is not a post", place)
            continue
        body, time = row.get("body", ""), _time(row)
        text = _words(body, report, place) if body.strip() else ""
        if text:
            posts.append(Post(f"post-{id_}", text, time))
        if not title or _GONE.fullmatch(title):
            continue
        if not _OWN_PAGE.fullmatch(row.get("url", "")):
            report.skip("the title of a link may be the page's own", place)
        elif count_words(text) < LEAST_WORDS:
            posts.append(Post(f"post-{id_}#title", title, time))
        elif time is not None:
            report.read += 1
            fields = {"text": text[:_TITLE_TEXT]}
            yield Record(f"post-{id_}#title", "note_title", fields, title, time, source=source)
    yield from post_records(posts, options, report, source)


def _words(text: str, report: ImportReport, place: str) -> str:
    """Markdown as its author's own words; "" if there are none, which is counted."""
    text = _SPOILER.sub(r"\1", html.unescape(text)).replace("\u200b", "")
    if _GONE.fullmatch(text):
        report.skip("it was deleted", place)
        return ""
    if _PROGRAM.search(text.replace("^", "")):
        report.skip("a program posted it", place)
        return ""
    own = plain(text)
    if re.search(r"^ {0,3}>", text, re.M):
        report.skip(QUOTED, place)
    elif not own:
        report.skip("it holds no words", place)
    return own


def _time(row: Mapping[str, str]) -> datetime | None:
    return time_or_none(re.sub(r" UTC$", "+00:00", row.get("date", "").strip()) or None)
