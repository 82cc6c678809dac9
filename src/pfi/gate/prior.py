"""What choices gained, and what of it is believed: empirical Bayes (Efron and Morris 1975).

What a choice gained on a user's own latest records is shrunk towards what it gained for other
users, the more the fewer those records are.  A choice has to be better than the shared adapter
alone by some standard deviations; else that answers.

A gain can be measured twice, in the task's metric and in the likelihood of the right answers.
Both vary together from user to user, so the likelihood, of which every token tells, says
something of the metric where few answers were tried: user's true gains and a question's gains
about them are taken as normal in two dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfi.errors import StorageError
from pfi.gate.choices import Choice, Floats, GateConfig, Signal, choices
from pfi.models.adapters import Adapter
from pfi.tasks import Task

#: The name of a prior's file within a shared adapter's folder.
PRIOR = "gate.json"
#: By signal and kind of task the standard deviations of a choice's true gain about zero and of a
#: single question's gain about the true one; for a scale as shares of its length.  The metric's
#: are rounded from what choices gained for dev users of LaMP; the likelihood's, and the
#: correlations, are chosen between what few users of a small and of a real model showed, which
#: differ by a factor of ten: see docs/gate.md.
SPREADS = {
    "metric": {"choice": (0.15, 0.2), "score": (0.07, 0.07), "text": (0.05, 0.15)},
    "likelihood": {"choice": (0.5, 0.7), "score": (0.3, 0.4), "text": (0.15, 0.25)},
}
#: By kind of task the correlations of the two signals: of true gains, and of questions about these.
CORRELATIONS = {"choice": (0.9, 0.9), "score": (0.7, 0.6), "text": (0.5, 0.2)}
#: A correlation that is estimated counts as no more than this, for few users are behind it.
_MOST_CORRELATED = 0.95


@dataclass(frozen=True)
class Tried:
    """What choices gained on some questions of one user.

    Attributes:
        gains: ``(questions, choices)`` over ``NOTHING``, of the plain choices, or with ``of_all``
            of all; in the metric, or in the likelihood where that alone is the signal.
        confidence: ``(questions,)`` how sure the shared adapter alone is of its answers.
        likelier: ``(questions, choices)`` gains in the logarithm of the right answer's
            likelihood a token, where the signal is both.
    """

    gains: Floats
    confidence: Floats
    likelier: Floats | None = None

    def of_all(self, config: GateConfig, sure: float) -> Tried:
        """With the choices that leave an answer alone from the confidence ``sure`` on."""
        if not config.per_question:
            return self
        unsure = self.confidence[:, None] < sure

        def both(gains: Floats) -> Floats:
            return np.concatenate([gains, np.where(unsure, gains[:, 1:], 0.0)], axis=1)

        likelier = None if self.likelier is None else both(self.likelier)
        return replace(self, gains=both(self.gains), likelier=likelier)

    def only(self, places: Sequence[int]) -> Tried:
        """Of some of the choices."""
        likelier = None if self.likelier is None else self.likelier[:, places]
        return replace(self, gains=self.gains[:, places], likelier=likelier)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {name: value.tolist() for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tried:
        """From what ``to_dict`` gave."""
        return cls(**{name: np.array(value, float) for name, value in values.items()})


@dataclass(frozen=True)
class Likelier:
    """What a prior says of the gains in likelihood beside those in the metric.

    Attributes:
        mean, between, within: as in ``Prior``.
        shared_between: ``(choices,)`` covariance of a new user's true gains in both.
        shared_within: ``(choices,)`` covariance of a question's gains in both about these.
    """

    mean: Floats
    between: Floats
    within: Floats
    shared_between: Floats
    shared_within: Floats


@dataclass(frozen=True)
class Prior:
    """What choices gained for other users.

    Attributes:
        mean: ``(choices,)`` mean gain over ``NOTHING``.
        between: ``(choices,)`` variance of a new user's true gain about it.
        within: ``(choices,)`` variance of the gain on one question about a user's true gain.
        sure: the confidence from which on an answer counts as sure: the median of theirs.
        users: how many users it rests on.
        likelier: the same of gains in likelihood, where both are measured.
    """

    mean: Floats
    between: Floats
    within: Floats
    sure: float = 1.0
    users: int = 0
    likelier: Likelier | None = None

    @classmethod
    def fit(cls, users: Sequence[Tried], config: GateConfig) -> Prior:
        """The prior of what users' choices gained, by the method of moments.

        Between-user variance as DerSimonian and Laird (1986) estimate it; ``between`` has the
        uncertainty of the mean in it too.  Covariances by the same moments.

        Raises:
            ValueError: there is no user, or only users with a single question.
        """
        asked = [user for user in users if len(user.gains)]
        sure = float(np.median(np.concatenate([u.confidence for u in asked]))) if asked else 1.0
        known = [user.of_all(config, sure) for user in asked]
        gains = [user.gains for user in known]
        if not known or max(map(len, gains)) < 2:
            raise ValueError("a prior needs users with two questions or more")
        mean, between, within = _moments(gains)
        prior = cls(mean, between, within, sure, len(known))
        likelier = [user.likelier for user in known if user.likelier is not None]
        if config.signal != "both" or len(likelier) < len(known):
            return prior
        second = _moments(likelier)
        shared = _covariances(gains, likelier, (between, within), second[1:])
        return replace(prior, likelier=Likelier(*second, *shared))

    def posterior(self, tried: Tried | None) -> tuple[Floats, Floats]:
        """Mean and standard deviation ``(choices,)`` of a user's true gains.

        Args:
            tried: what all choices gained on the user's own records; None without any.
        """
        count = 0 if tried is None else len(tried.gains)
        between = np.maximum(self.between, 1e-12)
        if tried is None or not count:
            return self.mean, np.sqrt(between)
        off = tried.gains.mean(0) - self.mean
        total = between + self.within / count
        if self.likelier is None or tried.likelier is None:
            share = between / total
            return self.mean + share * off, np.sqrt(between - share * between)
        # The first row of B (B + W / n)^-1, B and W being the 2 x 2 covariances.
        second, shared = self.likelier, self.likelier.shared_between
        off_second = tried.likelier.mean(0) - second.mean
        total_second = np.maximum(second.between, 1e-12) + second.within / count
        total_shared = shared + second.shared_within / count
        scale = np.maximum(total * total_second - total_shared**2, 1e-24)
        share = (between * total_second - shared * total_shared) / scale
        share_second = (shared * total - between * total_shared) / scale
        left = between - share * between - share_second * shared
        mean = self.mean + share * off + share_second * off_second
        return mean, np.sqrt(np.maximum(left, 1e-12))

    def only(self, places: Sequence[int]) -> Prior:
        """Of some of the choices."""
        arrays = {name: getattr(self, name)[places] for name in _ARRAYS}
        second = self.likelier
        if second is not None:
            second = Likelier(*(array[places] for array in vars(second).values()))
        return replace(self, **arrays, likelier=second)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        values = {name: getattr(self, name).tolist() for name in _ARRAYS}
        if self.likelier is not None:
            second = {name: array.tolist() for name, array in asdict(self.likelier).items()}
            values["likelier"] = second
        return {**values, "sure": self.sure, "users": self.users}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Prior:
        """From what ``to_dict`` gave."""
        arrays = {name: np.array(values[name], float) for name in _ARRAYS}
        second = values.get("likelier")
        if second is not None:
            second = Likelier(**{name: np.array(value, float) for name, value in second.items()})
        return cls(**arrays, sure=values["sure"], users=values["users"], likelier=second)

    @property
    def arrays(self) -> list[Floats]:
        """All of its arrays, each one figure a choice."""
        second = [] if self.likelier is None else list(vars(self.likelier).values())
        return [*(getattr(self, name) for name in _ARRAYS), *second]


_ARRAYS = ("mean", "between", "within")


def _moments(users: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Mean gain, variance between users and within, ``(choices,)`` each; see ``Prior.fit``."""
    counts = np.array([len(user) for user in users], dtype=float)
    means = np.stack([user.mean(0) for user in users])
    square = sum(((user - user.mean(0)) ** 2).sum(0) for user in users)
    within = np.maximum(np.asarray(square) / (counts - 1).sum(), 1e-12)
    weights = counts[:, None] / within
    centre = (weights * means).sum(0) / weights.sum(0)
    spread = (weights * (means - centre) ** 2).sum(0) - (len(users) - 1)
    scale = weights.sum(0) - (weights**2).sum(0) / weights.sum(0)
    between = np.maximum(spread, 0) / np.maximum(scale, 1e-12)
    weights = 1 / (between + within / counts[:, None])
    mean = (weights * means).sum(0) / weights.sum(0)
    return mean, between + 1 / weights.sum(0), within


