"""Connector for Signal's chats: Signal's own export (`main.jsonl`), that of sigtop (a JSON file a
chat, or text), and that of signal-export (`data.json` in a folder a chat, with a message a line, or
only its `chat.md`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from pathlib import Path, PurePosixPath
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, zone_of
from pfi.sources.connectors import Connector
from pfi.sources.signal_exports import frame_threads, is_frames, is_stored, stored_thread
from pfi.sources.signal_texts import MARKDOWN, TEXT, is_text, text_thread
from pfi.sources.threads import NOBODY, Thread, thread_replies, time_or_none

_KEYS = {"date", "sender", "body"}
#: What signal-export calls this person, and whoever it does not know.
_ME, _UNKNOWN = "Me", "No-Sender"
#: What it writes in the place of a call's words.
_CALL = re.compile(r"(incoming|outgoing|missed)( \w+)? call\b.*", re.I)
_DEPTH = 3
#: Files that a glance looks into.
_GLANCES = 4
#: Bytes of one message.
_LIMIT = 1 << 24


class SignalOptions(ChatOptions):
    """Options of the `signal` connector; all exports say which side is yours."""


class SignalConnector(Connector[SignalOptions]):
    """Reads one record an answer."""

    name = "signal"
    summary = "your side of Signal's chats (its own export, signal-export's, or sigtop's JSON)"
    options = SignalOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is an export's folder or archive, or one of its files."""
        if path.is_file() and path.suffix.lower() not in _SUFFIXES and not is_archive(path):
            return False
        return any(kind(file) for files, kind in _by_kind(path) for file in files[:_GLANCES])

    def read(self, path: Path, options: SignalOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer, chat by chat, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is, or the zone is unknown.
        """
        zone = zone_of(options.zone)
        frames, chats, stored, texts = (
            [file for file in files if kind(file)] for files, kind in _by_kind(path)
        )
        if not (frames or chats or stored or texts):
            fix = "give main.jsonl of Signal's export, or the folder of signal-export or sigtop"
            raise DataError("there are no chats of Signal", path=path, fix=fix)

        def threads(told: ImportReport) -> Iterator[Thread]:
            for file in frames:
                yield from frame_threads(file, told)
            for file in chats:
                yield _thread(file, zone, told)
            for file in stored:
                yield stored_thread(file, told)
            for file in texts:
                yield text_thread(file, zone, told)

        yield from thread_replies(threads, path, options, report, f"signal:{path.name}")
        report.require_records(path, "export the chats again, and give the folder")


#: Names of files that Signal's own export, signal-export and sigtop write.
_SUFFIXES = (".json", ".jsonl", ".md", ".txt")


def _by_kind(path: Path) -> list[tuple[list[Member], Callable[[Member], bool]]]:
    """The files that may be of each kind, with what tells whether one is."""
    files = members(path, lambda name: name.lower().endswith(_SUFFIXES), depth=_DEPTH)
    named = {file.name for file in files if file.file_name.lower() == "data.json"}
    lines = [file for file in files if file.name.lower().endswith(".jsonl")]
    whole = [file for file in files if file.name.lower().endswith(".json")]
    return [
        (lines, is_frames),
        ([file for file in whole if file.name in named or path.is_file()], _is_chat),
        ([file for file in whole if file.name not in named], is_stored),
        (_texts(files, {PurePosixPath(name).parent for name in named}), is_text),
    ]


def _texts(files: list[Member], known: set[PurePosixPath]) -> list[Member]:
    """The files that may be chats as text, of folders in which no better form is."""
    return [
        file
        for file in files
        if TEXT.fullmatch(file.name)
        or (MARKDOWN.fullmatch(file.name) and PurePosixPath(file.name).parent not in known)
    ]


def _is_chat(file: Member) -> bool:
    with file.open() as stream:
        line = stream.readline(_LIMIT)
    try:
        value = parse_json(line.decode("utf-8"))
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() >= _KEYS


def _thread(file: Member, zone: tzinfo, report: ImportReport) -> Thread:
    name = PurePosixPath(file.name).parent.name or file.place.parent.name or file.name
    messages = []
    with file.open() as stream:
        number = 0
        while line := stream.readline(_LIMIT):
            number += 1
            place = f"{name}, line {number}"
            try:
                value = parse_json(line.decode("utf-8"))
            except ValueError:
                report.skip("the line is not JSON", place)
                continue
            message = _message(value, name, number, zone, report, place)
            if message is not None:
                messages.append(message)
    shown = {m.author: m.author for m in messages if m.author}
    own = _ME if _ME in shown else None
    return Thread(name, shown, messages, own)


def _message(
    value: Any, chat: str, number: int, zone: tzinfo, report: ImportReport, place: str
) -> Message | None:
    values = value if isinstance(value, dict) else {}
    time = _time(values.get("date"), zone)
    if time is None:
        report.skip("it has no time", place)
        return None
    sender, body = values.get("sender"), values.get("body")
    text = body.strip() if isinstance(body, str) else ""
    id_ = f"{chat}-{int(time.timestamp() * 1000)}-{number}"
    if values.get("call") or values.get("missed") or _CALL.fullmatch(text):
        report.skip("it is a call", place)
        return Message(id_, NOBODY, "", time)
    if not isinstance(sender, str) or sender == _UNKNOWN:
        report.skip("it is not clear who wrote it", place)
        return Message(id_, NOBODY, "", time)
    if values.get("deleted"):
        report.skip("it was deleted", place)
        text = ""
    elif not text:
        report.skip("it holds no words", place)
    return Message(id_, sender, text, time)


def _time(value: Any, zone: tzinfo) -> datetime | None:
    """A time as signal-export writes it: that of its machine, without a zone."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time_or_none((time if time.tzinfo else time.replace(tzinfo=zone)).isoformat())
