"""Which requests reach Flower: those of registered devices, and of this machine's round loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

from pfi.federate.deploy.requests import RequestVerifier

FLEET, RUNTIME = "/v1/fleet/", "/v1/runtime/"
LARGEST_REQUEST = 8 << 20  # bytes; Flower sends arrays in pieces of 5 MiB
_log = logging.getLogger("flwr.pfi")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Doors:
    """ASGI middleware: nodes' routes are open, the runtime's to this machine, nothing else.

    Flower serves its three interfaces on one port, and two of them ask for no password: the control
    interface starts runs, which is to run code, and the runtime interface hands out a run's
    messages.  A request may carry so much only, and a device's is signed whole.

    Args:
        app: Flower's.
        verifier: of devices' requests.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        verifier: RequestVerifier,
    ) -> None:
        self._app, self._verifier = app, verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say 401 (not signed), 404 (no such route) or 413 (too large)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = verdict(scope)
        if status is None and scope["path"].startswith(FLEET):
            status, receive = await self._signed(scope, receive)
        if status is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _signed(self, scope: Scope, receive: Receive) -> tuple[int | None, Receive]:
        """A device's request, read: the status to refuse it with, and what gives its body again."""
        length = int(dict(scope["headers"])[b"content-length"])
        pieces: list[bytes] = []
        taken, more = 0, True
        while more:
            event = await receive()
            if event["type"] != "http.request":  # it went away
                return 400, receive
            pieces.append(event.get("body", b""))
            taken, more = taken + len(pieces[-1]), event.get("more_body", False)
            if taken > length:
                return 413, receive
        body = b"".join(pieces)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        why = await asyncio.to_thread(
            self._verifier.refusal, scope["method"], scope["path"], headers, body
        )
        if why is not None:
            _log.warning("a request to %s was refused: %s", scope["path"], why)
            return 401, receive
        return None, _again(body, receive)


def verdict(scope: Scope) -> int | None:
    """The status to refuse a request with before it is read; None lets it in."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return 404
    path = scope["path"]
    if not path.startswith(FLEET) and not (path.startswith(RUNTIME) and _is_here(scope)):
        return 404
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    # Without a length (chunked) nothing would bound what is read before the node is known.
    if len(lengths) != 1 or not lengths[0].isdigit() or int(lengths[0]) > LARGEST_REQUEST:
        return 413
    return None


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, then whatever comes after it."""
    given = False

    async def first() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first


def _is_here(scope: Scope) -> bool:
    try:
        return ip_address((scope.get("client") or ("", 0))[0]).is_loopback
    except ValueError:
        return False
