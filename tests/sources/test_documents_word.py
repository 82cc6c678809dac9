"""Word documents: only their author's words are read, whatever others changed, said or quoted.

Tracked changes have the shape of splittist/docxfix (its corpus of documents of Word 365) and
python-docx-redline's fixtures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from connector_sources import read
from document_files import deleted, docx, inserted, paragraph, run

from pfi.errors import ConfigError, DataError
from pfi.records import Record

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
MORE = "Later the rain came over the hills, so we sat in the kitchen and talked about the old boat."


def texts(records: list[Record]) -> str:
    """The texts to continue, one after the other."""
    return "\n\n".join(r.output for r in records if r.task == "continuation")


def own(path: Path, body: str, **more: object) -> tuple[str, dict[str, int]]:
    """The own text of a document, in which nothing of others is, and what was left out."""
    records, report = read("documents", docx(path / "Walk.docx", body, **more))  # type: ignore[arg-type]
    assert "THEIRS" not in repr(records)
    return texts(records), dict(report.skipped)


def test_a_document_is_a_title_and_a_text(tmp_path: Path) -> None:
    body = paragraph("A quiet harbour", style="Titel") + paragraph(TEXT) + paragraph(MORE)
    records, report = read("documents", docx(tmp_path / "Walk.docx", body))
    assert [(r.id, r.task, r.output) for r in records] == [
        ("Walk.docx#title", "note_title", "A quiet harbour"),
        ("Walk.docx#1", "continuation", f"{TEXT}\n\n{MORE}"),
    ]
    assert records[0].input == {"text": f"{TEXT}\n\n{MORE}"}
    assert {r.time.isoformat() for r in records if r.time} == {"2024-03-05T14:22:10+00:00"}
    assert report.me == ["Sam Me"] and not report.skipped


@pytest.mark.parametrize("more", [{"main": "word/document2.xml"}, {"strict": True}])
def test_other_places_and_namespaces(tmp_path: Path, more: dict[str, object]) -> None:
    quote = paragraph("THEIRS words", style="Zitat1")
    assert own(tmp_path, quote + paragraph(TEXT), **more) == (TEXT, {"it is a quotation": 1})


def test_changes_of_others_are_rejected_and_own_ones_accepted(tmp_path: Path) -> None:
    body = paragraph(
        "I walked ",
        inserted("THEIRS slowly ", "Ida Three"),
        inserted("today ", "Sam Me"),
        deleted("along the ", "Ida Three"),
        deleted("GONE ", "Sam Me"),
        "wall of the harbour with a cup of tea in one hand.",
    )
    text, left_out = own(tmp_path, body, editor="Ida Three")
    assert text == ("I walked today along the wall of the harbour with a cup of tea in one hand.")
    assert left_out == {"someone else inserted it": 1}


def test_moves_and_changes_within_changes(tmp_path: Path) -> None:
    moved = f'<w:moveTo w:id="3" w:author="Ida">{run("THEIRS place. ")}</w:moveTo>'
    source = f'<w:moveFrom w:id="4" w:author="Ida">{run("It was quiet there. ")}</w:moveFrom>'
    both = f'<w:ins w:id="5" w:author="Ida">{deleted("THEIRS", "Sam Me")}</w:ins>'
    mine = f'<w:ins w:id="6" w:author="Sam Me">{deleted("And cold. ", "Ida")}</w:ins>'
    text, _ = own(tmp_path, paragraph(moved, source, both, mine, TEXT))
    assert text == f"It was quiet there. And cold. {TEXT}"


def test_ends_of_paragraphs_that_others_changed(tmp_path: Path) -> None:
    mark = '<w:rPr><w:{0} w:id="7" w:author="{1}"/></w:rPr>'
    for kind, author, joined in (
        ("ins", "Ida", True), ("ins", "Sam Me", False),
        ("del", "Ida", False), ("del", "Sam Me", True),
    ):  # fmt: skip
        body = paragraph(TEXT, properties=mark.format(kind, author)) + paragraph(MORE)
        text, _ = own(tmp_path, body)
        assert text == (TEXT + MORE if joined else f"{TEXT}\n\n{MORE}"), (kind, author)


def test_paragraphs_of_others_go_whole(tmp_path: Path) -> None:
    mark = '<w:rPr><w:ins w:id="7" w:author="Ida"/></w:rPr>'
    theirs = paragraph(inserted("THEIRS whole", "Ida"), properties=mark)
    assert own(tmp_path, paragraph(TEXT) + theirs + paragraph(MORE))[0] == f"{TEXT}\n\n{MORE}"
    last = paragraph(TEXT) + paragraph(inserted("THEIRS", "Ida"), properties=mark)
    assert own(tmp_path, last)[0] == TEXT


def test_anonymous_changes_are_someone_elses(tmp_path: Path) -> None:
    body = paragraph(TEXT, inserted(" THEIRS", "Author"), inserted(" THEIRS", ""))
    assert own(tmp_path, body)[0] == TEXT


def test_comments_notes_heads_and_feet_are_not_read(tmp_path: Path) -> None:
    note = '<w:footnote w:id="{0}"{1}>' + paragraph("THEIRS note") + "</w:footnote>"
    text, left_out = own(
        tmp_path,
        paragraph(TEXT),
        editor="Ida",
        comments=("Ida", "Ida"),
        footnotes=note.format(-1, ' w:type="separator"') + note.format(1, ""),
        header1=paragraph("THEIRS head"),
        footer1=paragraph("THEIRS foot"),
    )
    assert text == TEXT
    assert left_out == {"it is a comment": 2, "it is a footnote": 1}


FIELD = (
    '<w:r><w:fldChar w:fldCharType="begin"/></w:r>'
    '<w:r><w:instrText xml:space="preserve"> {0} </w:instrText></w:r>'
    '<w:r><w:fldChar w:fldCharType="separate"/></w:r>{1}'
    '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
)
LEFT_OUT = {
    "quote": paragraph("THEIRS", style="Zitat1"),
    "quote by a style based on it": paragraph("THEIRS", style="Eigen"),
    "quote within a paragraph": paragraph(run("THEIRS", '<w:rStyle w:val="ZitatZchn"/>')),
    "contents by style": paragraph("THEIRS 3", style="Verzeichnis1"),
    "contents by gallery": "<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val="
    f'"Table of Contents"/></w:docPartObj></w:sdtPr><w:sdtContent>{paragraph("THEIRS")}'
    "</w:sdtContent></w:sdt>",
    "contents by field": paragraph(FIELD.format(r"TOC \o &quot;1-3&quot;", run("THEIRS"))),
    "works of Zotero": paragraph(FIELD.format("ADDIN ZOTERO_BIBL {}", run("THEIRS"))),
    "mail merge": paragraph(FIELD.format("MERGEFIELD Name", run("THEIRS"))),
    "simple field": paragraph(f'<w:fldSimple w:instr=" FILENAME ">{run("THEIRS")}</w:fldSimple>'),
    "placeholder": f'<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>'
    f'{paragraph("THEIRS Click or tap here")}</w:sdtContent></w:sdt>',
    "placeholder by style": paragraph(run("THEIRS", '<w:rStyle w:val="Platzhaltertext"/>')),
    "hidden": paragraph(run("THEIRS", "<w:vanish/>")),
    "old form of a box": paragraph(
        "<w:r><mc:AlternateContent><mc:Fallback><w:pict><w:txbxContent>"
        + paragraph("THEIRS " * 20) + "</w:txbxContent></w:pict></mc:Fallback>"
        "</mc:AlternateContent></w:r>"
    ),
    "cells": f"<w:tbl><w:tr><w:tc>{paragraph('THEIRS 12')}</w:tc></w:tr></w:tbl>",
    "address": paragraph("https://theirs.example/THEIRS"),
    "lorem": paragraph("Lorem ipsum dolor sit amet THEIRS"),
    "quote with whom it is from": paragraph("“THEIRS words that are long enough”")
    + paragraph("— Ida Three"),
}  # fmt: skip


@pytest.mark.parametrize("form", LEFT_OUT)
def test_what_is_not_the_authors_text(tmp_path: Path, form: str) -> None:
    text, left_out = own(tmp_path, paragraph(TEXT) + LEFT_OUT[form] + paragraph(MORE))
    assert text == f"{TEXT}\n\n{MORE}"
    assert bool(left_out) == (form != "old form of a box")


KEPT = {
    "link": paragraph(f"<w:hyperlink>{run(TEXT)}</w:hyperlink>"),
    "link by field": paragraph(FIELD.format("HYPERLINK &quot;https://a.example&quot;", run(TEXT))),
    "content control": f"<w:sdt><w:sdtPr/><w:sdtContent>{paragraph(TEXT)}</w:sdtContent></w:sdt>",
    "cell": f"<w:tbl><w:tr><w:tc>{paragraph(TEXT)}</w:tc></w:tr></w:tbl>",
    "former style": paragraph(
        TEXT, properties='<w:pPrChange w:author="Ida"><w:pPr><w:pStyle w:val="Zitat1"/></w:pPr>'
        "</w:pPrChange>",
    ),
    "shown again": paragraph(run(TEXT, '<w:vanish w:val="0"/>')),
}  # fmt: skip


@pytest.mark.parametrize("form", KEPT)
def test_own_text_in_other_shapes(tmp_path: Path, form: str) -> None:
    assert own(tmp_path, KEPT[form]) == (TEXT, {})


def test_lists_breaks_and_readings(tmp_path: Path) -> None:
    listed = paragraph(TEXT, properties='<w:numPr><w:numId w:val="1"/></w:numPr>')
    broken = paragraph(run("One"), "<w:r><w:br/></w:r>", run("two"), "<w:r><w:tab/></w:r>", "three")
    ruby = paragraph(
        f"<w:r><w:ruby><w:rt>{run('かんじ')}</w:rt><w:rubyBase>{run('漢字')}</w:rubyBase></w:ruby></w:r>"
    )
    assert own(tmp_path, listed + broken + ruby)[0] == f"- {TEXT}\n\nOne\ntwo three\n\n漢字"


ORIGINS = {
    "its author is someone else": {"creator": "Ida Three"},
    "it has several authors": {"creator": "Sam Me; Ida Three"},
    "someone else saved it last, and may have written in it": {"editor": "Ida Three"},
    "it is a template": {"template": True},
}


@pytest.mark.parametrize("reason", ORIGINS)
def test_whose_document_it_is(tmp_path: Path, reason: str) -> None:
    docx(tmp_path / "Mine.docx", paragraph(TEXT))
    docx(tmp_path / "Theirs.docx", paragraph("THEIRS " * 20), **ORIGINS[reason])  # type: ignore[arg-type]
    records, report = read("documents", tmp_path, {"me": ["Sam Me"]})
    assert texts(records) == TEXT and report.examples == {reason: "Theirs.docx"}
    if "template" not in ORIGINS[reason] and reason != "its author is someone else":
        assert "THEIRS" in texts(read("documents", tmp_path, {"me": ["Sam Me"], "shared": True})[0])


@pytest.mark.parametrize("name", ["Microsoft Office User", "python-docx", "", "Windows-Benutzer"])
def test_names_that_programs_put_are_nobody(tmp_path: Path, name: str) -> None:
    docx(tmp_path / "Mine.docx", paragraph(TEXT), creator=name)
    docx(tmp_path / "Also mine.docx", paragraph(MORE))
    assert {r.output for r in read("documents", tmp_path)[0]} >= {TEXT, MORE}


def test_names_are_compared_in_any_order(tmp_path: Path) -> None:
    docx(tmp_path / "Mine.docx", paragraph(TEXT), creator="ME, Sam")
    assert texts(read("documents", tmp_path, {"me": ["Sam Me"]})[0]) == TEXT


def test_most_documents_say_who_one_is_else_one_has_to(tmp_path: Path) -> None:
    for number in range(3):
        docx(tmp_path / f"{number}.docx", paragraph(f"{TEXT} Number {number}."))
    docx(tmp_path / "Theirs.docx", paragraph("THEIRS " * 20), creator="Ida Three")
    records, report = read("documents", tmp_path)
    assert "THEIRS" not in repr(records) and report.me == ["Sam Me"]
    for number in range(2):
        docx(tmp_path / f"Theirs {number}.docx", paragraph("THEIRS " * 20), creator="Ida Three")
    with pytest.raises(ConfigError, match=r"who you are") as caught:
        read("documents", tmp_path)
    assert "'Ida Three'" in str(caught.value.fix) and "'Sam Me'" in str(caught.value.fix)


def test_pasted_mails_and_chats_end_the_own_text(tmp_path: Path) -> None:
    for theirs in (
        ["From: Ida Three", "Sent: Tuesday, 5 March 2024 10:00", "To: Sam Me", "Subject: Wool"],
        ["On 5 March 2024 at 10:00, Ida Three &lt;ida@x.example&gt; wrote:"],
        ["[05/03/2024, 10:00:12] Ida Three: hello THEIRS"],
    ):
        lines = [*theirs, "THEIRS words follow here"]
        assert own(tmp_path, paragraph(TEXT) + "".join(map(paragraph, lines)))[0] == TEXT


@pytest.mark.parametrize(
    "lines",
    [
        ["Ida Three: THEIRS one", "Sam Me: yes", "Ida Three: THEIRS two", "Sam Me: no"],
        ["Ida Three   0:03", "THEIRS one", "Sam Me   0:12", "two", "Ida Three   0:15", "THEIRS",
         "Sam Me   0:20", "four"],
        ["ChatGPT: THEIRS answer", "Me: question"],
    ],
)  # fmt: skip
def test_minutes_of_what_several_said(tmp_path: Path, lines: list[str]) -> None:
    docx(tmp_path / "Mine.docx", paragraph(TEXT))
    docx(tmp_path / "Talk.docx", paragraph(MORE) + "".join(map(paragraph, lines)))
    records, report = read("documents", tmp_path)
    assert texts(records) == TEXT
    assert report.examples == {"it is a conversation of several people": "Talk.docx"}


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'.replace(
        "x [", "w:document ["
    )
)
OUTSIDE = '<!DOCTYPE w:document [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


def test_hostile_documents_are_refused(tmp_path: Path) -> None:
    typed = '<!DOCTYPE w:document SYSTEM "file:///etc/passwd">'
    for prolog, entity in ((BOMB, "&b;"), (OUTSIDE, "&x;"), (typed, "")):
        docx(tmp_path / "Bomb.docx", paragraph(f"{entity} {TEXT}"), prolog=prolog)
        with pytest.raises(DataError, match="document type or entities"):
            read("documents", tmp_path / "Bomb.docx")
    docx(tmp_path / "Deep.docx", "<w:smartTag>" * 5000 + "</w:smartTag>" * 5000)
    with pytest.raises(DataError, match="nests too deeply"):
        read("documents", tmp_path / "Deep.docx")
    docx(tmp_path / "Swollen.docx", paragraph("a" * (80 << 20)))
    with pytest.raises(DataError, match="would swell"):
        read("documents", tmp_path / "Swollen.docx")


def test_damaged_and_encrypted_documents_do_not_keep_the_others(tmp_path: Path) -> None:
    whole = docx(tmp_path / "Mine.docx", paragraph(TEXT)).read_bytes()
    (tmp_path / "cut.docx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    (tmp_path / "empty.docx").write_bytes(b"")
    (tmp_path / "~$Mine.docx").write_bytes(b"\x06Sam Me")
    docx(tmp_path / "open.docx", f"<w:p>{TEXT}")
    records, report = read("documents", tmp_path)
    assert texts(records) == TEXT and report.skipped.total() == 4
    assert report.examples["it is encrypted: save it without a password"] == "locked.docx"
    assert report.examples["its XML is damaged"] == "open.docx"
