"""`pfi records` and `pfi memory`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.memory.embedders import HashEmbedder
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.records import Provenance, Record

DAY = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A profile with four real records, one of them of another task, and a synthetic one."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: HashEmbedder(32))
    made = create_home()
    texts = ["rain\nover [the] harbour \u001b[31m", "a tea house", "the cup final"]
    records = [
        Record(f"r{n}", "LaMP_4", {"text": text}, f"Head {n}", DAY + timedelta(n), "real", f"s:{n}")
        for n, text in enumerate(texts)
    ]
    seeds = Provenance("t", "write", "w", ("r1", "r2"))
    with made.open_vault() as vault:
        vault.add([*records, Record("o", "LaMP_3", {"text": "fine"}, "5")])
        vault.add([Record("m", "LaMP_4", {"text": "made"}, "M", None, "synthetic", "t", seeds)])
    return made


def pfi(*words: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def ids(home: Home) -> set[str]:
    with home.open_vault() as vault:
        return {record.id for record in vault.find()}


# Records ------------------------------------------------------------------------------


def test_records_are_listed_newest_first() -> None:
    lines = pfi("records").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["m", "o", "r2", "r1", "r0"]
    assert lines[1].split()[1:4] == ["undated", "LaMP_3", "real"]
    assert lines[2].split() == [
        "r2",
        "2024-01-03",
        "LaMP_4",
        "real",
        *["the", "cup", "final", "Head", "2"],
    ]
    assert "rain over [the] harbour" in lines[4] and "\u001b" not in lines[4]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--task", "LaMP_3"], ["o"]),
        (["--limit", "2"], ["m", "o"]),
        (["--source", "s:"], ["r2", "r1", "r0"]),
        (["--search", "TEA"], ["r1"]),
        (["--search", "head", "-n", "1"], ["r2"]),
    ],
)
def test_records_that_are_wanted(flags: list[str], found: list[str]) -> None:
    listed = json.loads(pfi("records", *flags, "--json").stdout)
    assert [entry["id"] for entry in listed] == found
    assert pfi("records", *flags).stdout.count("\n") == len(found)


def test_no_records() -> None:
    assert "no such records" in pfi("records", "--search", "zebra").stderr
    pfi("init", "--profile", "new")
    assert "No records yet" in pfi("records", "--profile", "new").stdout


# Memory -------------------------------------------------------------------------------


def test_memory_status_before_and_after_the_first_search() -> None:
    assert "0 of 4 real records" in pfi("memory", "status").stdout
    pfi("memory", "search", "tea")
    status = json.loads(pfi("memory", "status", "--json").stdout)
    assert (status["records"], status["indexed"], status["vectors"]) == (4, 4, 4)
    assert status["tasks"] == {"LaMP_3": 1, "LaMP_4": 3} and status["bytes"] > 0
    shown = pfi("memory", "status").stdout
    assert "hash-32" in shown and "4 of 4 real records, 4 with a vector" in shown


def test_memory_search_shows_what_is_found_best_first(home: Home) -> None:
    found = pfi("memory", "search", "a house for tea", "-k", "1").stdout
    assert found.split()[0] == "r1" and found.count("\n") == 1
    recent = json.loads(pfi("memory", "search", "tea", "--how", "recent", "--json").stdout)
    assert [entry["id"] for entry in recent] == ["r2", "r1", "r0"]
    assert pfi("memory", "search", "x", "--task", "LaMP_3").stdout.split()[0] == "o"
    assert "holds no records of task LaMP_1" in pfi("memory", "search", "x", "-t", "LaMP_1").stdout
    assert open_home().config.search == {}


def test_memory_search_by_meaning_needs_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: None)
    assert "sentence model" in pfi("memory", "search", "tea", "--how", "dense", code=2).stderr
    assert "found by words only" in pfi("memory", "status").stdout


def test_memory_rebuild(home: Home) -> None:
    assert "4 records are indexed." in pfi("memory", "rebuild").stdout
    home.memory_file.write_bytes(b"noise")
    assert "4 records are indexed." in pfi("memory", "rebuild").stdout


def test_a_bar_is_shown_only_while_new_records_are_indexed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from contextlib import contextmanager

    from rich.progress import Progress

    bars: list[Progress] = []

    @contextmanager
    def silent(*, bar: bool) -> Any:
        bars.append(Progress(disable=True))
        yield bars[-1]

    monkeypatch.setattr("pfi.cli.memory.progress", silent)
    pfi("memory", "search", "tea")
    (task,) = bars[0].tasks
    assert (task.completed, task.total) == (4, 4)
    pfi("memory", "search", "tea")
    assert not bars[1].tasks
