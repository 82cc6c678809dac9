"""Which files of a Google Takeout hold what: folders and files are named in the account's language.

So parts are told by what does not change: the name Takeout, suffixes, names of JSON files and keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, all_members, is_archive, members, parts

#: Levels of folders in a Takeout.
DEPTH = 8
#: Largest JSON file that is read whole, in bytes: a note, a list of a chat's members.
SMALL_JSON = 4 << 20
_NAME = re.compile(r"takeout-\d{8}T\d{6}Z.*\.(?:zip|tgz|tar\.gz)", re.I)
_INDEX = "archive_browser.html"
_KEPT = (".mbox", ".json", ".html")
_MESSAGES, _GROUP, _USER = "messages.json", "group_info.json", "user_info.json"
#: Keys that every note of Keep has.
_NOTE_KEYS = frozenset(("isTrashed", "isPinned", "isArchived"))
#: Files of a folder that are looked at to see whether they are notes.
_LOOKED_AT = 3


@dataclass
class Takeout:
    """The files of a Takeout by what they hold.

    Attributes:
        mail: mboxes of Gmail.
        chats: `messages.json` of each chat, with the `group_info.json` beside it.
        notes: JSON files of Keep.
        browser: Chrome's history and bookmarks.
        addresses: of the account, as far as the chats tell.
    """

    mail: list[Member] = field(default_factory=list)
    chats: list[tuple[Member, Member | None]] = field(default_factory=list)
    notes: list[Member] = field(default_factory=list)
    browser: list[Member] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)


def is_takeout(path: Path) -> bool:
    """Whether an archive or folder is a Google Takeout, by its members' names."""
    try:
        if path.is_dir():
            archives = any(
                _NAME.fullmatch(file.name) and is_archive(file) for file in path.iterdir()
            )
            return archives or _is_unpacked(path)
        return is_archive(path) and bool(members(path, _in_takeout))
    except (OSError, DataError):
        return False


def _is_unpacked(folder: Path) -> bool:
    inside = folder.name == "Takeout" and any(entry.is_dir() for entry in folder.iterdir())
    return inside or (folder / _INDEX).is_file() or (folder / "Takeout").is_dir()


def _in_takeout(name: str) -> bool:
    root, _, rest = name.partition("/")
    return root == "Takeout" and bool(rest)


def read_takeout(path: Path) -> Takeout:
    """The files of a Takeout: an archive with its other parts, a folder of them, or one unpacked.

    Raises:
        DataError: there is no such file or folder, or a zip is refused.
    """
    found = Takeout()
    kept = _members(path)
    for member in kept:
        if PurePosixPath(member.name).suffix.lower() == ".mbox":
            found.mail.append(member)
    jsons = [member for member in kept if member.name.lower().endswith(".json")]
    by_name = {member.name: member for member in jsons}
    for folder, group in groupby(jsons, key=_folder):
        files = list(group)
        for member in files:
            if member.file_name == _MESSAGES:
                found.chats.append((member, by_name.get(f"{folder}/{_GROUP}")))
            elif member.file_name == _USER:
                found.addresses += _addresses(small_json(member))
        if _holds_notes(files):
            found.notes += files
    found.browser = [member for member in kept if _is_browser(member)]
    return found


def _members(path: Path) -> list[Member]:
    if not path.is_dir():
        return all_members(parts(path), _may_be_read)
    archives = (file for file in path.iterdir() if _NAME.fullmatch(file.name) and is_archive(file))
    return all_members([path, *sorted(archives)], _may_be_read, depth=DEPTH)


def _may_be_read(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _KEPT


def _folder(member: Member) -> str:
    return PurePosixPath(member.name).parent.as_posix()


def small_json(member: Member) -> Any:
    """A small JSON file; None if it is none."""
    if member.size > SMALL_JSON:
        return None
    try:
        with member.open() as stream:
            return json.loads(stream.read(SMALL_JSON))
    except (DataError, ValueError, RecursionError):
        return None


def _addresses(value: Any) -> Iterator[str]:
    user = value.get("user") if isinstance(value, dict) else None
    address = user.get("email") if isinstance(user, dict) else None
    if isinstance(address, str) and "@" in address:
        yield address.strip().lower()


def _holds_notes(files: Sequence[Member]) -> bool:
    values = (small_json(member) for member in files[:_LOOKED_AT])
    return any(isinstance(value, dict) and value.keys() >= _NOTE_KEYS for value in values)


def _is_browser(member: Member) -> bool:
    """Whether a file is Chrome's: its folder has the name in every language."""
    folder = PurePosixPath(member.name).parent.name
    return folder == "Chrome" and member.name.lower().endswith((".json", ".html"))
