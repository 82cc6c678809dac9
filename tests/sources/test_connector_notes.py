"""The Markdown and browser connectors on made-up notes, bookmarks and histories."""

from __future__ import annotations

import json
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import ConfigError, DataError, PfiError
from pfi.profile.vault.imports import Imported
from pfi.readers.report import ImportReport
from pfi.sources.connectors import detect, recognised
from pfi.sources.connectors.markdown import plain

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
MTIME = 1_674_640_000


def note(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    os.utime(path, (MTIME, MTIME))
    return path


# Markdown -------------------------------------------------------------------------------


def test_titles_and_texts(tmp_path: Path) -> None:
    note(tmp_path, "walks/Quiet harbour.md", TEXT)
    note(
        tmp_path, "b.md", f"---\ntitle: R&D from the front\ndate: 2020-05-04\n---\n# Other\n{TEXT}"
    )
    note(tmp_path, "c.md", f"# A *loud* [[harbour|port]]\n\n{TEXT}")
    note(tmp_path, "2023-01-25.md", TEXT)
    records, report = read("markdown", tmp_path)
    titles = {r.id: r.output for r in records if r.task == "note_title"}
    assert titles == {
        "b.md#title": "R&D from the front",
        "c.md#title": "A loud port",
        "walks/Quiet harbour.md#title": "Quiet harbour",
    }
    texts = [record for record in records if record.task == "continuation"]
    assert len(texts) == 4 and "2023-01-25.md#1" in {r.id for r in texts} and not report.skipped
    assert {record.input["text"] for record in records if record.input} >= {TEXT}
    assert all("loud" not in r.input.get("text", "") for r in records), (
        "the answer must not be asked"
    )
    times = {record.id: record.time for record in records}
    assert times["b.md#1"] == datetime(2020, 5, 4, tzinfo=UTC)
    assert times["c.md#1"] == datetime.fromtimestamp(MTIME, UTC)
    assert {r.task for r in read("markdown", tmp_path, {"records": "titles"})[0]} == {"note_title"}
    assert {r.task for r in read("markdown", tmp_path, {"records": "texts"})[0]} == {"continuation"}


def test_what_is_no_note_is_left_out(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    note(vault, "kept.md", TEXT)
    note(vault, ".obsidian/plugins/x.md", TEXT)
    note(vault, ".obsidian/templates.json", '{"folder": "My forms"}')
    note(vault, ".trash/x.md", TEXT)
    note(vault, "Templates/x.md", TEXT)
    note(vault, "My forms/x.md", TEXT)
    note(vault, "old/x.md", TEXT)
    note(vault, "image.png", b"\x89PNG")
    outside = note(tmp_path, "outside.md", TEXT)
    (vault / "linked.md").symlink_to(outside)
    (vault / "linked").symlink_to(tmp_path)
    assert {r.id.partition("#")[0] for r in read("markdown", vault, {"skip": ["Old"]})[0]} == {
        "kept.md"
    }
    assert detect(vault) == "markdown"


def test_markup_is_taken_out() -> None:
    text = f"""
#project/harbour #tea
status:: open
> [!note] Someone else
> wrote THIS

{TEXT} See [[Tide tables#May|the tables]], [[Anna]] and [a page](https://x.org/THIS "THIS").
![[THIS.png]] ![THIS](THIS.png) %% THIS %% <!-- THIS --> about #tea and ==all== **of** _it_. ^THIS

```python
THIS = 1
```
~~~
THIS
~~~
    THIS is code

| THIS | THIS |
|------|------|
- [x] done `now`[^1]
  - nested one
---
$$ THIS $$
[^1]: THIS
"""
    found = plain(text)
    assert "THIS" not in found and "](" not in found and "[[" not in found
    assert found.split("\n")[0] == f"{TEXT} See the tables, Anna and a page."
    assert found.endswith("about tea and all of it.\n\n- done now\n  - nested one")


def test_damaged_notes_are_skipped(tmp_path: Path) -> None:
    note(tmp_path, "good.md", TEXT)
    note(tmp_path, "bytes.md", b"\xff\xfe" + TEXT.encode())
    note(tmp_path, "short.md", "Too short")
    note(tmp_path, "large.md", "x" * (5 << 20))
    note(tmp_path, "front.md", f"---\n: : [\n---\n{TEXT}")
    bomb = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )
    note(tmp_path, "bomb.md", f"---\n{bomb}date: [1]\n---\n{TEXT}")
    note(tmp_path, "future.md", f"---\ndate: 2999-01-01\n---\n{TEXT}")
    note(tmp_path, "number.md", f"---\ndate: 20200504\n---\n{TEXT}")
    records, report = read("markdown", tmp_path, {"records": "texts"})
    assert [record.id for record in records] == [
        "bomb.md#1", "front.md#1", "future.md#1", "good.md#1", "number.md#1",
    ]  # fmt: skip
    assert records[-1].time == datetime(2020, 5, 4, tzinfo=UTC)
    assert records[2].time == datetime.fromtimestamp(MTIME, UTC)
    assert report.examples == {
        "it is not UTF-8": "bytes.md",
        "it is larger than 4194304 bytes": "large.md",
        "it has fewer than 12 words": "short.md",
    }
    for path in (tmp_path / "nothing", tmp_path / "short.md"):
        with pytest.raises(DataError):
            read("markdown", path)


def test_long_notes_come_in_pieces(tmp_path: Path) -> None:
    note(tmp_path, "Long walk.md", "\n\n".join(f"{TEXT} {n}" for n in range(60)))
    texts = read("markdown", tmp_path, {"records": "texts"})[0]
    assert len(texts) > 3 and all(len(record.output) <= 1200 for record in texts)
    assert "\n\n".join(r.output for r in texts) == "\n\n".join(f"{TEXT} {n}" for n in range(60))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(
    ["```", "~~~", "\n", "[[", "]]", "|", "#a", "%%", "$$", "> ", "---", "x", "*", "_", "![", "](",
     "<!--", "-->", "`", "^", "::", "    ", "\t", "==", "- [ ] "]), max_size=40))  # fmt: skip
