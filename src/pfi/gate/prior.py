"""What choices gained, and what of it is believed: empirical Bayes (Efron and Morris 1975).

What a choice gained on a user's own latest records is shrunk towards what it gained for other
users, the more the fewer those records are.  A choice has to be better than the shared adapter
alone by some standard deviations; else that answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfi.errors import StorageError
from pfi.gate.choices import Choice, Floats, GateConfig, choices
from pfi.models.adapters import Adapter
from pfi.tasks import Task

#: The name of a prior's file within a shared adapter's folder.
PRIOR = "gate.json"
#: By kind of task the standard deviations of a choice's true gain about zero and of a single
#: question's gain about the true one; for a scale as shares of its length.  Rounded from what
#: choices gained for dev users of LaMP, see docs/gate.md.
SPREADS = {"choice": (0.15, 0.2), "score": (0.07, 0.07), "text": (0.05, 0.15)}


@dataclass(frozen=True)
class Tried:
    """What choices gained on some questions of one user.

    Attributes:
        gains: ``(questions, plain choices)`` over ``NOTHING``.
        confidence: ``(questions,)`` how sure the shared adapter alone is of its answers.
    """

    gains: Floats
    confidence: Floats

    def of_all(self, config: GateConfig, sure: float) -> Floats:
        """Gains ``(questions, choices)``; from the confidence ``sure`` on, answers are left."""
        if not config.per_question:
            return self.gains
        unsure = self.confidence[:, None] < sure
        return np.concatenate([self.gains, np.where(unsure, self.gains[:, 1:], 0.0)], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"gains": self.gains.tolist(), "confidence": self.confidence.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tried:
        """From what ``to_dict`` gave."""
        return cls(np.array(values["gains"], float), np.array(values["confidence"], float))


@dataclass(frozen=True)
class Prior:
    """What choices gained for other users.

    Attributes:
        mean: ``(choices,)`` mean gain over ``NOTHING``.
        between: ``(choices,)`` variance of a new user's true gain about it.
        within: ``(choices,)`` variance of the gain on one question about a user's true gain.
        sure: the confidence from which on an answer counts as sure: the median of theirs.
        users: how many users it rests on.
    """

    mean: Floats
    between: Floats
    within: Floats
    sure: float = 1.0
    users: int = 0

    @classmethod
    def fit(cls, users: Sequence[Tried], config: GateConfig) -> Prior:
        """The prior of what users' choices gained, by the method of moments.

        Between-user variance as DerSimonian and Laird (1986) estimate it; ``between`` has the
        uncertainty of the mean in it too.

        Raises:
            ValueError: there is no user, or only users with a single question.
        """
        asked = [user for user in users if len(user.gains)]
        sure = float(np.median(np.concatenate([u.confidence for u in asked]))) if asked else 1.0
        known = [user.of_all(config, sure) for user in asked]
        counts = np.array([len(user) for user in known], dtype=float)
        if not known or counts.max() < 2:
            raise ValueError("a prior needs users with two questions or more")
        means = np.stack([user.mean(0) for user in known])
        square = sum(((user - user.mean(0)) ** 2).sum(0) for user in known)
        within = np.maximum(np.asarray(square) / (counts - 1).sum(), 1e-12)
        weights = counts[:, None] / within
        centre = (weights * means).sum(0) / weights.sum(0)
        spread = (weights * (means - centre) ** 2).sum(0) - (len(known) - 1)
        scale = weights.sum(0) - (weights**2).sum(0) / weights.sum(0)
        between = np.maximum(spread, 0) / np.maximum(scale, 1e-12)
        weights = 1 / (between + within / counts[:, None])
        mean = (weights * means).sum(0) / weights.sum(0)
        return cls(mean, between + 1 / weights.sum(0), within, sure, len(known))

    def posterior(self, gains: Floats | None) -> tuple[Floats, Floats]:
        """Mean and standard deviation ``(choices,)`` of a user's true gains.

        Args:
            gains: ``(records, choices)`` of the user's own records, or None.
        """
        count = 0 if gains is None else len(gains)
        own = gains.mean(0) if gains is not None and count else np.zeros_like(self.mean)
        prior, data = 1 / np.maximum(self.between, 1e-12), count / self.within
        return (prior * self.mean + data * own) / (prior + data), (prior + data) ** -0.5

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "between", "within")}
        return {**arrays, "sure": self.sure, "users": self.users}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Prior:
        """From what ``to_dict`` gave."""
        arrays = {name: np.array(values[name], float) for name in ("mean", "between", "within")}
        return cls(**arrays, sure=values["sure"], users=values["users"])


def choose(prior: Prior, gains: Floats | None, caution: float) -> tuple[int, Floats]:
    """The number of the choice with the greatest gain that can be believed, and all of these.

    Args:
        prior: what choices gained for other users; the first one is ``NOTHING``.
        gains: ``(records, choices)`` of the user's own records, or None.
        caution: standard deviations to take off a gain.

    Returns:
        the choice's number, 0 if no choice is believed to gain, and ``(choices,)`` the gains
        less caution.
    """
    mean, deviation = prior.posterior(gains)
    believed = mean - caution * deviation
    believed[0] = 0.0
    return int(believed.argmax()), believed


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


def prior_with(task: Task, config: GateConfig, shipped: bytes | None, confidence: Floats) -> Prior:
    """The prior of all choices; those that no other user had are judged by the weak one.

    Args:
        task: whose choices.
        config: the choices.
        shipped: the prior that came with the shared adapter, if one did.
        confidence: see `weak_prior`.

    Raises:
        StorageError: what was shipped is no prior.
    """
    prior = weak_prior(task, config, confidence)
    if shipped is None:
        return prior
    found, known = parse_prior(shipped, f"{PRIOR} of the shared adapter")
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
