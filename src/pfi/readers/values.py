"""Values of foreign files as the text, time and fields of a record.

What does not fit raises `Unusable` with a short reason; the reader decides whether that is a
counted skip or an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pfi.records import parse_time

if TYPE_CHECKING:
    from pfi.tasks.task import Task

#: Clocks and time zones differ; what is later than this from now is in the future.
FUTURE_SLACK = timedelta(days=1)


class Unusable(Exception):
    """Why a value cannot be used, in a few words; `empty` if it is there but holds nothing."""

    def __init__(self, reason: str, *, empty: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.empty = reason, empty


def as_text(value: Any, name: str) -> str:
    """A value as text: None is empty, 4 and 4.0 are "4".

    Raises:
        Unusable: it is a truth value, a list, an object, not a finite number, or not Unicode.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Unusable(f"{name} is not valid Unicode") from None
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{name} is not text")
    if not math.isfinite(value):
        raise Unusable(f"{name} is not a finite number")
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def as_id(value: Any, name: str) -> str:
    """A value as an id: text that is not blank, or a whole number.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, float):
        raise Unusable(f"{name} is not text or a whole number")
    text = as_text(value, name).strip()
    if not text:
        raise Unusable(f"{name} is empty")
    return text


def as_time(value: Any, name: str = "time") -> datetime | None:
    """A value as a time in UTC; None if it is empty.

    Unix times may be text, as they are in CSV files.

    Raises:
        Unusable: it is not a time.
    """
    if isinstance(value, str):
        value = value.strip()
        if re.fullmatch(r"-?\d{9,11}(\.\d*)?", value, re.ASCII):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Unusable(f"{name} is not understood")
    try:
        return parse_time(value)
    except (ValueError, OverflowError):
        raise Unusable(f"{name} is not understood") from None


def past_time(value: Any, name: str = "time") -> datetime | None:
    """Like `as_time`, for what has happened.

    Raises:
        Unusable: it is not a time, or it is later than now by more than a day.
    """
    time = as_time(value, name)
    if time is not None and time > datetime.now(UTC) + FUTURE_SLACK:
        raise Unusable(f"{name} is in the future")
    return time


def needed_keys(task: Task) -> list[str]:
    """The keys without which a record of the task is of no use: those of its item template."""
    return list(dict.fromkeys(re.findall(r"\{(\w+)\}", task.item)))


def all_keys(task: Task) -> list[str]:
    """The keys that a record of the task may have: inputs, output, and what retrieval searches."""
    output = [task.output] if task.output else []
    return list(dict.fromkeys([*task.inputs, *output, *task.document, *needed_keys(task)]))


def record_fields(task: Task, values: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The input fields and the output of a record of the task.

    Raises:
        Unusable: a needed key is absent or `empty`, or a value is not text.
    """
    needed = needed_keys(task)
    fields: dict[str, str] = {}
    for key in all_keys(task):
        if key not in values and key in needed:
            raise Unusable(f"{key} is missing")
        text = as_text(values.get(key), key)
        if text.strip():
            fields[key] = text
        elif key in needed:
            raise Unusable(f"{key} is empty", empty=True)
    output = fields.pop(task.output, "") if task.output else ""
    return fields, output
