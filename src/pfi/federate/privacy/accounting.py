"""What epsilon a federation has spent; dp-accounting does the mathematics.

Every way to choose cohorts is accounted as what it is: Poisson sampling by its privacy loss
distribution, fixed-size cohorts by that of lots without replacement, noise over the same clients
again and again as one Gaussian.  Where an epsilon would mislead, there is a reason instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from pfi.errors import ConfigError

#: How cohorts come about: each client by a coin of its own; so many of all, by lot; everyone in
#: every round; or by turns, a client again only after so many rounds.
Sampling = Literal["poisson", "fixed", "all", "turns"]
#: What an epsilon hides: that a client is in the fleet; which of two clients is; or whether a
#: client of the fleet adds its update or nothing.
Relation = Literal["add-or-remove", "replace-one", "zero-out"]

_RELATIONS: dict[Sampling, Relation] = {
    "poisson": "add-or-remove",
    "fixed": "replace-one",
    "all": "zero-out",
    "turns": "zero-out",
}
_HIDDEN: dict[Relation, str] = {
    "add-or-remove": "whether any one client is in the fleet",
    "replace-one": "which of any two clients is in the fleet",
    "zero-out": "whether the updates of any one client were used",
}
#: Beyond this epsilon nothing is promised that means anything.
LARGEST_EPSILON = 50.0
#: Orders of Rényi divergence that are tried.
_ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 512, 1024]
#: Narrowest and widest steps in which privacy loss is counted, always upwards.
_STEPS = (2e-5, 1e-3)
#: Where Rényi divergence already says more than this, loss distributions would only take memory.
_HOPELESS = 1000.0


def _once(rounds: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Plan:
    """What is accounted.

    Attributes:
        fleet: clients that cohorts are drawn from.
        cohort: clients asked in a round; on average under Poisson sampling.
        sampling: how they are chosen.
        noise: standard deviation of the noise on a round's sum, as a multiple of the bound on
            a client's part in it (the *noise multiplier*).
        delta: probability with which the promise may fail.
        width: numbers in an update.
        sensitivity: under ``turns``, how far all that one client can add moves the noise-free
            sums of so many rounds, in units of the bound.
        gain: under ``turns``, error of the running sum relative to independent noise.
        smallest_fleet: fewer clients than this, and no epsilon is printed.
        most_noise: nor where the noise is longer than this many times the largest signal.
    """

    fleet: int
    cohort: int
    sampling: Sampling
    noise: float
    delta: float
    width: int
    sensitivity: Callable[[int], float] = _once
    gain: float = 1.0
    smallest_fleet: int = 1000
    most_noise: float = 2.0

    @property
    def rate(self) -> float:
        """The probability that a client is in a cohort."""
        return self.cohort / self.fleet

    @property
    def relation(self) -> Relation:
        """What an epsilon hides."""
        return _RELATIONS[self.sampling]

    @property
    def noise_ratio(self) -> float:
        """Length of the noise on a mean over that of the longest possible mean."""
        return self.noise * self.gain * math.sqrt(self.width) / self.cohort


@dataclass(frozen=True)
class Spent:
    """What a run has spent.

    Attributes:
        epsilon: None where none is printed.
        delta: probability with which the promise may fail.
        relation: what is hidden.
        sampling: how cohorts were chosen.
        rounds: how many gave a result.
        refused: why there is no epsilon.
        sentence: all of it, for people.
    """

    epsilon: float | None
    delta: float
    relation: Relation
    sampling: Sampling
    rounds: int
    refused: str | None
    sentence: str


class Accountant:
    """Says what a plan has spent after so many rounds.

    Raises:
        ConfigError: the plan makes no sense.
    """

    def __init__(self, plan: Plan) -> None:
        if not 1 <= plan.cohort <= plan.fleet:
            raise ConfigError(
                f"a cohort of {plan.cohort} out of {plan.fleet} clients", fix="take 1 up to all"
            )
        if not (plan.noise > 0 and math.isfinite(plan.noise)):
            raise ConfigError(f"a noise multiplier of {plan.noise}", fix="give one above 0")
        if not 0 < plan.delta < 1:
            raise ConfigError(f"a delta of {plan.delta}", fix="give one above 0, below 1/clients")
        self.plan = plan

    def epsilon(self, rounds: int, *, by: Literal["best", "renyi"] = "best") -> float:
        """The epsilon after so many rounds, whether or not it is one to print.

        Args:
            rounds: how many gave a result.
            by: the tightest accountant there is, or Rényi divergence, for comparison.
        """
        plan = self.plan
        if rounds <= 0:
            return 0.0
        size = plan.sensitivity(rounds) if plan.sampling == "turns" else math.sqrt(rounds)
        if plan.sampling == "poisson" and plan.cohort < plan.fleet:
            return _poisson(plan.rate, plan.noise, rounds, plan.delta, by)
        if plan.sampling == "fixed":
            return _fixed(plan.fleet, plan.cohort, plan.noise, rounds, plan.delta, by)
        return _gaussian(plan.noise / size, plan.delta, by)

    def spent_after(self, rounds: int) -> Spent:
        """What is spent after so many rounds, as it may be printed."""
        plan, epsilon = self.plan, self.epsilon(rounds)
        refused = self.refusal(epsilon)
        shown = None if refused else math.ceil(epsilon * 1000) / 1000
        after = f"After {rounds} round" + ("" if rounds == 1 else "s")
        chosen = {
            "poisson": f"each of {plan.fleet} clients asked with probability {plan.rate:.4g}",
            "fixed": f"{plan.cohort} of {plan.fleet} clients asked by lot",
            "all": f"all {plan.fleet} clients asked every round",
            "turns": f"{plan.cohort} of {plan.fleet} clients asked by turns",
        }[plan.sampling]
        if shown is None:
            sentence = f"{after} ({chosen}): no epsilon is given, because {refused}."
        else:
            sentence = (
                f"{after} ({chosen}), epsilon is {shown:g} at delta {plan.delta:.2g} for "
                f"{plan.relation}. Who sees every shared adapter, and knows all of the other "
                f"clients, improves their odds of guessing {_HIDDEN[plan.relation]} at most "
                f"{math.exp(shown):.3g}-fold, except with probability {plan.delta:.2g}."
            )
        return Spent(shown, plan.delta, plan.relation, plan.sampling, rounds, refused, sentence)

    def refusal(self, epsilon: float) -> str | None:
        """Why this epsilon should not be printed, or None."""
        plan = self.plan
        if plan.fleet < plan.smallest_fleet:
            return (
                f"{plan.fleet} clients are too few for one to hide among: at least "
                f"{plan.smallest_fleet} are needed"
            )
        if plan.delta >= 1 / plan.fleet:
            return (
                f"a delta of {plan.delta:.2g} for {plan.fleet} clients would allow to publish "
                "one of them: it must be below 1/clients"
            )
        if plan.noise_ratio > plan.most_noise:
            return (
                f"the noise is {plan.noise_ratio:.3g} times as long as the longest possible mean "
                f"of {plan.cohort} updates of {plan.width} numbers, where {plan.most_noise:g} is "
                "the most that something can be learnt under; share fewer numbers or ask more "
                "clients"
            )
        if epsilon > LARGEST_EPSILON:
            return f"it would be above {LARGEST_EPSILON:g}, no meaningful protection"
        return None

    def rounds_within(self, budget: float, most: int = 100_000) -> int:
        """How many rounds a budget allows, at most ``most``."""
        low, high = 0, 1
        while high < most and self.epsilon(high) <= budget:
            low, high = high, min(2 * high, most)
        if high == most and self.epsilon(most) <= budget:
            return most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= budget else (low, middle)
        return low


def calibrated(plan: Plan, epsilon: float, rounds: int) -> Plan:
    """The plan with the least noise that stays within ``epsilon`` after ``rounds``.

    Raises:
        ConfigError: there is nothing to stay within.
    """
    from dp_accounting import get_sigma_gaussian  # type: ignore[import-untyped]
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    if epsilon <= 0 or rounds < 1:
        raise ConfigError(
            f"an epsilon of {epsilon} for {rounds} rounds", fix="give numbers above 0"
        )

    def excess(log_noise: float) -> float:
        spent = Accountant(replace(plan, noise=math.exp(log_noise))).epsilon(rounds)
        return min(spent, 1e9) - epsilon

    # Without lots there is a formula; with lots less noise is enough.
    size = plan.sensitivity(rounds) if plan.sampling == "turns" else math.sqrt(rounds)
    size *= 2 if plan.sampling == "fixed" else 1
    high = low = math.log(get_sigma_gaussian(epsilon, plan.delta) * size * (1 + 1e-9))
    while plan.sampling in ("poisson", "fixed") and low == high:
        low -= math.log(2)
        if excess(low) <= 0 and low > math.log(0.05):
            high = low
    if low < high and excess(low) > 0:
        high = brentq(excess, low, high, xtol=1e-4)
        while excess(high) > 0:
            high += 1e-4
    return replace(plan, noise=math.exp(high))


def _step(rate: float, noise: float) -> float:
    """The step for a round whose loss has about the deviation ``rate / noise``, a fifth of it."""
    return min(max(0.2 * rate / noise, _STEPS[0]), _STEPS[1])


@lru_cache(maxsize=4096)
def _gaussian(noise: float, delta: float, by: str = "best") -> float:
    """One Gaussian; many over the same clients are one with less noise."""
    from dp_accounting import GaussianDpEvent, get_epsilon_gaussian, rdp  # type: ignore[import-untyped]

    if by == "renyi":
        accountant = rdp.RdpAccountant(_ORDERS)
        return float(accountant.compose(GaussianDpEvent(noise)).get_epsilon(delta))
    return float(get_epsilon_gaussian(noise, delta))


@lru_cache(maxsize=4096)
def _poisson(rate: float, noise: float, rounds: int, delta: float, by: str) -> float:
    """A client is in or out, so the sum moves by the bound: the multiplier is the noise."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld, rdp

    event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    bound = float(rdp.RdpAccountant(_ORDERS).compose(event, rounds).get_epsilon(delta))
    if by == "renyi":
        return bound
    whole = _gaussian(noise / math.sqrt(rounds), delta)  # drawing lots never costs privacy
    if bound > _HOPELESS:
        return min(whole, bound)
    accountant = pld.PLDAccountant(value_discretization_interval=_step(rate, noise))
    return min(whole, float(accountant.compose(event, rounds).get_epsilon(delta)))


