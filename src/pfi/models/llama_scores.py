"""Scores of targets by llama.cpp: a prompt is read once, and so are beginnings they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfi.models.drawing import highest
from pfi.models.llama_slots import Slot, Slots


def score(
    slots: Slots, slot: Slot, prompt: Sequence[int], targets: Sequence[Sequence[int]]
) -> list[float]:
    """The log-probability of each target, summed; natural logarithm.

    Args:
        slots: of the context.
        slot: which one; it holds a true beginning of the prompt, and all of it afterwards.
        prompt: the tokens before the targets.
        targets: each with a token at least.

    Raises:
        BackboneError: llama.cpp fails, or the model's scores are no numbers.
    """
    last = _read(slots, slot, prompt[len(slot.tokens) :], only_last=True)[-1]
    scores = [0.0] * len(targets)
    path: list[int] = []  # tokens behind the prompt in the slot
    logs = [last]  # log-probabilities behind the prompt and behind each token of the path
    for at in sorted(range(len(targets)), key=lambda i: list(targets[i])):
        target = targets[at]
        inner = list(target[:-1])
        same = next(
            (i for i, (a, b) in enumerate(zip(path, inner, strict=False)) if a != b),
            min(len(path), len(inner)),
        )
        slots.cut(slot, len(prompt) + same)
        logs = [*logs[: same + 1], *_read(slots, slot, inner[same:])]
        path = inner
        scores[at] = float(sum(log[token] for log, token in zip(logs, target, strict=True)))
    slots.cut(slot, len(prompt))
    return scores


def _read(slots: Slots, slot: Slot, tokens: Sequence[int], *, only_last: bool = False) -> list[Any]:
    """Add tokens to a slot; the log-probabilities behind each, or behind the last one."""
    found: list[Any] = []
    step = slots.context.batch
    for begin in range(0, len(tokens), step):
        part, place = tokens[begin : begin + step], len(slot.tokens)
        last = len(tokens) - begin - 1
        entries = [
            (token, place + i, slot.at, not only_last or i == last) for i, token in enumerate(part)
        ]
        found += [_log_softmax(logits) for logits in slots.context.decode(entries)]
        slot.tokens += part
    return found


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    values = values - highest(values)
    return values - np.log(np.exp(values).sum())
