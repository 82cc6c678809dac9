"""The journeys of large imports, on small sources; no time is judged."""

from __future__ import annotations

import importlib
import json
import mailbox
import sys
from pathlib import Path
from typing import Any

import pytest

from pfi.sources.connectors import detect

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "importers"


@pytest.fixture
def journeys(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PFI_HOME", "")  # it sets it, and so it is put back
    return importlib.import_module("journeys")


def test_the_sources_are_what_they_claim_to_be(journeys: Any, tmp_path: Path) -> None:
    for name, make in journeys.MAKERS.items():
        kind, words = make(tmp_path / name, 0.0005)
        assert detect(Path(words[0])) == kind
    assert len(mailbox.mbox(tmp_path / "mbox.mbox")) > 3
    assert len((tmp_path / "whatsapp.txt").read_text("utf-8").splitlines()) == 50


@pytest.mark.slow
def test_a_killed_import_goes_on(journeys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "results"
    options = ["--folder", str(tmp_path / "f"), "--out", str(out), "--scale", "0.3"]
    monkeypatch.setattr(sys, "argv", ["journeys.py", "--only", "whatsapp", *options])
    journeys.main()
    result = json.loads(out.with_suffix(".json").read_text("utf-8"))["whatsapp"]
    assert result["same"] and 0 < result["killed_at"] <= result["records"]
    assert result["peak"] < 150 and result["states"] > 5
    assert "| whatsapp | 3 MB |" in out.with_suffix(".md").read_text("utf-8")
