"""Dates as people and programs write them in notes: in front matter, in names of files.

Names of months, words for parts of the day and digits are those of Unicode's CLDR.  Whether 1/2 is
the first of February, and which language's month a word is, is learnt from all dates of a source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pfi.readers.calendars import calendar_of, gregorian
from pfi.readers.locales import ascii_digits, clock_hour, date_literals, plain_word, settle

#: Longest text that is read as a date.
TEXT_LIMIT = 100
_FIRST_YEAR, _LAST_YEAR = 1900, 2099
#: A date in a name that is older may be what the note is about.
_OLD = 1990
#: The year before the first of Japanese eras.
_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925}

_ERA = re.compile(r"(令和|平成|昭和)\s*(\d{1,2}|元)\s*年")
_YEAR_FIRST = re.compile(
    r"(?<!\d)(\d{4})\s?([-/._年년,])\s?(\d{1,2})\s?(?:\2|[月월])\s?(\d{1,2})(?!\d)(?:[日일号號]|\.(?!\d))?"
)
_YEAR_LAST = re.compile(
    r"(?<![\d.:])(\d{1,2})\s?([-/._])\s?(\d{1,2})\s?\2\s?(\d{4}|\d{2})(?![\d:])"
)
_COMPACT = re.compile(r"(?<!\d)(\d{4})(\d\d)(\d\d)(?:[T_ -]?(\d\d)(\d\d)(\d\d)?\d{0,3})?(?!\d)")
_SHORT = re.compile(r"(?<!\d)(\d\d)(\d\d)(\d\d)(?!\d)")
_WEEK = re.compile(
    r"(?<!\d)(\d{4})[-_. ]{0,3}(?:W|KW|CW|S|Week|Woche|Semaine|Semana)[-_. ]?(\d{1,2})(?!\d)", re.I
)
_MONTH = re.compile(r"(?<!\d)(\d{4})[-_./年년]\s?(\d{1,2})[月월]?(?![\d-])")
_QUARTER = re.compile(r"(?<!\d)(\d{4})[-_. ]?Q([1-4])(?!\d)", re.I)
_YEAR = re.compile(r"\s*(\d{4})\s*")
_NUMBER = re.compile(r"\d+")
#: Marks above and below letters belong to words, so words are what is no sign.
_WORD = re.compile(r"[^\s\d\-–—!-&(-,/:-@\[-`{-~、。，،年月日년월일]+")
_ISO = re.compile(r"\d{4}-?\d\d-?\d\d(?:[T ]\d\d:?\d\d.*)?|\d{4}-?W\d\d(?:-?\d)?")
#: A time of day as names have it, which may hold no colons.
_NAME_CLOCK = re.compile(
    r"(?:[T_]|[ _-]{1,3}(?=\d\d[-.:h]))(\d\d)[-.:h]?(\d\d)(?:[-.:m]?(\d\d))?(?!\d)"
)
_CLOCK = re.compile(
    r"(?<![\d.:])(\d{1,2})(?:\s?[:.h]\s?(\d{2})(?:\s?[:.m]\s?(\d{2})(?:[.,]\d+)?)?s?|(?=\s?[ap]\.?m\b))"
    r"(?![\d:])"
)
_ZONE = re.compile(r"\s*(?:Z\b|(?:UTC|GMT)?\s*([+-])(\d{2}):?(\d{2})\b)")
_HOURS = re.compile(r"(\d)\s*[時时点點시]\s*(?:(\d{1,2})\s*[分분]?)?")
_SECONDS = re.compile(r"(?<=:\d\d)\s*(\d{1,2})\s*[秒초]")


@dataclass
class DateStyle:
    """How the dates of one source are written.

    Attributes:
        order: `dmy` or `mdy`, for dates that both would fit; None to find out.
        votes: dates that only one order fits, by order.
        words: words beside numbers, of which some are months.
        short: whether six digits in a name are a date, year first.
    """

    order: str | None = None
    votes: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    short: bool = False
    _months: dict[str, str] | None = None

    def learn(self, text: str) -> None:
        """Note what a text, which is or holds a date, tells of the others."""
        text = ascii_digits(text[:TEXT_LIMIT])
        for match in _YEAR_LAST.finditer(text):
            first, second = int(match[1]), int(match[3])
            if match[2] != "." and max(first, second) <= 31 and min(first, second) <= 12:
                self.votes["dmy"] += first > 12
                self.votes["mdy"] += second > 12
        if _NUMBER.search(text):
            self.words.update(plain_word(word) for word in _WORD.findall(text))
            self._months = None

    def learn_format(self, pattern: str) -> None:
        """Note a format of dates that a program is set to, in Moment's letters: DD-MM-YYYY."""
        day, month, year = (pattern.find(letter) for letter in "DMY")
        if -1 not in (day, month, year):
            if year > max(day, month):
                self.votes["dmy" if day < month else "mdy"] += 1000
            self.short |= "YYMMDD" in pattern and "YYYY" not in pattern

    def day_first(self, sign: str) -> bool:
        """Whether the day comes before the month where a `sign` stands between them."""
        if sign == ".":  # all languages of CLDR that write points, and the year last
            return True
        return (self.order or ("mdy" if self.votes["mdy"] > self.votes["dmy"] else "dmy")) == "dmy"

    def month(self, word: str) -> int | None:
        """The month that a word names; None if it is none."""
        plain = plain_word(word)
        if self._months is None:
            self._months = settle("month", self.words)
        known = self._months if plain in self._months else settle("month", {plain: 1})
        if plain not in known and plain.startswith("ב"):  # Hebrew writes its `of` as one with it
            return self.month(plain[1:])
        return int(known[plain]) if plain in known else None


