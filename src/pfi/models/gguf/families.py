"""The families of models that GGUF files are read and written of: names and shapes of tensors.

llama.cpp and transformers call the same weights by other names, order rows of rotated queries and
keys differently, and disagree on where Gemma's norms have their 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError
from pfi.models.gguf.header import Header

if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_PLAIN = {**_ATTENTION, "post_attention_layernorm": "ffn_norm", **_GATED}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA = {
    **_ATTENTION,
    **_HEAD_NORMS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    **_GATED,
}
_FUSED = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Sizes of weights by GGUF's names: h of a state, q of all queries, k of all keys, d of a head,
# f of the feed-forward layer, and u and p of the fused layers.
_SIZES = {
    **{"attn_norm": "h", "attn_q": "qh", "attn_k": "kh", "attn_v": "kh", "attn_output": "hq"},
    **{"ffn_norm": "h", "ffn_gate": "fh", "ffn_up": "fh", "ffn_down": "hf"},
    **{"attn_q_norm": "d", "attn_k_norm": "d", "post_attention_norm": "h", "post_ffw_norm": "h"},
    **{"attn_qkv": "uh"},
}


@dataclass(frozen=True)
class Family:
    """How a kind of model is called and laid out in both worlds.

    Attributes:
        architecture: llama.cpp's name.
        model_type: transformers'.
        layers: names in a block, transformers' to llama.cpp's.
        paired: llama.cpp rotates neighbours in a head, transformers the halves of a head.
        norm_offset: what llama.cpp's norm weights are larger by.
        biases: layers in a block, by llama.cpp's names, that may have a bias.
    """

    architecture: str
    model_type: str
    layers: Mapping[str, str]
    paired: bool = False
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()

    def tensor_name(self, layer: str) -> str:
        """What GGUF calls a layer of transformers.

        Raises:
            BackboneError: it has no place there.
        """
        if layer in _WHOLE:
            return _WHOLE[layer]
        match = _BLOCK.fullmatch(layer)
        if match and match[2] in self.layers:
            return f"blk.{match[1]}.{self.layers[match[2]]}"
        raise BackboneError(f"layer {layer} has no place in GGUF", fix="use `pfi export merged`")

    def rotated(self, layer: str, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """Rows of queries or keys in llama.cpp's order, from transformers'; others as they are."""
        if not self.paired or not layer.endswith((".q_proj", ".k_proj")):
            return rows
        split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return split.transpose(1, 2).reshape(rows.shape)

    def rotated_back(self, layer: str, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """Rows of queries or keys in transformers' order, from llama.cpp's."""
        if not self.paired or not layer.endswith((".q_proj", ".k_proj")):
            return rows
        split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
        return split.transpose(1, 2).reshape(rows.shape)


_ALL_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LLAMA = Family("llama", "llama", MappingProxyType(_PLAIN), paired=True, biases=_ALL_BIASES)
_FAMILIES = (
    _LLAMA,
    # llama.cpp knows Mistral as a Llama.
    Family("llama", "mistral", MappingProxyType(_PLAIN), paired=True),
    Family("qwen2", "qwen2", MappingProxyType(_PLAIN), biases=_ALL_BIASES[:3]),
    Family("qwen3", "qwen3", MappingProxyType({**_PLAIN, **_HEAD_NORMS})),
    Family("gemma3", "gemma3_text", MappingProxyType(_GEMMA), norm_offset=1.0),
    Family("phi3", "phi3", MappingProxyType(_FUSED)),
)
#: By transformers' name of the kind of model.
BY_MODEL_TYPE: Mapping[str, Family] = MappingProxyType({f.model_type: f for f in _FAMILIES})
#: By llama.cpp's; of two with one name the first.
BY_ARCHITECTURE: Mapping[str, Family] = MappingProxyType(
    {family.architecture: family for family in reversed(_FAMILIES)}
)
# Kinds of GGUF files beside models.
_OTHER_FILES = {"adapter": "an adapter", "mmproj": "an image encoder", "imatrix": "statistics"}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the model in a GGUF file, as its head states them.

    Raises:
        BackboneError: the family is not known, a size is missing or makes no sense, or the
            tensors are not those of such a model.
    """

    header: Header

    def __post_init__(self) -> None:
        header = self.header
        kind = header.fields.get("general.type", "model")
        if kind != "model":
            header.refuse(
                f"it holds {_OTHER_FILES.get(str(kind), 'no model')}", "give the model's own file"
            )
        if header.architecture not in BY_ARCHITECTURE:
            known = ", ".join(sorted(BY_ARCHITECTURE))
            header.refuse(
                f"models of the kind {header.architecture[:40]} are not supported",
                f"use one of the kinds {known}, or the model's safetensors folder",
            )
        if header.of_model("expert_count", 0):
            header.refuse("mixtures of experts are not supported", "use a dense model")
        for key in ("key_length", "value_length"):
            if header.count(f"attention.{key}", self.head, most=1 << 16) != self.head:
                header.refuse(f"its attention.{key} is not that of its queries")
        if header.count("rope.dimension_count", self.head, most=1 << 16) != self.head:
            header.refuse("it rotates a part of each head only", "use another backbone")
        if self.heads % self.key_heads or self.head % 2:
            header.refuse(f"{self.heads} query heads do not share {self.key_heads} key heads")
        header.number("attention.layer_norm_rms_epsilon")
        header.number("rope.freq_base", 1.0)
        self._check_scaling()
        self._check_tensors()
        if not self.context:
            header.refuse("its context is empty")

    @cached_property
    def family(self) -> Family:
        return BY_ARCHITECTURE[self.header.architecture]

    @cached_property
    def hidden(self) -> int:
        return self.header.count("embedding_length", most=1 << 20)

    @cached_property
    def blocks(self) -> int:
        return self.header.count("block_count", most=1 << 12)

    @cached_property
    def feed_forward(self) -> int:
        return self.header.count("feed_forward_length", most=1 << 22)

    @cached_property
    def heads(self) -> int:
        return self.header.count("attention.head_count", most=1 << 12)

    @cached_property
    def key_heads(self) -> int:
        return self.header.count("attention.head_count_kv", self.heads, most=1 << 12)

    @cached_property
    def head(self) -> int:
        """Values a head."""
        return self.header.count("attention.key_length", self.hidden // self.heads, most=1 << 16)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        embedding = self.header.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            self.header.refuse("tensor token_embd.weight is missing")
        return embedding.shape[0]

    @cached_property
    def context(self) -> int:
        """The longest sequence; within it no sliding window hides anything.

        transformers and llama.cpp disagree on Phi-3's window, and Mistral's is not in the file.
        """
        context = self.header.count("context_length", most=1 << 28)
        window = self.header.of_model("attention.sliding_window", 0)
        if self.family.model_type != "gemma3_text" and isinstance(window, int) and window > 0:
            context = min(context, window)
        return context

    @cached_property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return "output.weight" not in self.header.tensors

    def settings(self) -> dict[str, Any]:
        """Its sizes by the names of a transformers configuration."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
        }

    def heads_of(self, layer: str) -> int:
        """The heads that a layer's rows belong to."""
        return self.key_heads if layer.endswith(".k_proj") else self.heads

    def has_bias(self, *layers: str) -> bool:
        """Whether the first block has a bias in one of these layers, by GGUF's names."""
        return any(f"blk.0.{layer}.bias" in self.header.tensors for layer in layers)

    @cached_property
    def scaling(self) -> str:
        """How rotations are stretched: none or linear."""
        kind = self.header.of_model("rope.scaling.type", "none")
        return "none" if kind == "linear" and self.scale == 1 else str(kind)

    @cached_property
    def scale(self) -> float:
        """What rotations are stretched by, where they are."""
        return self.header.number("rope.scaling.factor", 1.0)

    def _check_scaling(self) -> None:
        long = [name for name in self.header.tensors if name.startswith("rope_factors_")]
        if self.scaling not in ("none", "linear") or long:
            kind = "longrope" if long else self.scaling[:40]
            self.header.refuse(
                f"rotary embedding of type {kind} is not supported", "use another backbone"
            )
        if "rope_freqs.weight" in self.header.tensors and self.family.model_type != "llama":
            self.header.refuse("rope_freqs.weight belongs to Llama models only")

    def _check_tensors(self) -> None:
        """Hold the tensors against those of a model of these sizes: all of them, and no others."""
        present = self.header.tensors
        if self.blocks > len(present):
            self.header.refuse(f"{self.blocks} blocks are not in it")
        queries, keys = self.heads * self.head, self.key_heads * self.head
        fused = self.family.model_type == "phi3"
        sizes = {
            "v": self.vocabulary,
            "h": self.hidden,
            "q": queries,
            "k": keys,
            "d": self.head,
            "f": self.feed_forward,
            "u": queries + 2 * keys,
        }
        needed = {"token_embd.weight": "vh", "output_norm.weight": "h"}
        optional = {"output.weight": "vh"}
        for block in range(self.blocks):
            for name in self.family.layers.values():
                needed[f"blk.{block}.{name}.weight"] = _SIZES[name]
                if name in self.family.biases:
                    optional[f"blk.{block}.{name}.bias"] = _SIZES[name][0]
        shapes = {name: tuple(sizes[s] for s in by) for name, by in (needed | optional).items()}
        if fused:
            for block in range(self.blocks):
                shapes[f"blk.{block}.ffn_up.weight"] = (2 * self.feed_forward, self.hidden)
        shapes["rope_freqs.weight"] = (self.head // 2,)
        for name, tensor in present.items():
            if name not in shapes:
                self.header.refuse(
                    f"tensor {name[:80]} is none of a {self.header.architecture} model",
                    "use another backbone",
                )
            if tensor.shape != shapes[name]:
                self.header.refuse(f"tensor {name} has shape {tensor.shape}, not {shapes[name]}")
        if missing := [name for name in needed if name not in present]:
            self.header.refuse(f"tensor {missing[0]} is missing")


def family_of(config: Any, name: str) -> Family:
    """The family of a transformers configuration.

    Raises:
        BackboneError: llama.cpp cannot run this kind of model from our files.
    """
    family = BY_MODEL_TYPE.get(config.model_type)
    if family is None:
        what = f"a {config.model_type} model cannot be written as GGUF"
        known = ", ".join(sorted(BY_MODEL_TYPE))
        fix = f"use a backbone of the kinds {known}, or `pfi export merged`"
        raise BackboneError(what, where=name, fix=fix)
    return family
