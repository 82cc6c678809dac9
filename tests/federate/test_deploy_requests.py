"""A device's requests are signed whole: nothing of one does for another, and none goes twice."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pfi.federate.deploy.requests import NONCE, SIGNATURE, RequestSigner, RequestVerifier, claim
from pfi.federate.deploy.server.doors import Doors

PATH, BODY = "/v1/fleet/pull-messages", b"body"


class Signed:
    """A request as our link sends it."""

    def __init__(self, path: str = PATH, body: bytes = BODY, key: Any = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP384R1())
        self.public = public_key_to_bytes(self.key.public_key())
        self.request = httpx.Request("POST", f"https://host:1{path}", content=body)
        context: Any = SimpleNamespace(request=self.request)
        flower = NodeAuthHttpInterceptor(self.key, self.key.public_key())
        flower.intercept(
            context,
            lambda given: RequestSigner(self.key).intercept(given, lambda _: httpx.Response(200)),
        )

    def headers(self, **change: str) -> dict[str, str]:
        return {**{k.lower(): v for k, v in self.request.headers.items()}, **change}


@pytest.fixture
def signed() -> Signed:
    return Signed()


@pytest.fixture
def verifier(signed: Signed) -> RequestVerifier:
    verifier = RequestVerifier()
    verifier.admit([signed.public])
    return verifier


def test_a_request_is_taken_once(signed: Signed, verifier: RequestVerifier) -> None:
    assert verifier.refusal("POST", PATH, signed.headers(), BODY) is None
    assert verifier.refusal("POST", PATH, signed.headers(), BODY) == "it was sent before"
    again = Signed(key=signed.key)
    assert verifier.refusal("POST", PATH, again.headers(), BODY) is None


def test_no_part_of_a_request_does_for_another(signed: Signed, verifier: RequestVerifier) -> None:
    headers, another = signed.headers(), "its signature is of another request"
    other = Signed(key=signed.key).headers()
    later = {**headers, _timestamp(headers): (now() + timedelta(seconds=1)).isoformat()}
    for method, path, given, body in [
        ("GET", PATH, headers, BODY),
        ("POST", "/v1/fleet/send-node-heartbeat", headers, BODY),
        ("POST", PATH, headers, b"other"),
        ("POST", PATH, headers, b""),
        ("POST", PATH, {**headers, NONCE: "0" * 32}, BODY),
        ("POST", PATH, {**headers, SIGNATURE: other[SIGNATURE]}, BODY),
        ("POST", PATH, {**headers, SIGNATURE: b64encode(b"x").decode()}, BODY),
        ("POST", PATH, later, BODY),
    ]:
        assert verifier.refusal(method, path, given, body) == another
    assert verifier.refusal("POST", PATH, headers, BODY) is None, "a refusal uses no nonce up"


def _timestamp(headers: dict[str, str]) -> str:
    """The name of Flower's header of the time."""
    return next(name for name in headers if "timestamp" in name)


def test_strangers_old_requests_and_others_headers_are_refused(
    signed: Signed, verifier: RequestVerifier
) -> None:
    def why(headers: dict[str, str]) -> str | None:
        return verifier.refusal("POST", PATH, headers, BODY)

    assert why(Signed().headers()) == "its key is not registered"
    for name in (SIGNATURE, NONCE, _timestamp(signed.headers())):
        assert (
            why({k: v for k, v in signed.headers().items() if k != name})
            == "it is not signed whole"
        )
    assert why(signed.headers(**{SIGNATURE: "%"})) == "it is not signed whole"
    assert why(signed.headers(**{NONCE: "0" * 33})) == "its nonce is of another length"
    for late in (timedelta(minutes=6), timedelta(seconds=-30)):
        slow = RequestVerifier(clock=lambda late=late: now() + late)  # type: ignore[misc]
        slow.admit([signed.public])
        assert slow.refusal("POST", PATH, signed.headers(), BODY) == "its time is not now"
    verifier.admit([])
    assert why(signed.headers()) == "its key is not registered"


def test_flowers_own_supernode_gets_in_only_where_it_is_let(
    signed: Signed, verifier: RequestVerifier
) -> None:
    less = {k: v for k, v in signed.headers().items() if not k.startswith("pfi-")}
    assert verifier.refusal("POST", PATH, less, BODY) is not None
    verifier.required = False
    assert verifier.refusal("POST", PATH, less, BODY) is None
    assert verifier.refusal("POST", PATH, signed.headers(), b"other") is not None


def test_nonces_are_forgotten_when_their_time_is_over(signed: Signed) -> None:
    passed = timedelta()
    verifier = RequestVerifier(clock=lambda: now() + passed)
    verifier.admit([signed.public])
    assert verifier.refusal("POST", PATH, signed.headers(), BODY) is None
    assert len(verifier._nonces) == 1
    assert verifier._is_new(b"k", "n")
    passed = timedelta(minutes=7)
    assert verifier._is_new(b"k", "m")
    assert verifier._nonces == {(b"k", "m")}


def test_a_claim_says_where_its_parts_end() -> None:
    assert claim("POST", "/a", "b", "c", b"") != claim("POST", "/ab", "", "c", b"")


# The doors ------------------------------------------------------------------------------


def _through(
    verifier: RequestVerifier, signed: Signed, pieces: list[bytes], path: str = PATH
) -> Any:
    """What comes of a request: the status, and the body that the application got."""
    taken: list[bytes] = []
    statuses: list[int] = []
    events = [
        {"type": "http.request", "body": piece, "more_body": n + 1 < len(pieces)}
        for n, piece in enumerate(pieces)
    ]

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        taken.append(event["body"])
        assert not event["more_body"]
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        statuses.extend([event["status"]] if "status" in event else [])

    headers = [(k.encode(), v.encode()) for k, v in signed.headers().items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": None}
    asyncio.run(Doors(inner, verifier)(scope, receive, send))
    return statuses, taken


def test_doors_let_signed_requests_in_with_their_body(
    signed: Signed, verifier: RequestVerifier
) -> None:
    assert _through(verifier, signed, [b"bo", b"dy"]) == ([200], [BODY])
    assert _through(verifier, signed, [BODY]) == ([401], []), "replayed"
    other = Signed(key=signed.key)
    assert _through(verifier, other, [b"bodx"]) == ([401], [])
    assert _through(verifier, other, [BODY], "/v1/fleet/push-messages") == ([401], [])
    assert _through(verifier, other, [BODY, b"more"]) == ([413], [])
    assert _through(verifier, other, []) == ([400], []), "it went away"
    assert _through(verifier, other, [BODY], "/v1/control/start-run") == ([404], [])