@lru_cache(maxsize=4096)
def _fixed(fleet: int, cohort: int, noise: float, rounds: int, delta: float, by: str) -> float:
    """One client in another's place moves the sum by twice the bound: half the multiplier.

    The accountant's events take the multiplier as relative to how far the sum moves, whatever
    the relation, so the half has to be ours.  Drawing lots never costs privacy; where the bound
    for it is the looser one, that without it holds.
    """
    from dp_accounting import (
        GaussianDpEvent,
        NeighboringRelation,
        SampledWithoutReplacementDpEvent,
        rdp,
    )

    whole = _gaussian(noise / 2 / math.sqrt(rounds), delta, by)
    if cohort == fleet:
        return whole
    rate = cohort / fleet
    # Losses are about those of Poisson sampling, of which Rényi divergence is fast.
    if by == "renyi" or _poisson(rate, noise / 2, rounds, delta, "renyi") > _HOPELESS:
        event = SampledWithoutReplacementDpEvent(fleet, cohort, GaussianDpEvent(noise / 2))
        accountant = rdp.RdpAccountant(_ORDERS, NeighboringRelation.REPLACE_ONE)
        return min(whole, float(accountant.compose(event, rounds).get_epsilon(delta)))
    losses = _fixed_losses(rate, noise / 2).self_compose(rounds)
    return min(whole, float(losses.get_epsilon_for_delta(delta)))


