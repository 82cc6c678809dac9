"""Browsers' bookmarks and histories in the forms of many programs, units of time and archives.

The shapes are those of shaarli/netscape-bookmark-parser (Safari, Google Bookmarks, Shaarli),
purarue/browserexport (SQLite of Safari, Firefox, its Android versions, qutebrowser),
purarue/google_takeout_parser (Takeout's history) and of Safari's own export.
"""

from __future__ import annotations

import json
import plistlib
import sqlite3
import zipfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import DataError, PfiError
from pfi.readers.browser_history import open_database
from pfi.readers.browser_times import FIRST, moment
from pfi.sources.connectors import detect

TIME = datetime(2024, 4, 1, 9, 25, 11, tzinfo=UTC)
UNIX = int(TIME.timestamp())
WEBKIT = (UNIX + 11_644_473_600) * 10**6
APPLE = UNIX - 978_307_200

SAFARI = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
\t<HTML>
\t<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
\t<Title>Signets</Title>
\t<H1>Signets</H1>
\t<DT><H3 FOLDED>Favoris</H3>
\t<DL><p>
\t\t<DT><A HREF="https://bread.example/rye">Rye bread</A>
\t</DL><p>
\t<DT><H3 FOLDED>Garden</H3>
\t<DL><p>
\t\t<DT><H3 FOLDED>Beans</H3>
\t\t<DL><p>
\t\t\t<DT><A HREF="https://garden.example/beans">Runner beans</A>
\t\t</DL><p>
\t</DL><p>
</HTML>
"""


def test_bookmarks_of_safari_have_no_dates(tmp_path: Path) -> None:
    path = tmp_path / "Safari Bookmarks.html"
    path.write_text(SAFARI)
    records, report = read("browser", path)
    assert [(r.input["page"], r.output, r.time) for r in records] == [
        ("Rye bread (bread.example/rye)", "Favoris", None),
        ("Runner beans (garden.example/beans)", "Garden / Beans", None),
    ]
    assert report.notes == ["the bookmarks of Safari Bookmarks.html have no dates"]
    assert not report.skipped and detect(path) == "browser"


def bookmark(date: str) -> str:
    return (
        '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">\n<DL><p>\n'
        f'<DT><H3 ADD_DATE="{UNIX}">Garden</H3>\n<DL><p>\n'
        f'<DT><A HREF="https://garden.example/beans" ADD_DATE="{date}">Runner beans</A>\n'
        "</DL><p>\n</DL><p>\n"
    )


@pytest.mark.parametrize(
    "date",
    [UNIX, UNIX * 10**3 + 7, UNIX * 10**6 + 780642, UNIX * 10**9, WEBKIT + 123456, APPLE,
     f"{UNIX}.25", WEBKIT * 10, "2024-04-01T09:25:11Z"],
)  # fmt: skip
def test_times_of_all_units(tmp_path: Path, date: object) -> None:
    path = tmp_path / "bookmarks.html"
    path.write_text(bookmark(str(date)))
    [record], _ = read("browser", path)
    assert (record.time, record.output) == (TIME, "Garden")
    assert moment(date) == TIME


@pytest.mark.parametrize(
    "value",
    [0, 1, -1, 99, 5 * 10**9, 10**13, 10**20, 1e300, float("nan"), float("inf"), True, None, "",
     "x",
     "1_000", "0", b"1", [], 1 << 4000],
)  # fmt: skip
def test_implausible_times_are_none(value: Any) -> None:
    assert moment(value) is None


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(2011, 1, 1), datetime(2025, 1, 1)), st.integers(0, 5))
def test_any_unit_is_told_by_its_size(when: datetime, unit: int) -> None:
    time = when.replace(microsecond=0, tzinfo=UTC)
    seconds = int(time.timestamp())
    forms = [seconds, seconds * 10**3, seconds * 10**6, seconds * 10**9,
             (seconds + 11_644_473_600) * 10**6, seconds - 978_307_200]  # fmt: skip
    assert moment(forms[unit]) == moment(str(forms[unit])) == time
    assert moment(seconds + 10**8 * 20) is None or moment(seconds + 10**8 * 20) >= FIRST  # type: ignore[operator]


def test_one_implausible_date_among_others_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.html"
    page = bookmark(str(UNIX)) + bookmark("7").replace("beans", "peas")
    path.write_text(page)
    records, report = read("browser", path)
    assert len(records) == 1 and report.skipped == {"it has no time": 1}


def test_links_in_descriptions_are_no_bookmarks(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.html"
    page = bookmark(str(UNIX)).replace(
        "</A>\n", '</A>\n<DD>see <a href="https://other.example/x">the other</a>\n', 1
    )
    path.write_text(page)
    assert [r.input["page"] for r in read("browser", path)[0]] == [
        "Runner beans (garden.example/beans)"
    ]


def test_safaris_property_list(tmp_path: Path) -> None:
    page = {
        "WebBookmarkType": "WebBookmarkTypeLeaf", "URLString": "https://bread.example/rye",
        "URIDictionary": {"title": "Rye bread"},
    }  # fmt: skip
    folder = {"WebBookmarkType": "WebBookmarkTypeList", "Title": "Baking", "Children": [page]}
    bar = {"WebBookmarkType": "WebBookmarkTypeList", "Title": "BookmarksBar", "Children": [folder]}
    for form in (plistlib.FMT_BINARY, plistlib.FMT_XML):
        path = tmp_path / "Bookmarks.plist"
        path.write_bytes(plistlib.dumps({"Children": [bar, 5], "WebBookmarkType": "x"}, fmt=form))
        [record], _ = read("browser", path)
        assert (record.output, record.time) == ("Baking", None) and detect(path) == "browser"
    path.write_bytes(b"bplist00" + b"\xff" * 50)
    with pytest.raises(DataError, match="no property list"):
        read("browser", path)


# Histories as JSON and CSV --------------------------------------------------------------


def visit(title: str, url: str, seconds: int, **more: object) -> dict[str, object]:
    return {"title": title, "url": url, "time_usec": seconds * 10**6, **more}


VISITS = [
    visit("Rye bread for beginners", "https://www.baking.example/rye", UNIX, ptoken={}),
    visit("Rye bread for beginners", "https://www.baking.example/rye#top", UNIX - 93_500),
    visit("Tram timetable", "https://trams.example/plan", UNIX - 9),
]
TYPED = [{"title": "Tram timetable", "url": "https://trams.example/plan", "visits": [1, 2, 3]}]


def expected(records: Iterable[Any]) -> None:
    assert [(r.input["subject"], r.output, r.time) for r in records] == [
        ("Rye bread for beginners", "baking.example", TIME)
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"Browser History": VISITS, "Session": [{"x": 1}], "Typed Url": TYPED},
        {"Session": [{"x": 1}], "Typed Url": TYPED * 9, "Browser History": VISITS},
        {"metadata": {"data_type": "history", "schema_version": 1}, "history": VISITS},
        {"besuchte Seiten": VISITS},
        VISITS,
    ],
)
def test_visits_are_counted_by_page(tmp_path: Path, value: object) -> None:
    path = tmp_path / "History.json"
    path.write_text(json.dumps(value, indent=1))
    records, report = read("browser", path)
    expected(records)
    assert report.skipped == {"it was seen too seldom": 1} and detect(path) == "browser"


def test_a_count_in_every_row_is_not_added_up(tmp_path: Path) -> None:
    rows = [visit("Tram", "https://trams.example", UNIX + n, visit_count=2) for n in range(2)]
    path = tmp_path / "History.json"
    path.write_text(json.dumps({"history": rows}))
    with pytest.raises(DataError, match="seen too seldom"):
        read("browser", path, {"visits": 3})
    assert len(read("browser", path, {"visits": 2})[0]) == 1


def test_histories_as_tables(tmp_path: Path) -> None:
    """Edge's and NirSoft's columns; the order of day and month is that of the whole file."""
    path = tmp_path / "BrowserHistory.csv"
    rows = "4/1/2024 9:25:11 AM,https://www.baking.example/rye,Rye bread for beginners\n"
    path.write_text(f"DateTime,NavigatedToUrl,PageTitle\n{rows}3/31/2024 9:25:11 AM,https://x.example,x\n"
                    f"{rows}")  # fmt: skip
    expected(read("browser", path)[0])
    path = tmp_path / "history.csv"
    rows = "https://www.baking.example/rye;Rye bread for beginners;01.04.2024 09:25:11;2\n"
    path.write_bytes(f"URL;Title;Visit Time;Visit Count\n{rows}".encode("utf-16"))
    expected(read("browser", path)[0])
    assert detect(path) == "browser"


# Histories as SQLite --------------------------------------------------------------------


def database(path: Path, *statements: str) -> Path:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()
    return path


RYE = "'https://www.baking.example/rye', 'Rye bread for beginners'"
EYR = "'Rye bread for beginners', 'https://www.baking.example/rye'"
ROWS = {
    "Safari": (
        "History.db",
        "CREATE TABLE history_items (id INTEGER PRIMARY KEY, url TEXT, visit_count INTEGER)",
        "CREATE TABLE history_visits (id INTEGER, history_item INTEGER, visit_time REAL, title)",
        "INSERT INTO history_items VALUES (1, 'https://www.baking.example/rye', 2), "
        "(2, 'https://trams.example/plan', 1)",
        f"INSERT INTO history_visits VALUES (1, 1, {APPLE - 500}.25, NULL), "
        f"(2, 1, {APPLE}.75, 'Rye bread for beginners'), (3, 2, {APPLE - 1}, 'Tram')",
    ),
    "Chrome": (
        "History",
        "CREATE TABLE urls (id INT, url, title, visit_count, last_visit_time, hidden)",
        f"INSERT INTO urls VALUES (1, {RYE}, 5, {WEBKIT}, 0), "
        f"(2, 'https://hidden.example', 'Hidden', 5, {WEBKIT}, 1), "
        f"(3, 'https://never.example', 'Never', 5, 0, 0)",
    ),
    "Firefox": (
        "places.sqlite",
        "CREATE TABLE moz_places (id INT, url, title, visit_count, last_visit_date, hidden)",
        f"INSERT INTO moz_places VALUES (1, {RYE}, 5, {UNIX * 10**6}, 0), "
        "(2, 'https://kept.example', 'Only a bookmark', 0, NULL, 0)",
    ),
    "Firefox for Android": (
        "places.sqlite",
        "CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url, title, visit_count_local, "
        "visit_count_remote, last_visit_date_local, last_visit_date_remote, hidden)",
        f"INSERT INTO moz_places VALUES (1, {RYE}, 1, 1, 0, {UNIX * 1000}, 0)",
    ),
    "Fennec": (
        "browser.db",
        "CREATE TABLE history (_id INTEGER PRIMARY KEY, title, url, visits, date, deleted)",
        f"INSERT INTO history VALUES (1, {EYR}, 2, {UNIX * 1000}, 0), "
        f"(2, 'Gone', 'https://gone.example', 2, {UNIX * 1000}, 1)",
    ),
    "qutebrowser": (
        "history.sqlite",
        "CREATE TABLE History (url NOT NULL, title NOT NULL, atime NOT NULL, redirect NOT NULL)",
        *(
            f"INSERT INTO History VALUES ({RYE}, {UNIX - n}, 0)"
            for n in (5, 0)
        ),
        f"INSERT INTO History VALUES ('https://to.example', 'Redirected', {UNIX}, 1)",
    ),
    "GNOME Web": (
        "ephy-history.db",
        "CREATE TABLE urls (id INTEGER PRIMARY KEY, url, title, visit_count, last_visit_time)",
        f"INSERT INTO urls VALUES (1, {RYE}, 5, {UNIX * 1000})",
    ),
}  # fmt: skip


@pytest.mark.parametrize("browser", ROWS)
def test_databases_of_browsers(tmp_path: Path, browser: str) -> None:
    name, *statements = ROWS[browser]
    path = database(tmp_path / name, *statements)
    before = path.read_bytes()
    records, _ = read("browser", path)
    expected(records)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]
    assert detect(path) == "browser"
    archive = tmp_path / "profile.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(path, f"profile/{name}")
    if path.suffix:
        expected(read("browser", archive)[0])


def test_a_database_is_a_strangers(tmp_path: Path) -> None:
    """Views, virtual tables, functions, writing, attaching: nothing but reading of tables."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i, i, i, i FROM n"
    view = f"CREATE VIEW urls (url, title, visit_count, last_visit_time) AS {endless}"
    virtual = "CREATE VIRTUAL TABLE urls USING fts4(url, title, visit_count, last_visit_time)"
    for statement in (view, virtual, "CREATE TABLE urls (url, title)"):
        path = database(tmp_path / "History", statement)
        assert detect(path) is None
        with pytest.raises(DataError, match="no browser's history"):
            read("browser", path)
    path = database(tmp_path / "History", *ROWS["Chrome"][1:])
    db = open_database(path, log=False)
    for sql in ("DELETE FROM urls", "ATTACH ':memory:' AS x", "SELECT load_extension('x')", endless,
                "SELECT randomblob(9)", "PRAGMA query_only = 0", "CREATE TEMP TABLE x (y)",
                "SELECT writefile('x', 'y')"):  # fmt: skip
        with pytest.raises(sqlite3.DatabaseError):
            db.execute(sql)
    db.close()
    long = "x" * (2 << 20)
    path = database(
        tmp_path / "History", ROWS["Chrome"][1],
        f"INSERT INTO urls VALUES (1, 'https://x.example', '{long}', 5, {WEBKIT}, 0)",
    )  # fmt: skip
    with pytest.raises(DataError, match="damaged"):
        read("browser", path)