def test_markup_never_raises(pieces: list[str]) -> None:
    plain("".join(pieces))


# Browser --------------------------------------------------------------------------------

NETSCAPE = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<TITLE>Bookmarks</TITLE><H1>Bookmarks</H1>
<DL><p>
    <DT><H3 ADD_DATE="1" PERSONAL_TOOLBAR_FOLDER="true">Bookmarks bar</H3>
    <DL><p>
        <DT><H3 ADD_DATE="1674640000">Boats &amp; tea</H3>
        <DL><p>
            <DT><H3>Sails</H3>
            <DL><p>
                <DT><A HREF="https://www.sails.org/how/?u=SECRET#SECRET" ADD_DATE="1674640000">How
                 to sew</A>
                <DD>a note
            </DL><p>
            <DT><A HREF="https://tea.org/" ADD_DATE="1674640001">Tea</A>
        </DL><p>
        <DT><A HREF="https://bar.org/" ADD_DATE="1674640002">On the bar</A>
        <DT><A HREF="https://tag.org/" ADD_DATE="1674640002" TAGS="green,tea">Tagged</A>
        <DT><A HREF="javascript:alert(1)" ADD_DATE="1674640003">Script</A>
        <DT><A HREF="http://192.168.0.1/x" ADD_DATE="1674640003">Router</A>
        <DT><A HREF="http://[x" ADD_DATE="1674640003">Odd</A>
        <DT><A HREF="https://old.org">No time</A>
    </DL><p>
