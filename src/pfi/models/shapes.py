"""Whether a backbone's configuration goes with its weights, before memory is taken for either.

The model is laid out on PyTorch's `meta` device, which holds shapes and no values, and compared
with the headers of the safetensors files.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfi.errors import BackboneError

#: Bytes of a safetensors file's header; the format's own limit.
_MOST_HEADER = 100_000_000
#: Modules of one kind that no model has: more would take hours to lay out.
_MOST_MODULES = 4096
#: What counts modules; a `max_window_layers` only bounds, and is larger in real models.
_COUNTS = re.compile(
    r"^(?!max_)(\w+_)?(n_layers?|num_\w*(layers|experts|blocks)|\w+_layers|n_\w*experts)$"
)
_FIX = "take the model's files again from where they come"

Shape = tuple[int, ...]

#: One model is loaded or laid out at a time: the default device is the whole process's.
LOADING = threading.RLock()


def check_shapes(folder: Path, config: Any, name: str) -> None:
    """Refuse a model's folder whose configuration says other shapes than its weights have.

    Weights that the configuration's model knows by another name are left to the loader.

    Args:
        folder: with safetensors files.
        config: transformers' configuration of it.
        name: of the backbone, for errors.

    Raises:
        BackboneError: names the weight, or the setting that makes no sense.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    stored: dict[str, Shape] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(read_header(file, name))
    for setting, value in config.to_dict().items():
        if not isinstance(value, int) or not _COUNTS.search(setting):
            continue
        most = min(_MOST_MODULES, len(stored)) if "layer" in setting else _MOST_MODULES
        if value > most:  # a layer has at least one weight
            what = f"config.json: {setting} is {value}, and its weights have at most {most}"
            raise BackboneError(what, where=name, fix=_FIX)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config, trust_remote_code=False)
    for key, weight in model.state_dict().items():
        found, wanted = stored.get(key), tuple(weight.shape)
        if found is not None and found != wanted:
            what = f"config.json does not go with its weights: {key} is {_words(found)}"
            raise BackboneError(f"{what}, not {_words(wanted)}", where=name, fix=_FIX)


def read_header(file: Path, name: str) -> Mapping[str, Shape]:
    """The shapes of a safetensors file's tensors; no weight is read.

    Raises:
        BackboneError: the file is damaged.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            if length > min(_MOST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        shapes = {key: one for key, one in header.items() if key != "__metadata__"}
        return {key: tuple(int(n) for n in one["shape"]) for key, one in shapes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{file.name} is damaged: {' '.join(str(error).split())[:100]}"
        raise BackboneError(what, where=name, fix=_FIX) from error


def _words(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"
