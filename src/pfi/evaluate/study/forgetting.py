"""What a study's adapters make the backbone forget: the shared one, and those of some users."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

from pfi._util.events import Event, new_event
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.run import Run
from pfi.models.adapters import Adapter, stacked
from pfi.models.backbone import Backbone
from pfi.tasks import Task
from pfi.train.config import ForgettingConfig
from pfi.train.forgetting import GeneralProbe
from pfi.train.precision import as_trained


def measure_forgetting(
    run: Run, task: Task, backbone: Backbone, users: Sequence[str]
) -> Iterator[Event]:
    """The events of what adapters make the plain backbone forget, but of those that are logged.

    Args:
        run: its settings say for how many users; its folder has the adapters.
        task: whose adapters.
        backbone: without any.
        users: the ids of all users; the sample is the same whenever it is drawn.
    """
    config, name, checkpoints = run.config, task.name, Checkpoints(run.out)
    probe = GeneralProbe(as_trained(backbone, config.personal, config.engine), ForgettingConfig())
    shared = checkpoints.load(config.shared_kind, name)
    if shared is not None and None not in run.log.forgotten("shared", name):
        yield _event(probe, task, "shared", None, shared)
    rng = random.Random(config.seed_of("forgetting", name))
    sample = sorted(rng.sample(sorted(users), min(config.forgetting, len(users))))
    for kind in dict.fromkeys(arm.kind for arm in run.arms if arm.kind is not None):
        for user in sample:
            own = checkpoints.load(kind.name, name, user)
            if own is None or user in run.log.forgotten(kind.name, name):
                continue
            if kind.over_shared and shared is not None:
                own = stacked([(shared, 1.0), (own, 1.0)])
            yield _event(probe, task, kind.name, user, own)


def _event(probe: GeneralProbe, task: Task, kind: str, user: str | None, adapter: Adapter) -> Event:
    figures = probe.forgetting(adapter).figures()
    return new_event("forgetting", task=task.name, adapter=kind, user=user, **figures)


def mean_forgetting(log: Iterable[Event]) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and kind of adapter the number of adapters and the means of their figures."""
    found: dict[tuple[str, str], dict[str | None, Event]] = defaultdict(dict)
    for event in log:
        if event["event"] == "forgetting":
            found[event["task"], event["adapter"]][event["user"]] = event
    means: dict[str, dict[str, dict[str, Any]]] = {}
    for (task, kind), by_user in found.items():
        events = [*by_user.values()]
        names = [key for key, value in events[0].items() if isinstance(value, float)]
        figures = {n: fmean(event[n] for event in events) for n in names if n != "time"}
        means.setdefault(task, {})[kind] = {"adapters": len(events), **figures}
    return means
