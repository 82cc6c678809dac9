"""GGUF files of backbones, made once: they hold nothing of a user and serve all profiles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfi._util.files import locked, sha256_file
from pfi.inference.llama.engine import LlamaEngine
from pfi.inference.llama.gguf import Bits, bits_of, full_attention_context, write_backbone
from pfi.models.gguf.check import check_bits, check_gguf
from pfi.models.gguf.families import family_of
from pfi.models.gguf.header import is_gguf
from pfi.models.gguf.source import read_config
from pfi.models.prompter import gguf_path, load_prompter, reading

Progress = Callable[[int, int], None]
# What a backbone's answers depend on.
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def open_llama(
    name: str,
    folder: Path,
    bits: str = "q8_0",
    *,
    thinking: bool = False,
    on_progress: Progress | None = None,
    **options: Any,
) -> LlamaEngine:
    """The llama.cpp engine over a backbone; one that is a GGUF file is used as it is.

    Args:
        name: what the backbone is loaded by.
        folder: where GGUF files are kept.
        bits: of the weights, where they are not those of the backbone's own GGUF file. With f32 it
            computes as PyTorch does.
        thinking: see ``Prompter``.
        on_progress: told how many tensors are done, and of how many, if the file is to be made.
        options: see ``LlamaEngine``.

    Raises:
        BackboneError: the backbone has no place in GGUF, or llama.cpp is not installed.
    """
    from pfi.inference.llama.c import library

    library()
    prompter, config = replace(load_prompter(name), thinking=thinking), load_config(name)
    path = gguf_path(name)
    if path is not None:
        bits = check_gguf(path).bits
    else:
        family_of(config, name)
        path = backbone_file(name, folder, bits_of(bits), on_progress=on_progress)
    longest = min(prompter.max_length, full_attention_context(config))
    prompter = replace(prompter, max_length=longest)
    return LlamaEngine(prompter, config, path, **{"exact": bits == "f32", **options})


def load_config(name: str) -> Any:
    """A backbone's transformers configuration.

    Raises:
        BackboneError: it cannot be loaded.
    """
    with reading(name) as (source, options):
        return read_config(source, options)


def backbone_file(
    name: str, folder: Path, bits: Bits, *, on_progress: Progress | None = None
) -> Path:
    """A backbone's GGUF file, made if it is not there; its own where it is one.

    Raises:
        BackboneError: the backbone cannot be loaded or has no place in GGUF.
    """
    if (own := gguf_path(name)) is not None:
        check_bits(own, bits)
        return own
    short = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.")[:40]
    path = folder / f"{short}-{fingerprint(name)[:16]}-{bits}.gguf"
    if path.exists():
        return path
    from pfi.models.backbone import load_backbone

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not path.exists():
            write_backbone(load_backbone(name, device="cpu"), path, bits, on_progress=on_progress)
    return path


def fingerprint(name: str) -> str:
    """Another one for any other weights or tokenizer: 64 hex digits.

    Raises:
        BackboneError: the backbone cannot be found.
    """
    from transformers.utils import cached_file

    with reading(name) as (source, _):
        place = Path(source)
        if is_gguf(source):
            return sha256_file(place)
        if not place.is_dir():
            place = Path(cached_file(source, "config.json")).parent
        files = sorted(
            file for file in place.iterdir() if file.name in _FILES or file.suffix == ".safetensors"
        )
        parts = [f"{file.name} {sha256_file(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
