"""Connector for Telegram Desktop's JSON export: one person's answers, of one chat or all.

The file is read twice, a message at a time: first for who writes, then for what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.exports import Member, members
from pfi.readers.json_head import Outline, outline
from pfi.readers.json_tree import OPENED, JsonTree, Spot
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, as_id, past_time
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, own_keys, replies, zone_of
from pfi.sources.connectors import Connector

#: Where the chats of a whole account are.
_LISTS = {("chats", "list", "*"), ("left_chats", "list", "*")}
_ENTERED = {
    (), ("messages",), ("personal_information",),
    *(spot[:n] for spot in _LISTS for n in (1, 2, 3)), *((*spot, "messages") for spot in _LISTS),
}  # fmt: skip
#: Kinds of chats, as an export of one chat names its own.
_KINDS = {
    "personal_chat", "bot_chat", "saved_messages", "replies", "verification_codes",
    "private_group", "private_supergroup", "public_supergroup", "private_channel",
    "public_channel",
}  # fmt: skip
#: Kinds of chats in which nobody is answered.
_NO_CHATS = {
    "saved_messages": "it is a note to oneself",
    "public_channel": "it is in a channel",
    "private_channel": "it is in a channel",
    "bot_chat": "it is written to a bot",
}


class TelegramOptions(ChatOptions):
    """Options of the `telegram` connector."""

    me: list[str] = Field(
        [],
        description="your name or id (user123); by default the account that exported everything",
    )


@dataclass
class _Chat:
    """What a first reading tells of one chat."""

    name: str = ""
    kind: str = ""
    id: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    shown: dict[str, str] = field(default_factory=dict)


class TelegramConnector(Connector[TelegramOptions]):
    """Reads one record an answer."""

    name = "telegram"
    summary = "your side of the chats in Telegram's JSON export, as chat replies"
    options = TelegramOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a `result.json` or a folder with one."""
        with suppress(DataError):
            for file in _files(path)[:1]:
                with file.open() as stream:
                    return _is_export(outline(stream))
        return False

    def read(self, path: Path, options: TelegramOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer of this person, chat by chat, oldest first.

        Raises:
            DataError: there is no export, or nothing in it can be used.
            ConfigError: it is not clear who this person is, or the zone is unknown.
        """
        zone = zone_of(options.zone)
        files = _files(path)
        if not files:
            fix = "export as machine-readable JSON and give result.json or its folder"
            raise DataError("there is no result.json", path=path, fix=fix)
        for file in files:
            chats, account = _survey(file)
            shown: dict[str, str] = {}
            total: Counter[str] = Counter()
            for chat in chats:
                total.update(chat.counts)
                shown.update(chat.shown)
            ordered = {key: shown[key] for key, _ in total.most_common()}
            given = [f"user{name}" if name.isdecimal() else name for name in options.me]
            me = own_keys(given, ordered, account, str(file.place)) if ordered else frozenset()
            yield from _replies(file, chats, me, options, zone, report, f"telegram:{path.name}")
        report.require_records(path, "export as machine-readable JSON; see docs/connectors.md")


def _is_export(head: Outline) -> bool:
    """Whether a JSON file is Telegram's: other programs' have messages with types, too."""
    message = head.keys_at("messages", "*")
    return (
        ("chats", "list") in head
        or {"personal_information", "frequent_contacts"} & head.keys_at() != set()
        or (isinstance(head.get(("type",)), str) and head[("type",)] in _KINDS)
        or (bool({"from_id", "actor_id", "date_unixtime"} & message) and "type" in message)
    )


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: name.rsplit("/", 1)[-1] == "result.json")


def _values(file: Member) -> Iterator[tuple[int, Spot, Any]]:
    """Yield `(number of the chat, spot within the chat, value)`; -1 outside of chats."""
    chat = -1
    with file.open() as stream:
        for spot, value in JsonTree(file.place, _ENTERED.__contains__).values(stream):
            if spot == () and value is not OPENED:
                fix = "give the result.json of Telegram Desktop"
                raise DataError("the file is not a Telegram export", path=file.place, fix=fix)
            if spot in _LISTS:
                chat += 1
            elif spot[:3] in _LISTS:
                yield chat, spot[3:], value
            elif spot[:1] == ("personal_information",):
                yield -1, spot, value
            elif spot[:1] == ("messages",) or (len(spot) == 1 and value is not OPENED):
                yield 0, spot, value


def _survey(file: Member) -> tuple[list[_Chat], str | None]:
    """Who writes in each chat, and the account that exported them if it is said."""
    chats: list[_Chat] = []
    account = None
    try:
        for number, spot, value in _values(file):
            if spot == ("personal_information", "user_id"):
                account = f"user{value}"
            if number < 0:
                continue
            while len(chats) <= number:
                chats.append(_Chat())
            chat = chats[number]
            if spot in (("name",), ("type",), ("id",)) and isinstance(value, str | int):
                setattr(chat, {"type": "kind"}.get(spot[0], spot[0]), str(value))
            elif spot == ("messages", "*") and isinstance(value, dict):
                key = value.get("from_id")
                if isinstance(key, str | int) and value.get("type") == "message":
                    name = value.get("from")
                    chat.counts[str(key)] += 1
                    chat.shown.setdefault(str(key), name if isinstance(name, str) else str(key))
    except DataError:  # the second reading counts where the file breaks off
        if not chats:
            raise
    return chats, account


def _replies(
    file: Member,
    chats: list[_Chat],
    me: frozenset[str],
    options: TelegramOptions,
    zone: tzinfo,
    report: ImportReport,
    source: str,
) -> Iterator[Record]:
    """The records of every chat, in one reading."""
    values = _values(file)
    # One message is read ahead to see where a chat ends.
    ahead: list[tuple[int, Any]] = []

    def advance() -> None:
        ahead.clear()
        try:
            for number, spot, value in values:
                if spot == ("messages", "*"):
                    ahead.append((number, value))
                    return
        except DataError as error:
            report.skip(f"the file ends there: {error.what}", file.name)

    def chat_messages(number: int) -> Iterator[Message]:
        chat = chats[number] if number < len(chats) else _Chat()
        while ahead and ahead[0][0] == number:
            value = ahead[0][1]
            advance()
            place = f"{chat.name or file.name}, message {_number(value)}"
            try:
                yield _message(value, chat, zone)
            except Unusable as problem:
                report.skip(problem.reason, place)

    advance()
    while ahead:
        number = ahead[0][0]
        chat = chats[number] if number < len(chats) else _Chat()
        others = {key: name for key, name in chat.shown.items() if key not in me}
        yield from replies(
            chat_messages(number), me, others, options, report, source,
            lambda m, chat=chat: f"{chat.name or file.name}, message {m.id.rpartition('-')[2]}",  # type: ignore[misc]
        )  # fmt: skip


def _number(value: Any) -> str:
    return str(value.get("id", "?")) if isinstance(value, dict) else "?"


def _message(value: Any, chat: _Chat, zone: tzinfo) -> Message:
    """A message that a person wrote in words.

    Raises:
        Unusable: it is something else.
    """
    if not isinstance(value, dict):
        raise Unusable("it is not a message")
    if value.get("type") != "message":
        raise Unusable("it is a note of Telegram or a call")
    if chat.kind in _NO_CHATS:
        raise Unusable(_NO_CHATS[chat.kind])
    if value.get("forwarded_from") or value.get("saved_from"):
        raise Unusable("it is forwarded")
    if value.get("via_bot"):
        raise Unusable("a bot wrote it")
    if any(key in value for key in ("media_type", "photo", "file", "location_information")) or any(
        key in value for key in ("poll", "contact_information", "game_title", "invoice_information")
    ):
        raise Unusable("it is a picture, a file or other media")
    text = _text(value.get("text", ""))
    if not text.strip():
        raise Unusable("it is empty")
    author = value.get("from_id")
    if not isinstance(author, str | int) or str(author) not in chat.shown:
        raise Unusable("it has no author")
    time = past_time(value.get("date_unixtime") or _local(value.get("date"), zone))
    if time is None:
        raise Unusable("it has no time")
    number = as_id(value.get("id"), "id")
    return Message(f"telegram-{chat.id or chat.name or '?'}-{number}", str(author), text, time)


def _text(value: Any) -> str:
    """The words of a message: text, or a list of texts and marked pieces."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    pieces = [piece.get("text", "") if isinstance(piece, dict) else piece for piece in value]
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _local(value: Any, zone: tzinfo) -> Any:
    """A time as older exports write it: local, without a zone."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return value
    return (time if time.tzinfo else time.replace(tzinfo=zone)).isoformat()
