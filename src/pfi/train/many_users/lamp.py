"""The users of LaMP files as jobs of ``pfi.train.many_users.run``: a personal adapter for each.

It lies in this room because it needs retrieval, which the training loops below know nothing of.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pfi._util.seeds import seed_of
from pfi.datasets.lamp import LampUsers, open_users, read_users
from pfi.memory.prompts import Retrieval
from pfi.models.backbone import load_backbone
from pfi.records import Record
from pfi.tasks import Example, Task, get_task
from pfi.train.examples import record_examples
from pfi.train.job import Job


@dataclass(frozen=True)
class LampJobs:
    """A job for every user of a task and split; calling it gives them, from the first one on.

    A user learns from the records before their first question. The histories stay in the file
    until a job's turn comes. It can be pickled, so workers can be given it.

    Attributes:
        folder: holds one folder a task, or is the folder of this task.
        task: name of the task.
        split: reads ``<split>_questions.json``.
        limit: a random sample of this many users; all when None.
        seed: decides the sample, the choices in examples and the initial factors.
        backbone: whose tokens are counted.
        retrieve: records retrieved for a prompt.
        record_tokens: tokens of a prompt's records together.
        share: share of the examples that carry retrieved records.
        pool_split: other people's records, for tasks that contrast a user with others, come
            from this split.
        pool_users: and from a sample of this many of its users.
    """

    folder: Path
    task: str
    split: str = "dev"
    limit: int | None = None
    seed: int = 0
    backbone: str = "embedded"
    retrieve: int = 2
    record_tokens: int = 224
    share: float = 0.5
    pool_split: str = "train"
    pool_users: int = 200

    def __call__(self) -> Iterator[Job]:
        """The jobs, in the file's order.

        Raises:
            DataError: see ``open_users``.
        """
        for position, user_id in enumerate(self.users.ids):
            examples = partial(self.examples, position)
            yield Job(user_id, examples, seed_of(self.seed, "personal", self._task.name, user_id))

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def users(self) -> LampUsers:
        """Who they are; the file is checked once, and once more read when a job needs it."""
        return open_users(self.folder, self._task, self.split, limit=self.limit, seed=self.seed)

    def examples(self, position: int) -> list[Example]:
        """What a user learns from, oldest first; empty without usable records."""
        user = self.users[position]
        times = [question.time for question in user.questions if question.time is not None]
        past = user.history.before(min(times, default=None))
        rng = random.Random(seed_of(self.seed, "examples", self._task.name, user.id))
        return record_examples(self._retrieval, self._task, past, rng, self._pool)

    @cached_property
    def _task(self) -> Task:
        return get_task(self.task)

    @cached_property
    def _retrieval(self) -> Retrieval:
        # Only the tokenizer is used: the meta device gives the weights' memory back.
        backbone = load_backbone(self.backbone, device="meta")
        return Retrieval(self.retrieve, self.record_tokens, backbone.prompter, self.share)

    @cached_property
    def _pool(self) -> list[Record]:
        if self._task.practice != "citation":
            return []
        others = read_users(
            self.folder, self._task, self.pool_split, limit=self.pool_users, seed=self.seed
        )
        return [record for user in others for record in user.history]
