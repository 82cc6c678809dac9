"""The public pool, made from a corpus of a few documents."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
