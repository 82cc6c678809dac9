"""Rows of different lengths in one batch, and which models take them with a ready-made mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pfi.models.attention import MATMUL
from pfi.models.row_attention import ROWS

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

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

    A model whose attention reaches less far than that would see too much through our mask.
    """
    config = backbone.model.config
    window = getattr(config, "sliding_window", None)
    return (
        config.model_type in _FAMILIES
        and config._attn_implementation in _ATTENTIONS
        and (window is None or length <= window)
    )
