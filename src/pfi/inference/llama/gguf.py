"""A backbone or an adapter as a GGUF file, the format of llama.cpp, with its tokenizer.

Byte-level BPE as GPT-2, Llama 3 and Qwen 2 have it becomes GGUF metadata.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pfi._util.files import sync_folder
from pfi.errors import BackboneError, ConfigError
from pfi.models.prompter import EMBEDDED, Prompter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

    from pfi.models.adapters import Adapter
    from pfi.models.backbone import Backbone


# Token types of GGUF.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def add_vocabulary(writer: GGUFWriter, prompter: Prompter, size: int) -> None:
    """Write the tokenizer into a GGUF file's head.

    Args:
        writer: of the file.
        prompter: whose tokenizer.
        size: rows of the embedding; tokens beyond the tokenizer's are marked as unused.

    Raises:
        BackboneError: the tokenizer is no byte-level BPE.
    """
    tokenizer: Any = prompter.tokenizer
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or not _has_part(parts["decoder"], "ByteLevel"):
        what = "only byte-level BPE tokenizers can be written as GGUF"
        raise BackboneError(what, where=prompter.name, fix="use `pfi export merged`")
    tokens = [f"[PAD{at}]" for at in range(size)]
    types = [_UNUSED] * size
    for token, at in model["vocab"].items():
        tokens[at], types[at] = token, _NORMAL
    for added in parts["added_tokens"]:
        if added["id"] >= size:  # the model knows no such token either
            continue
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(parts["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(prompter.end_id)
    writer.add_pad_token_id(int(tokenizer.pad_token_id))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(int(tokenizer.bos_token_id))
    # A chat template writes the token that a text begins with by itself.
    framed = tokenizer.chat_template is None and tokenizer.bos_token_id is not None
    writer.add_add_bos_token(framed)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = part.get("pretokenizers") or part.get("decoders") or []
    return [leaf for one in inner for leaf in _flat(one)]


def _has_part(part: dict[str, Any] | None, kind: str) -> bool:
    return any(leaf["type"] == kind for leaf in _flat(part))


def _splitting(part: dict[str, Any] | None) -> str:
    """llama.cpp's name of how a text is split before its pairs are merged."""
    leaves = _flat(part)
    patterns = [leaf["pattern"].get("Regex", "") for leaf in leaves if leaf["type"] == "Split"]
    if any(r"\p{N}{1,3}" in pattern for pattern in patterns):
        return "llama-bpe"
    if patterns:
        return "qwen2"
    digits = any(leaf["type"] == "Digits" and leaf.get("individual_digits") for leaf in leaves)
    return "smollm" if digits else "gpt-2"


Bits = Literal["f32", "f16", "q8_0", "q4_k_m"]
BITS: tuple[Bits, ...] = ("f32", "f16", "q8_0", "q4_k_m")

_FAMILIES = ("llama", "qwen2")
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15}
_F32, _F16, _Q5_0, _Q8_0, _Q4_K, _Q6_K = 0, 1, 6, 8, 12, 14
_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def write_backbone(
    backbone: Backbone,
    path: Path,
    bits: Bits = "f16",
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a backbone and its tokenizer.

    Args:
        backbone: a causal model of Llama's or Qwen 2's family, adapters merged in or not.
        path: the file; one that is there is replaced.
        bits: of the weights. The small ones stay at 32.
        on_progress: told how many tensors are done, and of how many.

    Raises:
        BackboneError: the family or the tokenizer has no place in GGUF, or a package is missing.
    """
    config: Any = backbone.model.config
    state = backbone.model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    with _writing(path, config, backbone.name) as writer:
        name = backbone.name
        # A folder's name is the user's business.
        writer.add_name(name if name == EMBEDDED or not Path(name).is_dir() else "backbone")
        writer.add_file_type(_FILE_TYPES[bits])
        writer.add_quantization_version(2)
        _add_shape(writer, config, backbone.name)

        add_vocabulary(writer, backbone.prompter, state["model.embed_tokens.weight"].shape[0])
        if (factors := _rope_factors(config, backbone.name)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for done, (key, weight) in enumerate(state.items(), 1):
            layer, _, kind = key.rpartition(".")
            values = _rotated(layer, weight.detach().float().cpu(), config).numpy()
            named = f"{tensor_name(layer)}.{kind}"
            _add(writer, named, values, _kind(named, values, bits, config))
            if on_progress is not None:
                on_progress(done, len(state))


def write_adapter(adapter: Adapter, config: Any, path: Path, *, half: bool = False) -> None:
    """Write an adapter for llama.cpp; the update is exactly that of the adapter.

    Args:
        adapter: plain LoRA.
        config: the transformers configuration of the backbone that it is over.
        path: the file; one that is there is replaced.
        half: with factors of 16 bits instead of 32.

    Raises:
        BackboneError: it is more than plain LoRA, or its layers have no place in GGUF.
    """
    factors = adapter.factors()
    with _writing(path, config, "the backbone") as writer:
        fill_adapter(writer, factors, config, half=half)


def fill_adapter(
    writer: GGUFWriter,
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    config: Any,
    *,
    half: bool = False,
) -> None:
    """Put an adapter's factors, see ``Adapter.factors``, into a GGUF file."""
    import numpy as np

    rank = next(iter(factors.values()))[0].shape[0]
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))  # the scale is in B
    dtype = np.float16 if half else np.float32
    for layer, (a, b) in factors.items():
        name = f"{tensor_name(layer)}.weight"
        b = _rotated(layer, b, config)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a.numpy(), dtype=dtype))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b.numpy(), dtype=dtype))


