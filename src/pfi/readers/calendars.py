"""Dates of other calendars as Gregorian ones: Buddhist, Persian, Islamic, Japanese, Minguo.

Phones write dates in the calendar of their region and mostly without saying which; of what happened
since 2000 the year tells.  Umm al-Qura is the Islamic calendar of phones.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from hijridate import Hijri

Calendar = Literal["gregorian", "buddhist", "persian", "islamic", "japanese", "minguo"]

#: Year before the first of each era, by the letter or the characters that phones write.
_JAPANESE = {"r": 2018, "h": 1988, "s": 1925, "令和": 2018, "平成": 1988, "昭和": 1925}
_MINGUO = ("民國", "民国", "minguo", "roc")
#: Years of each calendar that are 0 in two digits.
_CENTURY = {"gregorian": 2000, "buddhist": 2500, "persian": 1400, "islamic": 1400}
#: Nothing that is read is older than the first; years of two digits are not older than the second.
FIRST_YEAR, FIRST_SHORT_YEAR = 2000, 2009

__all__ = ["Calendar", "calendar_of", "gregorian"]


def calendar_of(
    year: int, era: str = "", digits: int = 4, persian_digits: bool = False
) -> Calendar:
    """The calendar that a year of our time is of.

    Args:
        year: as written.
        era: what stands beside it, if anything does.
        digits: with how many it is written.
        persian_digits: whether the text is written in those of Persian and Urdu.
    """
    this = datetime.now(UTC).year
    era = re.sub(r"[\s.]", "", era).casefold()
    if era in _JAPANESE and year < 100:
        return "japanese"
    if era in _MINGUO or (digits == 3 and 80 < year <= this - 1911):
        return "minguo"
    full = year if digits > 2 else 2000 + year
    if FIRST_YEAR <= full <= this + 1 and not (digits <= 2 and persian_digits and year < 9):
        return "gregorian"
    first = FIRST_YEAR if digits > 2 else FIRST_SHORT_YEAR
    ranges: dict[Calendar, tuple[int, int]] = {
        "buddhist": (first + 543, this + 544),
        "islamic": (_islamic(first), _islamic(this) + 1),
        "persian": (first - 622, this - 620),
    }
    for calendar, (start, end) in ranges.items():
        years = [year] if digits > 2 else [year + c for c in (1300, 1400, 2500)]
        if any(start <= y <= end for y in years):
            return calendar
    return "gregorian"


def gregorian(year: int, month: int, day: int, calendar: Calendar, era: str = "") -> date:
    """A date of another calendar; years of two digits are those of our time.

    Raises:
        ValueError: there is no such date.
    """
    era = re.sub(r"[\s.]", "", era).casefold()
    if calendar == "japanese":
        return date(_JAPANESE[era] + year, month, day)
    if calendar == "minguo":
        return date(1911 + year, month, day)
    if year < 100:
        year += _CENTURY[calendar]
        if calendar == "persian" and year > datetime.now(UTC).year - 620:
            year -= 100
    if calendar == "buddhist":
        return date(year - 543, month, day)
    if calendar == "islamic":
        try:
            return Hijri(year, month, day).to_gregorian()
        except OverflowError:
            raise ValueError(f"year {year} is out of range") from None
    return _persian(year, month, day) if calendar == "persian" else date(year, month, day)


def _islamic(year: int) -> int:
    """The Islamic year in which a Gregorian one begins."""
    return int((year - 622) * 1.0307) + 1


def _persian(year: int, month: int, day: int) -> date:
    """A date of the Solar Hijri calendar by its cycle of 33 years, right from 1244 to 1502."""
    length = 31 if month <= 6 else 30 if month < 12 or _leap(year) else 29
    if not (1244 <= year <= 1502 and 1 <= month <= 12 and 1 <= day <= length):
        raise ValueError("there is no such date")
    # 1 Farvardin 1400 is 21 March 2021.
    years = range(1400, year) if year >= 1400 else range(year, 1400)
    days = sum(366 if _leap(y) else 365 for y in years)
    start = date(2021, 3, 21) + timedelta(days=days if year >= 1400 else -days)
    return start + timedelta(days=31 * (month - 1) - max(0, month - 7) + day - 1)


def _leap(year: int) -> bool:
    return year % 33 in (1, 5, 9, 13, 17, 22, 26, 30)
