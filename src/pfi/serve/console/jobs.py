"""Long work in the background of the server: one at a time, with progress, and to be cancelled.

A job ends as its command on the command line would: what it was doing when the process died is
done again, and nothing is paid for twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pfi.errors import ConfigError, PfiError

State = Literal["running", "done", "failed", "cancelled"]
_KEPT = 20
_log = logging.getLogger("pfi.serve")


class Cancelled(Exception):
    """Raised within a job that was told to stop."""


@dataclass
class Job:
    """One piece of work, as it stands; written by its thread, read by pages.

    Attributes:
        number: from 1, in this process.
        profile: whose it is; nobody else sees it.
        kind: the command, e.g. ``train``.
        title: what it does, in words.
        began: when, in UTC.
        state: how it stands.
        stage: what it is doing now.
        step, steps: how far training has come; 0 where that is not known.
        losses: of this training's steps so far, thinned out.
        told: what came of it, or the error, line by line.
    """

    number: int
    profile: str
    kind: str
    title: str
    began: datetime
    state: State = "running"
    stage: str = "starting"
    step: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    told: Sequence[str] = ()
    seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _clock: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop, and has not yet."""
        return self.running and self._stop.is_set()

    @property
    def elapsed(self) -> float:
        """Seconds since it began, up to its end."""
        return time.monotonic() - self._clock if self.running else self.seconds

    def on_stage(self, text: str) -> None:
        """What begins now; the end of the job if it is to stop."""
        self.stage, self.steps = text, 0
        self._check()

    def on_step(self, step: int, steps: int, loss: float) -> None:
        """How far training has come; the end of the job if it is to stop."""
        losses = [*self.losses, loss] if step > self.step else [loss]
        self.step, self.steps = step, steps
        self.losses = losses if len(losses) <= 400 else losses[::2]
        self._check()

    def cancel(self) -> None:
        """Tell it to stop at its next step."""
        self._stop.set()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled


#: Does the work, telling the job how far it is; what came of it, line by line.
Work = Callable[[Job], Sequence[str]]


class Jobs:
    """The jobs of one process; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._count = 0

    def start(self, profile: str, kind: str, title: str, work: Work) -> Job:
        """Begin a job in a thread of its own.

        Raises:
            ConfigError: one is running; whose it is is not told.
        """
        with self._lock:
            if any(job.running for job in self._jobs):
                raise ConfigError("something else is running", fix="wait until it is done")
            self._count += 1
            job = Job(self._count, profile, kind, title, datetime.now(UTC))
            mine = [j for j in self._jobs if j.profile == profile]
            self._jobs = [j for j in self._jobs if j not in mine[: -_KEPT + 1]]
            self._jobs.append(job)
        threading.Thread(target=_run, args=(job, work), name=f"job-{kind}", daemon=True).start()
        return job

    def busy(self) -> bool:
        """Whether one is running, whoever's it is."""
        with self._lock:
            return any(job.running for job in self._jobs)

    def last(self, profile: str) -> Job | None:
        """A profile's newest job."""
        return next(iter(self.all(profile)), None)

    def all(self, profile: str) -> list[Job]:
        """A profile's jobs, the newest first."""
        with self._lock:
            return [job for job in reversed(self._jobs) if job.profile == profile]

    def running(self, profile: str) -> Job | None:
        """A profile's job that is running."""
        found = self.last(profile)
        return found if found and found.running else None

    def cancel(self, profile: str) -> Job | None:
        """Tell a profile's running job to stop."""
        if job := self.running(profile):
            job.cancel()
        return job


def _run(job: Job, work: Work) -> None:
    state: State = "done"
    try:
        told: Sequence[str] = work(job)
    except Cancelled:
        state, told = "cancelled", ["Stopped. Nothing was changed; start it again at any time."]
        if job.kind == "augment":
            told = ["Stopped. Started again it goes on, and pays for no answer twice."]
    except PfiError as error:
        state, told = "failed", [" ".join(str(error).split())]
    except Exception as error:
        # The message may quote private text, so the log has the place only.
        where = (Exception, Exception(), error.__traceback__)
        _log.error("a job failed: %s", type(error).__name__, exc_info=where)
        state, told = "failed", [f"pfi had an error ({type(error).__name__}); see its terminal."]
    job.told, job.seconds = told, time.monotonic() - job._clock
    job.state = state  # last: whoever sees the end sees all of it
