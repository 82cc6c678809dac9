"""Connector for Slack's export of a workspace: one person's answers in channels and threads.

A folder or zip with `users.json`, and a folder a channel with a file a day.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member, members
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message
from pfi.sources.connectors import Connector
from pfi.sources.threads import NOBODY, Thread, thread_replies, time_or_none

#: A channel's file of one day; what stands before is the channel.
_DAY = re.compile(r"(?:.*/)?([^/]+)/\d{4}-\d\d-\d\d\.json")
_USERS = re.compile(r"(?:.*/)?(users|org_users)\.json")
#: Kinds of messages that a person wrote; all others are notes of Slack or of programs.
_WRITTEN = {None, "", "thread_broadcast", "file_share", "me_message"}
#: What Slack writes for people, channels and links: <@U1>, <@U1|name>, <#C1|name>, <http://..|text>.
_LINK = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.S)
#: Bytes of one day of one channel.
_LIMIT = 256 << 20


class SlackOptions(ChatOptions):
    """Options of the `slack` connector; `me` may be a name, e-mail address or member id."""


class SlackConnector(Connector[SlackOptions]):
    """Reads one record an answer."""

    name = "slack"
    summary = "your side of the channels in Slack's export, as chat replies"
    options = SlackOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a folder or zip with `users.json` and files of days."""
        if path.is_file() and path.suffix.lower() != ".zip":
            return False
        return bool(members(path, _is_users)) and bool(members(path, _is_day))

    def read(self, path: Path, options: SlackOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer, channel by channel, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is.
        """
        people, aliases = _people(path)
        me = [aliases.get(name.strip().casefold(), name) for name in options.me]
        days = members(path, _is_day)
        if not days:
            fix = "give the zip as Slack sends it, or the folder with users.json"
            raise DataError("there are no days of channels", path=path, fix=fix)

        own = _own(path)

        def threads(told: ImportReport) -> Iterator[Thread]:
            for channel, files in groupby(days, key=_channel):
                for thread in _threads(channel, list(files), people, told):
                    yield thread._replace(own=own)

        chosen = options.model_copy(update={"me": me})
        yield from thread_replies(threads, path, chosen, report, f"slack:{path.name}")
        report.require_records(path, "name yourself with me: a name, an address or a member id")


def _is_users(name: str) -> bool:
    return _USERS.fullmatch(name) is not None


def _is_day(name: str) -> bool:
    return _DAY.fullmatch(name) is not None


def _channel(file: Member) -> str:
    match = _DAY.fullmatch(file.name)
    return match[1] if match else file.name


def _people(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Names by member id, and ids by all that a member may be called, in small letters."""
    people: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for file in members(path, _is_users):
        for user in _list(file):
            profile = user.get("profile")
            profile = profile if isinstance(profile, dict) else {}
            names = [profile.get("display_name"), user.get("real_name"), profile.get("real_name"),
                     user.get("name"), profile.get("email")]  # fmt: skip
            known = [name for name in names if isinstance(name, str) and name.strip()]
            id_ = user.get("id")
            if isinstance(id_, str) and id_ and not user.get("is_bot"):
                people[id_] = known[0] if known else id_
                for name in [id_, *known]:
                    aliases.setdefault(name.strip().casefold(), id_)
    return people, aliases


def _own(path: Path) -> str | None:
    """The member who is in all of several direct chats, whose export it must be."""
    pairs = [
        {member for member in chat.get("members") or [] if isinstance(member, str)}
        for file in members(path, lambda name: re.fullmatch(r"(?:.*/)?dms\.json", name) is not None)
        for chat in _list(file)
    ]
    common = set.intersection(*pairs) if len(pairs) > 1 else set()
    return common.pop() if len(common) == 1 else None


def _list(file: Member) -> list[dict[str, Any]]:
    """The objects of a JSON file with a list.

    Raises:
        DataError: it is none.
    """
    with file.open() as stream:
        data = stream.read(_LIMIT)
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except ValueError as error:
        fix = "download the export again"
        raise DataError("the file is not JSON", path=file.place, fix=fix) from error
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _threads(
    channel: str, files: list[Member], people: dict[str, str], report: ImportReport
) -> Iterator[Thread]:
    """What is said in a channel itself, and each of its threads.

    A thread's first message is said in the channel; in the thread it is what others answer.
    """
    said: list[Message] = []
    threads: dict[str, list[Message]] = defaultdict(list)
    roots: dict[str, Message] = {}
    for file in files:
        try:
            entries = _list(file)
        except DataError as error:
            report.skip(error.what, file.name)
            continue
        for entry in entries:
            message = _message(entry, people, report, f"{channel}, message {entry.get('ts')}")
            if message is None:
                continue
            start = entry.get("thread_ts")
            if start is None or start == entry.get("ts"):
                said.append(message)
                roots[message.id] = message
            else:
                threads[str(start)].append(message)
                if entry.get("subtype") == "thread_broadcast":  # seen in the channel, too
                    said.append(message._replace(text=""))
    yield Thread(channel, people, said)
    for start, answers in threads.items():
        root = roots.get(start)
        # The author's own first message is a record of the channel, not of the thread.
        before = [root] if root and any(m.author != root.author for m in answers) else []
        yield Thread(f"{channel}, thread {start}", people, [*before, *answers])


def _message(
    entry: dict[str, Any], people: dict[str, str], report: ImportReport, place: str
) -> Message | None:
    time, id_ = time_or_none(_seconds(entry.get("ts"))), str(entry.get("ts"))
    if entry.get("type") != "message" or time is None:
        report.skip("it is no message, or has no time", place)
        return None
    user, text = entry.get("user"), entry.get("text")
    if entry.get("subtype") not in _WRITTEN or entry.get("bot_id") or user not in people:
        report.skip("it is a note of Slack, or of a program", place)
        return Message(id_, NOBODY, "", time)
    words = _plain(text, people) if isinstance(text, str) else ""
    if not words:
        report.skip("it holds no words", place)
    return Message(id_, user, words, time)


def _seconds(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _plain(text: str, people: dict[str, str]) -> str:
    """A text without Slack's marks and without code."""

    def shown(match: re.Match[str]) -> str:
        kind, target, label = match.groups()
        if kind == "@":
            return "@" + (label or people.get(target, target))
        if kind == "#":
            return "#" + (label or target)
        if kind == "!":  # <!here>, <!subteam^S1|@team>, <!date^...|label>
            return label or "@" + target.split("^")[0]
        return label or target

    return html.unescape(_LINK.sub(shown, _CODE.sub("", text))).strip()
