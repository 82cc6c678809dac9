"""The one builder of training examples: from real and synthetic records, some with retrieved ones.

A study, a device and a run over many users learn from the same examples of the same records.
An adapter that has seen retrieved records while it was trained knows what to do with them; so a
share of the examples carries some, always from the record's own past, filled in as a question's
prompt is (CDCDA-PLM's real and synthetic records together: arXiv 2508.21313).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval, lookalikes
from pfi.records import History, Question, Record
from pfi.tasks import Example, Task


class MixConfig(BaseModel):
    """How synthetic records are trained on beside real ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float | None = Field(
        None, gt=0, description="most synthetic records for each real one; null: all of them"
    )
    weight: float = Field(
        1.0, gt=0, le=1, description="weight of a synthetic example beside a real one"
    )
    by_confidence: bool = Field(
        True, description="multiply that weight by the confidence of the teacher's votes"
    )
    order: Literal["mixed", "synthetic-first"] = Field(
        "mixed", description="both together, or first synthetic and then real records"
    )


def record_examples(
    retrieval: Retrieval,
    task: Task,
    history: History,
    rng: random.Random,
    pool: Sequence[Record] = (),
    *,
    memory: History | None = None,
) -> list[Example]:
    """The examples of a history, a share of them with records of their own past.

    Args:
        retrieval: how prompts are filled with records.
        task: how records become examples.
        history: what the examples are made from.  An undated one has no past: there every
            other record may be used.
        rng: makes the choices.
        pool: records of other users, see ``Task.examples``.
        memory: what is retrieved from; the history itself when None.
    """
    plain = task.examples(history, rng, pool)
    if retrieval.retrieve < 1 or retrieval.share <= 0:
        return plain
    past = history if memory is None else memory
    index = Memory(task, past)
    records = {record.id: record for record in history}
    shown = lookalikes(task, past)
    examples = []
    for example in plain:
        if rng.random() < retrieval.share:
            same = [i for text in example.fields.values() for i in shown.get(text, ())]
            record = records[example.record_id]
            if record.made is not None:  # what it was made from would do the same
                same.append(record.made.source)
            exclude = [example.record_id, *same]
            found = retrieval.search(
                task, index, example.fields, before=record.time, exclude=exclude
            )
            example = replace(example, prompt=retrieval.text(task, example.prompt, found))
        examples.append(example)
    return examples


def question_examples(
    retrieval: Retrieval,
    task: Task,
    history: History,
    questions: Sequence[Question],
    rng: random.Random,
) -> list[Example]:
    """A user's answered questions as examples, a share of them with records from before them."""
    memory, examples = Memory(task, history), []
    for question in questions:
        if question.gold is None:
            continue
        example = task.example(question)
        if rng.random() < retrieval.share:
            found = retrieval.search(task, memory, question.fields, before=question.time)
            example = replace(example, prompt=retrieval.text(task, question.prompt, found))
        examples.append(example)
    return examples


def mixed_examples(
    retrieval: Retrieval,
    task: Task,
    real: History,
    synthetic: Sequence[Record],
    mix: MixConfig,
    rng: random.Random,
    pool: Sequence[Record] = (),
) -> tuple[list[Example], list[Example]]:
    """The examples of synthetic and of real records.

    Prompts carry real records only.  The real examples are those that there would be without
    synthetic records.

    Args:
        retrieval: how prompts are filled with records.
        task: how records become examples.
        real: the user's own records.
        synthetic: records made for the user, the best first.
        mix: how many synthetic ones are used, and their weight.
        rng: makes the choices.
        pool: records of other users, see ``Task.examples``.
    """
    own = record_examples(retrieval, task, real, rng, pool)
    used = synthetic if mix.ratio is None else synthetic[: round(mix.ratio * len(real))]
    made = {record.id: record.made for record in used}
    examples = []
    history = History(real.user_id, used)
    for example in record_examples(retrieval, task, history, rng, pool, memory=real):
        weight, origin = mix.weight, made[example.record_id]
        if mix.by_confidence and origin is not None:
            weight *= origin.confidence
        examples.append(replace(example, weight=weight))
    return examples, own


def without_held_back(
    synthetic: Sequence[Record], older: History, newer: History
) -> tuple[Record, ...]:
    """The synthetic records that are derived from none of the real records that are held back.

    Args:
        synthetic: all of them.
        older: the real records that are trained on.
        newer: those that are held back.
    """
    kept = {record.id for record in older}
    everything = kept | {record.id for record in newer}

    def safe(record: Record) -> bool:
        if record.made is None:
            first = newer[0].time if newer else None
            return first is not None and record.time is not None and record.time < first
        sources = {record.made.source} & everything  # it may also be one of a pool
        return kept.issuperset({*record.made.seeds, *sources})

    return tuple(record for record in synthetic if safe(record))