def _covariances(
    first: Sequence[Floats],
    second: Sequence[Floats],
    of_first: Sequence[Floats],
    of_second: Sequence[Floats],
) -> tuple[Floats, Floats]:
    """Covariances of two signals' gains between users and within, ``(choices,)`` each.

    Args:
        first, second: by user their gains ``(questions, choices)``.
        of_first, of_second: their variances between users and within.
    """
    counts = np.array([len(user) for user in first], dtype=float)
    pairs = list(zip(first, second, strict=True))
    products = sum(((a - a.mean(0)) * (b - b.mean(0))).sum(0) for a, b in pairs)
    within = np.asarray(products) / (counts - 1).sum()
    means = [np.stack([user.mean(0) for user in users]) for users in (first, second)]
    share = counts[:, None] / counts.sum()
    off = [mean - (share * mean).sum(0) for mean in means]
    spread = (counts[:, None] * off[0] * off[1]).sum(0) - (len(first) - 1) * within
    between = spread / max(counts.sum() - (counts**2).sum() / counts.sum(), 1e-12)
    limits = [_MOST_CORRELATED * np.sqrt(a * b) for a, b in zip(of_first, of_second, strict=True)]
    return np.clip(between, -limits[0], limits[0]), np.clip(within, -limits[1], limits[1])


