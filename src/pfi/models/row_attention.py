"""Attention of single tokens over rows of very different lengths, on a CPU.

One product over all rows reaches as far as the longest.  Rows that are much longer are computed
apart, so that one long conversation does not slow down all others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pfi.models.attention import MATMUL, attend, register

ROWS = "pfi_rows"
#: What a product of its own costs, in keys.
_APART = 400
_now = threading.local()

#: How far the product over all rows reaches, and the rows beyond it with their lengths.
Cut = tuple[int, list[tuple[int, int]]]


def use_row_attention(model: Any) -> None:
    """Let a decoder-only model on a CPU use it; others stay as they are."""
    known = model.config._attn_implementation in ("sdpa", MATMUL)
    if known and model.device.type == "cpu" and not model.config.is_encoder_decoder:
        register(ROWS, attend_rows)
        model.config._attn_implementation = ROWS


@contextmanager
def row_lengths(lengths: Sequence[int] | None) -> Iterator[None]:
    """Within, passes of one token a row are over rows of these lengths, that token included."""
    _now.cut = None if lengths is None else cut(lengths)
    try:
        yield
    finally:
        _now.cut = None


def cut(lengths: Sequence[int]) -> Cut | None:
    """The cheapest way to compute rows of these lengths; None for all in one product."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    best, apart = 0, 0
    least = whole = len(lengths) * lengths[order[0]]
    for count, row in enumerate(order):
        cost = apart + len(lengths) * lengths[row]
        if cost < least:
            best, least = count, cost
        apart += lengths[row] + _APART
    if least > 0.9 * whole:
        return None
    return lengths[order[best]], [(row, lengths[row]) for row in order[:best]]


def attend_rows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """As ``attention.attend``, which see; several tokens a row as transformers does it."""
    if query.shape[2] > 1:
        if query.dtype != torch.float32:
            return attend(module, query, key, value, attention_mask, scaling)
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
    found: Cut | None = getattr(_now, "cut", None)
    if found is None or attention_mask is None:
        return attend(module, query, key, value, attention_mask, scaling)
    short, apart = found
    mask = attention_mask[..., :short]
    mixed, _ = attend(module, query, key[:, :, :short], value[:, :, :short], mask, scaling)
    for row, length in apart:
        one = slice(row, row + 1)
        mixed[one], _ = attend(
            module, query[one], key[one, :, :length], value[one, :, :length], None, scaling
        )
    return mixed, None
