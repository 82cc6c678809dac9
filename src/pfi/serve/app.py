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
from pfi.serve.service import Service


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
    app.include_router(router)
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
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id"],
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
    async def refused(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        # What was sent is not repeated: it is private text.
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body")
        where = f"{param}: " if param else ""
        return await refused(_, ApiError(400, f"{where}{first['msg']}", param=param or None))

    async def http(_: Request, error: Any) -> JSONResponse:
        shown = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        return await refused(_, shown)

    async def device(_: Request, error: Any) -> JSONResponse:
        return await refused(_, from_pfi(error))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(PfiError, device)
