"""Answers held to a grammar: which tokens may come next, for both engines.

llguidance computes a mask of the vocabulary before each token: a lexer of regular-expression
derivatives (no backtracking) under an Earley parser.  It is one wheel without dependencies that
knows Hugging Face tokenizers; llama.cpp's own GBNF grammars would serve one engine only, and
xgrammar brings torch and triton.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfi.errors import ConfigError
from pfi.models.prompter import Prompter

#: What a grammar may take, in llguidance's units: some tenths of a second to begin with, some
#: milliseconds a token, and about 40 MB.  Ordinary schemas take a hundredth.
_LIMITS = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
#: How JSON is written, with a space behind commas and colons and nowhere else: where blanks are
#: free, small models write nothing but blanks.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
}
_COMPLEX = "make it simpler: fewer alternatives, shorter patterns, smaller repetitions"

_making = threading.Lock()
_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Matcher:
    """How far one answer has come in its grammar.  One thread uses it.

    Args:
        matcher: llguidance's.
        begun: whether the mask of the first token is computed already.
    """

    def __init__(self, matcher: Any, begun: np.ndarray | None = None) -> None:
        self._matcher, self._mask = matcher, begun

    def allowed(self, size: int) -> np.ndarray:
        """Which of ``size`` tokens may come next, as booleans ``(size,)``.

        Raises:
            ConfigError: the grammar is too complex for what was answered.
        """
        if self._mask is None:
            self._mask = _mask(self._matcher)
        known = self._mask[:size]
        return known if len(known) == size else np.pad(known, (0, size - len(known)))

    def add(self, token: int) -> None:
        """A token that was allowed is part of the answer now."""
        self._mask = None
        self._matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but an end token."""
        return bool(self._matcher.is_stopped())


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar made ready for one model; any number of answers may be held to it.

    Attributes:
        text: in llguidance's variant of Lark.
    """

    text: str
    _matcher: Any = field(repr=False)
    _first: np.ndarray = field(repr=False)

    def begin(self) -> Matcher:
        """The state of an answer that has not begun."""
        return Matcher(self._matcher.deep_copy(), self._first)


def compile_grammar(prompter: Prompter, text: str) -> Grammar:
    """Make a grammar ready for a model's tokens.

    The first mask is computed here, where nobody else waits for it: most of what a grammar can
    cost, it costs then.

    Args:
        prompter: the model's.
        text: the grammar in llguidance's variant of Lark.

    Raises:
        ConfigError: it is no grammar, allows nothing, asks for what is not supported, or is too
            complex.
    """
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(
        _tokenizer(prompter),
        text,
        log_level=0,
        limits=LLParserLimits(**_LIMITS),  # type: ignore[arg-type]
    )
    if matcher.is_error():
        raise ConfigError(_reason(matcher.get_error()))
    first = _mask(matcher)
    if not first.any():
        raise ConfigError("nothing fits it")
    return Grammar(text, matcher, first)


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON of a schema; of a trusted one, as it is not looked through."""
    return f"start: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"


def is_one_token(prompter: Prompter, text: str) -> bool:
    """Whether a grammar must write this text as the token ``text`` instead of as characters.

    Tokens such as ``<tool_call>`` stand outside of what tokens spell, control tokens or not.
    """
    if not (text.startswith("<") and text.endswith(">")):
        return False
    tokenizer = _tokenizer(prompter)
    ids = tokenizer.tokenize_str(text, parse_special=True)
    return len(ids) == 1 and bool(tokenizer.is_special_token(ids[0]))


def token_bytes(prompter: Prompter, token: int) -> bytes:
    """What a token stands for; of a character that takes several tokens each has a part."""
    if not getattr(prompter.tokenizer, "is_fast", False):
        return prompter.text([token]).encode()
    return bytes(_tokenizer(prompter).decode_bytes([token]))


def _tokenizer(prompter: Prompter) -> Any:
    """The model's tokenizer as llguidance has it, made once (0.1 to 2 s).

    Raises:
        ConfigError: it is of a kind that llguidance does not know, or that is not installed.
    """
    with _making:
        if prompter.tokenizer not in _known:
            try:
                from llguidance.hf import from_tokenizer
            except ImportError as error:
                fix = "install it with `pip install 'pfi[serve]'`"
                raise ConfigError("llguidance is not installed", fix=fix) from error
            try:
                made = from_tokenizer(prompter.tokenizer, eos_token=sorted(prompter.end_ids))
            except Exception as error:  # a library of another language: no class of its own
                what = "this model's tokenizer cannot be held to a grammar"
                raise ConfigError(what, fix="use a model with a tokenizer.json") from error
            _known[prompter.tokenizer] = made
        return _known[prompter.tokenizer]


def _mask(matcher: Any) -> np.ndarray:
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    # A matcher that has failed has an all-ones or an empty mask, and says so.
    if matcher.is_error():
        raise ConfigError(_reason(matcher.get_error()), fix=_COMPLEX)
    return np.unpackbits(bits, bitorder="little").astype(bool)


def _reason(text: str) -> str:
    """The line of an error that says what is wrong, without the parser's state."""
    lines = [line.strip() for line in text.partition("<state>")[0].splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("error:")), None)
    return (last or (lines[0] if lines else "it is too complex"))[:300]
