"""What a family of models needs, read from its configuration and its layers; no weights.

Which families cannot write, how long a context is, what a cache is called, where rotary
frequencies change with a row's length, and which linear layers an adapter may change.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Context of a model that states none, in tokens: it bounds memory.
DEFAULT_CONTEXT = 1024
_LIMITS = (
    *("max_position_embeddings", "max_encoder_position_embeddings"),
    "max_decoder_position_embeddings",
)
#: Of decoder-only models; T5's folders state such a number, but its positions are relative.
_CAUSAL_LIMITS = (*_LIMITS, "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
#: Families that cannot be right here, and why.
_REFUSED = {
    "xlnet": "it predicts tokens in any order, not one after the other",
    "xlm": "it predicts masked tokens, not one after the other",
    "flaubert": "it predicts masked tokens, not one after the other",
    "reformer": "it reads texts of one fixed length only",
    "prophetnet": "it predicts several tokens at once",
    "fsmt": "it translates between two vocabularies",
    "recurrent_gemma": "it keeps the state of one answer inside the model",
    "encoder-decoder": "it is put together from two models that pfi does not know",
}
#: Names of the parts of a composite configuration that is about text.
_TEXT_PARTS = ("text_config", "decoder", "generator")
#: Parts of a name that lead to layers which read no text.
_OTHER_INPUTS = ("vision", "visual", "image", "audio", "speech")
_ROUTERS = {"gate", "router", "shared_expert_gate"}
#: Of a Mamba mixer: kernels take these layers' weights without calling the layers.
_FUSED_IN_MAMBA = {"x_proj", "dt_proj", "out_proj"}
#: Encoder layers that get ``(tokens, rows, width)``, by family.
_TOKENS_FIRST = {"led": ".longformer_self_attn."}
#: Families whose passes change states in place, so that there are no gradients.
_NO_GRADIENTS = {"rwkv"}


def text_config(config: Any) -> Any:
    """The part of a configuration that is about the text model; mostly all of it."""
    for name in _TEXT_PARTS:
        part = getattr(config, name, None)
        if hasattr(part, "model_type"):
            return part
    return config


def width_of(config: Any) -> int:
    """The width of a model's hidden states."""
    text = text_config(config)
    return int(getattr(text, "hidden_size", None) or text.d_model)


def block_count(config: Any) -> int:
    """The number of a model's blocks; of an encoder-decoder model those of its encoder."""
    for part in (config, text_config(config)):
        if count := getattr(part, "num_hidden_layers", None) or getattr(part, "num_layers", None):
            return int(count)
    raise ConfigError("the backbone does not say how many blocks it has", fix="use layers=all")


def kept_numbers(tokens: int, length: int, *, hidden: int, intermediate: int, heads: int) -> int:
    """Numbers that a block keeps of so many tokens in rows of a length, for its backward pass."""
    return tokens * (8 * hidden + 4 * intermediate + 2 * heads * length)


def context_length(config: Any) -> int:
    """The longest sequence that a model accepts, in tokens.

    The least of the limits that its configuration states; 1024 where it states none, as for
    relative positions (T5) and recurrent models.
    """
    parts = [config, text_config(config), getattr(config, "encoder", None)]
    names = _LIMITS if config.is_encoder_decoder else _CAUSAL_LIMITS
    stated = [getattr(part, name, None) for part in parts if part is not None for name in names]
    limits = [int(limit) for limit in stated if isinstance(limit, int | float) and limit > 0]
    if not limits:
        return DEFAULT_CONTEXT
    if own_positions(config):
        return min(limits) - int(config.pad_token_id or 0) - 1
    return min(limits)


def check_family(config: Any, name: str) -> None:
    """Refuse a model that cannot be a backbone.

    Args:
        config: its transformers configuration.
        name: what it is loaded by.

    Raises:
        BackboneError: it is an encoder, or a kind of model that cannot be used here.
    """
    from transformers.models.auto import modeling_auto as auto

    family = config.model_type
    fix = "use a causal or encoder-decoder language model"
    writes = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    translates = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if reason := _REFUSED.get(family):
        raise BackboneError(f"{family} models are not supported: {reason}", where=name, fix=fix)
    if config.is_encoder_decoder:
        known = family in translates
    elif family in masked or "electra" in family:
        known = family in writes and bool(getattr(config, "is_decoder", False))
        if not known:
            what = f"it is an encoder and cannot write ({family})"
            raise BackboneError(what, where=name, fix=fix)
    else:
        known = family in writes
    if not known:
        what = f"it is no language model that transformers can write with ({family})"
        raise BackboneError(what, where=name, fix=fix)


def rope_border(config: Any) -> int | None:
    """The length beyond which a row is read with other rotary frequencies; None for no such.

    LongRoPE (arXiv 2402.13753) has two sets of factors, and transformers takes those that the
    longest row of a pass needs; dynamic NTK scaling begins beyond the trained context.
    """
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    borders = []
    for one in (parameters, *parameters.values()):
        kind = str(one.get("rope_type", "")) if isinstance(one, dict) else ""
        if kind == "longrope":
            original = one.get("original_max_position_embeddings")
            borders.append(original or getattr(text, "original_max_position_embeddings", None))
        elif "dynamic" in kind:
            borders.append(text.max_position_embeddings)
    return min((int(border) for border in borders if border), default=None)


