"""Arms: the methods that a study compares, each a choice of what an answer may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfi.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """A kind of personal adapter, by what it learns from.

    Attributes:
        name: as in the folder ``checkpoints/``.
        over_shared: it lies over the shared adapter, not straight on the backbone.
        real: it learns from the user's real records.
        synthetic: it learns from the synthetic ones that passed the filters, or from as many
            that did not meet them.
    """

    name: str
    over_shared: bool = True
    real: bool = True
    synthetic: Literal["", "filtered", "unfiltered"] = ""

    @property
    def first(self) -> Kind | None:
        """The kind that learns from the same synthetic records alone, if it uses any."""
        name = {"filtered": "synthetic-only", "unfiltered": "unfiltered-only"}.get(self.synthetic)
        return KINDS[name] if name and self.real else None


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("personal"),
        Kind("personal-only", over_shared=False),
        Kind("synthetic-only", real=False, synthetic="filtered"),
        Kind("cdcda", synthetic="filtered"),
        Kind("cdcda-unfiltered", synthetic="unfiltered"),
        Kind("unfiltered-only", real=False, synthetic="unfiltered"),
    )
}


@dataclass(frozen=True)
class Arm:
    """One method under comparison.

    Attributes:
        name: as on the command line.
        summary: one line for people.
        shared: the answer uses the shared adapter.
        personal: the kind of the user's personal adapter that it uses, if any.
        memory: the answer uses records retrieved from the user's memory.
        teacher: the teacher answers, not the user's model.
    """

    name: str
    summary: str
    shared: bool = False
    personal: str = ""
    memory: bool = False
    teacher: bool = False

    @property
    def kind(self) -> Kind | None:
        """The kind of personal adapter, or None."""
        return KINDS[self.personal] if self.personal else None

    @property
    def without_synthetic(self) -> str | None:
        """The arm that differs by the synthetic records only, for one that uses some."""
        if self.kind is None or not self.kind.synthetic:
            return None
        return "personal+rag" if self.memory else "personal"

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher is needed, to answer or to write synthetic records."""
        return self.teacher or (self.kind is not None and bool(self.kind.synthetic))


_ALL = [
    Arm("generic", "the backbone as it is"),
    Arm("generic+rag", "the backbone, with retrieved records", memory=True),
    Arm("shared", "with the shared adapter", shared=True),
    Arm("rag", "shared adapter and retrieved records", shared=True, memory=True),
    Arm("personal", "shared and personal adapter", True, "personal"),
    Arm("personal+rag", "both adapters and retrieved records", True, "personal", True),
    Arm("personal-only", "a personal adapter straight on the backbone", False, "personal-only"),
    Arm("synthetic-only", "personal adapter learnt from synthetic records alone", True,
        "synthetic-only"),
    Arm("synthetic-only+rag", "the same, and retrieved records", True, "synthetic-only", True),
    Arm("cdcda", "personal adapter learnt from real and synthetic records", True, "cdcda"),
    Arm("cdcda+rag", "the same, and retrieved records", True, "cdcda", True),
    Arm("cdcda-unfiltered", "as cdcda, with synthetic records as they came", True,
        "cdcda-unfiltered"),
    Arm("cdcda-unfiltered+rag", "the same, and retrieved records", True, "cdcda-unfiltered", True),
    Arm("teacher", "the teacher answers: an upper bound if it is strong", teacher=True),
    Arm("teacher+rag", "the teacher answers, shown retrieved records", memory=True, teacher=True),
]  # fmt: skip
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}
DEFAULT_ARMS = ["generic", "shared", "rag", "personal", "personal+rag"]


def get_arm(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ARMS:
        raise ConfigError(f"unknown arm {name!r}", fix=f"use some of {', '.join(ARMS)}")
    return ARMS[name]
