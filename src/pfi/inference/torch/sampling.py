"""The next token from logits in PyTorch: the likeliest, or sampled from the likely ones.

Nucleus sampling is that of Holtzman et al. 2020 (arXiv 1904.09751), min-p that of Nguyen et al.
2024 (arXiv 2407.01082).  A row's token does not depend on the batch that it is in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from pfi.inference.engine import Likeliest, Penalties

#: Chooses ``(rows,)`` tokens from ``(rows, vocabulary)`` logits of the prompts of these numbers.
Pick = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

#: How many tokens are ranked before all are; ranking a whole vocabulary takes as long as a step.
_RANKED = 1024


def greedy(logits: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
    """The likeliest token of every row."""
    return logits.argmax(-1)


class Nucleus:
    """Samples from the likeliest tokens that together have at least ``top_p`` probability."""

    def __init__(self, temperature: float, top_p: float, seed: int | Sequence[str]) -> None:
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self._generators: dict[int, random.Random] = {}

    def _draw(self, prompt: int) -> float:
        if prompt not in self._generators:
            own = f"{self.seed}:{prompt}" if isinstance(self.seed, int) else self.seed[prompt]
            self._generators[prompt] = random.Random(own)
        return self._generators[prompt].random()

    def __call__(self, logits: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        drawn = [self._draw(i) for i in prompts]
        return nucleus(logits.float() / self.temperature, self.top_p, drawn)


def nucleus(
    logits: torch.Tensor,
    top_p: float,
    drawn: Sequence[float],
    top_k: int = 0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """Tokens ``(rows,)`` of ``(rows, vocabulary)`` logits by each row's number in [0, 1).

    Args:
        logits: divided by the temperature.
        top_p: probability of the tokens that are sampled from, among those that ``top_k`` leaves.
        drawn: the numbers.
        top_k: how many of the likeliest tokens are left; all when 0.
        min_p: least probability of a token, as a share of the likeliest one's.
    """
    likely = torch.softmax(logits, -1)
    tokens: torch.Tensor | None = None
    size = likely.shape[-1]
    if top_p < 1 or 0 < top_k < size:
        ranked, tokens = likely.topk(min(top_k or _RANKED, size))
        if top_k:
            ranked = ranked.double()
            ranked = ranked / ranked.sum(-1, keepdim=True)
        else:
            short = (ranked.sum(-1) < top_p).tolist()
            if any(short) and not all(short):  # apart, so that no row depends on another
                chosen = torch.empty_like(tokens[:, 0])
                for kind in (True, False):
                    rows = [i for i, this in enumerate(short) if this == kind]
                    own = [drawn[i] for i in rows]
                    chosen[rows] = nucleus(logits[rows], top_p, own, top_k, min_p)
                return chosen
            if any(short):
                ranked, tokens = likely.sort(descending=True)
            ranked = ranked.double()
        # A token stays while those before it do not suffice, so that the first always does.
        likely = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
    if min_p > 0:
        likely = likely.masked_fill(likely < min_p * likely.amax(-1, keepdim=True), 0)
    total = likely.cumsum(-1, dtype=torch.float64)
    whole = total[:, -1:]
    numbers = torch.tensor(drawn, dtype=torch.float64, device=total.device)[:, None]
    at = torch.searchsorted(total, numbers * whole, right=True)
    at = at.minimum((total < whole).sum(-1, keepdim=True))  # rounding could reach past it
    return (at if tokens is None else tokens.gather(-1, at)).squeeze(-1)


def penalised(logits: torch.Tensor, penalties: Sequence[Penalties | None]) -> torch.Tensor:
    """``(rows, vocabulary)`` logits with each row's penalties; the same tensor where none has any.

    Tokens that the model has no logit for, such as added ones, are passed over.
    """
    rows: list[int] = []
    tokens: list[int] = []
    divided: list[float] = []
    subtracted: list[float] = []
    for row, one in enumerate(penalties):
        if one:
            new = one.tokens
            rows += [row] * len(new)
            tokens += new
            divided += [one.repetition] * len(new)
            subtracted += one.subtracted
    if not tokens:
        return logits
    at = torch.tensor([rows, tokens], device=logits.device)
    by = torch.tensor([divided, subtracted], dtype=logits.dtype, device=logits.device)
    known = at[1] < logits.shape[-1]
    at, by = at[:, known], by[:, known]
    values = logits[at[0], at[1]]
    values = torch.where(values < 0, values * by[0], values / by[0]) - by[1]
    changed = logits.clone()
    changed[at[0], at[1]] = values
    return changed


def biased(logits: torch.Tensor, biases: Sequence[Sequence[tuple[int, float]]]) -> torch.Tensor:
    """``(rows, vocabulary)`` logits with each row's biases; the same tensor where none has any."""
    places = [
        (row, token, bias)
        for row, own in enumerate(biases)
        for token, bias in own
        if 0 <= token < logits.shape[-1]
    ]
    if not places:
        return logits
    rows, tokens, added = zip(*places, strict=True)
    changed = logits.clone()
    at = torch.tensor([rows, tokens], device=logits.device)
    changed[at[0], at[1]] += torch.tensor(added, dtype=logits.dtype, device=logits.device)
    return changed


def allowed_only(logits: torch.Tensor, masks: Mapping[int, np.ndarray]) -> torch.Tensor:
    """``(rows, vocabulary)`` logits, minus infinity where a row's mask ``(vocabulary,)`` is False.

    The same tensor where no row has a mask.
    """
    if not masks:
        return logits
    changed = logits.clone()
    for row, mask in masks.items():
        allowed = torch.from_numpy(mask).to(logits.device)
        changed[row] = changed[row].masked_fill(~allowed, -torch.inf)
    return changed


def likeliest(logits: torch.Tensor, count: int) -> Likeliest:
    """The likeliest tokens of ``(vocabulary,)`` logits with their log-probabilities."""
    if not count:
        return ()
    values, tokens = logits.log_softmax(-1).topk(min(count, len(logits)))
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))
