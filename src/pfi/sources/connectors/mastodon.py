"""Connector for the archive of Mastodon: this person's own posts in `outbox.json`.

The outbox is a collection of ActivityPub: a post is a `Create` of a `Note`; an `Announce` is a
boost, somebody else's post.  Pleroma, Akkoma and GoToSocial write the same form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.html_text import html_to_text
from pfi.readers.json_head import outline
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import Connector
from pfi.sources.posts import POST_LIMIT, Post, PostOptions, post_records
from pfi.sources.threads import time_or_none

_FILE = re.compile(r"(?:.*/)?(outbox|actor)\.json", re.I)
_ITEMS = "orderedItems"
_DEPTH = 3
#: Bytes of `actor.json`.
_ACTOR_LIMIT = 1 << 20
#: Kinds of objects that a person writes; a poll is a question.
_WRITTEN = {"Note", "Question", "Article", "Page"}
#: What servers put into a post that quotes another: its address.
_QUOTE = re.compile(
    r"<(p|span|div)\b[^<>]*\bclass=[\"'][^\"'<>]*(?:quote|recipients)-inline[^<>]*>", re.I
)
_CODE = re.compile(r"<(pre|code)\b[^<>]*>", re.I)
_QUOTED = re.compile(r"(?:\A|\n)(?:RE|QT): ?https?://\S+\s*\Z", re.I)


class MastodonOptions(PostOptions):
    """Options of the `mastodon` connector."""


class MastodonConnector(Connector[MastodonOptions]):
    """Reads one record a post."""

    name = "mastodon"
    summary = "your own posts in the archive of Mastodon (outbox.json)"
    options = MastodonOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the archive, its folder, or its `outbox.json`."""
        if path.is_file() and path.suffix.lower() != ".json" and not is_archive(path):
            return False
        return any(_is_outbox(file) for file in _files(path)[:4])

    def read(self, path: Path, options: MastodonOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a post, in the order of the archive.

        Raises:
            DataError: there is no archive, or nothing in it can be used.
        """
        files = _files(path)
        outboxes = [file for file in files if _is_outbox(file)]
        if not outboxes:
            fix = "give the archive as the server made it, its folder, or its outbox.json"
            raise DataError("there is no outbox.json", path=path, fix=fix)
        actor = _actor([file for file in files if file.file_name.lower() == "actor.json"])
        name = actor.get("preferredUsername")
        if isinstance(name, str):
            report.identify([f"@{name}"], {})
        owner = actor.get("id")
        posts = _posts(outboxes, owner if isinstance(owner, str) else None, report)
        yield from post_records(posts, options, report, f"mastodon:{path.name}")
        report.require_records(path, "its posts may be too short to learn from")


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: _FILE.fullmatch(name) is not None, depth=_DEPTH)


def _is_outbox(file: Member) -> bool:
    with file.open() as stream:
        head = outline(stream)
    return (_ITEMS,) in head and head.get(("type",)) == "OrderedCollection"


def _actor(files: list[Member]) -> dict[str, Any]:
    for file in files[:1]:
        with file.open() as stream:
            data = stream.read(_ACTOR_LIMIT)
        try:
            value = parse_json(data.decode("utf-8-sig"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}
    return {}


def _posts(files: list[Member], owner: str | None, report: ImportReport) -> Iterator[Post]:
    """The posts of one actor: the archive's, else whose activity comes first."""
    for file in files:
        number = 0
        try:
            for activity in _activities(file):
                number += 1
                actor = activity.get("actor")
                owner = owner or (actor if isinstance(actor, str) else None)
                post = _post(activity, owner, report, f"{file.file_name}, entry {number}")
                if post is not None:
                    yield post
        except DataError as error:
            report.skip(f"the file ends there: {error.what}", file.name)


def _activities(file: Member) -> Iterator[dict[str, Any]]:
    with file.open() as stream:
        tree = JsonTree(file.place, lambda spot: spot in ((), (_ITEMS,)))
        for spot, value in tree.values(stream):
            if spot == (_ITEMS, "*") and value is not OPENED:
                yield value if isinstance(value, dict) else {}


def _post(
    activity: Mapping[str, Any], owner: str | None, report: ImportReport, place: str
) -> Post | None:
    """A post in its author's own words; None for what is none, which is counted."""
    kind, note = activity.get("type"), activity.get("object")
    if kind == "Announce":
        report.skip("it is a boost: somebody else's words", place)
        return None
    if kind != "Create" or not isinstance(note, dict) or note.get("type") not in _WRITTEN:
        report.skip("it is not a post", place)
        return None
    writer = note.get("attributedTo", activity.get("actor"))
    if not isinstance(writer, str) or writer != owner or activity.get("actor", owner) != owner:
        report.skip("somebody else wrote it", place)
        return None
    id_ = note.get("id") or note.get("atomUri") or activity.get("id")
    text = _text(note, report, place)
    if not isinstance(id_, str) or not text:
        report.skip("it holds no words", place)
        return None
    time = time_or_none(note.get("published") or activity.get("published"))
    answered = note.get("inReplyTo")
    # Its own posts' addresses begin with the actor's, and answering oneself goes on.
    reply = isinstance(answered, str) and not answered.startswith(f"{owner}/")
    return Post(id_, text, time, reply)


def _text(note: Mapping[str, Any], report: ImportReport, place: str) -> str:
    """The warning or title above a post, and the post without code."""
    content = note.get("content")
    if not isinstance(content, str):
        by_language = note.get("contentMap")
        texts = by_language.values() if isinstance(by_language, dict) else ()
        content = next((text for text in texts if isinstance(text, str)), "")
    unquoted = _without_elements(content[: 4 * POST_LIMIT], _QUOTE)
    page = _without_elements(unquoted, _CODE)
    if page != unquoted:
        report.skip("code in a message is left out", place)
    body = _without_emoji(_QUOTED.sub("", html_to_text(page)), note.get("tag"))
    above = [note.get(key) for key in ("name", "summary")]
    heads = [text.strip() for text in above if isinstance(text, str) and text.strip()]
    return "\n\n".join([*heads, body]).strip()


def _without_elements(page: str, opening: re.Pattern[str]) -> str:
    """HTML without elements from an opening tag, whose first group is its name, to its end."""
    kept, at, lower = [], 0, page.lower()
    while (tag := opening.search(page, at)) is not None:
        end = lower.find(f"</{tag[1].lower()}", tag.end())
        if end < 0:
            break
        kept += [page[at : tag.start()], " "]
        at = end
    return "".join([*kept, page[at:]])


def _without_emoji(text: str, tags: Any) -> str:
    """A text without the names of the server's own emoji, `:blobcat:`."""
    for tag in tags if isinstance(tags, list) else ():
        name = tag.get("name") if isinstance(tag, dict) and tag.get("type") == "Emoji" else None
        if isinstance(name, str) and len(name) > 2:
            text = re.sub(rf" ?:{re.escape(name.strip(':'))}:", "", text)
    return text
