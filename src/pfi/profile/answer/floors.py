"""The floors on likeness of one profile, fitted when first needed and kept in its vault."""

from __future__ import annotations

from pydantic import ValidationError

from pfi.memory.index import Memory
from pfi.memory.off_topic import LEAST, Floor, default_floor, fit_floor
from pfi.profile.home import Home
from pfi.tasks import Task

#: The vault's setting: a floor by the name of the task.  It holds numbers alone, no text.
FLOORS = "floors"


def task_floor(home: Home, task: Task, memory: Memory) -> Floor | None:
    """The floor of a task's questions; None without records, or with few that have a template.

    It is fitted anew once the records have changed by a tenth.

    Raises:
        StorageError: the vault cannot be used.
    """
    records, embedder = int(memory.allowed().sum()), memory.embedder_name
    if records < LEAST:
        return default_floor(records, embedder) if records and task.free_form else None
    with home.open_vault() as vault:
        kept = vault.setting(FLOORS) or {}
    try:
        floor = Floor.model_validate(kept[task.name])
    except (KeyError, TypeError, ValidationError):
        floor = None
    if floor is None or not floor.fits(records, embedder):
        floor = fit_floor(memory, task)
        with home.open_vault() as vault, vault.change_setting(FLOORS) as setting:
            setting.value = {**(setting.value or {}), task.name: floor.model_dump()}
    return floor
