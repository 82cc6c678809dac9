"""Notion's export "Markdown & CSV" as it is downloaded: a zip, in which its parts may be zips.

Files are called after their pages, with their ids: `Walks 0123456789abcdef0123456789abcdef.md`.
A database is a `.csv` (and `_all.csv`) beside a folder with a page a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pfi.errors import DataError
from pfi.readers.exports import Member, all_members, members, nested_members, parts

__all__ = ["check_form", "export_members", "has_parts", "is_notion_name", "without_links"]

_ID = r"[0-9a-f]{32}"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: A zip within the zip, of the pages or of a part of them.
_PART = re.compile(rf"(?:.*/)?(?:{_UUID}_)?Export(?:Block)?-{_UUID}(?:-Part-\d+)?\.zip", re.I)
#: Zips within a zip that are read.
PARTS_LIMIT = 100
_PAGE = re.compile(rf"(?:.*/)?[^/]*[ _-](?:{_ID}|{_UUID})(?:_all)?\.(?:md|csv|html)", re.I)
#: Lines that are a link alone: pages below this one, bookmarks by the title of their page, files.
_LINK_LINE = re.compile(
    r"^[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?!?\[(?:[^\[\]\n]|\[[^\[\]\n]*\])*\]"
    r"\((?:[^()\n]|\([^()\n]*\))*\)[ \t]*$",
    re.M,
)


def is_notion_name(name: str) -> bool:
    """Whether a file is called as Notion calls pages and databases."""
    return _PAGE.fullmatch(name) is not None


def export_members(path: Path, wanted: Callable[[str], bool], *, depth: int = 2) -> list[Member]:
    """The wanted files of a folder or archive, and of Notion's parts in it, by their paths.

    Raises:
        DataError: there is nothing at `path`, or an archive is damaged, encrypted or refused.
    """
    files = all_members(
        parts(path) if path.is_file() else [path],
        lambda name: wanted(name) or _PART.fullmatch(name) is not None,
        depth=depth,
    )
    inner = [file for file in files if _PART.fullmatch(file.name)]
    by_name = {file.name: file for file in files if file not in inner or wanted(file.name)}
    if len(inner) > PARTS_LIMIT:
        what = f"the zip has more than {PARTS_LIMIT} zips in it"
        raise DataError(what, path=path, fix="unpack it and give the folder")
    for part in inner:
        for file in nested_members(part, wanted):
            by_name.setdefault(file.name, file)
    return [by_name[name] for name in sorted(by_name)]


def has_parts(path: Path) -> bool:
    """Whether a folder or archive holds zips of Notion.

    Raises:
        DataError: as `export_members`.
    """
    return bool(members(path, lambda name: _PART.fullmatch(name) is not None, depth=1))


def check_form(names: Sequence[str], path: Path) -> None:
    """Check that the pages of an export are there as Markdown.

    Raises:
        DataError: they are HTML.
    """
    pages = [name.rpartition(".")[2].lower() for name in names if is_notion_name(name)]
    if "html" in pages and "md" not in pages:
        what = "this is an export of Notion as HTML"
        raise DataError(what, path=path, fix="export again and choose Markdown & CSV")


def without_links(text: str) -> str:
    """A page without the lines that are nothing but a link."""
    return _LINK_LINE.sub("", text)
