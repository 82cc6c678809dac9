"""The memory benchmark's data, peers and figures on few records; no latency is judged."""

from __future__ import annotations

import importlib
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.memory.embedders import HashEmbedder
from pfi.memory.ranking import fuse

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "memory"
RECORDS, ADDED, QUESTIONS = 80, 10, 6


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def source(load: Callable[[str], Any], tmp_path: Path) -> Path:
    data = load("memory_data")
    data.prepare(
        tmp_path / "data",
        data.made_up(RECORDS + ADDED + QUESTIONS, 0),
        records=RECORDS,
        added=ADDED,
        questions=QUESTIONS,
        embedder=HashEmbedder(32),
        cache=tmp_path / "cache",
        seed=0,
    )
    return tmp_path / "data"


def serve(load: Any, monkeypatch: pytest.MonkeyPatch, *arguments: Any, commands: str) -> list[Any]:
    """What a peer answers, in this process."""
    answers = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(commands))
    monkeypatch.setattr("sys.stdout", answers)
    load("memory_peers").serve(*arguments)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@pytest.mark.parametrize("name", ["pfi bm25", "pfi dense", "FTS5", "numpy, exact"])
def test_a_peer_finds_what_is_there_and_nothing_deleted(
    load: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "FTS5":  # the whole ranking, to see which records it holds
        monkeypatch.setattr(load("memory_peers").Fts5, "limit", 1000)
    commands = f"build\nopen\nask 0 {QUESTIONS}\nadd\ndelete\n"
    if name != "pfi bm25" and name != "pfi dense":  # pfi's memory is of the history it was given
        commands += f"ask 0 {QUESTIONS}\n"
    folder = tmp_path / "index"
    built, _, asked, *changed = serve(
        load, monkeypatch, name, source, folder, RECORDS, commands=commands
    )
    assert built["bytes"] > 1000
    assert {n for ids in asked["found"] for n in ids} <= set(range(RECORDS))
    if name in ("pfi dense", "numpy, exact"):
        expected = list(load("memory_data").exact(source, RECORDS, 10, QUESTIONS))
        assert load("memory").recall(asked["found"], expected) > 0.95
    if len(changed) > 2:
        deleted = set(load("memory_peers").Data(source, RECORDS).deleted)
        after = {n for ids in changed[2]["found"] for n in ids}
        assert deleted and not deleted & after


def test_words_are_ranked_as_by_plain_fts5(
    load: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = f"build\nopen\nask 0 {QUESTIONS}\n"
    ours, theirs = (
        serve(load, monkeypatch, name, source, tmp_path / name, RECORDS, commands=commands)[2]
        for name in ("pfi bm25", "FTS5")
    )
    # pfi fills up with the latest where fewer than ten fit.
    pairs = zip(ours["found"], theirs["found"], strict=True)
    assert all(set(b) <= set(a) for a, b in pairs)


def test_passages_are_different_and_short(load: Any, tmp_path: Path) -> None:
    data = load("memory_data")
    lines = [json.dumps({"text": f"{n} " + "word " * 100}) for n in (1, 2, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with lzma.open(tmp_path / "b.jsonl.xz", "wt") as file:
        file.write(lines[0] + "\n" + json.dumps({"text": "3 " + "other " * 20}))
    texts = data.passages(tmp_path, 0)
    assert len(set(texts)) == len(texts) == 5  # two beginnings, what follows them (twice), "3"
    assert max(len(text.split()) for text in texts) == 40
    assert data.passages(tmp_path, 0) == texts != data.passages(tmp_path, 1)


def test_made_vectors_are_near_their_own(load: Any, tmp_path: Path) -> None:
    data = load("memory_data")
    assert data.made_up(50, 1) == data.made_up(50, 1) != data.made_up(50, 2)
    own = HashEmbedder(384).embed(data.made_up(50, 1))
    vectors = data.spread(own, 120, 0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[:50], own)
    cosines = (vectors[50:100] * own).sum(1)
    assert cosines.min() > 0.7 and cosines.mean() == pytest.approx(0.8, abs=0.02)


def test_figures(load: Any) -> None:
    bench = load("memory")
    one, other = list(range(10, 60)), list(range(40, 0, -1))
    expected = [place for place, _ in fuse([(1.0, one), (1.0, other)])][:10]
    assert bench.fused(one, other) == expected
    assert bench.recall([[1, 2], [3, 4]], [[1, 2], [4, 5]]) == 0.75
    slow = {"clock": [0.002] * 10, "cpu": [0.001] * 10}
    fast = {"clock": [0.001] * 9 + [0.003], "cpu": [0.002] * 10}
    found = bench.latency([slow, fast])
    assert found["first_p95"] == pytest.approx(2.0)
    assert (found["p95"], found["cpu_p95"]) == pytest.approx((2.0, 1.0))


def test_the_page_shows_every_row(load: Any, tmp_path: Path) -> None:
    bench = load("memory")
    change = {"clock": 0.2, "cpu": 0.1, "bytes": 1_000_000}
    row = {
        "build": change, "open": 0.01, "p50": 1.0, "p95": 2.0, "cpu_p50": 0.5, "cpu_p95": 1.5,
        "first_p95": 3.0,
    }  # fmt: skip
    rows = {
        "pfi dense": {**row, "recall": 0.99, "add": change, "delete": {}},
        "pfi hybrid": row,
        "MiniLM alone": {**row, "add": change},
    }
    names = ["command", "date", "seed", "threads", "texts", "passes", "questions", "width"]
    setting = {**dict.fromkeys(names, "x"), "embedder": "e", "versions": "v"}
    results = {"setting": setting, "records": {"1000": rows}}
    page = bench.page(results)
    figures = "0.1 | 1.0 | 10 | 1.00 | 2.00 | 0.50 | 1.50 | 3.00 | 0.990 | 100 | build anew"
    assert f"| pfi dense | {figures} |" in page
    assert "| pfi hybrid |  |  | 10 |" in page
    bench.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
