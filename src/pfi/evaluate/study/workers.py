"""Groups of users in several processes: each has its own models, one process writes the log.

Every group is a function of the configuration and the seed alone and the events are handed
on in the order of the groups, so the number of processes changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pfi._util.events import Event
from pfi._util.workers import WorkerPool
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.group_run import run_group
from pfi.evaluate.study.task_setup import Group, TaskSetup
from pfi.models.backbone import load_backbone
from pfi.tasks import Task

_FIX = "what was done is kept: add --resume to go on; fewer --workers need less memory"


def run_in_workers(
    config: StudyConfig, out: Path, task: Task, groups: Iterable[Group], *, shared: bool
) -> Iterator[Event]:
    """Do what is left for the groups in ``config.workers`` processes.

    Args:
        shared: whether the task's shared adapter, already in ``checkpoints/``, is needed.

    Yields:
        the events, group by group; after an error those of the groups that did end, and then
        the error is raised as the worker met it.

    Raises:
        PfiError: a worker was killed.
    """
    make = partial(_make, config, out, task, shared)
    with WorkerPool(make, config.workers, fix=_FIX, where=str(out)) as pool:
        for events in pool.map(groups):
            yield from events


def _make(
    config: StudyConfig, out: Path, task: Task, shared: bool
) -> Callable[[Group], list[Event]]:
    """What does a group in a worker, and gives its events."""
    setup = _set_up(config, out, task, shared)
    return lambda group: list(run_group(setup, group))


def _set_up(config: StudyConfig, out: Path, task: Task, shared: bool) -> TaskSetup:
    adapter = Checkpoints(out).load(config.shared_kind, task.name) if shared else None
    return TaskSetup(config, out, task, load_backbone(config.backbone), adapter)
