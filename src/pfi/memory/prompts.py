"""Prompts with retrieved records in them, for questions and for training examples.

An adapter that has seen retrieved records while it was trained knows what to do with them;
so a share of the training examples carries some, always from the record's own past.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pfi.data.records import History, Record
from pfi.memory.index import Memory
from pfi.tasks import Example, Task
from pfi.tasks.base import Trim


@dataclass(frozen=True)
class Retrieval:
    """How prompts are filled with records.

    Attributes:
        k: records a prompt.
        budget: tokens for all records of a prompt together.
        share: share of the training examples that carry records.
        trim: shortens a text to a number of tokens.
    """

    k: int
    budget: int
    share: float
    trim: Trim

    def prompt(
        self,
        task: Task,
        memory: Memory,
        prompt: str,
        fields: Mapping[str, str],
        *,
        before: datetime | None = None,
        exclude: Iterable[str] = (),
    ) -> str:
        """``prompt`` with the records that fit its fields best."""
        query = task.query_text(fields)
        records = memory.search(query, self.k, before=before, exclude=exclude)
        return task.retrieval_prompt(prompt, records, self.trim, self.budget)

    def examples(
        self, task: Task, history: History, rng: random.Random, pool: Sequence[Record] = ()
    ) -> list[Example]:
        """The history's training examples, a share of them with records of their own past.

        An undated history has no past: there every other record may be used.
        """
        plain = task.examples(history, rng, pool)
        if self.k < 1 or self.share <= 0:
            return plain
        memory = Memory(task, history)
        times = {record.id: record.time for record in history}
        # A record whose own text the prompt shows (an option of LaMP_1, a copy) would point at
        # the answer, which the records found for a real question do not.
        shown: dict[str, list[str]] = {}
        for record in history:
            shown.setdefault(task.values(record).get(task.item_trim, ""), []).append(record.id)
        made = []
        for example in plain:
            if rng.random() < self.share:
                same = [i for text in example.fields.values() for i in shown.get(text, ())]
                prompt = self.prompt(
                    task,
                    memory,
                    example.prompt,
                    example.fields,
                    before=times[example.record_id],
                    exclude=[example.record_id, *same],
                )
                example = replace(example, prompt=prompt)
            made.append(example)
        return made
