"""A backbone or an adapter as a GGUF file, the format of llama.cpp, with its tokenizer.

How families and tokenizers are laid out there is known in ``pfi.models.gguf``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pfi._util.files import sync_folder
from pfi.errors import BackboneError, ConfigError
from pfi.models.chat_templates import default_template
from pfi.models.gguf.export_vocabulary import export_vocabulary
from pfi.models.gguf.families import Family, family_of
from pfi.models.gguf.vocabulary import SAMPLING
from pfi.models.gguf.weights import rope_factors
from pfi.models.prompter import EMBEDDED, Prompter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

    from pfi.models.adapters import Adapter
    from pfi.models.backbone import Backbone


def add_vocabulary(writer: GGUFWriter, prompter: Prompter, size: int) -> bool:
    """Write the tokenizer, the chat templates and how answers end and are sampled.

    Args:
        writer: of the file.
        prompter: whose tokenizer.
        size: rows of the embedding; tokens beyond the tokenizer's are marked as unused.

    Returns:
        Whether spaces after control tokens are no text, see ``Vocabulary``.

    Raises:
        BackboneError: llama.cpp knows no such tokenizer, or no template is the default one.
    """
    tokenizer: Any = prompter.tokenizer
    vocabulary = export_vocabulary(
        json.loads(tokenizer.backend_tokenizer.to_str()),
        size,
        prompter.name,
        default_template(tokenizer.chat_template, prompter.name),
    )
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    _add_ends(writer, prompter)
    writer.add_pad_token_id(int(tokenizer.pad_token_id))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(int(tokenizer.bos_token_id))
    # A chat template writes the token that a text begins with by itself.
    writer.add_add_bos_token(tokenizer.chat_template is None and tokenizer.bos_token_id is not None)
    if (templates := tokenizer.chat_template) and not isinstance(templates, str):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        writer.add_chat_template(templates)
    for name, key in SAMPLING.items():
        value = getattr(prompter.generation, name)
        if prompter.generation.sample and value is not None:
            (writer.add_int32 if name == "top_k" else writer.add_float32)(key, value)
    return vocabulary.strips


def _add_ends(writer: GGUFWriter, prompter: Prompter) -> None:
    """The tokens that end an answer: llama.cpp stops at each of up to three."""
    eos = int(prompter.tokenizer.eos_token_id)  # type: ignore[arg-type]
    others = sorted(prompter.end_ids - {eos}, key=lambda at: (at != prompter.end_id, at))
    writer.add_eos_token_id(eos)
    for at, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(at)


Bits = Literal["f32", "f16", "q8_0", "q4_k_m"]
BITS: tuple[Bits, ...] = ("f32", "f16", "q8_0", "q4_k_m")

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15}
_LARGEST_GEMMA = 62  # blocks of the one that scales by its states
_F32, _F16, _Q5_0, _Q8_0, _Q4_K, _Q6_K = 0, 1, 6, 8, 12, 14


def write_backbone(
    backbone: Backbone,
    path: Path,
    bits: Bits = "f16",
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a backbone and its tokenizer.

    Args:
        backbone: a causal model of a family that is known, adapters merged in or not.
        path: the file; one that is there is replaced.
        bits: of the weights. The small ones stay at 32.
        on_progress: told how many tensors are done, and of how many.

    Raises:
        BackboneError: the family or the tokenizer has no place in GGUF, or a package is missing.
    """
    config: Any = backbone.model.config
    family = family_of(config, backbone.name)
    state = backbone.model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    with _writing(path, config, backbone.name) as writer:
        name = backbone.name
        # A folder's name is the user's business.
        plain = name == EMBEDDED or not Path(name).expanduser().exists()
        shown = name if plain else "backbone"
        writer.add_file_type(_FILE_TYPES[bits])
        writer.add_quantization_version(2)
        _add_shape(writer, config, family, backbone.name)
        size = state["model.embed_tokens.weight"].shape[0]
        strips = add_vocabulary(writer, backbone.prompter, size)
        # By this name llama.cpp knows that line feeds after Phi-3's control tokens are no text.
        writer.add_name("phi-3" if strips else shown)
        if (factors := _rope_factors(config, backbone.name)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for done, (key, weight) in enumerate(state.items(), 1):
            layer, _, kind = key.rpartition(".")
            values = _ordered(family, layer, weight.detach().float().cpu(), config)
            if layer.endswith("norm"):
                values = values + family.norm_offset
            named = f"{family.tensor_name(layer)}.{kind}"
            _add(writer, named, values.numpy(), _kind(named, values, bits, config))
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

    family = family_of(config, "the backbone")
    rank = next(iter(factors.values()))[0].shape[0]
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))  # the scale is in B
    dtype = np.float16 if half else np.float32
    for layer, (a, b) in factors.items():
        name = f"{family.tensor_name(layer)}.weight"
        # llama.cpp multiplies by alpha and divides by each layer's own rank.
        b = _ordered(family, layer, b, config) * (a.shape[0] / rank)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a.numpy(), dtype=dtype))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b.numpy(), dtype=dtype))


