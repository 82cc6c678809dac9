"""After a round: is the shared adapter accepted, or does it go back to the last accepted one?

It is measured on devices that do not take part in training, by paired tests as in a device's own
refresh (`pfi.profile.learn.drift`): Student's t, and the signed ranks of Wilcoxon 1945.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import FederationError

State = TypeVar("State")
#: A loss from here on, in nats, is as good as one that is not finite.
_LARGEST = 1e9
Verdict = Literal["accepted", "rejected", "unmeasured"]


class AcceptConfig(BaseModel):
    """When a round's result is rejected; losses are nats a target token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: float = Field(
        0.02,
        ge=0,
        description="rise of the mean loss that is no reason, or that share of it if > 1",
    )
    limit: float = Field(
        0.2, gt=0, description="rise that is a reason without a test, or that share of it if > 1"
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="level of the tests that the loss rose")
    least: int = Field(5, ge=2, description="fewer devices than this decide nothing")
    trim: float = Field(
        0.1, ge=0, lt=0.5, description="share of devices left out at each end: losses are claims"
    )
    patience: int = Field(3, ge=1, description="rejections in a row that end the run")


@dataclass(frozen=True)
class Decision:
    """What became of a round's result.

    Attributes:
        round: its number.
        verdict: `unmeasured` when too few devices gave a loss; the run goes on with the result,
            but it is not what a later rejection goes back to.
        why: in a few words.
        devices: how many were compared.
        before, after: trimmed mean loss of the best accepted state and of this one.
        p: the smaller p-value of the two tests that the loss rose by more than the tolerance.
        back_to: for a rejection the round whose result counts again.
    """

    round: int
    verdict: Verdict
    why: str
    devices: int
    before: float | None = None
    after: float | None = None
    p: float | None = None
    back_to: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the run goes on with the round's result."""
        return self.verdict != "rejected"


class Acceptance(Generic[State]):
    """Accepts or rejects the results of rounds, and holds the last accepted one.

    A result is compared with the accepted one that had the lowest loss, not with the last one:
    otherwise many small rises, each within the tolerance, would add up.

    Attributes:
        decisions: all that were made, oldest first.
    """

    def __init__(self, config: AcceptConfig, start: State, losses: Mapping[str, float]) -> None:
        """Begin.

        Args:
            config: when a result is rejected.
            start: the state before the first round.
            losses: of the start by held-out device; one that is not finite does not count.

        Raises:
            FederationError: too few devices gave a loss.
        """
        self.config = config
        self.decisions: list[Decision] = []
        self._best = _finite(losses)
        if len(self._best) < config.least:
            raise FederationError(
                f"{len(self._best)} held-out devices measured the adapter at the start, "
                f"{config.least} are needed",
                where="accept.least",
                fix="hold out more devices, or switch acceptance off",
            )
        self._good: tuple[int, State] = (0, start)

    @property
    def last_good(self) -> tuple[int, State]:
        """The last accepted result: its round, 0 for the start, and the state."""
        return self._good

    def judge(
        self, round: int, state: State, evaluate: Callable[[State], Mapping[str, float]]
    ) -> tuple[State, Decision]:
        """Measure a round's result and say with which state the run goes on.

        Args:
            round: its number, from 1.
            state: the round's result.
            evaluate: gives the loss of each held-out device that answers.

        Raises:
            FederationError: ``patience`` results in a row were rejected.
        """
        decision = self._decide(round, evaluate(state))
        self.decisions.append(decision)
        if decision.verdict == "accepted":
            self._good = (round, state)
        if decision.accepted:
            return state, decision
        recent = self.decisions[-self.config.patience :]
        if len(recent) == self.config.patience and not any(d.accepted for d in recent):
            raise FederationError(
                f"the held-out devices rejected {len(recent)} rounds in a row "
                f"({decision.why}); the last good shared adapter is that of round {self._good[0]}",
                where=f"round {round}",
                fix="look for bad clients or a learning rate that is too high, use a robust rule "
                "(docs/robustness.md), then resume",
            )
        return self._good[1], decision

    def _decide(self, round: int, losses: Mapping[str, float]) -> Decision:
        config = self.config
        finite = _finite(losses)
        known = [device for device in losses if device in self._best]
        broken = [device for device in known if device not in finite]
        back = self._good[0]
        if len(known) < config.least:
            why = f"{len(known)} held-out devices answered, {config.least} are needed"
            return Decision(round, "unmeasured", why, len(known))
        if len(broken) > config.trim * len(known):
            why = f"{len(broken)} of {len(known)} devices measured a loss that is not finite"
            return Decision(round, "rejected", why, len(known), back_to=back)
        both = sorted(set(known) - set(broken))
        before = np.array([self._best[device] for device in both])
        after = np.array([finite[device] for device in both])
        mean = _trimmed(before, config.trim)
        scale = max(1.0, mean)
        allowed = config.tolerance * scale
        rise = _trimmed(after - before, config.trim)
        p = _p(after - before - allowed)
        why = f"the loss on {len(both)} held-out devices changed by {rise:+.4f}"
        measured = (len(both), mean, _trimmed(after, config.trim), p)
        if rise > config.limit * scale or (rise > allowed and p < config.alpha):
            return Decision(round, "rejected", why, *measured, back_to=back)
        if rise <= 0:
            self._best = finite
        return Decision(round, "accepted", why, *measured)

    # Checkpoints ------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """All but the last accepted state, as plain values for a checkpoint."""
        return {
            "best": dict(self._best),
            "good": self._good[0],
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    @classmethod
    def restored(
        cls, config: AcceptConfig, values: Mapping[str, Any], good: State
    ) -> Acceptance[State]:
        """Go on from a checkpoint.

        Args:
            config: as before.
            values: what ``values`` gave.
            good: the last accepted state, from ``last_good``.
        """
        acceptance = cls(config, good, values["best"])
        acceptance._good = (values["good"], good)
        acceptance.decisions = [Decision(**decision) for decision in values["decisions"]]
        return acceptance


def sensible_loss(value: object) -> float:
    """A loss as a device states it; infinite if it is no number of a sensible size."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return math.inf
    return float(value)


def _finite(losses: Mapping[str, float]) -> dict[str, float]:
    return {d: float(loss) for d, loss in losses.items() if abs(loss) < _LARGEST}


def _trimmed(values: Sequence[float] | NDArray[np.float64], trim: float) -> float:
    """The mean without the lowest and the highest ``trim`` of the values."""
    ordered = np.sort(np.asarray(values, dtype=float))
    cut = int(trim * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())


def _p(differences: NDArray[np.float64]) -> float:
    """The smaller p-value of two one-sided tests that differences are above zero."""
    from scipy.stats import ttest_1samp, wilcoxon  # type: ignore[import-untyped]

    if not differences.any():
        return 1.0
    ranks = float(wilcoxon(differences, alternative="greater").pvalue)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-9 * abs(mean):  # as good as equal, where the t-test loses its digits
        return min(ranks, 0.0 if mean > 0 else 1.0)
    return min(ranks, float(ttest_1samp(differences, 0.0, alternative="greater").pvalue))
