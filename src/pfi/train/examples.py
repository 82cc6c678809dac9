"""Training examples from a user's real and synthetic records together (CDCDA-PLM)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfi.memory.prompts import Retrieval
from pfi.records import History, Record
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
    own = retrieval.examples(task, real, rng, pool)
    used = synthetic if mix.ratio is None else synthetic[: round(mix.ratio * len(real))]
    made = {record.id: record.made for record in used}
    examples = []
    history = History(real.user_id, used)
    for example in retrieval.examples(task, history, rng, pool, memory=real):
        weight, origin = mix.weight, made[example.record_id]
        if mix.by_confidence and origin is not None:
            weight *= origin.confidence
        examples.append(replace(example, weight=weight))
    return examples, own


def innocent(synthetic: Sequence[Record], older: History, newer: History) -> tuple[Record, ...]:
    """The synthetic records that know nothing of real records that are held back.

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
