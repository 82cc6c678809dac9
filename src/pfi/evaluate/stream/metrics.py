"""The figures of the stream protocol: quality over time, with intervals over users.

The user is the unit of resampling, as in other studies: a user's steps are not independent.
Every figure is the mean over users of a user's own mean over some steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfi._util.events import Event
from pfi.evaluate.statistics import Draws
from pfi.evaluate.stream.replay import POLICIES
from pfi.evaluate.study.config import StudyConfig
from pfi.tasks import METRICS, Task

#: The gains that a run reports: a policy, and what it is compared with.
GAINS = (
    ("memory", "never"),
    ("adapter", "never"),
    ("both", "never"),
    ("both", "memory"),
    ("both", "adapter"),
)
_PLACE = {policy: i for i, policy in enumerate(POLICIES)}


def step_metric(task: Task) -> str:
    """The task's first metric that is the mean of per-question values."""
    usual = {"choice": "accuracy", "score": "mae", "text": "rouge_1"}[task.kind]
    return next((name for name in task.metrics if METRICS[name].per_question), usual)


def points_scale(task: Task) -> float:
    """Points (hundredths of the metric's range) of a difference of 1."""
    if step_metric(task) != "mae":
        return 100.0
    scale = [float(label) for label in task.labels]
    return 100.0 / (max(scale) - min(scale))


@dataclass(frozen=True)
class Scored:
    """One user's stream as scores, higher is better.

    Attributes:
        steps: their places in the stream, ``(n,)``.
        scores: ``(n, policies)``.
        records: length of the history.
        flipped: the first record with other labels, or None.
    """

    user: str
    steps: np.ndarray
    scores: np.ndarray
    records: int
    flipped: int | None


def scored(task: Task, event: Event) -> Scored:
    """The scores of one ``streamed`` event."""
    metric = METRICS[step_metric(task)]
    sign = 1.0 if metric.higher_is_better else -1.0
    rows = [
        [
            sign * metric.compute([task.parse(s[policy])], [task.parse(s["gold"])], task.labels)
            for policy in POLICIES
        ]
        for s in event["steps"]
    ]
    scores = np.array(rows, dtype=float).reshape(len(rows), len(POLICIES))
    steps = np.array([s["step"] for s in event["steps"]], dtype=int)
    return Scored(event["user"], steps, scores, event["records"], event["flipped"])


def stream_metrics(
    config: StudyConfig, tasks: Sequence[Task], log: Iterable[Event]
) -> dict[str, Any]:
    """The content of ``metrics.json``, without the machine.

    Args:
        config: of the run.
        tasks: those of the run, in order.
        log: its events; of a user's streams the last one counts.
    """
    known = {task.name: task for task in tasks}
    found: dict[str, dict[str, Scored]] = {name: {} for name in known}
    seconds = dict.fromkeys(known, 0.0)
    for event in log:
        if event["event"] == "streamed" and event["task"] in known:
            name = event["task"]
            found[name][event["user"]] = scored(known[name], event)
            seconds[name] += event["seconds"]
    cells, points = {}, _Points(config.bootstrap)
    for name, task in known.items():
        users = [found[name][user] for user in sorted(found[name])]
        users = [user for user in users if len(user.steps)]
        if not users:
            continue
        summary = _TaskSummary(config, task, users)
        cells[name] = {**summary.cell(), "seconds": seconds[name]}
        points.add(summary)
    return {
        "protocol": "stream",
        "tasks": cells,
        "points": points.figures(),
        "config": config.model_dump(mode="json"),
    }


# One task -------------------------------------------------------------------------------

#: Chooses a user's steps: True where one counts ``(n,)``.
Choice = Callable[[Scored], np.ndarray]


