"""Logs of events: a torn line is dropped, a damaged one is named, bytes stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pfi._util.events import JsonLog, find_events, new_event, read_events, read_lines
from pfi.errors import StorageError


def written(path: Path, *events: dict[str, Any]) -> JsonLog:
    log = JsonLog(path, fix="remove it")
    for event in events:
        log.append(event)
    return log


@pytest.mark.parametrize("sync", [False, True])
def test_events_come_back_in_order_and_are_a_line_each(tmp_path: Path, sync: bool) -> None:
    log = JsonLog(tmp_path / "new" / "log.jsonl" if sync else tmp_path / "log.jsonl", sync=sync)
    assert list(log) == []
    events = [new_event("a", text="\u00e9\n"), new_event("b", number=float("inf"))]
    for event in events:
        log.append(event)
    assert list(log) == events == list(read_events(log.path))
    expected = '{"event": "a", "text": "\u00e9\\n"}\n{"event": "b", "number": Infinity}\n'
    assert log.path.read_bytes() == expected.encode()
    log.replace(events[1:])
    assert list(log) == events[1:]


def test_a_text_with_half_a_surrogate_pair_needs_ascii(tmp_path: Path) -> None:
    event = {"id": "\ud800"}
    log = JsonLog(tmp_path / "log.jsonl", ascii=True)
    log.append(event)
    assert list(log) == [event]
    with pytest.raises(UnicodeEncodeError):
        JsonLog(log.path).append(event)
    assert list(log) == [event]


@pytest.mark.parametrize(
    "rest", [b'{"event": "to', b"{\n", b"5\n", b"\xff\n", b'{"event": "refused"}\n']
)
def test_a_last_line_that_is_torn_or_damaged_is_dropped(tmp_path: Path, rest: bytes) -> None:
    log = written(tmp_path / "log.jsonl", {"event": "a"}, {"event": "b"})
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + rest)
    noted = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "refused":
            raise KeyError("arm")
        noted.append(event)

    log.drop_torn(note)
    assert log.path.read_bytes() == whole
    assert noted == [{"event": "a"}, {"event": "b"}]
    JsonLog(tmp_path / "none.jsonl").drop_torn()
    assert not (tmp_path / "none.jsonl").exists()


def test_a_damaged_line_before_others_is_named(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", {"event": "a"}, {"event": "b"})
    whole = log.path.read_bytes()
    for rest in (b'{"event": "c"}\n', b"tor"):
        log.path.write_bytes(whole + b"{\n" + rest)
        with pytest.raises(StorageError, match=r"log\.jsonl, line 3: the line is damaged. remove"):
            log.drop_torn()
        assert log.path.read_bytes() == whole + b"{\n" + rest
        read = read_lines(log.path, dict, start=len(whole) // 2)
        assert next(read) == ({"event": "b"}, len(whole))
        with pytest.raises(StorageError, match="line 3"):
            next(read)


def test_a_reader_goes_on_where_it_ended(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", {"n": 0}, {"n": 1})
    with log.path.open("ab") as file:
        file.write(b'{"n": ')
        file.flush()
        (_, first), (_, second) = read_lines(log.path, dict)
        file.write(b"2}\n")
    numbers = [number for number, _ in read_lines(log.path, lambda e: e["n"], start=second)]
    assert numbers == [2]
    assert [number for number, _ in read_lines(log.path, lambda e: e["n"], start=first)] == [1, 2]


def test_events_of_a_kind_are_found_among_damaged_lines(tmp_path: Path) -> None:
    events = [new_event("a", of="b"), new_event("b"), {"no": "b"}, new_event("b", text='"b"')]
    log = written(tmp_path / "log.jsonl", *events)
    log.path.write_bytes(b'{"event": "b"\n' + log.path.read_bytes())
    found = list(find_events(log.path, "b"))
    assert [event for _, event in found] == [events[1], events[3]]
    with log.path.open("rb") as file:
        for place, event in found:
            file.seek(place)
            assert json.loads(file.readline()) == event
    assert list(find_events(tmp_path / "none", "b")) == []
