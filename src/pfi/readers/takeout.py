"""Which files of a Google Takeout hold what: folders and files are named in the account's language.

So parts are told by what does not change: the name Takeout, suffixes, names of JSON keys.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from pfi.errors import DataError
from pfi.readers.exports import Member, all_members, is_zip, members, parts

#: Levels of folders in a Takeout.
DEPTH = 8
_NAME = re.compile(r"takeout-\d{8}T\d{6}Z.*\.(zip|tgz)", re.I)
_INDEX = "archive_browser.html"
_KEPT = (".mbox", ".json", ".html")


def is_takeout(path: Path) -> bool:
    """Whether a zip or folder is a Google Takeout, by its members' names."""
    try:
        if path.is_dir():
            inside = path / "Takeout"
            folder = path if path.name.startswith("Takeout") else inside
            zips = any(_NAME.fullmatch(file.name) and is_zip(file) for file in path.iterdir())
            return zips or (path / _INDEX).is_file() or (folder.is_dir() and _has_parts(folder))
        if not is_zip(path):
            return False
        return bool(members(path, _in_takeout))
    except (OSError, DataError):
        return False


def _has_parts(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.is_symlink() for entry in folder.iterdir())


def _in_takeout(name: str) -> bool:
    root, _, rest = name.partition("/")
    return root == "Takeout" and bool(rest)


def takeout_members(path: Path) -> list[Member]:
    """The mail, JSON and HTML files of a Takeout: a zip with its other parts, or a folder.

    The folder may be the unpacked Takeout or one with its zips.

    Raises:
        DataError: there is no such file or folder, or a zip is refused.
    """
    if not path.is_dir():
        return all_members(parts(path), _may_be_read)
    zips = sorted(file for file in path.iterdir() if _NAME.fullmatch(file.name) and is_zip(file))
    return all_members([path, *zips], _may_be_read, depth=DEPTH)


def _may_be_read(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _KEPT
