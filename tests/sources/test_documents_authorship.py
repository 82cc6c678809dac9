"""A property of documents: no word of someone else is an output, and each own word is in one text.

Documents of two people are drawn, with a planted word for each piece of text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from connector_sources import read
from document_files import change, deleted, docx, inserted, odt, paragraph
from hypothesis import given, settings
from hypothesis import strategies as st

#: What a piece of a paragraph may be: plain, or inserted or deleted by oneself or someone else.
PIECES = ["plain", "my insertion", "their insertion", "my deletion", "their deletion"]
#: Whether the word of a piece is the person's own, and stands in what they wrote.
OWN = {"plain", "my insertion", "their deletion"}
PARAGRAPHS = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from(PIECES), min_size=1, max_size=6)),
    min_size=1,
    max_size=6,
)
BASE = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."


def word_runs(kind: str, word: str) -> str:
    """A piece as Word writes it."""
    who = "Ida Three" if kind.startswith("their") else "Sam Me"
    if kind.endswith("insertion"):
        return inserted(f"{word} ", who)
    return deleted(f"{word} ", who) if kind.endswith("deletion") else f"{word} "


def open_piece(kind: str, word: str) -> tuple[str, str]:
    """A piece as LibreOffice writes it, and what it tells of the change."""
    if kind == "plain":
        return f"{word} ", ""
    who, name = ("Ida Three" if kind.startswith("their") else "Sam Me"), f"c{word}"
    if kind.endswith("deletion"):
        told = change(name, "deletion", who, f"<text:p>{word} </text:p>")
        return f'<text:change text:change-id="{name}"/>', told
    text = (
        f'<text:change-start text:change-id="{name}"/>{word} '
        f'<text:change-end text:change-id="{name}"/>'
    )
    return text, change(name, "insertion", who)


@settings(max_examples=60, deadline=None)
@given(PARAGRAPHS)
def test_planted_words(drawn: list[tuple[bool, list[str]]]) -> None:
    own: set[str] = set()
    theirs: set[str] = set()
    word_body, open_body, changes = paragraph(BASE), f"<text:p>{BASE}</text:p>", ""
    number = 0
    for quoted, pieces in drawn:
        runs, spans = [], ""
        for kind in pieces:
            number += 1
            word = f"word{number}x"
            (own if kind in OWN and not quoted else theirs).add(word)
            runs.append(word_runs(kind, word))
            span, told = open_piece(kind, word)
            spans, changes = spans + span, changes + told
        word_body += paragraph(*runs, style="Zitat1" if quoted else "")
        style = ' text:style-name="Quotations"' if quoted else ""
        open_body += f"<text:p{style}>{spans}</text:p>"
    with tempfile.TemporaryDirectory() as folder:
        for path in (
            docx(Path(folder) / "a.docx", word_body, editor="Sam Me"),
            odt(Path(folder) / "a.odt", open_body, changes=changes, editor="Sam Me"),
        ):
            records, _ = read("documents", path, {"me": ["Sam Me"]})
            outputs = [r.output.split() for r in records if r.task == "continuation"]
            words = [word for output in outputs for word in output]
            assert not theirs & set(words), path.name
            assert all(words.count(word) == 1 for word in own), path.name
