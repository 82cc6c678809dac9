"""The secure aggregation benchmark on a few values, so that it cannot rot; no figure is judged."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "secure"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("secure_peers")


def test_both_peers_find_the_mean_of_who_stays(peers: Any) -> None:
    case = peers.Case(clients=6, length=50, dropouts=1, threshold=4)
    runs = [peers.pfi(case)]
    if find_spec("flwr") is not None:
        runs.append(peers.flower(case))
    for run in runs:
        assert run.error < 1e-4 and run.total > 0 and run.sent > 5 * 50 * 4


def test_limbs_and_integers_are_timed(peers: Any) -> None:
    assert peers.sharing(5, 3, True) >= 0 and peers.sharing(5, 3, False) > 0


def test_the_page_has_a_row_for_every_peer(peers: Any) -> None:
    benchmark = importlib.import_module("secure")
    case = peers.Case(5, 20, 1, 4)
    one = benchmark.figures([peers.pfi(case)])
    assert sum(one["stages"].values()) == pytest.approx(one["cpu"])
    text = benchmark.page({
        "setting": {
            "command": "c", "date": "d", "repeats": 1, "cpus": 1, "flwr": "f", "cryptography": "c",
            "machine": {"system": "s", "python": "p"},
        },
        "cases": {"few": {"pfi": one, "other": {**one, "cpu": one["cpu"] * 3}}},
        "cohorts": {"5": {"client": 1, "server": 1, "sent": 1, "integers": 1, "limbs": 1}},
    })  # fmt: skip
    assert "\n| other |" in text and "| 3.0 |" in text
