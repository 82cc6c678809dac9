"""When a note was written: dates of front matter and names in the forms that programs write.

Forms are those of platers/obsidian-linter ("date created: Tuesday, March 5th 2024, 2:22:10 pm"),
kepano/kepano-obsidian (names and links of days), Logseq, Joplin, Notion, Hugo and Jekyll.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from connector_sources import read

from pfi.readers.dates import DateStyle, date_in_name, date_in_path, date_of

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
DAY = datetime(2024, 3, 5, tzinfo=UTC)
TIME = datetime(2024, 3, 5, 14, 22, tzinfo=UTC)

DAYS = [
    "2024-03-05", "2024/03/05", "2024.03.05", "2024-3-5", "20240305", "[[2024-03-05]]",
    '"[[2024-03-05]]"', "[[Daily/2024-03-05|yesterday]]", "[2024-03-05](2024-03-05.md)",
    "<2024-03-05 Tue>", "2024-03-05 (Tue)", "05.03.2024", "5.3.2024", "5. 3. 2024", "March 5, 2024",
    "March 5th, 2024", "5 March 2024", "Tue, 5 Mar 2024", "5. März 2024", "Dienstag, 5. März 2024",
    "mar. 5 mars 2024", "5 de marzo de 2024", "5 marzo 2024", "5 de março de 2024", "5 maart 2024",
    "5 mars 2024", "5. marts 2024", "5 marca 2024", "5. března 2024", "5 марта 2024 г.",
    "5 березня 2024 р.", "2024. március 5.", "5 Mart 2024", "5 tháng 3, 2024", "5 Maret 2024",
    "2024年3月5日", "2024年03月05日 星期二", "2024년 3월 5일", "2024. 3. 5.", "令和6年3月5日",
    "5 มีนาคม 2567", "٥ مارس ٢٠٢٤", "5 مارس 2024", "5 मार्च 2024", "5 Μαρτίου 2024", "5 במרץ 2024",
    "2024-03-05T00:00:00", "2567-03-05", "1402/12/15", "۱۴۰۲/۱۲/۱۵", "03/05/2024", "05-03-24",
]  # fmt: skip
TIMES = [
    "2024-03-05T14:22:00Z", "2024-03-05 14:22", "2024-03-05T14:22", "2024-03-05T15:22:00+01:00",
    "2024-03-05 15:22:00 +0100", "2024-03-05T14:22:00.123456789Z", "202403051422", "20240305142200",
    "20240305T142200Z", "Tuesday, March 5th 2024, 2:22:00 pm", "Mar 5, 2024 at 2:22 PM",
    "March 5, 2024 2:22 PM", "Tue, 05 Mar 2024 14:22:00 +0000", "Tue Mar  5 14:22:00 2024",
    "5. März 2024 um 14:22", "Dienstag, 5. März 2024 um 14:22 Uhr", "mardi 5 mars 2024 à 14:22",
    "5.3.2024 klo 14.22", "05.03.2024 14:22", "2024年3月5日 下午2:22", "2024/03/05 午後2時22分",
    "2024년 3월 5일 오후 2:22", "5/3/2024 2:22 μ.μ.", "5 mar. 2024 2:22 p. m.",
    "1709648520", "1709648520000", "1709648520000000", "1709648520.5",
]  # fmt: skip


@pytest.mark.parametrize("text", DAYS)
def test_days(text: str) -> None:
    style = DateStyle(order="mdy" if text.startswith("03/") else None)
    assert date_of(text, style) == DAY


@pytest.mark.parametrize("text", TIMES)
def test_times(text: str) -> None:
    assert date_of(text, DateStyle()) == TIME


@pytest.mark.parametrize("value", [["nothing", "2024-03-05"], 20240305, DAY.date(), DAY])
def test_values_that_are_no_text(value: object) -> None:
    assert date_of(value, DateStyle()) == DAY


NO_DATES = [
    "", "nothing", "12", "2024-13-45", "32.01.2024", "1789-07-14", "{{date}}", "999", "0", "-1",
    "13319113600000000", "99999999999999999999", "March", "5 March", "x" * 1000, "1.2.3.4", "14:22",
    "February 30, 2024", "٣", "[[]]", "(((", "2024-02-30T10:00",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_DATES)
def test_what_is_no_date_is_not_guessed(text: str) -> None:
    assert date_of(text, DateStyle()) is None


NAMES = {
    "2024-03-05": DAY, "2024_03_05": DAY, "20240305": DAY, "2024.03.05 Tue": DAY, "05-03-2024": DAY,
    "2024-03-05 3 things": DAY, "Meeting 2024-03-05": DAY, "March 5th, 2024": DAY,
    "5. März 2024": DAY, "2024年3月5日": DAY, "2024-03-05-a-post-of-jekyll": DAY,
    "202403051422 Canal": TIME,
    "20240305142200": TIME, "2024-03-05 1422": DAY, "2024-03-05T1422": TIME,
    "2024-03-05T14.22": TIME,
    "2024-03-05-14-22": TIME, "IMG_20240305_142200": TIME, "2024-W10": DAY.replace(day=4),
    "2024-KW10": DAY.replace(day=4), "2024-03": DAY.replace(day=1),
    "2024-Q1": DAY.replace(month=1, day=1),
    "2024": DAY.replace(month=1, day=1), "1994-05-06": datetime(1994, 5, 6, tzinfo=UTC),
    "The wall came down 1989-11-09 notes": None, "Top 10 books": None, "Room 101": None,
    "12345678": None, "ISO 8601-2019": None, "3 of 5": None, "1709648520": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert date_in_name(name, DateStyle()) == NAMES[name]


def test_names_of_folders_may_be_the_year_and_month() -> None:
    assert date_in_path(["Journal", "2024", "03", "05"]) == DAY
    assert date_in_path(["03", "05"]) is None


def test_the_order_of_day_and_month_is_that_of_the_whole_folder(tmp_path: Path) -> None:
    for name, day in (("a", "03/05/2024"), ("b", "03/25/2024")):
        (tmp_path / f"{name}.md").write_text(f"---\ndate: {day}\n---\n{TEXT}")
    times = {r.id: r.time for r in read("markdown", tmp_path, {"records": "texts"})[0]}
    assert times["a.md#1"] == DAY
    (tmp_path / "b.md").write_text(f"---\ndate: 25/03/2024\n---\n{TEXT}")
    times = {r.id: r.time for r in read("markdown", tmp_path, {"records": "texts"})[0]}
    assert times["a.md#1"] == datetime(2024, 5, 3, tzinfo=UTC)
    options = {"records": "texts", "order": "mdy"}
    times = {r.id: r.time for r in read("markdown", tmp_path, options)[0]}
    assert times["a.md#1"] == DAY


def test_the_format_of_daily_notes_settles_the_order(tmp_path: Path) -> None:
    (tmp_path / ".obsidian").mkdir()
    (tmp_path / ".obsidian" / "daily-notes.json").write_text('{"format": "MM-DD-YYYY"}')
    (tmp_path / "03-05-2024.md").write_text(TEXT)
    [record] = read("markdown", tmp_path)[0]
    assert record.time == DAY


def test_a_month_that_two_languages_share_is_that_of_the_others(tmp_path: Path) -> None:
    """Listopad is November in Polish and October in Croatian."""
    for number, month in enumerate(("listopada", "grudnia", "stycznia")):
        (tmp_path / f"{number}.md").write_text(f"---\ndate: 5 {month} 2023\n---\n{TEXT}")
    times = [r.time for r in read("markdown", tmp_path, {"records": "texts"})[0]]
    assert times[0] == datetime(2023, 11, 5, tzinfo=UTC)
    for number, month in enumerate(("listopada", "prosinca", "siječnja")):
        (tmp_path / f"{number}.md").write_text(f"---\ndate: 5 {month} 2023\n---\n{TEXT}")
    times = [r.time for r in read("markdown", tmp_path, {"records": "texts"})[0]]
    assert times[0] == datetime(2023, 10, 5, tzinfo=UTC)


FRONTS = {
    "linter": "---\ndate created: Tuesday, March 5th 2024, 2:22:00 pm\n"
    "date modified: 2025-01-01\n---\n",
    "link": '---\ncreated: "[[2024-03-05]]"\n---\n',
    "kebab": "---\ncreated-at: 2024-03-05\n---\n",
    "camel": "---\ndateCreated: 2024-03-05\n---\n",
    "snake": "---\nupdated: 2025-03-05\ncreation_date: 2024-03-05\n---\n",
    "published": "---\npublished: 2024-03-05\n---\n",
    "list": "---\ndate:\n  - 2024-03-05\n---\n",
    "inline list": "---\ndate: [2024-03-05]\n---\n",
    "crlf": "---\r\ndate: 2024-03-05\r\n---\r\n",
    "blank first": "\n---\ndate: 2024-03-05\n---\n",
    "toml": '+++\ntitle = "x"\ndate = 2024-03-05T14:22:00Z\n+++\n',
    "broken": "---\ntitle: Slow Walks: A Plan\ndate: 2024-03-05\ntags: [a, b\n---\n",
    "placeholder gone": "---\nother: @me\ndate: 2024-03-05\n---\n",
    "other first": "---\ndue: 2024-09-01\nbirthday: 1980-01-01\ndate: 2024-03-05\n---\n",
    "logseq": "created:: [[Mar 5th, 2024]]\nid:: 65e7\n\n",
    "dataview": "Date:: 2024-03-05\n\n",
    "german": "---\nerstellt: 5. März 2024\n---\n",
    "japanese": "---\n作成日: 2024年3月5日\n---\n",
    "updated only": "---\nlastmod: 2024-03-05\n---\n",
}


@pytest.mark.parametrize("form", FRONTS)
def test_front_matter_of_many_programs(tmp_path: Path, form: str) -> None:
    (tmp_path / "note.md").write_bytes((FRONTS[form] + TEXT).encode())
    records, report = read("markdown", tmp_path, {"records": "texts"})
    assert [(r.output, r.time.date() if r.time else None) for r in records] == [(TEXT, DAY.date())]
    assert not report.notes


def test_exports_of_joplin_and_notion(tmp_path: Path) -> None:
    """Joplin's raw export ends in properties; Notion puts them below the title."""
    trailer = f"id: {'a' * 32}\nparent_id: {'b' * 32}\ncreated_time: 2024-03-05T14:22:00.000Z\n"
    trailer += "updated_time: 2025-01-01T00:00:00.000Z\nsource_url: \ntype_: "
    (tmp_path / f"{'a' * 32}.md").write_text(f"Quiet harbour\n\n{TEXT}\n\n{trailer}1")
    (tmp_path / f"{'c' * 32}.md").write_text(f"A notebook\n\nid: {'c' * 32}\ntype_: 2")
    notion = f"# Quiet harbour\n\nCreated: March 5, 2024 2:22 PM\nTags: walks, tea\n\n{TEXT}\n"
    (tmp_path / f"Quiet harbour {'d' * 32}.md").write_text(notion)
    records, report = read("markdown", tmp_path)
    texts = {r.id: r for r in records if r.task == "continuation"}
    assert {r.time for r in texts.values()} == {TIME} and len(texts) == 2
    assert all("parent_id" not in r.output and "Tags" not in r.output for r in records)
    titles = [r.output for r in records if r.id.startswith("Quiet")]
    assert titles[0] == "Quiet harbour" and report.skipped.total() == 1


