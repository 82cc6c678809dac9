"""Connector for Discord: chats as DiscordChatExporter writes them, or Discord's own data package.

DiscordChatExporter's JSON has both sides, so its records are answers.  The data package that
Discord sends holds one's own messages only; they become texts to continue.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.json_head import outline
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.assistants import LEAST_WORDS, own_prose
from pfi.sources.chats import OUTPUT_LIMIT, ChatOptions, Message
from pfi.sources.connectors import Connector
from pfi.sources.threads import NOBODY, Thread, items, thread_replies, time_or_none

#: A channel of the data package: one's own messages.
_OWN = re.compile(r"(?:.*/)?c?(\d{5,})/messages\.(csv|json)", re.I)
_DEPTH = 4
#: Kinds of messages that a person wrote.
_WRITTEN = {"Default", "Reply", "0", "19"}
_DIRECT = {"DirectTextChat", "DirectGroupTextChat"}
#: Mentions and emoji as Discord stores them.
_EMOJI = re.compile(r"<a?:(\w+):\d+>")
_MENTION = re.compile(r"<(?:@[!&]?|#|/[\w ]+:)\d+>|<t:\d+(?::\w)?>")
_LIMIT = 1 << 30


class DiscordOptions(ChatOptions):
    """Options of the `discord` connector."""


class DiscordConnector(Connector[DiscordOptions]):
    """Reads one record an answer, or of the data package a text."""

    name = "discord"
    summary = "your side of Discord chats (DiscordChatExporter's JSON, or Discord's data package)"
    options = DiscordOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the data package, or a file that DiscordChatExporter wrote."""
        if path.is_file() and not is_zip(path):
            return path.suffix.lower() == ".json" and _is_chat(members(path, _is_json)[0])
        if members(path, _is_own, depth=_DEPTH):
            return True
        return any(_is_chat(file) for file in members(path, _is_json)[:1])

    def read(self, path: Path, options: DiscordOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records channel by channel, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is.
        """
        source = f"discord:{path.name}"
        own = members(path, _is_own, depth=_DEPTH) if path.is_dir() or is_zip(path) else []
        if own:
            for file in own:
                yield from _package(file, options, report, source)
            report.require_records(path, "its messages may be too short to learn from")
            return
        files = [file for file in members(path, _is_json) if _is_chat(file)]
        if not files:
            fix = "give JSON of DiscordChatExporter, or the data package as Discord sends it"
            raise DataError("there is no chat of Discord", path=path, fix=fix)

        def threads(told: ImportReport) -> Iterator[Thread]:
            for file in files:
                yield _thread(file, told)

        yield from thread_replies(threads, path, options, report, source)
        report.require_records(path, "export the chat with DiscordChatExporter as JSON")


def _is_own(name: str) -> bool:
    return _OWN.fullmatch(name) is not None


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def _is_chat(file: Member) -> bool:
    with file.open() as stream:
        head = outline(stream)
    return {"guild", "channel", "messages"} <= head.keys_at() and ("channel", "id") in head


def _thread(file: Member, report: ImportReport) -> Thread:
    """One chat of DiscordChatExporter; a file that breaks off gives what comes before."""
    shown: dict[str, str] = {}
    messages: dict[str, Message] = {}
    channel: dict[str, Any] = {}
    accounts: dict[str, str] = {}
    try:
        for spot, value in items(file, "messages"):
            if spot == ("channel",) and isinstance(value, dict):
                channel = value
            if spot != ("messages", "*") or not isinstance(value, dict):
                continue
            message = _message(value, report, f"{file.name}, message {value.get('id')}")
            if message is None:
                continue
            if message.id in messages:
                report.skip("it repeats a message", f"{file.name}, message {message.id}")
                continue
            messages[message.id] = message
            if message.author:
                author = value["author"]
                accounts[message.author] = str(author.get("name"))
                shown[message.author] = str(author.get("nickname") or author.get("name"))
    except DataError as error:
        report.skip(f"the file ends there: {error.what}", file.name)
    own = None
    others = [key for key in shown if channel.get("name") in (accounts[key], shown[key])]
    if channel.get("type") in _DIRECT and len(shown) == 2 and len(others) == 1:
        own = next(key for key in shown if key not in others)
    return Thread(file.name, shown, list(messages.values()), own)


def _message(value: dict[str, Any], report: ImportReport, place: str) -> Message | None:
    time, id_ = time_or_none(value.get("timestamp")), str(value.get("id"))
    if time is None:
        report.skip("it has no time", place)
        return None
    author = value.get("author")
    author = author if isinstance(author, dict) else {}
    if str(value.get("type")) not in _WRITTEN:
        report.skip("it is a note of Discord or a call", place)
        return Message(id_, NOBODY, "", time)
    if author.get("isBot") or not author.get("id"):
        report.skip("it is written by a bot", place)
        return Message(id_, NOBODY, "", time)
    text = value.get("content")
    words = _plain(text) if isinstance(text, str) else ""
    if not words:
        report.skip("it holds no words", place)
    return Message(id_, str(author["id"]), words, time)


def _plain(text: str) -> str:
    return _MENTION.sub("", _EMOJI.sub(r":\1:", text)).strip()


def _package(
    file: Member, options: DiscordOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    """One's own messages of a channel, those in a row joined."""
    messages = sorted(_own_messages(file, report), key=lambda message: message.time)
    pause = timedelta(minutes=options.join_minutes)
    turn: list[Message] = []
    for message in [*messages, None]:
        if turn and (message is None or message.time - turn[-1].time > pause):
            text = "\n".join(m.text for m in turn)
            place = f"{file.name}, message {turn[0].id}"
            if count_words(text) < LEAST_WORDS:
                report.skip(f"it has fewer than {LEAST_WORDS} words of yours", place)
            elif len(text) > OUTPUT_LIMIT:
                report.skip(f"it is longer than {OUTPUT_LIMIT} characters", place)
            else:
                report.read += 1
                yield Record(turn[0].id, "continuation", {}, text, turn[0].time, source=source)
            turn = []
        if message is not None:
            turn.append(message)


def _own_messages(file: Member, report: ImportReport) -> Iterator[Message]:
    for row in _rows(file, report):
        id_ = str(row.get("ID"))
        place = f"{file.name}, message {id_}"
        time = _time(row.get("Timestamp"))
        if time is None or not id_.strip():
            report.skip("it has no time", place)
            continue
        text = row.get("Contents")
        words = own_prose(_plain(text), place, report) if isinstance(text, str) else ""
        with suppress(UnicodeEncodeError):
            words.encode()
            if words:
                yield Message(id_, "me", words, time)
                continue
        report.skip("it holds no words", place)


def _time(value: Any) -> datetime | None:
    return time_or_none(value.strip() if isinstance(value, str) else None)


def _rows(file: Member, report: ImportReport) -> Iterator[dict[str, Any]]:
    with file.open() as stream:
        text = stream.read(_LIMIT).decode("utf-8-sig", "replace")
    if file.name.lower().endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    try:
        value = parse_json(text)
    except ValueError:
        report.skip("the file is not JSON", file.name)
        return
    yield from (row for row in value if isinstance(row, dict)) if isinstance(value, list) else ()
