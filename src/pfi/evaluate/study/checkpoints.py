"""The adapters of a run: peft folders, each with the event of its training beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from urllib.parse import quote

from pfi._util.events import Event, new_event
from pfi._util.files import write_atomic
from pfi.models.adapters import CONFIG_FILE, Adapter
from pfi.train.job import TrainResult

_EVENT_FILE = "trained.json"


class Checkpoints:
    """The folder ``checkpoints/`` of a run; kinds are shared, personal and personal-only."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "checkpoints"

    def path(self, kind: str, task: str, user: str | None = None) -> Path:
        """The folder of one adapter."""
        return self.folder.joinpath(kind, task, *([_file_name(user)] if user is not None else []))

    def load(self, kind: str, task: str, user: str | None = None) -> Adapter | None:
        """The adapter, or None if it is not trained yet.

        Raises:
            BackboneError: it is damaged.
        """
        folder = self.path(kind, task, user)
        return Adapter.load(folder) if (folder / CONFIG_FILE).exists() else None

    def save(self, result: TrainResult, kind: str, task: str, user: str | None = None) -> Event:
        """Write a trained adapter; returns the event of its training."""
        event = new_event(
            "trained",
            task=task,
            adapter=kind,
            user=user,
            examples=result.examples,
            steps=result.steps,
            losses=[round(loss, 5) for loss in result.losses],
            seconds=result.seconds,
        )
        if result.stopped is not None:
            event["stopped"] = result.stopped
        self.put(result.adapter, event)
        return event

    def put(self, adapter: Adapter, event: Event) -> None:
        """Write an adapter and the event of its training."""
        folder = self.path(event["adapter"], event["task"], event["user"])
        # The event is written first, so that a run killed before it logs it can do so later.
        write_atomic(folder / _EVENT_FILE, json.dumps(event, ensure_ascii=False) + "\n")
        adapter.save(folder)

    def event(self, kind: str, task: str, user: str | None = None) -> Event | None:
        """The event of an adapter's training; None for an adapter that came without one."""
        path = self.path(kind, task, user) / _EVENT_FILE
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def state(self, *parts: object) -> Path:
        """Where an engine keeps the state of unfinished jobs."""
        return self.folder / "-".join(["state", *map(str, parts)])

    def drop_state(self, *parts: object) -> None:
        """Remove what a killed engine may have left of work that is done."""
        shutil.rmtree(self.state(*parts), ignore_errors=True)


def _file_name(user: str) -> str:
    """A user's id as a file name of its own, whatever characters it has."""
    name = quote(user, safe=" @+=,")
    if name.startswith("."):  # "..", for one
        name = f"%2E{name[1:]}"
    if len(name) > 120:
        name = f"{name[:80]}-{hashlib.sha256(user.encode()).hexdigest()[:32]}"
    return name
