"""Notes of Google Keep: long ones are read whole, in pieces, as Markdown notes are.

The keys are those of Takeout's JSON in djsudduth/keep-it-markdown and vHanda/google-keep-exporter.
"""

from __future__ import annotations

import json
from pathlib import Path

from pfi.readers.exports import open_member
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.google_keep import note_records

SENTENCE = "The harbour was quiet this morning and I walked along the long wall with tea. "


def records_of(folder: Path, text: str) -> list[Record]:
    note = {
        "isTrashed": False, "textContent": text, "title": "Harbour",
        "createdTimestampUsec": 1_709_648_530_000_000,
    }  # fmt: skip
    (folder / "Harbour.json").write_text(json.dumps(note))
    member = open_member(folder / "Harbour.json", "Takeout/Keep/Harbour.json")
    return list(note_records(member, ImportReport(), "takeout:x"))


def test_a_note_of_usual_length_is_one_text(tmp_path: Path) -> None:
    text = (SENTENCE * 25)[:2000].strip()
    title, whole = records_of(tmp_path, text)
    assert (title.id, title.input["text"], title.output) == ("keep-Harbour#title", text, "Harbour")
    assert (whole.id, whole.output) == ("keep-Harbour#1", text)


def test_a_long_note_is_read_to_its_end(tmp_path: Path) -> None:
    paragraphs = [f"{SENTENCE * 4}Number {number}." for number in range(20)]
    title, *pieces = records_of(tmp_path, "\n\n".join(paragraphs))
    assert [piece.id for piece in pieces] == [
        f"keep-Harbour#{number}" for number in range(1, len(pieces) + 1)
    ]
    assert "\n\n".join(piece.output for piece in pieces) == "\n\n".join(paragraphs)
    assert len(pieces) > 4 and all(len(piece.output) <= 1300 for piece in pieces)
    assert title.input["text"] == "\n\n".join(paragraphs)[:1200]
