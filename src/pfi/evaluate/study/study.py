"""Studies: arms x tasks x users on the same questions, resumable and reported.

A run folder holds everything: ``config.yaml``, ``events.jsonl`` (what was trained and
answered, in order), ``checkpoints/`` (adapters), ``predictions/<arm>/<task>.json`` in the
benchmark's format, ``metrics.json`` and ``report.html``.  Every unit of work is a function of
the configuration and the seed alone, so a run that was killed goes on with ``resume`` and
ends with the same metrics.  Users are read, trained and answered in groups, so that memory
is bounded by a group, apart from ids, answers and scores.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pfi._util.events import new_event
from pfi._util.files import write_atomic, write_json
from pfi._util.heap import keep_few_kernels
from pfi._util.threads import choose
from pfi._util.version import __version__
from pfi.datasets.lamp import LampUsers, available_tasks, open_users, write_predictions
from pfi.errors import DataError, StorageError
from pfi.evaluate.statistics import UserAnswers, summarise
from pfi.evaluate.study.arms import central, get_arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.forgetting import mean_forgetting
from pfi.evaluate.study.run import Run
from pfi.evaluate.study.task_run import TaskRun
from pfi.memory.embedders import find_embedder
from pfi.memory.index import check_search
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Task, get_task
from pfi.train.trainers import get_trainer

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
        for arm in self.arms:
            if arm.memory:
                check_search(arm.how or config.search.how, find_embedder(config.embedder))
        self.out = out
        self._open(resume)
        self.log = EventLog(out / "events.jsonl")
        self.trainer = get_trainer(config.engine)
        self._on_progress = on_progress
        self._done = self._planned = 0

    def _open(self, resume: bool) -> None:
        path = self.out / "config.yaml"
        if path.exists():
            if not resume:
                fix = "add --resume to go on with it, or give another --out"
                raise StorageError("this folder already holds a run", where=str(self.out), fix=fix)
            try:
                found = yaml.safe_load(path.read_text(encoding="utf-8"))
                same = self.config.same_results(StudyConfig.model_validate(found))
            except (ValueError, yaml.YAMLError):  # also what pydantic's errors are
                same = False
            if not same:
                fix = "resume with the same options (see config.yaml), or give another --out"
                what = "this folder holds a run with another configuration"
                raise StorageError(what, where=str(self.out), fix=fix)
        content = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)

    # Running ------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run what is not yet done, then write metrics and the report.

        Returns:
            the content of ``metrics.json``.
        """
        config = self.config
        if config.threads is not None:
            choose(config.threads)
        keep_few_kernels()
        resumed = not self.log.empty
        self.log.append(new_event("started", version=__version__, resumed=resumed))
        backbone = load_backbone(config.backbone)
        people = {task.name: self._users(task) for task in self.tasks}
        self._planned = self._units * sum(map(len, people.values()))
        for task in self.tasks:
            self._run_task(task, backbone, people[task.name])
        metrics = self.finish({name: users.ids for name, users in people.items()})
        self.log.append(new_event("finished"))
        return metrics

    def so_far(self) -> dict[str, Any]:
        """Write metrics and the report of the users who have all their answers already.

        Nothing is run, and a run that goes on meanwhile is not disturbed.

        Returns:
            the content of ``metrics.json``, with ``so_far``: by task how many of how many users.

        Raises:
            DataError: no user has answers under every arm.
        """
        people, counts = {}, {}
        for task in self.tasks:
            users = self._users(task).ids
            done = self._complete(task.name)
            people[task.name] = [user for user in users if user in done]
            counts[task.name] = [len(people[task.name]), len(users)]
        if not any(people.values()):
            what = "no user has been answered for under every arm yet"
            raise DataError(what, path=self.out, fix="go on with the run: --resume")
        return self.finish(people, so_far=counts)

    def _users(self, task: Task) -> LampUsers:
        config, folder = self.config, self.config.data / task.name
        return open_users(folder, task, config.split, limit=config.users, seed=config.seed)

    def _complete(self, task: str) -> set[str]:
        """The users of a task whom every arm has answered."""
        return set.intersection(*(set(users) for users in self.answered(task).values()))

    @property
    def _units(self) -> int:
        """Units of work that progress counts for a user of a task."""
        return len(self.arms)

    def _run_task(self, task: Task, backbone: Backbone, users: LampUsers) -> None:
        """Run what is not yet done of a task."""
        TaskRun(self._context(), task, backbone, users).run()

    def _context(self) -> Run:
        """What the parts of the run are given."""
        return Run(self.config, self.out, self.arms, self.log, self.trainer, self.progress)

    def progress(self, text: str, units: int = 0) -> None:
        """Tell the caller how far the run is."""
        self._done += units
        if self._on_progress:
            self._on_progress(text, self._done, self._planned)

    # Results ------------------------------------------------------------------------

    def answered(self, task: str) -> dict[str, dict[str, _Answered]]:
        """What the latest ``answered`` events of a task say, by arm, then by user."""
        found: dict[str, dict[str, _Answered]] = {arm.name: {} for arm in self.arms}
        for event in self.log:
            if (event["event"], event.get("task")) == ("answered", task):
                found[event["arm"]][sys.intern(event["user"])] = _Answered.of(event)
        return found

    def finish(
        self, people: Mapping[str, Sequence[str]], so_far: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write ``predictions/``, ``metrics.json`` and ``report.html`` from the events.

        Args:
            people: the ids of every task's users, in the order of the predictions.
            so_far: of a run that is not at its end, by task how many users of how many.
        """
        from pfi.evaluate.report.report import write_report

        arms: dict[str, dict[str, Any]] = {arm.name: {} for arm in self.arms}
        for task in self.tasks:
            if people[task.name]:
                for arm, cell in self._cells(task, people[task.name]):
                    arms[arm][task.name] = cell
        metrics = {
            "arms": arms,
            "config": self.config.model_dump(mode="json"),
            "machine": machine(),
        }
        if so_far is not None:
            metrics["so_far"] = dict(so_far)
        if forgetting := mean_forgetting(self.log):
            metrics["forgetting"] = forgetting
        write_json(self.out / "metrics.json", metrics)
        write_report(self.out)
        return metrics

    def _cells(self, task: Task, people: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Write a task's predictions; the figures of each arm if the gold answers are known."""
        answered = self.answered(task.name)
        for arm, users in answered.items():
            path = self.out / "predictions" / arm / f"{task.name}.json"
            given = [pair for user in people for pair in users[user].pairs()]
            write_predictions(path, task.name, given)
        counted = set(people)
        scored = {
            arm: {
                user: UserAnswers(e.answers, e.golds, e.history)
                for user, e in users.items()
                if e.golds is not None and user in counted
            }
            for arm, users in answered.items()
        }
        for arm, known in scored.items():
            if not known:
                continue
            compared = arm not in ("generic", "generic+rag", "shared")
            cell = summarise(
                task,
                known,
                scored.get("shared") if compared else None,
                personal=scored.get(get_arm(arm).without_synthetic or ""),
                central=None if self.config.strategy else scored.get(central(arm)),
                rounds=self.config.bootstrap,
                seed=self.config.seed,
            )
            cell["seconds"] = sum(e.seconds for e in answered[arm].values())
            yield arm, cell


@dataclass(frozen=True, slots=True)
class _Answered:
    """What figures and predictions need of one ``answered`` event."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    golds: tuple[str, ...] | None
    history: int
    seconds: float

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> _Answered:
        """Without the prompts; equal texts, such as labels and ids, are held once."""
        given = event["answers"]
        known = all(a["gold"] is not None for a in given)
        return cls(
            tuple(sys.intern(a["id"]) for a in given),
            tuple(sys.intern(a["answer"]) for a in given),
            tuple(sys.intern(a["gold"]) for a in given) if known else None,
            event["history"],
            event["seconds"],
        )

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Question ids with their answers."""
        return zip(self.questions, self.answers, strict=True)


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
