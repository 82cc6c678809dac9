"""Two decisions of a refresh: whether training pays, and whether its result may be used.

Losses are nats a target token, one value a held-back record; tests are one-sided.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

#: The latest new records that are tested, each number by itself; a change may be very recent.
WINDOWS = (8, 32)
#: Answers that no record before had count from this many on; one may be a slip.
UNSEEN = 2


@dataclass(frozen=True)
class Drift:
    """Whether training pays.

    Attributes:
        found: whether it does.
        why: in a few words.
        new: how many records the active version has not learnt from.
        p: the smallest p-value times the number of tests, or None where nothing was tested.
        before: the active version's mean loss on its held-back records when it was made.
        now: its mean loss on the latest new ones.
        window: how many of the latest records the change shows in, where it shows in losses.
    """

    found: bool
    why: str
    new: int
    p: float | None = None
    before: float | None = None
    now: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class Check:
    """A candidate beside the current model on some held-back records.

    Attributes:
        of: `recent`, all that are new to both; `own` or `feedback`, those of one source; `harm`,
            own ones, where a candidate that learnt nothing of the feedback is the current model.
        records: how many.
        before, after: mean loss of the current model and of the candidate.
        decides: what decides: the p-value of the gain (`recent`), else the mean rise.
        passed: whether it speaks for the candidate, or at least not against it.
    """

    of: str
    records: int
    before: float
    after: float
    decides: float
    passed: bool


def drifted(recent: Sequence[float], before: Sequence[float]) -> tuple[float, int] | None:
    """Whether recent losses are higher than those from before.

    This is the exact rank-sum test (Mann and Whitney 1947).  It needs no assumption on the
    losses, which are skewed and have far outliers, so that four against four are enough: if all
    recent ones are the higher ones, p is 1/70.  Welch's t would need near-normal values at that
    size.  The last 8 and the last 32 are tested apart and the smaller p is doubled (Bonferroni),
    so that a change is neither drowned by what came before it nor missed for being slight.

    Args:
        recent: losses on records the model has not learnt from, oldest first.
        before: losses on records it had not learnt from either when it was made.

    Returns:
        the p-value, and how many of the latest records the change is likely to be old: as many
        as differ most by the same test, of the last 8 to 32; None where there is nothing to
        compare.
    """
    if not recent or not before:
        return None

    def p(size: int) -> float:
        from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

        last = recent[-size:]
        return float(mannwhitneyu(last, before, alternative="greater", method="exact").pvalue)

    least, most = (min(size, len(recent)) for size in WINDOWS)
    sizes = {least, most}
    smallest = min(p(size) for size in sizes)
    return min(1.0, len(sizes) * smallest), min(range(least, most + 1), key=p)


def unseen(labels: Collection[str], learnt: Collection[str], recent: Sequence[str]) -> int:
    """How many recent outputs are allowed labels that were never learnt."""
    known = set(learnt)
    return sum(output in labels and output not in known for output in recent)


def gains(
    before: Sequence[float],
    after: Sequence[float],
    sources: Sequence[object] = (),
    *,
    least: int,
    alpha: float,
) -> Check:
    """Whether a candidate beats the current model on the same records.

    Their mean must gain, and one of two tests must say that this is no chance.  A paired t-test:
    the pairs share a record, so their differences vary far less than the losses do; with four of
    them the mean gain must be 1.2 times their standard deviation, which is taken within the
    sources, since these may gain differently.  Or the exact signed-rank test (Wilcoxon 1945),
    from five records on: after a change a few gains are huge, which a t-test takes for noise.
    Either is at level ``alpha``, so that at most twice that share of worthless candidates pass.

    Args:
        before, after: losses of the current model and of the candidate, record by record.
        sources: where each record comes from; all from one when empty.
        least: with fewer records nothing beats anything.
        alpha: the level.
    """
    differences = [a - b for a, b in zip(before, after, strict=True)]
    p = 1.0
    if len(differences) >= least and fmean(differences) > 0:
        p = min(_t_test(differences, sources or [0] * len(before)), _signed_rank(differences))
    return Check("recent", len(before), _mean(before), _mean(after), p, p < alpha)


def _t_test(differences: Sequence[float], sources: Sequence[object]) -> float:
    from scipy.stats import t

    groups: dict[object, list[float]] = {}
    for source, difference in zip(sources, differences, strict=True):
        groups.setdefault(source, []).append(difference)
    freedom = len(differences) - len(groups)
    if freedom < 1:
        return 1.0
    squares = sum((d - fmean(group)) ** 2 for group in groups.values() for d in group)
    error = math.sqrt(squares / freedom / len(differences))
    return float(t.sf(fmean(differences) / error, freedom)) if error else 0.0


def _signed_rank(differences: Sequence[float]) -> float:
    from scipy.stats import wilcoxon

    changed = [d for d in differences if d]
    return float(wilcoxon(changed, alternative="greater").pvalue) if changed else 1.0


def unharmed(of: str, before: Sequence[float], after: Sequence[float], tolerance: float) -> Check:
    """Whether a candidate's mean loss on one source's records does not rise.

    A rise up to ``tolerance``, or by that share where losses are above one, counts as noise.
    The mean itself is compared and not a bound of it: a few records that become very wrong make
    a bound wide, and are just what a poisoned batch does.
    """
    rise = _mean(after) - _mean(before)
    allowed = tolerance * max(1.0, _mean(before))
    return Check(of, len(before), _mean(before), _mean(after), rise, rise <= allowed)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
