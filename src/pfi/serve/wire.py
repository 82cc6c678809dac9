"""Answers as the OpenAI API writes them, whole or in server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from pfi._util.version import __version__
from pfi.serve.answers import Delta, Said, Token, Used
from pfi.serve.errors import ApiError
from pfi.serve.tools import ToolCall

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


class Wording(ABC):
    """How the answers to one request are written.

    Attributes:
        media_type: of a stream.
    """

    media_type = "text/event-stream"

    @abstractmethod
    def whole(self, answers: Sequence[Said], used: Used, why: Sequence[dict[str, Any]]) -> Any:
        """All answers in one response, as JSON."""

    @abstractmethod
    def opening(self, count: int, why: Sequence[dict[str, Any]]) -> Iterable[bytes]:
        """What the stream of so many answers begins with."""

    @abstractmethod
    def delta(self, number: int, said: Said, new: Delta) -> Iterable[bytes]:
        """More of an answer, which `said` has already; its end, if this is it."""

    @abstractmethod
    def ending(self, answers: Sequence[Said], used: Used) -> Iterable[bytes]:
        """What the stream ends with."""

    def failure(self, error: ApiError) -> bytes:
        """What a stream ends with that cannot go on."""
        return event(error.body)


class ChoiceWording(Wording):
    """What chat and text completions share.

    Args:
        model: as the request names it.
        logprobs: whether tokens are written.
        usage: whether a stream says how many tokens it took.
    """

    object_whole: str
    object_part: str
    prefix: str

    def __init__(self, model: str, *, logprobs: bool = False, usage: bool = False) -> None:
        self.id = self.prefix + secrets.token_hex(12)
        self.model, self.created = model, int(time.time())
        self.logprobs, self.usage = logprobs, usage
        self._extra: dict[str, Any] = {}

    def whole(self, answers: Sequence[Said], used: Used, why: Sequence[dict[str, Any]]) -> Any:
        choices = [self._whole(number, said) for number, said in enumerate(answers)]
        more = {"usage": usage(used), "pfi": self._why(why)}
        return self._head(self.object_whole) | {"choices": choices, **more}

    def opening(self, count: int, why: Sequence[dict[str, Any]]) -> Iterable[bytes]:
        self._extra = {"pfi": self._why(why)}
        return [self._chunk(one) for number in range(count) for one in self._begun(number)]

    def delta(self, number: int, said: Said, new: Delta) -> Iterable[bytes]:
        for choice in self._more(number, said, new):
            yield self._chunk(choice)

    def ending(self, answers: Sequence[Said], used: Used) -> Iterable[bytes]:
        if self.usage:
            yield event(self._head(self.object_part) | {"choices": [], "usage": usage(used)})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        empty: dict[str, Any] = {"usage": None} if self.usage else {}
        extra, self._extra = self._extra, {}
        return event(self._head(self.object_part) | {"choices": [choice], **empty, **extra})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"pfi-{__version__}",
        }

    def _why(self, why: Sequence[dict[str, Any]]) -> Any:
        return list(why)

    @abstractmethod
    def _whole(self, number: int, said: Said) -> dict[str, Any]:
        """A choice."""

    @abstractmethod
    def _begun(self, number: int) -> Iterable[dict[str, Any]]:
        """What a choice's stream begins with."""

    @abstractmethod
    def _more(self, number: int, said: Said, new: Delta) -> Iterable[dict[str, Any]]:
        """What a choice's stream goes on and ends with."""


class ChatWording(ChoiceWording):
    """``/v1/chat/completions``."""

    object_whole, object_part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def _why(self, why: Sequence[dict[str, Any]]) -> Any:
        return why[0]

    def _whole(self, number: int, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.text,
            "refusal": None,
            "annotations": [],
        }
        if said.calls:
            message["content"] = said.text or None
            message["tool_calls"] = [_call(call) for call in said.calls]
        return {
            "index": number,
            "message": message,
            "logprobs": _logprobs(said.tokens) if self.logprobs else None,
            "finish_reason": said.finish,
        }

    def _begun(self, number: int) -> Iterable[dict[str, Any]]:
        yield self._delta(number, {"role": "assistant", "content": "", "refusal": None})

    def _more(self, number: int, said: Said, new: Delta) -> Iterable[dict[str, Any]]:
        logprobs = _logprobs(new.tokens) if self.logprobs and new.tokens else None
        if new.text or logprobs:
            yield self._delta(number, {"content": new.text}, logprobs)
        first = len(said.calls) - len(new.calls)
        for at, call in enumerate(new.calls, first):
            yield self._delta(number, {"tool_calls": [{"index": at, **_call(call)}]})
        if new.finish is not None:
            yield self._delta(number, {}, finish=new.finish)

    def _delta(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


class TextWording(ChoiceWording):
    """``/v1/completions``.

    Attributes:
        scored: the tokens of each answer's prompt, where they have log-probabilities.

    Args:
        model: as the request names it.
        echo: for each answer what it begins with: its prompt, or nothing.
        top: how many of the likeliest tokens are told of.
        options: as for `ChoiceWording`.
    """

    object_whole, object_part, prefix = "text_completion", "text_completion", "cmpl-"

    def __init__(
        self, model: str, *, echo: Sequence[str] = (), top: int = 0, **options: bool
    ) -> None:
        super().__init__(model, **options)
        self._echo, self._top = echo, top
        self.scored: Sequence[Sequence[Token]] = ()

    def _whole(self, number: int, said: Said) -> dict[str, Any]:
        tokens = [*self._prompt_tokens(number), *said.tokens]
        logprobs = self._logprobs(tokens, 0) if self.logprobs else None
        return self._choice(number, self._prompt(number) + said.text, logprobs, said.finish)

    def _begun(self, number: int) -> Iterable[dict[str, Any]]:
        if prompt := self._prompt(number):
            tokens = self._prompt_tokens(number)
            yield self._choice(number, prompt, self._logprobs(tokens, 0) if tokens else None)

    def _more(self, number: int, said: Said, new: Delta) -> Iterable[dict[str, Any]]:
        logprobs = None
        if self.logprobs and new.tokens:
            at = len(self._prompt(number)) + len(said.text) - len(new.text)
            logprobs = self._logprobs(new.tokens, at)
        if new.text or logprobs:
            yield self._choice(number, new.text, logprobs)
        if new.finish is not None:
            yield self._choice(number, "", None, new.finish)

    def _prompt_tokens(self, number: int) -> Sequence[Token]:
        return self.scored[number] if self.scored else ()

    def _prompt(self, number: int) -> str:
        return self._echo[number] if self._echo else ""

    def _choice(
        self,
        number: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Token], at: int) -> dict[str, Any]:
        places = []
        for token in tokens:
            places.append(at)
            at += len(token.text)
        tops = [{_text(data): value for data, value in token.top} for token in tokens]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops if self._top else None,
            "text_offset": places,
        }


def usage(used: Used) -> dict[str, Any]:
    """Tokens of a request as chat and text completions have them."""
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.new,
        "total_tokens": used.prompt + used.new,
        "prompt_tokens_details": {"cached_tokens": used.cached},
    }


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_one(token.data, token.logprob),
                "top_logprobs": [_one(data, value) for data, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _one(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(data), "logprob": logprob, "bytes": list(data)}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
