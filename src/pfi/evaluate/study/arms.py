"""Arms: the methods that a study compares, each a choice of what an answer may use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pfi.errors import ConfigError
from pfi.memory.config import How


@dataclass(frozen=True)
class Kind:
    """A kind of personal adapter, by what it learns from.

    Attributes:
        name: as in the folder ``checkpoints/``.
        over_shared: it lies over the shared adapter, not straight on the backbone.
        real: it learns from the user's real records.
        synthetic: it learns from the synthetic ones that passed the filters, or from as many
            that did not meet them.
        older: it learns from nothing that the gate holds back.
    """

    name: str
    over_shared: bool = True
    real: bool = True
    synthetic: Literal["", "filtered", "unfiltered"] = ""
    older: bool = False

    @property
    def first(self) -> Kind | None:
        """The kind that learns from the same synthetic records alone, if it uses any."""
        name = {"filtered": "synthetic-only", "unfiltered": "unfiltered-only"}.get(self.synthetic)
        return KINDS[name] if name and self.real and not self.older else None

    @property
    def trial(self) -> Kind:
        """The kind that the gate tries on what it holds back, before it trusts this one."""
        return KINDS[f"{self.name}-older"]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("personal"),
        Kind("personal-only", over_shared=False),
        Kind("synthetic-only", real=False, synthetic="filtered"),
        Kind("cdcda", synthetic="filtered"),
        Kind("cdcda-unfiltered", synthetic="unfiltered"),
        Kind("unfiltered-only", real=False, synthetic="unfiltered"),
        Kind("personal-older", older=True),
        Kind("cdcda-older", synthetic="filtered", older=True),
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
        how: how memory is searched; as the study says when None.
        k: records retrieved; as many as the study says when None.
        profile: the prompt has a summary of the user's records.
        gate: the gate chooses how much of the adapter and of memory an answer uses.
        federated: the strategy by which the shared adapter is learnt, if not as the study says.
    """

    name: str
    summary: str
    shared: bool = False
    personal: str = ""
    memory: bool = False
    teacher: bool = False
    how: How | None = None
    k: int | None = None
    profile: bool = False
    gate: bool = False
    federated: str = ""

    @property
    def kind(self) -> Kind | None:
        """The kind of personal adapter, or None."""
        return KINDS[self.personal] if self.personal else None

    @property
    def without_synthetic(self) -> str | None:
        """The arm that differs by the synthetic records only, for one that uses some."""
        if self.kind is None or not self.kind.synthetic:
            return None
        if self.gate:
            return "pfi"
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
    Arm("rag-recent", "rag, with the user's latest records", True, memory=True, how="recent"),
    Arm("rag-bm25", "rag, with the records most like the question by words", True, memory=True,
        how="bm25"),
    Arm("rag-dense", "rag, with the records most like it by meaning", True, memory=True,
        how="dense"),
    Arm("rag-hybrid", "rag, with those most like it by both", True, memory=True, how="hybrid"),
    Arm("rag-profile", "rag, with a summary of the user before the records", True, memory=True,
        profile=True),
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
    Arm("pfi", "both adapters and memory, as much of each as the gate lets through", True,
        "personal", True, gate=True),
    Arm("pfi+synthetic", "the same, its adapter learnt from real and synthetic records", True,
        "cdcda", True, gate=True),
    Arm("teacher", "the teacher answers: an upper bound if it is strong", teacher=True),
    Arm("teacher+rag", "the teacher answers, shown retrieved records", memory=True, teacher=True),
]  # fmt: skip
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}
#: Before the name of a strategy, in arms and in the names of adapters.
FEDERATED = "shared-fed:"
DEFAULT_ARMS = ["generic", "shared", "rag", "personal", "personal+rag"]


def get_arm(name: str) -> Arm:
    """The arm of that name; ``@K`` after the name of one with memory sets its records.

    ``shared-fed:STRATEGY`` and ``shared-fed:STRATEGY+rag`` are ``shared`` and ``rag`` with a
    shared adapter learnt by federation.

    Raises:
        ConfigError: there is none.
    """
    base, at, k = name.partition("@")
    if base.startswith(FEDERATED):
        arm = _federated(base)
    elif base in ARMS:
        arm = ARMS[base]
    else:
        fix = f"use some of {', '.join(ARMS)}, {FEDERATED}STRATEGY, {FEDERATED}STRATEGY+rag"
        raise ConfigError(f"unknown arm {base!r}", fix=fix)
    if not at:
        return arm
    if not arm.memory or arm.gate:
        what = f"{name}: the arm {base} retrieves no fixed number of records"
        raise ConfigError(what, fix=f"write {base}")
    if not (k.isdigit() and int(k) > 0):
        raise ConfigError(f"{name}: {k!r} is no number of records", fix=f"write {base}@4")
    return replace(arm, name=name, k=int(k))


def _federated(name: str) -> Arm:
    from pfi.federate.strategies import get_strategy

    strategy = get_strategy(name.removeprefix(FEDERATED).removesuffix("+rag"))
    memory = name.endswith("+rag")
    summary = f"shared adapter by federation: {strategy.computes}"
    if memory:
        summary = f"rag, its shared adapter by federation with {strategy.name}"
    return Arm(name, summary, shared=True, memory=memory, federated=strategy.name)


def central(arm: str) -> str:
    """The arm that differs by the shared adapter being learnt centrally; "" if there is none.

    Args:
        arm: a name, maybe of a strategy that is not known here.
    """
    if not arm.startswith(FEDERATED):
        return ""
    name, at, k = arm.partition("@")
    return f"{'rag' if name.endswith('+rag') else 'shared'}{at}{k}"
