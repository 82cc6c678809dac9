"""Connector for a repository of Bluesky (AT Protocol): this person's own posts in `repo.car`.

The repository is a tree of blocks whose nodes name records by `collection/key`; posts are those of
`app.bsky.feed.post` in the tree of the last commit.  Reposts, likes and quoted posts are references
to what others wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pfi.errors import DataError
from pfi.readers.car_files import Block, block_at, blocks, decoded, roots
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import Connector
from pfi.sources.posts import Post, PostOptions, post_records
from pfi.sources.threads import time_or_none

_COLLECTION = b"app.bsky.feed.post/"
_TYPE = "app.bsky.feed.post"
_DEPTH = 3
#: Blocks in which the commit is looked for: first in what servers send, last in old backups.
_GLANCES = 200_000
#: How a node of the tree begins: a map of two, of which the first is `e`.
_NODE = b"\xa2ae"
#: The letters of keys that count microseconds, and bits that are no part of the time.
_SORTABLE, _CLOCK_BITS = "234567abcdefghijklmnopqrstuvwxyz", 10
_KEY = re.compile(rf"[{_SORTABLE}]{{13}}")
_LINK = "app.bsky.richtext.facet#link"


class BlueskyOptions(PostOptions):
    """Options of the `bluesky` connector."""


class BlueskyConnector(Connector[BlueskyOptions]):
    """Reads one record a post."""

    name = "bluesky"
    summary = "your own posts in a repository of Bluesky (repo.car)"
    options = BlueskyOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a repository, or a folder or archive with one."""
        if path.is_file() and path.suffix.lower() != ".car" and not is_archive(path):
            return False
        return any(_owner(file) for file in _files(path)[:4])

    def read(self, path: Path, options: BlueskyOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a post, in the order of the file.

        Raises:
            DataError: there is no repository, or nothing in it can be used.
        """
        owned = [(file, owner) for file in _files(path) if (owner := _owner(file))]
        if not owned:
            fix = "give the repo.car that Settings, Account, Export my data gives"
            raise DataError("there is no repository of Bluesky", path=path, fix=fix)
        if len({owner for _, owner in owned}) > 1:
            fix = "give your own repository alone"
            raise DataError("there are repositories of several people", path=path, fix=fix)
        report.identify([owned[0][1]], {})
        posts = (post for file, owner in owned for post in _posts(file, owner, report))
        yield from post_records(posts, options, report, f"bluesky:{path.name}")
        report.require_records(path, "its posts may be too short to learn from")


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: name.lower().endswith(".car"), depth=_DEPTH)


def _commit(file: Member) -> dict[str, Any]:
    """The commit, which is the root of the file: whose repository it is, and its tree."""
    named = roots(file)
    try:
        for block in islice(blocks(file), _GLANCES if named else 0):
            if block.cid in named:
                commit = decoded(block.content)
                return commit if isinstance(commit, dict) else {}
    except DataError:
        pass
    return {}


def _owner(file: Member) -> str | None:
    did = _commit(file).get("did")
    return did if isinstance(did, str) and did.startswith("did:") else None


def _posts(file: Member, owner: str, report: ImportReport) -> Iterator[Post]:
    """The posts that the tree of the commit names; those of older trees may be there, too."""
    nodes = {
        block.cid: block.place
        for block in _blocks(file, ImportReport())
        if block.content.startswith(_NODE)
    }
    keys = dict(_post_keys(file, nodes, _commit(file).get("data"), report))
    for block in _blocks(file, report):
        key = keys.pop(block.cid, None)
        if key is None:
            continue
        post = _post(decoded(block.content), key, owner, report)
        if post is not None:
            yield post


def _blocks(file: Member, report: ImportReport) -> Iterator[Block]:
    """The blocks of a file; one that breaks off gives what comes before."""
    try:
        yield from blocks(file)
    except DataError as error:
        report.skip(f"the file ends there: {error.what}", file.name)


def _post_keys(
    file: Member, nodes: dict[bytes, int], root: Any, report: ImportReport
) -> Iterator[tuple[bytes, str]]:
    """The CIDs and keys of the posts that a tree names.

    Args:
        file: the repository.
        nodes: where its nodes are, by CID; emptied of those that are read.
        root: the CID of the tree.
        report: told of nodes that are not there.
    """
    waiting = [root]
    with file.open() as stream:
        while waiting:
            cid = waiting.pop()
            place = nodes.pop(cid, None) if isinstance(cid, bytes) else None
            block = block_at(stream, place) if place is not None else None
            node = decoded(block.content) if block else None
            if not isinstance(node, dict):
                report.skip("a part of the tree is not there, or is there twice", file.name)
                continue
            entries = [entry for entry in _list(node.get("e")) if isinstance(entry, dict)]
            links = [node.get("l"), *(entry.get("t") for entry in entries)]
            waiting += [link for link in links if link is not None]
            yield from _named(entries)


def _named(entries: list[dict[str, Any]]) -> Iterator[tuple[bytes, str]]:
    """The posts among the entries of a node.

    Each entry leaves out as many bytes as its name shares with the one before.
    """
    name = b""
    for entry in entries:
        shared, rest, cid = entry.get("p"), entry.get("k"), entry.get("v")
        if not (isinstance(shared, int) and isinstance(rest, bytes) and isinstance(cid, bytes)):
            return
        name = name[: max(0, shared)] + rest
        if name.startswith(_COLLECTION):
            yield cid, name[len(_COLLECTION) :].decode("ascii", "replace")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _post(value: Any, key: str, owner: str, report: ImportReport) -> Post | None:
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or value.get("$type") != _TYPE:
        report.skip("it is not a post", key)
        return None
    time = time_or_none(value.get("createdAt")) or _time_of(key)
    parent = _at(value, "reply", "parent", "uri")
    reply = isinstance(parent, str) and not parent.startswith(f"at://{owner}/")
    return Post(key, _with_links(text, value.get("facets")), time, reply)


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _with_links(text: str, facets: Any) -> str:
    """A text with whole addresses where the app shows shortened ones.

    Places are counted in bytes of UTF-8; the last comes first, so that the others stay right.
    """
    data = text.encode("utf-8", "replace")
    places: list[tuple[int, int, str]] = []
    for facet in _list(facets):
        start, end = _at(facet, "index", "byteStart"), _at(facet, "index", "byteEnd")
        for feature in _list(_at(facet, "features")):
            link = _at(feature, "uri") if _at(feature, "$type") == _LINK else None
            if isinstance(link, str) and isinstance(start, int) and isinstance(end, int):
                places.append((start, end, link))
    for start, end, link in sorted(places, reverse=True):
        shown = data[start:end].decode("utf-8", "replace") if 0 <= start < end else ""
        if shown.endswith(("...", "…")):
            data = data[:start] + link.encode("utf-8", "replace") + data[end:]
    return data.decode("utf-8", "replace")


def _time_of(key: str) -> datetime | None:
    """The time that a key of thirteen letters counts; None if it is none."""
    if not _KEY.fullmatch(key):
        return None
    value = 0
    for letter in key:
        value = value * len(_SORTABLE) + _SORTABLE.index(letter)
    return time_or_none((value >> _CLOCK_BITS) / 1e6)
