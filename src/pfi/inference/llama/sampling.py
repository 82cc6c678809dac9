"""One token from logits in numpy: the likeliest, or sampled as ``torch/sampling.py`` does it.

The same settings and seed choose the same tokens there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfi.errors import BackboneError
from pfi.inference.engine import Penalties, Sampling


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
        sampling: how, with the model's own penalty in it.
        prompt: the tokens before the answer.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)
        self._penalties = Penalties(sampling, prompt)

    def take(self, logits: Any) -> tuple[int, float]:
        """A token, and its log-probability under the model, from ``(vocabulary,)`` float32.

        Raises:
            BackboneError: the logits are no numbers.
        """
        shifted = logits - highest(logits)
        total = float(np.exp(shifted).sum())
        wanted = shifted
        if self._penalties:
            wanted = penalised(logits, self._penalties)
            wanted = wanted - wanted.max()
        greedy = self.sampling.temperature == 0
        token = int(wanted.argmax()) if greedy else self._sample(wanted)
        self._penalties.add(token)
        return token, float(shifted[token]) - math.log(total)

    def _sample(self, shifted: Any) -> int:
        top_p, top_k, min_p = self.sampling.top_p, self.sampling.top_k, self.sampling.min_p
        likely = np.exp(shifted / np.float32(self.sampling.temperature))
        likely = (likely / likely.sum()).astype(np.float64)
        order = None
        if top_p < 1 or 0 < top_k < len(likely):
            order = np.argsort(-likely, kind="stable")
            if top_k:
                order = order[:top_k]
            ranked = likely[order]
            if top_k:
                ranked = ranked / ranked.sum()
            # A token stays while those before it do not suffice, so that the first always does.
            likely = np.where(ranked.cumsum() - ranked >= top_p, 0.0, ranked)
        if min_p > 0:
            likely = np.where(likely < min_p * likely.max(), 0.0, likely)
        summed = likely.cumsum()
        at = int(np.searchsorted(summed, self._random.random() * summed[-1], side="right"))
        at = min(at, int((summed < summed[-1]).sum()))  # rounding could reach past it
        return at if order is None else int(order[at])


def penalised(logits: Any, penalties: Penalties) -> Any:
    """``(vocabulary,)`` logits with an answer's penalties, as a new array."""
    at = np.array(penalties.tokens, dtype=np.int64)
    subtracted = np.array(penalties.subtracted, dtype=logits.dtype)
    known = at < len(logits)
    at, subtracted = at[known], subtracted[known]
    by = logits.dtype.type(penalties.repetition)
    changed = logits.copy()
    values = changed[at]
    changed[at] = np.where(values < 0, values * by, values / by) - subtracted
    return changed