def date_of(value: Any, style: DateStyle) -> datetime | None:
    """The time that a value of front matter states, in UTC; None if it states none.

    Args:
        value: text, a number (Unix seconds, milli- or microseconds, or 20240305), a date, or a
            list, of which the first date counts.
        style: of the source's dates.
    """
    if isinstance(value, datetime):
        return _in_utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((d for each in value[:10] if (d := date_of(each, style)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = _bare(str(value))
    if not text or len(text) > TEXT_LIMIT:
        return None
    try:
        time = _in_utc(datetime.fromisoformat(text)) if _ISO.fullmatch(text) else None
    except (ValueError, OverflowError):
        time = None
    if time is not None and _FIRST_YEAR <= time.year <= _LAST_YEAR:
        return time
    return read_date(text, style) or _epoch(text) or _period(text)


def date_in_name(name: str, style: DateStyle) -> datetime | None:
    """The day, or time, that the name of a file states; None if it states none.

    An old date among other words is more often what the words are about.
    """
    text = _bare(name)[:TEXT_LIMIT]
    time = read_date(text, style, name=True)
    if time is None and style.short and (match := _SHORT.match(text)):
        time = _time(2000 + int(match[1]), int(match[2]), int(match[3]))
    time = time or _period(text)
    if time is not None and time.year < _OLD and len(_WORD.findall(text)) > 2:
        return None
    return time


def date_in_path(parts: Sequence[str]) -> datetime | None:
    """The day that folders and a name spell, such as 2024/03/05; None if they spell none."""
    match = _YEAR_FIRST.fullmatch("/".join(ascii_digits(part) for part in parts[-3:]))
    return _time(int(match[1]), int(match[3]), int(match[4])) if match else None


def read_date(text: str, style: DateStyle, *, name: bool = False) -> datetime | None:
    """The first date in a text, with the time of day beside it; None if there is none.

    Args:
        text: with ASCII digits.
        style: of the source's dates.
        name: whether it is the name of a file, where other numbers may follow.
    """
    text = _ERA.sub(lambda m: f"{_ERAS[m[1]] + (1 if m[2] == '元' else int(m[2]))}年", text)
    if match := _COMPACT.search(text):
        time = _time(*(int(part or 0) for part in match.groups()))
        if time is not None:
            return time
    if match := _YEAR_FIRST.search(text):
        day = _time(int(match[1]), int(match[3]), int(match[4]))
        if day is not None:
            return _with_clock(day, text[match.end() :], name=name)
    if match := _YEAR_LAST.search(text):
        numbers = int(match[1]), int(match[3])
        day_first = style.day_first(match[2])
        if max(numbers) > 12:
            day_first = numbers[0] > 12
        day_, month = numbers if day_first else numbers[::-1]
        day = _time(_full_year(match[4]), month, day_)
        if day is not None:
            rest = f"{text[: match.start()]} {text[match.end() :]}"
            return _with_clock(day, rest, name=name)
    return _in_words(text, style, name=name)


def _in_words(text: str, style: DateStyle, *, name: bool) -> datetime | None:
    """A date with a named month: the numbers nearest to the name are day and year."""
    clock = _CLOCK.search(text)
    if clock is not None and ":" not in clock[0]:
        clock = None  # 5.30 may be a day and a month
    dated = _blank(text, clock) if clock is not None else text
    numbers = list(_NUMBER.finditer(dated))
    if not any(len(number[0]) == 4 for number in numbers):
        return None
    best: tuple[int, datetime, int] | None = None
    for start, end, month in _months(dated, style):
        near = _nearest(numbers, start, end)
        year = next(((away, n) for away, n in near if len(n[0]) == 4), None)
        day = next(((away, n) for away, n in near if len(n[0]) < 3 and 0 < int(n[0]) < 32), None)
        if year is None:
            continue
        time = _time(int(year[1][0]), month, int(day[1][0]) if day is not None else 1)
        # Of `mar. 5 avr. 2024` the second is the month: it has the numbers beside it.
        away = year[0] + (day[0] if day is not None else 0)
        if time is not None and (best is None or away < best[0]):
            best = away, time, max(end, year[1].end(), day[1].end() if day is not None else 0)
    if best is None or name:
        return best[1] if best is not None else None
    return _with_clock(best[1], text if clock is not None else text[best[2] :])


def _months(text: str, style: DateStyle) -> Iterator[tuple[int, int, int]]:
    """Where a text names months, and which: `(start, end, month)`."""
    for word in _WORD.finditer(text):
        telling = (
            plain_word(word[0]) not in date_literals()
        )  # unlike `de`, which is December in Jola-Fonyi
        month = style.month(word[0]) if telling else None
        if month is not None:
            yield word.start(), word.end(), month
        elif after := re.compile(r"\s?\d{1,2}(?!\d)").match(text, word.end()):
            month = style.month(word[0] + after[0])  # such as tháng 3
            if month is not None:
                yield word.start(), after.end(), month


def _nearest(numbers: list[re.Match[str]], start: int, end: int) -> list[tuple[int, re.Match[str]]]:
    """The numbers outside a place of a text with their distance from it, the nearest first."""
    away = [
        (max(number.start() - end, start - number.end()), number)
        for number in numbers
        if number.start() >= end or number.end() <= start
    ]
    return sorted(away, key=lambda pair: pair[0])


def _blank(text: str, match: re.Match[str]) -> str:
    return text[: match.start()] + " " * len(match[0]) + text[match.end() :]


def _with_clock(day: datetime, rest: str, *, name: bool = False) -> datetime:
    """A day with the time of day that the rest of its text states, if it states one."""
    if name:
        match = _NAME_CLOCK.match(rest)
        try:
            return day.replace(hour=int(match[1]), minute=int(match[2])) if match else day
        except ValueError:
            return day
    rest = _HOURS.sub(lambda m: f"{m[1]}:{(m[2] or '0').zfill(2)}", rest)
    rest = _SECONDS.sub(lambda m: f":{m[1].zfill(2)}", rest)
    match = _CLOCK.search(rest)
    if match is None:
        return day
    hour, minute, second = (int(part or 0) for part in match.groups())
    meaning = _part_of_day(rest[: match.start()], rest[match.end() :])
    if meaning is not None:
        hour = clock_hour(hour, minute, meaning)
    try:
        time = day.replace(hour=hour, minute=minute, second=second)
    except ValueError:
        return day
    zone = _ZONE.match(rest, match.end())
    if zone is not None and zone[1]:
        ahead = timedelta(hours=int(zone[2]), minutes=int(zone[3]))
        time -= ahead if zone[1] == "+" else -ahead
    return time


def _part_of_day(before: str, after: str) -> str | None:
    """The meaning of a word beside a time, like pm; see `locales.settle`."""
    beside = [re.match(r"\s*([^\W\d]\.?\s?m\b\.?|[^\d\s(,]+(?:\.\s?[^\W\d]\.)?)", after, re.I),
              re.search(r"([^\d\s,]+)\s*$", before)]  # fmt: skip
    for word in filter(None, beside):
        plain = plain_word(word[1])
        if plain not in date_literals() and (known := settle("clock", {plain: 1})):
            return known[plain]
    return None


def _period(text: str) -> datetime | None:
    """The first day of a week, month, quarter or year at the beginning of a text."""
    if match := _WEEK.match(text):
        try:
            week = datetime.fromisocalendar(int(match[1]), int(match[2]), 1)
            return _time(week.year, week.month, week.day)
        except ValueError:
            return None
    if match := _QUARTER.match(text):
        return _time(int(match[1]), 3 * int(match[2]) - 2, 1)
    if match := _MONTH.match(text):
        return _time(int(match[1]), int(match[2]), 1)
    match = _YEAR.fullmatch(text)
    return _time(int(match[1]), 1, 1) if match else None


def _epoch(text: str) -> datetime | None:
    """A time from seconds, milli- or microseconds since 1970, by how large the number is."""
    if not re.fullmatch(r"\d{9,16}(\.\d+)?", text):
        return None
    value = float(text)
    for unit, least in ((1e6, 1e14), (1e3, 1e11), (1.0, 1e8)):
        if value >= least:
            time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(value / unit))
            return time if time.year <= _LAST_YEAR else None
    return None


def _bare(text: str) -> str:
    """A text without the marks of links and quotes around it, with ASCII digits."""
    text = ascii_digits(text).strip().strip("\"'`")
    if match := re.fullmatch(r"!?\[\[([^\]|#]*)(?:[#|][^\]]*)?\]\]\s*(.*)", text, re.S):
        text = f"{match[1].rsplit('/', 1)[-1]} {match[2]}"
    elif match := re.fullmatch(r"[\[<]([^\]>]*)[\]>](?:\([^)]*\))?", text):
        text = match[1]
    return text.strip().strip("\"'`")


def _full_year(text: str) -> int:
    year = int(text)
    if len(text) > 2:
        return year
    return year + (2000 if year <= datetime.now(UTC).year % 100 + 1 else 1900)


def _time(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime | None:
    """A time in UTC; None if there is no such day, or no note can be so old."""
    try:
        if not _FIRST_YEAR <= year <= _LAST_YEAR:
            calendar = calendar_of(year)
            if calendar == "gregorian":
                return None
            other = gregorian(year, month, day, calendar)
            year, month, day = other.year, other.month, other.day
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _in_utc(time: datetime) -> datetime:
    return time.replace(microsecond=0, tzinfo=time.tzinfo or UTC).astimezone(UTC)


__all__ = ["DateStyle", "date_in_name", "date_in_path", "date_of", "read_date"]
