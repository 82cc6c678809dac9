"""The guard without a server: what it lets by, what it answers itself, and how much it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from pfi.errors import StorageError
from pfi.serve import guard
from pfi.serve.auth import Caller
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError
from pfi.serve.guard import Guard

ANN, BOB = Caller("ann", "t"), Caller("bob", "t")
SETTINGS = {"body_bytes": 2000, "upload_bytes": 5000, "read_seconds": 0.2, "host": "Here.Example"}


@dataclass
class Reply:
    """What was sent, and what the application behind the guard saw."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    read: bytes = b""
    callers: list[Caller | None] = field(default_factory=list)
    parts: int = 0

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def code(self) -> Any:
        return json.loads(self.body)["error"]["code"]


def callers_of(text: str) -> tuple[Caller, ...]:
    if text == "broken":
        raise StorageError("at a place that is nobody's business")
    return (ANN, BOB) if text == "right" else ()


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def ask(pool: ThreadPoolExecutor, tmp_path: Path) -> Callable[..., Reply]:
    """Sends one request through a guard."""
    keeper = SimpleNamespace(pool=pool, callers=callers_of)
    service: Any = SimpleNamespace(gatekeeper=keeper, homes={"ann": SimpleNamespace(path=tmp_path)})
    metrics: Any = SimpleNamespace(request=lambda scope, status, seconds: counted.append(status))
    counted: list[int] = []

    def ask(
        path: str = "/v1/models",
        headers: dict[str, str] | None = None,
        parts: tuple[bytes, ...] = (),
        *,
        app: Callable[..., Awaitable[None]] | None = None,
        client: Any = ("10.0.0.9", 5),
        stalls: bool = False,
    ) -> Reply:
        reply = Reply()
        sent = {"host": "localhost", "authorization": "Bearer right", **(headers or {})}
        scope = {
            "type": "http", "method": "POST", "path": path, "client": client,
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in sent.items() if v],
        }  # fmt: skip
        waiting = list(parts)

        async def receive() -> Any:
            reply.parts += 1
            if not waiting:
                if stalls:
                    await asyncio.sleep(30)
                return {"type": "http.disconnect"}
            body = waiting.pop(0)
            more = bool(waiting) or stalls
            return {"type": "http.request", "body": body, "more_body": more}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
            else:
                reply.body += message.get("body", b"")

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            reply.callers.append(scope["state"].get("caller"))
            assert scope["state"].get("callers", (ANN, BOB)) == (ANN, BOB)
            more = bool(parts)
            while more:
                try:
                    message = await receive()
                except HTTPException as error:  # as the application's own layer does
                    raise ApiError(error.status_code, error.detail) from error
                reply.read += message["body"]
                more = message["more_body"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        config = ServeConfig.model_validate(SETTINGS)
        own = Guard(app or answering, service=service, config=config, metrics=metrics)
        asyncio.run(own(scope, receive, send))  # type: ignore[arg-type]
        assert counted.pop() == reply.status and not counted
        return reply

    return ask


# Who ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "guarded"),
    [
        ("/v1", True), ("/v1/", True), ("/v1/models", True), ("/api", True), ("/api/tags", True),
        ("/v1x", False), ("/apix", False), ("/v", False), ("/", False), ("/x/v1", False),
    ],
)  # fmt: skip
def test_what_needs_a_token(ask: Callable[..., Reply], path: str, guarded: bool) -> None:
    without = ask(path, {"authorization": ""})
    assert without.status == (401 if guarded else 200)
    assert without.callers == ([] if guarded else [None])
    assert ask(path).callers == [ANN if guarded else None]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer right", 200), ("bearer  right ", 200), ("BEARER right", 200),
        ("Bearer wrong", 401), ("Basic right", 401), ("right", 401), ("Bearer", 401),
        ("Bearerright", 401), ("Bearer broken", 503),
    ],
)  # fmt: skip
def test_which_authorization_opens(ask: Callable[..., Reply], sent: str, status: int) -> None:
    reply = ask(headers={"authorization": sent})
    assert reply.status == status and bool(reply.callers) == (status == 200)
    if status == 401:
        assert reply.code == "invalid_api_key" and reply.header("www-authenticate") == "Bearer"
    if status == 503:
        assert reply.code == "unavailable" and reply.header("retry-after") == "5"
        assert b"business" not in reply.body and b"cannot be read" in reply.body


def test_a_check_that_takes_too_long_is_no_refusal_of_the_key(
    ask: Callable[..., Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_CHECK_SECONDS", 0.0)
    reply = ask()
    assert reply.status == 503 and not reply.callers


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 5), {}, 200), (("::1", 5), {}, 200), (("10.0.0.9", 5), {}, 401),
        (("127.0.0.1", 5), {"x-forwarded-for": "9.9.9.9"}, 401),
        (("127.0.0.1", 5), {"forwarded": "for=9.9.9.9"}, 401),
        (("nowhere", 5), {}, 401), (None, {}, 401),
        (("10.0.0.9", 5), {"authorization": "Bearer right"}, 200),
    ],
)  # fmt: skip
def test_figures_are_for_this_machine_and_for_tokens(
    ask: Callable[..., Reply], client: Any, headers: dict[str, str], status: int
) -> None:
    reply = ask(guard.METRICS, {"authorization": "", **headers}, client=client)
    assert reply.status == status and bool(reply.callers) == (status == 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [("here.example:80", 200), ("HERE.example", 200), ("there.example", 403), ("[::1", 403),
     ("1.2.3.4.", 403), ("9.9.9.9", 200), ("", 403)],
)  # fmt: skip
def test_names_that_lead_here(ask: Callable[..., Reply], host: str, status: int) -> None:
    reply = ask("/", {"host": host})
    assert reply.status == status and (status == 200 or reply.code == "host")
    assert bool(reply.callers) == (status == 200)