def _fixed_losses(rate: float, noise: float) -> Any:
    """The privacy loss distribution of a round with a cohort of a fixed size.

    With lots, ``delta(log(1 + rate (e^x - 1)))`` is ``rate`` times what ``delta(x)`` is without
    (1807.01647).  Replacing is symmetric, which gives it for negative epsilon; and a
    function of epsilon has a loss distribution that no other one exceeds (2207.04380).

    Args:
        rate: share of the fleet in a cohort.
        noise: relative to how far the sum moves.
    """
    from dp_accounting.pld import (  # type: ignore[import-untyped]
        pld_pmf,
        privacy_loss_distribution,
    )
    from scipy.stats import norm  # type: ignore[import-untyped]

    step = _step(rate, noise)
    farthest = 0.5 / noise**2 + 10 / noise  # beyond it lies less than 1e-23
    count = math.ceil((np.logaddexp(math.log1p(-rate), math.log(rate) + farthest)) / step)
    epsilons = np.arange(count + 1) * step
    without = np.log1p(np.expm1(epsilons) / rate)
    above = norm.cdf(0.5 / noise - without * noise)
    below = np.exp(without + norm.logcdf(-0.5 / noise - without * noise))
    deltas = rate * np.maximum(0, above - below)
    mirrored = (-np.expm1(-epsilons) + np.exp(-epsilons) * deltas)[:0:-1]
    return privacy_loss_distribution.PrivacyLossDistribution(
        pld_pmf.create_pmf_pessimistic_connect_dots(
            step, np.arange(-count, count + 1), np.concatenate([mirrored, deltas])
        )
    )
