"""Times of a column: their form is found from all of its values, not value by value.

Read are ISO 8601, Unix times in seconds to nanoseconds, the day numbers of spreadsheets, and dates
as people write them, in numbers (13/05/2024, 5.3.24 14:30) or with the month in words.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any, Literal, NamedTuple

from pfi.readers.calendars import calendar_of, gregorian
from pfi.readers.locales import ascii_digits, clock_hour, date_literals, plain_word, settle
from pfi.readers.values import FUTURE_SLACK, Unusable, as_time

Order = Literal["auto", "dmy", "mdy", "ymd"]

__all__ = ["Order", "TimeColumn"]

_NUMBER = re.compile(r"-?\d+(?:[.,]\d*)?", re.ASCII)
#: Day numbers of spreadsheets (days since 1899-12-30) from 1954 to 2119.
_SERIALS = (20_000, 80_000)
_FIRST_DAY = datetime(1899, 12, 30, tzinfo=UTC)
_CLOCK = re.compile(
    r"(?<![\d.])(\d{1,2})(?:[:h]|(?:(?<=\s\d)|(?<=\s\d\d))\.)(\d{2})(?::(\d{2})(?:[.,]\d+)?)?(?![\d.])"
)
_SPACED = re.compile(r"\b([^\W\d_])\.\s*(?=[^\W\d_]\.)")  # "p. m."
#: After a clock; a date may end in -2024.
_ZONE = re.compile(r"(?<=[:.]\d\d)\s*(?:utc|gmt|z)?\s*(?:([+-])(\d{2}):?(\d{2}))?\s*$", re.I)
#: Of East Asian dates: year, month, day; hour, minute, second.
_UNITS = re.compile("[年年月日년월일時时点點分秒시분초]")
_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*")


class _Local(NamedTuple):
    """A date as people write it: its numbers, its words, the clock."""

    numbers: tuple[str, ...]
    words: tuple[str, ...]
    clock: tuple[int, int, int] | None
    zone: timezone | None


class TimeColumn:
    """The times of one column.  First every value is added, then each is read.

    Args:
        name: how reasons call the column.
        order: of day, month and year in numbers; `auto` finds it.
    """

    def __init__(self, name: str = "time", order: Order = "auto") -> None:
        self._name = name
        self._given = order
        self.filled = self.empty = 0
        self._others = self._serials = self._letters = 0  # numbers of other sizes; with am or pm
        self._words: Counter[str] = Counter()
        self._first = self._second = 0  # values whose first, second number is no month
        self._undecided = ""  # an example
        self._steps = {"dmy": [0, 0], "mdy": [0, 0]}  # later, earlier than the one before
        self._last: dict[str, tuple[int, int, int]] = {}
        self._known: tuple[dict[str, str], dict[str, str]] | None = None  # months, clock

    def add(self, value: Any) -> None:
        """Take a value into account."""
        if value is None or (isinstance(value, str) and not value.strip()):
            self.empty += 1
            return
        self.filled += 1
        number = _number(value)
        if number is not None:
            serial = _SERIALS[0] <= number < _SERIALS[1]
            self._serials, self._others = self._serials + serial, self._others + (not serial)
        elif isinstance(value, str) and not _is_iso(value):
            local = _local(value)
            self._words.update(local.words)
            self._letters += bool(local.clock and local.words)
            self._compare(local, value)

    def _compare(self, local: _Local, value: str) -> None:
        if len(local.numbers) != 3 or len(local.numbers[0]) > 2:
            return
        first, second, year = map(int, local.numbers)
        if first > 12 >= second:
            self._first += 1
        elif second > 12 >= first:
            self._second += 1
        elif first != second:
            self._undecided = self._undecided or value.strip()[:40]
        for order, (month, day) in {"dmy": (second, first), "mdy": (first, second)}.items():
            date, last = (year, month, day), self._last.get(order)
            if last is not None and date != last:
                self._steps[order][date < last] += 1
            self._last[order] = date

    @property
    def dated(self) -> bool:
        """Whether at least half of the values are there."""
        return 0 < self.filled >= self.empty

    @property
    def order(self) -> str:
        """The order of day, month and year in numbers where the year is not first."""
        if self._given != "auto":
            return self._given
        if self._first != self._second:
            return "dmy" if self._first > self._second else "mdy"
        # What is written in time order is likely read in the right order.
        turns = {order: min(steps) for order, steps in self._steps.items()}
        if turns["dmy"] != turns["mdy"]:
            return min(turns, key=turns.__getitem__)
        return "mdy" if self._letters else "dmy"

    def note(self) -> str | None:
        """What to tell of dates that could be read in two ways."""
        if not self._undecided or self._first or self._second or self._given != "auto":
            return None
        words = {"d": "day", "m": "month", "y": "year"}
        shown = ", ".join(words[letter] for letter in self.order)
        return f"dates such as {self._undecided!r} are read as {shown}; order= says otherwise"

    def time(self, value: Any) -> datetime | None:
        """A value of the column as a time in UTC, where no zone is said; None if it is empty.

        Raises:
            Unusable: it is not a time, or it is later than now by more than a day.
        """
        result = self._time(value)
        if result is not None and result > datetime.now(UTC) + FUTURE_SLACK:
            raise Unusable(f"{self._name} is in the future")
        return result

    def _time(self, value: Any) -> datetime | None:
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise Unusable(f"{self._name} is not understood")
        number = _number(value)
        try:
            if number is not None:
                if self._serials and not self._others:
                    return _FIRST_DAY + timedelta(days=number)
                return as_time(_seconds(number), self._name)
            if isinstance(value, str) and value.strip() and not _is_iso(value):
                return self._read(_local(value))
        except (ValueError, OverflowError, KeyError):
            raise Unusable(f"{self._name} is not understood") from None
        return as_time(value, self._name)

    def _read(self, local: _Local) -> datetime:
        """A date as people write it.

        Raises:
            ValueError: it is none.
        """
        if self._known is None:
            self._known = settle("month", self._words), settle("clock", self._words)
        known, clock = self._known
        # A word such as "pm" may be a month somewhere.
        months = [known[w] for w in local.words if w in known and not (local.clock and w in clock)]
        numbers = [(int(text), len(text)) for text in local.numbers]
        if len(numbers) == 2 and len(months) == 1:
            year = max(numbers, key=lambda number: (number[1] > 2, numbers.index(number)))
            month, day = int(months[0]), next(n for n in numbers if n is not year)[0]
        elif len(numbers) == 3:
            if numbers[0][1] > 2 or self._given == "ymd":
                year, (month, _), (day, _) = numbers
            else:
                (day, _), (month, _), year = numbers
                if self.order == "mdy":
                    day, month = month, day
        else:
            raise ValueError("no date")
        number, digits = year
        if digits == 1:
            raise ValueError("no year")
        if digits == 2:
            number += 2000 if 2000 + number <= datetime.now(UTC).year + 1 else 1900
        date = gregorian(number, month, day, calendar_of(number, digits=max(digits, 4)))
        hour, minute, second = local.clock or (0, 0, 0)
        for word in local.words:
            if local.clock and word in clock:
                hour = clock_hour(hour, minute, clock[word])
                break
        moment = datetime.combine(date, time(hour, minute, second), local.zone or UTC)
        return moment.astimezone(UTC)


def _number(value: Any) -> float | None:
    """A number, or text that is one and no date such as 2020 or 20240513."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        return None
    whole = re.split("[.,]", text)[0].lstrip("-")
    return float(text.replace(",", ".")) if len(whole) == 5 or 9 <= len(whole) <= 20 else None


def _seconds(number: float) -> float:
    """A Unix time in seconds, from one in seconds, milliseconds, microseconds or nanoseconds."""
    size = abs(number)
    for power, least in ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11)):
        if size >= least:
            return number / power
    return number


def _is_iso(value: str) -> bool:
    try:
        as_time(value)
    except Unusable:
        return False
    return True


def _local(value: str) -> _Local:
    text = ascii_digits(value.strip()[:80])
    zone, clock = None, None
    if match := _ZONE.search(text):
        text = text[: match.start()]
        if match[1]:
            away = timedelta(hours=int(match[2]), minutes=int(match[3]))
            zone = timezone(-away if match[1] == "-" else away)
    if (match := _CLOCK.search(text)) and int(match[1]) < 25:
        clock = int(match[1]) % 24, int(match[2]), int(match[3] or 0)
        text = f"{text[: match.start()]} {text[match.end() :]}"
    text = _UNITS.sub(" ", _SPACED.sub(r"\1", text))
    literals = date_literals()
    words = [word for found in _WORD.findall(text) if (word := plain_word(found))]
    return _Local(
        tuple(re.findall(r"\d+", text)), tuple(w for w in words if w not in literals), clock, zone
    )
