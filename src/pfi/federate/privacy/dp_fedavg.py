"""User-level differential privacy in the round: clip, sum, add noise once (DP-FedAvg, 1710.06963).

The bound may follow a quantile of the updates' norms (1905.03871); the noise may be correlated
over rounds (``matrix_mechanism.py``).  What is spent is counted where the noise is added.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pfi._util.seeds import generator, seed_of
from pfi.errors import ConfigError, FederationError
from pfi.federate.privacy.accounting import Accountant, Plan, Sampling, Spent, calibrated
from pfi.federate.privacy.matrix_mechanism import Banded, Factor, Tree
from pfi.federate.privacy.private_mean import PrivateMean, secret_normal
from pfi.federate.sampling import Participation, fixed_cohort, poisson_cohort

Floats = NDArray[np.float64]


class AdaptiveClip(BaseModel):
    """How the bound follows a quantile of the norms of clients' updates (1905.03871)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantile: float = Field(0.5, gt=0, lt=1, description="share of updates left as they are")
    rate: float = Field(0.2, gt=0, description="how fast the bound follows, in logarithms")
    noise: float | None = Field(
        None, gt=0, description="on the count of updates left as they are; none: cohort / 20"
    )
    largest: float = Field(
        100.0, ge=1, description="the bound never exceeds this many times `clip`; devices see to it"
    )


