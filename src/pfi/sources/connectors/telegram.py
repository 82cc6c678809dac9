"""Connector for Telegram Desktop's JSON export: one person's answers, of one chat or all.

The file is read twice, a message at a time: first for who writes, then for what.  The shapes of
exports are those from 2018 on; until 2021 the ids of people were numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
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
    "private_group", "private_supergroup", "public_group", "public_supergroup", "private_channel",
    "public_channel",
}  # fmt: skip
#: Kinds of chats in which nobody is answered.
_NO_CHATS = {
    "saved_messages": "it is a note to oneself",
    "public_channel": "it is in a channel",
    "private_channel": "it is in a channel",
    "bot_chat": "it is written to a bot",
    "verification_codes": "it is a code to sign in",
    "replies": "it is in a channel",
}
#: What a message carries besides words; words below it are its author's.
_MEDIA = (
    "media_type", "photo", "file", "location_information", "poll", "contact_information",
    "game_title", "invoice_information", "giveaway_information", "todo_list", "paid_media",
)  # fmt: skip


class TelegramOptions(ChatOptions):
    """Options of the `telegram` connector."""

    me: list[str] = Field(
        [],
        description="your name or id (user123); by default the account that exported, if known",
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
        _refuse_html(path)
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
            guess = account or _likely_account(chats)
            me = own_keys(given, ordered, guess, str(file.place)) if ordered else frozenset()
            report.identify(
                [shown.get(key, key) for key in me], {shown[k]: count for k, count in total.items()}
            )
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


def _refuse_html(path: Path) -> None:
    """Say how to export if a source is Telegram's export as web pages.

    Raises:
        DataError: it is one.
    """
    pages = members(path, lambda name: re.fullmatch(r"(?:.*/)?messages\d*\.html", name) is not None)
    if any(page.name.endswith(".html") for page in pages) and (path.is_file() or not _files(path)):
        what = "this is Telegram's export as HTML, which is not read"
        raise DataError(what, path=path, fix="export again and choose JSON")


def _author(value: dict[str, Any]) -> str | None:
    """The key of who sent a message: `user` with a number, or `channel` with one."""
    key = value.get("from_id")
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        return None
    return f"user{key}" if str(key).isdecimal() else str(key)


def _likely_account(chats: list[_Chat]) -> str | None:
    """Who exported, if chats of two name the other one, or there are notes to oneself."""
    votes: Counter[str] = Counter()
    for chat in chats:
        authors = list(chat.shown)
        if chat.kind == "saved_messages" and len(authors) == 1:
            votes[authors[0]] += 1
        if chat.kind != "personal_chat" or len(authors) != 2:
            continue
        named = [key for key in authors if key == f"user{chat.id}"]
        named = named or [key for key in authors if chat.shown[key] == chat.name]
        if len(named) == 1:
            votes[next(key for key in authors if key != named[0])] += 1
    best = votes.most_common(2)
    clear = best and (len(best) == 1 or best[0][1] > best[1][1])
    return best[0][0] if clear else None


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
                key = _author(value)
                if key is not None and value.get("type") == "message":
                    name = value.get("from")
                    chat.counts[key] += 1
                    chat.shown.setdefault(key, name if isinstance(name, str) else key)
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
                if isinstance(value, dict) and value.get("type") == "message":
                    yield Message("", _author(value) or "", "", datetime.now(UTC))

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
    if any(key in value for key in ("forwarded_from", "forwarded_from_id", "saved_from")):
        raise Unusable("it is forwarded")  # also from an account that is gone, whose name is null
    if value.get("via_bot"):
        raise Unusable("a bot wrote it")
    text = _text(value.get("text", ""))
    if not text.strip():
        media = any(key in value for key in _MEDIA)
        raise Unusable("it is a picture, a file or other media" if media else "it is empty")
    author = _author(value)
    if author is None or author not in chat.shown:
        raise Unusable("it has no author")
    time = past_time(value.get("date_unixtime") or _local(value.get("date"), zone))
    if time is None:
        raise Unusable("it has no time")
    number = as_id(value.get("id"), "id")
    return Message(f"telegram-{chat.id or chat.name or '?'}-{number}", author, text, time)


def _text(value: Any) -> str:
    """The words of a message: text, or a list of texts and marked pieces; without what it quotes.

    Raises:
        Unusable: it is only a command to a bot.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    pieces = [piece if isinstance(piece, dict) else {"text": piece} for piece in value]
    pieces = [piece for piece in pieces if isinstance(piece.get("text"), str) and piece["text"]]
    kinds = {piece.get("type", "plain") for piece in pieces if piece["text"].strip()}
    if kinds == {"bot_command"}:
        raise Unusable("it is written to a bot")
    # Before and after a quote is a new line, which the app shows and the export leaves out.
    texts = ["\n" if piece.get("type") == "blockquote" else piece["text"] for piece in pieces]
    return "".join(texts)


def _local(value: Any, zone: tzinfo) -> Any:
    """A time as older exports write it: local, without a zone."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return value
    return (time if time.tzinfo else time.replace(tzinfo=zone)).isoformat()
