"""Chats as records of the task `chat_reply`: what others wrote asks, one person's own side answers.

Others' messages are only ever input, never output.  A message without words (a picture, a link, one
that was deleted) is no text, but it was said: it ends the turn of whoever else was speaking.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from pfi.errors import ConfigError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import Options
from pfi.sources.pasted import without_pasted

TASK = "chat_reply"
#: Longest input and output, in characters; of the input the end is kept.
INPUT_LIMIT = 1200
OUTPUT_LIMIT = 2000
#: Clocks differ, and go back in autumn: a message may be so much older than the one above it.
SKEW = timedelta(hours=1)
_WORD = re.compile(r"\w")
_LINK = re.compile(r"(?:\s*(?:https?://|www\.)\S+)+\s*", re.I)

__all__ = ["ChatOptions", "Message", "own_keys", "replies", "zone_of"]


class ChatOptions(Options):
    """Options of the connectors for chats."""

    me: list[str] = Field(
        [], description="your name as the chat shows it; repeat it if you had several"
    )
    context: int = Field(4, ge=1, le=50, description="messages of others before an answer")
    pause_hours: float = Field(
        24, gt=0, description="what was written longer ago than this is not answered any more"
    )
    join_minutes: float = Field(
        10, ge=0, description="messages in a row count as one up to this pause"
    )
    keep_names: bool = Field(False, description="keep the others' names instead of A, B, C")
    zone: str = Field("UTC", description="time zone of times that name none, like Europe/Berlin")

    @field_validator("me", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """Accept one name beside a list."""
        return [value] if isinstance(value, str) else value


class Message(NamedTuple):
    """One message of a chat; `author` is a key, `time` has a zone.

    Without text it stands for something that was said without words; without an author for
    something of which it is not known who said it.
    """

    id: str
    author: str
    text: str
    time: datetime


def zone_of(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        ConfigError: there is none.
    """
    if name.upper() == "UTC":  # known also where the machine has no list of zones
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        fix = "use a name like Europe/Berlin, America/New_York or UTC"
        raise ConfigError(f"unknown time zone {name!r}", where="zone", fix=fix) from None


def own_keys(
    me: Collection[str], shown: Mapping[str, str], guess: str | None, where: str
) -> frozenset[str]:
    """Which of a chat's authors are this person.

    Args:
        me: the names or keys given.
        shown: the authors' names by their keys, those with most messages first.
        guess: the author that it has to be if nothing is given.
        where: the source, for errors.

    Raises:
        ConfigError: it is not known, no author has such a name, or several have it.
    """
    found: set[str] = set()
    for name in me:
        wanted = name.strip().casefold()
        fits = {k for k in shown if wanted == k.casefold()} or {
            key for key, text in shown.items() if wanted == text.casefold()
        }
        if len(fits) > 1:
            fix = f"give the id instead, one of {', '.join(sorted(fits))}"
            raise ConfigError(f"several are called {name!r}", where=where, fix=fix)
        found |= fits
    if found or (guess is not None and not me):
        return frozenset(found or {str(guess)})
    names = list(dict.fromkeys(shown.values()))
    listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    what = f"nobody is called {', '.join(map(repr, me))}" if me else "it is not clear who you are"
    raise ConfigError(what, where=where, fix=f"name yourself with me, one of {listed or 'nobody'}")


@dataclass
class _Turn:
    """Messages in a row by one author."""

    first: Message
    last: datetime
    texts: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


class _Names:
    """What the others are called in inputs: A, B, C in the order in which they are given."""

    def __init__(self, others: Mapping[str, str], keep: bool) -> None:
        self._group = len(others) > 1
        letters = [_letters(number) for number in range(len(others))]
        self._shown = dict(others) if keep else dict(zip(others, letters, strict=True))
        self._words: dict[str, str] = {}
        for key, name in {} if keep else others.items():
            # Shorter words than this are too often words of the language.
            parts = [p for p in name.split() if len(p) > 2 and p[0].isupper()]
            for part in [name, *parts]:
                if part.strip():
                    self._words.setdefault(part, self._shown[key])
        longest = sorted(map(re.escape, self._words), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)") if longest else None

    def spoken(self, author: str, text: str) -> str:
        """A message of another as an input has it."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: self._words[match[0]], text)
        return f"{self._shown[author]}: {text}" if self._group else text


def _letters(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def replies(
    messages: Iterable[Message],
    me: Collection[str],
    others: Mapping[str, str],
    options: ChatOptions,
    report: ImportReport,
    source: str,
    place: Callable[[Message], str],
) -> Iterator[Record]:
    """Records of one chat: this person's turns, each with the messages of others before it.

    Args:
        messages: the chat's, oldest first.
        me: this person's author keys.
        others: the other authors' names by key, in the order in which they get their letters;
            with more than one it is a group, and inputs say who speaks.
        options: see `ChatOptions`.
        report: told what is left out.
        source: where the records come from.
        place: how a message is called in the report.
    """
    names = _Names(others, options.keep_names)
    heard: deque[Message] = deque(maxlen=options.context)
    for turn in _turns(
        _written(messages, me, report, place), timedelta(minutes=options.join_minutes)
    ):
        if turn.first.author not in me:
            heard.append(turn.first._replace(text=turn.text, time=turn.last))
            continue
        recent = [
            message
            for message in heard
            if -SKEW <= turn.first.time - message.time <= timedelta(hours=options.pause_hours)
        ]
        heard.clear()
        if not recent:
            report.skip("it answers nobody", place(turn.first))
        elif len(turn.text) > OUTPUT_LIMIT:
            report.skip(f"it is longer than {OUTPUT_LIMIT} characters", place(turn.first))
        else:
            chat = "\n".join(names.spoken(m.author, m.text) for m in recent)[-INPUT_LIMIT:]
            report.read += 1
            yield Record(
                turn.first.id, TASK, {"chat": chat}, turn.text, turn.first.time, source=source
            )


def _written(
    messages: Iterable[Message],
    me: Collection[str],
    report: ImportReport,
    place: Callable[[Message], str],
) -> Iterator[Message]:
    """The messages, this person's without words of others; those without words have no text."""
    for message in messages:
        text = message.text.strip()
        if text and message.author in me:
            whole, text = text, without_pasted(text)
            if text != whole:
                report.skip("it is a quote, or pasted", place(message))
        try:
            text.encode()
        except UnicodeEncodeError:
            report.skip("it is not valid Unicode", place(message))
            text = ""
        if text and not _WORD.search(text) and len(text) > 8:
            report.skip("it holds no words", place(message))
            text = ""
        elif text and _LINK.fullmatch(text):
            report.skip("it is only a link", place(message))
            text = ""
        yield message._replace(text=text)


def _turns(messages: Iterable[Message], pause: timedelta) -> Iterator[_Turn]:
    turn: _Turn | None = None
    for message in messages:
        same = turn is not None and turn.first.author == message.author
        if not message.text:
            if turn and not same:
                yield turn
                turn = None
            continue
        if (
            turn
            and same
            and -SKEW <= message.time - turn.last <= pause
            and sum(map(len, turn.texts)) < 2 * OUTPUT_LIMIT
        ):
            turn.texts.append(message.text)
            turn.last = max(turn.last, message.time)
            continue
        if turn:
            yield turn
        turn = _Turn(message, message.time, [message.text])
    if turn:
        yield turn
