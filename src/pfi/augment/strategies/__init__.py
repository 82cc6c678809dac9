"""Generation strategies, by name: how a teacher comes to new records for a user."""

from __future__ import annotations

from pfi.augment.strategies.answers import answer_call, answerable, read_answer
from pfi.augment.strategies.drafting import Steps, Strategy
from pfi.augment.strategies.profile import profile
from pfi.augment.strategies.relabel import relabel
from pfi.augment.strategies.vary import vary
from pfi.augment.strategies.write import write
from pfi.errors import ConfigError
from pfi.tasks import Task

STRATEGIES: dict[str, Strategy] = {
    "write": write,
    "relabel": relabel,
    "vary": vary,
    "profile": profile,
}

__all__ = [
    "STRATEGIES",
    "Steps",
    "Strategy",
    "answer_call",
    "default_strategies",
    "get_strategy",
    "read_answer",
]


def get_strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}", fix=f"use some of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def default_strategies(task: Task, teacher_kind: str, has_pool: bool) -> list[str]:
    """What suits a task and a kind of teacher (as in ``TeacherConfig``).

    The embedded teacher answers better than it writes; others write, and answer if they can.
    """
    relabels = ["relabel"] if has_pool and answerable(task) else []
    if teacher_kind == "embedded":
        return relabels or ["vary"]
    return ["write", *relabels]
