"""Chats of a whole export, one at a time: who writes in them, then one person's replies.

The threads are read twice, first for who writes and then for what; of one thread at a time the
messages are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pfi.readers.exports import Member
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, own_keys, replies

__all__ = ["NOBODY", "Thread", "items", "thread_replies", "time_or_none"]

#: The author of what a program says.
NOBODY = ""


class Thread(NamedTuple):
    """One chat.

    Attributes:
        name: how the report calls it.
        shown: the names of its authors, by their keys.
        messages: in any order.
        own: the author that has to be this person, as far as this thread tells.
    """

    name: str
    shown: Mapping[str, str]
    messages: list[Message]
    own: str | None = None


def thread_replies(
    threads: Callable[[ImportReport], Iterator[Thread]],
    path: Path,
    options: ChatOptions,
    report: ImportReport,
    source: str,
) -> Iterator[Record]:
    """The records of all threads; see `chats.replies`.

    Args:
        threads: reads them anew at each call, and counts what it leaves out.
        path: the source, for errors.
        options: see `ChatOptions`.
        report: told who this person is taken for, and what is left out.
        source: where the records come from.

    Raises:
        ConfigError: it is not clear who this person is.
    """
    shown: dict[str, str] = {}
    written: Counter[str] = Counter()
    guesses: Counter[str | None] = Counter()
    for thread in threads(ImportReport()):
        shown.update(thread.shown)
        written.update(m.author for m in thread.messages if m.author and m.text.strip())
        guesses[thread.own] += 1
    del guesses[None]
    guess = next(iter(guesses)) if len(guesses) == 1 else None
    ordered = {key: shown.get(key, key) for key, _ in written.most_common()}
    if guess is not None:
        ordered.setdefault(guess, shown.get(guess, guess))
    if not ordered:
        for _ in threads(report):
            pass
        return
    me = own_keys(options.me, ordered, guess, str(path))
    report.identify(
        [ordered[key] for key in me], {ordered[key]: count for key, count in written.items()}
    )
    for thread in threads(report):
        messages = sorted(thread.messages, key=lambda message: message.time)
        authors = dict.fromkeys(m.author for m in messages if m.author and m.author not in me)
        others = {key: shown.get(key, key) for key in authors}

        def place(message: Message, name: str = thread.name) -> str:
            return f"{name}, message {message.id}"

        yield from replies(messages, me, others, options, report, source, place)


def items(file: Member, key: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield `(spot, value)` of a JSON object, entering the list under `key` and nothing else.

    Raises:
        DataError: it is not JSON, from there on.
    """
    with file.open() as stream:
        for spot, value in JsonTree(file.place, lambda spot: spot in ((), (key,))).values(stream):
            if value is not OPENED:
                yield spot, value


def time_or_none(value: Any) -> datetime | None:
    """A value as a time; None if it is none or in the future."""
    try:
        return past_time(value)
    except Unusable:
        return None
