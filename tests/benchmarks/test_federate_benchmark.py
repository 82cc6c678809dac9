"""The federation benchmark's simulations compute the same on few clients; nothing is timed."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "federate"
CLIENTS, STEPS = 5, 2


@pytest.fixture(scope="module")
def load() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module


@pytest.fixture(scope="module")
def setting(load: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = str(tmp_path_factory.mktemp("setting"))
    made = load("federate_data").Setting("tiny", 2, CLIENTS, STEPS, 0.5, folder)
    made.save()
    return made


def serve(load: Any, setting: Any, name: str, *commands: str) -> list[dict[str, float]]:
    """What a peer answers, in this process."""
    answers = io.StringIO()
    lines = io.StringIO("".join(f"{command}\n" for command in commands))
    load("federate_peers").serve(name, setting, lines, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def after_rounds(load: Any, setting: Any, name: str, folder: Path, *kinds: str) -> Any:
    """The factors before and after rounds of these kinds."""
    before, after = folder / "before.npy", folder / "after.npy"
    answers = serve(load, setting, name, f"save {before}", *kinds, f"save {after}")
    assert all(one["clock"] > 0 and one["cpu"] > 0 for one in answers[2 : 2 + len(kinds)])
    return np.load(before), np.load(after)


@pytest.fixture(scope="module")
def bare(load: Any, setting: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return after_rounds(load, setting, "bare loop", tmp_path_factory.mktemp("bare"), *["round"] * 2)


def test_the_bare_loop_is_a_mean_of_steps_by_records(load: Any, setting: Any, bare: Any) -> None:
    """One round again, by finite care: gradients of torch, no optimiser, sums in float64."""
    import torch

    peers = load("federate_peers")
    local = peers.Local(setting)
    first = local.factors()
    np.testing.assert_array_equal(first, bare[0])
    for _ in range(2):
        start = [p.detach().clone() for p in local.parameters.values()]
        total, weight = [torch.zeros_like(p, dtype=torch.float64) for p in start], 0
        for client, person in enumerate(setting.people()):
            now = [p.clone() for p in start]
            for _ in range(STEPS):
                with torch.no_grad():
                    for parameter, value in zip(local.parameters.values(), now, strict=True):
                        parameter.copy_(value)
                loss = local.loss(local.batches[client])
                found = torch.autograd.grad(loss, list(local.parameters.values()))
                now = [p - setting.learning_rate * g for p, g in zip(now, found, strict=True)]
            weight += len(person)
            total = [
                t + len(person) * (n - s).double()
                for t, n, s in zip(total, now, start, strict=True)
            ]
        with torch.no_grad():
            for p, s, t in zip(local.parameters.values(), start, total, strict=True):
                p.copy_(s + (t / weight).float())
    assert abs(bare[1] - bare[0]).max() > 1e-3
    np.testing.assert_allclose(local.factors(), bare[1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("pfi, one at a time", "torch"),
        ("pfi, 32 in a pass", "torch"),
        ("Flower, in process", "flwr"),
        ("pfl", "pfl"),
    ],
)
def test_peers_compute_what_the_bare_loop_does(
    load: Any, setting: Any, bare: Any, tmp_path: Path, name: str, module: str
) -> None:
    pytest.importorskip(module)
    before, after = after_rounds(load, setting, name, tmp_path, *["round"] * 2)
    np.testing.assert_allclose(before, bare[0], atol=1e-7)
    np.testing.assert_allclose(after, bare[1], atol=1e-5)


@pytest.mark.parametrize("name", ["bare loop", "pfi, 32 in a pass"])
def test_an_idle_round_changes_nothing(load: Any, setting: Any, tmp_path: Path, name: str) -> None:
    before, after = after_rounds(load, setting, name, tmp_path, "idle", "idle")
    np.testing.assert_array_equal(before, after)


def test_a_fleet_streams_its_users(load: Any, tmp_path: Path) -> None:
    fleet, data = load("federate_fleet"), load("federate_data")
    fleet.write_users(tmp_path, 6, 0)
    data.tiny_backbone(tmp_path / "tiny", 0)
    found = fleet.run(tmp_path, 6, 4, rounds=1)
    assert found["clients"] == 6 and found["cohort"] == 4
    assert found["peak"] >= found["loaded"] > 1e6


def test_the_page_says_where_the_bar_is_missed(load: Any, tmp_path: Path) -> None:
    bench = load("federate")

    def row(cpu: float, idle: float) -> dict[str, Any]:
        return {
            "cpu": [cpu, 2 * cpu], "idle": [idle, 3 * idle], "clock": [0.5, 1.0],
            "first_clock": 4.0, "peak": 5e8, "difference": 1e-8,
        }  # fmt: skip

    rows = {
        "bare loop": row(8, 0.2),
        "pfl": row(10, 0.8),
        "pfi, one at a time": row(7, 0.5),
        "pfi, 32 in a pass": row(2, 0.3),
    }
    comparison = {"model": "tiny", "clients": 50, "numbers": 2976, "rows": rows}
    about = {"command": "c", "date": "d", "seed": 0, "steps": 2, "versions": "v"}
    fleet = {
        "clients": 9, "cohort": 3, "loaded": 4e8, "peak": 5e8, "update": 5e5, "clock": 1.0,
    }  # fmt: skip
    results = {"setting": about, "comparisons": {"tiny": comparison}, "fleets": [fleet]}
    page = bench.page(results)
    assert "| pfl | 10.00 | 15.00 | +2.00 | 0.80 | 1.60 |" in page
    over = "-1.00 ms over it (pfl +2.00: the bar of a third is met)"
    around = "around the steps +0.30 ms (pfl +0.60: the bar of a third is **missed**)"
    assert f"**pfi, one at a time**: 0.88 of the bare loop's CPU time, {over}; {around}." in page
    assert "around the steps +0.10 ms (pfl +0.60: the bar of a third is met)" in page
    assert "| 9 | 3 | 400 | 500 | 100 | 2 | 1.0 |" in page
    bench.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
