"""The tokenizer of a GGUF file, and how llama.cpp's names stand for pre-tokenizers.

Two kinds are known: byte-level BPE (``gpt2``), whose pre-tokenizer llama.cpp knows by a name, and
SentencePiece's BPE with byte fallback (``llama``), whose merges follow from the tokens' scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pfi.models.gguf.header import Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Part = dict[str, Any]
#: Token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
#: SentencePiece's sign for a space.
SPACE = "\u2581"

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_LAST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(after: str, digits: str) -> str:
    words = f"{_HEAD}{_UPPER}*{_LOWER}+{after}|{_HEAD}{_UPPER}+{_LOWER}*{after}"
    return f"{words}|{digits}|{_LAST}"


def _split(pattern: str) -> Part:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            _byte_level(use_regex=False),
        ],
    }


def _byte_level(*, use_regex: bool) -> Part:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


_DIGITS = {"type": "Digits", "individual_digits": True}
#: Pre-tokenizers by llama.cpp's name, as ``tokenizer.json`` writes them.
PRE_TOKENIZERS: Mapping[str, Part] = MappingProxyType(
    {
        "llama-bpe": _split(rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"),
        "qwen2": _split(rf"{_SHORT}|{_LETTERS}|\p{{N}}|{_REST}"),
        "qwen35": _split(
            rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "tekken": _split(_cased("", r"\p{N}")),
        "gpt-4o": _split(_cased(f"{_SHORT}?", r"\p{N}{1,3}")),
        "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(use_regex=True)]},
        "gpt-2": _byte_level(use_regex=True),
    }
)
# Other names of the same in llama.cpp.
_ALIASES = {
    **dict.fromkeys(("llama3", "llama-v3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan"), "qwen2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    **dict.fromkeys(("mpt", "olmo", "jais", "phi-2", "trillion"), "gpt-2"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
}
#: Phi-3's control tokens after which spaces are text.
NOT_STRIPPING = frozenset(("<unk>", "<s>", "<|endoftext|>"))
_TYPES = "tokenizer.ggml.token_type"
# Control tokens that end an answer or a text, of several families.
_ENDS = frozenset(
    (
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<eos>", "</s>", "<|end|>", "<|eot|>", "<|return|>"),
    )
)
#: Those whose words are looked up whole before any merge.
WHOLE_WORDS = ("llama-bpe", "tekken")
# Whose texts are composed (NFC) first; llama.cpp leaves that out.
_COMPOSED = ("qwen2", "qwen35")


def read_tokenizer(header: Header) -> Tokenizer:
    """The file's tokenizer, without what frames a text.

    Raises:
        BackboneError: there is none, it is of an unknown kind, or its parts contradict each other.
    """
    from tokenizers import Tokenizer

    kind = header.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        header.refuse(
            f"its tokenizer is of the kind {kind[:40]}, which is not supported",
            "use a model with a BPE tokenizer",
        )
    tokens = _list(header, "tokens", str)
    types = _list(header, "token_type", int, [NORMAL] * len(tokens))
    if not tokens or len(types) != len(tokens):
        header.refuse(f"it has {len(tokens)} tokens and {len(types)} token types")
    vocabulary = _numbered(tokens)
    model, parts = (
        _byte_level_bpe(header, vocabulary)
        if kind == "gpt2"
        else _sentence_piece(header, tokens, types, vocabulary)
    )
    strip = _named_phi(header) and vocabulary.keys() >= {*NOT_STRIPPING, "</s>"}
    added = [
        {
            "id": at,
            "content": token,
            "single_word": False,
            "lstrip": False,
            # Phi-3's line feeds after control tokens are none of the text; llama.cpp knows, too.
            "rstrip": strip and kind_ == CONTROL and token not in NOT_STRIPPING,
            "normalized": False,
            "special": kind_ != USER_DEFINED,
        }
        for at, (token, kind_) in enumerate(zip(tokens, types, strict=True))
        if kind_ in (CONTROL, USER_DEFINED, UNKNOWN) and vocabulary.get(token) == at and token
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **model,
        },
    }
    try:
        return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # what tokenizers raises is no more than that
        header.refuse(f"its tokenizer is damaged: {str(error).splitlines()[0][:200]}")


def _named_phi(header: Header) -> bool:
    """Whether it is a Phi-3, by the name as llama.cpp looks for it, or by its kind."""
    name = str(header.fields.get("general.name", "")).lower()
    return header.architecture == "phi3" or "phi-3" in name or "phi3" in name


def load_tokenizer(header: Header) -> PreTrainedTokenizerBase:
    """The file's tokenizer and chat templates for transformers.

    Raises:
        BackboneError: as ``read_tokenizer``, or there is no end token.
    """
    from transformers import PreTrainedTokenizerFast

    ids = special_ids(header)
    tokens = header.fields["tokenizer.ggml.tokens"]
    return PreTrainedTokenizerFast(
        tokenizer_object=read_tokenizer(header),
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(header),
        **{f"{name}_token": tokens[at] for name, at in ids.items()},
    )


def special_ids(header: Header) -> dict[str, int]:
    """Ids of the tokens with a role: ``eos`` always, and ``bos``, ``unk`` and ``pad`` if named.

    Raises:
        BackboneError: one is out of range, or there is no end token.
    """
    count = len(_list(header, "tokens", str))
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {}
    for name, key in keys.items():
        at = header.fields.get(f"tokenizer.ggml.{key}_token_id")
        if at is None or at == 0xFFFFFFFF:
            continue
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < count:
            header.refuse(f"tokenizer.ggml.{key}_token_id is {str(at)[:40]}, which is no token")
        ids[name] = at
    if "eos" not in ids:
        header.refuse("tokenizer.ggml.eos_token_id is missing: answers could not end")
    return ids


def end_ids(header: Header) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first.

    A file names one to three of them. As llama.cpp does, control tokens that are known to end
    answers or texts count, too.
    """
    tokens, types = header.fields["tokenizer.ggml.tokens"], header.fields.get(_TYPES, [])
    count = len(tokens)
    ids = [special_ids(header)["eos"]]
    for name in ("eot", "eom"):
        at = header.fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(at, int) and not isinstance(at, bool) and 0 <= at < count and at not in ids:
            ids.append(at)
    known = [at for at, kind in enumerate(types) if kind == CONTROL and tokens[at] in _ENDS]
    return [*ids, *(at for at in known if at not in ids)]


