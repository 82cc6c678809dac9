"""A GGUF file as a plain transformers model: its configuration, and its weights in 32 bits.

The model knows nothing of quantisation, so it can be copied, merged with an adapter and saved. Its
weights are exactly those that llama.cpp reads from the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pfi.errors import BackboneError
from pfi.models.gguf.families import Sizes
from pfi.models.gguf.header import TENSOR_TYPES, Header, Tensor, open_regular, read_header
from pfi.models.gguf.vocabulary import end_ids, special_ids

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

_INSTALL = "install it with `pip install 'pfi[llama]'`"
_F32, _F16, _BF16 = 0, 1, 30
# Values that are dequantised at a time: they stay in the cache.
_CHUNK = 1 << 18
# Of what Llama 3.1 and its kin stretch their rotations by, those that do not vary.
_LOW, _HIGH = 1.0, 4.0


def read_config(header: Header) -> Any:
    """The file's model as a transformers configuration.

    Raises:
        BackboneError: it is of no family that is known, or makes no sense.
    """
    from transformers import AutoConfig

    sizes = Sizes(header)
    kind = sizes.family.model_type
    ids = special_ids(header)
    ends = end_ids(header)
    settings: dict[str, Any] = {
        **sizes.settings(),
        "rms_norm_eps": _short(header.number("attention.layer_norm_rms_epsilon")),
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": ids.get("pad"),
        "use_cache": True,
    }
    theta = _short(header.number("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if sizes.scaling == "linear":
        rope |= {"rope_type": "linear", "factor": _short(sizes.scale)}
    if "rope_freqs.weight" in header.tensors:
        rope |= _llama3(header, sizes, theta)
    if kind == "phi3":
        del settings["head_dim"]
        settings |= {"sliding_window": None}
        if sizes.head * sizes.heads != sizes.hidden:
            header.refuse("its heads do not share its states evenly")
    if kind == "llama":
        attention = ("attn_q", "attn_k", "attn_v", "attn_output")
        settings |= {
            "attention_bias": sizes.has_bias(*attention),
            "mlp_bias": sizes.has_bias("ffn_gate", "ffn_up", "ffn_down"),
        }
    if kind == "gemma3_text":
        settings |= _gemma3(header, sizes, rope)
    else:
        settings |= {"rope_parameters": rope}
    return AutoConfig.for_model(kind, **settings)


def load_model(path: Path) -> PreTrainedModel:
    """The file's model in 32 bits, on the CPU.

    Raises:
        BackboneError: the file is damaged or of a kind that is not supported, or the package that
            knows its tensor types is not installed.
    """
    import torch
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM

    header = read_header(path)
    config, sizes = read_config(header), Sizes(header)
    # Weights get no memory before they are read; tables that are not in the file are computed.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with open_regular(path) as file:
        for key, empty in dict(model.named_parameters()).items():
            layer, _, kind = key.rpartition(".")
            if layer == "lm_head" and sizes.tied:
                continue
            name = f"{sizes.family.tensor_name(layer)}.{kind}"
            tensor = header.tensors.get(name)
            if tensor is None:  # a bias of a layer whose neighbours have one
                values = torch.zeros(empty.shape)
            else:
                values = torch.from_numpy(_values(header, file, tensor))
            if values.shape != empty.shape:
                header.refuse(f"tensor {name} has shape {tuple(values.shape)}")
            if not bool(torch.isfinite(values.sum())):
                header.refuse(f"tensor {name} has values that are not finite")
            values = sizes.family.rotated_back(layer, values, sizes.heads_of(layer))
            if sizes.family.norm_offset and layer.endswith("norm"):
                values = values - sizes.family.norm_offset
            owner = model.get_submodule(layer)
            setattr(owner, kind, torch.nn.Parameter(values.contiguous(), requires_grad=False))
    model.tie_weights()
    return model.eval()


def _values(header: Header, file: BinaryIO, tensor: Tensor) -> np.ndarray:
    """A tensor's values in 32 bits, in memory of its own; some rows at a time are read."""
    import numpy as np

    block, width = TENSOR_TYPES[tensor.kind][1:]
    columns = tensor.shape[-1]
    row = columns // block * width
    values = np.empty((math.prod(tensor.shape) // columns, columns), np.float32)
    file.seek(tensor.offset)
    step = max(1, _CHUNK // columns)
    for at in range(0, len(values), step):
        part = values[at : at + step]
        data = np.frombuffer(file.read(len(part) * row), np.uint8)
        if len(data) != len(part) * row:
            header.refuse(f"tensor {tensor.name} ends beyond the end of the file")
        part[:] = _dequantised(header, data.reshape(len(part), row), tensor.kind)
    return values.reshape(tensor.shape)


def _dequantised(header: Header, data: np.ndarray, kind: int) -> np.ndarray:
    """Rows of bytes as rows of values."""
    import numpy as np

    if kind == _F32:
        return data.view("<f4")
    if kind == _F16:
        return data.view("<f2")
    if kind == _BF16:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        what = "quantised GGUF files need the gguf package, which is not installed"
        raise BackboneError(what, where=str(header.path), fix=_INSTALL) from error
    values: np.ndarray = dequantize(data, GGMLQuantizationType(kind))
    return values


def _short(value: float) -> float:
    """A number that was stored in 32 bits as the shortest one that is stored so."""
    import numpy as np

    return float(str(np.float32(value)))


def _llama3(header: Header, sizes: Sizes, theta: float) -> dict[str, Any]:
    """The settings that Llama 3.1's table of factors was made from."""
    import numpy as np

    with open_regular(header.path) as file:
        table = _values(header, file, header.tensors["rope_freqs.weight"])
    if not np.isfinite(table).all() or (table < 1).any():
        header.refuse("rope_freqs.weight makes no sense")
    factor = float(table.max())
    for power in range(8, 22):
        length = 1 << power
        same = rope_factors(sizes.head, theta, factor, _LOW, _HIGH, length)
        if np.allclose(same, table, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": _short(factor),
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": length,
            }
    header.refuse("its rotations are stretched in an unknown way", "use another backbone")


def rope_factors(
    head: int, theta: float, factor: float, low: float, high: float, length: int
) -> np.ndarray:
    """What Llama 3.1 divides its rotations' frequencies by, ``(head / 2,)``.

    Args:
        head: values a head.
        theta: base of the frequencies.
        factor: most that a frequency is divided by.
        low, high: turns within ``length`` at which it is divided wholly, and not at all.
        length: longest sequence before the stretching.
    """
    import numpy as np

    frequencies = theta ** -(np.arange(0, head, 2) / head)
    turns = length * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _gemma3(header: Header, sizes: Sizes, rope: dict[str, Any]) -> dict[str, Any]:
    """What is Gemma 3's own."""
    if not sizes.tied:
        header.refuse("tensor output.weight is none of a gemma3 model")
    pattern = header.count("attention.sliding_window_pattern", 6, most=1 << 12)
    # The 27-billion model alone scales by its states.
    scaled = sizes.hidden // sizes.heads if sizes.blocks == 62 else sizes.head
    local = _short(header.number("rope.freq_base_swa", 10000.0))
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scaled,
        "sliding_window": header.count("attention.sliding_window", most=1 << 28),
        "layer_types": [
            "full_attention" if (at + 1) % pattern == 0 else "sliding_attention"
            for at in range(sizes.blocks)
        ],
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
