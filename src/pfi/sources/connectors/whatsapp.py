"""Connector for exported WhatsApp chats: one person's answers, from `_chat.txt` or the zip with it.

A file is read twice, a line at a time: first for who writes and how dates are meant, then for what.
The export names no time zone, so the zone is an option.  A line that cannot be attributed ends the
message above it, and what follows is nobody's until the next head.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.report import ImportReport
from pfi.readers.values import FUTURE_SLACK, Unusable
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, own_keys, replies, zone_of
from pfi.sources.connectors import Connector
from pfi.sources.pasted import copied
from pfi.sources.whatsapp_dates import Reading, Survey
from pfi.sources.whatsapp_heads import Form, Head, begins_with_date, head_of, plain
from pfi.sources.whatsapp_notes import NOTE, own_words

#: Longest line, and longest message, that is kept, in characters.
LINE_LIMIT = 20_000
#: Names that a line is searched for.
AUTHORS_LIMIT = 300

_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"))
_QUOTING = re.compile('["“”„«»]')
#: How languages spell WhatsApp in the names of exports.
_SPELLINGS = ("whatsapp", "واتساب", "واتساپ", "واٹس", "व्हाट्स", "व्हॉट्स", "вотсап", "ватсап")


class WhatsAppOptions(ChatOptions):
    """Options of the `whatsapp` connector."""

    order: Literal["auto", "dmy", "mdy", "ymd"] = Field(
        "auto", description="order of day, month and year in dates; auto finds it from the chat"
    )
    year: int = Field(
        0, ge=0, le=9999, description="year of dates that name none, as old phones wrote them"
    )


@dataclass
class _Chat:
    """What a first reading tells: who writes, how dates are meant, who is named at all."""

    authors: Counter[str] = field(default_factory=Counter)
    readings: dict[Form, Reading] = field(default_factory=dict)
    named: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        names = [plain(name)[0] for name, _ in self.named.most_common(AUTHORS_LIMIT)]
        longest = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        self._after_stamp = re.compile(rf"(?: -|[\])]) ?~? ?(?:{longest}):") if names else None
        self._before_words = re.compile(rf"~? ?({longest}): ?\S") if names else None

    def split(self, head: Head, line: str) -> tuple[str, str] | None:
        """Author and text of a message; None for a note of WhatsApp itself."""
        rest = line[head.end :]
        if head.form.kind != "dash" and rest[:1] in ("\u200e", "\u200f"):
            return None
        author, colon, text = rest.partition(":")
        if not author.isascii():
            author = author.translate(_MARKS)
        author = author.strip().removeprefix("~").strip()
        if not colon or not author or len(author) > 80 or text[:1] not in " \u200e\u200f":
            return None
        if _QUOTING.search(author) and self.authors[author] < 2:  # a group's new name
            return None
        return author, text.removeprefix(" ")

    def is_foreign(self, line: str, author: str) -> bool:
        """Whether a line below a message may be the beginning of somebody else's."""
        if begins_with_date(line, self.readings) or copied(line):
            return True
        text = plain(line)[0]
        if self._after_stamp is None or self._before_words is None or ":" not in text:
            return False
        if self._after_stamp.search(text):
            return True
        named = self._before_words.match(text)
        return named is not None and named[1] != plain(author)[0]


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
            lines = (line for _, line in _lines(found[0], limit=20)) if found else ()
            return any(head_of(line) is not None for line in lines)
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
                survey = _survey(chat, options)
                most = {name: name for name, _ in survey.authors.most_common()}
                guess = _my_side(chat, survey.authors)
                where = str(chat.place)
                me = own_keys(options.me, most, guess, where) if most else frozenset()
            except ConfigError as error:
                unclear = unclear or error
                report.skip("it is not clear who you are in it", chat.name)
                continue
            report.identify(me, survey.authors)
            others = {name: name for name in survey.authors if name not in me}
            messages = _messages(chat, survey, zone, report)
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
        return last.endswith(".txt") and (last == "_chat.txt" or _says_whatsapp(last))

    if path.is_file() and not is_zip(path):
        return members(path, wanted)
    found = members(path, wanted)
    if path.is_dir():
        zips = [file for file in sorted(path.glob("*.zip")) if _says_whatsapp(file.name)]
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


def _says_whatsapp(name: str) -> bool:
    return any(word in name.casefold() for word in _SPELLINGS)


def _survey(chat: Member, options: WhatsAppOptions) -> _Chat:
    """Who writes in a chat, and how its dates are meant."""
    found, authors, survey = _Chat(), Counter[str](), Survey()
    named: Counter[str] = Counter()  # with those who wrote no words
    for _, line in _lines(chat):
        head = head_of(line)
        if head is None or (split := found.split(head, line)) is None:
            continue
        named[split[0]] += 1
        if not _is_note(split[1]):
            authors[split[0]] += 1
            survey.add(head.form, head.stamp, re.search("[۰-۹]", line[: head.end]) is not None)
    order = None if options.order == "auto" else options.order
    readings = survey.readings(order, options.year)
    # Notes such as `Nora changed the subject from A: B` look like messages of an author.
    names = [name for name, count in authors.items() if count > 1]
    for author in [name for name, count in authors.items() if count == 1]:
        if any(author.startswith(f"{name} ") and len(author) > len(name) + 12 for name in names):
            del authors[author]
    return _Chat(authors, readings, named)


