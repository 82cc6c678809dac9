"""Connector for Claude's data export: this person's messages, or the answers they got.

Messages name the one before them where an export has branches; then only the branch of the last
message is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.assistants import AssistantOptions, Said, Talk, holds, records_of, talks
from pfi.sources.connectors import Connector


class ClaudeOptions(AssistantOptions):
    """Options of the `claude` connector."""


class ClaudeConnector(Connector[ClaudeOptions]):
    """Reads one record a message of this person, or an answer."""

    name = "claude"
    summary = "your messages in Claude's data export, or the answers you got"
    options = ClaudeOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the export's zip, folder or JSON, or one conversation of it."""
        return holds(path, "chat_messages")

    def read(self, path: Path, options: ClaudeOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of every conversation; ids are those of the messages.

        Raises:
            DataError: there is no export, or nothing in it can be used.
        """
        for talk in talks(path, _talk, report):
            yield from records_of(talk, options, report, f"claude:{path.name}")
        report.require_records(path, "see docs/connectors.md for how to get the export")


def _talk(value: Any, place: str, report: ImportReport) -> Talk:
    """One conversation along its last branch.

    Raises:
        Unusable: it is not a conversation.
    """
    messages = value.get("chat_messages") if isinstance(value, dict) else None
    if not isinstance(messages, list):
        raise Unusable("it is not a conversation")
    id_ = str(value.get("uuid") or place)
    said: list[Said] = []
    known: Counter[str] = Counter()
    for number, message in enumerate(_branch(messages, value.get("current_leaf_message_uuid")), 1):
        spot = f"{place}, message {number}"
        try:
            one = _said(message, f"{id_}-{number}", spot, report)
            known[one.id] += 1
            if known[one.id] > 1:
                raise Unusable("it repeats a message")
            said.append(one)
        except Unusable as problem:
            report.skip(problem.reason, spot)
    return Talk(place, _time(value.get("created_at")), said)


def _branch(messages: list[Any], leaf: Any) -> list[Any]:
    """The messages in order; if any two follow the same one, those that the last rests on."""
    named = {
        m["uuid"]: m for m in messages if isinstance(m, dict) and isinstance(m.get("uuid"), str)
    }
    parents = [m.get("parent_message_uuid") for m in messages if isinstance(m, dict)]
    forks = [p for p, count in Counter(map(str, filter(None, parents))).items() if count > 1]
    if not forks or not all(isinstance(m, dict) for m in messages):
        return messages
    current = leaf if isinstance(leaf, str) and leaf in named else messages[-1].get("uuid")
    branch: list[Any] = []
    while isinstance(current, str) and (message := named.pop(current, None)) is not None:
        branch.append(message)
        current = message.get("parent_message_uuid")
    return branch[::-1]


def _said(message: Any, fallback: str, place: str, report: ImportReport) -> Said:
    """A message in words.

    Raises:
        Unusable: it is something else.
    """
    sender = message.get("sender") if isinstance(message, dict) else None
    if sender not in ("human", "user", "assistant"):
        raise Unusable("it is not a message of you or the assistant")
    mine = sender != "assistant"
    content = message.get("content")
    words = list(_words(content if isinstance(content, list) else [], mine, place, report))
    text = message.get("text")
    # Older exports have the text alone; of an answer it holds notes on tools too.
    if isinstance(text, str) and (not content or (mine and not words)):
        words = [text]
    if message.get("attachments") or message.get("files"):
        report.skip("an attachment of a message is not read", place)
    text = "\n".join(words).strip()
    if not text:
        raise Unusable("it is empty")
    id_ = message.get("uuid")
    return Said(
        id_ if isinstance(id_, str) and id_ else fallback,
        mine,
        text,
        _time(message.get("created_at")),
    )


def _words(blocks: list[Any], mine: bool, place: str, report: ImportReport) -> Iterator[str]:
    """The blocks of a message that are words: typed, or spoken and transcribed."""
    for block in blocks:
        values = block if isinstance(block, dict) else {}
        kind, text = values.get("type"), values.get("text")
        if kind == "voice_note" and not isinstance(text, str):
            text = values.get("transcript")
        if kind in ("text", "voice_note") and isinstance(text, str):
            yield text
        else:
            side = "a message" if mine else "an answer"
            report.skip(f"a part of {side} is not text", place)


def _time(value: Any) -> datetime | None:
    try:
        return past_time(value)
    except Unusable:
        return None
