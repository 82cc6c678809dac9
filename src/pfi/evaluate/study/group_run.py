"""One group of a task's users: their personal adapters, then the answers of every arm.

Everything about the users is dropped with the group, so memory is bounded by its size.  A
user's records count only from before the question: for prompts those older than the question
itself, for the personal adapter those older than the user's first question.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial

from pfi._util.events import Event, new_event
from pfi._util.heap import release_freed
from pfi.augment.generators import answer_call, read_answer
from pfi.augment.guard import Guard
from pfi.augment.pipeline import Augmented
from pfi.evaluate.study.arms import KINDS, Arm, Kind, get_arm
from pfi.evaluate.study.task_setup import Group, TaskSetup
from pfi.gate.choices import Choice
from pfi.gate.fit import choose_for
from pfi.gate.prior import Tried
from pfi.gate.trials import Asker, Trial, divide, question_trials, record_trials
from pfi.inference.answering import answers, sampling_of
from pfi.inference.engine import AdapterRef, Request
from pfi.memory.index import Memory
from pfi.memory.summary import summarise
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.records import History, Record, User
from pfi.tasks import Example
from pfi.train.examples import mixed_examples, record_examples, without_held_back
from pfi.train.job import Job


def run_group(setup: TaskSetup, group: Group) -> Iterator[Event]:
    """Do what is left for a group; the events come as the work is done."""
    yield from GroupRun(setup, group).run()
    if group.index % 32 == 31:
        release_freed()


class GroupRun:
    """One group while it is worked on; see ``run_group``."""

    def __init__(self, setup: TaskSetup, group: Group) -> None:
        self.setup, self.group, self.task = setup, group, setup.task
        self.users = [self._cut(user) for user in group.users]
        self._memories: dict[tuple[str, datetime | None], Memory] = {}
        self._synthetic: dict[str, Augmented] = {}
        # Whose training is logged; a kind that another one goes on from comes twice.
        self._logged = {kind: set(group.trained.get(kind, ())) for kind in KINDS}

    def run(self) -> Iterator[Event]:
        arms = [get_arm(name) for name, left in self.group.todo.items() if left]
        if any(arm.kind is not None and arm.kind.synthetic for arm in arms):
            yield from self._augment()
        for arm in arms:
            if arm.teacher:
                yield from self._ask_teacher(arm)
            elif not arm.personal:
                yield from self._answer(arm, self.users)
        for kind in KINDS.values():
            personal = [arm for arm in arms if arm.kind is kind]
            if personal:
                yield from self._personal(personal, kind)

    def _cut(self, user: User) -> User:
        """The user with no more records than the study allows."""
        if self.setup.config.history is None:
            return user
        past = _past(user)
        return replace(user, history=past[max(0, len(past) - self.setup.config.history) :])

    def _augment(self) -> Iterator[Event]:
        """Fill in the users' synthetic records, made from the records they may learn from."""
        histories = [_past(user) for user in self.users]
        known = self.group.augmented
        for user, made, event in self.setup.augmentation.users(histories, known):
            self._synthetic[user] = made
            if event is not None:
                yield event

    # Adapters -----------------------------------------------------------------------

    def _personal(self, arms: Sequence[Arm], kind: Kind) -> Iterator[Event]:
        """Answer with the users' own adapters of a kind."""
        setup = self.setup
        base = setup.with_shared if kind.over_shared else setup.backbone
        together = setup.trainer.together
        left = {user for arm in arms for user in self.group.todo[arm.name]}
        users = [user for user in self.users if together or user.id in left]
        adapters: dict[str, Adapter | None] = {}
        yield from self._train(users, base, kind, adapters)
        for arm in arms:
            if arm.gate:
                yield from self._gated(arm, kind, users, base, adapters)
            else:
                yield from self._answer(arm, users, adapters)

    def _train(
        self,
        users: Sequence[User],
        base: Backbone,
        kind: Kind,
        adapters: dict[str, Adapter | None],
    ) -> Iterator[Event]:
        """Fill in the users' adapters, training those that are missing; None without records."""
        setup, name = self.setup, self.task.name
        for user in users:
            adapters[user.id] = found = setup.checkpoints.load(kind.name, name, user.id)
            if found is not None and user.id not in self._logged[kind.name]:
                event = setup.checkpoints.event(kind.name, name, user.id)
                self._logged[kind.name].add(user.id)
                if event is not None:
                    yield event
        known = {user for user, adapter in adapters.items() if adapter is not None}
        missing = [user for user in users if user.id not in known]
        if known and not any(self._examples(kind, user) for user in missing):
            missing = []  # all that can be trained are: the others have no records
        part = (kind.name, name, self.group.index)
        if missing:
            starts: dict[str, Adapter | None] = {}
            if kind.first is not None and setup.config.mix.order == "synthetic-first":
                yield from self._train(users, base, kind.first, starts)
            # What trains together is given together again: the engine's state of a killed run
            # is of these very jobs, and the batches are those of a run that was not killed.
            given = users if setup.trainer.together else missing
            jobs = [self._job(kind, user, starts.get(user.id)) for user in given]
            state = setup.checkpoints.state(*part)
            for job, result in setup.trainer.train_many(
                base, jobs, setup.config.personal, state=state
            ):
                if result is not None and job.id not in known:
                    adapters[job.id] = result.adapter
                    self._logged[kind.name].add(job.id)
                    yield setup.checkpoints.save(result, kind.name, name, job.id)
            release_freed()  # of training, before answers need theirs
        setup.checkpoints.drop_state(*part)

    def _job(self, kind: Kind, user: User, start: Adapter | None) -> Job:
        # One seed for all kinds over the shared adapter, so that they begin alike.
        name = "personal" if kind.over_shared else kind.name
        seed = self.setup.config.seed_of(name, self.task.name, user.id)
        return Job(user.id, partial(self._examples, kind, user), seed, start)

    def _examples(self, kind: Kind, user: User) -> list[Example]:
        """What a user's adapter learns from: their records before their first question."""
        setup, past = self.setup, _past(user)
        if kind.older:
            past, newest = divide(setup.config.gate, past)
            if not newest:
                return []
        rng = random.Random(setup.config.seed_of("examples", self.task.name, user.id))
        if not kind.synthetic:
            return record_examples(setup.retrieval, self.task, past, rng, setup.pool)
        found = self._synthetic[user.id]
        records: Sequence[Record] = (
            found.records if kind.synthetic == "filtered" else found.unfiltered
        )
        if kind.older:
            records = without_held_back(records, past, newest)
        mix = setup.config.mix
        made, own = mixed_examples(setup.retrieval, self.task, past, records, mix, rng, setup.pool)
        if not kind.real:
            return made
        # In the other order the adapter has learnt from the synthetic records before.
        return (own or made) if mix.order == "synthetic-first" else [*made, *own]

    # The gate -----------------------------------------------------------------------

    def _gated(
        self,
        arm: Arm,
        kind: Kind,
        users: Sequence[User],
        base: Backbone,
        adapters: Mapping[str, Adapter | None],
    ) -> Iterator[Event]:
        """Answer with as much of the adapters and of memory as the gate lets through."""
        setup = self.setup
        config, prior = setup.config, setup.prior(arm)
        older: dict[str, Adapter | None] = {}
        yield from self._train(users, base, kind.trial, older)
        tried = self._tried_on_records(arm, kind, users, older)
        chosen: dict[str, Choice] = {}
        for user in users:
            measures = adapters[user.id] is not None and setup.embedder is not None
            fitted = choose_for(config.gate, prior, tried.get(user.id), by_likeness=measures)
            chosen[user.id] = fitted.choice
            if user.id in self.group.todo[arm.name]:
                yield new_event(
                    "gated",
                    arm=arm.name,
                    task=self.task.name,
                    user=user.id,
                    **asdict(fitted.choice),
                    gain=round(fitted.gain, 5),
                    tried=fitted.tried,
                )
        started = time.perf_counter()
        questions = [trial for user in users for trial in self._question_trials(user)]
        texts = self._asker(arm, kind, adapters).answers(questions, chosen, prior.sure)
        yield from self._answered(arm, users, texts, time.perf_counter() - started)

    def _asker(self, arm: Arm, kind: Kind, adapters: Mapping[str, Adapter | None]) -> Asker:
        """What asks trials with the users' own adapters at any weight."""
        setup = self.setup

        def weighted(user: str, weight: float) -> AdapterRef | None:
            return setup.adapter(arm, adapters[user], f"{kind.name} {user}", weight)

        return Asker(setup.engine, self.task, setup.retrieval, weighted)

    def _record_trials(self, user: User) -> list[Trial]:
        """What the gate tries its choices on: the user's newest records."""
        config, past = self.setup.config, _past(user)
        _, newest = divide(config.gate, past)
        if not newest:
            return []
        seed = config.seed_of("trials", self.task.name, user.id)
        most, setup = max(config.gate.ks), self.setup
        return record_trials(self.task, past, newest, setup.memory, most, seed, setup.pool)

    def _tried_on_records(
        self, arm: Arm, kind: Kind, users: Sequence[User], older: Mapping[str, Adapter | None]
    ) -> dict[str, Tried]:
        """By user what every choice gains on their newest records; without a user who has none."""
        trials = [trial for user in users for trial in self._record_trials(user)]
        if not trials:
            return {}
        asker = self._asker(arm, kind.trial, older)
        return asker.try_choices(trials, self.setup.config.gate)

    def try_records(self, arm: Arm, kind: Kind) -> dict[str, Tried]:
        """The same, with adapters trained for it on the older records."""
        return self._tried_on_records(arm, kind, self.users, self._trained(kind.trial))

    def _trained(self, kind: Kind) -> dict[str, Adapter | None]:
        """The users' adapters of a kind over the shared one, for trials: without events."""
        if kind.synthetic:
            for _ in self._augment():
                pass
        adapters: dict[str, Adapter | None] = {}
        for _ in self._train(self.users, self.setup.with_shared, kind, adapters):
            pass
        return adapters

    def _question_trials(self, user: User) -> list[Trial]:
        most = max(self.setup.config.gate.ks)
        return question_trials(self.task, user.questions, partial(self._memory, user), most)

    def try_questions(self, arm: Arm, kind: Kind) -> dict[str, Tried]:
        """By user what every choice gains on their questions, all of known answer."""
        adapters = self._trained(kind)
        trials = [trial for user in self.users for trial in self._question_trials(user)]
        known = [trial for trial in trials if trial.target]
        if not known:
            return {}
        return self._asker(arm, kind, adapters).try_choices(known, self.setup.config.gate)

    # Answers ------------------------------------------------------------------------

    def _memory(self, user: User, time: datetime | None) -> Memory:
        """The user's memory as it was at that time: later records do not even count words."""
        key = (user.id, time)
        if key not in self._memories:
            self._memories[key] = self.setup.memory(user.history.before(time))
        return self._memories[key]

    def _answer(
        self, arm: Arm, users: Sequence[User], adapters: Mapping[str, Adapter | None] | None = None
    ) -> Iterator[Event]:
        """Answer all questions of some users at once; events for those users left to do.

        Users already done are answered again, so that a resumed run has the same batches.

        Args:
            arm: the method.
            users: whose questions.
            adapters: their own, for an arm with personal adapters.
        """
        started, setup, asked = time.perf_counter(), self.setup, []
        retrieval = replace(setup.retrieval, retrieve=arm.k or setup.config.retrieve, how=arm.how)
        for user in users:
            own = (adapters or {}).get(user.id)
            adapter = setup.adapter(arm, own, f"{arm.personal} {user.id}")
            for question in user.questions:
                records: Sequence[Record] = ()
                summary = ""
                if arm.memory:
                    memory = self._memory(user, question.time)
                    records = retrieval.search(self.task, memory, question.fields)
                if arm.profile:
                    past = user.history.before(question.time)
                    summary = summarise(self.task, past, retrieval.prompter.trim)
                filled = retrieval.fill(self.task, question.prompt, records, summary=summary)
                asked.append(Request(filled.ids, adapter, sampling_of(self.task)))
        texts = answers(setup.engine, self.task, asked)
        yield from self._answered(arm, users, texts, time.perf_counter() - started)

    def _ask_teacher(self, arm: Arm) -> Iterator[Event]:
        """Answer all questions by the teacher; one that it has no answer to is left empty."""
        started = time.perf_counter()
        setup, calls = self.setup, []
        guards = {user.id: Guard(user.history) for user in self.users}
        for user in self.users:
            for question in user.questions:
                found: Sequence[Record] = []
                if arm.memory:
                    query = self.task.query_text(question.fields)
                    most = min(setup.config.retrieve, setup.config.augment.records_per_call)
                    found = self._memory(user, question.time).search(query, most)
                fields = question.fields
                if setup.augmentation.client.redacts:
                    hide = guards[user.id].hide
                    found = [hide(record) for record in found]
                    fields = hide(Record(question.id, self.task.name, fields, "")).input
                example = Example(question.prompt, "", fields, question.id)
                calls.append(answer_call(user.id, self.task, example, found, setup.backbone.trim))
        replies = setup.augmentation.ask(calls, guards)
        answers = ["" if reply is None else read_answer(reply) for reply in replies]
        yield from self._answered(arm, self.users, answers, time.perf_counter() - started)

    def _answered(
        self, arm: Arm, users: Sequence[User], texts: Sequence[str], took: float
    ) -> Iterator[Event]:
        """The events of answers, given user by user, of the users left to do."""
        answers, seconds = iter(texts), took / max(1, len(texts))
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


def _past(user: User) -> History:
    """The user's records from before their first question."""
    times = [question.time for question in user.questions if question.time is not None]
    return user.history.before(min(times, default=None))
