"""Chats that signal-export and sigtop wrote as text, as threads.

signal-export's `chat.md` has a message a paragraph, `[2024-03-05 10:00:00] Me: text`; sigtop's text
files have a block of headers above each message, `From:`, `Type:`, `Sent:`.  Both also hold words
that a message quotes, as lines that begin with `>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, tzinfo
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath

from pfi.readers.exports import Member
from pfi.readers.report import ImportReport
from pfi.sources.chats import Message
from pfi.sources.signal_exports import ME
from pfi.sources.threads import NOBODY, Thread, time_or_none

__all__ = ["MARKDOWN", "TEXT", "is_text", "text_thread"]

#: Files that signal-export writes, and those that may be sigtop's.
MARKDOWN = re.compile(r"(?:.*/)?(?:chat|index)\.md", re.I)
TEXT = re.compile(r".*\.txt", re.I)
#: Bytes of one chat, and of its beginning that a glance looks at.
_LIMIT, _GLANCE = 256 << 20, 1 << 14

_LINE = re.compile(
    r"^\[(\d{4}-\d\d-\d\d)[ T,]+(\d\d:\d\d(?::\d\d)?)\] ?([^:\n]{1,80}): ?(.*)$", re.M
)
_HEADERS = re.compile(
    r"^From: (.*)\nType: (\S.*)\nSent: (.*)\n((?:(?:Received|Edited|Expires|Attachment|Reaction|To|"
    r"Conversation)[^:\n]*:.*\n)*)",
    re.M,
)
#: Attachments and reactions, as signal-export writes them.
_MEDIA = re.compile(r"!?\[[^\]\n]{0,300}\]\((?:\./)?media/[^)\n]{0,300}\)|\(- .{1,80} -\)")
_CALL = re.compile(r"(incoming|outgoing|missed)( \w+)? call\b.*", re.I)


def is_text(file: Member) -> bool:
    """Whether a file is a chat of signal-export or sigtop, by its beginning."""
    with file.open() as stream:
        head = stream.read(_GLANCE).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if MARKDOWN.fullmatch(file.name):
        return _LINE.match(head.lstrip()) is not None
    return head.startswith("Conversation: ") and _HEADERS.search(head) is not None


def text_thread(file: Member, zone: tzinfo, report: ImportReport) -> Thread:
    """One chat.

    Args:
        file: the chat's.
        zone: of times that name none.
        report: told what is left out.
    """
    with file.open() as stream:
        text = stream.read(_LIMIT).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    path = PurePosixPath(file.name)
    markdown = MARKDOWN.fullmatch(file.name) is not None
    name = (path.parent.name or file.place.parent.name) if markdown else path.stem
    messages: list[Message] = []
    for number, (sender, time, body) in enumerate(_markdown(text) if markdown else _blocks(text)):
        place = f"{name}, message {number + 1}"
        if time is not None and time.tzinfo is None:
            time = time.replace(tzinfo=zone)
        checked = time_or_none(time.isoformat()) if time is not None else None
        if checked is None:
            report.skip("it has no time", place)
            continue
        id_ = f"{name}-{int(checked.timestamp() * 1000)}-{number}"
        words = _MEDIA.sub("", body).strip()
        if not sender or _CALL.fullmatch(words):
            report.skip("it is a note of Signal, or a call", place)
            sender, words = NOBODY, ""
        elif not words:
            report.skip("it holds no words", place)
        messages.append(Message(id_, sender, words, checked))
    shown = {author: author for author in dict.fromkeys(m.author for m in messages) if author}
    return Thread(name, {**shown, ME: ME}, messages, ME)


def _markdown(text: str) -> Iterator[tuple[str, datetime | None, str]]:
    """Yield `(sender, time, text)`; what stands below a message belongs to it."""
    heads = list(_LINE.finditer(text))
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        body = head[4] + text[head.end() : after.start() if after else len(text)]
        sender = "" if head[3] == "No-Sender" else head[3]
        yield sender, _time(f"{head[1]}T{head[2]}"), body


def _blocks(text: str) -> Iterator[tuple[str, datetime | None, str]]:
    heads = list(_HEADERS.finditer(text))
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : after.start() if after else len(text)]
        sender = {"outgoing": ME, "incoming": head[1].strip()}.get(head[2].strip(), "")
        try:
            time: datetime | None = parsedate_to_datetime(head[3].strip())
        except ValueError:
            time = None
        yield sender, time, body


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
