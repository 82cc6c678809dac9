"""Training personal adapters anew after an erasure, as those were trained that learnt from it.

What is to be trained stands in the vault until it is done, so that a run that is stopped can go
on; meanwhile answers use the version that the erasure fell back to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pfi.errors import DataError
from pfi.profile.erase import statement
from pfi.profile.erase.retrain_settings import SETTING
from pfi.profile.home import Home
from pfi.tasks import get_task

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone


def retrain(
    home: Home,
    *,
    backbone: Backbone | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> dict[str, str | None]:
    """Train all that erasures noted; the new version in use by task.

    None where nothing is left to learn, or where what was learnt is no better than what is in use.

    Args:
        home: the device.
        backbone: the profile's one, where it is loaded already.
        on_step: told the step, the number of steps and the loss.
        on_stage: told what begins, in a few words.

    Raises:
        ConfigError, StorageError: see `train`; what is left can be tried again.
    """
    from pfi.profile.learn.training import train

    found: dict[str, str | None] = {}
    with home.open_vault() as vault:
        waiting = vault.setting(SETTING) or {}
    for name, tasks in waiting.items():
        for task, how in tasks.items():
            on_stage(f"training task {task} anew")
            how = {**how, "holdout": _share(home, task, how["holdout"])}
            try:
                made = train(
                    home, get_task(task), **how,
                    backbone=backbone, on_step=on_step, on_stage=on_stage,
                )  # fmt: skip
                found[task] = made.version.version if made.used else None
            except DataError:  # too few records are left
                found[task] = None
            _tell(home, name, task, found[task])
            with home.open_vault() as vault, vault.change_setting(SETTING) as setting:
                left = {t: h for t, h in (setting.value or {}).get(name, {}).items() if t != task}
                setting.value = {**(setting.value or {}), name: left}
                setting.value = {n: t for n, t in setting.value.items() if t} or None
    return found


def _share(home: Home, task: str, share: float) -> float:
    """The same share to hold back, or none where it would be of no record."""
    with home.open_vault() as vault:
        count = len(vault.history(task, origin="real"))
    return share if share * count >= 1 else 0.0


def _tell(home: Home, name: str, task: str, version: str | None) -> None:
    """Put into the erasure's statement what was trained, and sign it again."""
    file = home.path / statement.FOLDER / f"{name}.json"
    told = statement.without(statement.check(file))
    adapters = dict(told["adapters"])
    adapters["to retrain"] = [other for other in adapters.get("to retrain", []) if other != task]
    if version is not None:
        adapters["retrained"] = {**adapters.get("retrained", {}), task: version}
        adapters["in use"] = {**adapters.get("in use", {}), task: version}
    statement.write(home, name, {**told, "adapters": adapters})
