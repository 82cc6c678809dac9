"""Whether a GGUF file can be a backbone, from its head alone; quick, and without PyTorch."""

from __future__ import annotations

from pathlib import Path

from pfi.errors import ConfigError
from pfi.models.gguf.families import Sizes
from pfi.models.gguf.header import Header, read_header
from pfi.models.gguf.vocabulary import chat_template, read_tokenizer, special_ids


def check_gguf(path: Path) -> Header:
    """A file's head, if the file is whole and holds a model that can be a backbone.

    Its weights are not read; that they are finite is seen when they are.

    Raises:
        BackboneError: it is damaged, or of a kind that is not supported.
    """
    header = read_header(path)
    sizes = Sizes(header)
    tokens = read_tokenizer(header).get_vocab_size()
    if tokens > sizes.vocabulary:
        header.refuse(f"it has {tokens} tokens and {sizes.vocabulary} rows of embeddings")
    special_ids(header)
    chat_template(header)
    return header


def check_bits(path: Path, bits: str) -> None:
    """Refuse bits that are not the file's own.

    Raises:
        BackboneError: the file is damaged.
        ConfigError: they are others.
    """
    own = read_header(path).bits
    if bits not in ("auto", own):
        what = f"the backbone is a GGUF file of {own}, which llama.cpp uses as it is, not as {bits}"
        raise ConfigError(what, where="bits", fix=f"choose auto or {own}, or the engine torch")
