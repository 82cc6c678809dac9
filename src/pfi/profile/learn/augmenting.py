"""Augmentation on one device: a teacher writes synthetic records for one person (CDCDA-PLM).

What leaves the device is in its ledger, what was paid for in ``teacher.db``, what came of it in
the vault; before any of it, a plan tells what would be sent and what it would cost.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pfi._util.settings import checked
from pfi.augment.budget import Budget
from pfi.augment.cache import TeacherStore
from pfi.augment.client import ClientReport, Estimate, TeacherClient
from pfi.augment.config import AugmentConfig, FilterConfig, Policy
from pfi.augment.forms import write_answer, write_records
from pfi.augment.teachers.teacher import Call, Reply, Teacher
from pfi.errors import ConfigError, DataError
from pfi.memory.prompts import Retrieval
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.home import NAMES, Home
from pfi.profile.learn.training import usual_holdout
from pfi.records import Record
from pfi.tasks import Task

if TYPE_CHECKING:
    from pfi.augment.guard import Hides
    from pfi.augment.pipeline import Augmented, Augmenter
    from pfi.models.backbone import Backbone

#: Words of the summary that a plan counts with, where the real one is not known yet.
_SUMMARY_WORDS = 150


@dataclass(frozen=True)
class Plan:
    """What augmentation would do; nothing was sent or written.

    Attributes:
        teacher: the teacher's name.
        host: who would receive what is sent; None if it stays on this device.
        policy: what would be done to it before.
        records: the real records that it rests on.
        first: the first calls, as they would be sent.
        estimate: of all calls; those that follow from answers are guessed.
    """

    teacher: str
    host: str | None
    policy: Policy
    records: int
    first: tuple[Call, ...]
    estimate: Estimate


@dataclass(frozen=True)
class Made:
    """What augmentation did.

    Attributes:
        teacher: the teacher's name.
        augmented: the synthetic records and what every filter kept and dropped.
        client: the calls and their cost.
        added: synthetic records that are new in the vault.
        replaced: how many older ones of the same teacher made room for them.
    """

    teacher: str
    augmented: Augmented
    client: ClientReport
    added: int
    replaced: int


class Augmentation:
    """Augmentation of one task on one device; see ``augment``.

    Raises:
        ConfigError: the holdout is no share, or a budget in US dollars lacks prices.
        DataError: there are no real records of the task.
    """

    def __init__(
        self,
        home: Home,
        task: Task,
        config: AugmentConfig,
        *,
        pool: Sequence[Record] = (),
        holdout: float | None = None,
        backbone: Backbone | None = None,
        on_progress: Callable[[ClientReport], None] | None = None,
        on_stage: Callable[[str], None] = lambda text: None,
    ) -> None:
        if holdout is not None and not 0 <= holdout < 1:
            raise ConfigError(f"holdout is {holdout}", fix="give a share from 0 up to but not 1")
        Budget.of(config)  # fails before a model is loaded or the user asked
        self.home, self.task, self.config, self.pool = home, task, config, pool
        self._given, self._on_progress, self._on_stage = backbone, on_progress, on_stage
        with home.open_vault() as vault:
            whole = vault.history(task.name, origin="real", user_id=home.profile)
            self._names: list[str] = vault.setting(NAMES) or []
        #: What a teacher may learn from: the part that `pfi train` trains on.
        held = usual_holdout(len(whole)) if holdout is None else float(holdout)
        self.history, self._held_back = whole.split(held)
        if not self.history:
            raise DataError(
                f"there are no records of task {task.name} to make more like",
                fix="import some with `pfi import`, or choose another task with --task",
            )

    def plan(self) -> Plan:
        """What ``run`` would do; sends and writes nothing.

        Calls are made up to the end with what is known: answers given before, or else the
        user's own records in their place, of about the same length.

        Raises:
            ConfigError, TeacherError, BackboneError, StorageError: as for ``run``.
        """
        # With that budget a client answers from its store only.
        config = self.config.model_copy(update={"budget_tokens": 1, "budget_usd": None})
        with self._store(lasting=self.home.teacher_file.exists()) as store:
            client = _Rehearsal(self.teacher, config, store, self._ledger)
            # Filters say nothing about calls, and take time.
            off: dict[str, None] = dict.fromkeys(FilterConfig.model_fields)
            unfiltered = config.model_copy(update={"filters": FilterConfig(**off)})
            augmenter = self._augmenter(unfiltered, client)
            self._on_stage("planning the calls")
            guard = augmenter.guard(self.history)
            redactors = {self.history.user_id: guard}
            first = augmenter.first_calls(self.history, guard)
            augmenter.augment([self.history])
            return Plan(
                self.teacher.name,
                self.teacher.host,
                self.config.policy,
                len(self.history),
                tuple(client.prepared(first, redactors)),
                client.estimate(client.calls, redactors),
            )

    def run(self, *, keep: bool = False) -> Made:
        """Make synthetic records and put them into the vault.

        The same arguments again make the same records, and no answer is paid twice.  Where no
        record was made the vault is left as it is.

        Args:
            keep: leave the task's earlier synthetic records of the same teacher beside them.

        Raises:
            ConfigError: a setting makes no sense, or the policy forbids this teacher.
            TeacherError: the teacher is not set up, or cannot be reached; what it answered
                before is kept.
            BackboneError: a model cannot be loaded.
            StorageError: the vault, the store or the ledger cannot be used.
        """
        with self._store(lasting=True) as store:
            client = TeacherClient(
                self.teacher, self.config, store, self._ledger, on_progress=self._on_progress
            )
            augmenter = self._augmenter(self.config, client)
            self._on_stage("asking the teacher")
            (augmented,) = augmenter.augment([self.history])
            report = client.report
        replaced, added = 0, 0
        if augmented.records:
            with self.home.open_vault() as vault:
                before = vault.count()
                if keep:
                    vault.add(augmented.records)
                else:
                    name = self.teacher.name
                    replaced = vault.replace_made(self.task.name, name, augmented.records)
                added = vault.count() - before + replaced
        return Made(self.teacher.name, augmented, report, added, replaced)

    # Parts --------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> Teacher:
        """Who writes."""
        from pfi.augment.teachers.make import make_teacher

        def embedded() -> Teacher:
            from pfi.augment.teachers.embedded import EmbeddedTeacher

            return EmbeddedTeacher(self._model, self._retrieval, self.pool)

        return make_teacher(self.config.teacher, embedded=embedded)

    def _augmenter(self, config: AugmentConfig, client: TeacherClient) -> Augmenter:
        from pfi.augment.filters.judge import BackboneJudge
        from pfi.augment.pipeline import Augmenter
        from pfi.privacy.redaction.redactor import names_in

        judge, trim = BackboneJudge(self._model), self._model.trim
        # A name that only a held-back record gives away is hidden in the others too.
        names = [*self._names, *names_in(self._held_back)]
        return Augmenter(self.task, config, client, judge, trim, pool=self.pool, names=names)

    @cached_property
    def _model(self) -> Backbone:
        """The backbone with the task's shared adapter: what any personal adapter lies on."""
        from pfi.models.backbone import load_backbone

        self._on_stage("loading the backbone")
        plain = self._given or load_backbone(self.home.config.backbone)
        shared = self.home.shared_adapters.active(self.task.name)
        return plain.with_adapters([self.home.shared_adapters.load(shared)] if shared else [])

    @property
    def _retrieval(self) -> Retrieval:
        return retrieval_of(self.home.config, self._model.prompter)

    @property
    def _ledger(self) -> Ledger:
        return self.home.open_ledger()

    @contextmanager
    def _store(self, *, lasting: bool) -> Iterator[TeacherStore]:
        """Where answers are kept.

        The embedded teacher's are not: they cost nothing, and another shared adapter or pool
        gives others.
        """
        if lasting and self.config.teacher.kind != "embedded":
            with self.home.open_teacher_store() as store:
                yield store
            return
        with (
            TemporaryDirectory(prefix="pfi-teacher-") as folder,
            TeacherStore(Path(folder) / "teacher.db", key=secrets.token_bytes(32)) as store,
        ):
            yield store