# How much -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/", 2000, 200), ("/", 2001, 413), ("/v1/models", 2001, 413),
        (guard.UPLOAD, 5000, 200), (guard.UPLOAD, 5001, 413), (guard.UPLOAD + "/", 2001, 413),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stated", [True, False])
def test_a_body_may_be_as_large_as_is_allowed_and_no_larger(
    ask: Callable[..., Reply], path: str, size: int, status: int, stated: bool
) -> None:
    headers = {"content-length": str(size)} if stated else {"transfer-encoding": "chunked"}
    reply = ask(path, headers, (b"x" * (size // 2), b"x" * (size - size // 2)))
    assert reply.status == status
    assert len(reply.read) == (size if status == 200 else 0 if stated else size // 2)


@pytest.mark.parametrize("length", ["9" * 40, "2001", "5000"])
def test_a_stated_length_is_believed_before_anything_is_read(
    ask: Callable[..., Reply], length: str
) -> None:
    reply = ask("/", {"content-length": length}, (b"x",))
    assert reply.status == 413 and reply.callers == []


@pytest.mark.parametrize("length", ["-1", "1e3", "x"])
def test_an_odd_length_counts_as_none(ask: Callable[..., Reply], length: str) -> None:
    assert ask("/", {"content-length": length}, (b"x",)).status == 200


@pytest.mark.parametrize(
    ("length", "read", "closed"),
    [
        ("30", True, False),  # the rest of a small body is read, so that the client sees why
        (str(guard._SKIPPED + 1), False, True),
    ],
)
def test_a_refused_body_is_read_where_little_is_left(
    ask: Callable[..., Reply], length: str, read: bool, closed: bool
) -> None:
    reply = ask("/v1/models", {"content-length": length, "authorization": ""}, (b"x" * 10,) * 3)
    assert reply.status == 401 and reply.parts == (3 if read else 0)
    assert (reply.header("connection") == "close") == closed


def test_no_more_than_is_worth_it_is_skipped(
    ask: Callable[..., Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_SKIPPED", 25)
    headers = {"transfer-encoding": "chunked", "authorization": ""}
    reply = ask("/v1/models", headers, (b"x" * 10,) * 9)
    assert reply.parts == 3 and reply.header("connection") == "close"
    stalled = ask("/v1/models", headers, (b"x",), stalls=True)
    assert stalled.status == 401 and stalled.header("connection") == "close"


def test_without_a_body_nothing_is_waited_for(ask: Callable[..., Reply]) -> None:
    for headers in ({}, {"content-length": "0"}):
        reply = ask("/v1/models", {**headers, "authorization": ""}, stalls=True)
        assert reply.status == 401 and reply.parts == 0
        assert reply.header("connection") is None


def test_a_body_that_stalls_is_given_up(ask: Callable[..., Reply]) -> None:
    seen: list[int] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        try:
            while True:
                await receive()
        except HTTPException as error:
            seen.append(error.status_code)
            raise ApiError(error.status_code, error.detail) from error

    reply = ask("/", {"content-length": "9"}, (b"x",), stalls=True, app=reading)
    assert seen == [408] and reply.status == 408


# What is added, and what is kept to itself --------------------------------------------


def test_every_response_has_a_number_and_says_that_it_is_what_it_says(
    ask: Callable[..., Reply],
) -> None:
    async def own(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"referrer-policy", b"same-origin")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": scope["state"]["request_id"].encode()})

    reply = ask("/", app=own)
    assert reply.header("x-request-id") == reply.body.decode() and reply.body[:4] == b"req_"
    assert len(reply.body) == 36
    assert reply.header("x-content-type-options") == "nosniff"
    assert [value for name, value in reply.headers if name == "referrer-policy"] == ["same-origin"]
    assert ask("/").header("referrer-policy") == "no-referrer"


def test_a_fault_is_told_of_without_its_words(
    ask: Callable[..., Reply], caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("private " + "words")

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("private " + "words")

    caplog.set_level("INFO")
    reply = ask("/", app=broken)
    assert reply.status == 500 and reply.code == "internal_error" and b"private" not in reply.body
    whole = ask("/", app=half)
    assert whole.status == 200 and whole.body == b""
    assert "ValueError" in caplog.text and "in broken" in caplog.text
    assert "private words" not in caplog.text and "POST / 500" in caplog.text


def test_a_server_that_ends_is_no_fault(
    ask: Callable[..., Reply], caplog: pytest.LogCaptureFixture
) -> None:
    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    caplog.set_level("INFO")
    assert ask("/", app=cancelled).status == 0
    assert "ended with the server" in caplog.text and "failed" not in caplog.text


def test_only_http_and_the_start_of_the_server_get_by() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    nothing: Any = SimpleNamespace()
    own = Guard(app, service=nothing, config=ServeConfig(), metrics=nothing)  # type: ignore[call-arg]
    for kind in ("lifespan", "websocket", "other"):
        asyncio.run(own({"type": kind}, nothing, nothing))
    assert seen == ["lifespan"]
