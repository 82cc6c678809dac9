"""What a server takes of its machine: threads that can be set, few rows, and both are said."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serve_world import FakeEngine, make_homes
from typer.testing import CliRunner, Result

from pfi._util import threads
from pfi.cli.app import app
from pfi.inference.torch import engine as torch_engine
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home, open_home


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    for name in ("PFI_PROFILE", threads.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_choice", threads._Choice())
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With which rows, and which threads asked for, engines are made."""
    found: list[dict[str, Any]] = []

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            """It ends at once."""

    def make(*_: Any, **options: Any) -> FakeEngine:
        found.append({**options, "threads": threads.asked()})
        return FakeEngine()

    monkeypatch.setattr("pfi.serve.server.make_server", lambda *_: Server())
    monkeypatch.setattr("pfi.profile.answer.engines.make_engine", make)
    return found


def pfi(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.parametrize(
    "words", [["--threads", "2"], ["--set", "threads=2"], ["--engine", "llama.cpp"]]
)
def test_threads_are_set_by_flag_setting_and_profile(
    tmp_path: Path, loaded: list[dict[str, Any]], words: list[str]
) -> None:
    make_homes(tmp_path, ["default"], records=0)
    if words[0] == "--engine":
        home = open_home()
        home.config.threads = 2
        home.save_config()
    pfi("serve", "--port", "0", *words)
    assert loaded == [{"rows": None, "threads": 2}]


@pytest.mark.parametrize("words", [["--threads", "0"], ["--set", "threads=0"]])
def test_no_threads_are_refused(
    tmp_path: Path, loaded: list[dict[str, Any]], words: list[str]
) -> None:
    make_homes(tmp_path, ["default"], records=0)
    assert "threads" in pfi("serve", "--port", "0", *words, code=2).stderr
    assert not loaded


def test_a_server_says_what_it_takes(tmp_path: Path, loaded: list[dict[str, Any]]) -> None:
    make_homes(tmp_path, ["default"], records=0)
    said = pfi("serve", "--port", "0", "--set", "rows=3").stderr
    assert loaded == [{"rows": 3, "threads": None}]
    (line,) = [line for line in said.splitlines() if line.startswith("embedded with torch: ")]
    for part in ("weights 98 MiB", "keys and values up to 360 MiB", "4096 tokens", "threads 1"):
        assert part in line


def test_weights_larger_than_the_free_memory_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_home(root=tmp_path, config=HomeConfig(embedder="none"), lock="file")
    monkeypatch.setattr("pfi._util.memory.free_memory", lambda: (1 << 20, 1 << 30))
    error = pfi("serve", "--port", "0", code=2).stderr
    assert "the weights take" in error and "1 MiB of memory are free" in error


def test_the_torch_engine_bounds_keys_and_values_by_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = EngineChoice.of(HomeConfig())
    with make_engine(choice, tmp_path, rows=None) as engine:  # type: ignore[attr-defined]
        taken = engine.footprint()
    assert taken.rows == 32 and taken.weights > 1 << 20 and taken.threads >= 1
    monkeypatch.setattr(torch_engine, "free_memory", lambda: (8 << 20, 1 << 30))
    with make_engine(choice, tmp_path, rows=None) as engine:  # type: ignore[attr-defined]
        assert engine.footprint().cache == 4 << 20 < taken.cache
