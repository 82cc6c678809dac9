"""What a device's gate knows of choices before it has tried them: the prior.

One that rests on other users (a study makes it) lies in the folder of the shared adapter that it
was made with; without one, choices must convince on the user's own records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfi.errors import StorageError
from pfi.gate.choices import Choice, Floats, GateConfig, Prior, choices
from pfi.profile.home import Home
from pfi.tasks import Task

if TYPE_CHECKING:
    from pfi.models.adapters import Adapter

#: The prior's file within a shared adapter's folder.
PRIOR = "gate.json"
#: Fewest records that choices are tried on where no prior tells of other users.
LEAST_TRIED = 4
#: By kind of task the standard deviations of a choice's true gain about zero and of a single
#: question's gain about the true one; for a scale as shares of its length.  Rounded from what
#: choices gained for dev users of LaMP, see docs/gate.md.
SPREADS = {"choice": (0.15, 0.2), "score": (0.07, 0.07), "text": (0.05, 0.15)}


def weak_prior(task: Task, config: GateConfig, confidence: Floats | None = None) -> Prior:
    """The prior of a device that knows nothing of other users.

    No choice is expected to gain, and each may gain or lose about as much as ``SPREADS`` says.
    A mean gain on `n` records is believed from ``caution * within / sqrt(n) * sqrt(1 + within**2
    / (n * between**2))`` on.  With 2 records that is .19 in the probability of the right label
    and .25 in ROUGE, which seldom happens: nearly everybody would be answered by the shared
    adapter alone, hence ``LEAST_TRIED``.  With 4 it is .12 and .14, with 8 .08 and .08.

    Args:
        task: whose choices.
        config: the choices.
        confidence: ``(records,)`` of the shared adapter in its answers; from their median on
            an answer counts as sure.
    """
    between, within = SPREADS[task.kind]
    if task.kind == "score":
        values = [float(label) for label in task.labels]
        length = max(values) - min(values)
        between, within = length * between, length * within
    count = len(choices(config))
    sure = 1.0 if confidence is None or not len(confidence) else float(np.median(confidence))
    return Prior(np.zeros(count), np.full(count, between**2), np.full(count, within**2), sure)


def came_with(home: Home, shared: str | None) -> bytes | None:
    """The prior that came with a shared adapter, as a study wrote it, or None.

    Raises:
        StorageError: the adapter's folder was changed.
    """
    if shared is None or PRIOR not in home.shared_adapters.manifest(shared).sha256:
        return None
    return home.shared_adapters.files(shared)[PRIOR]


def home_prior(task: Task, config: GateConfig, came: bytes | None, confidence: Floats) -> Prior:
    """The prior of all choices; those that no other user had are judged by the weak one.

    Args:
        task: whose choices.
        config: the choices.
        came: what came with the shared adapter.
        confidence: see `weak_prior`.

    Raises:
        StorageError: what came is no prior.
    """
    prior = weak_prior(task, config, confidence)
    if came is None:
        return prior
    found, known = parse_prior(came, f"{PRIOR} of the shared adapter")
    places = {choice: place for place, choice in enumerate(known)}
    for place, choice in enumerate(choices(config)):
        if choice in places:
            for name in ("mean", "between", "within"):
                getattr(prior, name)[place] = getattr(found, name)[places[choice]]
    return replace(prior, sure=found.sure, users=found.users)


def read_prior(file: Path) -> tuple[Prior, list[Choice]]:
    """A prior that rests on other users, as a study writes it, and its choices.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        what = f"this is no prior of a gate: {error.strerror}"
        raise StorageError(what, where=str(file)) from error
    return parse_prior(data, str(file))


def parse_prior(data: bytes, where: str) -> tuple[Prior, list[Choice]]:
    """The same of a file's content, which ``where`` names in errors.

    Raises:
        StorageError: it is damaged.
    """
    try:
        values = json.loads(data)
        known = choices(GateConfig.model_validate(values.get("gate", {})))
        prior = Prior.from_dict(values["prior"])
        for array in (prior.mean, prior.between, prior.within):
            if array.shape != (len(known),) or not np.isfinite(array).all():
                raise ValueError("its figures are not one for each choice")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"this is no prior of a gate: {' '.join(str(error).split())}"
        fix = "take the one of the study that trained the shared adapter, or none"
        raise StorageError(what, where=where, fix=fix) from error
    return prior, known


@dataclass(frozen=True)
class WithPrior:
    """A shared adapter and the prior that goes beside it, for `AdapterStore.add`."""

    adapter: Adapter
    prior: Path

    def to_bytes(self) -> dict[str, bytes]:
        """The files of both, by name.

        Raises:
            StorageError: the prior is missing or damaged.
        """
        read_prior(self.prior)
        return {**self.adapter.to_bytes(), PRIOR: self.prior.read_bytes()}
