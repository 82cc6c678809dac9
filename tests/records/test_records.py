"""Records and histories: time order, splits that leak no future, errors that name the record."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import DataError
from pfi.records import History, Record, parse_time

START = datetime(2024, 1, 1, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=1))


def record(key: str, day: int | None = None, text: str = "some text") -> Record:
    time = None if day is None else START + timedelta(days=day)
    return Record(key, "LaMP_3", {"text": text}, "4", time)


def history(days: list[int] | list[None]) -> History:
    return History("ann", [record(str(n), day) for n, day in enumerate(days)])


#: Few different days, so that equal times are common; or no times at all.
DAYS = st.one_of(st.lists(st.integers(0, 6), max_size=12), st.lists(st.none(), max_size=12))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("2024", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-03-05", datetime(2024, 3, 5, tzinfo=UTC)),
        (" 2024-03-05T10:00:00+01:00 ", datetime(2024, 3, 5, 9, tzinfo=UTC)),
        ("2024-03-05T10:00:00Z", datetime(2024, 3, 5, 10, tzinfo=UTC)),
        (86400, datetime(1970, 1, 2, tzinfo=UTC)),
        (0.5, datetime(1970, 1, 1, 0, 0, 0, 500000, tzinfo=UTC)),
        (date(2024, 3, 5), datetime(2024, 3, 5, tzinfo=UTC)),
        (datetime(2024, 3, 5, 1), datetime(2024, 3, 5, 1, tzinfo=UTC)),
        (datetime(2024, 3, 5, 1, tzinfo=BERLIN), datetime(2024, 3, 5, tzinfo=UTC)),
    ],
)
def test_times(value: object, expected: datetime | None) -> None:
    found = parse_time(value)  # type: ignore[arg-type]
    assert found == expected
    assert found is None or found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value",
    ["soon", " ", True, 1e300, float("nan"), "2024-13-01", "0001-01-01T00:00:00+05:00"],
)
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(ValueError):
        parse_time(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"id": ""}, "needs an id"),
        ({"id": 7}, "needs an id"),
        ({"input": {"text": 4}}, "field 'text' is not text"),
        ({"input": {4: "text"}}, "field 4 is not text"),
        ({"output": None}, "the output is not text"),
        ({"input": {"text": " "}, "output": "\n"}, "holds no text"),
        ({"time": datetime(2024, 1, 1)}, "no zone"),
        ({"time": datetime(1, 1, 1, tzinfo=BERLIN)}, "outside the years"),
        ({"input": {"text": "a\ud800"}}, "not valid Unicode"),
        ({"input": {"a\udfff": "text"}}, "not valid Unicode"),
        ({"output": "\udc00"}, "not valid Unicode"),
        ({"source": "\udc80"}, "not valid Unicode"),
    ],
)
def test_errors_name_the_record(change: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        replace(record("r17", 0), **change)
    assert what in str(caught.value)
    assert str(change.get("id", "r17")) in str(caught.value)


def test_a_bad_id_gives_a_message_that_can_be_printed() -> None:
    with pytest.raises(DataError, match="not valid Unicode") as caught:
        record("x\ud800y")
    assert r"x\ud800y" in str(caught.value).encode().decode()


def test_a_record_is_fixed() -> None:
    fields = {"text": "before"}
    made = Record("1", "LaMP_3", fields, "4")
    fields["text"] = "after"
    assert made.input["text"] == "before"
    with pytest.raises(TypeError):
        made.input["text"] = "after"  # type: ignore[index]
    with pytest.raises(AttributeError):
        made.output = "5"  # type: ignore[misc]


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda r: pickle.loads(pickle.dumps(r)),
        lambda r: replace(r, output=r.output),
    ],
)
def test_copies_are_equal(copied) -> None:  # type: ignore[no-untyped-def]
    made = Record("1", "LaMP_3", {"text": "é🙂"}, "4", START, "synthetic", "git:x")
    again = copied(made)
    assert again == made
    assert (again.origin, again.source, again.time) == ("synthetic", "git:x", START)
    assert again.content_hash == made.content_hash
    one = History("ann", [made])
    assert pickle.loads(pickle.dumps(one)) == one


def test_content_hash() -> None:
    made = Record("1", "t", {"a": "x", "b": "y"}, "z", START, source="here")
    same = Record("2", "t", {"b": "y", "a": "x"}, "z", START.astimezone(BERLIN), source="there")
    assert same.content_hash == made.content_hash
    others = [
        replace(made, task="u"),
        replace(made, input={"a": "x"}),
        replace(made, input={"a": "y", "b": "x"}),
        replace(made, output="zz"),
        replace(made, time=None),
        replace(made, time=START + timedelta(microseconds=1)),
        replace(made, origin="synthetic"),
    ]
    assert len({r.content_hash for r in [made, *others]}) == 1 + len(others)


def test_order_is_by_time_and_stable() -> None:
    assert [r.id for r in history([3, 1, 3, 1])] == ["1", "3", "0", "2"]
    assert [r.id for r in history([None, None, None])] == ["0", "1", "2"]
    assert history([3, 1])[0].id == "1"
    assert isinstance(history([3, 1])[:1], History)


def test_a_history_refuses_what_it_cannot_order() -> None:
    with pytest.raises(DataError, match=r"record b: user ann .* 1 without"):
        History("ann", [record("a", 1), record("b")])
    with pytest.raises(DataError, match="record a: user ann has two records"):
        History("ann", [record("a", 1), record("a", 2)])


def test_before_is_strict() -> None:
    dated = history([1, 2, 2, 3])
    assert [r.id for r in dated.before(START + timedelta(days=2))] == ["0"]
    assert [r.id for r in dated.before(START + timedelta(days=2, seconds=1))] == ["0", "1", "2"]
    assert len(dated.before(None)) == 4
    assert len(history([None, None]).before(START)) == 2
    assert len(dated.before(START)) == 0
    assert (dated.dated, history([None]).dated, History("ann").dated) == (True, False, False)


@settings(max_examples=150, deadline=None)
@given(DAYS, st.one_of(st.integers(-2, 15), st.floats(0, 0.99)))
def test_a_split_leaks_no_future_and_loses_nothing(
    days: list[int] | list[None], holdout: float | int
) -> None:
    whole = history(days)
    older, newer = whole.split(holdout)
    assert [*older, *newer] == [*whole]
    assert bool(len(older)) == bool(len(whole))
    wanted = round(len(whole) * holdout) if isinstance(holdout, float) else max(holdout, 0)
    assert len(newer) <= wanted
    if whole.dated:
        assert all(a.time < b.time for a in older for b in newer)  # type: ignore[operator]
    if len(set(days)) == len(days) or not whole.dated:
        assert len(newer) == min(wanted, max(len(whole) - 1, 0))


def test_a_split_by_hand() -> None:
    assert [len(part) for part in history([1, 2, 3, 4]).split(0.25)] == [3, 1]
    assert [len(part) for part in history([1, 2, 3, 4]).split(1)] == [3, 1]
    assert [len(part) for part in history([1, 2, 2, 2, 3]).split(2)] == [4, 1]
    assert [len(part) for part in history([1, 1, 1]).split(2)] == [3, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=12), st.integers(-1, 7))
def test_before_divides_a_dated_history(days: list[int], day: int) -> None:
    time = START + timedelta(days=day)
    older = [r.id for r in history(days).before(time)]
    assert sorted(older) == sorted(str(n) for n, d in enumerate(days) if d < day)
    times = [r.time for r in history(days)]
    assert times == sorted(times)  # type: ignore[type-var]
