"""Conversations with an assistant as records: what this person wrote, or the answers they got.

A connector turns an export into `Said`; this module decides what of it becomes a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.connectors import Options

#: Continuation needs some words to begin with and some to go on.
LEAST_WORDS = 8

QUOTED = "a quote in a message is left out"
#: Lines that quote somebody, as Markdown and mail do.
_QUOTE = re.compile(r"^ {0,3}>.*$", re.M)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.M | re.S)
#: As ChatGPT and Claude name them, whole or in parts, and as browsers rename second downloads.
_NAME = re.compile(r"conversations([-_ ]?\(?\d+\)?)?\.json", re.I)
#: Keys by which one conversation alone is known: those of ChatGPT and Claude.
_ONE = {"mapping", "chat_messages"}
_ENTERED = {(), ("conversations",)}
#: Files that a glance looks into where none has the export's own name.
GLANCES = 20


class AssistantOptions(Options):
    """Options of the connectors for conversations with assistants."""

    side: Literal["mine", "answers"] = Field(
        "mine",
        description="mine: what you wrote, for your style; answers: your questions with the "
        "assistant's answers, which teach its style and not yours",
    )
    longest: int = Field(
        2000, ge=1, description="longer messages of yours, in characters, count as pasted"
    )
    longest_answer: int = Field(
        4000, ge=1, description="longer answers, in characters, are left out"
    )


class Said(NamedTuple):
    """One message on the branch of a conversation that was followed."""

    id: str
    mine: bool
    text: str
    time: datetime | None


@dataclass(frozen=True)
class Talk:
    """One conversation; messages without a time of their own have the conversation's."""

    place: str
    time: datetime | None
    said: list[Said]


def conversations(path: Path, report: ImportReport) -> Iterator[tuple[str, Any]]:
    """Yield `(place, conversation)` of an export: a JSON file, a folder or a zip.

    A file holds a list of conversations, `{"conversations": [...]}`, or one conversation alone,
    as the exporters that run in a browser write it.  A file that breaks off gives what comes
    before; that is counted in `report`.

    Raises:
        DataError: there is no such export, or the first of its conversations cannot be read.
    """
    files = _files(path)
    if not files:
        fix = "give the zip as it was downloaded, or its conversations.json"
        raise DataError("there is no conversations.json", path=path, fix=fix)
    read = False
    for file in files:
        number = 0
        try:
            for value in _conversations_in(file):
                number += 1
                read = True
                yield f"{file.name}, conversation {number}", value
        except DataError as error:
            if not read and file is files[-1]:
                raise
            reason = f"the file ends there: {error.what}" if number else error.what
            report.skip(reason, f"{file.name}, conversation {number}" if number else file.name)


def _conversations_in(file: Member) -> Iterator[Any]:
    alone: dict[str, Any] = {}
    with file.open() as stream:
        for spot, value in JsonTree(file.place, _ENTERED.__contains__).values(stream):
            if spot in (("*",), ("conversations", "*")):
                yield value
            elif len(spot) == 1:
                alone[spot[0]] = value
            elif spot or value is not OPENED:
                raise _no_conversations(file)
    if _ONE.intersection(alone):
        yield alone
    elif alone and alone.get("conversations") is not OPENED:
        raise _no_conversations(file)


def _no_conversations(file: Member) -> DataError:
    fix = "give the conversations.json of the export"
    what = "the file does not hold a list of conversations"
    return DataError(what, path=file.place, fix=fix)


def talks(
    path: Path, parse: Callable[[Any, str, ImportReport], Talk], report: ImportReport
) -> Iterator[Talk]:
    """The conversations of an export, each once.

    Args:
        path: see `conversations`.
        parse: makes a `Talk` of a conversation; it raises `Unusable` for what is none.
        report: told what is left out.

    Raises:
        DataError: nothing can be read.
    """
    seen: set[str] = set()
    for place, value in conversations(path, report):
        named = value if isinstance(value, dict) else {}
        id_ = str(named.get("conversation_id") or named.get("uuid") or named.get("id") or place)
        if id_ in seen:
            report.skip("it repeats a conversation", place)
            continue
        seen.add(id_)
        try:
            yield parse(value, place, report)
        except Unusable as problem:
            report.skip(problem.reason, place)


def holds(path: Path, key: str) -> bool:
    """Whether a conversation of an export has a key: the first of one of its first files."""
    try:
        if path.is_file() and not is_zip(path) and path.suffix.lower() != ".json":
            return False
        files = _files(path)
    except DataError:
        return False
    for file in files[:GLANCES]:
        with suppress(DataError):
            first = next(_conversations_in(file), None)
            if isinstance(first, dict) and key in first:
                return True
    return False


def _files(path: Path) -> list[Member]:
    """The files with conversations: those of the export's own name, else all JSON files."""
    files = members(path, lambda name: name.lower().endswith(".json"))
    named = [file for file in files if _NAME.fullmatch(file.file_name)]
    return named or files


def records_of(
    talk: Talk, options: AssistantOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    """The records of one conversation.

    With `side=mine` they are of the task `continuation` and hold only what this person wrote;
    with `side=answers` they are of the task `instruction`.
    """
    if options.side == "answers":
        yield from _answers(talk, options, report, source)
        return
    for said in talk.said:
        place = f"{talk.place}, message {said.id}"
        if not said.mine:
            continue
        text = own_prose(said.text, place, report)
        if len(text) > options.longest:
            reason = f"it is longer than {options.longest} characters and was likely pasted"
            report.skip(reason, place)
        elif count_words(text) < LEAST_WORDS:
            report.skip(f"it has fewer than {LEAST_WORDS} words of yours", place)
        else:
            time = said.time or talk.time
            record = _record(said.id, "continuation", {}, text, time, source, report, place)
            if record is not None:
                yield record


def _answers(
    talk: Talk, options: AssistantOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    asked: list[Said] = []
    answered: list[Said] = []

    def made() -> Iterator[Record]:
        if not asked:
            return
        place = f"{talk.place}, message {asked[0].id}"
        question = "\n\n".join(said.text for said in asked)
        answer = "\n\n".join(said.text for said in answered)
        if not answered:
            report.skip("it got no answer in words", place)
        elif len(answer) > options.longest_answer:
            report.skip(f"the answer is longer than {options.longest_answer} characters", place)
        elif len(question) > 2 * options.longest:
            report.skip(f"the question is longer than {2 * options.longest} characters", place)
        else:
            fields = {"instruction": question}
            time = asked[-1].time or talk.time
            record = _record(
                asked[-1].id, "instruction", fields, answer, time, source, report, place
            )
            if record is not None:
                yield record

    for said in talk.said:
        if said.mine and answered:
            yield from made()
            asked, answered = [], []
        (asked if said.mine else answered).append(said)
    yield from made()


def _record(
    id_: str,
    task: str,
    fields: dict[str, str],
    text: str,
    time: datetime | None,
    source: str,
    report: ImportReport,
    place: str,
) -> Record | None:
    if time is None:  # the records of a history have a time, or none has
        report.skip("it has no time", place)
        return None
    try:
        record = Record(id_, task, fields, text, time, source=source)
    except DataError as error:
        report.skip(error.what, place)
        return None
    report.read += 1
    return record


def own_prose(text: str, place: str, report: ImportReport) -> str:
    """What somebody typed, without blocks of code and lines that quote others."""
    for pattern, reason in ((_FENCE, "code in a message is left out"), (_QUOTE, QUOTED)):
        text, count = pattern.subn("", text)
        if count:
            report.skip(reason, place)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
