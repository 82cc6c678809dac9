"""What the dates of an exported WhatsApp chat mean, decided by the whole chat.

Which number is the day, which calendar the years are of, which half of the day a word beside the
clock is: a line alone rarely tells, all lines together do.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Literal, NamedTuple

from pfi.readers.calendars import Calendar, calendar_of, gregorian
from pfi.readers.locales import clock_hour, settle
from pfi.sources.whatsapp_heads import Form, Stamp

Order = Literal["dmy", "mdy", "ymd"]

#: Chats are dense: read in the right order they span far less time than in a wrong one.
SPAN_RATIO = 3
#: A part of the heads from which on a second form is the chat's own, as in chats put together.
FORM_SHARE = 0.25
#: So many heads together that are older than those above are chats put together, no quotes.
STRETCH = 30
#: Different days that are remembered of a chat.
DAYS_LIMIT = 200_000

__all__ = ["Order", "Reading", "Survey"]


class _Day(NamedTuple):
    """A date as written."""

    numbers: tuple[int, int, int]
    digits: tuple[int, int, int]
    era: str
    month: str


@dataclass
class _Dates:
    """The dates of all heads of one form, and the words beside their clocks."""

    heads: int = 0
    days: list[_Day] = field(default_factory=list)
    runs: array[int] = field(default_factory=lambda: array("L"))
    words: Counter[str] = field(default_factory=Counter)
    whole_day: set[str] = field(default_factory=set)

    def add(self, stamp: Stamp) -> None:
        self.heads += 1
        for word in stamp.words:
            self.words[word] += 1
            if stamp.hour > 12 or stamp.hour == 0:
                self.whole_day.add(word)
        day = _Day(stamp.numbers, stamp.digits, stamp.era, stamp.month)
        if self.days and (self.days[-1] == day or len(self.days) >= DAYS_LIMIT):
            self.runs[-1] += 1
        else:
            self.days.append(day)
            self.runs.append(1)


class Survey:
    """Collects the heads of a chat, in a first reading."""

    def __init__(self) -> None:
        self._forms: dict[Form, _Dates] = {}
        self.persian_digits = False

    def add(self, form: Form, stamp: Stamp, persian_digits: bool = False) -> None:
        """Count a head of a message; notes of WhatsApp are often out of order and tell nothing."""
        self._forms.setdefault(form, _Dates()).add(stamp)
        self.persian_digits |= persian_digits

    def readings(self, order: Order | None = None, year: int = 0) -> dict[Form, Reading]:
        """How the dates of the chat's own forms are meant; heads of other forms were pasted.

        Args:
            order: of the numbers; by default it is found.
            year: of dates that name none, if nothing above them does; 0 if it is not known.
        """
        total = sum(dates.heads for dates in self._forms.values())
        most = max((dates.heads for dates in self._forms.values()), default=0)
        return {
            form: Reading(dates, form, order, year, self.persian_digits)
            for form, dates in self._forms.items()
            if dates.heads == most or dates.heads >= FORM_SHARE * total
        }


class Reading:
    """How the dates and clocks of one form are meant.

    Attributes:
        order: of day, month and year.
    """

    def __init__(
        self, dates: _Dates, form: Form, order: Order | None, year: int, persian_digits: bool
    ) -> None:
        self._persian_digits = persian_digits
        self._months = settle("month", Counter(day.month for day in dates.days if day.month))
        self._clock = settle("clock", dates.words)
        self._whole_day = dates.whole_day
        self._cache: dict[_Day, date] = {}
        self._last = date(year, 1, 1) if year else None
        self.order: Order = order or self._found_order(dates, form)
        self._calendar = self._found_calendar(dates, self.order)
        pasted = form.kind == "bracket"  # only heads in brackets are pasted as they are exported
        self._late = _late_runs(self._ordinals(dates), dates.runs) if pasted else []
        self._run = -1
        self._day: _Day | None = None

    def time(self, stamp: Stamp, zone: tzinfo) -> datetime:
        """The time that a stamp tells, in UTC.

        Raises:
            ValueError: there is no such time, or a word beside the clock is not known.
        """
        day = _Day(stamp.numbers, stamp.digits, stamp.era, stamp.month)
        if day not in self._cache:
            if len(self._cache) > DAYS_LIMIT:
                self._cache.clear()
            self._cache[day] = self._date(day, self.order, self._calendar)
        hour = self._hour(stamp)
        date_ = self._cache[day]
        time = datetime(
            date_.year, date_.month, date_.day, hour, stamp.minute, stamp.second, tzinfo=zone
        )
        return time if zone is UTC else time.astimezone(UTC)

    def _hour(self, stamp: Stamp) -> int:
        hour = stamp.hour
        for word in stamp.words:
            if word in self._clock:
                return clock_hour(stamp.hour, stamp.minute, self._clock[word])
            if word not in self._whole_day:
                raise ValueError(f"the word {word!r} beside the clock is not known")
        return hour

    def is_late(self, stamp: Stamp) -> bool:
        """Whether the next head is older than those above it, as one that somebody pasted is.

        The heads that were surveyed are given one after the other.
        """
        day = _Day(stamp.numbers, stamp.digits, stamp.era, stamp.month)
        if day != self._day and self._run + 1 < max(len(self._late), 1):
            self._run, self._day = self._run + 1, day
        return self._run < len(self._late) and self._late[self._run]

    def _found_calendar(self, dates: _Dates, order: Order) -> Calendar:
        calendars: Counter[Calendar] = Counter()
        for day in dates.days:
            at = 2 if day.month else order.index("y")
            year, digits = day.numbers[at], day.digits[at]
            calendars[calendar_of(year, day.era, digits, self._persian_digits)] += 1
        return max(calendars, key=lambda name: calendars[name])

    def _ordinals(self, dates: _Dates) -> list[int]:
        """The day of each run, counted from year 1; 0 where there is none."""
        ordinals = []
        for day in dates.days:
            try:
                ordinals.append(self._date(day, self.order, self._calendar).toordinal())
            except ValueError:
                ordinals.append(0)
        return ordinals

    def _date(self, day: _Day, order: Order, calendar: Calendar) -> date:
        if day.month:
            number = self._months.get(day.month)
            if number is None:
                raise ValueError(f"the month {day.month!r} is not known")
            return self._named(day, int(number), calendar)
        parts = dict(zip(order, day.numbers, strict=True))
        return gregorian(parts["y"], parts["m"], parts["d"], calendar, day.era)

    def _named(self, day: _Day, month: int, calendar: Calendar) -> date:
        """A date with the name of a month; phones leave out the year if it is the present one."""
        if day.numbers[2]:
            self._last = gregorian(day.numbers[2], month, day.numbers[0], calendar, day.era)
            return self._last
        if self._last is None:
            raise ValueError("the date names no year")
        this = date(self._last.year, month, day.numbers[0])
        return this if this >= self._last else date(self._last.year + 1, month, day.numbers[0])

    def _found_order(self, dates: _Dates, form: Form) -> Order:
        """The order under which fewest dates are wrong; in doubt day first."""
        days = dates.days
        first = sum(day.digits[0] > 2 for day in days)
        last = sum(day.digits[2] > 2 for day in days)
        if first > last:
            return "ymd"
        by_day, by_month = (self._faults(dates, order) for order in ("dmy", "mdy"))  # type: ignore[arg-type]
        if not last and form.separator != "." and _changes(days, 0) < _changes(days, 2):
            by_year = self._faults(dates, "ymd")
            if by_year[:2] < min(by_day, by_month)[:2]:
                return "ymd"
        if by_month[:2] != by_day[:2]:
            return "mdy" if by_month < by_day else "dmy"
        return "mdy" if by_month[2] * SPAN_RATIO < by_day[2] else "dmy"

    def _faults(self, dates: _Dates, order: Order) -> tuple[int, int, int]:
        """Heads without a possible date, steps back by more than a day, and days in between."""
        impossible = back = span = 0
        limit = datetime.now(UTC).date() + timedelta(days=1)
        last: date | None = None
        calendar = self._found_calendar(dates, order)
        for day, count in zip(dates.days, dates.runs, strict=True):
            try:
                now = self._date(day, order, calendar)
            except ValueError:
                impossible += count
                continue
            impossible += count * (now > limit)
            if last is not None:
                back += (last - now).days > 1
                span += abs((now - last).days)
            last = now
        return impossible, back, span


def _changes(days: Sequence[_Day], at: int) -> int:
    """How often a number of the date changes from day to day."""
    return sum(a.numbers[at] != b.numbers[at] for a, b in pairwise(days))


def _late_runs(ordinals: Sequence[int], counts: Sequence[int]) -> list[bool]:
    """Which runs are older than what is above them, and too few to be another chat below it.

    Of all heads as many as can be are taken to be in order: the rest is late.
    """
    kept = _heaviest_rise(ordinals, counts)
    late: list[bool] = []
    newest = 0
    for ordinal, in_order in zip(ordinals, kept, strict=True):
        newest = max(newest, ordinal) if in_order else newest
        late.append(not in_order and 0 < ordinal < newest - 1)
    start = 0
    while start < len(late):
        end = start + 1
        while end < len(late) and late[end] == late[start]:
            end += 1
        if late[start] and sum(counts[start:end]) >= STRETCH:
            late[start:end] = [False] * (end - start)
        start = end
    return late


def _heaviest_rise(values: Sequence[int], weights: Sequence[int]) -> list[bool]:
    """Which values to keep so that they never fall and their weights add up to the most.

    A Fenwick tree holds the best sum, and its last value's place, up to each value.
    """
    ranks = {value: rank for rank, value in enumerate(sorted(set(values)), start=1)}
    tree: list[tuple[int, int]] = [(0, -1)] * (len(ranks) + 1)
    before: list[int] = []
    for at, value in enumerate(values):
        rank, best = ranks[value], (0, -1)
        while rank:
            best = max(best, tree[rank])
            rank &= rank - 1
        before.append(best[1])
        here, rank = (best[0] + (weights[at] if value else 0), at), ranks[value]
        while rank < len(tree):
            tree[rank] = max(tree[rank], here)
            rank += rank & -rank
    kept = [False] * len(values)
    at = max(tree)[1]
    while at >= 0:
        kept[at] = True
        at = before[at]
    return kept
