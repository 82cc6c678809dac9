"""The stream protocol: users' histories replayed in time order under four policies.

All users of a group advance together: the questions between two updates are answered in one
batch, each user's with the adapter of their last update, and then all adapters are updated in
one pass of the bank.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pfi._util.events import Event, new_event
from pfi._util.files import write_json
from pfi.datasets.lamp import LampUsers
from pfi.errors import ConfigError
from pfi.evaluate.stream.replay import POLICIES, Step, Stream, check_flip, make_stream
from pfi.evaluate.study.arms import ARMS, DEFAULT_ARMS
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.study import OnProgress, Study, machine
from pfi.evaluate.study.task_run import TaskRun
from pfi.evaluate.study.task_setup import TaskSetup
from pfi.inference.answering import answers, sampling_of
from pfi.inference.engine import Request
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.records import Record, User
from pfi.tasks import Example, Task
from pfi.train.examples import record_examples
from pfi.train.job import Job


class StreamStudy(Study):
    """One run of the stream protocol; the arguments and the run folder are those of a study.

    Raises:
        ConfigError: settings that this protocol does not have, or labels that cannot change.
    """

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        *,
        resume: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        if config.workers > 1:
            what = "the stream protocol runs in one process"
            raise ConfigError(what, where="workers", fix="leave out --workers")
        if config.arms != DEFAULT_ARMS:
            what = f"the stream protocol has no arms: it compares {', '.join(POLICIES)}"
            raise ConfigError(what, where="arms", fix="leave out --arms")
        super().__init__(config, out, resume=resume, on_progress=on_progress)
        if config.stream.flip is not None:
            for task in self.tasks:
                check_flip(task)

    @property
    def _units(self) -> int:
        return 1

    def finish(
        self, people: Mapping[str, Sequence[str]], so_far: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write ``metrics.json`` and ``report.html`` from the events."""
        from pfi.evaluate.stream.metrics import stream_metrics
        from pfi.evaluate.stream.report import write_stream_report

        metrics = stream_metrics(self.config, self.tasks, self.log)
        metrics["machine"] = machine()
        if so_far is not None:
            metrics["so_far"] = dict(so_far)
        write_json(self.out / "metrics.json", metrics)
        write_stream_report(self.out)
        return metrics

    def _complete(self, task: str) -> set[str]:
        """The users of a task whose histories are replayed."""
        return {e["user"] for e in self.log if e["event"] == "streamed" and e["task"] == task}

    def _run_task(self, task: Task, backbone: Backbone, users: LampUsers) -> None:
        """Replay the users of a task, group by group, skipping those whose streams are logged."""
        done = self._complete(task.name)
        self.progress(task.name, len(done))
        if done >= set(users.ids):
            return
        shared = TaskRun(self._context(), task, backbone, users).shared_adapter()
        with closing(TaskSetup(self.config, self.out, task, backbone, shared)) as setup:
            size = self.config.working_set
            for start in range(0, len(users), size):
                group = users[start : start + size]
                if done >= set(group.ids):
                    continue
                replay = GroupStream(setup, list(group))
                for event in replay.run(lambda text: self.progress(f"{task.name} {text}")):
                    # Those already logged were replayed again, so that the batches are the same.
                    if event["user"] not in done:
                        self.log.append(event)
                        self.progress(f"{task.name} stream", 1)


@dataclass
class _Member:
    """A user of a group while it is replayed.

    Attributes:
        adapter: the current personal adapter; None before the first update.
        learnt: how many records it has learnt from.
        answers: by step and policy.
        updates: what every update took.
    """

    stream: Stream
    adapter: Adapter | None = None
    learnt: int = 0
    answers: dict[int, dict[str, str]] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)


