"""What all groups of a task's users share, and which group is to be worked on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from pfi.augment.teachers.embedded import EmbeddedTeacher
from pfi.augment.teachers.make import make_teacher
from pfi.augment.teachers.teacher import Teacher
from pfi.datasets.lamp import LampUsers, open_users
from pfi.evaluate.study.arms import FEDERATED, Arm
from pfi.evaluate.study.augmentation import Augmentation
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.gate.prior import Prior
from pfi.inference.answering import Part, combined
from pfi.inference.engine import AdapterRef, Engine
from pfi.inference.torch.engine import TorchEngine
from pfi.memory.embedders import Embedder, find_embedder
from pfi.memory.index import Memory, VectorCache
from pfi.memory.prompts import Retrieval
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import precision_name
from pfi.records import Record
from pfi.tasks import Task
from pfi.train.precision import as_trained
from pfi.train.trainers import get_trainer

#: Most memory for keys and values of the answers in work: beside it lie trainer and banks.
_ROW_BYTES = 512 << 20


@dataclass(frozen=True)
class Group:
    """Some users of a task and what is left to do for them.

    Attributes:
        index: its place among the groups of all users.
        users: all of its users, not yet read.
        todo: by arm, the users whose questions are not answered.
        trained: by kind of adapter, the users the event of whose training is logged.
        augmented: the users the event of whose augmentation is logged.
    """

    index: int
    users: LampUsers
    todo: Mapping[str, Collection[str]]
    trained: Mapping[str, Collection[str]]
    augmented: frozenset[str] = frozenset()


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
        backbone = replace(backbone, thinking=config.thinking)
        self.config, self.out, self.task, self.backbone = config, out, task, backbone
        self.checkpoints = Checkpoints(out)
        self.trainer = get_trainer(config.engine, config.working_set)
        self.retrieval = Retrieval(
            config.retrieve,
            config.record_tokens,
            backbone.prompter,
            config.retrieval_share,
            max_prompt=config.max_prompt,
        )
        self._shared = shared
        self._vectors = VectorCache()

    @cached_property
    def embedder(self) -> Embedder | None:
        return find_embedder(self.config.embedder)

    def memory(self, records: Iterable[Record]) -> Memory:
        """A user's memory of these records."""
        return Memory(
            self.task,
            records,
            embedder=self.embedder,
            config=self.config.search,
            vectors=self._vectors,
        )

    def prior(self, arm: Arm) -> Prior:
        """What the gate's choices gained for other users."""
        found = json.loads(prior_file(self.out, arm, self.task).read_text("utf-8"))
        return Prior.from_dict(found["prior"])

    @cached_property
    def with_shared(self) -> Backbone:
        """The backbone with the shared adapter merged in, in the precision of training."""
        return self._precise(self.backbone.with_adapters([self._shared] if self._shared else []))

    @cached_property
    def engine(self) -> Engine:
        """What answers, as on a device: the plain backbone, adapters loaded beside it."""
        backbone = self._precise(self.backbone)
        return TorchEngine(
            backbone,
            capacity=self.config.working_set + 2,
            row_bytes=_ROW_BYTES,
            precision=precision_name(backbone),
        )

    def _precise(self, backbone: Backbone) -> Backbone:
        """A backbone in the precision that personal adapters are trained in."""
        return as_trained(backbone, self.config.personal, self.config.engine)

    def close(self) -> None:
        """End the engine."""
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]

    def adapter(
        self, arm: Arm, own: Adapter | None = None, name: str = "", weight: float = 1.0
    ) -> AdapterRef | None:
        """The adapters that an arm answers with, as one.

        Args:
            arm: says which lie beneath the user's own.
            own: the user's adapter; None for none.
            name: another one for each of other weights: of its kind and user.
            weight: of it.
        """
        parts: list[Part] = []
        if arm.federated:
            kind = FEDERATED + arm.federated
            parts.append((kind, partial(self._stored, kind), 1.0))
        elif arm.shared and self._shared is not None:
            shared = self._shared
            parts.append(("shared", lambda: shared, 1.0))
        if own is not None:
            parts.append((name, lambda: own, weight))
        return combined(parts)

    def _stored(self, kind: str) -> Adapter:
        adapter = self.checkpoints.load(kind, self.task.name)
        assert adapter is not None, "it is trained before any group of users"
        return adapter

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

    @cached_property
    def augmentation(self) -> Augmentation:
        """What makes synthetic records; the task has one client in each process."""
        config = self.config
        return Augmentation(
            config.augment,
            self.out,
            self.task,
            self.with_shared,
            self._teacher,
            lambda: self._public,
        )

    def _teacher(self) -> Teacher:
        def embedded() -> Teacher:
            return EmbeddedTeacher(self.with_shared, self.retrieval, self._public)

        return make_teacher(self.config.augment.teacher, embedded=embedded)

    @cached_property
    def _public(self) -> list[Record]:
        """Public records, or those of train users in their place; see ``Augmenter``."""
        config = self.config
        if not config.pool_users:
            return []
        if config.pool is None:
            users = self.train_users()[: config.pool_users]
        else:
            users = open_users(config.pool, self.task, "pool", limit=config.pool_users)
        return [
            replace(record, id=f"{user.id}-{record.id}")
            for user in users
            for record in user.history
        ]


def prior_file(out: Path, arm: Arm, task: Task) -> Path:
    """Where a run keeps the prior of an arm's gate."""
    return out / "checkpoints" / "gate" / task.name / f"{arm.name}.json"
