"""Conversations with an assistant as records: what this person wrote, or the answers they got.

A connector turns an export into `Said`; this module decides what of it becomes a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.exports import Member, is_zip, members
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable
from pfi.records import Record
from pfi.sources.connectors import Options

#: Continuation needs some words to begin with and some to go on.
LEAST_WORDS = 8

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.M | re.S)
_NAME = re.compile(r"conversations(-\d+)?\.json")


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

    A file that breaks off gives what comes before; that is counted in `report`.

    Raises:
        DataError: there is no such export, or the first of its conversations cannot be read.
    """
    found = _files(path)
    if not found:
        fix = "give the zip as it was downloaded, or its conversations.json"
        raise DataError("there is no conversations.json", path=path, fix=fix)
    whole = True
    for file in found:
        number = 0
        try:
            with file.open() as stream:
                for spot, value in JsonTree(file.place, lambda spot: spot == ()).values(stream):
                    if (spot == () and value is not OPENED) or spot not in ((), ("*",)):
                        fix = "give the conversations.json of the export"
                        what = "the file does not hold a list of conversations"
                        raise DataError(what, path=file.place, fix=fix)
                    if spot:
                        number += 1
                        yield f"{file.name}, conversation {number}", value
        except DataError as error:
            if not number and whole:
                raise
            report.skip(f"the file ends there: {error.what}", f"{file.name}, conversation {number}")
        whole = False


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
    """Whether the first conversation of an export has a key."""
    try:
        files = _files(path)
        if not files or (path.is_file() and not is_zip(path) and path.suffix != ".json"):
            return False
        first = next(chain(conversations(path, ImportReport()), [("", None)]))[1]
    except DataError:
        return False
    return isinstance(first, dict) and key in first


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: bool(_NAME.fullmatch(name.rsplit("/", 1)[-1])))


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
        text = without_code(said.text)
        if len(text) > options.longest:
            reason = f"it is longer than {options.longest} characters and was likely pasted"
            report.skip(reason, place)
        elif len(text.split()) < LEAST_WORDS:
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


def without_code(text: str) -> str:
    """A text without its fenced blocks of code."""
    return re.sub(r"\n{3,}", "\n\n", _FENCE.sub("", text)).strip()
