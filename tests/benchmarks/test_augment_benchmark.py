"""The public pool, made from a corpus of a few documents; what a GGUF teacher is asked."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pfi.augment.teachers.teacher import Reply, Unusable, Usage
from pfi.datasets.lamp import open_users
from pfi.tasks import get_task

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "augment"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_a_corpus_becomes_a_pool_that_studies_can_read(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [
        ("news/huffpost", "A storm is coming\n\nIt will rain a lot."),
        ("news/huffpost", "no body"),
        ("email/dpdk", "Subject: net/x: fix leak\n\nThe leak was here."),
        ("papers/vis", "On trees and graphs\n\nWe draw trees."),
        ("movies/tmdb", "The film itself\n\nA film about a film."),
        ("reviews/goodreads", "I liked this book a lot, and I would read it again."),
        ("tweets/pan15", "one two three four five\nsecond line"),
        ("books/other", "Not used\n\nat all."),
    ]
    with lzma.open(tmp_path / "a.jsonl.xz", "wt", encoding="utf-8") as file:
        for source, text in documents:
            file.write(json.dumps({"source": source, "text": text}) + "\n")
    out = tmp_path / "pool"
    monkeypatch.setattr(sys, "argv", ["x", "--corpus", str(tmp_path), "--out", str(out)])
    load("public_pool").main()
    counts = {}
    for folder in out.iterdir():
        (user,) = open_users(out, get_task(folder.name), "pool")
        counts[folder.name] = len(user.history)
    assert counts == dict.fromkeys(counts, 1) and len(counts) == 8


def test_the_gguf_teacher_is_asked_what_write_asks(load: Any, tmp_path: Path) -> None:
    bench = load("gguf_teacher")
    profile = [
        {"id": f"1{i}", "text": f"It rained on day {i}.", "title": f"Rain {i}"} for i in range(6)
    ]
    (tmp_path / "LaMP_4").mkdir()
    question = {"id": "10001", "user_id": "1", "input": "Generate a headline", "profile": profile}
    questions = tmp_path / "LaMP_4" / "dev_questions.json"
    questions.write_text(json.dumps([question]), encoding="utf-8")
    calls = bench.calls_of(tmp_path, ["LaMP_4"], 1, 4, 12)
    assert len(calls) > 1 and {call.temperature for call in calls} == {0}
    assert {len(call.material.records) for call in calls} == {4}
    same = Reply('{"records": [{"text": "A", "title": "B"}]}', Usage(100, 20))
    assert bench.drafts_of(calls[0], same) == [({"text": "A"}, "B")]
    assert bench.drafts_of(calls[0], Unusable("cut")) is None
    run = bench.run_of([same, Unusable("cut", Usage(5, 5))], 2.0, 5.0, 0.5)
    assert (run.prompt, run.written, run.unusable) == (105, 25, {"cut": 1})
    found = {name: asdict(run) for name in ("pfi, in process", "llama.cpp's server")}
    options = {"calls": 2, "equal": 1, "same_drafts": 1, "model": "m", "tasks": ["LaMP_4"]}
    text = bench.page({**found, **options, "users": 1, "records": 4, "threads": 1}, "python x")
    assert "| 50% | 25 | 5.0 | 1 x cut |" in text
