"""A federation's run folder: settings, a line for every round, checkpoints, figures.

Only its owner may read it: checkpoints are as secret as updates, and the log names clients.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pfi._util.events import Event, JsonLog
from pfi._util.files import write_atomic, write_json
from pfi.errors import ConfigError, FederationError, StorageError
from pfi.federate.config import FederateConfig
from pfi.federate.events import FILE, Round, read_rounds
from pfi.federate.lock import RunLock
from pfi.federate.message import Message
from pfi.federate.privacy.accounting import Spent
from pfi.federate.strategy import Strategy

#: Settings with which a run may go on otherwise than it began.
_FREE = ("rounds", "simulate", "seconds")
_KEPT_CHECKPOINTS = 2


class RunStore:
    """The folder ``out`` of one federation.

    Args:
        out: made when missing.
        config: of the run.
        resume: whether it may hold an unfinished run, which has to have the same settings.

    Raises:
        ConfigError: it holds a run of other settings.
        StorageError: it holds a run, and going on was not asked for.
    """

    def __init__(self, out: Path, config: FederateConfig, *, resume: bool) -> None:
        self.out, self.config = out, config
        out.parent.mkdir(parents=True, exist_ok=True)
        out.mkdir(mode=0o700, exist_ok=True)
        self._lock = RunLock(out)
        self._log = JsonLog(out / FILE, private=True)
        self._checkpoints = out / "checkpoints"
        settings = out / "config.yaml"
        if settings.exists():
            if not resume:
                fix = "add --resume to go on with it, or give another folder"
                raise StorageError("the folder holds a run", where=str(out), fix=fix)
            self._check(yaml.safe_load(settings.read_text("utf-8")))

    def begin(self) -> None:
        """Write the settings, once it is clear that they make sense."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_atomic(self.out / "config.yaml", text, private=True)
        if self._checkpoints.exists():  # an older pfi's
            self._checkpoints.chmod(0o700)

    def _check(self, before: dict[str, Any]) -> None:
        now = self.config.model_dump(mode="json")
        for name in now:
            if name not in _FREE and before.get(name) != now[name]:
                what = f"the run began with another value: {before.get(name)}"
                fix = "go on with that, or give another folder"
                raise ConfigError(what, where=name, fix=fix)

    def load(self) -> Message | None:
        """The last checkpoint; lines of rounds after it are dropped.

        Raises:
            StorageError: no checkpoint can be read.
        """
        files = sorted(self._checkpoints.glob("round-*.safetensors"), reverse=True)
        for path in files:
            try:
                checkpoint = Message.decode(path.read_bytes())
            except (OSError, FederationError):
                continue  # the one before it is whole
            done = checkpoint.number("next") - (checkpoint.values["pending"] != "null")
            self._log.replace([event for event in self.rounds() if event["number"] < done])
            return checkpoint
        if files:
            fix = "start anew in another folder"
            raise StorageError("no checkpoint can be read", where=str(self._checkpoints), fix=fix)
        self._log.path.unlink(missing_ok=True)
        return None

    def append(self, done: Round) -> None:
        """Log a round; before its checkpoint, which never lacks it then."""
        self._log.append(done.to_dict())

    def note(self, event: Event) -> None:
        """Log what is no round, for people."""
        self._log.append(event)

    def save(self, number: int, checkpoint: Message) -> None:
        """Keep a checkpoint, and the one of the round before."""
        self._checkpoints.mkdir(mode=0o700, exist_ok=True)
        file = self._checkpoints / f"round-{number:06}.safetensors"
        write_atomic(file, checkpoint.encode(), private=True)
        for old in sorted(self._checkpoints.glob("round-*.safetensors"))[:-_KEPT_CHECKPOINTS]:
            old.unlink()

    def rounds(self) -> list[Event]:
        """What is logged of every round so far."""
        return list(read_rounds(self.out)) if self._log.path.exists() else []

    def finish(
        self, strategy: Strategy, spent: Spent | None = None, stopped: str | None = None
    ) -> dict[str, Any]:
        """Write ``metrics.json``: what the rounds came to."""
        rounds = self.rounds()
        asked = sum(event["asked"] for event in rounds)
        measured = [event for event in rounds if event["losses"]]
        metrics: dict[str, Any] = {
            "strategy": strategy.name,
            "computes": strategy.computes,
            "rounds": len(rounds),
            "bytes_down": sum(event["bytes_down"] for event in rounds),
            "bytes_up": sum(event["bytes_up"] for event in rounds),
            "bytes_down_per_client": sum(event["bytes_down"] for event in rounds) / max(1, asked),
            "bytes_up_per_client": sum(event["bytes_up"] for event in rounds) / max(1, asked),
        }
        if spent is not None:
            metrics["privacy"] = asdict(spent)
        if stopped is not None:
            metrics["stopped"] = stopped
        if measured:
            losses = np.array(sorted(measured[-1]["losses"].values()))
            worst = losses[-max(1, len(losses) // 10) :]
            metrics["held_out"] = {
                "clients": len(losses),
                "loss": float(losses.mean()),
                "worst_tenth": float(worst.mean()),
                "spread": float(losses.std()),
                "by_client": measured[-1]["losses"],
            }
        write_json(self.out / "metrics.json", metrics, private=True)
        return metrics
