"""Groups of users in several processes: each has its own models, one process writes the log.

Every group is a function of the configuration and the seed alone and the events are handed
on in the order of the groups, so the number of processes changes no result.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pfi._util.workers import cores, obey_parent, portable
from pfi.errors import PfiError
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import Event
from pfi.evaluate.study.group_run import run_group
from pfi.evaluate.study.task_setup import Group, TaskSetup
from pfi.tasks import Task

#: What a worker answers with: the events of a group, or the error it met.
_Outcome = list[Event] | Exception


@dataclass(frozen=True)
class _Order:
    """What a worker needs to set up a task."""

    config: StudyConfig
    out: Path
    task: Task
    shared: bool


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
    with _Workers(_Order(config, out, task, shared)) as workers:
        numbered = enumerate(groups)
        done: dict[int, list[Event]] = {}
        following = 0
        while True:
            # Groups that end before their turn are held, so only so many are begun.
            while workers.idle and len(done) + len(workers.busy) < 4 * config.workers:
                number, group = next(numbered, (0, None))
                if group is None:
                    break
                workers.give(number, group)
            if not workers.busy:
                break
            failed: Exception | None = None
            for number, outcome in workers.outcomes():
                if isinstance(outcome, Exception):
                    failed = failed or outcome
                else:
                    done[number] = outcome
            while following in done:
                yield from done.pop(following)
                following += 1
            if failed is not None:
                for number in sorted(done):
                    yield from done[number]
                raise failed


class _Workers:
    """Processes with a pipe each, so that one that is killed cannot block the others."""

    def __init__(self, order: _Order) -> None:
        self.order = order
        self.idle: list[Connection] = []
        self.busy: dict[Connection, int] = {}
        self._processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> _Workers:
        context = get_context("spawn")  # a fork of threads and CUDA would hang
        for _ in range(self.order.config.workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(self.order, there))
            process.start()
            there.close()
            self._processes[here] = process
            self.idle.append(here)
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()  # ends a worker that waits; one that works is stopped
            if connection in self.busy:
                process.terminate()
        for process in self._processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def give(self, number: int, group: Group) -> None:
        """Give a group to an idle worker."""
        connection = self.idle.pop(0)
        self.busy[connection] = number
        with suppress(OSError):  # it was killed: `outcomes` meets the end of its pipe
            connection.send(group)

    def outcomes(self) -> list[tuple[int, _Outcome]]:
        """Wait until one or more workers have ended their groups or were killed."""
        found: list[tuple[int, _Outcome]] = []
        for connection in wait(list(self.busy)):
            assert isinstance(connection, Connection)
            number = self.busy.pop(connection)
            try:
                found.append((number, connection.recv()))
                self.idle.append(connection)
            except (EOFError, OSError):
                found.append((number, self._killed(self._processes[connection])))
        return found

    def _killed(self, process: BaseProcess) -> PfiError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        what = f"a worker process was killed ({how}), maybe for want of memory"
        fix = "what was done is kept: add --resume to go on; fewer --workers need less memory"
        return PfiError(what, where=str(self.order.out), fix=fix)


# In a worker ----------------------------------------------------------------------------


def _work(order: _Order, connection: Connection) -> None:
    """Answer every group that comes with its events, until the pipe is closed."""
    import torch

    obey_parent()
    torch.set_num_threads(max(1, cores() // order.config.workers))
    setup: TaskSetup | None = None
    while True:
        try:
            group: Group = connection.recv()
        except EOFError:
            return
        try:
            setup = setup or _set_up(order)
            outcome: _Outcome = list(run_group(setup, group))
        except Exception as error:
            outcome = portable(error)
        connection.send(outcome)


def _set_up(order: _Order) -> TaskSetup:
    from pfi.models.backbone import load_backbone

    backbone = load_backbone(order.config.backbone)
    config, shared = order.config, None
    if order.shared:
        shared = Checkpoints(order.out).load(config.shared_kind, order.task.name)
    return TaskSetup(config, order.out, order.task, backbone, shared)
