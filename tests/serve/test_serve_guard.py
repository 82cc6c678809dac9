"""What `pfi serve` refuses: callers without a token, foreign hosts, too much and too slow."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_world import FakeEngine, World, make_homes, replace_config, serving

from pfi.errors import ConfigError
from pfi.serve import ServeConfig, Service
from pfi.serve.auth import new_token, tokens_of
from pfi.serve.errors import ApiError
from pfi.serve.limits import Bucket, Limits

SMALL = {
    "read_seconds": 0.6,
    "body_bytes": 20_000,
    "running": 3,
    "running_per_token": 2,
    "names": ["models.example"],
    "inputs": 3,
}

#: One for all tests, as making one takes long; every request has a connection of its own.
HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann", "bob"])
    config = ServeConfig.model_validate(SMALL)
    with serving(homes, FakeEngine(), config) as world:
        yield world


@pytest.fixture(autouse=True)
def calm(world: World) -> Iterator[None]:
    yield
    world.engine.delay, world.engine.answer = 0.0, None


def ask(world: World, body: Any = None, **changes: Any) -> httpx.Response:
    """A chat request with parts replaced."""
    body = (
        {"model": "ann", "messages": [{"role": "user", "content": "hi"}]} if body is None else body
    )
    sent: dict[str, Any] = {"headers": world.headers("ann"), **changes}
    sent |= {"content": body} if isinstance(body, bytes) else {"json": body}
    if isinstance(body, bytes):
        sent["headers"] = {"content-type": "application/json", **sent["headers"]}
    return HTTP.post(f"{world.url}/chat/completions", **sent)


def refusal(reply: httpx.Response) -> dict[str, Any]:
    """The error of a response, which has the form of the OpenAI API's."""
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and set(reply.json()) == {"error"}
    return dict(error)


def raw(world: World, data: bytes, seconds: float = 5.0) -> bytes:
    """What the server says to bytes as they are."""
    host, port = world.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as client:
        client.sendall(data)
        received = b""
        while part := client.recv(65536):
            received += part
    return received


# Tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chat/completions", "models", "models/ann", "nothing", ""])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "HEAD"])
def test_without_a_token_there_is_nothing(world: World, method: str, path: str) -> None:
    made = len(world.engine.requests)
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer pfi-" + "a" * 43},
        {"Authorization": f"Basic {world.tokens['ann']}"},
        {"Authorization": world.tokens["ann"]},
        {"Authorization": f"Bearer {world.tokens['ann']}x"},
        {"Authorization": f"Bearer {world.tokens['ann'][:-1]}"},
        {"Authorization": b"Bearer pfi-\xff\xfe"},
        {"api-key": world.tokens["ann"]},
    ):
        reply = HTTP.request(method, f"{world.url}/{path}", headers=headers, content=b"{not json")
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert refusal(reply)["code"] == "invalid_api_key"
            assert "ann" not in reply.text
    assert len(world.engine.requests) == made


def test_a_token_opens_its_own_profile_only(world: World) -> None:
    reply = ask(world, {"model": "bob", "messages": [{"role": "user", "content": "x"}]})
    nobody = ask(world, {"model": "nobody", "messages": [{"role": "user", "content": "x"}]})
    assert reply.status_code == nobody.status_code == 404
    assert reply.text.replace("bob", "nobody") == nobody.text  # nobody can tell which there are
    listed = HTTP.get(f"{world.url}/models", headers=world.headers("ann")).text
    assert "bob" not in listed


def test_only_hashes_are_stored_and_lists_show_no_secret(tmp_path: Path) -> None:
    home = make_homes(tmp_path, ["ann"], records=0)["ann"]
    token, text = new_token(home, "editor")
    with home.open_vault() as vault:
        stored = json.dumps(vault.setting("tokens"))
    assert text not in stored and text.removeprefix("pfi-") not in stored
    assert token.sha256 in stored and tokens_of(home) == [token]
    assert token.label == "editor" and len(text) == len("pfi-") + 43
    assert new_token(home)[1] != text


