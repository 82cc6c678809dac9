"""The application: the API, the console and what every request passes first."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from pfi._util.version import __version__
from pfi.errors import PfiError
from pfi.serve.api import Workers, router
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, from_pfi
from pfi.serve.guard import Guard
from pfi.serve.limits import Limits
from pfi.serve.metrics import Metrics
from pfi.serve.ollama import router as ollama
from pfi.serve.responses import router as responses
from pfi.serve.service import Service
from pfi.serve.validation import from_validation

#: Headers that pages of other origins may read.
EXPOSED = [
    "x-request-id",
    "retry-after",
    "x-should-retry",
    *(
        f"x-ratelimit-{name}-{kind}"
        for kind in ("requests", "tokens")
        for name in ("limit", "remaining")
    ),
]
_HAS = (
    "/v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings and /v1/models, and of "
    "Ollama's API /api/chat, /api/generate, /api/embed, /api/tags, /api/show and /api/version"
)


def create_app(service: Service, config: ServeConfig | None = None) -> FastAPI:
    """The server's application; it closes the service when it ends.

    Args:
        service: the opened profiles.
        config: the settings; the service's own when None.
    """
    config = config or service.config

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        app.state.workers.close()

    app = FastAPI(
        title="pfi",
        version=__version__,
        description="Models of one's own behind the OpenAI API.",
        # The interactive pages would load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.service, app.state.config = service, config
    app.state.limits, app.state.metrics = Limits(config), Metrics(service)
    app.state.workers, app.state.begun = Workers(config), int(time.time())
    for routes in (router, responses, ollama):
        app.include_router(routes)
    _add_health(app)
    _add_errors(app)
    if find_spec("pfi.serve.console") is not None:
        from pfi.serve.console import router as console

        app.include_router(console)
    app.add_middleware(Guard, service=service, config=config, metrics=app.state.metrics)
    if config.origins:  # before the guard: a browser asks first, and without a token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.origins,
            allow_methods=["GET", "POST", "HEAD"],
            allow_headers=["*"],  # what clients add is without end; the origin is what counts
            expose_headers=EXPOSED,
            allow_private_network=True,  # a page elsewhere that the user named may call here
            max_age=600,
        )
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", tags=["server"])
    def healthz() -> dict[str, str]:
        """Whether the server runs."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Counts and times for Prometheus; of this machine or with a token only."""
        text, kind = app.state.metrics.text()
        return PlainTextResponse(text, media_type=kind)


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Any) -> JSONResponse:
        if request.url.path.startswith("/api/"):  # Ollama's clients read a text
            return JSONResponse({"error": error.message}, error.status, headers=error.headers)
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return await refused(request, from_validation(error.errors(), error.body))

    async def http(request: Request, error: Any) -> JSONResponse:
        return await refused(request, _worded(request, error))

    async def device(request: Request, error: Any) -> JSONResponse:
        return await refused(request, from_pfi(error))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(PfiError, device)


def _worded(request: Request, error: Any) -> ApiError:
    """An error of the framework's in the words of the API."""
    status, headers = error.status_code, dict(error.headers or {})
    path = request.url.path
    if not path.startswith(("/v1", "/api")):
        return ApiError(status, str(error.detail), headers=headers)
    at = f"{request.method} {path[:200]}"
    if status == 404:
        what = f"Unknown request URL: {at}. This server has {_HAS}."
        return ApiError(404, what, code="unknown_url", headers=headers)
    if status == 405:
        what = f"Not allowed: {at}. Use {headers.get('allow', 'another method')}."
        return ApiError(405, what, code="method_not_allowed", headers=headers)
    if status == 400:
        return ApiError(400, "The body is no JSON: it cannot be parsed.", code="invalid_json")
    return ApiError(status, str(error.detail), headers=headers)
