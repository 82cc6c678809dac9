"""Chats in the exports of Signal itself, and of sigtop, as threads.

Signal's own export (Desktop, Android and iPhone, 2025 and later) is `main.jsonl`: the frames of its
backup as JSON, a line each, with recipients, chats and the messages of all chats in a row.  sigtop
writes a JSON file a chat, with the messages as Signal Desktop stores them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member
from pfi.readers.json_head import outline
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.pieces import parse_json
from pfi.readers.report import ImportReport
from pfi.sources.chats import Message
from pfi.sources.threads import NOBODY, Thread, time_or_none

__all__ = ["ME", "frame_threads", "is_frames", "is_stored", "stored_thread"]

#: The key of this person in Signal's and sigtop's exports.
ME = "Me"
#: Bytes of one frame, and frames that a glance looks at.
_LIMIT = 1 << 24
_GLANCES = 8
_FRAMES = {"account", "recipient", "chat", "chatItem", "stickerPack", "notificationProfile"}
#: Stands in a text where somebody is mentioned.
_MENTION = "\ufffc"


def is_frames(file: Member) -> bool:
    """Whether a file holds frames of Signal's backup as JSON."""
    with file.open() as stream:
        frames = [_parsed(stream.readline(_LIMIT)) for _ in range(_GLANCES)]
    framed = [
        frame for frame in frames
        if len(frame) == 1 and frame.keys() <= _FRAMES
        and all(isinstance(value, dict) for value in frame.values())
    ]  # fmt: skip
    return "backupTimeMs" in frames[0] or len(framed) > 1


@dataclass
class _Index:
    """Who and what there is in a file of frames: names, chats, and where their messages begin."""

    own: str | None = None
    owner: str = ME  # what this person is called
    names: dict[str, str] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)  # names by the ids of mentions
    partners: dict[str, str] = field(default_factory=dict)  # recipients by chat
    places: dict[str, array[int]] = field(default_factory=dict)


def frame_threads(file: Member, report: ImportReport) -> Iterator[Thread]:
    """The chats of a file of frames, the messages of one at a time in memory."""
    index = _index(file, report)
    with file.open() as stream:
        for chat, places in index.places.items():
            name = index.names.get(index.partners.get(chat, ""), f"chat {chat}")
            messages: list[Message] = []
            seen: Counter[str] = Counter()
            for place in places:
                stream.seek(place)
                item = _parsed(stream.readline(_LIMIT)).get("chatItem")
                values = item if isinstance(item, dict) else {}
                stamp = str(values.get("dateSent"))
                seen[stamp] += 1
                id_ = f"{chat}-{stamp}" + (f"-{seen[stamp]}" if seen[stamp] > 1 else "")
                message = _frame_message(values, id_, index, report, f"{name}, message {id_}")
                if message is not None:
                    messages.append(message)
            authors = dict.fromkeys(m.author for m in messages if m.author)
            shown = {key: index.names.get(key, key) for key in authors}
            yield Thread(name, {**shown, ME: index.owner}, messages, ME)


def _index(file: Member, report: ImportReport) -> _Index:
    index = _Index()
    with file.open() as stream:
        place = number = 0
        while line := stream.readline(_LIMIT):
            number += 1
            frame = _parsed(line)
            if not frame and line.strip():
                report.skip("the line is not JSON", f"{file.file_name}, line {number}")
            for kind, value in frame.items():
                if isinstance(value, dict):
                    _note(kind, value, place, index)
            place += len(line)
    return index


def _note(kind: str, value: dict[str, Any], place: int, index: _Index) -> None:
    id_ = str(value.get("id"))
    if kind == "account":
        parts = [value.get("givenName"), value.get("familyName")]
        index.owner = " ".join(part for part in parts if isinstance(part, str) and part) or ME
    elif kind == "recipient":
        index.names[id_] = _name(value) or f"recipient {id_}"
        if "self" in value:
            index.own = id_
        contact = value.get("contact")
        for key in ("aci", "pni") if isinstance(contact, dict) else ():
            if isinstance(contact, dict) and isinstance(contact.get(key), str):
                index.services[contact[key]] = index.names[id_]
    elif kind == "chat":
        index.partners[id_] = str(value.get("recipientId"))
    elif kind == "chatItem":
        index.places.setdefault(str(value.get("chatId")), array("Q")).append(place)


def _name(recipient: Mapping[str, Any]) -> str:
    """What somebody is called: the name in one's own address book first, then the person's own."""
    if "self" in recipient:
        return ME
    contact = recipient.get("contact")
    values = contact if isinstance(contact, dict) else {}
    nickname = values.get("nickname")
    names = [(nickname.get("given"), nickname.get("family"))] if isinstance(nickname, dict) else []
    names += [(values.get(f"{kind}GivenName"), values.get(f"{kind}FamilyName"))
              for kind in ("system", "profile")]  # fmt: skip
    for parts in [*names, (values.get("username"),), (values.get("e164"),)]:
        text = " ".join(str(part).strip() for part in parts if isinstance(part, str | int) and part)
        if text:
            return text
    group = recipient.get("group")
    title = _at(group, "snapshot", "title")
    title = _at(title, "title") if isinstance(title, dict) else title
    return title if isinstance(title, str) else ""


