"""A tokenizer as the metadata of a GGUF file, or a refusal: llama.cpp has to split as it does.

Parts are compared as whole structures with those that llama.cpp knows; what is not the same is
refused, since other tokens would be other prompts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

from pfi.errors import BackboneError
from pfi.models.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    NOT_STRIPPING,
    PRE_TOKENIZERS,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_WORDS,
    Part,
    merges_of_scores,
)

_FIX = "use `pfi export merged`"
# Of tokens that no merge makes.
_LOWEST = -1e9


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer.

    Attributes:
        kind: ``gpt2`` or ``llama``.
        pre: llama.cpp's name of the pre-tokenizer.
        tokens, types: by id.
        scores: by id, of SentencePiece's; empty for others.
        merges: of byte-level BPE; empty for others.
        unknown: id of the token for what is not known.
        space_prefix: whether a text gets a space before it.
        strips: whether spaces after control tokens are no text, as with Phi-3; llama.cpp does
            that for models of this name.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    unknown: int | None
    space_prefix: bool
    strips: bool


def export_vocabulary(parts: Part, size: int, name: str, template: str | None) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        parts: content of its ``tokenizer.json``.
        size: rows of the embedding; ids beyond the tokenizer's are unused.
        name: the backbone's, for errors.
        template: its chat template, whose texts begin with control tokens; None without one.

    Raises:
        BackboneError: llama.cpp knows no such tokenizer.
    """
    model = parts["model"]
    if model["type"] != "BPE":
        _refuse(f"its tokenizer is of the kind {model['type']}, not BPE", name)
    decoders = {leaf["type"] for leaf in _flat(parts["decoder"])}
    tokens = [f"[PAD{at}]" for at in range(size)]
    types = [UNUSED] * size
    for token, at in model["vocab"].items():
        if at < size:
            tokens[at], types[at] = token, NORMAL
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = UNKNOWN
    added = [one for one in parts["added_tokens"] if one["id"] < size]  # the model knows no others
    for one in added:
        tokens[one["id"]] = one["content"]
        if types[one["id"]] != UNKNOWN:
            types[one["id"]] = CONTROL if one["special"] else USER_DEFINED
    strips = _strips(added, template or "", name)
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if "ByteFallback" in decoders:
        prefix = _space_prefix(parts, name, framed=bool(template))
        for at, token in enumerate(tokens):
            if types[at] == NORMAL and len(token) == 6 and token.startswith("<0x"):
                types[at] = BYTE
        scores = _scores(tokens, types, pairs, name)
        tokens = [
            token.replace(SPACE, " ") if kind == USER_DEFINED else token
            for token, kind in zip(tokens, types, strict=True)
        ]
        return Vocabulary("llama", "default", tokens, types, scores, [], unknown, prefix, strips)
    if "ByteLevel" not in decoders:
        _refuse("its tokenizer is no byte-level BPE", name)
    pre = pre_tokenizer_name(parts, name)
    merges = [" ".join(pair) for pair in pairs]
    return Vocabulary("gpt2", pre, tokens, types, [], merges, unknown, False, strips)


def pre_tokenizer_name(parts: Part, name: str) -> str:
    """llama.cpp's name of how a text is split before its pairs are merged.

    Raises:
        BackboneError: it knows none.
    """
    if any(leaf["type"] != "NFC" for leaf in _flat(parts["normalizer"])):
        _refuse("its tokenizer changes texts in a way that llama.cpp does not know", name)
    split = _compared(parts["pre_tokenizer"])
    whole = bool(parts["model"].get("ignore_merges"))
    for known, structure in PRE_TOKENIZERS.items():
        if split == _compared(structure) and whole == (known in WHOLE_WORDS):
            return known
    _refuse("llama.cpp knows no tokenizer that splits texts as this one does", name)


def _refuse(what: str, name: str) -> NoReturn:
    raise BackboneError(f"it cannot be written as GGUF: {what}", where=name, fix=_FIX)


def _flat(part: Part | None) -> list[Part]:
    """A part's own parts, those of sequences in their order."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    names = ("pretokenizers", "decoders", "normalizers")
    inner: list[Part] = next((part[name] for name in names if name in part), [])
    return [leaf for one in inner for leaf in _flat(one)]


def _compared(part: Part | None) -> list[Part]:
    """A pre-tokenizer without what changes no token."""
    leaves = []
    for leaf in _flat(part):
        kept = {key: value for key, value in leaf.items() if key != "trim_offsets"}
        if kept["type"] == "ByteLevel":
            kept.setdefault("use_regex", True)
        leaves.append(kept)
    return leaves


def _space_prefix(parts: Part, name: str, *, framed: bool) -> bool:
    """Whether a text gets a space before it, of a tokenizer as SentencePiece has them.

    Raises:
        BackboneError: it does more to texts than that.
    """
    normalizers = _compared(parts["normalizer"])
    splits = _compared(parts["pre_tokenizer"])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    # After the replacement no space is left to split at.
    at_spaces = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    if not splits or splits == [at_spaces]:
        if normalizers == [replace]:
            return False
        if normalizers == [{"type": "Prepend", "prepend": SPACE}, replace]:
            return True
    if not normalizers and len(splits) == 1 and splits[0]["type"] == "Metaspace":
        split, scheme = splits[0], splits[0].get("prepend_scheme", "always")
        if split.get("replacement") == SPACE and split.get("split") is False:
            # Before a text's beginning alone, where templates have a control token.
            return scheme == "always" or (scheme == "first" and not framed)
    _refuse("its tokenizer changes texts in a way that llama.cpp does not know", name)


def _strips(added: list[Part], template: str, name: str) -> bool:
    """Whether spaces after control tokens are no text, but after ``NOT_STRIPPING``.

    Raises:
        BackboneError: spaces around other tokens of the template are none.
    """
    special = [one for one in added if one["special"] and one["content"] not in NOT_STRIPPING]
    known = {one["content"] for one in added}
    # llama.cpp needs the closing one to be there, too.
    if special and known >= {*NOT_STRIPPING, "</s>"} and all(one["rstrip"] for one in special):
        return True
    for one in added:
        if (one["lstrip"] or one["rstrip"]) and one["content"] in template:
            _refuse(f"spaces around its token {one['content']} are no text", name)
    return False


def _scores(
    tokens: list[str], types: list[int], pairs: list[tuple[str, ...]], name: str
) -> list[float]:
    """Scores with which SentencePiece joins tokens in the order of the merges.

    Raises:
        BackboneError: there are none.
    """
    made = {left + right: -float(at) for at, (left, right) in reversed([*enumerate(pairs)])}
    scores = {
        token: made.get(token, _LOWEST)
        for token, kind in zip(tokens, types, strict=True)
        if kind == NORMAL
    }
    implied = merges_of_scores(scores)
    if [a + b for a, b in implied] != [a + b for a, b in pairs] or Counter(implied) != Counter(
        pairs
    ):
        _refuse("its merges are not those of a SentencePiece model", name)
    return [scores.get(token, 0.0) for token in tokens]
