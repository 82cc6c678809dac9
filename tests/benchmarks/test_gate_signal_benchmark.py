"""The benchmark of the gate's signals: its figures and page from made-up gains."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.evaluate.study.config import StudyConfig
from pfi.gate.choices import choices
from pfi.gate.prior import Tried

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gate"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gate_signal")


def person(bench: Any, rng: Any, own: float, noise: float) -> Any:
    """A user to whom each choice gains so much, on records with noise in the metric alone."""
    count = len(choices(bench.GATE)) - 1

    def tried(questions: int, noise: float) -> Tried:
        gains = own + noise * rng.standard_normal((questions, count))
        likely = 2 * own + 0.01 * rng.standard_normal((questions, count))
        zero = np.zeros((questions, 1))
        return Tried(np.hstack([zero, gains]), np.zeros(questions), np.hstack([zero, likely]))

    return bench.Person(tried(16, noise), tried(40, noise))


def test_the_signal_that_tells_of_later_gains_is_told_apart(bench: Any) -> None:
    rng = np.random.default_rng(0)
    people = [person(bench, rng, own, 0.5) for own in rng.normal(0, 0.1, 40)]
    found = bench.figures({"LaMP_4": people})
    by = {(r["records"], r["prior"], r["signal"]): r for r in found["rows"] if "signal" in r}
    assert len(by) == 4 * 2 * 3 and {r["users"] for r in by.values()} == {40}
    for count in (2, 4):
        metric, both = (by[count, "others", signal]["gain"] for signal in ("metric", "both"))
        assert both > metric + 1
    ranks = [r["rank_correlation"] for r in found["rows"] if "signal" not in r]
    assert all(rank["likelihood"] > rank["metric"] + 0.2 for rank in ranks)
    config = StudyConfig(data=Path("lamp"), split="dev")
    page = bench.page({"LaMP_4": people}, found["rows"], config)
    assert "LaMP_4 40" in page and page.count("| both |") == 8


def test_the_newest_records_are_what_fewer_are_cut_to(bench: Any) -> None:
    gains = np.arange(6.0)[:, None] * [0, 1]
    one = Tried(gains, np.zeros(6), 10 * gains)
    assert bench.as_signal(one, "metric", 2).gains[:, 1].tolist() == [4, 5]
    both = bench.as_signal(one, "both", 2)
    assert both.likelier.tolist() == [[0, 40], [0, 50]]
    assert bench.as_signal(one, "likelihood", 3).gains[:, 1].tolist() == [30, 40, 50]


def test_a_scale_counts_as_a_share_of_its_length(bench: Any) -> None:
    assert bench.points(bench.get_task("LaMP_3"), np.array([0.4]))[0] == pytest.approx(10)
    assert bench.points(bench.get_task("LaMP_4"), np.array([0.4]))[0] == pytest.approx(40)
