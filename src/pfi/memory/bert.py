"""BERT's encoder (arXiv 1810.04805) on a CPU: what transformers computes, in half the time.

Weights are laid out for oneDNN once, query, key and value are one product, and little is called
between the products: a question is so short that the calls cost as much as the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention


class BertEncoder:
    """The encoder of a loaded BERT model.

    Args:
        model: transformers' ``BertModel`` in single precision on the CPU.

    Raises:
        ValueError: it is another model, or a BERT with unusual layers.
        RuntimeError: this torch has no oneDNN.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        usual = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False}
        if any(getattr(config, name, value) != value for name, value in usual.items()):
            raise ValueError("no plain BERT encoder")
        if not torch.backends.mkldnn.is_available():
            raise RuntimeError("this torch has no oneDNN")
        self._heads = int(config.num_attention_heads)
        self._epsilon = float(config.layer_norm_eps)
        embeddings = model.embeddings
        self._words = embeddings.word_embeddings.weight
        # All tokens are of the first kind: a text is embedded alone, not in a pair.
        kind = embeddings.token_type_embeddings.weight[0]
        self._places = embeddings.position_embeddings.weight + kind
        self._norm = _norm(embeddings.LayerNorm)
        self._layers = [_Layer(layer) for layer in model.encoder.layer]

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The outputs at each token, (n, length, width).

        Args:
            tokens: (n, length).
            mask: (n, length), false where a text is filled up; None where none is.
        """
        n, length = tokens.shape
        seen = None if mask is None else mask[:, None, None, :]
        x = self._normed(self._words[tokens] + self._places[:length], self._norm)
        for layer in self._layers:
            split = layer.attend(x).view(n, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=seen)
            x = self._normed(x + layer.join(mixed.transpose(1, 2).flatten(2)), layer.first_norm)
            x = self._normed(x + layer.shrink(layer.widen(x)), layer.second_norm)
        return x

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return layer_norm(x, x.shape[-1:], *norm, self._epsilon)


class _Layer:
    """One layer's weights."""

    def __init__(self, layer: Any) -> None:
        attention = layer.attention
        parts = [getattr(attention.self, name) for name in ("query", "key", "value")]
        weights, biases = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")
        )
        self.attend = _Linear(weights, biases)
        self.join = _Linear(attention.output.dense.weight, attention.output.dense.bias)
        self.first_norm = _norm(attention.output.LayerNorm)
        wide, narrow = layer.intermediate.dense, layer.output.dense
        self.widen = _Linear(wide.weight, wide.bias, then="gelu")
        self.shrink = _Linear(narrow.weight, narrow.bias)
        self.second_norm = _norm(layer.output.LayerNorm)


class _Linear:
    """A linear layer as torch's compiler would run it; torch has no other way to ask for that."""

    def __init__(self, weight: Tensor, bias: Tensor, then: str = "none") -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._bias = bias.detach()
        self._then: tuple[str, list[Any], str] = (then, [], "none" if then == "gelu" else "")
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._run(x, self._weight, self._bias, *self._then)
        return product


def _norm(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.weight.detach(), layer.bias.detach()
