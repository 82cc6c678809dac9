"""Notes of Google Keep as Takeout exports them: a JSON file a note, as titles and texts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from pfi.readers.exports import Member
from pfi.readers.note_pieces import LEAST_WORDS, PIECE_LIMIT, pieces
from pfi.readers.report import ImportReport
from pfi.readers.takeout import small_json
from pfi.readers.values import Unusable, past_time
from pfi.readers.words import count_words
from pfi.records import Record

#: Longest note that is given whole, in characters; of longer ones each piece is a record.
WHOLE_LIMIT = 2000


def note_records(member: Member, report: ImportReport, source: str) -> Iterator[Record]:
    """The records of one note; what cannot be used is told to `report`."""
    try:
        records = list(_records(small_json(member), PurePosixPath(member.name).stem, source))
    except Unusable as problem:
        report.skip(problem.reason, member.file_name)
        return
    report.read += len(records)
    yield from records


def _records(note: Any, name: str, source: str) -> Iterator[Record]:
    """A title to tell, if the note has one, and its text to continue, a long one in pieces.

    Raises:
        Unusable: it is no note of one's own in words.
    """
    if not isinstance(note, dict) or "isTrashed" not in note:
        raise Unusable("it is no note of Keep")
    if note["isTrashed"]:
        raise Unusable("it is in the trash")
    if note.get("sharees"):
        raise Unusable("it is shared with others, who may have written it")
    text = note.get("textContent")
    if not isinstance(text, str) or not text.strip():
        raise Unusable("it is a list, a picture or empty" if note.get("listContent") else "empty")
    if _is_saved(note):
        raise Unusable("it was saved from a page")
    text = text.strip()
    if count_words(text) < LEAST_WORDS:
        raise Unusable(f"it has fewer than {LEAST_WORDS} words")
    whole = len(text) <= WHOLE_LIMIT
    time = _time(note)
    title = note.get("title")
    if isinstance(title, str) and title.strip():
        fields = {"text": text if whole else text[:PIECE_LIMIT]}
        yield Record(f"keep-{name}#title", "note_title", fields, title.strip(), time, source=source)
    for number, piece in enumerate([text] if whole else pieces(text), 1):
        yield Record(f"keep-{name}#{number}", "continuation", {}, piece, time, source=source)


def _is_saved(note: dict[str, Any]) -> bool:
    """Whether a note keeps a page: Keep puts the page's own title above its address."""
    links = note.get("annotations")
    if not isinstance(links, list) or not isinstance(note.get("title"), str):
        return False
    titles = {link.get("title") for link in links if isinstance(link, dict)}
    return bool(note["title"].strip()) and note["title"] in titles


def _time(note: dict[str, Any]) -> datetime:
    """When a note was begun, or last changed.

    Raises:
        Unusable: that is not said.
    """
    for key in ("createdTimestampUsec", "userEditedTimestampUsec"):
        value = note.get(key)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            time = past_time(value // 1_000_000)
            if time is not None:
                return time
    raise Unusable("it has no time")
