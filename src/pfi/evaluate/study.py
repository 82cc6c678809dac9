"""Studies: arms x tasks x users on the same questions, resumable and reported.

A run folder holds everything: ``config.yaml``, ``events.jsonl`` (what was trained and
answered, in order), ``checkpoints/`` (adapters), ``predictions/<arm>/<task>.json`` in the
benchmark's format, ``metrics.json`` and ``report.html``.  Every unit of work is a function of
the configuration and the seed alone, so a run that was killed goes on with ``resume`` and
ends with the same metrics.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pfi import __version__
from pfi.data.lamp import available_tasks, read_users, write_predictions
from pfi.data.records import User
from pfi.errors import DataError, StorageError
from pfi.evaluate.arms import get_arm
from pfi.evaluate.config import StudyConfig
from pfi.evaluate.events import EventLog
from pfi.evaluate.statistics import UserAnswers, summarise
from pfi.evaluate.task_run import TaskRun
from pfi.files import write_atomic, write_json
from pfi.learn import get_trainer
from pfi.models import load_backbone
from pfi.tasks import get_task

#: Called with a line for people, the units of work done and the units planned.
OnProgress = Callable[[str, int, int], None]


class Study:
    """One run of a study.

    Args:
        config: what to run.
        out: the run folder.
        resume: go on with the run that the folder holds.
        on_progress: called while it runs.

    Raises:
        StorageError: the folder holds a run and ``resume`` is off, or another study's run.
        ConfigError: an arm, a task or the data does not exist.
    """

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        *,
        resume: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        names = config.tasks or available_tasks(config.data, config.split)
        if not names:
            what = f"no task has a {config.split}_questions.json here"
            raise DataError(what, path=config.data, fix="give --data and --split of LaMP files")
        self.config = config.model_copy(update={"tasks": names})
        self.tasks = [get_task(name) for name in names]
        self.arms = [get_arm(name) for name in config.arms]
        self.out = out
        self._open(resume)
        self.log = EventLog(out / "events.jsonl")
        self.trainer = get_trainer(config.engine)
        self._on_progress = on_progress
        self._done = self._planned = 0

    def _open(self, resume: bool) -> None:
        path = self.out / "config.yaml"
        content = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if path.exists():
            if not resume:
                fix = "add --resume to go on with it, or give another --out"
                raise StorageError("this folder already holds a run", where=str(self.out), fix=fix)
            if path.read_text(encoding="utf-8") != content:
                fix = "resume with the same options (see config.yaml), or give another --out"
                what = "this folder holds a run with another configuration"
                raise StorageError(what, where=str(self.out), fix=fix)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)

    # Running ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run what is not yet done, then write predictions, metrics and the report.

        Returns:
            the content of ``metrics.json``.
        """
        config = self.config
        self.log.append("started", version=__version__, resumed=bool(self.log.events))
        backbone = load_backbone(config.backbone)
        people: dict[str, list[User]] = {}
        for task in self.tasks:
            folder = config.data / task.name
            people[task.name] = read_users(
                folder, task, config.split, limit=config.users, seed=config.seed
            )
        self._planned = sum(len(people[task.name]) * len(self.arms) for task in self.tasks)
        for task in self.tasks:
            TaskRun(self, task, backbone, people[task.name]).run()
        metrics = self.finish(people)
        self.log.append("finished")
        return metrics

    def progress(self, text: str, units: int = 0) -> None:
        """Tell the caller how far the run is."""
        self._done += units
        if self._on_progress:
            self._on_progress(text, self._done, self._planned)

    def seed_of(self, *parts: object) -> int:
        """A seed for one unit of work, the same whenever it is run."""
        text = json.dumps([self.config.seed, *map(str, parts)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    # Results ------------------------------------------------------------------------

    def answered(self) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
        """The latest ``answered`` event by (arm, task), then by user."""
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for event in self.log.events:
            if event["event"] == "answered":
                found.setdefault((event["arm"], event["task"]), {})[event["user"]] = event
        return found

    def finish(self, people: dict[str, list[User]]) -> dict[str, Any]:
        """Write ``predictions/``, ``metrics.json`` and ``report.html`` from the events."""
        from pfi.evaluate.report import write_report

        answered = self.answered()
        arms: dict[str, dict[str, Any]] = {arm.name: {} for arm in self.arms}
        for task in self.tasks:
            order = [q.id for user in people[task.name] for q in user.questions]
            cells = {}
            for arm in self.arms:
                events = answered.get((arm.name, task.name), {})
                given = {a["id"]: a["answer"] for e in events.values() for a in e["answers"]}
                path = self.out / "predictions" / arm.name / f"{task.name}.json"
                write_predictions(path, task.name, {i: given[i] for i in order})
                cells[arm.name] = {
                    user: UserAnswers(
                        [a["answer"] for a in event["answers"]],
                        [a["gold"] for a in event["answers"]],
                        event["history"],
                    )
                    for user, event in events.items()
                    if all(a["gold"] is not None for a in event["answers"])
                }
            for arm in self.arms:
                if not cells[arm.name]:
                    continue  # no gold answers: predictions only
                compared = arm.name not in ("generic", "generic+rag", "shared")
                cell = summarise(
                    task,
                    cells[arm.name],
                    cells.get("shared") if compared else None,
                    rounds=self.config.bootstrap,
                    seed=self.config.seed,
                )
                events = answered[arm.name, task.name]
                cell["seconds"] = sum(e["seconds"] for e in events.values())
                arms[arm.name][task.name] = cell
        metrics = {
            "arms": arms,
            "config": self.config.model_dump(mode="json"),
            "machine": machine(),
        }
        write_json(self.out / "metrics.json", metrics)
        write_report(self.out)
        return metrics


def machine() -> dict[str, Any]:
    """What a run was measured on."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