#: What transformers calls the settings of sampling that a GGUF file may state.
SAMPLING = MappingProxyType(
    {
        "temperature": "general.sampling.temp",
        "top_p": "general.sampling.top_p",
        "top_k": "general.sampling.top_k",
        "min_p": "general.sampling.min_p",
        "repetition_penalty": "general.sampling.penalty_repeat",
    }
)


def sampling_settings(header: Header) -> dict[str, Any]:
    """How answers end and are sampled, as ``generation_config.json`` would say it."""
    values: dict[str, Any] = {"eos_token_id": end_ids(header)}
    for name, key in SAMPLING.items():
        if isinstance(value := header.fields.get(key), int | float):
            values[name] = float(f"{value:.6g}")
    values["do_sample"] = len(values) > 1
    return values


def chat_template(header: Header) -> Any:
    """The chat template, or all by name where there are several; None where there is none.

    Raises:
        BackboneError: it is no text.
    """
    key = "tokenizer.chat_template"
    default = header.fields.get(key)
    if default is None:
        return None
    names = header.fields.get("tokenizer.chat_templates", [])
    named = {
        name: header.text(f"{key}.{name}") for name in names if f"{key}.{name}" in header.fields
    }
    text = header.text(key)
    return {"default": text, **named} if named else text


def _list(header: Header, name: str, kind: type, default: Any = None) -> list[Any]:
    values = header.fields.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        shown = "is missing" if values is None else "is damaged"
        header.refuse(f"tokenizer.ggml.{name} {shown}")
    return values


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Ids by token; of equal ones the last counts, as in llama.cpp."""
    vocabulary = {token: at for at, token in enumerate(tokens)}
    for at, token in enumerate(tokens):
        if vocabulary[token] != at:
            vocabulary[f"[UNUSED{at}]"] = at
    return vocabulary


def _byte_level_bpe(header: Header, vocabulary: dict[str, int]) -> tuple[Part, Part]:
    name = header.fields.get("tokenizer.ggml.pre")
    known = _ALIASES.get(str(name), str(name))
    if known not in PRE_TOKENIZERS:
        header.refuse(
            f"its pre-tokenizer {str(name)[:40]} is not known"
            if name not in (None, "default")
            else "it does not say how its tokenizer splits texts (tokenizer.ggml.pre)",
            "get a newer file, or use the model's safetensors folder",
        )
    merges = _list(header, "merges", str)
    model = {
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": known in WHOLE_WORDS,
        "vocab": vocabulary,
        "merges": merges,
    }
    level = _byte_level(use_regex=True)
    normalizer = {"type": "NFC"} if known in _COMPOSED else None
    parts = {"normalizer": normalizer, "pre_tokenizer": PRE_TOKENIZERS[known], "decoder": level}
    return model, parts


def _sentence_piece(
    header: Header, tokens: list[str], types: list[int], vocabulary: dict[str, int]
) -> tuple[Part, Part]:
    scores = _list(header, "scores", float)
    if len(scores) != len(tokens):
        header.refuse(f"it has {len(tokens)} tokens and {len(scores)} scores")
    ids = special_ids(header)
    prefix = header.fields.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    decoders: list[Part] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {
        "unk_token": tokens[ids["unk"]] if "unk" in ids else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges_of_scores(
            {t: s for t, s, k in zip(tokens, scores, types, strict=True) if k == NORMAL}
        ),
    }
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    return model, parts


def merges_of_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges, first ones first, that do what SentencePiece does with these scores.

    It joins the two neighbours that make the token with the highest score, over and over.
    """
    merges = []
    for token, score in scores.items():
        for at in range(1, len(token)):
            if token[:at] in scores and token[at:] in scores:
                merges.append((-score, token[:at], token[at:]))
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]
