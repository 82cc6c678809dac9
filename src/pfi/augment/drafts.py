"""Drafts: what strategies make and filters judge before it becomes synthetic records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pfi.records import Provenance, Record


@dataclass(frozen=True)
class Draft:
    """A record that a teacher made, not yet judged.

    Attributes:
        input: the input fields, by the names of ``Task.inputs``.
        output: what the user would have written or chosen; empty where the task derives it.
        strategy: name of the strategy that made it.
        template: name and short hash of the prompt template.
        seeds: ids of the real records that the teacher was shown.
        source: id of the record that was varied or of the pool that was relabelled, or "".
        confidence: how far the teacher's votes agree on the output, in [0, 1].
        votes: how many votes that rests on; 0 when none were held.
        scores: what the filters measured, by filter; they add to it.
        problem: why it cannot be a record, where the teacher's answer was malformed; else "".
    """

    input: Mapping[str, str]
    output: str
    strategy: str
    template: str
    seeds: tuple[str, ...] = ()
    source: str = ""
    confidence: float = 1.0
    votes: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    def record(self, id: str, task: str, teacher: str) -> Record:
        """The synthetic record that it becomes."""
        made = Provenance(
            teacher,
            self.strategy,
            self.template,
            self.seeds,
            self.source,
            self.confidence,
            dict(self.scores),
        )
        source = f"{teacher} ({self.strategy})"
        return Record(id, task, self.input, self.output, None, "synthetic", source, made)
