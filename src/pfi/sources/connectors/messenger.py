"""Connector for chats of Messenger and Instagram as Meta's download holds them, as JSON.

A folder a chat with `message_1.json` and so on, newest first; text is UTF-8 that was read as
Latin-1.  The end-to-end encrypted chats of Messenger come as one file each with other keys.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.json_head import outline
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message
from pfi.sources.connectors import Connector
from pfi.sources.meta_notes import is_note
from pfi.sources.meta_posts import POSTS, is_posts, mended, meta_posts
from pfi.sources.posts import PostOptions, post_records
from pfi.sources.threads import NOBODY, Thread, items, thread_replies, time_or_none

_FILE = re.compile(r"(?:.*/)?(?:message_\d+|[^/]*_\d+)\.json", re.I)
_DEPTH = 6
#: What a message has beside words: its words are then Meta's ("Nora sent an attachment.").
_MEDIA = (
    "photos", "videos", "audio_files", "files", "gifs", "sticker", "share", "call_duration",
    "users", "missed", "media",
)  # fmt: skip
_NOTES = {"call", "subscribe", "unsubscribe", "payment", "plan"}


class MessengerOptions(ChatOptions):
    """Options of the `messenger` connector."""

    posts: bool = Field(True, description="read your posts and comments, too")


class MessengerConnector(Connector[MessengerOptions]):
    """Reads one record an answer."""

    name = "messenger"
    summary = "your side of Messenger's and Instagram's chats, your posts, in Meta's JSON download"
    options = MessengerOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a file with a chat or posts, or a folder or archive with one."""
        if path.is_file() and path.suffix.lower() != ".json" and not is_archive(path):
            return False
        chats = any(_is_chat(file) for file in _files(path)[:3])
        return chats or any(is_posts(file) for file in _post_files(path))

    def read(self, path: Path, options: MessengerOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer, chat by chat, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is.
        """
        files = [file for file in _files(path) if _is_chat(file)]
        posts = [file for file in _post_files(path) if is_posts(file)] if options.posts else []
        if not files and not posts:
            fix = "download your information as JSON, and give the zip or its folder"
            raise DataError("there are no chats of Messenger or Instagram", path=path, fix=fix)
        own = _everywhere(files)

        def threads(told: ImportReport) -> Iterator[Thread]:
            for name, parts in groupby(files, key=_chat_name):
                yield _thread(name, list(parts), own, told)

        source = f"messenger:{path.name}"
        yield from thread_replies(threads, path, options, report, source)
        yield from post_records(meta_posts(posts, report), PostOptions(), report, source)
        report.require_records(path, "download your information as JSON; see docs/connectors.md")


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: _FILE.fullmatch(name) is not None, depth=_DEPTH)


def _post_files(path: Path) -> list[Member]:
    return members(path, lambda name: POSTS.fullmatch(name) is not None, depth=_DEPTH)


def _is_chat(file: Member) -> bool:
    with file.open() as stream:
        head = outline(stream)
    writers = {"sender_name", "senderName"} & head.keys_at("messages", "*")
    return "participants" in head.keys_at() and ("messages",) in head and bool(writers)


def _chat_name(file: Member) -> str:
    """The chat's folder, or the file itself where a chat is one file."""
    path = PurePosixPath(file.name)
    return str(path.parent) if path.name.startswith("message_") and path.parent.name else file.name


def _everywhere(files: list[Member]) -> str | None:
    """The one who takes part in all of several chats, whose download it must be."""
    chats: dict[str, set[str]] = {}
    for file in files:
        with file.open() as stream:
            head = stream.read(1 << 16).decode("latin-1")
        listed = re.search(r'"participants"\s*:\s*\[(.*?)\]', head, re.S)
        names = re.findall(r'"((?:[^"\\]|\\.)*)"(?!\s*:)', listed[1]) if listed else []
        chats.setdefault(_chat_name(file), set()).update(names)
    common = set.intersection(*chats.values()) if len(chats) > 1 else set()
    return _decoded(common.pop()) if len(common) == 1 else None


def _decoded(raw: str) -> str:
    """A name as it stands in JSON, with its escapes."""
    return mended(raw.encode("latin-1", "replace").decode("unicode_escape", "replace"))


def _thread(name: str, files: list[Member], own: str | None, report: ImportReport) -> Thread:
    """One chat; a file that breaks off gives what comes before."""
    messages: list[Message] = []
    participants: list[str] = []
    title = ""
    for file in files:
        number = 0
        try:
            for spot, value in items(file, "messages"):
                if spot == ("participants",) and isinstance(value, list):
                    participants = [_name(one) for one in value]
                elif spot in (("title",), ("threadName",)) and isinstance(value, str):
                    title = mended(value)
                elif spot == ("messages", "*"):
                    number += 1
                    place = f"{PurePosixPath(file.name).name} {number}"
                    message = _message(value, place, report, f"{name}, message {place}")
                    if message is not None:
                        messages.append(message)
        except DataError as error:
            report.skip(f"the file ends there: {error.what}", file.name)
    _check_repeats(messages)
    if own is None and len(participants) == 2 and title in participants:
        own = next((one for one in participants if one != title), None)
    shown = {author: author for author in dict.fromkeys(m.author for m in messages) if author}
    return Thread(name, shown, _named(messages), own)


def _name(participant: Any) -> str:
    name = participant.get("name") if isinstance(participant, dict) else participant
    return mended(name) if isinstance(name, str) else ""


def _check_repeats(messages: list[Message]) -> None:
    """Parts of a chat overlap where it was downloaded twice: each message is kept once."""
    seen: set[tuple[str, str, Any]] = set()
    kept = []
    for message in messages:
        key = (message.author, message.text, message.time)
        if key not in seen or not message.text:
            kept.append(message)
        seen.add(key)
    messages[:] = kept


def _named(messages: list[Message]) -> list[Message]:
    """The messages, oldest first, with ids that stay when a chat is downloaded again."""
    counts: Counter[str] = Counter()
    named = []
    messages.reverse()  # newest first in the file, so that of one moment the last stands first
    for message in sorted(messages, key=lambda m: m.time):
        stamp = f"{int(message.time.timestamp() * 1000)}-{message.author}"
        counts[stamp] += 1
        again = f"-{counts[stamp]}" if counts[stamp] > 1 else ""
        named.append(message._replace(id=f"{stamp}{again}"))
    return named


def _message(value: Any, id_: str, report: ImportReport, place: str) -> Message | None:
    if not isinstance(value, dict):
        report.skip("it is not a message", place)
        return None
    author = value.get("sender_name", value.get("senderName"))
    time = time_or_none(_seconds(value.get("timestamp_ms", value.get("timestamp"))))
    if time is None:
        report.skip("it has no time", place)
        return None
    text = value.get("content", value.get("text"))
    words = mended(text) if isinstance(text, str) else ""
    if not isinstance(author, str) or not author:
        report.skip("it is not clear who wrote it", place)
        return Message(id_, NOBODY, "", time)
    name = mended(author)
    if str(value.get("type", "")).lower() in _NOTES or is_note(words, name):
        report.skip("it is a note of Meta, a reaction or a call", place)
        return Message(id_, NOBODY, "", time)
    if value.get("is_unsent") or value.get("isUnsent"):
        report.skip("it was deleted", place)
        words = ""
    elif words and _with_media(value, words):
        report.skip("the words beside a picture or link are Meta's", place)
        words = ""
    elif not words.strip():
        report.skip("it holds no words", place)
    return Message(id_, name, words.strip(), time)


def _seconds(value: Any) -> float | None:
    return value / 1000 if isinstance(value, int | float) and not isinstance(value, bool) else None


def _with_media(value: dict[str, Any], words: str) -> bool:
    """Whether words stand beside media; a link that one typed is part of one's words."""
    if not any(value.get(key) for key in _MEDIA):
        return False
    share = value.get("share")
    link = share.get("link") if isinstance(share, dict) else None
    return not (isinstance(link, str) and ("http" in words or link in words))
