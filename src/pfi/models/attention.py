"""Attention: our own kernels, rows of different lengths, and which models take them.

Matrix products for bfloat16 on CPUs, single tokens over rows of very different lengths, and
padding with a ready-made mask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pfi.models.backbone import Backbone
from pfi.models.families import rope_border

MATMUL = "pfi_matmul"
#: Most attention scores of a block that are kept for a backward pass, in numbers.
_KEPT_SCORES = 1 << 21


def use_matmul_attention(model: Any) -> None:
    """Let a model of a known family use it on a CPU in bfloat16; others stay as they are.

    A model may look at the name of its attention and do something else beside it (Falcon).
    """
    suits = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    if suits and own_attention(model) and model._supports_sdpa:
        register(MATMUL, attend)
        model.config._attn_implementation = MATMUL


def own_attention(model: Any) -> bool:
    """Whether a model is of a family that was tested with our own attention."""
    return model.config.model_type in _FAMILIES


@cache
def register(name: str, attention: Callable[..., Any]) -> None:
    """Let models compute attention by a function of ours, under this name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention; ``(rows, heads, tokens, head width)`` in, ``(rows, tokens, ...)`` out.

    Keys and values may be kept in float32: that of a single token is then computed in it, 8 times
    as fast as in bfloat16.
    """
    if query.shape[2] == 1 and not torch.is_grad_enabled():
        # One token reads cached keys where they lie; a matrix product would copy them.
        grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
        mixed = scaled_dot_product_attention(
            query.to(key), key, value, attention_mask, scale=scaling, **grouped
        )
        return mixed.transpose(1, 2).to(query), None
    key, value = key.to(query), value.to(query)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    numbers = query.shape[:2].numel() * query.shape[2] * key.shape[2]
    if torch.is_grad_enabled() and numbers > _KEPT_SCORES:
        # A little slower, but no scores of every block are kept for the backward pass.
        causal = attention_mask is None and query.shape[2] > 1
        mixed = scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal, scale=scale
        )
        return mixed.transpose(1, 2).contiguous(), None
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = _causal(query.shape[2], key.shape[2], query.dtype)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    mixed = torch.matmul(torch.softmax(scores, -1), value)
    return mixed.transpose(1, 2).contiguous(), None


@lru_cache(64)
def _causal(queries: int, keys: int, dtype: torch.dtype) -> torch.Tensor:
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


ROWS = "pfi_rows"
#: What a product of its own costs, in keys.
_APART = 400
_now = threading.local()

#: How far the product over all rows reaches, and the rows beyond it with their lengths.
Cut = tuple[int, list[tuple[int, int]]]


def use_row_attention(model: Any) -> None:
    """Let a model of a known family on a CPU use it; others stay as they are."""
    known = model.config._attn_implementation in ("sdpa", MATMUL)
    if known and model.device.type == "cpu" and own_attention(model):
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


#: Decoder-only families that add a four-dimensional mask to the attention scores as it is, take
#: positions, and whose logits are the output layer applied to the last hidden states.
_FAMILIES = {
    *("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3"),
    *("gemma", "gpt_neox", "olmo", "olmo2", "phi", "phi3", "stablelm", "starcoder2"),
}
_ATTENTIONS = {"eager", "sdpa", MATMUL, ROWS}


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Rows of different lengths as one ``(rows, longest)`` tensor of int64."""
    longest = max(len(row) for row in rows)
    fills = [[value] * (longest - len(row)) for row in rows]
    padded = [
        [*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, fills, strict=True)
    ]
    return torch.tensor(padded, dtype=torch.long)


def takes_masks(backbone: Backbone, length: int) -> bool:
    """Whether rows of ``length`` tokens may be given with our own mask and positions.

    A model whose attention reaches less far than that would see too much through our mask; one
    that reads long rows with other rotary frequencies would read all rows of a pass with them.
    """
    config = backbone.model.config
    if not own_attention(backbone.model) or config._attn_implementation not in _ATTENTIONS:
        return False
    limits = (getattr(config, "sliding_window", None), rope_border(config))
    return all(limit is None or length <= limit for limit in limits)