class _Rehearsal(TeacherClient):
    """A client that asks nobody: it notes the calls and makes up what its store does not know."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.calls: list[Call] = []

    def ask(self, calls: Sequence[Call], redactors: Mapping[str, Hides]) -> list[Reply | None]:
        self.calls += calls
        known = super().ask(calls, redactors)
        return [
            _made_up(call) if reply is None else reply
            for call, reply in zip(calls, known, strict=True)
        ]


def _made_up(call: Call) -> Reply | None:
    """An answer of about the length of the real one, from the records that the call shows."""
    material = call.material
    if material is None:
        return None
    task, records = material.task, material.records
    if material.purpose == "answer":
        written = task.labels or [record.output for record in records] or [""]
        return Reply(write_answer(written[0]) if call.form else written[0])
    if not records:
        return None
    if material.purpose == "summarise":
        words = " ".join(task.document_text(record) for record in records).split()
        return Reply(" ".join(words[:_SUMMARY_WORDS]) or task.title)
    shown = [records[i % len(records)] for i in range(material.count)]
    made = [({n: r.input.get(n, "") for n in task.inputs}, r.output) for r in shown]
    return Reply(write_records(task, made))


def augment(
    home: Home,
    task: Task,
    config: AugmentConfig | None = None,
    *,
    pool: Sequence[Record] = (),
    holdout: float | None = None,
    keep: bool = False,
    backbone: Backbone | None = None,
    on_progress: Callable[[ClientReport], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Made:
    """Have a teacher write synthetic records from the real ones of a task, into the vault.

    Nobody is asked before text leaves for a teacher elsewhere; see ``Augmentation.plan`` for
    what would.

    Args:
        home: the device.
        task: whose records to make more of.
        config: how; the profile's settings when None.
        pool: texts to be answered as the user would, see ``pool.read_pool``.
        holdout: the newest share of the real records, in [0, 1), that nothing is made from, as
            for ``train``.
        keep: leave the task's earlier synthetic records of the same teacher beside them.
        backbone: the profile's one, where it is loaded already.
        on_progress: told how things stand after every answer.
        on_stage: told what begins, in a few words.

    Raises:
        ConfigError: a setting makes no sense, or the policy forbids this teacher.
        DataError: there are no real records of the task.
        TeacherError: the teacher is not set up, or cannot be reached.
        BackboneError: a model cannot be loaded.
        StorageError: the vault, the store or the ledger cannot be used.
    """
    made = Augmentation(
        home,
        task,
        config or augment_config(home, {}),
        pool=pool,
        holdout=holdout,
        backbone=backbone,
        on_progress=on_progress,
        on_stage=on_stage,
    )
    return made.run(keep=keep)


def augment_config(home: Home, settings: Mapping[str, Any]) -> AugmentConfig:
    """How synthetic records are made: the given settings, then the profile's, the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    stored = home.config.augment
    known, given = stored.get("teacher"), settings.get("teacher")
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        moved = "base_url" in given and given["base_url"] != known.get("base_url")
        if moved and "api_key_env" not in given:  # that key belongs to the address beside it
            left = {name: value for name, value in known.items() if name != "api_key_env"}
            stored = {**stored, "teacher": left}
    values = joined(stored, settings)
    return checked(AugmentConfig, values, "augmentation settings", "see docs/augment.md")


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings; those of ``second`` go before."""
    found = dict(first)
    for key, value in second.items():
        both = isinstance(found.get(key), Mapping) and isinstance(value, Mapping)
        found[key] = joined(found[key], value) if both else value
    return found
