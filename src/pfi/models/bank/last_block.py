"""A last block that computes its outputs only where something is predicted.

Keys and values are needed of every token, but queries, the MLP and the final normalisation
only of the tokens whose next one is a target: in a personal history a few of a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pfi.models.attention import attend

_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")


class LastBlock(nn.Module):
    """Stands for a Llama-like block and computes it whole or at some tokens.

    Args:
        block: the block, whose layers are used as they are.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self._wanted: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """What transformers looks for in a block, such as ``attention_type``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    @contextmanager
    def only(self, wanted: torch.Tensor) -> Iterator[None]:
        """Within, outputs are ``(rows, n, width)``, of the tokens ``wanted: (rows, n)``."""
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **rest: Any,
    ) -> torch.Tensor:
        """Map ``(rows, tokens, width)`` to hidden states of all or the wanted tokens."""
        block, wanted = self.block, self._wanted
        if wanted is None:
            return block(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                **rest,
            )
        assert position_embeddings is not None
        attention, width = block.self_attn, block.self_attn.head_dim
        normed = block.input_layernorm(hidden_states)
        cos, sin = (part.expand(len(wanted), -1, -1) for part in position_embeddings)

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (-1, width)).transpose(1, 2)

        key = _rotate(heads(attention.k_proj(normed)), cos, sin)
        value = heads(attention.v_proj(normed))
        query = heads(attention.q_proj(_take(normed, wanted)))
        query = _rotate(query, _take(cos, wanted), _take(sin, wanted))
        mask = _mask(attention_mask, wanted, hidden_states)
        mixed, _ = attend(attention, query, key, value, mask, scaling=attention.scaling)
        states = _take(hidden_states, wanted) + attention.o_proj(mixed.flatten(2))
        return states + block.mlp(block.post_attention_layernorm(states))


def install(model: Any) -> LastBlock | None:
    """Put one into a decoder-only model of a known family; None where it does not fit."""
    config, blocks = model.config, getattr(model.base_model, "layers", None)
    sliding = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    if not blocks or sliding or type(blocks[-1]).__name__ not in _KNOWN:
        return None
    blocks[-1] = LastBlock(blocks[-1])
    return blocks[-1]


def _take(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``(rows, n, width)`` of ``(rows, tokens, width)``."""
    return states.gather(1, wanted[:, :, None].expand(-1, -1, states.shape[2]))


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021) with halves paired, as Llama does."""
    first, second = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


def _mask(mask: torch.Tensor | None, wanted: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The wanted rows of an attention mask; plainly causal when there is none."""
    length = states.shape[1]
    if mask is not None:
        return mask.gather(2, wanted[:, None, :, None].expand(-1, -1, -1, length))
    seen = torch.arange(length, device=wanted.device) <= wanted[:, :, None]
    return seen[:, None]