def tensor_name(layer: str) -> str:
    """What GGUF calls a layer.

    Raises:
        BackboneError: it has no place there.
    """
    if layer in _WHOLE:
        return _WHOLE[layer]
    match = _BLOCK.fullmatch(layer)
    if match and match[2] in _LAYERS:
        return f"blk.{match[1]}.{_LAYERS[match[2]]}"
    raise BackboneError(f"layer {layer} has no place in GGUF", fix="use `pfi export merged`")


def check_family(config: Any, name: str) -> None:
    """Raise a ``BackboneError`` if llama.cpp cannot run this kind of model from our files."""
    if config.model_type not in _FAMILIES:
        what = f"a {config.model_type} model cannot be written as GGUF"
        fix = f"use a backbone of {' or '.join(_FAMILIES)}'s family, or `pfi export merged`"
        raise BackboneError(what, where=name, fix=fix)


@contextmanager
def _writing(path: Path, config: Any, name: str) -> Iterator[GGUFWriter]:
    """A GGUF file that takes its place when it is whole."""
    check_family(config, name)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        from pfi.inference.llama.c import INSTALL

        raise BackboneError("the gguf package is not installed", fix=INSTALL) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
    writer = GGUFWriter(temporary, config.model_type)
    try:
        yield writer
        finish(writer)
        temporary.replace(path)
    except BaseException:
        writer.close()
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def finish(writer: GGUFWriter) -> None:
    """Write what was added to the file, and see it to the disk."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    for file in writer.fout or []:
        file.flush()
        os.fsync(file.fileno())
    writer.close()


def _add(writer: GGUFWriter, name: str, values: np.ndarray, kind: int) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType

    if kind in (_F32, _F16):
        dtype = np.float32 if kind == _F32 else np.float16
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=dtype))
        return
    from pfi.inference.llama.c import quantised

    writer.add_tensor(name, quantised(values, kind), raw_dtype=GGMLQuantizationType(kind))


def _kind(name: str, values: np.ndarray, bits: Bits, config: Any) -> int:
    """The tensor's type: that of the bits, or a finer one where its rows are no whole blocks."""
    if values.ndim == 1 or bits == "f32":
        return _F32
    columns = values.shape[1]
    if bits == "f16" or columns % 32:
        return _F16
    if bits == "q8_0":
        return _Q8_0
    fine = name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight")
    if match := re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name):
        layer, count = int(match[1]), config.num_hidden_layers
        eighth = count // 8
        fine = layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2
    if columns % 256:
        return _Q8_0 if fine else _Q5_0
    return _Q6_K if fine else _Q4_K


def _rotated(layer: str, values: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of Llama's queries and keys in llama.cpp's order.

    Rotary embedding turns pairs of a head's values: transformers pairs the halves of a head,
    llama.cpp neighbours (of Llama; of Qwen 2 it pairs halves too).
    """
    if config.model_type != "llama" or not layer.endswith((".q_proj", ".k_proj")):
        return values
    heads = config.num_attention_heads if layer.endswith(".q_proj") else config.num_key_value_heads
    rows = values.shape[0]
    split = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return split.transpose(1, 2).reshape(values.shape)


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _add_shape(writer: GGUFWriter, config: Any, name: str) -> None:
    """The model's sizes.

    Raises:
        BackboneError: it has parts that llama.cpp does not know.
    """
    rope = config.rope_parameters
    if getattr(config, "use_sliding_window", False):
        raise BackboneError("sliding windows cannot be written as GGUF", where=name)
    if config.hidden_act != "silu" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise BackboneError("the model has parts that llama.cpp does not know", where=name)
    head = _head_size(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _rope_factors(config: Any, name: str) -> np.ndarray | None:
    """What Llama 3.1 divides its rotations' frequencies by, ``(head / 2,)``; None for others.

    Raises:
        BackboneError: the rotations are stretched in a way that is not supported.
    """
    import numpy as np

    rope = config.rope_parameters
    if rope["rope_type"] in ("default", "linear"):
        return None
    if rope["rope_type"] != "llama3":
        what = f"rotary embedding of type {rope['rope_type']} cannot be written as GGUF"
        raise BackboneError(what, where=name, fix="use `pfi export merged`")
    head = _head_size(config)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head, 2) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def bits_of(text: str) -> Bits:
    """The bits of this name.

    Raises:
        ConfigError: there are none.
    """
    for bits in BITS:
        if bits == text.lower():
            return bits
    raise ConfigError(f"there are no bits {text!r}", fix=f"choose one of {', '.join(BITS)}")
