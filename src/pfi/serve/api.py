"""The OpenAI API: chat, text completions, embeddings and models."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

from pfi.serve.call import Call
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, no_model, unsupported
from pfi.serve.schemas import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorBody,
    ModelCard,
    ModelList,
)
from pfi.serve.service import EMBEDDINGS, Service
from pfi.serve.wire import ChatWording, TextWording

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
# `Guard` has checked the token; this is for the description alone.
_bearer = HTTPBearer(auto_error=False, description="a profile's token, of `pfi tokens new`")


class Workers:
    """Threads that wait so that the event loop need not.

    Attributes:
        prepare: search memories and make prompts.
        read: read streams, one each.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.prepare = ThreadPoolExecutor(min(16, config.running), "pfi-prepare")
        self.read = ThreadPoolExecutor(config.running * config.choices, "pfi-read")

    def close(self) -> None:
        """Take on no more."""
        for pool in (self.prepare, self.read):
            pool.shutdown(wait=False, cancel_futures=True)


async def _counted(request: Request) -> None:
    """Count a request against its token's limit."""
    request.app.state.limits.count(request.state.caller.token)


router = APIRouter(
    prefix="/v1",
    tags=["api"],
    dependencies=[Depends(_bearer), Depends(_counted)],
    responses=_REFUSALS,
)


@router.post("/chat/completions", response_model=ChatResponse, responses=_STREAM)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; its last message is the question."""
    talk = [message.turn for message in body.messages]
    wording = ChatWording(body.model)
    return await Call(request, body, [talk], wording, logprobs=bool(body.logprobs)).respond()


@router.post("/completions", response_model=CompletionResponse, responses=_STREAM)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Answer one or several prompts, each a question of its own."""
    talks = [[("user", prompt)] for prompt in body.prompts]
    logprobs = body.logprobs is not None
    if body.logprobs:
        raise unsupported("logprobs", "logprobs: only 0 is supported, the chosen tokens' own")
    return await Call(request, body, talks, TextWording(body.model), logprobs=logprobs).respond()


@router.post("/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """The vectors of texts, made by the sentence model."""
    state = request.app.state
    profile, token = request.state.caller.profile, request.state.caller.token
    if body.model != EMBEDDINGS and state.service.model(profile, body.model) is None:
        raise no_model(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > state.config.inputs:
        what = f"input: at most {state.config.inputs} texts are taken"
        raise ApiError(400, what, param="input", code="invalid_value")
    with state.limits.running(token):
        loop = asyncio.get_running_loop()
        vectors, count = await loop.run_in_executor(
            state.workers.prepare, _embed, state.service, texts, body.dimensions
        )
    state.limits.spend(token, count)
    if body.encoding_format == "base64":
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        shown = vectors.tolist()
    data = [
        {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)
    ]
    used = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse(
        {"object": "list", "data": data, "model": EMBEDDINGS, "usage": used},
        headers=state.limits.headers(token),
    )


def _embed(service: Service, texts: list[str], dimensions: int | None) -> tuple[Any, int]:
    embedder = service.embedder()
    if embedder is None:
        what = "The sentence model is not installed; `pip install 'pfi[memory]'` does it."
        raise ApiError(503, what, code="model_unavailable")
    if dimensions not in (None, embedder.width):
        raise unsupported("dimensions", f"dimensions: vectors have {embedder.width}")
    return embedder.embed(texts), embedder.count(texts)


@router.get("/models", response_model=ModelList)
def models(request: Request) -> Response:
    """The models that the token opens."""
    service, profile = request.app.state.service, request.state.caller.profile
    names = [model.id for model in service.models(profile)]
    names += [EMBEDDINGS] * (service.embedder() is not None)
    cards = [_card(request, name) for name in names]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/models/{name:path}", response_model=ModelCard)
def model(name: str, request: Request) -> Response:
    """One of them."""
    service, profile = request.app.state.service, request.state.caller.profile
    known = service.model(profile, name) is not None
    if not known and not (name == EMBEDDINGS and service.embedder() is not None):
        raise no_model(name)
    return JSONResponse(_card(request, name))


def _card(request: Request, name: str) -> dict[str, Any]:
    begun = request.app.state.begun
    return {"id": name, "object": "model", "created": begun, "owned_by": "pfi"}
