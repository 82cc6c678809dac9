"""Rules that make one update of many although some are bad, computed in blocks of coordinates.

Rules that weigh whole updates need only the products of all pairs of them: one pass over the
updates finds these, a second one adds up the result.  Papers are named at each rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Bytes of float64 that a block of coordinates may take.
BLOCK_BYTES = 1 << 25


def median(values: Floats, weights: Floats) -> Floats:
    """The weighted median of each column of ``(n, width)`` (Yin et al., 1803.01498).

    Where half of the weight lies exactly between two values it is their mean.
    """
    if (weights == weights[0]).all():
        return np.median(values, axis=0)
    order = np.argsort(values, axis=0)
    reached = np.cumsum(weights[order], axis=0)
    half = reached[-1] / 2
    low = np.take_along_axis(order, (reached >= half).argmax(axis=0)[None], axis=0)
    high = np.take_along_axis(order, (reached > half).argmax(axis=0)[None], axis=0)
    ends = np.take_along_axis(values, np.concatenate([low, high]), axis=0)
    return ends.mean(axis=0)


def trimmed_mean(values: Floats, weights: Floats, bad: int) -> Floats:
    """The weighted mean of each column without its ends (Yin et al., 1803.01498).

    Each end is ``bad / n`` of the weight; the value at a cut counts with what is left of it.
    """
    count = len(values)
    if (weights == weights[0]).all():
        return np.sort(values, axis=0)[bad : count - bad].mean(axis=0)
    order = np.argsort(values, axis=0)
    sizes = weights[order]
    reached = np.cumsum(sizes, axis=0)
    total, cut = reached[-1], reached[-1] * bad / count
    inside = np.minimum(reached, total - cut) - np.maximum(reached - sizes, cut)
    inside = np.maximum(inside, 0.0)
    return (np.take_along_axis(values, order, axis=0) * inside).sum(axis=0) / inside.sum(axis=0)


@dataclass(frozen=True)
class Pairs:
    """The products of all pairs of points, which is all that the rules below need of them.

    The points are the updates as seen from their `centre`, so that one far outlier
    does not spoil the digits of the others, and last a reference (zero, or the last round's).

    Attributes:
        products: ``(n + 1, n + 1)``.
    """

    products: Floats

    @property
    def count(self) -> int:
        """How many updates there are."""
        return len(self.products) - 1

    def distances(self) -> Floats:
        """Squared distances ``(n + 1, n + 1)`` of all pairs."""
        norms = np.diag(self.products)
        squared = norms[:, None] + norms[None] - 2 * self.products
        squared = np.maximum(squared, 0.0)
        np.fill_diagonal(squared, 0.0)
        return squared

    def away(self, shares: Floats) -> Floats:
        """Squared distances ``(n + 1,)`` of the points from a sum of them; the shares' rest
        stays at the centre."""
        along = self.products @ shares
        return np.maximum(np.diag(self.products) - 2 * along + shares @ along, 0.0)

    def mixed(self, mixing: Floats) -> Pairs:
        """The pairs of weighted means of the updates, one for each row of ``mixing``."""
        rows, count = mixing.shape
        whole = np.zeros((rows + 1, count + 1))
        whole[:rows, :count] = mixing
        whole[rows, count] = 1.0
        return Pairs(whole @ self.products @ whole.T)


def blocks(width: int, count: int) -> Iterator[slice]:
    """Slices of coordinates small enough to hold as float64."""
    step = max(1, BLOCK_BYTES // (8 * max(1, count)))
    return (slice(at, min(width, at + step)) for at in range(0, width, step))


def centre(updates: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper median of each column of ``(n, width)``, where sums are taken from.

    Sorting rows of float32 is five times as fast as a median of columns.
    """
    return np.sort(np.ascontiguousarray(updates.T), axis=1)[:, len(updates) // 2]


def pairs_of(updates: NDArray[np.float32], reference: NDArray[np.floating] | None) -> Pairs:
    """The pairs of updates ``(n, width)`` and a reference ``(width,)``, zero when None."""
    count, width = updates.shape
    products = np.zeros((count + 1, count + 1))
    for block in blocks(width, count + 1):
        points = np.zeros((count + 1, block.stop - block.start))
        points[:count] = updates[:, block]
        if reference is not None:
            points[count] = reference[block]
        points -= centre(updates[:, block])
        products += points @ points.T
    return Pairs(products)


# Rules on whole updates: each gives the shares `(n + 1,)` of the updates and the reference ------


def krum_scores(pairs: Pairs, bad: int) -> Floats:
    """The sum of each update's ``n - bad - 2`` smallest squared distances to others."""
    count = pairs.count
    near = max(1, count - bad - 2)
    squared = pairs.distances()[:count, :count]
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, :near].sum(axis=1)


def krum(pairs: Pairs, weights: Floats, bad: int, *, keep: int = 1) -> Floats:
    """The ``keep`` updates with the lowest score (Blanchard et al. 2017, 1703.02757)."""
    shares = np.zeros(pairs.count + 1)
    if pairs.count == 1:
        shares[0] = 1.0
        return shares
    chosen = np.argsort(krum_scores(pairs, bad), kind="stable")[:keep]
    shares[chosen] = weights[chosen] / weights[chosen].sum()
    return shares


def geometric_median(pairs: Pairs, weights: Floats, *, steps: int = 200) -> Floats:
    """The point with the least sum of distances, by smoothed steps of Weiszfeld (RFA, 1912.13445).

    The smoothing is a millionth of the median distance, so that the size of updates is no matter.
    """
    count = pairs.count
    shares = np.zeros(count + 1)
    away = np.sqrt(pairs.away(shares)[:count])
    least = 1e-6 * float(np.median(away))
    if least == 0.0:
        return shares  # more than half of them are equal
    for _ in range(steps):
        pull = weights / np.maximum(away, least)
        before = shares
        shares = np.append(pull / pull.sum(), 0.0)
        away = np.sqrt(pairs.away(shares)[:count])
        moved = shares - before
        if moved @ pairs.products @ moved <= (1e-7 * float(np.median(away))) ** 2:
            break
    return shares


def _clipping(away: Floats, bound: float) -> Floats:
    """The factors that shorten lengths to ``bound`` times their median."""
    limit = bound * float(np.median(away))
    return limit / np.maximum(away, max(limit, np.finfo(float).tiny))


def clipped(pairs: Pairs, weights: Floats, bound: float, *, steps: int = 1) -> Floats:
    """The mean of updates clipped to a distance from the reference, which moves there each step.

    With the last round's update as the reference this is centred clipping (Karimireddy et al.
    2021, 2012.10333), with zero and one step a bound of the norm (Sun et al., 1911.07963).

    Args:
        pairs: of the updates and the reference.
        weights: ``(n,)``.
        bound: the largest distance, as a multiple of the median distance.
        steps: how often the reference moves.
    """
    count = pairs.count
    weights = weights / weights.sum()
    shares = np.zeros(count + 1)
    shares[count] = 1.0
    for _ in range(steps):
        pull = weights * _clipping(np.sqrt(pairs.away(shares)[:count]), bound)
        shares = shares * (1.0 - pull.sum()) + np.append(pull, 0.0)
    return shares


def spectral(pairs: Pairs, weights: Floats, bad: int, bound: float, *, stands_out: float) -> Floats:
    """The mean without what spreads clipped updates in one direction far more than in others.

    Bad updates must point one way to have an effect on a mean of clipped ones, and so stretch
    the updates along it.  While the largest variance is more than ``stands_out`` times the fourth
    largest, each update loses weight by how far out it is in that direction, the farthest all
    (filters: Diakonikolas et al., 1703.00893; in federated learning: Shejwalkar and Houmansadr,
    NDSS 2021).  Updates that differ by nature in several directions are left in peace, which is
    what the rules that go by distance cannot do.

    Args:
        pairs: of the updates and the reference zero.
        weights: ``(n,)``.
        bad: about this many, at most half as many again, are taken out.
        bound: the largest norm, as a multiple of the median norm.
        stands_out: see above.
    """
    count = pairs.count
    zero = np.zeros(count + 1)
    zero[count] = 1.0
    factors = _clipping(np.sqrt(pairs.away(zero)[:count]), bound)
    points = np.zeros((count, count + 1))
    points[:, :count], points[:, count] = np.diag(factors), 1.0 - factors
    products = points @ pairs.products @ points.T
    left = weights.copy()
    least = (1.0 - min(1.5 * bad / count, 0.5)) * weights.sum()
    while count > 4 and left.sum() > least:
        roots = np.sqrt(left)
        centring = np.eye(count) - left / left.sum()
        spread = roots[:, None] * (centring @ products @ centring.T) * roots
        variances, direction = _largest(spread)
        if variances[-1] <= stands_out * variances[0]:
            break
        there = left > 0
        far = np.where(there, direction**2 / np.where(there, left, 1.0), 0.0)
        left *= 1.0 - far / far.max()
    shares = left / left.sum()
    return shares @ points


def _largest(matrix: Floats) -> tuple[Floats, Floats]:
    """The four largest eigenvalues, rising, and the eigenvector of the last."""
    count = len(matrix)
    if count <= 200:
        from scipy.linalg import eigh  # type: ignore[import-untyped]

        values, vectors = eigh(matrix, subset_by_index=[count - 4, count - 1])
    else:  # a whole decomposition takes a second at 1,500 clients
        from scipy.sparse.linalg import eigsh  # type: ignore[import-untyped]

        values, vectors = eigsh(matrix, k=4, v0=np.diag(matrix) + matrix.max() * 1e-3)
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    return np.maximum(values, 0.0), vectors[:, -1]


# Steps before a rule: each gives a matrix whose rows are weighted means of the updates ----------


def nearest_mixing(pairs: Pairs, weights: Floats, bad: int) -> Floats:
    """Each update becomes the mean of its ``n - bad`` nearest, itself among them (2302.01772).

    Returns:
        ``(n, n)``.
    """
    count = pairs.count
    squared = pairs.distances()[:count, :count]
    np.fill_diagonal(squared, -1.0)
    near = np.argsort(squared, axis=1, kind="stable")[:, : count - bad]
    mixing = np.zeros((count, count))
    np.put_along_axis(mixing, near, weights[near], axis=1)
    return mixing / mixing.sum(axis=1, keepdims=True)


def bucket_mixing(weights: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Means of random groups of ``size`` updates (Karimireddy et al. 2022, 2006.09365).

    Returns:
        ``(groups, n)``, before division by the groups' weights.
    """
    count = len(weights)
    mixing = np.zeros((-(-count // size), count))
    order = rng.permutation(count)
    mixing[np.arange(count) // size, order] = weights[order]
    return mixing


# A rule on all coordinates ------------------------------------------------------------------


def add_up(
    updates: NDArray[np.float32], shares: Floats, reference: NDArray[np.floating] | None
) -> Floats:
    """The sum ``(width,)`` of updates by their shares; the rest stays at the centre."""
    count, width = updates.shape
    rest = 1.0 - float(shares.sum())
    total = np.zeros(width)
    for block in blocks(width, count):
        part = updates[:, block].astype(np.float64)
        total[block] = shares[:count] @ part
        if reference is not None and shares[count]:
            total[block] += shares[count] * reference[block]
        if abs(rest) > 1e-9:
            total[block] += rest * centre(updates[:, block])
    return total


def by_coordinate(
    updates: NDArray[np.float32],
    weights: Floats,
    rule: Callable[[Floats, Floats], Floats],
    mixing: Floats | None,
) -> Floats:
    """A rule on columns, of the updates or of means of them, ``(width,)``.

    Args:
        updates: ``(n, width)``.
        weights: of what the rule sees, the updates or the means.
        rule: takes ``(rows, block)`` and the weights.
        mixing: ``(rows, n)``, or None for the updates themselves.
    """
    count, width = updates.shape
    result = np.zeros(width)
    for block in blocks(width, 2 * count):
        part = updates[:, block].astype(np.float64)
        result[block] = rule(part if mixing is None else mixing @ part, weights)
    return result
