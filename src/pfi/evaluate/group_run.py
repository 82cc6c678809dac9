"""One group of a task's users: their personal adapters, then the answers of every arm.

Everything about the users is dropped with the group, so memory is bounded by its size.  A
user's records count only from before the question: for prompts those older than the question
itself, for the personal adapter those older than the user's first question.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pfi.data.lamp import LampUsers, open_users
from pfi.data.records import Record, User
from pfi.evaluate.arms import Arm, get_arm
from pfi.evaluate.checkpoints import Checkpoints
from pfi.evaluate.config import StudyConfig
from pfi.evaluate.events import Event, new_event
from pfi.learn import Adapter, Job, get_trainer
from pfi.memory import Memory, Retrieval
from pfi.models import Backbone, answer
from pfi.models.bank import AdapterBank
from pfi.tasks import Example, Task

#: The names of personal adapters by whether they lie over the shared adapter.
KINDS = {True: "personal", False: "personal-only"}


@dataclass(frozen=True)
class Group:
    """Some users of a task and what is left to do for them.

    Attributes:
        index: its place among the groups of all users.
        users: all of its users, not yet read.
        todo: by arm, the users whose questions are not answered.
        trained: by kind of adapter, the users the event of whose training is logged.
    """

    index: int
    users: LampUsers
    todo: Mapping[str, Collection[str]]
    trained: Mapping[str, Collection[str]]


class TaskSetup:
    """What all groups of a task share: models, engine, retrieval; one in each process.

    Args:
        shared: the shared adapter; may be None if no arm that is left needs it.
    """

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        task: Task,
        backbone: Backbone,
        shared: Adapter | None,
    ) -> None:
        self.config, self.task, self.backbone = config, task, backbone
        self.checkpoints = Checkpoints(out)
        self.trainer = get_trainer(config.engine, config.working_set)
        self.retrieval = Retrieval(
            config.k, config.retrieval_budget, config.retrieval_share, backbone.trim
        )
        self._shared = shared

    @cached_property
    def with_shared(self) -> Backbone:
        """The backbone with the shared adapter merged in."""
        return self.backbone.with_adapters([self._shared] if self._shared else [])

    def train_users(self) -> LampUsers:
        """The users whose records the shared adapter is learnt from."""
        config = self.config
        return open_users(
            (config.train_data or config.data) / self.task.name,
            self.task,
            config.train_split,
            limit=config.train_users,
            seed=config.seed,
        )

    @cached_property
    def pool(self) -> list[Record]:
        """Records of other people, for practices that contrast a user with others.

        They stay in memory: ``train_users`` limits them.
        """
        if self.task.practice != "citation":
            return []
        return [record for user in self.train_users() for record in user.history]

    def run(self, group: Group) -> Iterator[Event]:
        """Do what is left for a group; the events come as the work is done."""
        yield from _GroupRun(self, group).run()
        if group.index % 32 == 31:
            _return_memory()


def _return_memory() -> None:
    """Give freed memory back to the system: glibc keeps what lies scattered between live data."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class _GroupRun:
    """One group while it is worked on."""

    def __init__(self, setup: TaskSetup, group: Group) -> None:
        self.setup, self.group, self.task = setup, group, setup.task
        self.users = list(group.users)
        self._memories: dict[tuple[str, datetime | None], Memory] = {}

    def run(self) -> Iterator[Event]:
        arms = [get_arm(name) for name, left in self.group.todo.items() if left]
        for arm in arms:
            if not arm.personal:
                base = self.setup.with_shared if arm.shared else self.setup.backbone
                yield from self._answer(arm, base, self.users)
        for below in (True, False):
            personal = [arm for arm in arms if arm.personal and arm.shared is below]
            if personal:
                yield from self._personal(personal, below)

    # Adapters -----------------------------------------------------------------------

    def _personal(self, arms: Sequence[Arm], below: bool) -> Iterator[Event]:
        """Answer with the users' own adapters, over the shared one or over the backbone."""
        setup = self.setup
        base = setup.with_shared if below else setup.backbone
        together = setup.trainer.together
        left = {user for arm in arms for user in self.group.todo[arm.name]}
        users = [user for user in self.users if together or user.id in left]
        adapters: dict[str, Adapter | None] = {}
        yield from self._train(users, base, KINDS[below], adapters)
        if together:
            bank = AdapterBank(base, setup.config.personal, capacity=len(users))
            slots = {user.id: bank.add(adapters[user.id]) for user in users}
            for arm in arms:
                yield from self._answer(arm, bank.backbone, users, slots)
            return
        for user in users:
            own = adapters[user.id]
            model = base.with_adapters([own] if own else [])
            for arm in arms:
                if user.id in self.group.todo[arm.name]:
                    yield from self._answer(arm, model, [user])

    def _train(
        self, users: Sequence[User], base: Backbone, kind: str, adapters: dict[str, Adapter | None]
    ) -> Iterator[Event]:
        """Fill in the users' adapters, training those that are missing; None without records."""
        setup, name = self.setup, self.task.name
        for user in users:
            adapters[user.id] = found = setup.checkpoints.load(kind, name, user.id)
            if found is not None and user.id not in self.group.trained[kind]:
                event = setup.checkpoints.event(kind, name, user.id)
                if event is not None:
                    yield event
        known = {user for user, adapter in adapters.items() if adapter is not None}
        missing = [user for user in users if user.id not in known]
        if known and not any(self._examples(user) for user in missing):
            missing = []  # all that can be trained are: the others have no records
        part = (kind, name, self.group.index)
        if missing:
            # What trains together is given together again: the engine's state of a killed run
            # is of these very jobs, and the batches are those of a run that was not killed.
            given = users if setup.trainer.together else missing
            jobs = [self._job(kind, user) for user in given]
            state = setup.checkpoints.state(*part)
            for job, result in setup.trainer.train_many(
                base, jobs, setup.config.personal, state=state
            ):
                if result is not None and job.id not in known:
                    adapters[job.id] = result.adapter
                    yield setup.checkpoints.save(result, kind, name, job.id)
        setup.checkpoints.drop_state(*part)

    def _job(self, kind: str, user: User) -> Job:
        seed = self.setup.config.seed_of(kind, self.task.name, user.id)
        return Job(user.id, partial(self._examples, user), seed)

    def _examples(self, user: User) -> list[Example]:
        """What a user's adapter learns from: their records before their first question."""
        times = [q.time for q in user.questions if q.time is not None]
        past = user.history.before(min(times, default=None))
        rng = random.Random(self.setup.config.seed_of("examples", self.task.name, user.id))
        return self.setup.retrieval.examples(self.task, past, rng, self.setup.pool)

    # Answers ------------------------------------------------------------------------

    def _memory(self, user: User, time: datetime | None) -> Memory:
        """The user's memory as it was at that time: later records do not even count words."""
        key = (user.id, time)
        if key not in self._memories:
            self._memories[key] = Memory(self.task, user.history.before(time))
        return self._memories[key]

    def _answer(
        self,
        arm: Arm,
        model: Backbone,
        users: Sequence[User],
        slots: Mapping[str, int] | None = None,
    ) -> Iterator[Event]:
        """Answer all questions of some users in one batch; events for those users left to do.

        Users already done are answered again, so that a resumed run has the same batches.
        """
        started = time.perf_counter()
        prompts = []
        for user in users:
            for question in user.questions:
                prompt = question.prompt
                if arm.memory:
                    memory = self._memory(user, question.time)
                    prompt = self.setup.retrieval.prompt(self.task, memory, prompt, question.fields)
                prompts.append(prompt)
        routed: dict[str, Any] = {}
        if slots is not None:
            routed["slots"] = [slots[user.id] for user in users for _ in user.questions]
        limit = self.setup.config.max_prompt
        answers = iter(answer(model, self.task, prompts, limit, **routed))
        seconds = (time.perf_counter() - started) / max(1, len(prompts))
        for user in users:
            given = [
                {"id": q.id, "prompt": q.prompt, "answer": next(answers), "gold": q.gold}
                for q in user.questions
            ]
            if user.id in self.group.todo[arm.name]:
                yield new_event(
                    "answered",
                    arm=arm.name,
                    task=self.task.name,
                    user=user.id,
                    history=len(user.history),
                    seconds=seconds * len(given),
                    answers=given,
                )