def test_the_time_of_the_file_comes_last_and_is_said(tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "2024-03-05.md"):
        (tmp_path / name).write_text(TEXT)
        os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    (tmp_path / "2999-01-01.md").write_text(
        f"---\ndate: 2999-01-01\nupdated: 2024-03-05\n---\n{TEXT}"
    )
    records, report = read("markdown", tmp_path, {"records": "texts"})
    assert [r.time for r in records] == [
        DAY, DAY, *2 * [datetime.fromtimestamp(1_700_000_000, UTC)],
    ]  # fmt: skip
    assert report.notes == ["2 notes say no date, so the time of the file is taken (first: a.md)"]


def test_titles_are_what_was_written(tmp_path: Path) -> None:
    """`title: A: b` is no YAML, `12:30`, `No` and 2024 are no text to YAML."""
    for title in ("Slow Walks: A Plan", "Nein", "No", "'Quoted' words", '"All: quoted"', "a # b"):
        (tmp_path / "n.md").write_text(f"---\ntitle: {title}\ndate: 2024-03-05\n---\n{TEXT}")
        records = read("markdown", tmp_path, {"records": "titles"})[0]
        wanted = {'"All: quoted"': "All: quoted", "a # b": "a"}.get(title, title)
        assert [(r.output, r.time) for r in records] == [(wanted, DAY)]


def test_a_line_at_the_top_begins_no_front_matter(tmp_path: Path) -> None:
    (tmp_path / "n.md").write_text(f"---\n{TEXT}\n---\nAnd so on to the lighthouse.")
    [record] = read("markdown", tmp_path, {"records": "texts"})[0]
    assert TEXT in record.output and "lighthouse" in record.output