class GroupStream:
    """Some users of a task, replayed together.

    Args:
        setup: models, engine and retrieval.
        users: all of the group; in tasks that need strangers, they are strangers to each other.
    """

    def __init__(self, setup: TaskSetup, users: Sequence[User]) -> None:
        self.setup, self.task, self.config = setup, setup.task, setup.config
        self.members = [_Member(self._stream(user, users)) for user in users]
        personal = self.config.personal
        self.training = personal.model_copy(update={"epochs": self.config.stream.epochs})

    def run(self, on_progress: Callable[[str], None] | None = None) -> Iterator[Event]:
        """The users' ``streamed`` events, once all of them are replayed."""
        started = time.perf_counter()
        stream = self.config.stream
        longest = max((len(m.stream.records) for m in self.members), default=0)
        # Places between which no adapter changes; the questions after the last record have
        # seen all of them.
        starts = [0, *range(stream.first, longest + 1, stream.every), longest + 1]
        for start, end in pairwise(starts):
            if on_progress is not None:
                on_progress(f"stream, record {start} of {longest}")
            if start:
                self._update(start, end)
            self._answer(start, end)
        seconds = (time.perf_counter() - started) / max(1, len(self.members))
        for member in self.members:
            yield self._event(member, seconds)

    def _stream(self, user: User, users: Sequence[User]) -> Stream:
        strangers: list[Record] = []
        if self.task.practice == "citation":
            strangers = [r for other in users if other.id != user.id for r in other.history]

        def rng_of(record: str) -> random.Random:
            return random.Random(self.config.seed_of("stream", self.task.name, user.id, record))

        others = strangers or self.setup.pool
        return make_stream(self.task, user, self.config.stream, others, rng_of, self.config.history)

    # Answers ------------------------------------------------------------------------

    def _answer(self, start: int, end: int) -> None:
        """Answer all questions that have seen ``start`` to ``end - 1`` records."""
        requests: list[Request] = []
        asked: list[tuple[_Member, int, str]] = []
        setup = self.setup
        shared = setup.adapter(ARMS["shared"])
        for member in self.members:
            user, own = member.stream.user, member.adapter
            both = setup.adapter(ARMS["personal"], own, f"{user} {member.learnt}")
            for step in (step for step in member.stream.steps if start <= step.seen < end):
                plain = self._prompt(step)
                filled = self._with_records(member.stream, step)
                ways = {"never": (plain, shared), "memory": (filled, shared)}
                if own is not None:
                    ways |= {"adapter": (plain, both), "both": (filled, both)}
                for policy, (ids, adapter) in ways.items():
                    requests.append(Request(ids, adapter, sampling_of(self.task)))
                    asked.append((member, step.step, policy))
        if not requests:
            return
        texts = answers(setup.engine, self.task, requests)
        for (member, place, policy), text in zip(asked, texts, strict=True):
            member.answers.setdefault(place, {})[policy] = text
            if member.adapter is None:  # what an adapter would go on from answers for it
                same = {"never": "adapter", "memory": "both"}[policy]
                member.answers[place][same] = text

    def _prompt(self, step: Step, records: Sequence[Record] = ()) -> tuple[int, ...]:
        """The tokens of a step's question, with these records."""
        return self.setup.retrieval.fill(self.task, step.prompt, records).ids

    def _with_records(self, stream: Stream, step: Step) -> tuple[int, ...]:
        """The same with records from before the step."""
        if not step.seen:
            return self._prompt(step)
        memory = self.setup.memory(stream.seen(step.seen))
        records = self.setup.retrieval.search(self.task, memory, step.fields, exclude=step.shown)
        return self._prompt(step, records)

    # Updates ------------------------------------------------------------------------

    def _update(self, seen: int, end: int) -> None:
        """Train the adapters of all users who have questions ahead on records seen so far."""
        members = {
            m.stream.user: m
            for m in self.members
            if len(m.stream.records) >= seen and any(step.seen >= seen for step in m.stream.steps)
        }
        jobs = [self._job(member, seen) for member in members.values()]
        setup = self.setup
        for job, result in setup.trainer.train_many(setup.with_shared, jobs, self.training):
            member = members[job.id]
            member.learnt = seen
            if result is None:
                continue
            member.adapter = result.adapter
            member.updates.append(
                {
                    "records": seen,
                    "examples": result.examples,
                    "steps": result.steps,
                    "loss": round(sum(result.losses) / max(1, result.steps), 5),
                    "seconds": result.seconds,
                }
            )

    def _job(self, member: _Member, seen: int) -> Job:
        user, name = member.stream.user, self.task.name
        seed = self.config.seed_of("stream", "personal", name, user, seen)
        start = None if self.config.stream.anew else member.adapter
        return Job(user, self._examples(member, seen), seed, start)

    def _examples(self, member: _Member, seen: int) -> list[Example]:
        """New records and those replayed, a share with records from before them."""
        replay, stream = self.config.stream.replay, member.stream
        first = 0 if replay is None else max(0, member.learnt - replay)
        past = stream.seen(seen)
        rng = random.Random(self.config.seed_of("examples", self.task.name, stream.user, seen))
        setup = self.setup
        made = record_examples(setup.retrieval, self.task, past, rng, setup.pool)
        kept = {record.id for record in past[first:]}
        return [example for example in made if example.record_id in kept]

    # Events -------------------------------------------------------------------------

    def _event(self, member: _Member, seconds: float) -> Event:
        steps = [
            {"step": s.step, "seen": s.seen, "record": s.record, "gold": s.gold}
            | {policy: member.answers[s.step][policy] for policy in POLICIES}
            for s in member.stream.steps
        ]
        return new_event(
            "streamed",
            task=self.task.name,
            user=member.stream.user,
            records=len(member.stream.records),
            flipped=member.stream.flipped,
            seconds=seconds,
            updates=member.updates,
            steps=steps,
        )
