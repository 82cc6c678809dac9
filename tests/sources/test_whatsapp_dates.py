"""WhatsApp: dates, clocks and calendars as phones write them, decided by the whole chat.

Forms are those of starkdmi/whats_json (`test/data`: languages, calendars, ios, chats_unique) and of
gesiscss/WhatsR (`inst`); words of clocks are those of Unicode CLDR.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from connector_sources import read

from pfi.errors import DataError
from pfi.readers.calendars import calendar_of, gregorian
from pfi.readers.locales import FOLDER, clock_hour, settle
from pfi.sources.connectors import detect


def one(folder: Path, stamp: str, **options: object) -> str:
    """When the answer of a chat of two was, whose stamps are all alike."""
    path = folder / "WhatsApp Chat with Nora.txt"
    path.write_text(f"{stamp}Nora: Is it open?\n{stamp}Sam: Until midnight\n", "utf-8")
    [record], _ = read("whatsapp", path, dict(options))
    assert record.output == "Until midnight" and detect(path) == "whatsapp"
    return f"{record.time:%Y-%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("[3/27/2565 BE, 21:42:35] ", "2022-03-27 21:42:35"),
        ("[27/3/2565 21:42:35] ", "2022-03-27 21:42:35"),
        ("27/3/65 21:42 - ", "2022-03-27 21:42:00"),
        ("[3/27/R4, 21:42:35] ", "2022-03-27 21:42:35"),
        ("[R4/03/27 21:42:35] ", "2022-03-27 21:42:35"),
        ("[令和4/03/27 21:42:35] ", "2022-03-27 21:42:35"),
        ("[民國111/3/27 下午9:42:35] ", "2022-03-27 21:42:35"),
        ("[۱۴۰۱/۱/۷،\u200f ۲۱:۴۲:۳۵] ", "2022-03-27 21:42:35"),
        ("۱۴۰۱/۱/۷، ۲۱:۴۲ - ", "2022-03-27 21:42:00"),
        ("[٢٤\u200f/٨\u200f/١٤٤٣ هـ، ٩:٤٢:٣٥ م] ", "2022-03-27 21:42:35"),
        ("[21:42:35, 3/27/22] ", "2022-03-27 21:42:35"),
        ("19:23, 28 Aug 2013 - ", "2013-08-28 19:23:00"),
        ("28 août 2013 à 19:23 - ", "2013-08-28 19:23:00"),
        ("5 de mar. de 2013 21:05 - ", "2013-03-05 21:05:00"),
        ("13/06/15 10:59:59: ", "2015-06-13 10:59:59"),
        ("7/13/16, 4:56:55 PM: ", "2016-07-13 16:56:55"),
        ("05/01/2021, 3:07 in the afternoon - ", "2021-01-05 15:07:00"),
        ("05/01/2021, 11:40 at night - ", "2021-01-05 23:40:00"),
        ("05/01/2021, 2:40 at night - ", "2021-01-05 02:40:00"),
        ("05.01.2021 ÖS 3:07 - ", "2021-01-05 15:07:00"),
        ("2021. 01. 05. du. 3:07 - ", "2021-01-05 15:07:00"),
        ("5.1.2021 klo 3.07 ip. - ", "2021-01-05 15:07:00"),
        ("5/1/2021, 3:07 de la tarde - ", "2021-01-05 15:07:00"),
        ("2021/1/5 中午12:07 - ", "2021-01-05 12:07:00"),
        ("2021/1/5 凌晨12:07 - ", "2021-01-05 00:07:00"),
        ("05/01/21, 12:07 am - ", "2021-01-05 00:07:00"),
        ("05/01/21, 12:07 pm - ", "2021-01-05 12:07:00"),
        ("【05/01/2021, 15:07:00】 ", "2021-01-05 15:07:00"),
        ("(05/01/2021, 15:07:00) ", "2021-01-05 15:07:00"),
        ("\u202a05/01/2021\u202c, 15:07 – ", "2021-01-05 15:07:00"),
    ],
)
def test_stamps(tmp_path: Path, stamp: str, time: str) -> None:
    assert one(tmp_path, stamp) == time


@pytest.mark.parametrize("half", ["0-12", "12-24"])
def test_every_languages_words_for_the_halves_of_a_day(half: str) -> None:
    rows = [line.split("\t") for line in (FOLDER / "clock_words.txt").read_text().splitlines()]
    words = [row[0] for row in rows if row[1] == half]
    assert len(words) > 100
    for word in words:
        meaning = settle("clock", {word: 1})[word]
        # A few words name another hour of the day in more languages than those of this half.
        if meaning == half:
            assert clock_hour(9, 5, meaning) == (9 if half == "0-12" else 21), word
            assert clock_hour(12, 5, meaning) == (0 if half == "0-12" else 12), word


def test_languages_that_share_a_word_are_told_apart_by_the_others() -> None:
    """`de` is before noon in Hungarian only; beside it `du` is after noon."""
    settled = settle("clock", {"de": 5, "du": 5})
    assert clock_hour(3, 0, settled["du"]) == 15 and clock_hour(3, 0, settled["de"]) == 3


def test_an_unknown_word_beside_the_clock_is_told_and_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its date is not understood .*line 1"):
        one(tmp_path, "05/01/2021, 3:07 blorp - ")
    assert one(tmp_path, "05/01/2021, 15:07 blorp - ") == "2021-01-05 15:07:00"  # a whole day's


@pytest.mark.parametrize(
    ("form", "order"),
    [("%d.%m.%y, %H:%M - ", "dmy"), ("%d/%m/%y, %H:%M - ", "dmy"), ("%m/%d/%y, %H:%M - ", "mdy")],
)
def test_days_are_not_years_though_the_notice_above_is_newer(
    tmp_path: Path, form: str, order: str
) -> None:
    days = [datetime(2022, 3, day, 14, 56) for day in (18, 20, 25)]
    notice = datetime(2022, 4, 5, 9, 12).strftime(form) + "Nachrichten sind verschlüsselt.\n"
    late = datetime(2022, 4, 5, 9, 13).strftime(form) + "Nora: Das ist von später\n"
    lines = [f"{t.strftime(form)}{who}: {t.day} {who}\n" for t in days for who in ("Nora", "Sam")]
    path = tmp_path / "WhatsApp Chat mit Nora.txt"
    for above in (notice, late, notice + late):
        path.write_text(above + "".join(lines), "utf-8")
        records, _ = read("whatsapp", path)
        assert [f"{r.time:%Y-%m-%d}" for r in records] == ["2022-03-18", "2022-03-20", "2022-03-25"]


def test_days_that_may_be_months_are_read_so_that_the_chat_is_dense(tmp_path: Path) -> None:
    path = tmp_path / "WhatsApp Chat with Nora.txt"
    for form, days in (("%m/%d/%y, %H:%M - ", range(1, 9)), ("%d/%m/%y, %H:%M - ", range(1, 9))):
        times = [datetime(2022, 3, day, 14, 56) for day in days]
        path.write_text(
            "".join(f"{t.strftime(form)}{w}: {t.day} {w}\n" for t in times for w in ("Nora", "Sam"))
        )
        records, _ = read("whatsapp", path)
        assert {r.time.month for r in records if r.time} == {3}, form


def test_dates_without_a_year(tmp_path: Path) -> None:
    """Old phones left out the present year, which only those above can tell."""
    path = tmp_path / "WhatsApp Chat with Nora.txt"
    present = "00:01, 1 Jan - Nora: Happy new year\n00:02, 1 Jan - Sam: And to you\n"
    path.write_text("23:58, 31 Dec 2013 - Nora: Soon\n23:59, 31 Dec 2013 - Sam: Yes\n" + present)
    records, _ = read("whatsapp", path)
    assert [f"{r.time:%Y-%m-%d}" for r in records] == ["2013-12-31", "2014-01-01"]
    path.write_text(present)
    with pytest.raises(DataError, match="its date is not understood"):
        read("whatsapp", path)
    [record], _ = read("whatsapp", path, {"year": 2015})
    assert record.time and record.time.year == 2015


@pytest.mark.parametrize(
    ("year", "digits", "calendar"),
    [
        (2022, 4, "gregorian"),
        (22, 2, "gregorian"),
        (2565, 4, "buddhist"),
        (65, 2, "buddhist"),
        (1401, 4, "persian"),
        (99, 2, "persian"),
        (1443, 4, "islamic"),
        (43, 2, "islamic"),
        (111, 3, "minguo"),
    ],
)
def test_the_calendar_of_a_year(year: int, digits: int, calendar: str) -> None:
    assert calendar_of(year, digits=digits) == calendar


def test_persian_dates() -> None:
    """Leap days and new years, as the University of Tehran publishes them."""
    known = {
        (1399, 12, 30): "2021-03-20",
        (1400, 1, 1): "2021-03-21",
        (1403, 12, 30): "2025-03-20",
        (1388, 1, 1): "2009-03-21",
        (1404, 7, 1): "2025-09-23",
    }
    for numbers, day in known.items():
        assert f"{gregorian(*numbers, 'persian')}" == day
    for wrong in ((1400, 12, 30), (1400, 7, 31), (1400, 13, 1), (99, 0, 1)):
        with pytest.raises(ValueError):
            gregorian(*wrong, "persian")
