"""Notion's export "Markdown & CSV" as it is downloaded: own pages only, in zips within a zip.

The shapes of names are those of Notion exports in obsidianmd/obsidian-importer (its tests of
Notion), marph91/jimmy, pureleap/notion-backup-enhancer and AppFlowy-IO/AppFlowy-Docs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from connector_sources import read
from document_files import zipped

from pfi.errors import ConfigError, DataError
from pfi.records import Record
from pfi.sources.connectors import recognised

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
MORE = "Later the rain came over the hills, so we sat in the kitchen and talked about the old boat."
THEIRS = "THEIRS wool socks dry slowly but keep their shape for years if they are washed by hand."
IDS = ["0123456789abcdef" * 2, "fedcba9876543210" * 2, "00112233445566778899aabbccddeeff"]
UUID = "76c36ed6-74b7-48ab-85a2-0ab8f4da6f7c"
NAME = f"1f2b675d-f739-4dc1-967d-98d9561d9bdb_ExportBlock-{UUID}.zip"

PAGES: dict[str, str | bytes] = {
    f"Walks {IDS[0]}.md": f"# Walks\n\n{TEXT}\n\n[Rain](Walks%20{IDS[0]}/Rain%20{IDS[1]}.md)\n\n"
    "[THEIRS title of a page (2024)](https://theirs.example/a_(b))\n",
    f"Walks {IDS[0]}/Days {IDS[2]}.csv": "Name,Created\nTHEIRS,1\n",
    f"Walks {IDS[0]}/Rain {IDS[1]}.md": "# Rain\n\nCreated time: March 4, 2024 2:22 PM\n"
    f"Tags: walks, tea\n\n{MORE}\n\n![a.png](Rain/a.png)\n",
    f"Walks {IDS[0]}/a.png": b"\x89PNG",
}  # fmt: skip


def texts(records: list[Record]) -> list[str]:
    return [r.output for r in records if r.task == "continuation"]


def notion(path: Path, pages: dict[str, str | bytes], *, nested: bool = True) -> Path:
    """Write an export as it is downloaded."""
    inner = {f"ExportBlock-{UUID}-Part-1.zip": zipped(pages)} if nested else pages
    (path / NAME).write_bytes(zipped(inner))
    return path / NAME


@pytest.mark.parametrize("nested", [True, False])
def test_an_export_as_it_is_downloaded(tmp_path: Path, nested: bool) -> None:
    path = notion(tmp_path, PAGES, nested=nested)
    assert recognised(path) == "markdown"
    records, report = read("markdown", path)
    assert [(r.id, r.output) for r in records] == [
        (f"Walks {IDS[0]}.md#title", "Walks"),
        (f"Walks {IDS[0]}.md#1", TEXT),
        (f"Walks {IDS[0]}/Rain {IDS[1]}.md#title", "Rain"),
        (f"Walks {IDS[0]}/Rain {IDS[1]}.md#1", MORE),
    ]
    assert [str(r.time) for r in records[1::2]] == [
        "2024-03-05 14:22:10+00:00", "2024-03-04 14:22:00+00:00",
    ]  # fmt: skip
    assert report.examples == {
        "it is a table of a database, whose pages are read": f"Walks {IDS[0]}/Days {IDS[2]}.csv"
    }


def test_unpacked_once_and_twice_it_gives_the_same(tmp_path: Path) -> None:
    records, _ = read("markdown", notion(tmp_path, PAGES))
    once = tmp_path / "once"
    once.mkdir()
    (once / f"ExportBlock-{UUID}-Part-1.zip").write_bytes(zipped(dict(list(PAGES.items())[:1])))
    (once / f"ExportBlock-{UUID}-Part-2.zip").write_bytes(zipped(dict(list(PAGES.items())[1:])))
    twice = tmp_path / "twice"
    for name, data in PAGES.items():
        (twice / name).parent.mkdir(parents=True, exist_ok=True)
        (twice / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    for folder in (once, twice):
        assert recognised(folder) == "markdown"
        again, _ = read("markdown", folder)
        assert sorted((r.id, r.output) for r in again) == sorted((r.id, r.output) for r in records)


def test_an_export_as_html_is_refused_by_name(tmp_path: Path) -> None:
    pages: dict[str, str | bytes] = {
        f"Walks {IDS[0]}.html": f"<html><body><p>{TEXT}",
        "index.html": "",
    }
    for nested in (True, False):
        path = notion(tmp_path, pages, nested=nested)
        with pytest.raises(ConfigError, match="export of Notion as HTML") as caught:
            recognised(path)
        assert "Markdown & CSV" in str(caught.value.fix)
        with pytest.raises(DataError, match="export of Notion as HTML"):
            read("markdown", path)


@pytest.mark.parametrize(
    ("made", "edited"),
    [("Created by", "Last edited by"), ("Erstellt von", "Zuletzt bearbeitet von"),
     ("Créé par", "Dernière modification par"), ("作成者", "最終更新者"),
     ("생성자", "최종 편집자")],
)  # fmt: skip
def test_pages_that_others_made_or_edited(tmp_path: Path, made: str, edited: str) -> None:
    def page(maker: str, editor: str, text: str) -> str:
        return f"# A page\n\n{made}: {maker}\n{edited}: {editor}\n\n{text}\n"

    mine = page("Sam Me", "Sam Me", TEXT)
    pages: dict[str, str | bytes] = {
        f"A {IDS[0]}.md": mine,
        f"B {IDS[1]}.md": page("Ida Three", "Ida Three", THEIRS),
        f"C {IDS[2]}.md": page("Sam Me", "Ida Three", THEIRS),
    }
    path = notion(tmp_path, pages)
    records, report = read("markdown", path, {"me": ["Sam Me"]})
    assert texts(records) == [TEXT]
    assert sorted(report.examples) == [
        "its author is someone else", "someone else edited it last, and may have written in it",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="who you are") as caught:
        read("markdown", path)
    assert "ida three" in str(caught.value.fix)
    del pages[f"B {IDS[1]}.md"]
    records, report = read("markdown", notion(tmp_path, pages))
    assert texts(records) == [TEXT] and report.me == ["sam me"]


def test_an_author_of_a_book_is_not_who_made_the_page(tmp_path: Path) -> None:
    page = f"# Wool\n\nCreated by: Sam Me\nAuthor: Ida Three\n\n{TEXT}\n"
    assert texts(read("markdown", notion(tmp_path, {f"Wool {IDS[0]}.md": page}))[0]) == [TEXT]


@pytest.mark.parametrize(
    "words", ["👋 Welcome to Notion!", "👋 Willkommen bei Notion!", "Notionへようこそ！"]
)
def test_the_page_that_notion_wrote(tmp_path: Path, words: str) -> None:
    start = f"# Getting Started\n\n{words}\n\n{THEIRS}\n"
    pages: dict[str, str | bytes] = {f"A {IDS[0]}.md": TEXT, f"Getting Started {IDS[1]}.md": start}
    records, report = read("markdown", notion(tmp_path, pages))
    assert texts(records) == [TEXT]
    assert list(report.examples) == ["it is a page that Notion wrote"]


def test_words_beside_a_link_are_kept(tmp_path: Path) -> None:
    text = f"[The harbour](https://a.example/b_(c)) was quiet (as ever). {MORE}"
    records, _ = read("markdown", notion(tmp_path, {f"A {IDS[0]}.md": text}))
    assert texts(records) == [f"The harbour was quiet (as ever). {MORE}"]


def test_a_vault_in_a_zip_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "vault.zip").write_bytes(zipped({
        "My vault/.obsidian/templates.json": '{"folder": "Forms"}',
        "My vault/.obsidian/plugins/obsidian-omnivore/data.json": '{"folder": "Read"}',
        "My vault/Forms/day.md": THEIRS,
        "My vault/Read/wool.md": THEIRS,
        "My vault/Walk.md": TEXT,
        "My vault/.trash/old.md": THEIRS,
        "__MACOSX/My vault/._Walk.md": THEIRS,
    }))  # fmt: skip
    assert recognised(tmp_path / "vault.zip") == "markdown"
    records, report = read("markdown", tmp_path / "vault.zip")
    assert texts(records) == [TEXT]
    assert report.examples == {
        "it is a template": "My vault/Forms/day.md",
        "it holds highlights from what was read": "My vault/Read/wool.md",
    }


def test_zips_of_programs_are_no_notes(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a/README.md": TEXT, "a/b.py": "x", "a/c.py": "x"}
    (tmp_path / "code.zip").write_bytes(zipped(files))
    with pytest.raises(ConfigError):
        recognised(tmp_path / "code.zip")


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    whole = zipped(PAGES)
    for data in (b"no zip", whole[: len(whole) // 2]):
        (tmp_path / NAME).write_bytes(zipped({f"ExportBlock-{UUID}-Part-1.zip": data}))
        with pytest.raises(DataError, match="Part-1"):
            read("markdown", tmp_path / NAME)
    bomb = zipped({f"A {IDS[0]}.md": "a" * (40 << 20)})
    (tmp_path / NAME).write_bytes(zipped({f"ExportBlock-{UUID}-Part-1.zip": bomb}))
    with pytest.raises(DataError, match="would swell"):
        read("markdown", tmp_path / NAME)
