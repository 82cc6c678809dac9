"""Connector for Signal's chats as the program signal-export writes them: `data.json` in a folder a
chat, with a message a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path, PurePosixPath
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, zone_of
from pfi.sources.connectors import Connector
from pfi.sources.threads import NOBODY, Thread, thread_replies, time_or_none

_KEYS = {"date", "sender", "body"}
#: What signal-export calls this person, and whoever it does not know.
_ME, _UNKNOWN = "Me", "No-Sender"
#: What it writes in the place of a call's words.
_CALL = re.compile(r"(incoming|outgoing|missed)( \w+)? call\b.*", re.I)
#: Bytes of one message.
_LIMIT = 1 << 24


class SignalOptions(ChatOptions):
    """Options of the `signal` connector; signal-export itself says which side is yours."""


class SignalConnector(Connector[SignalOptions]):
    """Reads one record an answer."""

    name = "signal"
    summary = "your side of Signal's chats, as signal-export writes them (data.json)"
    options = SignalOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is signal-export's folder, a zip of it, or one chat's `data.json`."""
        if path.is_file() and not is_zip(path) and path.suffix.lower() != ".json":
            return False
        return any(_is_chat(file) for file in _files(path)[:3])

    def read(self, path: Path, options: SignalOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer, chat by chat, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is, or the zone is unknown.
        """
        zone = zone_of(options.zone)
        files = [file for file in _files(path) if _is_chat(file)]
        if not files:
            fix = "run signal-export, and give its folder"
            raise DataError("there is no data.json of signal-export", path=path, fix=fix)

        def threads(told: ImportReport) -> Iterator[Thread]:
            for file in files:
                yield _thread(file, zone, told)

        yield from thread_replies(threads, path, options, report, f"signal:{path.name}")
        report.require_records(path, "run signal-export again, and give its folder")


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: name.rsplit("/", 1)[-1] == "data.json")


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
