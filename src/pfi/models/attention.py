"""Attention as matrix products, for bfloat16 on CPUs.

torch's fused attention has no fast bfloat16 kernel there: its forward and backward pass took
2 to 7 times as long as these products on rows of 64 to 512 tokens (dev/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

MATMUL = "pfi_matmul"


def use_matmul_attention(model: Any) -> None:
    """Let a decoder-only model on a CPU in bfloat16 use it; others stay as they are."""
    suits = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    if suits and not model.config.is_encoder_decoder and model._supports_sdpa:
        register(MATMUL, attend)
        model.config._attn_implementation = MATMUL


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
