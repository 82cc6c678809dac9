"""What every part of a run needs of it: its settings, folder, arms, event log and progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfi.evaluate.study.arms import Arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.train.job import Trainer


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        config: what is run.
        out: the run folder.
        arms: the methods that are compared.
        log: what was done.
        trainer: what trains the shared adapter.
        progress: told in a line what is done, and how many units of work that was.
    """

    config: StudyConfig
    out: Path
    arms: Sequence[Arm]
    log: EventLog
    trainer: Trainer
    progress: Callable[..., None]