# Hosts and origins ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:8484", 200),
        ("192.168.1.5", 200),
        ("models.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8484", 403),
        ("user@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_names_that_lead_here_are_answered(world: World, host: str, status: int) -> None:
    for path in ("/healthz", "/v1/models", "/metrics"):
        headers = {**world.headers("ann"), "Host": host}
        reply = HTTP.get(f"{world.root}{path}", headers=headers)
        assert reply.status_code == status, path
        if status != 200:
            assert refusal(reply)["type"] == "invalid_request_error"


def test_other_pages_are_granted_nothing(world: World, tmp_path: Path) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = HTTP.options(f"{world.url}/models", headers={**headers, **world.headers("ann")})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_origins_may_be_named(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann"])
    config = ServeConfig(origins=["https://chat.example"])  # type: ignore[call-arg]
    with serving(homes, FakeEngine(), config) as world:
        asked = {"Access-Control-Request-Method": "POST", "Origin": "https://chat.example"}
        reply = HTTP.options(f"{world.url}/chat/completions", headers=asked)
        assert reply.status_code == 200  # a browser sends no token with this one
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        evil = HTTP.options(
            f"{world.url}/chat/completions", headers={**asked, "Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in evil.headers
        assert ask(world, headers={"Origin": "https://chat.example"}).status_code == 401


# Bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "ann", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\xc3\x28", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "ann", "messages": [{"role": "user", "content": 5}]}',
        b'{"model": "ann", "messages": "x"}',
        b'{"model": "ann", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "ann", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"model": "a", "messages": [{"role": "user", "content": "x"}], "n": %s}' % (b"9" * 5000),
        b"[" * 15_000,
        b'{"model":' * 2000,
    ],
)  # fmt: skip
def test_what_is_no_request_is_400_and_not_repeated(world: World, body: bytes) -> None:
    reply = ask(world, body)
    assert reply.status_code == 400
    assert refusal(reply)["type"] == "invalid_request_error" and len(reply.content) < 1000
    assert ask(world).status_code == 200


def test_json_is_read_whatever_type_of_content_is_named(world: World) -> None:
    body = b'{"model": "ann", "messages": [{"role": "user", "content": "x"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # curl -d names the latter
        headers = {**world.headers("ann"), "content-type": kind}
        assert ask(world, body, headers=headers).status_code == 200
        assert ask(world, b"model=ann", headers=headers).status_code == 400


def test_unknown_paths_and_methods(world: World) -> None:
    for method, path, status in [
        ("GET", "nothing", 404),
        ("GET", "chat/completions", 405),
        ("DELETE", "models/ann", 405),
    ]:
        reply = HTTP.request(method, f"{world.url}/{path}", headers=world.headers("ann"))
        assert reply.status_code == status and refusal(reply)


def test_a_huge_body_is_refused_before_it_is_read(world: World) -> None:
    for size in (20_001, 5_000_000):
        reply = ask(world, b"x" * size)
        assert reply.status_code == 413 and refusal(reply)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {world.tokens['ann']}\r\nContent-Type: application/json\r\n"
    )
    begun = time.monotonic()
    answer = raw(world, f"{head}Content-Length: 99999999999\r\n\r\n".encode())
    assert b"413" in answer.splitlines()[0] and time.monotonic() - begun < 0.5


def test_a_huge_body_of_no_stated_length_is_refused(world: World) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    headers = {**world.headers("ann"), "content-type": "application/json"}
    reply = HTTP.post(f"{world.url}/chat/completions", content=parts(), headers=headers)
    assert reply.status_code == 413 and refusal(reply)


def test_the_largest_body_is_taken(world: World) -> None:
    body = json.dumps({"model": "ann", "messages": [{"role": "user", "content": "hi"}]}).encode()
    assert ask(world, body + b" " * (20_000 - len(body))).status_code == 200


def test_slow_headers_and_slow_bodies_come_to_an_end(world: World) -> None:
    begun = time.monotonic()
    assert raw(world, b"GET /healthz HTTP/1.1\r\nHost: loc") == b""
    assert raw(world, b"") == b""
    assert 1.0 < time.monotonic() - begun < 4
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n"
        f"Authorization: Bearer {world.tokens['ann']}\r\nContent-Type: application/json\r\n\r\n{{"
    )
    answer = raw(world, head.encode())
    assert b" 408 " in answer.splitlines()[0] and b'"error"' in answer


def test_a_dripping_header_comes_to_an_end(world: World) -> None:
    host, port = world.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < 3:
                client.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - begun < 2


# How much ---------------------------------------------------------------------------


def test_a_bucket_fills_up_over_a_minute() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    for _ in range(60):
        assert bucket.wait(1) == 0
        bucket.take(1)
    assert bucket.wait(1) == 1.0
    now[0] = 0.5
    assert bucket.wait(1) == 0.5
    now[0] = 3600
    assert bucket.level == 60
    bucket.take(90)
    assert bucket.wait(1) == 31


