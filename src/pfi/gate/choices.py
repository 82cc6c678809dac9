"""The gate: how much of the personal adapter and of memory a user's answers use.

Empirical Bayes (Efron and Morris 1975): what a choice gained on a user's own latest records is
shrunk towards what it gained for other users, the more the fewer those records are.  A choice
has to be better than the shared adapter alone by some standard deviations; else that answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]


class GateConfig(BaseModel):
    """What the gate chooses from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.0, 0.5, 1.0], min_length=1, description="weights of the personal adapter, from 0 to 1"
    )
    ks: list[Annotated[int, Field(ge=0, le=32)]] = Field(
        [0, 2, 4], min_length=1, description="numbers of retrieved records"
    )
    per_question: bool = Field(
        True,
        description="also choose to weigh the adapter by how like the user's records a question "
        "is, or to leave alone what the shared adapter is sure of",
    )
    caution: float = Field(
        1.5, ge=0, description="standard deviations that a gain has to exceed to be believed"
    )
    held_back: float = Field(
        0.3, gt=0, lt=1, description="newest share of a user's records that choices are tried on"
    )
    least: int = Field(2, ge=1, description="fewest records held back; with fewer, none are")
    most: int = Field(8, ge=1, description="most records held back")


@dataclass(frozen=True, slots=True)
class Choice:
    """What an answer uses beside the backbone and the shared adapter.

    Attributes:
        weight: of the personal adapter, in [0, 1].
        k: how many retrieved records.
        by_likeness: the weight is multiplied by how like the user's records a question is
            (FedDPA, arXiv 2403.19211).
        if_unsure: a question that the shared adapter alone is sure of has its answer.
    """

    weight: float = 0.0
    k: int = 0
    by_likeness: bool = False
    if_unsure: bool = False

    def weight_at(self, likeness: float) -> float:
        """The weight for a question of this likeness, in steps of ``STEP`` of the whole."""
        if not self.by_likeness:
            return self.weight
        return self.weight * round(likeness / STEP) * STEP


#: The shared adapter alone.
NOTHING = Choice()
#: Weights by likeness come in steps, so that questions of one weight share a pass.
STEP = 0.25


def plain_choices(config: GateConfig) -> list[Choice]:
    """What the gate may choose regardless of how sure an answer is, ``NOTHING`` first."""
    found = [Choice(weight, k) for k in config.ks for weight in config.weights]
    if config.per_question:
        found += [Choice(max(config.weights), k, by_likeness=True) for k in config.ks]
    return [NOTHING, *(choice for choice in dict.fromkeys(found) if choice != NOTHING)]


def choices(config: GateConfig) -> list[Choice]:
    """All that the gate may choose, ``NOTHING`` first."""
    plain = plain_choices(config)
    return plain + ([replace(c, if_unsure=True) for c in plain[1:]] if config.per_question else [])


def mixing_weights(config: GateConfig) -> list[float]:
    """All weights above zero that an answer may ask for."""
    most = max(config.weights)
    steps = round(1 / STEP) if config.per_question else 0
    found = {*config.weights, *(most * step * STEP for step in range(1, steps + 1))}
    return sorted(weight for weight in found if weight > 0)


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
