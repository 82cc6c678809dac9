"""From values to integers modulo a power of two and back.

A value times the client's weight is rounded to a whole number of steps; the weight is a further
entry.  Sums of them are exact.

Where the norm of an update is bounded for privacy, rounding must not make it longer: nearest
numbers can be (2102.06387, section 4).  There, values are rounded at random, so that the mean of
many is exact, and as many are rounded towards zero as the bound takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.federate.secure import checks
from pfi.federate.secure.policy import SecureConfig

_PIECE = 1 << 14


def quantise(
    vector: NDArray[np.floating[Any]],
    weight: float,
    config: SecureConfig,
    *,
    bound: float | None = None,
    rng: np.random.Generator | None = None,
) -> NDArray[Any]:
    """The entries that a client masks: weighted values, then the weight.

    Args:
        vector: ``(length,)``, finite, none larger than ``config.clip``.
        weight: a whole number from 1 to ``config.heaviest``.
        config: the range and the step.
        bound: largest L2 norm of the rounded vector; that of the vector itself when None.  When
            infinite, values are rounded to the nearest step, which may lengthen them.
        rng: of random rounding; the system's randomness when None.

    Returns:
        ``(length + 1,)`` unsigned integers of ``config.bits``, negatives as complements.

    Raises:
        FederationError: a value is not finite or out of range, or the weight is.
    """
    checks.weight(weight, config.heaviest)
    largest = float(np.abs(vector).max(initial=0.0))
    checks.finite(np.isfinite(largest))
    checks.in_range(largest, config.limit)
    entries = np.empty(vector.size + 1, config.dtype)
    entries[-1] = int(weight)
    scale = np.float64(int(weight) / config.step)
    if bound != math.inf:
        steps = vector.astype(np.float64) * scale
        limit = float(np.linalg.norm(steps) if bound is None else bound * scale)
        entries[:-1] = rounded_within(steps, limit, rng or np.random.default_rng())
        return entries
    # In pieces that stay in the processor's cache; the last cast wraps, which is the modulus.
    for start in range(0, vector.size, _PIECE):
        piece = slice(start, min(start + _PIECE, vector.size))
        entries[piece] = np.rint(vector[piece] * scale).astype(np.int64)
    return entries


def rounded_within(
    steps: NDArray[np.float64], limit: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole numbers for a vector, at random and never longer than the limit.

    Each number goes to one of its two neighbours with the chance that keeps its mean.  Where that
    makes the vector too long, numbers that went away from zero go back, chosen by lot, until it is
    not; with all of them back it is no longer than it was.

    Args:
        steps: ``(length,)``; shortened to the limit first.
        limit: largest L2 norm of the result.
        rng: draws neighbours and lots.
    """
    norm = float(np.linalg.norm(steps))
    if norm > limit:
        steps = steps * (limit / norm)
    size = np.abs(steps)
    whole = np.floor(size)
    away = rng.random(size.shape) < size - whole
    whole += away
    excess = float(whole @ whole) - limit**2
    if excess > 0:
        chosen = rng.permutation(np.flatnonzero(away))
        saved = np.cumsum(2 * whole[chosen] - 1)  # of the squared norm, by one step less
        whole[chosen[: np.searchsorted(saved, excess) + 1]] -= 1
    return np.copysign(whole, steps).astype(np.int64)


def signed(entries: NDArray[Any]) -> NDArray[np.int64]:
    """A sum's entries as whole numbers, whose halves above the middle are negatives."""
    return entries.view(f"<i{entries.itemsize}").astype(np.int64)


def values(total: NDArray[np.int64], config: SecureConfig) -> NDArray[np.float64]:
    """The values of a sum of entries, ``(length,)``, still weighted."""
    return total[:-1].astype(np.float64) * config.step