def choose(prior: Prior, tried: Tried | None, caution: float) -> tuple[int, Floats]:
    """The number of the choice with the greatest gain that can be believed, and all of these.

    Args:
        prior: what choices gained for other users; the first one is ``NOTHING``.
        tried: what all choices gained on the user's own records, or None.
        caution: standard deviations to take off a gain.

    Returns:
        the choice's number, 0 if no choice is believed to gain, and ``(choices,)`` the gains
        less caution.
    """
    mean, deviation = prior.posterior(tried)
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
    count = len(choices(config))
    sure = 1.0 if confidence is None or not len(confidence) else float(np.median(confidence))
    signal = "likelihood" if config.signal == "likelihood" else "metric"
    prior = Prior(*_weak(task, signal, count), sure=sure)
    if config.signal != "both":
        return prior
    second = _weak(task, "likelihood", count)
    between, within = CORRELATIONS[task.kind]
    shared = (
        between * np.sqrt(prior.between * second[1]),
        within * np.sqrt(prior.within * second[2]),
    )
    return replace(prior, likelier=Likelier(*second, *shared))


def _weak(task: Task, signal: str, count: int) -> tuple[Floats, Floats, Floats]:
    """Mean and variances of ``count`` choices of which nothing is known."""
    between, within = SPREADS[signal][task.kind]
    if task.kind == "score" and signal == "metric":
        values = [float(label) for label in task.labels]
        length = max(values) - min(values)
        between, within = length * between, length * within
    return np.zeros(count), np.full(count, between**2), np.full(count, within**2)


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
    found, known, signal = parse_prior(shipped, f"{PRIOR} of the shared adapter")
    if "likelihood" in (signal, config.signal) and signal != config.signal:
        return prior  # figures of another measure say nothing
    if found.likelier is None:  # so the user's own likelihoods are not looked at
        prior = replace(prior, likelier=None)
    places = {choice: place for place, choice in enumerate(known)}
    for place, choice in enumerate(choices(config)):
        if choice in places:
            for mine, theirs in zip(prior.arrays, found.arrays, strict=False):
                mine[place] = theirs[places[choice]]
    return replace(prior, sure=found.sure, users=found.users)


def read_prior(file: Path) -> tuple[Prior, list[Choice], Signal]:
    """A prior that rests on other users, as a study writes it, its choices and its signal.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        what = f"this is no prior of a gate: {error.strerror}"
        raise StorageError(what, where=str(file)) from error
    return parse_prior(data, str(file))


def parse_prior(data: bytes, where: str) -> tuple[Prior, list[Choice], Signal]:
    """The same of a file's content, which ``where`` names in errors.

    Raises:
        StorageError: it is damaged.
    """
    try:
        values = json.loads(data)
        config = GateConfig.model_validate({"signal": "metric", **values.get("gate", {})})
        known, prior = choices(config), Prior.from_dict(values["prior"])
        for array in prior.arrays:
            if array.shape != (len(known),) or not np.isfinite(array).all():
                raise ValueError("its figures are not one for each choice")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"this is no prior of a gate: {' '.join(str(error).split())}"
        fix = "take the one of the study that trained the shared adapter, or none"
        raise StorageError(what, where=where, fix=fix) from error
    return prior, known, config.signal


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