def _frame_message(
    item: Mapping[str, Any], id_: str, index: _Index, report: ImportReport, place: str
) -> Message | None:
    time = time_or_none(_seconds(item.get("dateSent")))
    if time is None:
        report.skip("it has no time", place)
        return None
    author = str(item.get("authorId"))
    if "outgoing" in item and (index.own is None or author == index.own):
        author = ME
    elif "incoming" not in item or author == index.own:
        noted = "updateMessage" in item or "directionless" in item
        report.skip("it is a note of Signal" if noted else "it is not clear who wrote it", place)
        return Message(id_, NOBODY, "", time)
    body = _at(item, "standardMessage", "text", "body")
    text = body.strip() if isinstance(body, str) else ""
    if "updateMessage" in item:
        report.skip("it is a note of Signal", place)
        return Message(id_, NOBODY, "", time)
    if "directStoryReplyMessage" in item:
        report.skip("it answers a story that is not there", place)
    elif "remoteDeletedMessage" in item:
        report.skip("it was deleted", place)
    elif not text:
        report.skip("it holds no words", place)
    ranges = _at(item, "standardMessage", "text", "bodyRanges")
    names = [
        index.services.get(str(each.get("mentionAci")), "")
        for each in (ranges if isinstance(ranges, list) else ())
        if isinstance(each, dict) and "mentionAci" in each
    ]
    return Message(id_, author, _with_mentions(text, names), time)


def is_stored(file: Member) -> bool:
    """Whether a JSON file holds a list of messages as Signal Desktop stores them."""
    with file.open() as stream:
        head = outline(stream)
    keys = head.keys_at("*")
    return {"conversationId", "type", "sent_at"} <= keys and not head.keys_at() - {"*"}


def stored_thread(file: Member, report: ImportReport) -> Thread:
    """One chat of sigtop; a file that breaks off gives what comes before."""
    name = PurePosixPath(file.name).stem
    messages: list[Message] = []
    number = 0
    try:
        with file.open() as stream:
            for spot, value in JsonTree(file.place, lambda spot: spot == ()).values(stream):
                if spot == ("*",) and value is not OPENED:
                    number += 1
                    message = _stored_message(value, report, f"{name}, message {number}")
                    if message is not None:
                        messages.append(message)
    except DataError as error:
        report.skip(f"the file ends there: {error.what}", file.name)
    others = dict.fromkeys(m.author for m in messages if m.author not in (ME, NOBODY))
    # In a chat of two the file is named after the other one, and a number or id.
    shown = {key: name.split(" (")[0] if len(others) == 1 else key for key in others}
    return Thread(name, {**shown, ME: ME}, messages, ME)


def _stored_message(value: Any, report: ImportReport, place: str) -> Message | None:
    values = value if isinstance(value, dict) else {}
    time = time_or_none(_seconds(values.get("sent_at")))
    if time is None:
        report.skip("it has no time", place)
        return None
    id_, kind = str(values.get("id")), values.get("type")
    sources = (values.get(key) for key in ("sourceServiceId", "sourceUuid", "source"))
    source = next((text for text in sources if isinstance(text, str) and text), None)
    author = {"outgoing": ME, "incoming": source or str(values.get("conversationId"))}.get(kind)  # type: ignore[arg-type]
    if author is None:
        report.skip("it is a note of Signal", place)
        return Message(id_, NOBODY, "", time)
    body = values.get("body")
    text = body.strip() if isinstance(body, str) else ""
    if values.get("deletedForEveryone") or values.get("isErased"):
        report.skip("it was deleted", place)
        text = ""
    elif values.get("storyReplyContext") or values.get("storyId"):
        report.skip("it answers a story that is not there", place)
        text = ""
    elif not text:
        report.skip("it holds no words", place)
    ranges = values.get("bodyRanges")
    names = [
        str(each.get("replacementText") or "")
        for each in (ranges if isinstance(ranges, list) else ())
        if isinstance(each, dict) and ("mentionUuid" in each or "mentionAci" in each)
    ]
    return Message(id_, author, _with_mentions(text, names), time)


def _with_mentions(text: str, names: list[str]) -> str:
    """A text with the names of those mentioned, in the order in which they are."""
    for name in names:
        text = text.replace(_MENTION, f"@{name}" if name else "", 1)
    return text.replace(_MENTION, "").strip()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line.decode("utf-8-sig"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _seconds(value: Any) -> float | None:
    """Milliseconds, which JSON of 64-bit numbers has as text, in seconds."""
    try:
        return int(value) / 1000 if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None
