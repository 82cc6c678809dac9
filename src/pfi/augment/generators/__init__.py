"""Generators, by name: how a teacher comes to new records for a user."""

from __future__ import annotations

from pfi.augment.generators.answers import answer_call, answerable, read_answer
from pfi.augment.generators.drafting import RecordGenerator, Steps
from pfi.augment.generators.relabel import relabel
from pfi.augment.generators.write import profile, vary, write
from pfi.errors import ConfigError
from pfi.tasks import Task

GENERATORS: dict[str, RecordGenerator] = {
    "write": write,
    "relabel": relabel,
    "vary": vary,
    "profile": profile,
}

__all__ = [
    "GENERATORS",
    "RecordGenerator",
    "Steps",
    "answer_call",
    "default_generators",
    "get_generator",
    "read_answer",
]


def get_generator(name: str) -> RecordGenerator:
    """The generator of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in GENERATORS:
        raise ConfigError(f"unknown generator {name!r}", fix=f"use some of {', '.join(GENERATORS)}")
    return GENERATORS[name]


def default_generators(task: Task, teacher_kind: str, has_pool: bool) -> list[str]:
    """What suits a task and a kind of teacher (as in ``TeacherConfig``).

    The embedded teacher answers better than it writes; others write, and answer if they can.
    """
    relabels = ["relabel"] if has_pool and answerable(task) else []
    if teacher_kind == "embedded":
        return relabels or ["vary"]
    return ["write", *relabels]
