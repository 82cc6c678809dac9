"""Whether a name is a backbone that can be used, before anything is built on it."""

from __future__ import annotations

import json
from pathlib import Path

from pfi.errors import BackboneError
from pfi.models.families import check_family
from pfi.models.gguf.check import check_gguf
from pfi.models.gguf.header import is_gguf
from pfi.models.gguf.source import read_config
from pfi.models.prompter import Prompter, load_prompter, reading
from pfi.models.shapes import LOADING, check_shapes

_INDEX = "model.safetensors.index.json"


def check_backbone(name: str | Path) -> Prompter:
    """A backbone's prompter, if it can be used: its weights are there but are not read.

    Args:
        name: as ``load_backbone`` takes it. What a hub holds of weights is not looked at.

    Raises:
        BackboneError: it does not exist, or is damaged or of a kind that is not supported; its
            tokenizer or its chat template cannot be used.
        StorageError: the manifest of an installed model is damaged.
    """
    name = str(name)
    with reading(name) as (source, options):
        if is_gguf(source):
            check_gguf(Path(source))
        elif Path(source).is_dir():
            _check_weights(Path(source), name)
            config = read_config(source, options)
            check_family(config, name)  # what cannot be used is not laid out
            with LOADING:
                check_shapes(Path(source), config, name)
    return load_prompter(name)


def _check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without safetensors weights, or with some of their files missing."""
    fix = "copy the model's folder again"
    if not (folder / "config.json").is_file():
        raise BackboneError("there is no model: config.json is missing", where=name, fix=fix)
    index = folder / _INDEX
    files = ["model.safetensors"]
    if index.is_file() and not (folder / files[0]).is_file():
        try:
            files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(f"{_INDEX} is damaged", where=name, fix=fix) from error
    missing = [file for file in files if not (folder / str(file)).is_file()]
    if missing:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickled:
            what = f"its weights are pickled ({pickled[0].name}), which is refused"
            raise BackboneError(what, where=name, fix="convert them to safetensors")
        raise BackboneError(f"its weights are missing: {missing[0]}", where=name, fix=fix)
