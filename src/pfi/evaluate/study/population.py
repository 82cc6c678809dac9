"""The gate's prior in a study: what its choices gained for users who are not answered for.

Their adapters are trained as those of the study's users are, and choices are tried on their
questions.  Each group's gains are written when it is done, so that a stopped run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pfi._util.files import write_json
from pfi.datasets.lamp import open_users
from pfi.errors import ConfigError, DataError
from pfi.evaluate.study.arms import Arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.group_run import GroupRun
from pfi.evaluate.study.task_setup import Group, TaskSetup, prior_file
from pfi.gate.prior import Prior, Tried
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.tasks import Task

#: The part of a run folder where the adapters of these users are.
FOLDER = "population"


def make_prior(
    config: StudyConfig,
    out: Path,
    task: Task,
    backbone: Backbone,
    shared: Adapter | None,
    arm: Arm,
    on_progress: Callable[[int, int], None] = lambda done, users: None,
) -> None:
    """Write the prior of an arm's gate for a task, unless it is there.

    Args:
        config: the study's.
        out: its run folder.
        task: the task.
        backbone: without the shared adapter.
        shared: the shared adapter.
        arm: one with a gate.
        on_progress: told how many of the users are done.

    Raises:
        ConfigError: the users are those that the study answers for.
        DataError: too few of them have questions whose answers are known.
    """
    path = prior_file(out, arm, task)
    if path.exists():
        return
    assert arm.kind is not None
    folder = config.data / task.name
    split = config.population_split or _default_split(config, folder)
    if split == config.split:
        what = f"the gate's prior cannot rest on the users that are answered for ({split})"
        raise ConfigError(what, where="population_split", fix="name another split")
    if split == config.train_split:
        folder = (config.train_data or config.data) / task.name
    limit, size = config.population_users, config.working_set
    users = open_users(folder, task, split, limit=limit, seed=config.seed)
    apart = config.model_copy(update={"split": split})
    with closing(TaskSetup(apart, out / FOLDER, task, backbone, shared)) as setup:
        tried: list[Tried] = []
        for index, start in enumerate(range(0, len(users), size)):
            done = out / FOLDER / "gains" / f"{task.name}-{arm.name}-{index}.json"
            if not done.exists():
                group = Group(index, users[start : start + size], {}, {})
                found = GroupRun(setup, group).try_questions(arm, arm.kind)
                write_json(done, {user: entry.to_dict() for user, entry in found.items()})
            tried += map(Tried.from_dict, json.loads(done.read_text("utf-8")).values())
            on_progress(min(start + size, len(users)), len(users))
    try:
        prior = Prior.fit(tried, config.gate)
    except ValueError as error:
        what = "the gate needs other users, with two questions or more whose answers are known"
        raise DataError(what, path=folder, fix="set population_split to another split") from error
    gate = config.gate.model_dump()
    write_json(path, {"split": split, "gate": gate, "prior": prior.to_dict()})


def _default_split(config: StudyConfig, folder: Path) -> str:
    if config.split != "dev" and (folder / "dev_outputs.json").exists():
        return "dev"
    return config.train_split