class PrivacyConfig(BaseModel):
    """What of a client may be seen in the shared adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mechanism: Literal["none", "gaussian", "tree", "banded"] = Field(
        "none", description="independent noise each round, or noise that cancels over rounds"
    )
    clip: float = Field(1.0, gt=0, description="largest L2 norm of a client's update")
    adaptive: AdaptiveClip | None = Field(
        None, description="the bound follows the updates from there on; only `gaussian`"
    )
    noise: float | None = Field(
        None, gt=0, description="deviation of the noise on a round's sum, in bounds"
    )
    epsilon: float | None = Field(
        None, gt=0, description="in place of `noise`: what all rounds together may spend"
    )
    delta: float | None = Field(
        None, gt=0, lt=1, description="may fail with this probability; none: clients ** -1.1"
    )
    budget: float | None = Field(
        None, gt=0, description="epsilon at which the run stops; none: `epsilon`, if given"
    )
    separation: int = Field(
        1, ge=1, description="`tree`, `banded`: rounds until a client may take part again"
    )
    participations: int | None = Field(
        None, ge=1, description="`tree`, `banded`: times a client takes part at most"
    )
    bands: int | None = Field(None, ge=1, description="of `banded`; none: `separation`")
    smallest_fleet: int = Field(
        1000, ge=1, description="fewest clients for which an epsilon is printed"
    )
    most_noise: float = Field(
        2.0, gt=0, description="longest noise, in largest signals, for which one is printed"
    )

    @property
    def limit(self) -> float:
        """The largest bound that a client goes along with, whatever the server tells it."""
        return self.clip * (self.adaptive.largest if self.adaptive else 1.0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mechanism == "none":
            return self
        if (self.noise is None) == (self.epsilon is None):
            raise ValueError("give either `noise` or `epsilon`")
        if self.adaptive and self.mechanism != "gaussian":
            raise ValueError("noise that cancels over rounds needs the same bound in all of them")
        if self.mechanism == "banded" and (self.bands or 1) > self.separation:
            raise ValueError("`bands` can be `separation` at most")
        return self


class PrivateRounds:
    """Privacy over all rounds of a run: who is asked, how much noise, what is spent.

    Args:
        config: its mechanism is not ``none``.
        fleet: clients that cohorts are drawn from.
        cohort: clients asked in a round; on average under Poisson sampling.
        sampling: how they are chosen where noise is independent.
        rounds: planned.
        width: numbers in an update, at most.
        seed: of a simulation; None where people's data are at stake, for the system's randomness.

    Attributes:
        clip: the bound that clients of the next round are told.
        released: rounds that gave a result.
        plan: what is accounted.
        accountant: what accounts it.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    def __init__(
        self,
        config: PrivacyConfig,
        *,
        fleet: int,
        cohort: int,
        sampling: Literal["poisson", "fixed"],
        rounds: int,
        width: int,
        seed: int | None,
    ) -> None:
        if config.mechanism == "none":
            raise ConfigError("privacy without a mechanism", fix="set `mechanism`")
        self.config, self.clip, self.released = config, config.clip, 0
        self.factor, self.participation = _correlation(config, rounds)
        way: Sampling = "turns" if self.factor else "all" if cohort == fleet else sampling
        plan = Plan(
            fleet=fleet,
            cohort=cohort,
            sampling=way,
            noise=config.noise or 1.0,
            delta=config.delta or min(0.5, fleet**-1.1),
            width=width,
            smallest_fleet=config.smallest_fleet,
            most_noise=config.most_noise,
        )
        if self.factor is not None:
            if cohort * config.separation > fleet:
                raise ConfigError(
                    f"cohorts of {cohort} with {config.separation} rounds between two "
                    f"participations need {cohort * config.separation} clients, not {fleet}",
                    where="separation",
                    fix="take fewer rounds between, or smaller cohorts",
                )
            plan = replace(plan, sensitivity=self._sensitivity, gain=self.factor.gain())
        if config.epsilon is not None:
            plan = calibrated(plan, config.epsilon, rounds)
        self.plan, self.accountant = plan, Accountant(plan)
        self._count_noise, self._sum_noise = _shares(config.adaptive, plan)
        self._rounds, self._seed, self._sampling = rounds, seed, sampling
        #: Noise that cancels has to be the same noise after a restart.
        self._key = secrets.token_bytes(32)
        self._stream = self.factor.stream() if self.factor else None

    def cohort(self, clients: Iterable[str]) -> list[str]:
        """Whom to ask in the next round, drawn as it is accounted.

        Args:
            clients: all of the fleet, whether or not they can be reached.

        Raises:
            FederationError: there are too few of them.
        """
        names, plan = sorted(set(clients)), self.plan
        seed = None if self._seed is None else seed_of(self._seed, "cohort", self.released)
        if plan.sampling == "all":
            return names
        if plan.sampling == "poisson":
            return poisson_cohort(names, plan.rate, seed)
        if plan.sampling == "fixed" and len(names) < plan.fleet:
            raise FederationError(
                f"there are {len(names)} clients, and lots are accounted for {plan.fleet}",
                fix="draw from all clients of the fleet, those that do not reply included",
            )
        if self.participation is not None:
            names = self.participation.available(names, self.released)
            return fixed_cohort(names, min(plan.cohort, len(names)), seed)
        return fixed_cohort(names, plan.cohort, seed)

    def combiner(
        self, cohort: Collection[str], width: int | None = None, step: float | None = None
    ) -> PrivateMean:
        """What combines the updates of the next round.

        Args:
            cohort: who was asked; updates of others are refused.
            width: numbers in an update of this round, where rounds differ.
            step: of which secure sums are whole multiples.

        Raises:
            FederationError: more were asked than is accounted, or correlated noise was not made
                for this round.
        """
        size = width or self.plan.width
        if self.factor and self.released >= self._rounds:
            raise FederationError(f"the noise was made for {self._rounds} rounds, which are over")
        if self.factor and size != self.plan.width:
            raise FederationError(
                "noise that cancels needs the same numbers in every round",
                where="mechanism",
                fix="take `gaussian`, or a strategy that always learns the same numbers",
            )
        asked, number = frozenset(cohort), self.released
        if self.plan.sampling == "fixed" and len(asked) > self.plan.cohort:
            raise FederationError(
                f"{len(asked)} clients were asked, and lots are accounted for {self.plan.cohort}",
                fix="count spare clients as part of the cohort",
            )

        def refusal(client: str) -> str | None:
            if client not in asked:
                return "it was not asked"
            turns = self.participation
            return None if turns is None else turns.refusal(client, number)

        def noise() -> Floats:
            if number != self.released:
                raise FederationError("a result of this round has been made already")
            normal = self._normal("sum", size)
            return self._stream.next(normal) if self._stream else normal

        return PrivateMean(
            size,
            clip=self.clip,
            deviation=self._sum_noise * self.clip,
            denominator=self.plan.cohort,
            noise=noise,
            refusal=refusal,
            done=self._done,
            step=step,
        )

    def _done(self, mean: PrivateMean) -> None:
        """Count a result, and move the bound towards the quantile."""
        if self.participation is not None:
            self.participation.record(mean.clients, self.released)
        if self.config.adaptive is not None:
            goal, noise = self.config.adaptive, self._count_noise * self._normal("count", 1)[0]
            share = (mean.within + noise) / self.plan.cohort + 0.5
            followed = self.clip * math.exp(-goal.rate * (share - goal.quantile))
            self.clip = min(followed, self.config.limit)
        self.released += 1

    def _normal(self, purpose: str, size: int) -> Floats:
        """Standard normal numbers of this round."""
        if self._seed is not None:
            return generator(self._seed, "noise", purpose, self.released).standard_normal(size)
        key = self._key if self.factor else secrets.token_bytes(32)
        return secret_normal(key, f"{purpose} {self.released}", size)

    def _sensitivity(self, rounds: int) -> float:
        """Of what the correlated noise covers, for what the participation allows."""
        assert self.factor is not None and self.participation is not None
        limits = self.participation
        return self.factor.sensitivity(rounds, limits.separation, limits.most)

    # What is spent --------------------------------------------------------------------

    def allows(self) -> bool:
        """Whether the next round is within the budget, and within the rounds of the noise."""
        if self.factor and self.released >= self._rounds:
            return False
        budget = self.config.budget or self.config.epsilon
        return budget is None or self.accountant.epsilon(self.released + 1) <= budget

    def spent(self) -> Spent:
        """What the rounds that gave a result have spent."""
        return self.accountant.spent_after(self.released)

    # Checkpoints ----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint, plain values; to be kept as secret as updates are.

        It has to be on disk before the round's result is sent to anyone: a round that is done
        again would have spent twice.
        """
        state: dict[str, Any] = {"released": self.released, "clip": self.clip}
        if self.participation is not None:
            state |= {"participation": self.participation.state(), "key": self._key.hex()}
        return state | {"plan": self._terms()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            FederationError: it is of a run with other settings.
        """
        if state["plan"] != self._terms():
            self._adopt_fleet(state["plan"])
        if state["plan"] != self._terms():
            raise FederationError(
                "the checkpoint's privacy was accounted for other settings",
                fix="go on with the settings of the run, or begin a new one",
            )
        self.clip, done = float(state["clip"]), int(state["released"])
        if self.participation is not None and self.factor is not None:
            self.participation.restore(state["participation"])
            self._key, self._stream = bytes.fromhex(state["key"]), self.factor.stream()
            for self.released in range(done):  # the noise so far, made again
                self._stream.next(self._normal("sum", self.plan.width))
        self.released = done

    def _adopt_fleet(self, terms: Mapping[str, Any]) -> None:
        """Go on as accounted where only the fleet's size changed.

        Lots are drawn with the run's own probability: a client that was taken out is one that never
        replies, and one that came later changes nothing for the others.
        """
        everyone = terms["sampling"] == "all"
        before = PrivateRounds(
            self.config,
            fleet=int(terms["clients"]),
            cohort=int(terms["cohort"]) if everyone else self.plan.cohort,
            sampling=self._sampling,
            rounds=self._rounds,
            width=self.plan.width,
            seed=self._seed,
        )
        if before._terms() == terms:
            vars(self).update(vars(before))

    def _terms(self) -> dict[str, Any]:
        """All that the accounting rests on."""
        plan, beside = self.plan, {"budget", "smallest_fleet", "most_noise"}
        return {
            "settings": self.config.model_dump(mode="json", exclude=beside),
            "clients": plan.fleet,
            "cohort": plan.cohort,
            "sampling": plan.sampling,
            "noise": plan.noise,
            "width": plan.width,
            "rounds": self._rounds if self.factor else None,
        }


