"""One task of a study: the shared adapter, then every arm over every user.

A user's records count only from before the question: for prompts those older than the
question itself, for the personal adapter those older than the user's first question.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pfi.data.lamp import read_users
from pfi.data.records import Record, User
from pfi.evaluate.arms import Arm
from pfi.evaluate.events import EventLog
from pfi.learn import Adapter
from pfi.memory import Memory, Retrieval
from pfi.models import Backbone, answer
from pfi.tasks import Example, Task

if TYPE_CHECKING:
    from pfi.evaluate.study import Study


class TaskRun:
    """One task of a study: the shared adapter, then every arm over every user."""

    #: Users answered in one batch by the arms that need no personal adapter.
    CHUNK = 16

    def __init__(self, study: Study, task: Task, backbone: Backbone, users: list[User]) -> None:
        self.study, self.task, self.backbone, self.users = study, task, backbone, users
        config = study.config
        self.retrieval = Retrieval(
            config.k, config.retrieval_budget, config.retrieval_share, backbone.trim
        )
        self._trainees: list[User] | None = None
        self._memories: dict[tuple[str, datetime | None], Memory] = {}

    def run(self) -> None:
        """Answer every question under every arm, skipping what the events say is done."""
        study, name = self.study, self.task.name
        done = {key[0]: set(users) for key, users in study.answered().items() if key[1] == name}
        todo: dict[str, list[User]] = {}
        for arm in study.arms:
            answered = done.get(arm.name, set())
            todo[arm.name] = [user for user in self.users if user.id not in answered]
        study.progress(name, sum(len(self.users) - len(users) for users in todo.values()))
        arms = [arm for arm in study.arms if todo[arm.name]]
        shared = [self.shared_adapter()] if any(arm.shared for arm in arms) else []
        with_shared = self.backbone.with_adapters(shared)
        for arm in arms:
            if not arm.personal:
                base = with_shared if arm.shared else self.backbone
                self.answer_in_chunks(arm, base, todo[arm.name])
        for user in self.users:
            for below, base in ((True, with_shared), (False, self.backbone)):
                personal = [arm for arm in arms if arm.personal and arm.shared is below]
                personal = [arm for arm in personal if user in todo[arm.name]]
                if personal:
                    self.answer_as(user, personal, base)

    def answer_in_chunks(self, arm: Arm, base: Backbone, todo: Sequence[User]) -> None:
        """Answer several users' questions in one batch.

        Chunks are cut from the list of all users, so that a resumed run has the same batches.
        """
        label = f"{self.task.name} {arm.name}"
        self.study.progress(label)
        for start in range(0, len(self.users), self.CHUNK):
            chunk = self.users[start : start + self.CHUNK]
            fresh = sum(user in todo for user in chunk)
            if fresh:
                self.answer(arm, base, chunk)
                self.study.progress(label, fresh)

    def answer_as(self, user: User, arms: Sequence[Arm], base: Backbone) -> None:
        """Answer one user's questions with their own adapter over ``base``."""
        self.study.progress(f"{self.task.name} personal, user {user.id}")
        own = self.personal_adapter(user, base, arms[0].shared)
        model = base.with_adapters([own] if own else [])
        for arm in arms:
            self.answer(arm, model, [user])
            self.study.progress(f"{self.task.name} {arm.name}", 1)

    # Adapters -----------------------------------------------------------------------

    def trainees(self) -> list[User]:
        """The users whose records the shared adapter is learnt from."""
        if self._trainees is None:
            config = self.study.config
            folder = (config.train_data or config.data) / self.task.name
            self._trainees = read_users(
                folder, self.task, config.train_split, limit=config.train_users, seed=config.seed
            )
        return self._trainees

    def pool(self) -> list[Record]:
        """Records of other people, for practices that contrast a user with others."""
        if self.task.practice != "citation":
            return []
        return [record for user in self.trainees() for record in user.history]

    def shared_adapter(self) -> Adapter:
        """Train the shared adapter over all train users, or load the one already trained."""

        def examples() -> list[Example]:
            made: list[Example] = []
            rng = random.Random(self.study.seed_of("examples", self.task.name))
            pool = self.pool()
            for user in self.trainees():
                made += self.retrieval.examples(self.task, user.history, rng, pool)
                made += list(self.question_examples(user, rng))
            return made

        if self.study.config.shared_from is not None:
            self._copy_shared(self.study.config.shared_from)
        return self._trained("shared", None, self.backbone, examples)

    def _copy_shared(self, run: Path) -> None:
        """Take this task's shared adapter, and the event of its training, from another run."""
        name = self.task.name
        target = self.study.out / "checkpoints" / "shared" / name
        if (target / "adapter_config.json").exists():
            return
        adapter = Adapter.load(run / "checkpoints" / "shared" / name)
        for event in EventLog(run / "events.jsonl").events:
            if (event["event"], event.get("task"), event.get("user")) == ("trained", name, None):
                details = {k: v for k, v in event.items() if k not in ("event", "time")}
                self.study.log.append("trained", **details, copied_from=run.name)
        adapter.save(target)

    def question_examples(self, user: User, rng: random.Random) -> Iterator[Example]:
        """A train user's answered questions, a share of them with retrieved records."""
        memory = Memory(self.task, user.history)
        for question in user.questions:
            if question.gold is None:
                continue
            example = self.task.example(question)
            if rng.random() < self.retrieval.share:
                prompt = self.retrieval.prompt(
                    self.task, memory, question.prompt, question.fields, before=question.time
                )
                example = Example(prompt, example.target, example.fields, example.record_id)
            yield example

    def personal_adapter(self, user: User, base: Backbone, shared_below: bool) -> Adapter | None:
        """Train one user's adapter on their records before their first question.

        Returns:
            None when the user has nothing to train on.
        """
        times = [q.time for q in user.questions if q.time is not None]
        past = user.history.before(min(times, default=None))
        rng = random.Random(self.study.seed_of("examples", self.task.name, user.id))
        made = self.retrieval.examples(self.task, past, rng, self.pool())
        if not made:
            return None
        kind = "personal" if shared_below else "personal-only"
        return self._trained(kind, user.id, base, lambda: made)

    def _trained(
        self, kind: str, user: str | None, base: Backbone, examples: Callable[[], list[Example]]
    ) -> Adapter:
        study = self.study
        parts = [kind, self.task.name, *([user] if user else [])]
        folder = study.out.joinpath("checkpoints", *parts)
        if (folder / "adapter_config.json").exists():
            return Adapter.load(folder)
        made = examples()

        def on_step(step: int, steps: int, loss: float) -> None:
            if user is None:
                study.progress(f"{self.task.name} shared adapter {step}/{steps} loss {loss:.3f}")

        config = study.config.shared if user is None else study.config.personal
        result = study.trainer.train(
            base, made, config, seed=study.seed_of(*parts), on_step=on_step
        )
        study.log.append(
            "trained",
            task=self.task.name,
            adapter=kind,
            user=user,
            examples=len(made),
            steps=result.steps,
            losses=[round(loss, 5) for loss in result.losses],
            seconds=result.seconds,
        )
        result.adapter.save(folder)
        return result.adapter

    # Answers ------------------------------------------------------------------------

    def memory(self, user: User, time: datetime | None) -> Memory:
        """The user's memory as it was at that time: later records do not even count words."""
        key = (user.id, time)
        if key not in self._memories:
            self._memories[key] = Memory(self.task, user.history.before(time))
        return self._memories[key]

    def answer(self, arm: Arm, model: Backbone, users: Sequence[User]) -> None:
        """Answer all questions of some users in one batch and log it user by user."""
        started = time.perf_counter()
        prompts = []
        for user in users:
            for question in user.questions:
                prompt = question.prompt
                if arm.memory:
                    memory = self.memory(user, question.time)
                    prompt = self.retrieval.prompt(self.task, memory, prompt, question.fields)
                prompts.append(prompt)
        answers = iter(answer(model, self.task, prompts, self.study.config.max_prompt))
        seconds = (time.perf_counter() - started) / max(1, len(prompts))
        for user in users:
            given = [
                {"id": q.id, "prompt": q.prompt, "answer": next(answers), "gold": q.gold}
                for q in user.questions
            ]
            self.study.log.append(
                "answered",
                arm=arm.name,
                task=self.task.name,
                user=user.id,
                history=len(user.history),
                seconds=seconds * len(given),
                answers=given,
            )
