"""Paired comparisons between the arms of finished studies, over tasks in points.

A point is a hundredth of the range of the metric (1, or 4 for MAE on scores of 1 to 5).  Means
over tasks have the users of every task drawn on their own (bootstrap over users).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfi.evaluate.statistics import interval
from pfi.tasks import METRICS

ROUNDS = 2000
#: Ranges of metrics that are not between 0 and 1: scores are 1 to 5.
RANGES = {"mae": 4.0, "rmse": 4.0}

#: By task and arm the cells of ``metrics.json``.
Cells = dict[tuple[str, str], dict[str, Any]]


def regime(config: dict[str, Any]) -> str:
    """How many records the users of a run were cut to, ``all`` if to none."""
    records = config.get("history", config.get("records"))  # its name in older runs
    return "all" if records is None else str(records)


def regimes(runs: Sequence[Path]) -> dict[str, Cells]:
    """The cells of all runs, by how many records users were cut to, the fewest first."""
    found: dict[str, Cells] = defaultdict(dict)
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        name = regime(metrics["config"])
        for arm, tasks in metrics["arms"].items():
            found[name].update({(task, arm): cell for task, cell in tasks.items()})
    order = sorted(found, key=lambda name: float("inf") if name == "all" else int(name))
    return {name: found[name] for name in order}


def tasks_of(cells: Cells) -> list[str]:
    """The tasks, in order."""
    return sorted({task for task, _ in cells})


def arms_of(cells: Cells) -> list[str]:
    """The arms, as they come."""
    return list(dict.fromkeys(arm for _, arm in cells))


def sign(metric: str) -> float:
    """1 where higher is better, else -1."""
    return 1.0 if METRICS[metric].higher_is_better else -1.0


def scale(metric: str) -> float:
    """Points in a difference of 1."""
    return 100 / RANGES.get(metric, 1.0)


def gaps(cells: Cells, task: str, arm: str, base: str | None) -> np.ndarray | None:
    """By user: the arm's gain over another, positive where it is better.

    None where one of them was not run on the task.
    """
    if base is None or (task, arm) not in cells or (task, base) not in cells:
        return None
    after, before = cells[task, arm], cells[task, base]
    users = sorted(before["users"])
    if users != sorted(after["users"]):
        raise SystemExit(f"{task}: {arm} and {base} have other users")
    scores = np.array([[c["users"][u]["score"] for u in users] for c in (after, before)])
    return sign(before["main"]) * (scores[0] - scores[1])


def means(values: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap means ``(ROUNDS,)`` of the users' values; one seed gives paired draws."""
    rng = np.random.default_rng(seed)
    return values[rng.integers(len(values), size=(ROUNDS, len(values)))].mean(1)


def over_tasks(values: dict[str, np.ndarray], seeds: Sequence[str]) -> dict[str, Any]:
    """``mean`` and ``ci95`` of the mean over tasks of users' values.

    Args:
        values: by task, those of its users.
        seeds: the tasks in an order that is the same for all arms.
    """
    draws = [means(found, seeds.index(task)) for task, found in values.items()]
    mean = float(np.mean([found.mean() for found in values.values()]))
    return {"mean": mean, "ci95": interval(np.mean(draws, axis=0))}


def gain(cells: Cells, arm: str, base: str | None) -> dict[str, Any] | None:
    """An arm's gain over another: ``tasks``, by task, and ``points``, their mean.

    None where there is no task with both.
    """
    tasks = tasks_of(cells)
    found = {task: users for task in tasks if (users := gaps(cells, task, arm, base)) is not None}
    if not found:
        return None
    rows = {}
    for task, users in found.items():
        drawn = means(users, tasks.index(task))
        rows[task] = {"gain": float(users.mean()), "ci95": interval(drawn)}
    points = {task: scale(cells[task, arm]["main"]) * users for task, users in found.items()}
    return {"tasks": rows, "points": over_tasks(points, tasks)}


def harmed(cells: Cells, arm: str, tolerance: float = 0.0) -> dict[str, Any] | None:
    """The share of users who are worse than under `shared`: ``tasks``, by task, and ``mean``.

    Args:
        tolerance: points that a user may lose and not count.
    """
    tasks = tasks_of(cells)
    found = {}
    for task in tasks:
        users = gaps(cells, task, arm, "shared")
        if users is not None:
            found[task] = (scale(cells[task, arm]["main"]) * users < -tolerance - 1e-9) * 1.0
    if not found:
        return None
    rows = {task: float(users.mean()) for task, users in found.items()}
    return {"tasks": rows, **over_tasks(found, tasks)}


def signed(mean: float, ends: Sequence[float], digits: int = 3) -> str:
    """A difference and its interval as text, starred where that excludes zero."""
    mark = "" if ends[0] <= 0 <= ends[1] else " *"
    return f"{mean:+.{digits}f} [{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]{mark}"
