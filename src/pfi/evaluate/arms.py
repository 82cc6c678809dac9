"""Arms: the methods that a study compares, each a choice of what an answer may use."""

from __future__ import annotations

from dataclasses import dataclass

from pfi.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One method under comparison.

    Attributes:
        name: as on the command line.
        summary: one line for people.
        shared: the answer uses the shared adapter.
        personal: the answer uses the user's personal adapter.
        memory: the answer uses records retrieved from the user's memory.
    """

    name: str
    summary: str
    shared: bool = False
    personal: bool = False
    memory: bool = False


_ALL = [
    Arm("generic", "the backbone as it is"),
    Arm("generic+rag", "the backbone, with retrieved records", memory=True),
    Arm("shared", "with the shared adapter", shared=True),
    Arm("rag", "shared adapter and retrieved records", shared=True, memory=True),
    Arm("personal", "shared and personal adapter", shared=True, personal=True),
    Arm("personal+rag", "both adapters and retrieved records", True, True, True),
    Arm("personal-only", "a personal adapter straight on the backbone", personal=True),
]
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
