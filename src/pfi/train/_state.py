"""The state of a run's unfinished jobs on disk, so that a killed run ends with the same weights.

A folder holds ``state.json`` (counts and losses) and one file of tensors, which it names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from pfi._util.files import write_atomic, write_json
from pfi.errors import StorageError

STATE_FILE = "state.json"


@dataclass(frozen=True)
class JobState:
    """An unfinished job.

    Attributes:
        id: the job's.
        step: steps done.
        losses: of each.
        seconds: its share of the time.
        best_loss: the lowest held-back loss.
        best: ``(width,)`` factors that gave it; None before the first measurement.
        without_improvement: epochs since.
        weights: ``(width,)`` factors.
        first, second: ``(width,)`` moments of the optimizer.
        steps: ``()`` steps that the optimizer has counted.
    """

    id: str
    step: int
    losses: list[float]
    seconds: float
    best_loss: float
    best: torch.Tensor | None
    without_improvement: int
    weights: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    steps: torch.Tensor


@dataclass(frozen=True)
class RunState:
    """A run between two steps.

    Attributes:
        drawn: how many jobs were drawn.
        tokens: of one micro-batch.
        jobs: those that have not ended, in the order in which they entered.
    """

    drawn: int
    tokens: int
    jobs: Sequence[JobState]


def save(folder: Path, state: RunState) -> None:
    """Write a state; until it is whole on disk the previous one is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    stacked = ("weights", "first", "second", "steps")
    tensors = {}
    if state.jobs:
        for name in stacked:
            tensors[name] = torch.stack([getattr(job, name) for job in state.jobs])
    for i, job in enumerate(state.jobs):
        if job.best is not None:
            tensors[f"best.{i}"] = job.best.contiguous()
    file = f"{state.drawn}-{sum(job.step for job in state.jobs)}.safetensors"
    write_atomic(folder / file, serialise(tensors))
    jobs = [
        {
            "id": job.id,
            "step": job.step,
            "losses": job.losses,
            "seconds": job.seconds,
            "best_loss": job.best_loss if job.best is not None else None,
            "waited": job.without_improvement,
        }
        for job in state.jobs
    ]
    content = {"drawn": state.drawn, "tokens": state.tokens, "tensors": file, "members": jobs}
    write_json(folder / STATE_FILE, content)
    for old in folder.glob("*.safetensors"):
        if old.name != file:
            old.unlink()


def load(folder: Path) -> RunState | None:
    """The state that a folder holds, or None.

    Raises:
        StorageError: it is damaged.
    """
    if not (folder / STATE_FILE).exists():
        return None
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / content["tensors"])
        jobs = []
        for i, job in enumerate(content["members"]):
            measured = job["best_loss"] is not None
            jobs.append(
                JobState(
                    job["id"],
                    job["step"],
                    job["losses"],
                    job["seconds"],
                    job["best_loss"] if measured else float("inf"),
                    tensors[f"best.{i}"] if measured else None,
                    job["waited"],
                    *(tensors[name][i] for name in ("weights", "first", "second", "steps")),
                )
            )
        return RunState(content["drawn"], content["tokens"], jobs)
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        what = f"the state of a run is damaged: {error}"
        raise StorageError(what, where=str(folder), fix=how_to_start_anew(folder)) from error


def how_to_start_anew(folder: Path) -> str:
    """What to do about a state that cannot be used."""
    return f"remove {folder} to start the unfinished ones anew"


def remove(folder: Path) -> None:
    """A run that has ended leaves no state."""
    shutil.rmtree(folder, ignore_errors=True)