# Archives -------------------------------------------------------------------------------


def test_safaris_export_is_one_zip(tmp_path: Path) -> None:
    path = tmp_path / "Safari Export.zip"
    history = {"metadata": {"browser_name": "Safari", "data_type": "history"}, "history": VISITS}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Bookmarks.html", SAFARI)
        archive.writestr("History.json", json.dumps(history))
        archive.writestr("Extensions.json", '{"metadata": {"data_type": "extensions"}}')
        archive.writestr(
            "Passwords.csv", "Title,URL,Username,Password\nx,https://x.example,me,SECRET\n"
        )
    records, report = read("browser", path)
    assert {r.output for r in records} == {"Favoris", "Garden / Beans", "baking.example"}
    assert "SECRET" not in repr(records) and all(record.time for record in records)
    assert detect(path) == "browser" and report.notes


def test_other_zips_are_no_browsers(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pages.json", '[{"url": "https://x.example", "title": "x"}]')
    assert detect(path) != "browser"
    with pytest.raises(DataError, match="neither bookmarks nor a history"):
        read("browser", path)


def test_a_folder_of_a_profile(tmp_path: Path) -> None:
    database(tmp_path / "History.db", *ROWS["Safari"][1:])
    (tmp_path / "Bookmarks.html").write_text(SAFARI)
    records, _ = read("browser", tmp_path)
    assert {r.output for r in records} == {"Favoris", "Garden / Beans", "baking.example"}
    assert all(record.time for record in records), "of the file, where others have dates"


ROW = st.dictionaries(
    st.sampled_from(["url", "title", "time_usec", "visit_count", "x"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
              st.sampled_from(["https://x.example/a", "http://[", str(UNIX)]), st.lists(st.none())),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.lists(ROW, max_size=4), lambda inner: st.dictionaries(st.text(max_size=3), inner)
    )
)
def test_any_json_gives_records_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("x") / "History.json"
    path.write_text(json.dumps({"Browser History": value}, allow_nan=True))
    try:
        read("browser", path, {"visits": 1})
    except PfiError as error:
        assert "\n" not in str(error)
