"""The functions of the benchmark of many users on a tiny backbone; no figure is judged."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "personalize"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def spec(backbone_folder: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    rows = [[f"a quick brown fox {word} " * 12, "good"] for word in ("book", "film", "dog", "lazy")]
    people = [
        {"train": rows[:2], "held_back": rows[2:]},
        {"train": rows[2:], "held_back": rows[:2]},
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"people": people, "others": rows}), encoding="utf-8")
    return {
        "model": "tiny", "model_path": str(backbone_folder("llama")), "data": str(data),
        "scenario": "1x64", "precision": "float32", "layers": "all", "batch_size": 1,
        "max_length": 64, "epochs": 2.0, "examples": 2, "people": 2, "jobs": 2, "seed": 0,
        "threads": 1, "device": "cpu", "limit_seconds": 0.0, "decode_seconds": 0.0,
        "working_set": 1, "repeat": 0,
    }  # fmt: skip


def test_training_measures_the_same_work(load: Any, spec: dict[str, Any]) -> None:
    measures = load("personalize_measures")
    found = {
        method: measures.measure({**spec, "kind": "train", "method": method, "working_set": users})
        for method, users in (("trainer", 1), ("loop", 1), ("bank", 2))
    }
    for method, row in found.items():
        assert row["steps"] == 4, method
        assert row["peak_bytes"] >= row["loaded_bytes"] > 0
        assert row["held_back_loss"] < row["held_back_loss_before"]
        assert row["ms_per_user_step"] * 4 == pytest.approx(1000 * row["wall_s_per_user"])
        assert row["adapter_bytes"] == found["loop"]["adapter_bytes"]
    # The plain loop and the engine have the same seed, order and rates; the Trainer other rates.
    assert found["trainer"]["train_loss"] == pytest.approx(found["loop"]["train_loss"], rel=0.1)
    assert found["bank"]["train_loss"] == pytest.approx(found["loop"]["train_loss"], abs=1e-4)
    assert found["bank"]["held_back_loss"] == pytest.approx(
        found["loop"]["held_back_loss"], abs=1e-4
    )


def test_task_stage_is_merged(load: Any, spec: dict[str, Any], tmp_path: Path) -> None:
    measures = load("personalize_measures")
    stage = {**spec, "kind": "stage", "steps": 12, "to": str(tmp_path / "staged")}
    first, last = measures.measure(stage)["losses"]
    assert last < first
    example = measures.read_people(spec)[0]["held_back"]
    before, after = (
        measures.held_back_loss(measures.load({**spec, "model_path": path}), example, None, 64)
        for path in (spec["model_path"], stage["to"])
    )
    assert after < before


def test_decoding_is_of_full_length(
    load: Any, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = load("personalize_measures")
    from pfi.models.backbone import Backbone

    monkeypatch.setattr(measures, "DECODE_NEW", 5)
    before = Backbone.end_ids
    for method in ("base", "hf", "peft", "bank"):
        row = measures.measure({**spec, "kind": "decode", "method": method, "batch": 3})
        assert row["tokens_per_s"] > 0, method
    assert Backbone.end_ids is before


def test_limit_counts_the_needed_products(load: Any, spec: dict[str, Any]) -> None:
    points = [["all", 1], ["last:1", 2]]
    whole, upper = load("personalize_measures").measure(
        {**spec, "kind": "limit", "points": points}
    )["points"]
    # Two blocks of seven layers and the head; nothing is below the first block's q, k and v.
    assert len(whole["products"]) == 15
    assert sum(p["backward"] for p in whole["products"]) == 12
    assert {p["rows"] for p in whole["products"][:-1]} == {64}
    lower = [p for p in upper["products"] if p["share"] != 1.0]
    assert len(lower) == 7 and not any(p["backward"] for p in lower)
    assert {p["share"] for p in lower} == {0.5} and {p["rows"] for p in lower} == {128}


def result(method: str, users: int, ms: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "embedded", "precision": "float32", "scenario": "1x64", "method": method,
        "working_set": users, "layers": "all", "people": 2, "examples": 4, "steps": 4,
        "device": "cpu", "ms_per_user_step": ms, "cpu_s_per_user": 1.0, "wall_s_per_user": 1.0,
        "users_per_hour": 1.0, "peak_bytes": 2**30, "loaded_bytes": 2**29, "train_loss": 1.0,
        "adapter_bytes": 2**20, "held_back_loss": 1.0, "held_back_loss_before": 2.0,
    } | more  # fmt: skip


def test_page_and_bars(load: Any, tmp_path: Path) -> None:
    module = load("personalize_page")
    results = [result("trainer", 1, ms) for ms in (50.0, 60.0, 900.0)]
    results += [result("loop", 1, 29.0), result("limit", 16, 5.0)]
    results += [result("bank", 16, 10.0, peak_bytes=2**30 + 65 * 2**20, held_back_loss=1.01)]
    results += [result("bank", 64, 1.0, error="ValueError: no", cpu_s_per_user=0.1)]
    bars = {bar.name: bar for bar in module.bars(module.medians(results))}
    assert bars["1x64, K=16, over (a)"][2:] == ("6.00x", True)  # the median, not the mean
    assert bars["1x64, K=16, over (b)"][2:] == ("2.90x", False)
    assert bars["1x64, K=16, all layers: held-back loss like (a)'s"].passed is True
    assert bars["1x64, K=16: peak memory above (a)'s"][1:] == ("<= 64.000 MiB", "65.000 MiB", False)
    assert bars["4x64, K=16, over (a)"].passed is None
    page = {
        "command": "c", "machine": {}, "versions": {}, "threads": 1, "seed": 0, "quick": False,
        "epochs": 2.0, "stage_steps": 3, "held_back": 2, "data": {}, "results": results,
        "models": {"embedded": {"parameters": 7e6, "blocks": 6}},
        "scenarios": {"1x64": {"batch_size": 1}},
    }  # fmt: skip
    text = module.write_page(page, tmp_path / "page")
    assert "| bank, K=16 | 10.00 | 6.00 | 2.90 |" in text and "| 5.00 | 2.00 |" in text
    assert "1 measurements got less" in text and "K=64, all: ValueError: no" in text
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_people_have_full_rows_and_whole_runs_are_planned(load: Any, tmp_path: Path) -> None:
    module = load("personalize")
    path, source = module.make_data("1x64", tmp_path, None, 3, 0)
    assert "MADE-UP" in source
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [len(p["train"]) for p in found["people"]] == [12] * 3
    own = {tuple(row) for p in found["people"] for part in p.values() for row in part}
    assert len(found["others"]) > 100 and not own & set(map(tuple, found["others"]))
    args = module.parse(["--to", "x", "--models", "m135", "--scenarios", "LaMP_5", "1x64"])
    models = {"m135": {"paths": {"LaMP_5": "p", "1x64": "p"}, "blocks": 30}}
    specs = [
        s for group in module.groups(args, models, {"LaMP_5": path, "1x64": path}) for s in group
    ]
    long = {s["working_set"] for s in specs if s["scenario"] == "LaMP_5"}
    short = {s["working_set"] for s in specs if s["scenario"] == "1x64"}
    assert long == {1, 4, 16} and short == {1, 4, 16, 64}
    assert {s["layers"] for s in specs} == {"all", "last:10"}
    assert {s["scenario"] for s in specs if s["precision"] == "bfloat16"} == {"1x64", "decode"}
