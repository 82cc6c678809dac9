"""What a request for answers comes to, whichever API it came by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfi.serve.errors import ApiError
from pfi.serve.schemas import ChatRequest, CompletionRequest, Extension, Message
from pfi.serve.structured import response_grammar
from pfi.serve.tools import Toolset, toolset


@dataclass(frozen=True)
class Spoken:
    """A turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        text: what was said; may be empty.
        calls: of an assistant's turn, each a function's name and its arguments as JSON.
        name: of the function whose result this is.
    """

    role: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Ask:
    """A request for answers.

    Attributes:
        model: as the request names it.
        talks: a conversation for each prompt.
        sampling: values of `Sampling` that the request says, None where it does not.
        stops: texts that end an answer.
        max_tokens: longest answer; as the server and the profile say when None.
        n: answers to each conversation.
        logprobs: whether tokens' log-probabilities are wanted, and of how many of the likeliest
            others; None for none.
        stream: whether the answer is wanted piece by piece.
        tools: functions that may be called.
        answer: the grammar rule of an answer that is no call; any text when None.
        shorten: whether a conversation that does not fit loses its oldest turns.
        extension: what only this server knows.
        param: the field that the conversation came in, for errors.
        format_param: the field that asks for a form of the answer.
        scored: the prompts, where their own tokens have log-probabilities, too.
    """

    model: str
    talks: Sequence[Sequence[Spoken]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    n: int = 1
    logprobs: int | None = None
    stream: bool = False
    tools: Toolset | None = None
    answer: str | None = None
    shorten: bool = False
    extension: Extension = field(default_factory=Extension)  # type: ignore[arg-type]
    param: str = "messages"
    format_param: str = "response_format"
    scored: tuple[str, ...] = ()


def of_chat(body: ChatRequest) -> Ask:
    """A chat completion.

    Raises:
        ApiError: 400, it is refused.
    """
    body.check()
    if body.top_logprobs and not body.logprobs:
        what = "top_logprobs: set `logprobs` to true with it"
        raise ApiError(400, what, param="top_logprobs", code="invalid_value")
    extension = body.pfi or Extension()  # type: ignore[call-arg]
    return Ask(
        body.model,
        [spoken(body.messages)],
        body.sampling,
        body.stops,
        body.max_completion_tokens or body.max_tokens,
        body.n or 1,
        (body.top_logprobs or 0) if body.logprobs else None,
        bool(body.stream),
        toolset(body.tools, body.tool_choice, body.parallel_tool_calls),
        response_grammar(body.response_format, "response_format"),
        extension.truncation == "auto",
        extension,
    )


def of_completion(body: CompletionRequest) -> Ask:
    """A text completion: each prompt is a question of its own.

    Raises:
        ApiError: 400, it is refused.
    """
    body.check()
    extension = body.pfi or Extension()  # type: ignore[call-arg]
    return Ask(
        body.model,
        [[Spoken("user", prompt)] for prompt in body.prompts],
        body.sampling,
        body.stops,
        body.max_tokens,
        body.n or 1,
        body.logprobs,
        bool(body.stream),
        shorten=extension.truncation == "auto",
        extension=extension,
        param="prompt",
        scored=tuple(body.prompts) if body.echo and body.logprobs is not None else (),
    )


def spoken(messages: Sequence[Message]) -> list[Spoken]:
    """Messages of a chat as turns."""
    names: dict[str, str] = {}
    turns = []
    for message in messages:
        calls = [
            (one.function.name, as_json(one.function.arguments), one.id)
            for one in message.tool_calls or []
        ]
        names |= {number: name for name, _, number in calls if number}
        role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
        name = message.name or names.get(message.tool_call_id or "", "")
        pairs = tuple((called, given) for called, given, _ in calls)
        turns.append(Spoken(role, message.content, pairs, name if role == "tool" else ""))
    return turns


def as_json(arguments: Any) -> str:
    """Arguments of a call as JSON: clients send them as text, or as they are."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)
