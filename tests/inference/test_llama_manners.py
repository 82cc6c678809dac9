"""llama.cpp takes the threads and the memory that are free, and answers alike with any."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_world import make_engine, make_world, needs_llama

from pfi._util import threads
from pfi.errors import ConfigError
from pfi.inference.engine import Request, Sampling, text_of
from pfi.inference.llama import engine as llama_engine
from pfi.inference.llama.c import Context, Model

pytestmark = needs_llama


@pytest.fixture
def made(backbone_folder: Callable[[str], Path]) -> tuple[Any, Path]:
    return make_world(backbone_folder("llama"), "llama", adapters=0)


def asked(engine: Any, text: str = "a quick brown fox", tokens: int = 40) -> str:
    prompt = engine.prompter.prompt_ids(text)
    return text_of(engine.generate(Request(prompt, sampling=Sampling(max_tokens=tokens))))


def test_threads_are_tried_and_change_no_answer(
    made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_engine(*made) as engine:
        alone = asked(engine)
        assert engine.footprint().threads == 1 and engine._context._choosers is None
    for name in ("OMP_NUM_THREADS", threads.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_choice", threads._Choice())
    monkeypatch.setattr(threads, "physical_cores", lambda: 2)
    monkeypatch.setattr(threads.LoadMeter, "busy", lambda _: 0.0)
    used: list[int] = []
    note = threads.ThreadChooser.note

    def spy(self: Any, count: int, tokens: int, seconds: float) -> None:
        used.append(count)
        note(self, count, tokens, seconds)

    monkeypatch.setattr(threads.ThreadChooser, "note", spy)
    with make_engine(*made, threads=None) as engine:
        assert asked(engine) == alone and asked(engine, tokens=20) in alone
    assert {1, 2} == set(used), "both numbers were tried"


def test_settings_and_a_single_core_are_taken_without_trials(
    made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_choice", threads._Choice())
    monkeypatch.setenv(threads.VARIABLE, "2")
    with make_engine(*made, threads=None) as engine:
        assert engine.footprint().threads == 2 and engine._context._choosers is None
    monkeypatch.delenv(threads.VARIABLE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with make_engine(*made, threads=None) as engine:
        assert engine.footprint().threads == 1 and engine._context._choosers is None


def test_rows_and_length_are_what_the_free_memory_holds(
    made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_engine(*made) as engine:
        taken = engine.footprint()
    assert (taken.rows, taken.length) == (4, 768) and taken.weights > 0
    assert taken.cache == 4 * 768 * (2 * 2 * 2 * 16 * 4)  # layers, both, heads, width, bytes
    free = taken.weights + 2 * taken.cache
    monkeypatch.setattr(llama_engine, "free_memory", lambda: (free, free))
    with make_engine(*made) as engine:
        assert engine.footprint().rows < 4 and asked(engine, tokens=4)
    monkeypatch.setattr(llama_engine, "free_memory", lambda: (taken.weights, free))
    with pytest.raises(ConfigError, match="of memory are free"):
        make_engine(*made)


def test_the_pool_of_threads_sleeps_and_ends_with_its_context(made: tuple[Any, Path]) -> None:
    model = Model(made[1])
    for count in (1, 2):
        context = Context(model, sequences=1, length=64, threads=count)
        assert context._pool, "the structure is laid out as we know it"
        context.decode([(1, 0, 0, True)])
        context.close()
    model.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of GNU's OpenMP")
def test_openmp_is_told_before_it_is_loaded() -> None:
    """Afterwards would be too late: it reads its environment once."""
    code = """
        import ctypes, os
        from pfi.inference.llama.c import library
        lib = library()
        lib.omp_display_env.argtypes = [ctypes.c_int]
        lib.omp_display_env(0)
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP", "KMP"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "omp_display_env" in run.stderr:
        pytest.skip("llama.cpp is built with another OpenMP, or without")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr
