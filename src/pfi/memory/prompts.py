"""Prompts with retrieved records in them, for questions and for training examples.

An adapter that has seen retrieved records while it was trained knows what to do with them;
so a share of the training examples carries some, always from the record's own past.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pfi.memory.config import How
from pfi.memory.index import Memory
from pfi.records import History, Record
from pfi.tasks import Example, Task
from pfi.tasks.task import Trim


@dataclass(frozen=True)
class Retrieval:
    """How prompts are filled with records.

    Attributes:
        k: records a prompt.
        budget: tokens for all records of a prompt together.
        share: share of the training examples that carry records.
        trim: shortens a text to a number of tokens.
        how: how memory is searched; as the memory's own settings say when None.
    """

    k: int
    budget: int
    share: float
    trim: Trim
    how: How | None = None

    def fill(self, task: Task, prompt: str, records: Sequence[Record]) -> str:
        """``prompt`` with these records, best first."""
        return task.retrieval_prompt(prompt, records, self.trim, self.budget)

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
        records = memory.search(query, self.k, how=self.how, before=before, exclude=exclude)
        return self.fill(task, prompt, records)

    def examples(
        self,
        task: Task,
        history: History,
        rng: random.Random,
        pool: Sequence[Record] = (),
        *,
        memory: History | None = None,
    ) -> list[Example]:
        """The history's training examples, a share of them with records of their own past.

        Args:
            task: how records become examples.
            history: what the examples are made from.  An undated one has no past: there every
                other record may be used.
            rng: makes the choices.
            pool: records of other users, see ``Task.examples``.
            memory: what is retrieved from; the history itself when None.
        """
        plain = task.examples(history, rng, pool)
        if self.k < 1 or self.share <= 0:
            return plain
        past = history if memory is None else memory
        index = Memory(task, past)
        records = {record.id: record for record in history}
        shown = lookalikes(task, past)
        made = []
        for example in plain:
            if rng.random() < self.share:
                same = [i for text in example.fields.values() for i in shown.get(text, ())]
                record = records[example.record_id]
                if record.made is not None:  # what it was made from would do the same
                    same.append(record.made.source)
                prompt = self.prompt(
                    task,
                    index,
                    example.prompt,
                    example.fields,
                    before=record.time,
                    exclude=[example.record_id, *same],
                )
                example = replace(example, prompt=prompt)
            made.append(example)
        return made


def lookalikes(task: Task, history: Iterable[Record]) -> dict[str, list[str]]:
    """The ids of records by the text that a prompt shows of them.

    A record whose own text a prompt shows already (an option of LaMP_1, a copy) would point at
    the answer, which the records found for a real question do not.
    """
    shown: dict[str, list[str]] = {}
    for record in history:
        shown.setdefault(task.values(record).get(task.item_trim, ""), []).append(record.id)
    return shown