</DL>
"""


def test_bookmarks_html(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.html"
    path.write_text(NETSCAPE)
    records, report = read("browser", path)
    assert [(r.task, r.input["page"], r.output) for r in records] == [
        ("bookmark_folder", "How to sew (sails.org/how)", "Boats & tea / Sails"),
        ("bookmark_folder", "Tea (tea.org)", "Boats & tea"),
        ("bookmark_folder", "Tagged (tag.org)", "green, tea"),
    ]
    assert report.skipped == {
        "it is in no folder and has no tags": 1,
        "it is not a page of the web": 1,
        "it is a page of this machine or network": 1,
        "its address is not understood": 1,
        "it has no time": 1,
    }
    assert "SECRET" not in repr(records) and detect(path) == "browser"
    assert "SECRET" in repr(read("browser", path, {"queries": "true"})[0])


def test_bookmarks_of_chrome_and_firefox(tmp_path: Path) -> None:
    chrome = tmp_path / "Bookmarks"
    page = {
        "type": "url",
        "name": "Tea",
        "url": "https://tea.org/x?SECRET",
        "date_added": "13319113600000000",
    }
    nest: dict[str, Any] = {"type": "folder", "name": "Deep", "children": [page]}
    for number in range(300):
        nest = {"type": "folder", "name": f"f{number}", "children": [nest, 5, None]}
    folder = {"type": "folder", "name": "Cups", "children": [page, {"url": 5}]}
    roots = {"bookmark_bar": {"name": "Bar", "children": [folder, page]}, "other": {"children": 5},
             "synced": {"name": "x", "children": [nest]}}  # fmt: skip
    chrome.write_text(json.dumps({"checksum": "x", "roots": roots, "version": 1}))
    records, report = read("browser", chrome)
    assert (records[0].input["page"], records[0].output) == ("Tea (tea.org/x)", "Cups")
    assert records[0].time == datetime(2023, 1, 25, 9, 46, 40, tzinfo=UTC)
    assert records[1].output.endswith("f0 / Deep") and len(records) == 2
    assert report.skipped == {"it is in no folder and has no tags": 1}
    firefox = tmp_path / "bookmarks-2023.json"
    item = {"typeCode": 1, "title": "Tea", "uri": "https://tea.org", "dateAdded": MTIME * 10**6}
    inner = {"title": "Cups", "children": [item]}
    root = {"title": "", "type": "text/x-moz-place-container", "children": [
        {"title": "toolbar", "children": [inner, item | {"tags": "green"}]}]}  # fmt: skip
    firefox.write_text(json.dumps(root))
    assert [r.output for r in read("browser", firefox)[0]] == ["Cups", "green"]
    assert detect(chrome) == detect(firefox) == "browser"


def history_file(path: Path, *, chrome: bool) -> Path:
    rows = [
        ("Green tea \u2013 Wikipedia", "https://en.wikipedia.org/wiki/Green_tea?SECRET", 5, 0),
        ("Seldom", "https://seldom.org/", 1, 1),
        (None, "https://untitled.org/", 9, 2),
        ("kettle - Search", "https://www.google.com/search?q=best+kettle&sid=SECRET", 1, 3),
        ("Router", "http://localhost:80/", 9, 4),
    ]
    with sqlite3.connect(path) as db:
        if chrome:
            db.execute("CREATE TABLE urls (id INTEGER PRIMARY KEY, url, title, visit_count, "
                       "last_visit_time, hidden DEFAULT 0)")  # fmt: skip
            sql = "INSERT INTO urls (title, url, visit_count, last_visit_time) VALUES (?, ?, ?, ?)"
            offset = 11_644_473_600
        else:
            db.execute("CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url, title, visit_count, "
                       "last_visit_date, hidden DEFAULT 0)")  # fmt: skip
            sql = "INSERT INTO moz_places (title, url, visit_count, last_visit_date) "
            sql += "VALUES (?, ?, ?, ?)"
            offset = 0
        db.executemany(sql, [(t, u, n, (MTIME + s + offset) * 10**6) for t, u, n, s in rows])
    db.close()
    return path


@pytest.mark.parametrize("chrome", [True, False])
def test_history_databases(tmp_path: Path, chrome: bool) -> None:
    path = history_file(tmp_path / ("History" if chrome else "places.sqlite"), chrome=chrome)
    before = path.read_bytes()
    [record], report = read("browser", path)
    assert (record.task, record.input["subject"]) == ("page_site", "Green tea")
    assert record.output == "en.wikipedia.org" and "SECRET" not in repr(record)
    assert record.time == datetime.fromtimestamp(MTIME, UTC)
    assert report.skipped["it was seen too seldom"] == 2
    [record], _ = read("browser", tmp_path, {"address": "page"})
    assert record.output == "en.wikipedia.org/wiki/Green_tea"
    found, _ = read("browser", path, {"queries": True})
    assert ("best kettle", "google.com") in {(r.input["subject"], r.output) for r in found}
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    assert detect(path) == detect(tmp_path) == "browser"


def test_history_of_a_browser_that_is_running(tmp_path: Path) -> None:
    path = history_file(tmp_path / "places.sqlite", chrome=False)
    open_ = sqlite3.connect(path, isolation_level=None)
    open_.execute("PRAGMA journal_mode = WAL")
    open_.execute("UPDATE moz_places SET visit_count = 7 WHERE title = 'Seldom'")
    open_.execute("BEGIN IMMEDIATE")
    assert {r.output for r in read("browser", path)[0]} == {"en.wikipedia.org", "seldom.org"}
    open_.close()


def test_history_exports(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text(
        "URL,Title,visit_count,date,time\nhttps://tea.org/?SECRET,Tea,3,2023-01-25,09:46:40\n"
        'https://x.org,"open\n,,5,2020-01-01,\n'
    )
    [record], _ = read("browser", path)
    assert (
        record.time == datetime(2023, 1, 25, 9, 46, 40, tzinfo=UTC) and record.output == "tea.org"
    )
    takeout = tmp_path / "BrowserHistory.json"
    rows = [{"title": "Tea", "url": "https://tea.org", "time_usec": MTIME * 10**6}, 5, {"url": []}]
    takeout.write_text(json.dumps({"Browser History": rows}))
    [record], report = read("browser", takeout, {"visits": 1})
    assert record.time == datetime.fromtimestamp(MTIME, UTC) and report.skipped.total() == 2
    assert detect(path) == detect(takeout) == "browser"


def test_damaged_browser_files(tmp_path: Path) -> None:
    path = history_file(tmp_path / "History", chrome=True)
    path.write_bytes(path.read_bytes()[:5000] + b"\xff" * 3000)
    for content in (path.read_bytes(), b"SQLite format 3\0", b"", b'{"roots": ', b"hello"):
        path.write_bytes(content)
        with pytest.raises(PfiError) as caught:
            read("browser", path)
        assert "\n" not in str(caught.value)
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(DataError, match="no browser's history"):
        read("browser", tmp_path / "other.sqlite")


HTML = st.lists(st.sampled_from(
    ["<DL>", "</DL>", "<DT>", "<H3>", "</H3>", '<A HREF="https://x.org" ADD_DATE="1674640000">',
     "</A>", "x", "<p>", "\n", "<A", "<!--", "&#x", '<A HREF=http://[ ADD_DATE="x">']),
    max_size=30)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(HTML)
def test_any_bookmarks_give_records_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    path = tmp_path_factory.mktemp("x") / "bookmarks.html"
    path.write_text("<!DOCTYPE NETSCAPE-Bookmark-file-1>\n" + "".join(pieces))
    try:
        read("browser", path)
    except PfiError as error:
        assert "\n" not in str(error)


# Which connector ------------------------------------------------------------------------


def test_which_connector_reads_a_source(tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text('{"instruction": "a", "answer": "b"}\n')
    (tmp_path / "dev_questions.json").write_text("[]")
    (tmp_path / "odd.bin").write_bytes(b"\0\1")
    assert detect(tmp_path / "table.jsonl") == "table"
    assert detect(tmp_path / "dev_questions.json") == "lamp"
    assert detect(tmp_path / "odd.bin") is None and detect(tmp_path / "missing") is None
    repository = tmp_path / "repository"
    note(repository, "README.md", TEXT)
    (repository / ".git").mkdir()
    assert detect(repository) == "git"
    (repository / ".obsidian").mkdir()
    assert detect(repository) is None
    with pytest.raises(ConfigError, match=r"it may be git or markdown.*one of git, markdown"):
        recognised(repository)
    with pytest.raises(ConfigError, match=r"a binary file that pfi does not know"):
        recognised(tmp_path / "odd.bin")
    with pytest.raises(DataError, match="no such file"):
        recognised(tmp_path / "missing")


def test_import_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command goes on with the connector that recognises the source."""
    asked: list[str] = []

    def import_records(home: object, kind: str, *rest: object, **more: object) -> Imported:
        asked.append(kind)
        return Imported(2, 0, ImportReport())

    monkeypatch.setattr("pfi.profile.vault.imports.import_records", import_records)
    monkeypatch.setattr("pfi.cli.records.open_profile", lambda profile: None)
    monkeypatch.setattr("pfi.cli.records.refresh_if_due", lambda home: None)
    vault = tmp_path / "vault"
    note(vault, "Quiet harbour.md", TEXT)
    result = CliRunner().invoke(app, ["import", "auto", str(vault), "--set", "records=texts"])
    assert result.exit_code == 0 and "This is read as markdown." in result.output
    assert "Added 2, already there 0." in result.output and asked == ["markdown"]
    (tmp_path / "odd.bin").write_bytes(b"\0")
    result = CliRunner().invoke(app, ["import", "auto", str(tmp_path / "odd.bin")])
    assert isinstance(result.exception, ConfigError | SystemExit) and asked == ["markdown"]
