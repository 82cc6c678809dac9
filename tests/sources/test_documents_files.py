"""Plain text, PDFs, and folders and zips of documents; what `auto` takes for documents.

Programs' names in PDFs are those of the sample files of py-pdf/sample-files and of mozilla/pdf.js.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from connector_sources import read
from document_files import docx, odt, paragraph, pdf, zipped

from pfi.errors import ConfigError, DataError
from pfi.readers import pdf_text
from pfi.readers.exports import Member, open_member
from pfi.records import Record
from pfi.sources.connectors import candidates, recognised

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
MORE = "Later the rain came over the hills, so we sat in the kitchen and talked about the old boat."
THEIRS = "THEIRS wool socks dry slowly but keep their shape for years if they are washed by hand."


def texts(records: list[Record]) -> str:
    return "\n\n".join(r.output for r in records if r.task == "continuation")


def titles(records: list[Record]) -> list[str]:
    return [r.output for r in records if r.task == "note_title"]


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "walk_2024-03-05.txt").write_text(
        f"A quiet harbour\n\n{TEXT}\n\n> THEIRS\n\n{MORE}"
    )
    records, report = read("documents", tmp_path)
    assert [(r.id, r.output) for r in records] == [
        ("walk_2024-03-05.txt#title", "A quiet harbour"),
        ("walk_2024-03-05.txt#1", f"{TEXT}\n\n{MORE}"),
    ]
    assert {str(r.time) for r in records} == {"2024-03-05 00:00:00+00:00"}
    assert report.examples == {"it is a quotation": "walk_2024-03-05.txt, paragraph 3"}


@pytest.mark.parametrize("name", ["Letter to_Anna.txt", "2024-03-05 Letter to Anna.txt"])
def test_names_are_titles_of_texts_without_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"{TEXT}\n\n{MORE}")
    assert titles(read("documents", tmp_path)[0]) == ["Letter to Anna"]


@pytest.mark.parametrize(
    "name", ["Document1.txt", "scan 0012.txt", "20240305.txt", "Untitled 2.txt"]
)
def test_names_that_say_nothing_are_no_titles(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXT)
    records, _ = read("documents", tmp_path)
    assert not titles(records) and texts(records) == TEXT
    with pytest.raises(DataError, match="no title"):
        read("documents", tmp_path, {"records": "titles"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_and_ends_of_lines(tmp_path: Path, encoding: str) -> None:
    text = (
        f"Schöne Grüße aus Köln, wo ich heute früh über die Brücke gegangen bin. Übrigens: {MORE}"
    )
    (tmp_path / "a.txt").write_bytes(f"{text}\r\n\r\n{TEXT}".encode(encoding))
    assert texts(read("documents", tmp_path)[0]) == f"{text}\n\n{TEXT}"


def test_a_text_without_a_date_has_the_time_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(TEXT)
    os.utime(file, (1_709_648_530, 1_709_648_530))
    records, report = read("documents", tmp_path)
    assert {str(r.time) for r in records} == {"2024-03-05 14:22:10+00:00"}
    assert "the time of the file" in report.notes[0]


NOT_OWN = {
    "LICENSE.txt": THEIRS,
    "requirements-dev.txt": THEIRS,
    "book.txt": f"The Project Gutenberg eBook of Wool\n\n{THEIRS}",
    "paper.txt": f"Wool\n\ndoi.org/10.1234/wool\n\n{THEIRS}",
    "page.txt": f"Source: https://socks.example/wool\n\n{THEIRS}",
    "chat.txt": f"05/03/2024, 10:00 - Ida: {THEIRS}\n05/03/2024, 10:01 - Sam: hi\n",
    "mail.txt": f"From: Ida <ida@x.example>\nTo: Sam <sam@x.example>\nSubject: Wool\n"
    f"Date: Tue, 5 Mar 2024 10:00:00 +0000\n\n{THEIRS}",
    "data.txt": "1;2;3\n4;5;6\n" * 50,
    "program.txt": "import THEIRS\ndef f(x):\n    return x;\n" * 10,
    "form.txt": f"Dear [Name], [Street]\n{THEIRS}\n[City], [Date]",
    "Templates/letter.txt": THEIRS,
    "Clippings/wool.txt": THEIRS,
    "notes.md": THEIRS,
    "old.doc": THEIRS,
    "short.txt": "THEIRS",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OWN)
def test_texts_that_are_not_ones_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.txt").write_text(TEXT)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(NOT_OWN[name])
    records, report = read("documents", tmp_path)
    assert texts(records) == TEXT and list(report.examples.values()) == [name]


def test_a_pdf_of_ones_own(tmp_path: Path) -> None:
    cut = TEXT.index("walked")
    pages = [
        ["Harbour notes, March", f"{TEXT[:cut]}wal-", TEXT[cut + 3 :], "Page 1 of 3"],
        ["Harbour notes, March", MORE, "Page 2 of 3"],
        ["Harbour notes, March", "It was good to be home again.", "Page 3 of 3"],
    ]
    pages = [[*page[:1], "", *page[1:-1], "", *page[-1:]] for page in pages]
    path = pdf(
        tmp_path / "Walk.pdf", pages, Author="Sam Me", Title="Microsoft Word - Walk.docx",
        ModDate="D:20240305142210+01'00'",
    )  # fmt: skip
    records, report = read("documents", path, {"me": ["Sam Me"]})
    assert texts(records).split() == f"{TEXT} {MORE} It was good to be home again.".split()
    assert titles(records) == ["Walk"]
    assert {str(r.time) for r in records} == {"2024-03-05 13:22:10+00:00"}
    assert report.skipped["a program filled it in"] == 6


def test_tables_of_contents_in_pdfs(tmp_path: Path) -> None:
    """As pdflatex-outline.pdf of py-pdf/sample-files has one, and with points."""
    plain = [[f"{n} THEIRS {n}", ""] for n in range(1, 6)]
    points = [[f"THEIRS {n} . . . . . . . {n}", ""] for n in range(1, 4)]
    years = [["I was there in 2019", ""], ["and again in 2012", ""]]
    lines = [line for pair in [*plain, *points, [TEXT, ""], *years] for line in pair]
    records, report = read(
        "documents", pdf(tmp_path / "a.pdf", [lines], Author="Sam Me"), {"me": ["Sam Me"]}
    )
    assert "THEIRS" not in repr(records) and "2012" in texts(records) and TEXT in texts(records)
    assert report.skipped["it is a table of contents, an index or a bibliography"] == 8


PDFS = {
    "its author is someone else": {"Author": "Ida Three"},
    "it has several authors": {"Author": "Ida Three and Sam Me"},
    "it does not say who wrote it: if you did, say unsigned=true": {"Producer": "pdfTeX-1.40.25"},
    "it was saved from a page": {"Creator": "Chromium", "Producer": "Skia/PDF m120"},
}


@pytest.mark.parametrize("reason", PDFS)
def test_pdfs_are_others_unless_they_say_so(tmp_path: Path, reason: str) -> None:
    docx(tmp_path / "Mine.docx", paragraph(TEXT))
    pdf(tmp_path / "Wool.pdf", [[THEIRS]], **PDFS[reason])
    records, report = read("documents", tmp_path)
    assert texts(records) == TEXT and report.examples == {reason: "Wool.pdf"}
    unsigned = "THEIRS" in texts(read("documents", tmp_path, {"unsigned": True})[0])
    assert unsigned == ("unsigned" in reason)


def test_a_pdf_alone_does_not_say_who_one_is(tmp_path: Path) -> None:
    path = pdf(tmp_path / "Wool.pdf", [[THEIRS]], Author="Ida Three")
    with pytest.raises(ConfigError, match="who you are") as caught:
        read("documents", path)
    assert "'Ida Three'" in str(caught.value.fix)


def test_a_pdf_that_was_chosen_counts_as_own_if_nothing_says_otherwise(tmp_path: Path) -> None:
    path = pdf(tmp_path / "b.pdf", [[TEXT]], Producer="Skia/PDF m120 Google Docs Renderer")
    records, report = read("documents", path)
    assert texts(records) == TEXT
    assert report.notes[0] == "the PDF does not say who wrote it, and is taken as yours"
    with pytest.raises(DataError, match="unsigned=true"):
        read("documents", tmp_path)
    for info in ({"Creator": "Mozilla Firefox"}, {"Producer": "wkhtmltopdf 0.12"}):
        with pytest.raises(DataError, match="saved from a page"):
            read("documents", pdf(path, [[THEIRS]], **info))
    with pytest.raises(DataError, match="published work"):
        read("documents", pdf(path, [["Wool. doi:10.1234/wool", THEIRS]]))


def test_pdfs_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = {"me": ["Sam Me"]}
    whole = pdf(tmp_path / "a.pdf", [[TEXT]] * 3, Author="Sam Me").read_bytes()
    scanned = pdf(tmp_path / "b.pdf", [[]], Author="Sam Me")
    with pytest.raises(DataError, match="scanned"):
        read("documents", scanned, me)
    for cut in range(0, len(whole), 97):  # cut anywhere: an answer or an error that says so
        (tmp_path / "c.pdf").write_bytes(whole[:cut])
        try:
            read("documents", tmp_path / "c.pdf", me)
        except DataError as error:
            assert error.path == tmp_path / "c.pdf"
    path = tmp_path / "a.pdf"
    for name, value, reason in (
        ("PAGES_LIMIT", 2, "more than 2 pages"), ("SIZE_LIMIT", 10, "larger than"),
        ("PAGE_LIMIT", 10, "draws too much"), ("SECONDS_LIMIT", -1, "takes longer"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(pdf_text, name, value)
            with pytest.raises(DataError, match=reason):
                read("documents", path, me)


def test_time_runs_out_within_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pdf(tmp_path / "a.pdf", [[TEXT] * 3000], Author="Sam Me")
    clock = iter(range(10_000))
    monkeypatch.setattr(pdf_text.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(Exception, match="takes longer than 60"):
        pdf_text.pdf_document(open_member(path, "a.pdf"))
    assert next(clock) < 70


def test_an_encrypted_pdf(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=pdf(tmp_path / "a.pdf", [[TEXT]], Author="Sam Me"))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(tmp_path / "a.pdf")
    with pytest.raises(DataError, match="encrypted"):
        read("documents", tmp_path / "a.pdf")
    writer = pypdf.PdfWriter(clone_from=pdf(tmp_path / "a.pdf", [[TEXT]], Author="Sam Me"))
    writer.encrypt("", owner_password="secret", algorithm="AES-256")
    writer.write(tmp_path / "a.pdf")
    assert texts(read("documents", tmp_path / "a.pdf", {"me": ["Sam Me"]})[0]) == TEXT


def test_zips_and_folders_read_alike(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    (folder / "2024").mkdir(parents=True)
    docx(folder / "2024" / "Walk.docx", paragraph(TEXT))
    odt(folder / "Rain.odt", f"<text:p>{MORE}</text:p>")
    (folder / ".hidden.txt").write_text(THEIRS)
    files: dict[str, str | bytes] = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*") if file.is_file()
    }  # fmt: skip
    (tmp_path / "papers.zip").write_bytes(zipped(files))
    records, _ = read("documents", folder)
    again, _ = read("documents", tmp_path / "papers.zip")
    assert [(r.id, r.output, r.time) for r in records] == [(r.id, r.output, r.time) for r in again]
    assert recognised(folder) == recognised(tmp_path / "papers.zip") == "documents"
    assert not read("documents", folder, {"skip": ["2024"]})[0][0].id.startswith("2024")


def test_long_documents_are_read_in_pieces(tmp_path: Path) -> None:
    body = "".join(paragraph(f"{TEXT} Number {n}.") for n in range(40))
    records, _ = read("documents", docx(tmp_path / "Long.docx", body))
    assert len(records) > 4 and all(len(r.output) <= 1300 for r in records)
    assert texts(records).count("Number") == 40


def test_auto_takes_what_no_other_connector_reads(tmp_path: Path) -> None:
    docx(tmp_path / "a.docx", paragraph(TEXT))
    odt(tmp_path / "a.odt", f"<text:p>{TEXT}</text:p>")
    pdf(tmp_path / "a.pdf", [[TEXT]])
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.rtf").write_text(r"{\rtf1 a}")
    for suffix in ("docx", "odt", "pdf", "txt", "rtf"):
        assert recognised(tmp_path / f"a.{suffix}") == "documents"
    assert recognised(tmp_path) == "documents"
    (tmp_path / "chat.txt").write_text(
        "05/03/2024, 10:00 - Ida: hello there\n05/03/2024, 10:01 - Sam: hi\n"
    )
    (tmp_path / "table.txt").write_text("instruction\tanswer\na\tb\n")
    assert recognised(tmp_path / "chat.txt") == "whatsapp"
    assert candidates(tmp_path / "table.txt") == ["table"]
    for number in range(9):
        (tmp_path / f"{number}.md").write_text(TEXT)
    assert recognised(tmp_path) == "markdown"


def test_other_exports_are_not_taken_for_documents(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"ChatExport/messages.html": "x", "a.txt": TEXT, "b.txt": TEXT}
    (tmp_path / "telegram.zip").write_bytes(zipped(files))
    with pytest.raises(ConfigError, match="Telegram"):
        recognised(tmp_path / "telegram.zip")


def test_a_zip_in_a_zip_is_read_from_any_place(tmp_path: Path) -> None:
    """Stored and deflated members, read twice and backwards."""
    from pfi.readers.exports import members, nested_members

    data = bytes(range(256)) * 4000
    for outer in (0, 8):
        for inner in (0, 8):
            nested = zipped({"b/c.bin": data}, inner)
            (tmp_path / "a.zip").write_bytes(zipped({"b.zip": nested, "x": data}, outer))
            [member] = members(tmp_path / "a.zip", lambda name: name == "b.zip")
            [file] = nested_members(member, lambda name: True)
            assert isinstance(file, Member) and file.name == "b/c.bin"
            with file.open() as stream:
                assert stream.read() == data
                stream.seek(-300, 2)
                assert stream.read() == data[-300:]
                stream.seek(256)
                assert stream.read(10) == data[256:266]
