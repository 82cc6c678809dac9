"""Times as browsers write them: numbers of several units and epochs, told apart by their size."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from pfi.readers.dates import DateStyle, date_of
from pfi.readers.values import FUTURE_SLACK

#: No page was seen and no bookmark kept by these programs before.
FIRST = datetime(1995, 1, 1, tzinfo=UTC)
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOWS = datetime(1601, 1, 1, tzinfo=UTC)
_APPLE = datetime(2001, 1, 1, tzinfo=UTC)
#: Safari writes such numbers since its first version, and is the only one: smaller ones are damage.
_FIRST_APPLE = datetime(2003, 1, 1, tzinfo=UTC)
#: Parts of a second and epoch: Unix, Chrome (WebKit), Internet Explorer, Safari (Core Data).  From
#: 1995 on, and Apple's from 2003 to 2025, a number fits one of them only.
_UNITS: list[tuple[float, datetime]] = [
    (1.0, _UNIX), (1e3, _UNIX), (1e6, _UNIX), (1e9, _UNIX), (1e6, _WINDOWS), (1e7, _WINDOWS),
    (1.0, _APPLE),
]  # fmt: skip


def moment(value: Any, style: DateStyle | None = None) -> datetime | None:
    """A time, in UTC and whole seconds; None if it is none, or not a plausible one.

    Args:
        value: a number or its text, or a date in words.
        style: of the dates of the same file.
    """
    number = _number(value)
    if number is not None:
        for unit, epoch in _UNITS:
            time = _since(epoch, number / unit)
            if time is not None and (epoch != _APPLE or time >= _FIRST_APPLE):
                return time
        if isinstance(value, int | float):
            return None
    if isinstance(value, datetime):
        value = value.isoformat()
    time = date_of(value, style or DateStyle()) if isinstance(value, str) else None
    return time if time is not None and FIRST <= time <= datetime.now(UTC) + FUTURE_SLACK else None


def core_data(value: Any) -> datetime | None:
    """A time of Safari's: seconds since 2001; None if it is none, or not a plausible one."""
    number = _number(value)
    time = _since(_APPLE, number) if number is not None else None
    return time if time is not None and time >= _FIRST_APPLE else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        # Of digits alone: float() also reads "nan" and "1_0".
        text = value.strip() if isinstance(value, str) else ""
        plain = text.replace(".", "", 1).isdecimal() and len(text) < 40
        number = float(text) if plain else float(value) if not isinstance(value, str) else math.nan
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _since(epoch: datetime, seconds: float) -> datetime | None:
    try:
        time = epoch + timedelta(seconds=math.floor(seconds))
    except OverflowError:
        return None
    return time if FIRST <= time <= datetime.now(UTC) + FUTURE_SLACK else None
