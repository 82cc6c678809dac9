"""What of an update may enter a sum at all: finite numbers and weights of a sensible size.

Both are a client's claims.  One number of 1e38, or one weight of 1e308, in a sum would make the
state of all infinite.  An honest factor changes by less than ten in a round, so the bounds are far
from honest work; they keep sums finite and judge nothing (``robust.py`` does).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The largest size of a number of an update, or of a factor that a client sends.
LARGEST_NUMBER = 1e4
#: The most examples that a client may state.
LARGEST_WEIGHT = 1e6


def numbers_refusal(numbers: NDArray[Any]) -> str | None:
    """Why these numbers of a client may not be added up, or None."""
    if not numbers.size:
        return None
    low, high = float(numbers.min()), float(numbers.max())  # NaN if one is
    if not (np.isfinite(low) and np.isfinite(high)):
        return "its update is not finite"
    if (largest := max(-low, high)) > LARGEST_NUMBER:
        return f"its update has a number too large, {largest:.3g} beyond {LARGEST_NUMBER:g}"
    return None


def weight_refusal(weight: float) -> str | None:
    """Why a client may not count that much, or None."""
    return None if 0 < weight <= LARGEST_WEIGHT else f"its weight is {weight:g}"


def update_refusal(vector: NDArray[Any], width: int) -> str | None:
    """Why an update may not be in a sum, whatever it weighs, or None.

    Args:
        vector: as a client sent it.
        width: of an update.
    """
    if vector.shape != (width,):
        return f"its update has the shape {vector.shape} and not {(width,)}"
    return numbers_refusal(vector)
