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
from pfi.inference.engine import Likeliest, Penalties, Sampling


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
        self._matcher = sampling.grammar.begin() if sampling.grammar else None

    @property
    def ended(self) -> bool:
        """Whether the answer's grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.ended

    def take(self, logits: Any, *, free: bool = False) -> tuple[int, float, Likeliest]:
        """A token, its log-probability under the model, and the likeliest tokens at its place.

        Args:
            logits: ``(vocabulary,)`` float32.
            free: whether the grammar does not count for this token, as within a thought.

        Raises:
            BackboneError: the logits are no numbers.
            ConfigError: the grammar is too complex for what was answered.
        """
        shifted = logits - highest(logits)
        total = float(np.exp(shifted).sum())
        wanted = shifted
        if self._penalties:
            wanted = penalised(logits, self._penalties)
        if self.sampling.logit_bias:
            wanted = biased(wanted, self.sampling.logit_bias)
        matcher = None if free else self._matcher
        if matcher is not None:
            wanted = np.where(matcher.allowed(len(logits)), wanted, np.float32(-np.inf))
        if wanted is not shifted:
            wanted = wanted - wanted.max()
        greedy = self.sampling.temperature == 0
        token = int(wanted.argmax()) if greedy else self._sample(wanted)
        self._penalties.add(token)
        if matcher is not None:
            matcher.add(token)
        top = likeliest(shifted, self.sampling.top_logprobs, math.log(total))
        return token, float(shifted[token]) - math.log(total), top

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


def biased(logits: Any, bias: Sequence[tuple[int, float]]) -> Any:
    """``(vocabulary,)`` logits with something added to some, as a new array."""
    changed = logits.copy()
    for token, added in bias:
        if 0 <= token < len(changed):
            changed[token] += added
    return changed


def likeliest(logits: Any, count: int, total: float) -> Likeliest:
    """The likeliest tokens of ``(vocabulary,)`` logits with their log-probabilities.

    Args:
        logits: shifted by any number.
        count: how many.
        total: the logarithm of the sum of the exponentials of ``logits``.
    """
    if not count:
        return ()
    count = min(count, len(logits))
    some = np.argpartition(-logits, count - 1)[:count]
    ranked = some[np.argsort(-logits[some], kind="stable")]
    return tuple((int(token), float(logits[token]) - total) for token in ranked)
