"""Warnings of libraries do not reach people; what concerns them does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A library that warns in every way, as it is imported and later; loaded before pfi's first line.
NOISY = '''
import logging, sys, warnings

class Late:
    """Warns as soon as the command's own modules are loaded."""

    def find_spec(self, name, path=None, target=None):
        if name == "pfi.cli.app":
            warnings.simplefilter("always")  # as some libraries do
            warnings.warn("NOISE of a warning", FutureWarning)
            warnings.warn("NOISE of another", DeprecationWarning)
            logging.getLogger("transformers.models.llama").warning("NOISE of transformers")
            logging.getLogger("huggingface_hub.file_download").warning("NOISE of the hub")
            logging.getLogger("torch.distributed").warning("NOISE of torch")
            logging.getLogger("peft").warning("NOISE of peft")
            logging.getLogger("nobody.knows").warning("NOISE of a stranger")
            logging.getLogger("pfi.serve").warning("of our own")
            logging.getLogger("nobody.knows").error("an error")

sys.meta_path.insert(0, Late())
'''


def pfi(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(NOISY)
    environment = {**os.environ, "PYTHONPATH": str(folder), **variables}
    for name in ("PYTHONWARNINGS", "PFI_DEBUG"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "pfi.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.mark.parametrize("variables", [{}, {"PYTHONWARNINGS": "always"}, {"PFI_DEBUG": "0"}])
def test_no_warning_of_a_library_is_shown(tmp_path: Path, variables: dict[str, str]) -> None:
    run = pfi(tmp_path, "--version", **variables)
    assert run.returncode == 0 and run.stdout.startswith("pfi ")
    assert "NOISE" not in run.stderr and "arning" not in run.stderr
    assert "of our own" in run.stderr and "an error" in run.stderr


def test_they_are_shown_where_somebody_looks_for_a_fault(tmp_path: Path) -> None:
    run = pfi(tmp_path, "--version", PFI_DEBUG="1")
    sources = ["a warning", "another", "transformers", "the hub", "torch", "peft", "a stranger"]
    assert all(f"NOISE of {source}" in run.stderr for source in sources)


@pytest.mark.slow
def test_asking_and_training_print_no_warning(tmp_path: Path) -> None:
    records = tmp_path / "records.csv"
    lines = [f"rain {i} in the hills,hills {i}" for i in range(8)]
    records.write_text("\n".join(["text,title", *lines]) + "\n")
    home = {"PFI_HOME": str(tmp_path / "home"), "PFI_KEY": "file"}
    for words in (
        ["init", "--backbone", "embedded"],
        ["import", "table", str(records), "--set", "task=LaMP_4"],
        ["train", "--task", "LaMP_4", "--epochs", "1"],
        ["ask", "rain in the hills", "--task", "LaMP_4"],
    ):
        run = pfi(tmp_path, *words, **home)
        assert run.returncode == 0, run.stderr
        assert "arning" not in run.stderr and "deprecated" not in run.stderr
