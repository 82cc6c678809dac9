"""One task of a study: the shared adapter, then every arm over the users, group by group."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pfi._util.events import Event, new_event, read_events
from pfi._util.heap import release_freed
from pfi.datasets.lamp import LampUsers
from pfi.evaluate.study.arms import FEDERATED, KINDS, Arm
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.federation import federate
from pfi.evaluate.study.forgetting import measure_forgetting
from pfi.evaluate.study.group_run import run_group
from pfi.evaluate.study.population import make_prior
from pfi.evaluate.study.run import Run
from pfi.evaluate.study.task_setup import Group, TaskSetup
from pfi.evaluate.study.workers import run_in_workers
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.tasks import Example, Task
from pfi.train.examples import question_examples, record_examples
from pfi.train.job import train_one


class TaskRun:
    """One task of a study: the shared adapter, then every arm over the users."""

    def __init__(self, run: Run, task: Task, backbone: Backbone, users: LampUsers) -> None:
        self._run, self.task, self.backbone, self.users = run, task, backbone, users
        self.checkpoints = Checkpoints(run.out)

    def run(self) -> None:
        """Do all of the task, skipping what the events say is done."""
        self._answer()
        if self._run.config.forgetting:
            self._measure_forgetting()

    def _measure_forgetting(self) -> None:
        run, users = self._run, self.users.ids
        for event in measure_forgetting(run, self.task, self.backbone, users):
            run.log.append(event)
            whose = "shared adapter" if event["user"] is None else f"user {event['user']}"
            run.progress(f"{self.task.name} forgetting, {whose}")

    def _answer(self) -> None:
        """Answer every question under every arm."""
        run, name = self._run, self.task.name
        ids = set(self.users.ids)
        done = {arm.name: len(ids & run.log.answered(arm.name, name)) for arm in run.arms}
        run.progress(name, sum(done.values()))
        arms = [arm for arm in run.arms if done[arm.name] < len(ids)]
        if not arms:
            return
        needed = any((arm.shared and not arm.federated) or arm.asks_teacher for arm in arms)
        shared = self.shared_adapter() if needed else None
        for strategy in dict.fromkeys(arm.federated for arm in arms if arm.federated):
            self.federated_adapter(strategy)
        for arm in arms:
            if arm.gate:
                self._prior(arm, shared)
        for event in self._events(shared):
            run.log.append(event)
            if event["event"] == "answered":
                run.progress(f"{name} {event['arm']}", 1)
            elif event["event"] == "augmented":
                run.progress(f"{name} augmenting, user {event['user']}")
            elif event["event"] == "gated":
                run.progress(f"{name} {event['arm']}, gate of user {event['user']}")
            else:
                run.progress(f"{name} personal, user {event['user']}")

    def _events(self, shared: Adapter | None) -> Iterator[Event]:
        """What is left to do, done here or in workers."""
        config, out = self._run.config, self._run.out
        if config.workers > 1:
            given = shared is not None
            yield from run_in_workers(config, out, self.task, self.groups(), shared=given)
            return
        with closing(TaskSetup(config, out, self.task, self.backbone, shared)) as setup:
            for group in self.groups():
                yield from run_group(setup, group)

    def groups(self) -> Iterator[Group]:
        """The groups with something left to do.

        They are cut from the list of all users, so that a resumed run has the same groups.
        """
        log, name, size = self._run.log, self.task.name, self._run.config.working_set
        for index, start in enumerate(range(0, len(self.users), size)):
            users = self.users[start : start + size]
            ids = frozenset(users.ids)
            todo = {arm.name: ids - log.answered(arm.name, name) for arm in self._run.arms}
            if any(todo.values()):
                trained = {kind: ids & log.trained(kind, name) for kind in KINDS}
                yield Group(index, users, todo, trained, ids & log.augmented(name))

    def _prior(self, arm: Arm, shared: Adapter | None) -> None:
        """Have the gate's prior made."""
        run, name = self._run, self.task.name

        def told(done: int, users: int) -> None:
            run.progress(f"{name} {arm.name}, gate's prior, {done} of {users} other users")

        make_prior(run.config, run.out, self.task, self.backbone, shared, arm, told)

    # The shared adapter -------------------------------------------------------------

    def shared_adapter(self) -> Adapter:
        """The shared adapter of all arms that do not say how it is learnt."""
        strategy = self._run.config.strategy
        return self.federated_adapter(strategy) if strategy else self._central_adapter()

    def _central_adapter(self) -> Adapter:
        """Train the shared adapter over all train users, or load the one already trained."""
        run, name = self._run, self.task.name
        found = self._trained("shared")
        if found is not None:
            return found

        def on_step(step: int, steps: int, loss: float) -> None:
            run.progress(f"{name} shared adapter {step}/{steps} loss {loss:.3f}")

        result = train_one(
            run.trainer,
            self.backbone,
            [example for _, examples in self._train_examples() for example in examples],
            run.config.shared,
            seed=run.config.seed_of("shared", name),
            on_step=on_step,
            state=self.checkpoints.state("shared", name),
        )
        release_freed()  # of training, before answers need theirs
        run.log.append(self.checkpoints.save(result, "shared", name))
        self.checkpoints.drop_state("shared", name)
        return result.adapter

    def federated_adapter(self, strategy: str) -> Adapter:
        """Learn the shared adapter by federation, or load the one already learnt."""
        kind = FEDERATED + strategy
        found = self._trained(kind)
        if found is not None:
            return found
        return federate(self._run, self.task, self.backbone, strategy, self._train_examples())

    def _trained(self, kind: str) -> Adapter | None:
        """A shared adapter of this run, or of the one whose adapters are to be used."""
        run, name = self._run, self.task.name
        if run.config.shared_from is not None:
            self._copy_shared(run.config.shared_from, kind)
        found = self.checkpoints.load(kind, name)
        if found is not None and None not in run.log.trained(kind, name):
            event = self.checkpoints.event(kind, name)
            if event is not None:
                run.log.append(event)
        return found

    def _train_examples(self) -> Iterator[tuple[str, list[Example]]]:
        """What the shared adapter is learnt from, user by user; ``train_users`` limits them."""
        setup = TaskSetup(self._run.config, self._run.out, self.task, self.backbone, None)
        rng = random.Random(self._run.config.seed_of("examples", self.task.name))
        for user in setup.train_users():
            own = record_examples(setup.retrieval, self.task, user.history, rng, setup.pool)
            asked = question_examples(setup.retrieval, self.task, user.history, user.questions, rng)
            yield user.id, [*own, *asked]

    def _copy_shared(self, run: Path, kind: str) -> None:
        """Take this task's shared adapter, and the events of its training, from another run.

        One learnt by federation is learnt here where the other run has none.
        """
        name, folder = self.task.name, Checkpoints(run).path(kind, self.task.name)
        if self.checkpoints.load(kind, name) is not None:
            return
        if kind != "shared" and not folder.exists():
            return
        adapter = Adapter.load(folder)
        # Of an adapter that came without an event we know no more than this.
        event = new_event("trained", task=name, adapter=kind, user=None)
        known = self._run.log.rounds(kind, name)
        for found in read_events(run / "events.jsonl"):
            found.pop("time", None)
            if found.get("task") != name:
                continue
            if (found["event"], found.get("adapter")) == ("trained", kind):
                event = found
            elif found["event"] == "round" and found["arm"] == kind and found["round"] not in known:
                self._run.log.append({**found, "copied_from": run.name})
        self.checkpoints.put(adapter, {**event, "copied_from": run.name})
