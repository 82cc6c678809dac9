"""The pages of finished studies, made from scores written here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_a_run_says_how_many_records_users_were_cut_to(load: Any) -> None:
    regime = load("points").regime
    assert [regime({"history": n}) for n in (None, 0, 8)] == ["all", "0", "8"]
    assert [regime({"records": n}) for n in (None, 0, 8)] == ["all", "0", "8"]  # older runs


def test_gains_of_synthetic_records_are_paired_and_scaled(load: Any) -> None:
    def cell(main: str, *scores: float) -> dict[str, Any]:
        return {"main": main, "users": {str(i): {"score": s} for i, s in enumerate(scores)}}

    cells = {
        ("LaMP_3", "personal"): cell("mae", 1.0, 2.0),
        ("LaMP_3", "cdcda"): cell("mae", 0.5, 2.0),
        ("LaMP_2N", "personal"): cell("accuracy", 0.5, 0.5),
        ("LaMP_2N", "cdcda"): cell("accuracy", 0.5, 0.25),
    }
    found = load("cdcda").compare(cells)
    assert set(found) == {"cdcda"}
    assert found["cdcda"]["tasks"]["LaMP_3"]["gain"] == pytest.approx(0.25)
    assert found["cdcda"]["tasks"]["LaMP_2N"]["gain"] == pytest.approx(-0.125)
    # 0.25 of the 4 that scores range over, and -0.125 of 1.
    assert found["cdcda"]["points"]["mean"] == pytest.approx((6.25 - 12.5) / 2)
    low, high = found["cdcda"]["tasks"]["LaMP_3"]["ci95"]
    assert (low, high) == (0.0, 0.5)


def test_the_gate_is_compared_with_every_other_arm(load: Any, tmp_path: Path) -> None:
    def run(name: str, records: int | None, **arms: list[float]) -> Path:
        """A run with LaMP_3 (MAE) and those users' scores under each arm."""
        cells = {}
        for arm, scores in arms.items():
            mean = sum(scores) / len(scores)
            cell = {"main": "mae", "metrics": {"mae": {"mean": mean, "ci95": [mean - 1, mean + 1]}}}
            users = {str(i): {"score": score} for i, score in enumerate(scores)}
            cells[arm.replace("_", "-")] = {"LaMP_3": {**cell, "users": users, "gain": None}}
        (tmp_path / name).mkdir()
        metrics = {"arms": cells, "config": {"records": records}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        events = [
            {"event": "gated", "arm": "pfi", "task": "LaMP_3", "user": u, "weight": weight,
             "k": 2, "gain": 0.5, "tried": 3}
            for u, weight in (("0", 1.0), ("1", 0.5), ("0", 0.5))
        ]  # fmt: skip
        text = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / name / "events.jsonl").write_text(text)
        return tmp_path / name

    module = load("gate")
    shared = [1.0, 1.0, 1.0, 1.0]
    runs = [
        run("all", None, generic=[3.0] * 4, shared=shared, rag_bm25=[0.5, 0.5, 1.03, 1.2],
            pfi=[0.5, 1.0, 1.0, 1.0]),
        run("none", 0, shared=shared, rag_bm25=[1.0] * 4, pfi=shared),
    ]  # fmt: skip
    values, lines = module.results(runs)
    standing = values["standings"]["LaMP_3"]
    assert (standing["other"], standing["best"], standing["best_or_within"]) == (
        "rag-bm25", False, True,
    )  # fmt: skip
    # Of four users with an error of 3 an interval of 2 .. 4 does not reach .81.
    counts = {"generic": 0, "shared": 1, "rag-bm25": 1, "pfi": 1}
    assert values["best_or_within"] == counts
    assert standing["gain"] == pytest.approx((0 - 0.5 + 0.03 + 0.2) / 4)
    # .03 of the 4 that scores range over is less than a point, .2 is more.
    harm = values["harmed"]["rag-bm25"]
    assert harm["harmed"]["mean"] == 0.5 and harm["beyond_a_point"]["mean"] == 0.25
    assert values["harmed"]["pfi"]["harmed"]["mean"] == 0 and "generic" not in values["harmed"]
    assert values["choices"] == {"LaMP_3 pfi": {"weight 0.5, k 2": 2}}
    assert list(values["cold_start"]) == ["0", "all"]
    points = values["cold_start"]["all"]["pfi"]["points"]
    assert points["mean"] == pytest.approx(25 * 0.5 / 4) and points["ci95"][0] == 0
    assert values["cold_start"]["0"]["pfi"]["points"]["mean"] == 0
    text = "\n".join(lines)
    assert "best or within its interval of the best on 1 of 1 tasks" in text
    assert "at most 10 %: yes" in text and "`pfi` is above none of them" in text
    module.plot(values["cold_start"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    _, without = module.results([run("old", 8, shared=shared)])
    assert "No run has the arm `pfi` beside another one." in without


def test_the_lamp_page_counts_what_is_ahead_of_what(load: Any) -> None:
    lamp = load("lamp")

    def cell(metric: str, mean: float, gain: tuple[float, float, float]) -> dict[str, Any]:
        middle, low, high = gain
        return {
            "metrics": {metric: {"mean": mean, "ci95": [mean, mean]}},
            "gain": {"mean": middle, "ci95": [low, high]},
            "harmed": 0.25,
            "n_users": 4,
        }

    none = (0.0, 0.0, 0.0)
    arms = {
        "generic": {"LaMP_3": cell("mae", 2.0, none), "LaMP_4": cell("rouge_1", 0.1, none)},
        "shared": {"LaMP_3": cell("mae", 0.9, none), "LaMP_4": cell("rouge_1", 0.12, none)},
        "rag": {"LaMP_3": cell("mae", 0.7, none), "LaMP_4": cell("rouge_1", 0.1, none)},
        "pfi": {
            "LaMP_3": cell("mae", 1.0, (-0.1, -0.2, -0.05)),
            "LaMP_4": cell("rouge_1", 0.15, (0.03, 0.01, 0.05)),
        },
    }
    # Of an error the smaller is better: 0.8 is beaten by 0.7 only, 0.14 by nobody but pfi.
    scores = {"LaMP_3": {"mean": {"mae": 0.8}}, "LaMP_4": {"first": {"rouge_1": 0.14}}}
    lines = lamp.summary(arms, ["LaMP_3", "LaMP_4"], scores)
    assert "every baseline on 0 of 2 tasks; `shared` or `rag` on 1." in lines[0]
    ahead = next(line for line in lines if line.startswith("- `pfi`"))
    assert "on 1 of 2 tasks; the interval lies above zero on 1, below on 1" in ahead
    assert "harmed: 25.0%" in ahead
    assert "mean over tasks: +50.0% (LaMP_3 +50%, LaMP_4 +50%)" in lines[-1]