def _is_note(text: str) -> bool:
    return text[:1] in ("\u200e", "\u200f")


def _my_side(chat: Member, authors: Mapping[str, int]) -> str | None:
    """This person in a chat of two, whose file or zip is named after the other one."""
    if len(authors) != 2:
        return None
    # Names of other folders, such as a person's home, tell nothing.
    names = [Path(part).stem for part in chat.place.parts[-2:] if _says_whatsapp(part)]
    named = [author for author in authors if any(_is_named(author, name) for name in names)]
    if len(named) == 2:  # one name within the other
        named = [max(named, key=len)] if named[0] in named[1] or named[1] in named[0] else []
    return next(author for author in authors if author not in named) if len(named) == 1 else None


def _is_named(author: str, name: str) -> bool:
    """Whether the name of an export names somebody; languages put it at any place."""
    wanted, text = (unicodedata.normalize("NFC", plain(t)[0]).casefold() for t in (author, name))
    for found in re.finditer(re.escape(wanted), text):
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        # Scripts without spaces between words put particles right beside a name.
        glued = [c for c in (before, after) if c.isalnum() and c.isascii() == wanted.isascii()]
        if not glued or not any(c.isascii() or c.isdigit() for c in glued):
            return True
    return False


class _Held(NamedTuple):
    """A message that may go on in the next lines."""

    number: int
    author: str
    time: datetime
    marked: bool
    lines: list[str]


def _messages(chat: Member, survey: _Chat, zone: tzinfo, report: ImportReport) -> Iterator[Message]:
    """What people said, in the order of the file; see `Message` for what has no words."""
    held: _Held | None = None
    size = 0
    # Why lines below are nobody's; empty where they go on a message or a note of WhatsApp.
    nobody: str | None = "the line is not a message"
    finish = _Finisher(chat, report)
    newest = datetime.now(UTC) + FUTURE_SLACK

    def skip(reason: str) -> None:
        report.skip(reason, f"{chat.name}, line {number}")

    for number, line in _lines(chat):
        head = head_of(line)
        reading = survey.readings.get(head.form) if head else None
        if head is None or reading is None:
            pasted = head is not None and survey.split(head, line) is not None
            foreign = pasted or survey.is_foreign(line, held.author if held else "")
            if foreign and survey.readings:
                yield from finish(held)
                yield _gap("", newest)
                held, nobody = None, "it follows a line that is not understood"
                skip("it may be pasted" if pasted else "its date is not understood")
            elif held is not None:
                size += len(line)
                if size < LINE_LIMIT:
                    held.lines.append(line)
            elif line.strip() and nobody:
                skip(nobody)
            continue
        yield from finish(held)
        held, nobody = None, "it follows a line that is not understood"
        split = survey.split(head, line)
        person = split is not None and not _is_note(split[1])
        late = person and reading.is_late(head.stamp)
        try:
            time = reading.time(head.stamp, zone)
            if time > newest:
                raise ValueError("it is in the future")
        except (ValueError, OverflowError):
            skip("its date is not understood")
            yield _gap("", newest)
            continue
        if split is None or (person and split[0] not in survey.authors):
            skip(NOTE)
            nobody = None
        elif late:
            skip("its date is before that of the line above")
            yield _gap("", time)
        else:
            marked = line.lstrip("\ufeff")[:1] in ("\u200e", "\u200f")
            held, size = _Held(number, split[0], time, marked, [split[1]]), len(split[1])
    yield from finish(held)


def _gap(author: str, time: datetime) -> Message:
    return Message("", author, "", time)


class _Finisher:
    """Makes messages of what was held, with the same ids at each reading."""

    def __init__(self, chat: Member, report: ImportReport) -> None:
        self._chat, self._report = chat, report
        place = chat.place
        self._where = place.parent.name if place.name == "_chat.txt" else place.name
        self._time: datetime | None = None
        self._same: Counter[str] = Counter()

    def __call__(self, held: _Held | None) -> Iterator[Message]:
        if held is None:
            return
        try:
            text = own_words("\n".join(held.lines), held.marked)
        except Unusable as problem:
            self._report.skip(problem.reason, f"{self._chat.name}, line {held.number}")
            if problem.reason != NOTE or held.marked or not _is_note(held.lines[0]):
                yield _gap(held.author, held.time)
            return
        if held.time != self._time:
            self._same.clear()
            self._time = held.time
        content = "\0".join((self._where, held.time.isoformat(), held.author, text))
        id_ = hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=8).hexdigest()
        self._same[id_] += 1
        if self._same[id_] > 1:  # the same words again within a minute
            id_ += f"-{self._same[id_]}"
        yield Message(id_, held.author, text, held.time)
