"""OpenDocument texts and rich text: only their author's words are read.

Changes have the shape that LibreOffice writes, as in the fixtures of odfdo and of
kreuzberg-dev/kreuzberg; rich text that of TextEdit, WordPad and Word.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from connector_sources import read
from document_files import change, odt

from pfi.errors import DataError
from pfi.records import Record

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
MORE = "Later the rain came over the hills, so we sat in the kitchen and talked about the old boat."


def texts(records: list[Record]) -> str:
    return "\n\n".join(r.output for r in records if r.task == "continuation")


def own(path: Path, body: str, name: str = "Walk.odt", **more: str) -> tuple[str, dict[str, int]]:
    """The own text of a document, in which nothing of others is, and what was left out."""
    records, report = read("documents", odt(path / name, body, **more))
    assert "THEIRS" not in repr(records)
    return texts(records), dict(report.skipped)


@pytest.mark.parametrize("name", ["Walk.odt", "Walk.fodt"])
def test_an_open_document(tmp_path: Path, name: str) -> None:
    body = f'<text:h text:outline-level="1">A quiet harbour</text:h><text:p>{TEXT}</text:p>'
    records, report = read("documents", odt(tmp_path / name, body))
    assert [(r.id, r.output) for r in records] == [
        (f"{name}#title", "A quiet harbour"), (f"{name}#1", TEXT),
    ]  # fmt: skip
    assert {r.time.isoformat() for r in records if r.time} == {"2024-03-05T14:22:10+00:00"}
    assert report.me == ["Sam Me"] and not report.skipped


def test_changes_of_others_are_rejected_and_own_ones_accepted(tmp_path: Path) -> None:
    changes = (
        change("i1", "insertion", "Ida Three")
        + change("i2", "insertion", "Sam Me")
        + change(
            "d1", "deletion", "Ida Three", "<text:p>along the <text:span>old</text:span></text:p>"
        )
        + change("d2", "deletion", "Sam Me", "<text:p>GONE</text:p>")
    )
    span = '<text:change-start text:change-id="{0}"/>{1}<text:change-end text:change-id="{0}"/>'
    body = (
        f"<text:p>I walked {span.format('i1', 'THEIRS slowly ')}{span.format('i2', 'today ')}"
        '<text:change text:change-id="d1"/> wall<text:change text:change-id="d2"/>'
        " of the harbour with a cup of tea in one hand.</text:p>"
    )
    text, left_out = own(tmp_path, body, changes=changes, editor="Ida Three")
    assert text == (
        "I walked today along the old wall of the harbour with a cup of tea in one hand."
    )
    assert left_out == {"someone else inserted it": 1}


def test_paragraphs_that_others_inserted_and_deleted(tmp_path: Path) -> None:
    changes = change("i1", "insertion", "Ida Three") + change(
        "d1", "deletion", "Ida Three", f"<text:p/><text:p>{MORE}</text:p>"
    )
    body = (
        f'<text:p>{TEXT}<text:change-start text:change-id="i1"/></text:p><text:p>THEIRS</text:p>'
        '<text:p>THEIRS<text:change-end text:change-id="i1"/></text:p>'
        '<text:p>Then I went home.<text:change text:change-id="d1"/></text:p>'
    )
    text, _ = own(tmp_path, body, changes=changes)
    assert text == f"{TEXT}\n\nThen I went home.\n\n{MORE}"


LEFT_OUT = {
    "quote": '<text:p text:style-name="Quotations">THEIRS</text:p>',
    "quote by a style based on it": '<text:p text:style-name="Mine">THEIRS</text:p>',
    "quote by an automatic style": '<text:p text:style-name="P1">THEIRS</text:p>',
    "hidden": '<text:p text:style-name="P2">THEIRS</text:p>',
    "contents": "<text:table-of-content><text:index-body><text:p>THEIRS</text:p>"
    "</text:index-body></text:table-of-content>",
    "works": "<text:bibliography><text:index-body><text:p>THEIRS</text:p></text:index-body>"
    "</text:bibliography>",
    "note": '<text:p><text:note><text:note-citation>1</text:note-citation><text:note-body>'
    "<text:p>THEIRS</text:p></text:note-body></text:note></text:p>",
    "comment": "<text:p><office:annotation><dc:creator>Ida</dc:creator><text:p>THEIRS</text:p>"
    '</office:annotation></text:p>',
    "placeholder": "<text:p><text:placeholder>THEIRS</text:placeholder></text:p>",
    "included": '<text:section><text:section-source xlink:href="a.odt"/><text:p>THEIRS</text:p>'
    "</text:section>",
    "cells": "<table:table><table:table-row><table:table-cell><text:p>THEIRS 1</text:p>"
    "</table:table-cell></table:table-row></table:table>",
}  # fmt: skip
_STYLES = (
    '<style:style style:name="P1" style:parent-style-name="Quotations"/>'
    '<style:style style:name="P2"><style:text-properties text:display="none"/></style:style>'
)


@pytest.mark.parametrize("form", LEFT_OUT)
def test_what_is_not_the_authors_text(tmp_path: Path, form: str) -> None:
    body = f"<text:p>{TEXT}</text:p>{LEFT_OUT[form]}<text:p>{MORE}</text:p>"
    text, left_out = own(tmp_path, body, styles=_STYLES)
    assert text == f"{TEXT}\n\n{MORE}" and len(left_out) == 1


def test_spaces_lists_and_pictures(tmp_path: Path) -> None:
    body = (
        f"<text:list><text:list-item><text:p>{TEXT}</text:p></text:list-item></text:list>"
        '<text:p>One\n   two<text:s text:c="3"/>three<text:line-break/>four<text:tab/>five'
        "<draw:frame><draw:image><office:binary-data>THEIRS</office:binary-data></draw:image>"
        "<svg:desc>THEIRS</svg:desc></draw:frame></text:p>"
    )
    assert own(tmp_path, body)[0] == f"- {TEXT}\n\nOne two three\nfour five"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"manifest": "<manifest:file-entry><manifest:encryption-data/></manifest:file-entry>"},
         "encrypted"),
        ({"kind": "text-template"}, "template"),
        ({"kind": "spreadsheet"}, "no text document"),
        ({"creator": "Ida Three", "editor": "Sam Me"}, "someone else"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(tmp_path: Path, more: dict[str, str], reason: str) -> None:
    odt(tmp_path / "a.odt", f"<text:p>THEIRS {TEXT}</text:p>", **more)
    odt(tmp_path / "b.odt", f"<text:p>{TEXT}</text:p>")
    records, report = read("documents", tmp_path, {"me": ["Sam Me"]})
    assert texts(records) == TEXT and reason in next(iter(report.examples))


INFO = r"{\info{\title Walk}{\author Sam Me}{\operator Sam Me}{\revtim\yr2024\mo3\dy5\hr14\min22}}"
RICH = {
    "text edit": r"{\rtf1\ansi\ansicpg1252\cocoartf2761{\fonttbl\f0\fswiss\fcharset0 Helvetica;}"
    r"{\colortbl;\red255\green255\blue255;}{\*\expandedcolortbl;;}\pard\pardirnatural"
    "\n\\f0\\fs24 \\cf0 " + TEXT + "\\\n\\\n" + MORE + "}",
    "word pad": r"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fnil\fcharset0 Calibri;}}"
    r"{\*\generator Riched20 THEIRS;}\viewkind4\uc1 \pard\sa200 "
    + TEXT
    + r"\par "
    + MORE
    + r"\par}",
    "word": r"{\rtf1\ansi{\stylesheet{\ql Normal;}{\s15 Quote;}{\*\cs16 \additive Char;}}"
    + INFO
    + r"{\*\revtbl {Unknown;}{Ida Three;}{Sam Me;}}{\header THEIRS\par}{\footer \pard THEIRS\par}"
    r"\pard\plain " + TEXT + r"{\revised\revauth1  THEIRS}{\deleted\revauthdel2 GONE}\par "
    r"\pard\s15 THEIRS quoted\par \pard {\v THEIRS}{\footnote THEIRS}{\*\annotation THEIRS}"
    r"{\field{\*\fldinst  TOC \\o}{\fldrslt THEIRS}}{\pict 89504e47}" + MORE + r"\par}",
}


@pytest.mark.parametrize("form", RICH)
def test_rich_text(tmp_path: Path, form: str) -> None:
    (tmp_path / "Walk.rtf").write_text(RICH[form])
    records, _ = read("documents", tmp_path / "Walk.rtf")
    assert texts(records) == f"{TEXT}\n\n{MORE}"
    if form == "word":
        assert {str(r.time) for r in records} == {"2024-03-05 14:22:00+00:00"}


def test_rich_text_of_other_scripts(tmp_path: Path) -> None:
    spelt = "".join(rf"\u{ord(c)}?" for c in "Проснулся")
    data = (
        rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset204 B;}}\uc1 "
        + spelt.encode() + rb" \f1\'f0\'e0\'ed\'ee\f0 caf\'e9 \ldblquote hi\rdblquote  \{x\} "
        + TEXT.encode() + rb" \u-10179?\u-8704?\par}"
    )  # fmt: skip
    (tmp_path / "Walk.rtf").write_bytes(data)
    assert texts(read("documents", tmp_path)[0]) == (f"Проснулся раноcafé “hi” {{x}} {TEXT} 😀")


def test_rich_text_that_is_damaged(tmp_path: Path) -> None:
    for data in (
        b"{" * 5000,
        b"{\\rtf1" + b"{" * 5000,
        b"no rich text",
        b"{\\rtf1 \\bin99999999 x",
    ):
        (tmp_path / "a.rtf").write_bytes(data)
        with pytest.raises(DataError):
            read("documents", tmp_path)
