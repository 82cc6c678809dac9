"""A backbone's tokenizer as GGUF metadata: byte-level BPE, as GPT-2, Llama 3 and Qwen 2 have it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from pfi.models.prompter import Prompter

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