class _TaskSummary:
    """A task's users, with bootstrap draws that are the same for every figure."""

    def __init__(self, config: StudyConfig, task: Task, users: Sequence[Scored]) -> None:
        self.config, self.task, self.users = config, task, users
        self.sign = 1.0 if METRICS[step_metric(task)].higher_is_better else -1.0
        draws = Draws(len(users), config.bootstrap, config.seed_of("bootstrap", task.name))
        # How often each user is drawn, (rounds, users).
        self.weights = np.array([np.bincount(d, minlength=len(users)) for d in draws], dtype=float)
        self.final = self.means(lambda user: user.steps >= config.stream.first)

    def means(self, choice: Choice) -> np.ndarray:
        """Each user's mean score over the chosen steps, ``(users, policies)``, NaN without any."""
        rows = []
        for user in self.users:
            chosen = user.scores[choice(user)]
            rows.append(chosen.mean(0) if len(chosen) else np.full(len(POLICIES), np.nan))
        return np.array(rows)

    def samples(self, values: np.ndarray) -> np.ndarray:
        """Bootstrap means ``(rounds,)`` of users' values ``(users,)``, those with NaN left out."""
        known = ~np.isnan(values)
        total = self.weights @ np.where(known, values, 0.0)
        count = self.weights @ known.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / count

    def estimate(self, values: np.ndarray, sign: float = 1.0) -> dict[str, Any]:
        """Mean and 95 % interval of users' values."""
        if np.isnan(values).all():
            return {"mean": None, "ci95": None}
        ends = np.nanquantile(sign * self.samples(values), [0.025, 0.975])
        return {"mean": float(sign * np.nanmean(values)), "ci95": [float(e) for e in ends]}

    def figures(self, means: np.ndarray, cumulated: np.ndarray | None = None) -> dict[str, Any]:
        """Every policy's value and its gain over ``never``; the metric's own direction."""
        found: dict[str, Any] = {}
        for policy, i in _PLACE.items():
            found[policy] = self.estimate(means[:, i], self.sign)
            if cumulated is not None:
                found[policy]["cumulative"] = self.estimate(cumulated[:, i], self.sign)["mean"]
            if policy != "never":
                found[policy]["over_never"] = self.estimate(means[:, i] - means[:, 0])
        return found

    def cell(self) -> dict[str, Any]:
        """The task in ``metrics.json``."""
        stream, users = self.config.stream, self.users
        gains = {f"{a} over {b}": self.estimate(self.gain(a, b)) for a, b in GAINS}
        return {
            "metric": step_metric(self.task),
            "n_users": len(users),
            "n_questions": sum(len(user.steps) for user in users),
            "n_records": sum(user.records for user in users),
            "after_first_update": {
                "n_users": int((~np.isnan(self.final[:, 0])).sum()),
                "policies": self.figures(self.final),
                "gains": gains,
            },
            "windows": [self.window(place) for place in self.places()],
            "flip": self.flip() if stream.flip is not None else None,
        }

    def gain(self, policy: str, over: str) -> np.ndarray:
        """Each user's gain after the first update, ``(users,)``."""
        return self.final[:, _PLACE[policy]] - self.final[:, _PLACE[over]]

    # Windows ------------------------------------------------------------------------

    def since(self, user: Scored) -> np.ndarray:
        """Places of a user's steps, from the start of the stream or from the flip."""
        return user.steps - (user.flipped or 0)

    def places(self) -> list[int]:
        """The windows that have a step, by number; those before a flip are negative."""
        size = self.config.stream.window
        return sorted({int(place) for user in self.users for place in self.since(user) // size})

    def in_window(self, place: int) -> np.ndarray:
        """Each user's mean score in one window, ``(users, policies)``."""
        size = self.config.stream.window
        return self.means(lambda user: self.since(user) // size == place)

    def window(self, place: int) -> dict[str, Any]:
        """The figures of one window, and the cumulative means at its end."""
        size = self.config.stream.window
        here = self.in_window(place)
        cumulated = self.means(lambda user: self.since(user) // size <= place)
        return {
            "from": place * size,
            "to": (place + 1) * size - 1,
            "n_users": int((~np.isnan(here[:, 0])).sum()),
            "policies": self.figures(here, cumulated),
        }

    def flip(self) -> dict[str, Any]:
        """By policy: the level before the flip, and after how many records it is back there.

        The level is that of the steps from the first update to the flip. A policy is back at
        the first window whose mean is within the level's interval or better, if half of the
        users reach it; ``recovered`` is how many records it has seen since the flip when that
        window begins.
        """
        first, size = self.config.stream.first, self.config.stream.window
        before = self.means(lambda u: (u.steps >= first) & (self.since(u) < 0))
        later = {place: self.in_window(place) for place in self.places() if place >= 0}
        later = {
            place: values
            for place, values in later.items()
            if 2 * (~np.isnan(values[:, 0])).sum() >= len(self.users)
        }
        found = {}
        for policy, i in _PLACE.items():
            level = self.estimate(before[:, i])
            recovered = None
            if level["ci95"] is not None:
                least = level["ci95"][0] - 1e-9
                back = (
                    p * size for p, values in later.items() if np.nanmean(values[:, i]) >= least
                )
                recovered = next(back, None)
            before_flip = self.estimate(before[:, i], self.sign)
            found[policy] = {"before": before_flip, "recovered": recovered}
        return found


class _Points:
    """Gains averaged over tasks, in points; every task's users are drawn on their own."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._means: dict[tuple[str, str], list[float]] = {pair: [] for pair in GAINS}
        self._samples: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in GAINS}

    def add(self, task: _TaskSummary) -> None:
        """Count a task in, unless nobody's stream goes beyond the first update."""
        scale = points_scale(task.task)
        for pair in GAINS:
            gain = task.gain(*pair)
            if not np.isnan(gain).all():
                self._means[pair].append(scale * float(np.nanmean(gain)))
                self._samples[pair].append(scale * task.samples(gain))

    def figures(self) -> dict[str, Any]:
        """By gain: the mean over tasks, its interval and the number of tasks."""
        found = {}
        for (policy, over), means in self._means.items():
            if means:
                samples = np.mean(self._samples[policy, over], axis=0)
                ends = np.nanquantile(samples, [0.025, 0.975])
                found[f"{policy} over {over}"] = {
                    "mean": float(np.mean(means)),
                    "ci95": [float(end) for end in ends],
                    "tasks": len(means),
                }
        return found