@contextmanager
def _writing(path: Path, config: Any, name: str) -> Iterator[GGUFWriter]:
    """A GGUF file that takes its place when it is whole."""
    family = family_of(config, name)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        from pfi.inference.llama.c import INSTALL

        raise BackboneError("the gguf package is not installed", fix=INSTALL) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
    writer = GGUFWriter(temporary, family.architecture)
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


def _kind(name: str, values: torch.Tensor, bits: Bits, config: Any) -> int:
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


def _ordered(family: Family, layer: str, rows: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of queries and keys in llama.cpp's order; others as they are."""
    heads = config.num_key_value_heads if layer.endswith(".k_proj") else config.num_attention_heads
    return family.rotated(layer, rows, heads)


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _add_shape(writer: GGUFWriter, config: Any, family: Family, name: str) -> None:
    """The model's sizes.

    Raises:
        BackboneError: it has parts that llama.cpp does not know.
    """
    gemma = family.model_type == "gemma3_text"
    activation = config.hidden_activation if gemma else config.hidden_act
    rope = config.rope_parameters["full_attention"] if gemma else config.rope_parameters
    head = _head_size(config)
    turned = round(head * (rope.get("partial_rotary_factor") or 1.0))
    if (
        activation != ("gelu_pytorch_tanh" if gemma else "silu")
        or (turned != head and family.model_type != "phi3")
        or getattr(config, "attn_logit_softcapping", None)
        or getattr(config, "final_logit_softcapping", None)
        or (gemma and not config.tie_word_embeddings)
        or getattr(config, "use_bidirectional_attention", False)
    ):
        raise BackboneError("the model has parts that llama.cpp does not know", where=name)
    writer.add_context_length(full_attention_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if gemma:
        _add_windows(writer, config, name)


def _add_windows(writer: GGUFWriter, config: Any, name: str) -> None:
    """What is Gemma 3's own: layers that see a window, and how they rotate.

    Raises:
        BackboneError: llama.cpp does not know such an order of layers or such a scale.
    """
    kinds, local = list(config.layer_types), config.rope_parameters["sliding_attention"]
    pattern = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    regular = [
        "full_attention" if (at + 1) % pattern == 0 else "sliding_attention"
        for at in range(len(kinds))
    ]
    scaled = config.query_pre_attn_scalar
    wanted = _head_size(config)
    if len(kinds) == _LARGEST_GEMMA:
        wanted = config.hidden_size // config.num_attention_heads
    if kinds != regular or scaled != wanted or local["rope_type"] != "default":
        raise BackboneError("the model has parts that llama.cpp does not know", where=name)
    prefix = "gemma3"
    writer.add_sliding_window(config.sliding_window)
    writer.add_uint32(f"{prefix}.attention.sliding_window_pattern", pattern)
    writer.add_float32(f"{prefix}.rope.freq_base_swa", local["rope_theta"])


def full_attention_context(config: Any) -> int:
    """The longest sequence that llama.cpp answers as transformers does, in tokens.

    It sees whole texts where transformers' layers see a window, Gemma's apart: within the window
    that is the same.
    """
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if config.model_type == "gemma3_text" or not window:
        return longest
    return min(longest, int(window))


def _rope_factors(config: Any, name: str) -> np.ndarray | None:
    """What Llama 3.1 divides its rotations' frequencies by, ``(head / 2,)``; None for others.

    Raises:
        BackboneError: the rotations are stretched in a way that is not supported.
    """
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if rope["rope_type"] in ("default", "linear"):
        return None
    if rope["rope_type"] != "llama3" or config.model_type != "llama":
        what = f"rotary embedding of type {rope['rope_type']} cannot be written as GGUF"
        raise BackboneError(what, where=name, fix="use `pfi export merged`")
    return rope_factors(
        _head_size(config),
        rope["rope_theta"],
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def bits_of(text: str) -> Bits:
    """The bits of this name.

    Raises:
        ConfigError: there are none.
    """
    for bits in BITS:
        if bits == text.lower():
            return bits
    raise ConfigError(f"there are no bits {text!r}", fix=f"choose one of {', '.join(BITS)}")
