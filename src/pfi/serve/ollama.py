"""Ollama's API, for programs that speak no other: chat, generate, embed, and what they ask first.

Streams are lines of JSON, and the default; an error is ``{"error": "text"}``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pfi.serve.answers import Delta, Said, Used
from pfi.serve.api import client_router, embedded
from pfi.serve.ask import Ask, Spoken, spoken
from pfi.serve.call import Call
from pfi.serve.errors import ApiError, unsupported
from pfi.serve.opened import check_model, model_names, pick_model
from pfi.serve.schemas import MOST_STOPS, MOST_TURNS, Body, Finite, Message, Name
from pfi.serve.service import EMBEDDINGS
from pfi.serve.structured import response_grammar
from pfi.serve.tools import ToolCall, toolset
from pfi.serve.wire import Wording

#: The version of Ollama whose API this is; clients look for one.
VERSION = "0.13.0"
_TAG = ":latest"


def _untagged(name: Any) -> Any:
    """Clients add a tag to names that have none."""
    return name.removesuffix(_TAG) if isinstance(name, str) else name


def _no_format(value: Any) -> Any:
    return None if value == "" else value


def _no_penalty(value: Any) -> Any:
    """0, which would divide by it, is how Open WebUI says that there is none."""
    return None if value == 0 and not isinstance(value, bool) else value


ModelName = Annotated[Name, BeforeValidator(_untagged)]
Form = Annotated[Literal["json"] | dict[str, Any] | None, BeforeValidator(_no_format)]


class Options(BaseModel):
    """How tokens are chosen; Ollama's other options have no meaning here."""

    model_config = ConfigDict(extra="ignore")

    num_predict: int | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[
        Annotated[Finite, Field(gt=0, le=10)] | None, BeforeValidator(_no_penalty)
    ] = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[str], Field(max_length=MOST_STOPS)] | str | None = None


class OllamaMessage(Message):
    """A turn; ``images`` are refused."""

    images: list[Any] | None = None
    tool_name: str | None = None


class Asked(Body):
    """What chat and generate share."""

    model: ModelName
    stream: bool | None = None
    format: Form = None
    options: Options | None = None


class OllamaChat(Asked):
    """Body of ``POST /api/chat``."""

    messages: list[OllamaMessage] = Field(default=[], max_length=MOST_TURNS)
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(Asked):
    """Body of ``POST /api/generate``."""

    prompt: str | None = None
    system: str | None = None


class OllamaEmbed(Body):
    """Body of ``POST /api/embed`` and the older ``/api/embeddings``, which has ``prompt``."""

    model: ModelName
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class Named(Body):
    """Body of ``POST /api/show``; older clients say ``name``."""

    model: ModelName | None = None
    name: ModelName | None = None


router = client_router("/api", "ollama", include_in_schema=False)


@router.post("/chat")
async def chat(body: OllamaChat, request: Request) -> Response:
    """Answer a conversation."""
    if not body.messages:
        return _loaded(request, body.model, {"message": {"role": "assistant", "content": ""}})
    if any(message.images for message in body.messages):
        raise unsupported("messages", "messages: images are not supported; this model reads text")
    talk = [
        Spoken(one.role, one.text, one.calls, message.tool_name or one.name)
        for one, message in zip(spoken(body.messages), body.messages, strict=True)
    ]
    ask = _ask(body, talk, body.tools)
    return await Call(request, ask, OllamaWording(body.model, chat=True)).respond()


@router.post("/generate")
async def generate(body: OllamaGenerate, request: Request) -> Response:
    """Answer one prompt."""
    extra = body.model_extra or {}
    for name in ("suffix", "images", "raw", "template", "context"):
        if extra.get(name):
            raise unsupported(name, f"{name} is not supported by this server")
    if not body.prompt:
        return _loaded(request, body.model, {"response": ""})
    talk = [Spoken("system", body.system)] if body.system else []
    ask = _ask(body, [*talk, Spoken("user", body.prompt)], None)
    return await Call(request, ask, OllamaWording(body.model, chat=False)).respond()


def _ask(body: Asked, talk: list[Spoken], tools: list[dict[str, Any]] | None) -> Ask:
    options = body.options or Options()
    form = body.format
    wanted: dict[str, Any] | None = None if form is None else {"type": "json_object"}
    if isinstance(form, dict):
        wanted = {"type": "json_schema", "json_schema": {"schema": form}}
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    limit = options.num_predict
    return Ask(
        body.model,
        [talk],
        {
            "temperature": options.temperature,
            "top_p": options.top_p or None,
            "top_k": 1 if options.top_p == 0 else _counted(options.top_k),
            "min_p": options.min_p,
            "repetition_penalty": options.repeat_penalty,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
            "seed": options.seed,
        },
        tuple(text for text in stop if text),
        # -1 and -2 are Ollama's words for no limit.
        None if limit is None or limit == 0 else limit if limit > 0 else 2**31,
        stream=body.stream is not False,
        tools=toolset(tools, None, None),
        answer=response_grammar(wanted, "format"),
        format_param="format",
    )


