"""Augmentation in a study: one client for a task, synthetic records kept by user.

The users of a group are augmented together.  A teacher's answers are kept in ``teacher.db``, so
that none is paid twice, and what was sent is in ``ledger.jsonl``.  The embedded teacher is simply
asked again, in the same batches, when a group was not finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pfi._util.events import Event, new_event
from pfi._util.files import write_atomic
from pfi.augment.cache import TeacherStore
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig
from pfi.augment.filters.judge import BackboneJudge
from pfi.augment.guard import Hides
from pfi.augment.pipeline import Augmented, Augmenter, describe
from pfi.augment.teachers.embedded import EmbeddedTeacher
from pfi.augment.teachers.teacher import Call, Reply, Teacher, TeacherError
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.models.backbone import Backbone
from pfi.privacy.ledger.ledger import Ledger
from pfi.records import History, Provenance, Record
from pfi.tasks import Task

#: Synthetic records of a user that the event log shows.
_SHOWN = 3


class Augmentation:
    """The synthetic records of a task's users in a run folder.

    Args:
        config: how they are made.
        out: the run folder.
        task: the task.
        backbone: the device model, which judges drafts.
        make_teacher: called when the teacher is first needed.
        pool: public records, called for when they are first needed.
    """

    def __init__(
        self,
        config: AugmentConfig,
        out: Path,
        task: Task,
        backbone: Backbone,
        make_teacher: Callable[[], Teacher],
        pool: Callable[[], Sequence[Record]],
    ) -> None:
        self.config, self.out, self.task, self.backbone = config, out, task, backbone
        self._make_teacher, self._pool = make_teacher, pool

    def users(
        self, histories: Sequence[History], known: set[str] | frozenset[str]
    ) -> Iterator[tuple[str, Augmented, Event | None]]:
        """Every user's synthetic records, made unless they are there.

        Args:
            histories: the users' records, those of one group.
            known: whose event is logged.

        Yields:
            a user's id, their records and the event to log, if it is not logged yet.

        Raises:
            TeacherError: the teacher cannot be reached.
        """
        found = {history.user_id: self._load(history.user_id) for history in histories}
        if any(entry is None for entry in found.values()):
            with self._whole():
                made = self.augmenter.augment(histories)
            for history, augmented in zip(histories, made, strict=True):
                if found[history.user_id] is None:
                    found[history.user_id] = self._save(history, augmented)
        for user, entry in found.items():
            assert entry is not None
            augmented, event = entry
            yield user, augmented, None if user in known else event

    def ask(self, calls: Sequence[Call], guards: Mapping[str, Hides]) -> list[Reply | None]:
        """The teacher's replies, None where one was unusable.

        Raises:
            TeacherError: it cannot be reached, or the budget does not suffice.
        """
        with self._whole():
            return self.client.ask(calls, guards)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """See that what is done inside lacks no answer for want of money or of a server.

        Figures that rest on less would be kept as results, and a larger budget could not mend
        them.
        """
        before = self.client.report
        yield
        after = self.client.report
        if after.unpaid > before.unpaid:
            what = f"the budget of the teacher is spent ({after.spent.tokens:,} tokens)"
            fix = "what was answered is kept: raise augment.budget_tokens or augment.budget_usd"
            raise TeacherError(what, where=str(self.out), fix=f"{fix} and add --resume")
        if after.failed > before.failed:
            what = f"the teacher's server failed on {after.failed - before.failed} calls"
            fix = "what was answered is kept: add --resume when it is well again"
            raise TeacherError(what, where=self.client.teacher.name, fix=fix)

    @cached_property
    def augmenter(self) -> Augmenter:
        """What makes the records."""
        judge = BackboneJudge(self.backbone)
        return Augmenter(
            self.task, self.config, self.client, judge, self.backbone.trim, pool=self._pool()
        )

    @cached_property
    def client(self) -> TeacherClient:
        """What asks the teacher."""
        teacher = self._make_teacher()
        if isinstance(teacher, EmbeddedTeacher):
            self._scratch = TemporaryDirectory(prefix="pfi-teacher-")
            return TeacherClient(
                teacher, self.config, TeacherStore(Path(self._scratch.name) / "teacher.db")
            )
        store = TeacherStore(self.out / "teacher.db")
        return TeacherClient(teacher, self.config, store, Ledger(self.out / "ledger.jsonl"))

    # Files --------------------------------------------------------------------------

    def _path(self, user: str) -> Path:
        folder = Checkpoints(self.out).path("synthetic", self.task.name, user)
        return folder.with_name(f"{folder.name}.json")

    def _load(self, user: str) -> tuple[Augmented, Event] | None:
        path = self._path(user)
        if not path.exists():
            return None
        content = json.loads(path.read_text("utf-8"))
        kept, unfiltered = (
            tuple(map(_record, content[name])) for name in ("records", "unfiltered")
        )
        return Augmented(user, kept, unfiltered), content["event"]

    def _save(self, history: History, made: Augmented) -> tuple[Augmented, Event]:
        event = new_event(
            "augmented",
            task=self.task.name,
            user=history.user_id,
            teacher=self.client.teacher.name,
            **describe(self.task, history, made),
            examples=[_plain(record) for record in made.records[:_SHOWN]],
        )
        content = {
            "event": event,
            "records": [_plain(record) for record in made.records],
            "unfiltered": [_plain(record) for record in made.unfiltered],
        }
        write_atomic(self._path(history.user_id), json.dumps(content, ensure_ascii=False) + "\n")
        return made, event


def _plain(record: Record) -> dict[str, Any]:
    assert record.made is not None
    return {
        "id": record.id,
        "task": record.task,
        "input": dict(record.input),
        "output": record.output,
        "source": record.source,
        "made": record.made.to_dict(),
    }


def _record(values: Mapping[str, Any]) -> Record:
    made = Provenance.from_dict(values["made"])
    fields = (values["id"], values["task"], values["input"], values["output"])
    return Record(*fields, None, "synthetic", values["source"], made)
