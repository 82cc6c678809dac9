"""The application on a socket: uvicorn, with patience for slow clients that has an end."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pfi.errors import ConfigError
from pfi.serve.config import ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI


def make_server(app: FastAPI, config: ServeConfig) -> uvicorn.Server:
    """A server that is not started; ``server.run(sockets=[listen(config)])`` runs it."""

    #: Connections without a whole header, the oldest first, by the client's address.
    half_open: defaultdict[str, dict[Patient, None]] = defaultdict(dict)

    class Patient(H11Protocol):
        """Closes a connection whose next request does not come within some seconds."""

        _limit: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.access_log = False  # it would print query strings; `Guard` has its own

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:  # a header is complete
                self._unwatch()
            elif self._limit is None:
                self._limit = self.loop.call_later(config.read_seconds, self.transport.close)
                waiting = half_open[self._address]
                waiting[self] = None
                if len(waiting) > config.half_open:
                    # The oldest goes, so that whoever holds many keeps nobody else out.
                    next(iter(waiting)).transport.close()

        def _unwatch(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None
                waiting = half_open[self._address]
                waiting.pop(self, None)
                if not waiting:
                    del half_open[self._address]

        @property
        def _address(self) -> str:
            return str(self.client[0]) if self.client else ""

    return _Server(
        uvicorn.Config(
            app,
            http=Patient,
            ws="none",
            log_config=None,
            server_header=False,
            proxy_headers=False,  # a header must not say who the caller is
            timeout_keep_alive=config.idle_seconds,
            timeout_graceful_shutdown=2,
            limit_concurrency=config.connections,
        )
    )


class _Server(uvicorn.Server):
    """Ends running answers as soon as it is told to end, so that their streams end whole."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = getattr(getattr(self.config.app, "state", None), "service", None)
        for server in self.servers:  # first: no request comes to engines that have ended
            server.close()
        if service is not None:
            await asyncio.to_thread(service.stop)
        await super().shutdown(sockets)


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the configured address.

    Raises:
        ConfigError: the address is none of this machine's, or its port is taken.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=2048)  # type: ignore[arg-type]
    except OSError as error:
        where = f"{config.host}:{config.port}"
        fix = "choose another --port, or --port 0 for any free one"
        raise ConfigError(f"cannot listen: {error.strerror}", where=where, fix=fix) from error


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    name: tuple[Any, ...] = listening.getsockname()
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
