"""Prompts whose tokens have log-probabilities: `echo` with `logprobs` in `/v1/completions`.

What stands before a prompt in its conversation (the template, the records that were retrieved) is
read as always; then the model is made to write the prompt token by token, which gives what each
answer's token has: its log-probability before temperature and biases, and the likeliest others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pfi.inference.constraints import Grammar
from pfi.inference.engine import Piece, Sampling, Stream
from pfi.profile.answer.runtime import Prepared
from pfi.serve.answers import Said, Token
from pfi.serve.errors import ApiError, unsupported


class ForcedTokens:
    """Stands in for a grammar that allows one sequence of tokens only.

    Args:
        ids: the tokens.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)

    def begin(self) -> Forced:
        """The state of an answer that has not begun."""
        return Forced(self.ids)


class Forced:
    """How far one answer has come; see ``pfi.inference.constraints.Matcher``."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._left = list(ids)[::-1]

    def allowed(self, size: int) -> np.ndarray:
        """Which of ``size`` tokens may come next, as booleans ``(size,)``."""
        mask = np.zeros(size, dtype=bool)
        mask[self._left[-1]] = True
        return mask

    def add(self, token: int) -> None:
        """The token that was allowed is written."""
        del self._left[-1]

    @property
    def ended(self) -> bool:
        """Whether all of them are."""
        return not self._left


class Nothing:
    """The stream of an answer of no tokens, which is what ``max_tokens`` 0 asks for."""

    cached = 0

    def __iter__(self) -> Iterator[Piece]:
        """Its end."""
        yield Piece("", 0, finish="length")

    def cancel(self) -> None:
        """Nothing is decoded."""


@dataclass(frozen=True)
class Span:
    """Where a prompt's text lies among the tokens that the model reads.

    Attributes:
        first, last: the tokens that have a part of it, the last one excluded.
        before, behind: bytes of the first and of the last one that are not of it.
    """

    first: int
    last: int
    before: int = 0
    behind: int = 0


def span_of(ids: Sequence[int], spell: Callable[[int], bytes], text: str) -> Span | None:
    """The last place of a text among tokens; None where it is not there.

    Args:
        ids: the tokens.
        spell: what each stands for.
        text: is looked for as bytes, as tokens need not end where characters do.
    """
    parts = [spell(token) for token in ids]
    wanted = text.encode()
    begin = b"".join(parts).rfind(wanted)
    if begin < 0 or not wanted:
        return None
    end, at, places = begin + len(wanted), 0, []
    for number, part in enumerate(parts):
        if at < end and at + len(part) > begin:
            places.append((number, at, at + len(part)))
        at += len(part)
    (first, start, _), (last, _, stop) = places[0], places[-1]
    return Span(first, last + 1, begin - start, stop - end)


def scored_prompts(
    prepared: Sequence[Prepared],
    texts: Sequence[str],
    spell: Callable[[int], bytes],
    stream: Callable[[Prepared, Sampling], Stream],
    *,
    top: int,
    most: int,
    started: list[Stream],
) -> list[tuple[Token, ...]]:
    """The tokens of prompts with their log-probabilities, each after all that is before it.

    Args:
        prepared: the questions.
        texts: their prompts, as they were sent.
        spell: what a token stands for.
        stream: starts to decode.
        top: how many of the likeliest tokens are told of.
        most: tokens of a prompt that are taken.
        started: gets the streams, so that they can be cancelled.

    Raises:
        ApiError: 400, a prompt is too long, or not what the model reads.
        PfiError: as ``Stream.__iter__``.
    """
    spans = [_span(one, spell, text, most) for one, text in zip(prepared, texts, strict=True)]
    for one, span in zip(prepared, spans, strict=True):
        ids = one.ids[span.first : span.last]
        forced = cast(Grammar, ForcedTokens(ids))
        sampling = Sampling(
            len(ids), grammar=forced, top_logprobs=top, repetition_penalty=1.0, seed=0
        )
        started.append(stream(replace(one, ids=one.ids[: span.first]), sampling))
    return [
        _scored(running, one.ids[span.first : span.last], span, spell)
        for running, one, span in zip(list(started), prepared, spans, strict=True)
    ]


def _span(prepared: Prepared, spell: Callable[[int], bytes], text: str, most: int) -> Span:
    if prepared.task.kind != "text":
        what = "logprobs: with `echo` they are not supported where a task answers with its labels"
        raise unsupported("logprobs", what)
    # Templates may leave out blanks at either end.
    span = span_of(prepared.ids, spell, text) or span_of(prepared.ids, spell, text.strip())
    if span is None or not span.first:
        what = "logprobs: with `echo` they are not supported here: the model reads another prompt"
        raise unsupported("logprobs", what)
    count = span.last - span.first
    if count > most:
        what = f"prompt: with `echo` and `logprobs` at most {most} tokens are taken, not {count}"
        raise ApiError(400, what, param="prompt", code="context_length_exceeded")
    return span


def _scored(
    stream: Stream, ids: Sequence[int], span: Span, spell: Callable[[int], bytes]
) -> tuple[Token, ...]:
    said = Said(spell)
    seen: list[Any] = []
    for piece in stream:
        said.add(piece)
        seen += piece.ids
    if said.cancelled:
        return ()  # nobody waits for them any more
    tokens = list(said.tokens)
    if seen != list(ids):  # the model ends, or thinks, at one of them
        what = "logprobs: with `echo` they are not supported for a prompt with control tokens"
        raise unsupported("logprobs", what)
    last = tokens[-1]
    if span.behind:
        tokens[-1] = replace(last, data=last.data[: -span.behind])
    tokens[0] = replace(tokens[0], data=tokens[0].data[span.before :])
    return tuple(tokens)
