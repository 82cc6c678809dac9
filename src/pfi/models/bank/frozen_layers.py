"""A model in two parts: blocks that no adapter changes run once, the rest at every step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: What the final normalisation is called.
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


class _Nothing(nn.Module):
    """Stands for learnt position embeddings where they were added already."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=positions.device)


@dataclass(frozen=True)
class Parts:
    """The two parts of a decoder-only model, over the same modules.

    Attributes:
        lower: maps tokens to the hidden states between the parts.
        upper: the whole model but for the lower blocks; takes those as ``inputs_embeds``.
    """

    lower: Any
    upper: Any


def block_list(model: Any) -> tuple[str, nn.ModuleList] | None:
    """The name and the blocks of a decoder-only model's list of blocks; None if it is not clear."""
    children = model.base_model.named_children()
    lists = [(name, child) for name, child in children if isinstance(child, nn.ModuleList)]
    return None if model.config.is_encoder_decoder or len(lists) != 1 else lists[0]


def split(model: Any, cut: int) -> Parts | None:
    """A model cut below block ``cut``; None when this kind of model cannot be cut.

    Whether it can be is found by running both parts on a few tokens.
    """
    inner = model.base_model
    listed = block_list(model)
    norms = [name for name in _NORMS if hasattr(inner, name)]
    if cut < 1 or listed is None or len(norms) != 1:
        return None
    name, blocks = listed
    lower, upper = _shallow(inner), _shallow(inner)
    setattr(lower, name, nn.ModuleList(blocks[:cut]))
    setattr(lower, norms[0], nn.Identity())
    setattr(upper, name, nn.ModuleList(blocks[cut:]))
    if hasattr(upper, "wpe"):
        upper.wpe = _Nothing()
    whole = _shallow(model)
    setattr(whole, model.base_model_prefix, upper)
    probe = torch.arange(1, 5, device=model.device)[None]
    with torch.no_grad():
        expected = inner(input_ids=probe, use_cache=False)[0]
        found = lower(input_ids=probe, use_cache=False)[0]
        found = upper(inputs_embeds=found, use_cache=False)[0]
    return Parts(lower, whole) if torch.allclose(expected, found, atol=1e-4, rtol=1e-3) else None


def _shallow(module: Any) -> Any:
    """The same module with children of its own choice."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
