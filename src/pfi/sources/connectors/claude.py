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
        """Whether it is the export's zip, folder or `conversations.json`."""
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
            found = _said(message, f"{id_}-{number}", spot, report)
            known[found.id] += 1
            if known[found.id] > 1:
                raise Unusable("it repeats a message")
        except Unusable as problem:
            report.skip(problem.reason, spot)
        else:
            said.append(found)
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
    if not isinstance(message, dict) or message.get("sender") not in ("human", "assistant"):
        raise Unusable("it is not a message of you or the assistant")
    content = message.get("content")
    words: list[str] = []
    for block in content if isinstance(content, list) else []:
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(text, str) and block.get("type") == "text":
            words.append(text)
        else:
            report.skip("a part of a message is not text", place)
    if not content and isinstance(message.get("text"), str):  # older exports
        words = [message["text"]]
    if message.get("attachments") or message.get("files"):
        report.skip("an attachment of a message is not read", place)
    text = "\n".join(words).strip()
    if not text:
        raise Unusable("it is empty")
    id_ = message.get("uuid")
    mine = message["sender"] == "human"
    return Said(
        id_ if isinstance(id_, str) and id_ else fallback,
        mine,
        text,
        _time(message.get("created_at")),
    )


def _time(value: Any) -> datetime | None:
    try:
        return past_time(value)
    except Unusable:
        return None
