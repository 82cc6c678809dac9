"""One's own posts and comments on Facebook, Instagram and Threads in Meta's JSON download.

Text is UTF-8 that was read as Latin-1.  Lists stand at the top or under one key; names of files are
English in every language, while Instagram's comments have keys in the account's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pfi.errors import DataError
from pfi.readers.exports import Member
from pfi.readers.json_head import outline
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.report import ImportReport
from pfi.sources.posts import Post
from pfi.sources.threads import time_or_none

__all__ = ["POSTS", "is_posts", "mended", "meta_posts"]

#: Files of one's own words; what others wrote on one's page has files of other names.
POSTS = re.compile(
    r"(?:.*/)?(?:your_posts[\w-]*|posts_on_other_pages_and_profiles|comments"
    r"|your_comments_in_groups|group_posts_and_comments|posts_\d+|reels|threads_and_replies"
    r"|(?:post|reels)_comments(?:_\d+)?)\.json",
    re.I,
)
#: Keys under which the lists stand.
_LISTS = (
    "comments_v2", "comments", "group_comments_v2", "group_posts_v2", "ig_reels_media",
    "text_post_app_text_posts", "comments_reels_comments", "comments_media_comments",
)  # fmt: skip
#: Keys of one entry, by which the lists are known.
_KEYS = ({"timestamp", "data"}, {"timestamp", "title"}, {"media"}, {"string_map_data"})
#: How Facebook stores whom one mentions: `@[100:2048:Nora One]`.
_MENTION = re.compile(r"@\[\d+:\d+:([^\]]*)\]")


class _Words(NamedTuple):
    """What of an entry this person wrote."""

    text: str
    time: Any
    kind: str


def mended(text: str) -> str:
    """Text whose UTF-8 was taken for Latin-1 as it was; other text as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def is_posts(file: Member) -> bool:
    """Whether a file holds posts or comments, by its name and the keys at its beginning."""
    if not POSTS.fullmatch(file.name):
        return False
    with file.open() as stream:
        head = outline(stream)
    if any((key,) in head for key in _LISTS):
        return True
    keys = head.keys_at("*")
    return any(wanted <= keys for wanted in _KEYS)


def meta_posts(files: list[Member], report: ImportReport) -> Iterator[Post]:
    """The posts of some files, each with an id that stays when they are downloaded again."""
    counts: Counter[str] = Counter()
    for file in files:
        number = 0
        try:
            for entry in _entries(file):
                number += 1
                words = _words(entry)
                if words is None:
                    place = f"{PurePosixPath(file.name).name}, entry {number}"
                    report.skip("it holds no words", place)
                    continue
                id_ = f"{words.kind}-{words.time}"
                counts[id_] += 1
                again = f"-{counts[id_]}" if counts[id_] > 1 else ""
                text = _MENTION.sub(r"\1", mended(words.text))
                reply = words.kind == "comment" or _is_reply(entry)
                yield Post(f"{id_}{again}", text, time_or_none(words.time), reply)
        except DataError as error:
            report.skip(f"the file ends there: {error.what}", file.name)


def _entries(file: Member) -> Iterator[dict[str, Any]]:
    """The entries of a list at the top, or under one of the keys."""
    with file.open() as stream:
        tree = JsonTree(file.place, lambda at: at == () or (len(at) == 1 and at[0] in _LISTS))
        for spot, value in tree.values(stream):
            in_list = spot == ("*",) or (len(spot) == 2 and spot[1] == "*")
            if in_list and value is not OPENED:
                yield value if isinstance(value, dict) else {}


def _words(entry: Mapping[str, Any]) -> _Words | None:
    """What an entry says in this person's words; titles of Facebook's entries are Facebook's."""
    if isinstance(entry.get("string_map_data"), dict):
        return _of_strings(entry["string_map_data"])
    data = entry.get("data")
    for part in data if isinstance(data, list) else ():
        comment = part.get("comment") if isinstance(part, dict) else None
        if isinstance(comment, dict) and _is_text(comment.get("comment")):
            time = comment.get("timestamp") or entry.get("timestamp")
            return _Words(comment["comment"], time, "comment")
        if isinstance(part, dict) and _is_text(part.get("post")):
            return _Words(part["post"], entry.get("timestamp"), "post")
    media = entry.get("media")
    pictures = [one for one in media if isinstance(one, dict)] if isinstance(media, list) else []
    for holder in [entry, *pictures] if pictures else []:
        if _is_text(holder.get("title")):
            time = holder.get("creation_timestamp") or pictures[0].get("creation_timestamp")
            return _Words(holder["title"], time, "post")
    return None


def _of_strings(strings: Mapping[str, Any]) -> _Words | None:
    """A comment on Instagram: its text comes first, then whose post it is of, then the time."""
    values = [value for value in strings.values() if isinstance(value, dict)]
    time = next((value["timestamp"] for value in values if value.get("timestamp")), None)
    comment = strings.get("Comment")
    texts = [comment] if isinstance(comment, dict) else values
    text = next((value["value"] for value in texts if _is_text(value.get("value"))), None)
    return None if text is None else _Words(text, time, "comment")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_reply(entry: Mapping[str, Any]) -> bool:
    media = entry.get("media")
    parts = media if isinstance(media, list) else []
    marks = [part.get("text_app_post") for part in parts if isinstance(part, dict)]
    return any(isinstance(mark, dict) and mark.get("is_reply") is True for mark in marks)
