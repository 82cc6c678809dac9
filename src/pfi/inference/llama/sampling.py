"""One token from logits in numpy: the likeliest, or drawn from a nucleus (Holtzman et al. 2020).

A seed draws what it draws in ``torch_engine``.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from pfi.errors import BackboneError


def highest(logits: Any) -> float:
    """The highest of a model's scores.

    Raises:
        BackboneError: there is one that is no number.
    """
    found = float(logits.max())
    if not math.isfinite(found):
        what = "the model's scores are no numbers"
        raise BackboneError(what, fix="train the adapter anew, or answer without it")
    return found


class Draw:
    """Chooses the tokens of one answer.

    Args:
        temperature: greedy when 0.
        top_p: probability of the tokens that are sampled from.
        seed: of the draws; the system's randomness when None.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._random = random.Random(seed)

    def take(self, logits: Any) -> tuple[int, float]:
        """A token, and its log-probability under the model, from ``(vocabulary,)`` float32.

        Raises:
            BackboneError: the logits are no numbers.
        """
        shifted = logits - highest(logits)
        total = float(np.exp(shifted).sum())
        token = int(shifted.argmax()) if self.temperature == 0 else self._sample(shifted)
        return token, float(shifted[token]) - math.log(total)

    def _sample(self, shifted: Any) -> int:
        likely = np.exp(shifted / np.float32(self.temperature))
        likely = (likely / likely.sum()).astype(np.float64)
        order = None
        if self.top_p < 1:
            order = np.argsort(-likely, kind="stable")
            ranked = likely[order]
            # A token stays while those before it do not suffice, so that the first always does.
            likely = np.where(ranked.cumsum() - ranked >= self.top_p, 0.0, ranked)
        summed = likely.cumsum()
        at = int(np.searchsorted(summed, self._random.random() * summed[-1], side="right"))
        at = min(at, int((summed < summed[-1]).sum()))  # rounding could reach past it
        return at if order is None else int(order[at])