def _counted(top_k: int | None) -> int | None:
    return None if top_k is None else max(0, top_k)


def _loaded(request: Request, model: str, empty: dict[str, Any]) -> Response:
    """The answer to nothing, by which clients have a model loaded."""
    check_model(request, model)
    body: dict[str, Any] = {"model": model, "created_at": _now(), **empty}
    return JSONResponse({**body, "done": True, "done_reason": "load"})


@router.post("/embed")
async def embed(body: OllamaEmbed, request: Request) -> Response:
    """The vectors of texts."""
    begun = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    vectors: list[Any] = []
    count = 0
    if texts:
        found, count = await embedded(request, body.model, texts, body.dimensions)
        vectors = found.tolist()
    took = time.perf_counter_ns() - begun
    more = {"total_duration": took, "load_duration": 0, "prompt_eval_count": count}
    return JSONResponse({"model": body.model, "embeddings": vectors, **more})


@router.post("/embeddings")
async def embeddings(body: OllamaEmbed, request: Request) -> Response:
    """The vector of one text, as older clients ask for it."""
    found, _ = await embedded(request, body.model, [body.prompt or ""], body.dimensions)
    return JSONResponse({"embedding": found[0].tolist()})


@router.get("/tags")
def tags(request: Request) -> Response:
    """The models that the token opens."""
    return JSONResponse({"models": [_card(request, name) for name in model_names(request)]})


@router.get("/ps")
def loaded(request: Request) -> Response:
    """The same, as Ollama lists those that are loaded."""
    cards = [_card(request, name) for name in model_names(request)]
    never = {"expires_at": "2300-01-01T00:00:00Z", "size_vram": 0}
    return JSONResponse({"models": [{**card, **never} for card in cards]})


@router.post("/show")
def show(body: Named, request: Request) -> Response:
    """What is known of a model."""
    name = body.model or body.name
    if name is None:
        what = "Missing required parameter: 'model'."
        raise ApiError(400, what, param="model", code="missing_required_parameter")
    check_model(request, name)
    info: dict[str, Any] = {"general.architecture": "pfi"}
    able = ["embedding"]
    if name != EMBEDDINGS:
        caller, _ = pick_model(request, name)
        engine = request.app.state.service.engine(caller.profile)
        info["pfi.context_length"] = engine.prompter.max_length
        able = ["completion", "tools"]
    card = _card(request, name)
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "license": "",
            "details": card["details"],
            "model_info": info,
            "capabilities": able,
            "modified_at": card["modified_at"],
        }
    )


@router.get("/version")
def version() -> Response:
    """The version of Ollama whose API this is."""
    return JSONResponse({"version": VERSION})


def _card(request: Request, name: str) -> dict[str, Any]:
    begun = datetime.fromtimestamp(request.app.state.begun, UTC).isoformat()
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "pfi",
        "families": ["pfi"],
        "parameter_size": "",
        "quantization_level": "",
    }
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": begun,
        "size": 0,
        "digest": digest,
        "details": details,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class OllamaWording(Wording):
    """``/api/chat`` and ``/api/generate``.

    Args:
        model: as the request names it.
        chat: which of them.
    """

    media_type = "application/x-ndjson"

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._begun = self._first = time.perf_counter_ns()
        self._why: dict[str, Any] = {}

    def whole(self, answers: Sequence[Said], used: Used, why: Sequence[dict[str, Any]]) -> Any:
        (said,) = answers
        self._why = why[0]
        return self._part(said.text, said.calls, **self._done(said, used))

    def opening(self, count: int, why: Sequence[dict[str, Any]]) -> Iterable[bytes]:
        self._why, self._first = why[0], time.perf_counter_ns()
        return ()

    def delta(self, number: int, said: Said, new: Delta) -> Iterable[bytes]:
        if new.text or new.calls:
            yield _line(self._part(new.text, new.calls, done=False))

    def ending(self, answers: Sequence[Said], used: Used) -> Iterable[bytes]:
        (said,) = answers
        yield _line(self._part("", (), **self._done(said, used)))

    def failure(self, error: ApiError) -> bytes:
        return _line({"error": error.message})

    def _part(self, text: str, calls: Sequence[ToolCall], **more: Any) -> dict[str, Any]:
        said: dict[str, Any] = {"response": text}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            said = {"message": message}
        return {"model": self._model, "created_at": _now(), **said, **more}

    def _done(self, said: Said, used: Used) -> dict[str, Any]:
        end = time.perf_counter_ns()
        return {
            "done": True,
            "done_reason": "length" if said.finish == "length" else "stop",
            "total_duration": end - self._begun,
            "load_duration": 0,
            "prompt_eval_count": used.prompt,
            "prompt_eval_duration": self._first - self._begun,
            "eval_count": used.new,
            "eval_duration": max(1, end - self._first),
            "pfi": self._why,
        }


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
