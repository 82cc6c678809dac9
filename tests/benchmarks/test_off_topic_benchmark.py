"""The benchmark of questions that are off topic: its notes, and its page from a few values."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pfi.memory.index import Memory
from pfi.memory.off_topic import fit_floor, general_questions, likeness
from pfi.tasks import get_task

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "backbones"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("off_topic")


def test_the_notes_are_different_and_its_questions_are_not_the_packaged_ones(bench: Any) -> None:
    notes = bench.records_of("instruction")
    assert len({r.input["instruction"] for r in notes}) == len(notes) == bench.TRAINED + bench.ASKED
    assert notes == bench.records_of("instruction")
    titles = bench.records_of("note_title")
    assert all(r.output and r.output in r.input["text"] for r in titles)
    assert len({*bench.OFF_TOPIC}) == 40 and not {*bench.OFF_TOPIC} & {*general_questions()}


def test_the_floor_tells_them_apart(bench: Any) -> None:
    task, notes = get_task("instruction"), bench.records_of("instruction")
    memory = Memory(task, notes[: bench.TRAINED])
    floor = fit_floor(memory, task)
    away = [likeness(memory, floor, question).off_topic for question in bench.OFF_TOPIC]
    later = [task.query_text(r.input) for r in notes[bench.TRAINED :]]
    kept = [not likeness(memory, floor, question).off_topic for question in later]
    assert sum(away) >= 36 and sum(kept) >= 38


def test_the_page_has_a_line_a_kind_and_search(bench: Any) -> None:
    off = {"same": True, "same without floor": False, "turned away": True, "likeness": 0.0}
    on = {"backbone": 4.0, "always": 1.0, "floored": 1.3, "turned away": False, "likeness": 1.0}
    done = {"instruction|none|off|a": off, "instruction|none|on|b": on}
    (line,) = bench.table(done)[2:]
    assert "| 1 of 1 | 0 of 1 | 1 of 1 | 4.00 | 1.00 | 1.30 | 90% |" in line
