"""Answers as the OpenAI API writes them, whole or in server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pfi.inference.engine import Piece
from pfi.profile.answer.runtime import Prepared

DONE = b"data: [DONE]\n\n"
#: Characters of a retrieved record that are shown.
_SHORT = 300


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def why(prepared: Prepared) -> dict[str, Any]:
    """What an answer rests on; see ``schemas.Why``."""
    records = []
    for record in prepared.records:
        text = " ".join(" ".join([*record.input.values(), record.output]).split())
        records.append({"id": record.id, "text": text[:_SHORT]})
    return {
        "task": prepared.task.name,
        "records": records,
        "dropped": prepared.dropped,
        "gate": prepared.gate,
        "personal": prepared.personal,
        "shared": prepared.shared,
        "weight": prepared.weight,
    }


def usage(prompt: int, cached: int, new: int) -> dict[str, Any]:
    """Tokens of a request."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass
class Said:
    """What a choice has come to so far.

    Attributes:
        tokens: text and log-probability of each token, where it is known.
        finish: why it ended; None while it goes on.
        count: its tokens.
    """

    text: str = ""
    tokens: list[tuple[str, float]] = field(default_factory=list)
    finish: str | None = None
    count: int = 0

    def add(self, piece: Piece) -> list[tuple[str, float]]:
        """Take a piece; returns its tokens."""
        # A character may take several tokens: its text is the last one's.
        texts = [*[""] * (len(piece.logprobs) - 1), piece.text]
        new = list(zip(texts, piece.logprobs, strict=False))
        self.text += piece.text
        self.tokens += new
        self.count += piece.tokens
        self.finish = piece.finish or self.finish
        return new


class Wording(ABC):
    """What chat and text completions differ in."""

    whole: str
    part: str
    prefix: str

    def __init__(self, model: str) -> None:
        self.id = self.prefix + secrets.token_hex(12)
        self.model, self.created = model, int(time.time())

    def response(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A whole answer."""
        return self._head(self.whole) | {"choices": choices, **more}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A part of a stream."""
        return self._head(self.part) | {"choices": choices, **more}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @abstractmethod
    def choice(self, index: int, said: Said, logprobs: bool) -> dict[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """What a choice's stream begins with."""

    @abstractmethod
    def delta(
        self, index: int, text: str, tokens: Sequence[tuple[str, float]] | None, at: int
    ) -> dict[str, Any]:
        """More of a choice; ``at``: how many characters it had before."""

    @abstractmethod
    def closing(self, index: int, finish: str) -> dict[str, Any]:
        """What a choice's stream ends with."""


class ChatWording(Wording):
    """``/v1/chat/completions``."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def choice(self, index: int, said: Said, logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": said.text, "refusal": None},
            "logprobs": self._logprobs(said.tokens) if logprobs else None,
            "finish_reason": said.finish,
        }

    def opening(self, index: int) -> dict[str, Any]:
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(
        self, index: int, text: str, tokens: Sequence[tuple[str, float]] | None, at: int
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self._logprobs(tokens)
        return self._delta(index, {"content": text}, logprobs)

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        return self._delta(index, {}, None, finish)

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[tuple[str, float]]) -> dict[str, Any]:
        return {
            "content": [
                {
                    "token": text,
                    "logprob": value,
                    "bytes": list(text.encode()),
                    "top_logprobs": [],
                }
                for text, value in tokens
            ],
            "refusal": None,
        }


class TextWording(Wording):
    """``/v1/completions``."""

    whole, part, prefix = "text_completion", "text_completion", "cmpl-"

    def choice(self, index: int, said: Said, logprobs: bool) -> dict[str, Any]:
        found = self._logprobs(said.tokens, 0) if logprobs else None
        return self._choice(index, said.text, found, said.finish)

    def opening(self, index: int) -> None:
        return None

    def delta(
        self, index: int, text: str, tokens: Sequence[tuple[str, float]] | None, at: int
    ) -> dict[str, Any]:
        return self._choice(index, text, None if tokens is None else self._logprobs(tokens, at))

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, "", None, finish)

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[tuple[str, float]], at: int) -> dict[str, Any]:
        places = []
        for text, _ in tokens:
            places.append(at)
            at += len(text)
        return {
            "tokens": [text for text, _ in tokens],
            "token_logprobs": [value for _, value in tokens],
            "top_logprobs": None,
            "text_offset": places,
        }
