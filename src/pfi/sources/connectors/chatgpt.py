"""Connector for ChatGPT's data export: this person's messages, or the answers they got.

A conversation is a tree, in which regenerated answers and edited questions are branches; only the
branch that ends in `current_node` is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.assistants import AssistantOptions, Said, Talk, holds, records_of, talks
from pfi.sources.connectors import Connector

#: Marks of sources and of what the web page draws.
_MARKS = re.compile(r"\ue200[^\ue201]*\ue201|[\ue200-\ue2ff]|【[^】\n]{1,40}】")

#: Recordings, whose transcript is a part of its own.
_SOUND = {"audio_asset_pointer", "real_time_user_audio_video_asset_pointer"}
#: Marks of conversations in which several people write, all with the role of the user.
_GROUP = ("is_group_chat", "group_chat_id", "is_multiplayer", "participants")


class ChatGptOptions(AssistantOptions):
    """Options of the `chatgpt` connector."""


class ChatGptConnector(Connector[ChatGptOptions]):
    """Reads one record a message of this person, or an answer."""

    name = "chatgpt"
    summary = "your messages in ChatGPT's data export, or the answers you got"
    options = ChatGptOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the export's zip, folder or JSON, or one conversation of it."""
        return holds(path, "mapping")

    def read(self, path: Path, options: ChatGptOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of every conversation; ids are those of the messages.

        Raises:
            DataError: there is no export, or nothing in it can be used.
        """
        for talk in talks(path, _talk, report):
            yield from records_of(talk, options, report, f"chatgpt:{path.name}")
        report.require_records(path, "see docs/connectors.md for how to get the export")


def _talk(value: Any, place: str, report: ImportReport) -> Talk:
    """One conversation along its current branch.

    Raises:
        Unusable: it is not a conversation.
    """
    mapping = value.get("mapping") if isinstance(value, dict) else None
    if not isinstance(mapping, dict):
        raise Unusable("it is not a conversation")
    if any(value.get(mark) for mark in _GROUP):
        raise Unusable("several people write in it, and it is not clear who wrote what")
    said: list[Said] = []
    for key in _branch(mapping, value.get("current_node")):
        message = mapping[key].get("message")
        if not isinstance(message, dict):  # the root has none
            continue
        spot = f"{place}, message {key}"
        try:
            said.append(_said(message, key, spot, report))
        except Unusable as problem:
            report.skip(problem.reason, spot)
    return Talk(place, _time(value.get("create_time")), said)


def _branch(mapping: dict[str, Any], current: Any) -> list[str]:
    """The nodes from the root to the current one; from the last leaf if none is current."""
    if not isinstance(current, str) or not isinstance(mapping.get(current), dict):
        leaves = [
            key
            for key, node in mapping.items()
            if isinstance(node, dict) and not node.get("children")
        ]
        current = leaves[-1] if leaves else None
    nodes: list[str] = []
    seen: set[str] = set()
    while isinstance(current, str) and current not in seen:
        node = mapping.get(current)
        if not isinstance(node, dict):
            break
        seen.add(current)
        nodes.append(current)
        current = node.get("parent")
    return nodes[::-1]


def _said(message: dict[str, Any], key: str, place: str, report: ImportReport) -> Said:
    """A message in words between this person and the assistant.

    Raises:
        Unusable: it is something else.
    """
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    content = content if isinstance(content, dict) else {}
    if role not in ("user", "assistant"):
        raise Unusable("it is of the system or a tool")
    metadata = message.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = content.get("content_type")
    if kind == "user_editable_context" or metadata.get("is_user_system_message"):
        # The program's sentences stand around one's own, and come again with each conversation.
        raise Unusable("it holds your custom instructions")
    if metadata.get("is_visually_hidden_from_conversation") or message.get("weight") == 0:
        raise Unusable("it is hidden")
    if metadata.get("shared_conversation_id"):
        raise Unusable("it is of a conversation that somebody shared")
    if message.get("recipient") not in (None, "all"):
        raise Unusable("it is of the system or a tool")
    if role == "assistant" and message.get("status") == "in_progress":
        raise Unusable("the answer was broken off")
    parts = content.get("parts")
    if kind not in ("text", "multimodal_text") or not isinstance(parts, list):
        raise Unusable("it is not a message in words")
    text = "\n".join(_words(parts, role, place, report))
    if role == "assistant":
        text = _MARKS.sub("", text)
    if not text.strip():
        raise Unusable("it is empty")
    return Said(key, role == "user", text.strip(), _time(message.get("create_time")))


def _words(parts: list[Any], role: str, place: str, report: ImportReport) -> Iterator[str]:
    """The parts of a message that are words: typed, or spoken in voice mode and transcribed.

    A transcript says with `direction` whether it was heard ("in") or spoken by the assistant.
    """
    foreign = "out" if role == "user" else "in"
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("content_type") if isinstance(part, dict) else None
        if kind == "audio_transcription" and isinstance(part.get("text"), str):
            if part.get("direction") != foreign:
                yield part["text"]
            else:
                report.skip("a part of a message is of the other side", place)
        elif kind not in _SOUND:  # the words of a recording stand beside it
            side = "a message" if role == "user" else "an answer"
            report.skip(f"a part of {side} is not text", place)


def _time(value: Any) -> datetime | None:
    try:
        return past_time(value)
    except Unusable:
        return None
