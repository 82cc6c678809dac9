"""Connector for exported WhatsApp chats: one person's answers, from `_chat.txt` or the zip with it.

The export writes dates as the phone's language does and names no time zone: the order of day and
month is found from the whole chat, the zone is an option.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, own_keys, replies, zone_of
from pfi.sources.connectors import Connector

Order = Literal["dmy", "mdy", "ymd"]

#: Longest line, and longest message, that is kept, in characters.
LINE_LIMIT = 20_000
#: The export is in order; a message with an older date than this is quoted inside another.
BACKWARDS = timedelta(days=1)

_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"))
_HEAD = re.compile(
    r"\W?\[(?P<a>[^\[\]]{8,45})\] ?(?P<x>.*)|(?P<b>\d[^\[\]]{7,44}?) [-–] (?P<y>.*)", re.S
)
_STAMP = re.compile(
    r"(\d{1,4}) ?[./\-年년] ?(\d{1,2}) ?[./\-月월] ?(\d{1,4})[.日일]?,?"
    r" ?(\D{0,20}?) ?(\d{1,2})[:.h](\d{2})(?:[:.](\d{2}))? ?(\D{0,14})"
)
_MORNING = {"am", "上午", "凌晨", "早上", "清晨", "오전", "午前", "ص", "πμ", "pg", "sa", "पूर्वाह्न"}
_EVENING = {"pm", "下午", "中午", "晚上", "傍晚", "오후", "午後", "م", "μμ", "ptg", "ch", "अपराह्न"}
_MEDIA = re.compile(r"<[^<>\n]{3,60}>|\u200e?\S[^\n]{0,120}\.\w{2,5} \([^()\n]{3,40}\)")
_EDITED = re.compile(r"\s*\u200e?<[^<>\n]{5,60}>\s*$")
_DELETED = {
    "null", "this message was deleted", "you deleted this message", "message deleted",
    "diese nachricht wurde gelöscht", "du hast diese nachricht gelöscht",
    "se eliminó este mensaje", "eliminaste este mensaje", "este mensaje fue eliminado",
    "ce message a été supprimé", "vous avez supprimé ce message",
    "mensagem apagada", "esta mensagem foi apagada", "essa mensagem foi apagada",
    "você apagou esta mensagem", "questo messaggio è stato eliminato",
    "hai eliminato questo messaggio", "dit bericht is verwijderd", "je hebt dit bericht verwijderd",
    "данное сообщение удалено", "вы удалили данное сообщение", "bu mesaj silindi",
    "bu mesajı sildiniz", "ta wiadomość została usunięta", "usunięto tę wiadomość",
}  # fmt: skip


class WhatsAppOptions(ChatOptions):
    """Options of the `whatsapp` connector."""

    order: Literal["auto", "dmy", "mdy", "ymd"] = Field(
        "auto", description="order of day, month and year in dates; auto finds it from the chat"
    )


class Stamp(NamedTuple):
    """A date and time as written; which number is the day is not known yet."""

    numbers: tuple[int, int, int]
    hour: int
    minute: int
    second: int

    def time(self, order: Order, zone: tzinfo) -> datetime:
        """The time.

        Raises:
            ValueError: there is no such time.
        """
        parts = dict(zip(order, self.numbers, strict=True))
        year = parts["y"] + 2000 if parts["y"] < 100 else parts["y"]
        clock = (self.hour, self.minute, self.second)
        return datetime(year, parts["m"], parts["d"], *clock, tzinfo=zone)


def head_of(line: str) -> tuple[Stamp, str] | None:
    """The date at the beginning of a line and what follows it; None if there is no date."""
    plain = "".join(
        str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c
        for c in line[:80].translate(_MARKS)
    )
    plain = re.sub(r"[\u00a0\u202f\u2009]", " ", plain)
    match = _HEAD.match(plain)
    if match is None:
        return None
    stamp = _STAMP.fullmatch((match["a"] or match["b"]).strip())
    if stamp is None:
        return None
    first, second, third, before, hour, minute, seconds, after = stamp.groups()
    # The rest is cut from the line itself, whose marks tell WhatsApp's own notes.
    at = re.search(r"\] ?" if match["a"] else r"\s[-–]\s", line)
    if at is None:
        return None
    hours = int(hour)
    words = {re.sub(r"[\s.,]", "", word).casefold() for word in (before, after)}
    if words & _EVENING and hours < 12:
        hours += 12
    elif words & _MORNING and hours == 12:
        hours = 0
    if "中午" in words and hours == 23:  # eleven at noon
        hours = 11
    numbers = (int(first), int(second), int(third))
    return Stamp(numbers, hours, int(minute), int(seconds or 0)), line[at.end() :]


@dataclass
class _Survey:
    """What a first reading of a chat tells: who writes, and how dates are meant."""

    authors: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    heads: int = 0

    def __post_init__(self) -> None:
        self._last: dict[str, datetime] = {}

    def add(self, stamp: Stamp, author: str | None) -> None:
        self.heads += 1
        if author is not None:
            self.authors[author] += 1
        for order in get_args(Order):
            try:
                time = stamp.time(order, zone_of("UTC"))
            except ValueError:
                self.wrong[order] += 100  # impossible weighs more than out of order
                continue
            self.wrong[order] += time < self._last.get(order, time) - BACKWARDS
            self._last[order] = time

    def order(self) -> Order:
        """The order of numbers under which fewest dates are wrong; in doubt day first."""
        orders: tuple[Order, ...] = get_args(Order)
        return min(orders, key=lambda order: self.wrong[order])


class WhatsAppConnector(Connector[WhatsAppOptions]):
    """Reads one record an answer."""

    name = "whatsapp"
    summary = "your side of exported WhatsApp chats, as chat replies"
    options = WhatsAppOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is an exported chat, a zip with one or a folder of them."""
        if path.is_file() and path.suffix.lower() not in (".txt", ".zip"):
            return False
        try:
            found = _chats(path)
            return bool(found) and any(
                head_of(line) is not None for _, line in _lines(found[0], limit=20)
            )
        except DataError:
            return False

    def read(self, path: Path, options: WhatsAppOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record an answer of this person, chat by chat, oldest first.

        Raises:
            DataError: there is no chat, or nothing in it can be used.
            ConfigError: it is not clear who this person is, or the zone is unknown.
        """
        zone = zone_of(options.zone)
        unclear: ConfigError | None = None
        chats = _chats(path)
        for chat in chats:
            try:
                survey = _survey(chat)
                most = {name: name for name, _ in survey.authors.most_common()}
                guess = _my_side(chat, survey)
                where = str(chat.place)
                me = own_keys(options.me, most, guess, where) if most else frozenset()
            except ConfigError as error:
                unclear = unclear or error
                report.skip("it is not clear who you are in it", chat.name)
                continue
            others = {name: name for name in survey.authors if name not in me}
            order = survey.order() if options.order == "auto" else options.order
            messages = _messages(chat, order, zone, report)
            source = f"whatsapp:{path.name}"
            yield from replies(
                messages, me, others, options, report, source,
                lambda message, name=chat.name: f"{name}, {message.time:%Y-%m-%d %H:%M}",  # type: ignore[misc]
            )  # fmt: skip
        if unclear is not None and not report.read:
            raise unclear
        report.require_records(path, "give _chat.txt or the zip that WhatsApp's export makes")


def _chats(path: Path) -> list[Member]:
    """The exported chats in a file, folder or zip; other text files there were sent in chats."""

    def wanted(name: str) -> bool:
        last = name.rsplit("/", 1)[-1].casefold()
        return last.endswith(".txt") and (last == "_chat.txt" or "whatsapp" in last)

    if path.is_file() and not is_zip(path):
        return members(path, wanted)
    found = members(path, wanted)
    if path.is_dir():
        zips = [file for file in sorted(path.glob("*.zip")) if "whatsapp" in file.name.casefold()]
        found += [member for file in zips for member in members(file, wanted)]
    return found


def _lines(chat: Member, limit: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield `(number, line)`; what is longer than `LINE_LIMIT` is cut."""
    with io.TextIOWrapper(chat.open(), "utf-8-sig", "replace", newline="\n") as file:
        number = 0
        while (limit is None or number < limit) and (line := file.readline(LINE_LIMIT)):
            number += 1
            whole = line
            while whole and not whole.endswith("\n"):
                whole = file.readline(LINE_LIMIT)
            yield number, line.rstrip("\r\n")


def _split(rest: str) -> tuple[str, str] | None:
    """Author and text of a message; None for a note of WhatsApp itself."""
    author, colon, text = rest.partition(":")
    author = author.translate(_MARKS).strip().removeprefix("~").strip()
    if not colon or not author or len(author) > 80 or text[:1] not in (" ", "\u200e", ""):
        return None
    return author, text.removeprefix(" ")


def _survey(chat: Member) -> _Survey:
    survey = _Survey()
    for _, line in _lines(chat):
        head = head_of(line)
        if head is not None:
            split = _split(head[1])
            note = split is not None and split[1].startswith("\u200e")
            survey.add(head[0], split[0] if split is not None and not note else None)
    return survey


def _my_side(chat: Member, survey: _Survey) -> str | None:
    """This person in a chat of two, whose file or zip is named after the other one."""
    if len(survey.authors) != 2:
        return None
    # Names of other folders, such as a person's home, tell nothing.
    names = [Path(part).stem for part in chat.place.parts[-2:] if "whatsapp" in part.casefold()]
    others = [
        author
        for author in survey.authors
        if any(re.search(rf"\W{re.escape(author)}$", name, re.I) for name in names)
    ]
    mine = [author for author in survey.authors if author not in others]
    return mine[0] if len(mine) == 1 else None


def _messages(chat: Member, order: Order, zone: tzinfo, report: ImportReport) -> Iterator[Message]:
    """The messages that people wrote, oldest first."""
    held: tuple[int, str, datetime, list[str]] | None = None
    last: datetime | None = None
    same: Counter[str] = Counter()
    place = chat.place
    where = place.parent.name if place.name == "_chat.txt" else place.name

    def finished() -> Iterator[Message]:
        if held is None:
            return
        number, author, time, lines = held
        try:
            text = _text("\n".join(lines))
        except Unusable as problem:
            report.skip(problem.reason, f"{chat.name}, line {number}")
            return
        content = "\0".join((where, time.isoformat(), author, text))
        key = hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=8)
        id_ = key.hexdigest()
        same[id_] += 1
        if same[id_] > 1:  # the same words again within a minute
            id_ += f"-{same[id_]}"
        yield Message(id_, author, text, time)

    for number, line in _lines(chat):
        head = head_of(line)
        time: datetime | None = None
        if head is not None:
            try:
                time = past_time(head[0].time(order, zone).isoformat())
            except (ValueError, OverflowError, Unusable):
                report.skip("its date is not understood", f"{chat.name}, line {number}")
                head = None
                yield from finished()
                held = None
                continue
            if last is not None and time is not None and time < last - BACKWARDS:
                report.skip(
                    "its date is before that of the line above", f"{chat.name}, line {number}"
                )
                continue
        if head is None or time is None:
            if held is not None and sum(map(len, held[3])) < LINE_LIMIT:
                held[3].append(line)
            elif held is None and line.strip() and last is None:
                report.skip("the line is not a message", f"{chat.name}, line {number}")
            continue
        yield from finished()
        if last != time:
            same.clear()
        last, held = time, None
        split = _split(head[1])
        if split is None or (split[1].startswith("\u200e") and "omitted" not in split[1]):
            report.skip("it is a note of WhatsApp, media or a call", f"{chat.name}, line {number}")
        else:
            held = (number, split[0], time, [split[1]])
    yield from finished()


def _text(text: str) -> str:
    """What a person wrote, without the mark of an edited message.

    Raises:
        Unusable: it is media, or was deleted.
    """
    if text.startswith("\u200e") or _MEDIA.fullmatch(text.strip()):
        raise Unusable("it is a note of WhatsApp, media or a call")
    text = _EDITED.sub("", text) if _EDITED.search(text) else text
    text = text.translate(_MARKS).strip()
    if text.casefold().rstrip(".") in _DELETED:
        raise Unusable("it was deleted")
    if not text:
        raise Unusable("it is empty")
    return text
