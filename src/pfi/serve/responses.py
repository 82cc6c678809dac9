"""`POST /v1/responses`: the Responses API, without memory of what was answered before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from pfi.serve.api import REFUSALS, STREAM, client_router
from pfi.serve.ask import Ask, Spoken, as_json
from pfi.serve.call import Call
from pfi.serve.errors import ApiError, unsupported
from pfi.serve.schemas import MOST_TURNS, Body, Extension, Finite, Limit, Name, content_text
from pfi.serve.structured import response_grammar
from pfi.serve.tools import toolset
from pfi.serve.wire_responses import ResponseWording

_STATELESS = "this server keeps no responses; send the whole conversation as `input`"
#: Fields that would change what the answer means, with what to do instead.
_REFUSED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": "ask for a stream instead",
    "prompt": "send `instructions` and `input`",
}
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_LOGPROBS = "message.output_text.logprobs"


class TextOptions(BaseModel):
    """What form the answer has."""

    format: dict[str, Any] | None = None


class ResponseRequest(Body):
    """Body of ``POST /v1/responses``."""

    model: Name
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_TURNS)]
    instructions: str | None = None
    max_output_tokens: Limit = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    pfi: Extension | None = None


class ResponseReply(BaseModel):
    """Answer to ``POST /v1/responses``; `output` holds messages and calls."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    pfi: dict[str, Any]


router = client_router("/v1", "api", responses=REFUSALS)


@router.post("/responses", response_model=ResponseReply, responses=STREAM)
async def responses(body: ResponseRequest, request: Request) -> Response:
    """Answer a conversation; nothing of it is kept."""
    ask = of_response(body)
    return await Call(request, ask, ResponseWording(body.model, _echoed(body))).respond()


def of_response(body: ResponseRequest) -> Ask:
    """What a request comes to.

    Raises:
        ApiError: 400, it is refused.
    """
    for name, value in (body.model_extra or {}).items():
        if name in _REFUSED and value:
            raise unsupported(name, f"{name} is not supported: {_REFUSED[name]}")
    talk = [Spoken("system", body.instructions)] if body.instructions else []
    talk += _turns(body.input)
    if not talk:
        what = "input: there is nothing to answer; add a user's message"
        raise ApiError(400, what, param="input", code="invalid_value")
    sampling: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p or None,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
    }
    if body.top_p == 0:
        sampling["top_k"] = 1
    wanted = bool(body.top_logprobs) or _LOGPROBS in (body.include or [])
    form = body.text.format if body.text else None
    extension = body.pfi or Extension()  # type: ignore[call-arg]
    return Ask(
        body.model,
        [talk],
        sampling,
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if wanted else None,
        stream=bool(body.stream),
        tools=toolset(body.tools, body.tool_choice, body.parallel_tool_calls),
        answer=response_grammar(form, "text.format"),
        shorten="auto" in (body.truncation, extension.truncation),
        extension=extension,
        param="input",
        format_param="text.format",
    )


def _turns(given: str | list[dict[str, Any]]) -> list[Spoken]:
    """Input items as turns; calls in a row are one assistant's turn."""
    if isinstance(given, str):
        return [Spoken("user", given)]
    turns: list[Spoken] = []
    names: dict[str, str] = {}
    for at, item in enumerate(given):
        kind = item.get("type", "message")
        if kind == "message":
            turns.append(_message(item, f"input[{at}]"))
        elif kind == "function_call":
            name = _text_of(item, "name", f"input[{at}]")
            names[str(item.get("call_id"))] = name
            call = (name, as_json(item.get("arguments")))
            if turns and turns[-1].role == "assistant":
                last = turns.pop()
                turns.append(Spoken("assistant", last.text, (*last.calls, call)))
            else:
                turns.append(Spoken("assistant", "", (call,)))
        elif kind == "function_call_output":
            text = _content(item.get("output"), f"input[{at}].output")
            turns.append(Spoken("tool", text, name=names.get(str(item.get("call_id")), "")))
        elif kind != "reasoning":  # thoughts of before are no part of a conversation
            what = f"input[{at}]: items of type {str(kind)[:40]!r} are not supported"
            raise unsupported(f"input[{at}].type", what)
    return turns


def _message(item: dict[str, Any], where: str) -> Spoken:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        what = f"{where}.role: use system, developer, user or assistant"
        raise ApiError(400, what, param=f"{where}.role", code="invalid_value")
    return Spoken(role, _content(item.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    text = content_text(content)
    if not isinstance(text, str):
        what = f"{where}: must be a text or a list of parts"
        raise ApiError(400, what, param=where, code="invalid_type")
    return text


def _text_of(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        where = f"{where}.{name}"
        what = f"Missing required parameter: '{where}'."
        raise ApiError(400, what, param=where, code="missing_required_parameter")
    return value


def _echoed(body: ResponseRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    form = (body.text.format if body.text else None) or {"type": "text"}
    tools = [
        {"description": None, "parameters": None, "strict": None, **tool}
        for tool in body.tools or []
    ]
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "background": False,
        "safety_identifier": None,
        "prompt_cache_key": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "text": {"format": form},
        "tool_choice": choice,
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }
