"""The configuration and tokenizer of a backbone, whichever form it has: a folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfi.models.gguf import weights
from pfi.models.gguf.header import is_gguf, read_header
from pfi.models.gguf.vocabulary import load_tokenizer


def read_config(source: str, options: dict[str, Any]) -> Any:
    """The transformers configuration of a folder, GGUF file or hub id.

    Args:
        source: where it is.
        options: of transformers' loaders.
    """
    if is_gguf(source):
        return weights.read_config(read_header(Path(source)))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, **options)


def read_tokenizer(source: str, options: dict[str, Any]) -> Any:
    """The tokenizer of a folder, GGUF file or hub id; see ``read_config``."""
    if is_gguf(source):
        return load_tokenizer(read_header(Path(source)))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, **options)