# Caches -----------------------------------------------------------------------------------


@cache
def _cache_name(kind: Any) -> str | None:
    names = inspect.signature(kind.forward).parameters
    known = ("cache", "past_key_values", "cache_params")
    return next((name for name in known if name in names), None)


def accepts(model: Any, name: str) -> bool:
    """Whether a model's pass takes an argument of this name."""
    return name in inspect.signature(type(model).forward).parameters


def cache_argument(model: Any, held: Any) -> dict[str, Any]:
    """The argument that gives a model its cache, whatever its transformers version calls it."""
    kind: Any = type(model)
    name = _cache_name(kind)
    return {} if name is None or held is None else {name: held}


def cache_of(model: Any, output: Any) -> Any:
    """The cache in a model's output; None for a model that has none."""
    kind: Any = type(model)
    name = _cache_name(kind)
    return None if name is None else vars(output).get(name)


def own_positions(config: Any) -> bool:
    """Whether a model counts positions by itself only, from behind the padding token's number."""
    return "roberta" in config.model_type or config.model_type in ("camembert", "xmod")


def positions_argument(model: Any, begin: int, ids: torch.Tensor) -> dict[str, Any]:
    """The argument with the positions of ``(rows, tokens)`` ids that follow ``begin`` others.

    A cache does not always know them: that of a model which is part recurrent may not.
    """
    if own_positions(model.config) or not accepts(model, "position_ids"):
        return {}
    import torch

    places = torch.arange(begin, begin + ids.shape[1], device=ids.device)
    return {"position_ids": places.expand(len(ids), -1)}


def with_states(output: Any, states: Any) -> Any:
    """An encoder's output with other hidden states, and all else that its decoder looks for."""
    changed = copy.copy(output)
    changed.last_hidden_state = states
    return changed


# Layers -----------------------------------------------------------------------------------


def adaptable_layers(model: Any) -> list[str]:
    """Names of the linear layers that an adapter may change, in the model's order.

    Left out: the output layer, what reads no text, routers and the experts behind them (which
    see tokens, not rows), and layers whose weights are used without calling the layer.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and not_adaptable(model, name) is None
    ]


def not_adaptable(model: Any, name: str) -> str | None:
    """Why a linear layer cannot be adapted; None where it can."""
    parts = name.split(".")
    family = model.config.model_type
    if family in _NO_GRADIENTS:
        return "the model changes its states in place, and has no gradients"
    if text_config(model.config) is not model.config and not _reads_text(model, name):
        return "it reads no text"
    if "experts" in parts[:-1]:
        return "it is one of the experts that tokens are sent to"
    if _has_experts(model.config) and _ROUTERS & set(parts):
        return "it chooses experts"
    if len(parts) > 1:
        parent = model.get_submodule(".".join(parts[:-1]))
        kind = type(parent).__name__
        mixes = hasattr(parent, "A_log") and ("Mamba" in kind or kind.endswith("Mixer"))
        if mixes and parts[-1] in _FUSED_IN_MAMBA:
            return "a state-space layer uses its weights directly"
    if parts[-1] in _names_of_experts(family):
        return "peft takes its name for one of the experts'"
    if (marked := _TOKENS_FIRST.get(family)) and marked in name:
        return "it does not keep the rows of a batch apart"
    return None


@cache
def _names_of_experts(family: str) -> frozenset[str]:
    """Names of layers that peft takes for experts, which transformers 5 keeps in one tensor."""
    from peft.utils import transformers_weight_conversion as conversion

    patterns = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    names = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return frozenset(names.get(patterns.get(family)) or ())


def _reads_text(model: Any, name: str) -> bool:
    if any(word in part for part in name.split(".") for word in _OTHER_INPUTS):
        return False
    if model.config.is_encoder_decoder:
        return True
    decoder = model.get_decoder()
    layer = model.get_submodule(name)
    return any(module is layer for module in decoder.modules())


def _has_experts(config: Any) -> bool:
    return any("expert" in key for key in vars(text_config(config)))


def has_fused_experts(model: Any) -> bool:
    """Whether experts are tensors of their own, which peft would wrap for ``all-linear``."""
    return any(
        parameter.ndim == 3 and "experts" in name for name, parameter in model.named_parameters()
    )


def shortest_names(names: Collection[str], modules: dict[str, nn.Module]) -> list[str]:
    """Names for peft's ``target_modules``: last parts where all layers of that name are meant."""
    meant = set(names)
    others = {name.rpartition(".")[2] for name in modules if name not in meant}
    last = {name: name.rpartition(".")[2] for name in names}
    return sorted({name if end in others else end for name, end in last.items()})