def _correlation(config: PrivacyConfig, rounds: int) -> tuple[Factor | None, Participation | None]:
    """The matrix of correlated noise, and who may take part under it; neither if independent."""
    if config.mechanism not in ("tree", "banded"):
        return None, None
    most = config.participations or -(-rounds // config.separation)
    turns = Participation(config.separation, most)
    if config.mechanism == "tree":
        return Tree(rounds), turns
    return Banded(rounds, config.bands or config.separation), turns


def _shares(adaptive: AdaptiveClip | None, plan: Plan) -> tuple[float, float]:
    """The noise on the count of short updates, and on the sum in bounds.

    A client moves the count, less half of all, by 1/2; so both together are one Gaussian with
    the plan's multiplier if ``noise⁻² = sum⁻² + (2 count)⁻²`` (1905.03871).

    Raises:
        ConfigError: the count alone takes all of it.
    """
    if adaptive is None:
        return 0.0, plan.noise
    count = adaptive.noise or plan.cohort / 20
    if 2 * count <= plan.noise:
        raise ConfigError(
            f"noise of {count:g} on the count of short updates spends more than all of the privacy",
            where="adaptive.noise",
            fix=f"give one above {plan.noise / 2:.3g}, or ask more clients",
        )
    return count, (plan.noise**-2 - (2 * count) ** -2) ** -0.5