def test_requests_and_tokens_a_minute_are_limited_per_token() -> None:
    now = [0.0]
    config = ServeConfig(requests_per_minute=2, tokens_per_minute=100)  # type: ignore[call-arg]
    limits = Limits(config, lambda: now[0])
    limits.count("a")
    limits.spend("a", 130)
    assert limits.headers("a")["x-ratelimit-remaining-tokens"] == "0"
    assert limits.headers("a")["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(ApiError) as caught:
        limits.count("a")
    assert caught.value.status == 429 and caught.value.headers == {"Retry-After": "19"}
    limits.count("b")
    limits.count("b")
    with pytest.raises(ApiError, match="2 requests"):
        limits.count("b")
    now[0] = 19
    limits.count("a")


def test_the_client_is_told_when_to_come_back(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann", "bob"])
    config = ServeConfig(requests_per_minute=2)  # type: ignore[call-arg]
    with serving(homes, FakeEngine(), config) as world:
        first = ask(world)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        ask(world)
        with pytest.raises(openai.RateLimitError) as caught:
            world.client("ann").completions.create(model="ann", prompt="x")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "rate_limit_exceeded"
        assert world.client("bob").completions.create(model="bob", prompt="x").choices


def test_tokens_that_were_used_are_counted(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann"])
    with serving(homes, FakeEngine(), ServeConfig(tokens_per_minute=60)) as world:  # type: ignore[call-arg]
        own = {"model": "ann", "messages": [{"role": "user", "content": "the secret of ann?"}]}
        used = ask(world, own).json()["usage"]["total_tokens"]
        assert used > 60
        reply = ask(world, own)
        assert reply.status_code == 429 and "60 tokens per minute" in refusal(reply)["message"]
        assert 0 < int(reply.headers["retry-after"]) <= used - 60 + 1


def test_one_token_cannot_take_all_places(world: World) -> None:
    world.engine.answer, world.engine.delay = "x" * 80, 0.1

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(timeout=20) as client:

            async def one(profile: str) -> int:
                body = {"model": profile, "messages": [{"role": "user", "content": "x"}]}
                headers = world.headers(profile)
                reply = await client.post(
                    f"{world.url}/chat/completions", json=body, headers=headers
                )
                assert reply.status_code == 200 or reply.headers["retry-after"] == "1"
                return reply.status_code

            mine = [asyncio.create_task(one("ann")) for _ in range(4)]
            await asyncio.sleep(0.3)
            other = [asyncio.create_task(one("bob")) for _ in range(2)]
            return [await asyncio.gather(*mine), await asyncio.gather(*other)]

    ann, bob = asyncio.run(run())
    assert sorted(ann) == [200, 200, 429, 429]
    assert sorted(bob) == [200, 503]  # three places in all
    world.engine.delay = 0.0
    assert ask(world).status_code == 200  # all of them are free again


def test_an_answer_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann"])
    engine = FakeEngine(delay=0.05, answer="x" * 8000)
    config = ServeConfig(answer_seconds=0.3)  # type: ignore[call-arg]
    with serving(homes, engine, config) as world:
        reply = ask(world, {"model": "generic", "messages": [{"role": "user", "content": "x"}]})
        assert reply.status_code == 503 and "too long" in refusal(reply)["message"]
        with pytest.raises(openai.APIError, match="too long"):
            list(world.client("ann").completions.create(model="generic", prompt="x", stream=True))
        assert engine.cancelled == 2 and engine.tokens < 40


def test_too_many_prompts_are_refused(world: World) -> None:
    body = {"model": "ann", "prompt": ["x"] * 4}
    reply = HTTP.post(f"{world.url}/completions", json=body, headers=world.headers("ann"))
    assert reply.status_code == 400 and refusal(reply)["param"] == "prompt"
    several = {"model": "ann", "prompt": ["x"] * 2, "n": 2}
    reply = HTTP.post(f"{world.url}/completions", json=several, headers=world.headers("ann"))
    assert reply.status_code == 400 and "3 answers" in refusal(reply)["message"]


def test_the_context_can_be_made_shorter(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann"])
    with serving(homes, FakeEngine(), ServeConfig(context=16)) as world:  # type: ignore[call-arg]
        body = {"model": "ann", "messages": [{"role": "user", "content": "a b c d " * 10}]}
        assert refusal(ask(world, body))["code"] == "context_length_exceeded"
        assert ask(world).status_code == 200


# What is told -----------------------------------------------------------------------


def test_every_response_has_an_id_of_its_own(world: World) -> None:
    replies = [
        ask(world),
        ask(world, b"{"),
        HTTP.get(f"{world.root}/healthz"),
        HTTP.get(world.url),
    ]
    numbers = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(numbers)) == 4 and all(number.startswith("req_") for number in numbers)
    forged = ask(world, headers={**world.headers("ann"), "X-Request-Id": "mine"})
    assert forged.headers["x-request-id"].startswith("req_")
    assert all(reply.headers["x-content-type-options"] == "nosniff" for reply in replies)


def test_healthz(world: World) -> None:
    reply = HTTP.get(f"{world.root}/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


def test_metrics_count_and_hold_no_texts(world: World) -> None:
    def read() -> dict[tuple[str, str], float]:
        text = HTTP.get(f"{world.root}/metrics").text
        assert "ann" not in text and "bob" not in text and "hi" not in text.split()
        return {
            (sample.name, "".join(sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "le" not in sample.labels
        }  # fmt: skip

    before = read()
    ask(world)
    ask(world, b"{")
    HTTP.get(f"{world.url}/nothing/ann", headers=world.headers("ann"))
    after = read()

    def more(name: str, labels: str = "") -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    chat = "/v1/chat/completions"
    assert more("pfi_requests_total", f"{chat}200") == 1
    assert more("pfi_requests_total", f"{chat}400") == 1
    assert more("pfi_requests_total", "404other") == 1
    assert more("pfi_request_seconds_count", chat) == 2
    assert more("pfi_first_token_seconds_count") == 1
    assert more("pfi_engine_new_tokens_total") > 1
    assert after["pfi_answering", ""] == 0


def test_metrics_are_not_for_everybody(world: World) -> None:
    url = f"{world.root}/metrics"
    assert HTTP.get(url, headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 401
    near = HTTP.get(url, headers={"X-Forwarded-For": "1.2.3.4", **world.headers("ann")})
    assert near.status_code == 200

    async def from_elsewhere(headers: dict[str, str]) -> int:
        transport = httpx.ASGITransport(world.app, client=("10.0.0.9", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/metrics", headers=headers)).status_code

    assert asyncio.run(from_elsewhere({})) == 401
    assert asyncio.run(from_elsewhere(world.headers("bob"))) == 200


def test_logs_hold_neither_texts_nor_tokens_nor_queries(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError(" ".join(("private", "words")))

    caplog.set_level(logging.DEBUG)
    HTTP.get(f"{world.root}/healthz?token=hidden")
    monkeypatch.setattr(world.service, "prepare", broken)
    body = {"model": "ann", "messages": [{"role": "user", "content": "private words"}]}
    reply = ask(world, body)
    assert reply.status_code == 500
    end = time.monotonic() + 10  # the line of a request is written after its response
    text = ""
    while "/v1/chat/completions 500" not in text and time.monotonic() < end:
        time.sleep(0.01)
        records = [record for record in caplog.records if "httpx" not in record.name]
        text = "\n".join(record.getMessage() for record in records)
    assert "ValueError" in text and "/v1/chat/completions 500" in text and "broken" in text
    assert reply.headers["x-request-id"] in text
    for private in ("private words", "hidden", world.tokens["ann"]):
        assert private not in text
    assert not any(record.exc_info for record in caplog.records)


def test_the_description_names_no_other_host(world: World) -> None:
    for path in ("/docs", "/redoc"):  # they would load scripts from elsewhere
        assert HTTP.get(f"{world.root}{path}").status_code == 404


# Settings ---------------------------------------------------------------------------


def test_profiles_that_cannot_be_served(tmp_path: Path) -> None:
    make_homes(tmp_path, ["generic", "minilm", "ann"], records=0)
    for name in ("generic", "minilm"):
        with pytest.raises(ConfigError, match=name):
            Service.open(["ann", name], root=tmp_path)
    with pytest.raises(ConfigError, match="no profile"):
        Service.open([], root=tmp_path)
    assert Service.open(["ann"], root=tmp_path).profiles == ("ann",)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="port"):
        replace_config(ServeConfig(), port=70000)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="engine"):
        replace_config(ServeConfig(), engine="magic")  # type: ignore[call-arg]
