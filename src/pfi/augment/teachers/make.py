"""Which teacher the settings name."""

from __future__ import annotations

from collections.abc import Callable

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.local import LocalTeacher
from pfi.augment.teachers.remote import RemoteTeacher
from pfi.augment.teachers.teacher import Teacher


def make_teacher(config: TeacherConfig, *, embedded: Callable[[], Teacher]) -> Teacher:
    """The teacher that the settings name.

    Args:
        config: which one.
        embedded: makes the embedded teacher; called only when that one is meant.

    Raises:
        TeacherError: it is not set up: no model, no key, no address.
        BackboneError: the local model cannot be loaded.
    """
    if config.kind == "openai":
        return RemoteTeacher(config)
    if config.kind == "local":
        return LocalTeacher(config)
    if config.kind == "gguf":
        from pfi.augment.teachers.gguf import GgufTeacher  # llama.cpp is an extra

        return GgufTeacher(config)
    return embedded()
