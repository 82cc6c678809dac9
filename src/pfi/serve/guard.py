"""What every request passes before anything reads it: host, token, size and time.

Plain ASGI, so that nothing of a body is parsed for a caller without a token.  Only names that lead
here by themselves may be asked for: a page elsewhere that rebinds its own name is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import time
import traceback
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfi._util.files import disk_full
from pfi.errors import PfiError
from pfi.serve.auth import Caller
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, wrong_key
from pfi.serve.metrics import Metrics
from pfi.serve.service import Service

#: The OpenAI API and Ollama's; everything below needs a token.
API = ("/v1", "/api")
METRICS = "/metrics"
#: Where the console takes files.
UPLOAD = "/console/data/import"
#: Bytes of a refused request's body that are read all the same.
_SKIPPED = 16 << 20
#: How long a vault may take to tell whose a token is.
_CHECK_SECONDS = 10.0
_log = logging.getLogger("pfi.serve")
_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, service: Service, config: ServeConfig, metrics: Metrics
    ) -> None:
        self._app, self._service, self._config, self._metrics = app, service, config, metrics
        self._names = {"localhost", config.host.lower(), *map(str.lower, config.names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a websocket that nobody answers is refused by the server
        number = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = number
        begun, status = time.perf_counter(), 0
        body = _Body(self._config, scope, receive)

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", number.encode())]
                names = {name for name, _ in headers}
                headers += [header for header in _ALWAYS if header[0] not in names]
                if not body.read:  # what follows on this connection is still the body
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._check(scope)
            body.check_length()
            await self._app(scope, body.receive, reply)
        except ApiError as error:
            await body.skip()
            await _send(reply, error)
        except asyncio.CancelledError:
            # The server ends, and the client has not read what there was for it.
            _log.info("%s ended with the server", number)
        except Exception as error:
            # The message may quote private text; where it happened is enough to find the fault.
            at = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s failed with %s\n%s", number, type(error).__name__, at)
            if not status:  # half a response is left so, and the connection closed
                message = "The server had an error."
                await _send(reply, ApiError(500, message, code="internal_error"))
        finally:
            seconds = time.perf_counter() - begun
            self._metrics.request(scope, status, seconds)
            _log.info("%s %s %s %d %.3f s", number, scope["method"], _path(scope), status, seconds)

    # Who and where to ---------------------------------------------------------------

    async def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            raise ApiError(403, "This server does not answer to that host name.", code="host")
        path = _path(scope)
        if _is_api(path):
            callers = await self._callers(headers)
            scope["state"].update(caller=callers[0], callers=callers)
        elif path == METRICS and not _is_near(scope, headers):
            await self._callers(headers)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # digits cannot be rebound

    async def _callers(self, headers: Headers) -> tuple[Caller, ...]:
        """Whom a request's token stands for, in each profile that it opens; somebody at least."""
        kind, _, text = headers.get("authorization", "").partition(" ")
        keeper, callers = self._service.gatekeeper, tuple[Caller, ...]()
        if kind.lower() == "bearer":
            # The vault may have to be read.
            checking = asyncio.get_running_loop().run_in_executor(
                keeper.pool, keeper.callers, text.strip()
            )
            try:
                callers = await asyncio.wait_for(checking, _CHECK_SECONDS)
            except (PfiError, TimeoutError) as error:
                # Not 401: clients throw away a key that they are told is wrong.
                raise self._unchecked() from error
        if not callers:
            raise wrong_key("Incorrect API key provided, or none.")
        return callers

    def _unchecked(self) -> ApiError:
        folders = [home.path for home in self._service.homes.values()]
        full = any(disk_full(folder) for folder in folders)
        why = "no space is left on its disk" if full else "the vault cannot be read now"
        return ApiError(
            503,
            f"The server cannot check the key: {why}. Keep the key and try again later.",
            code="unavailable",
            headers={"Retry-After": "5"},
        )


class _Body:
    """The body of a request: no more than is allowed, and no slower."""

    def __init__(self, config: ServeConfig, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._receive, self._seconds = receive, config.read_seconds
        # Forms are read whole into memory, signed in or not; an upload goes to files.
        self._upload = _path(scope) == UPLOAD
        self._most = config.upload_bytes if self._upload else config.body_bytes
        self._length = headers.get("content-length", "")
        self._until = time.monotonic() + self._seconds
        self._got = 0
        #: Whether all of it has come.
        self.read = self._length in ("", "0") and "transfer-encoding" not in headers

    def check_length(self) -> None:
        """Refuse a body that says itself that it is too large.

        Raises:
            ApiError: it does.
        """
        if self._length.isdecimal() and int(self._length[:20]) > self._most:
            raise ApiError(413, _too_large(self._most).detail)

    async def receive(self) -> Message:
        """The next part; after the last one, wait for the end of the connection.

        Raises:
            HTTPException: it is too much, or comes too slowly.
        """
        if self.read:
            return await self._receive()
        # An upload may take long, as long as it goes on.
        wait = self._seconds if self._upload else self._until - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(wait, 0.0))
        except TimeoutError:
            raise HTTPException(408, "The request was sent too slowly.") from None
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            raise _too_large(self._most)
        self.read = not message.get("more_body", False)
        return message

    async def skip(self) -> None:
        """Read on where little is left: a client that still writes would not see the response."""
        if self._length.isdecimal() and int(self._length[:20]) > _SKIPPED:
            return
        try:
            async with asyncio.timeout(self._seconds):
                while not self.read and self._got <= _SKIPPED:
                    message = await self._receive()
                    self._got += len(message.get("body", b""))
                    self.read = not message.get("more_body", False)
        except TimeoutError:
            pass


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"The request is larger than {most} bytes.")


def _is_near(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine, and not through a proxy on it."""
    client: Any = scope.get("client") or ("", 0)
    try:
        near = ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
    return near and not {"x-forwarded-for", "forwarded"} & {*headers.keys()}


def _is_api(path: str) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in API)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path


async def _send(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
