"""The benchmark of forgetting: its groups of users, and its page from a few values."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pfi.datasets.demo import write_demo

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "forgetting"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("forgetting")


def row(person: str, setting: str, rise: float, agreement: float) -> dict[str, Any]:
    losses = {"before": 3.0, "after": 2.5, "text_loss_before": 3.5, "text_loss": 3.5 + rise}
    told = {"setting": setting, "person": person, "records": 12, "seconds": 7.0}
    return {**told, **losses, "agreement": agreement}


def test_the_newest_are_held_back_and_the_long_history_is_of_all(
    bench: Any, tmp_path: Path
) -> None:
    write_demo(tmp_path, seed=1, train_users=2, users=3)
    groups = [*bench.people(tmp_path, ["LaMP_4"], 2, 3)]
    assert [len(group) for group in groups] == [2, 1] and groups[1][0].id == bench.LONG
    for person in groups[0]:
        assert person.newest and person.older
        assert not {e.record_id for e in person.older} & {e.record_id for e in person.newest}
    assert len(groups[1][0].older) > len(groups[0][0].older)


def test_the_page_has_means_and_bounds(bench: Any) -> None:
    rows = [row("a", "x", 0.1, 0.9), row("b", "x", 0.3, 0.5), row(bench.LONG, "x", 0.6, 0.3)]
    users, long = bench.table(rows)[2:]
    assert users.startswith("| 2 users, 12 to 12 records | x | 0.500 | +0.200 | +0.300 | 70 % | 7")
    assert long.startswith("| long, 12 records | x | 0.500 | +0.600")
    lines = bench.bounds(rows)[2:]
    assert "| 0.25 | 2 of 3 | 40 % | 90 % |" in lines and len(lines) == len(bench.BOUNDS)
    assert "on a model" in bench.page(rows, "a model")
