"""A small OpenAI-compatible server that goes wrong on purpose, for tests of teachers.

Its answers follow from the conversation and the seed alone, so that runs can be compared.

    with FaultServer(["500", "ok", "drop"]) as server:
        config = TeacherConfig(kind="openai", model="m", base_url=server.url)
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What can be scripted: HTTP statuses, what happens to the connection, what is in the answer.
STATUSES = {"400", "401", "402", "403", "404", "408", "409", "429", "429-after", "500", "503"}
BREAKS = {"slow", "drop", "drop-body", "cut-body", "not-json", "redirect"}
CONTENTS = {"ok", "cut-json", "length", "wrong-schema", "prose", "empty", "refusal", "no-choice"}
#: Faults after which the same request, sent again, succeeds.
PASSING = ("429", "429-after", "500", "drop", "drop-body", "cut-body", "slow")

WORDS = ["calm", "bright", "river", "early", "lemon", "quiet", "garden", "paper", "silver", "story"]


@dataclass(frozen=True)
class Request:
    """One request as it came; ``time`` is of the monotonic clock."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    fault: str
    time: float

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")


class FaultServer:
    """The server; a context manager.

    Args:
        faults: what happens to each request, by order of arrival; ``ok`` when they are used up.
        rate: share of the requests that suffer one of ``kinds``; decided by the seed, the
            request's idempotency key and how often it came, not by the order of arrival.
        kinds: the faults of ``rate``.
        seed: of ``rate``.
        most: most faults by ``rate`` that one idempotency key suffers.
        answer: the content of an answer, from the request's body; made up when None.
        delay: seconds that ``slow`` takes.
        retry_after: seconds that ``429-after`` asks for.
        latency: seconds that any answer takes.
        refuse: parameters that are refused with the status ``refuse_status``.
        ignore: parameters that are taken but have no effect.
        api_key: the only key that is let in; any when None.
        usage: whether tokens are counted.
    """

    def __init__(
        self,
        faults: Sequence[str] = (),
        *,
        rate: float = 0.0,
        kinds: Sequence[str] = PASSING,
        seed: int = 0,
        most: int = 3,
        answer: Callable[[dict[str, Any]], str] | None = None,
        delay: float = 0.5,
        retry_after: float = 0.1,
        latency: float = 0.0,
        refuse: Collection[str] = (),
        refuse_status: int = 400,
        ignore: Collection[str] = (),
        api_key: str | None = None,
        usage: bool = True,
    ) -> None:
        assert set(faults) | set(kinds) <= STATUSES | BREAKS | CONTENTS
        self.faults, self.rate, self.kinds, self.seed, self.most = (
            list(faults),
            rate,
            kinds,
            seed,
            most,
        )
        self.answer = answer or made_up
        self.delay, self.retry_after, self.latency = delay, retry_after, latency
        self.refuse, self.refuse_status, self.ignore = refuse, refuse_status, ignore
        self.api_key, self.usage = api_key, usage
        #: Every request that came.
        self.requests: list[Request] = []
        #: Answers sent whole to someone who was there to receive them, by idempotency key; those
        #: with useless content, too: they would have been billed.
        self.paid: Counter[str] = Counter()
        #: The most requests that were being answered at the same time.
        self.most_at_once = 0
        self._at_once = 0
        self._seen: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.daemon = True

    @property
    def url(self) -> str:
        """The ``base_url`` to give to clients."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def arrive(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[str, str]:
        """Note a request; what happens to it, and the parameter that is refused."""
        refused = next((name for name in self.refuse if name in body), "")
        with self.lock:
            key = headers.get("idempotency-key", "")
            fault = "refuse" if refused else self._fault(key)
            self.requests.append(Request(path, headers, body, fault, time.monotonic()))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return fault, refused

    def leave(self) -> None:
        """Note that a request is done with."""
        with self.lock:
            self._at_once -= 1

    def _fault(self, key: str) -> str:
        if self.faults:
            return self.faults.pop(0)
        self._seen[key] += 1
        dice = random.Random(f"{self.seed} {key} {self._seen[key]}")
        if self._failed[key] >= self.most or dice.random() >= self.rate:
            return "ok"
        self._failed[key] += 1
        return dice.choice(self.kinds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Tests need no log."""

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault, refused = owner.arrive(self.path, headers, body)
        try:
            key = headers.get("authorization", "").removeprefix("Bearer ")
            if owner.api_key is not None and key != owner.api_key:
                fault = "401"
            owner.closing.wait(owner.delay if fault == "slow" else owner.latency)
            if fault == "refuse":
                self._refuse(refused)
            elif fault in STATUSES:
                self._fail(fault, key)
            else:
                self._answer(fault, body, headers.get("idempotency-key", ""))
        finally:
            owner.leave()

    def _refuse(self, name: str) -> None:
        status = self.server.owner.refuse_status
        if status == 422:  # as servers built on FastAPI
            self._json(422, {"detail": f"Unexpected fields in the request: {{'{name}'}}"})
            return
        error = {"message": f"Unsupported parameter: '{name}'", "param": name, "code": "x"}
        self._json(status, {"error": error})

    def _fail(self, fault: str, key: str) -> None:
        status = int(fault[:3])
        head = {"Retry-After": f"{self.server.owner.retry_after}"} if fault == "429-after" else {}
        message = f"fault {fault} for key {key}"  # real servers repeat keys, too
        self._json(status, {"error": {"message": message, "type": "fault"}}, head)

    def _answer(self, fault: str, body: dict[str, Any], key: str) -> None:
        owner = self.server.owner
        seen = {name: value for name, value in body.items() if name not in owner.ignore}
        whole = owner.answer(seen)
        content: str | None = {
            "cut-json": whole[: len(whole) // 2],
            "length": whole[: len(whole) // 2],
            "wrong-schema": '{"unexpected": true}',
            "prose": f"Of course, here it is:\n```json\n{whole}\n```\nAnything else?",
            "empty": "",
            "refusal": None,
        }.get(fault, whole)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if fault == "refusal":
            message["refusal"] = "I would rather not."
        why = "length" if fault == "length" else "stop"
        answer: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": why}],
        }
        if fault == "no-choice":
            answer["choices"] = []
        if owner.usage:
            prompt = sum(len(message["content"]) for message in body["messages"]) // 4 + 1
            new = len(content or "") // 4 + 1
            answer["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": new,
                "total_tokens": prompt + new,
            }
        data = json.dumps(answer).encode()
        if fault == "redirect":
            self._json(307, {}, {"Location": "http://127.0.0.1:1/v1/chat/completions"})
        elif fault == "not-json":
            self._send(200, b"<html>Welcome to the hotel</html>", {"Content-Type": "text/html"})
        elif fault in ("drop", "drop-body", "cut-body"):
            self.close_connection = True
            if fault == "drop-body":  # breaks off before the length that it announced
                self._head(200, {"Content-Length": str(len(data))})
            elif fault == "cut-body":  # announces none, so that the end looks like one
                self._head(200, {"Connection": "close"})
            if fault != "drop":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif not self._gone():
            self._send(200, data, {})
            with owner.lock:
                owner.paid[key] += 1

    def _gone(self) -> bool:
        """Whether the client has hung up."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _json(self, status: int, body: object, head: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), head or {})

    def _send(self, status: int, data: bytes, head: dict[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(data)), **head})
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _head(self, status: int, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **head}.items():
            self.send_header(name, value)
        self.end_headers()


def made_up(body: dict[str, Any]) -> str:
    """An answer that follows from conversation and seed: text, or JSON where that was asked for.

    The schema is taken from `response_format`, or else from the words of the system message.
    """
    said = [[message["role"], message["content"]] for message in body["messages"]]
    digest = hashlib.sha256(json.dumps([said, body.get("seed")]).encode()).hexdigest()
    dice = random.Random(digest)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is None:
        system = " ".join(content for role, content in said if role == "system")
        schema = _schema_in(system)
    if schema is None:
        return " ".join(dice.choices(WORDS, k=8))
    return json.dumps(_example(schema, schema.get("$defs", {}), dice))


def _schema_in(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text that looks like the schema of one."""
    begin = text.find("{")
    while begin >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text, begin)
        except ValueError:
            found = {}
        if found.get("type") == "object" and "properties" in found:
            return found
        begin = text.find("{", begin + 1)
    return None


def _example(schema: dict[str, Any], parts: dict[str, Any], dice: random.Random) -> Any:
    """A value of a JSON schema of the kind that pydantic writes."""
    if "$ref" in schema:
        return _example(parts[schema["$ref"].rpartition("/")[2]], parts, dice)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return dice.choice(schema["enum"])
    for one in ("anyOf", "allOf", "oneOf"):
        if one in schema:
            return _example(schema[one][0], parts, dice)
    kind = schema.get("type", "string")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _example(field, parts, dice) for name, field in fields.items()}
    if kind == "array":
        count = max(schema.get("minItems", 0), min(schema.get("maxItems", 2), 2))
        return [_example(schema.get("items", {}), parts, dice) for _ in range(count)]
    if kind == "boolean":
        return dice.random() < 0.5
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", low + 9)
        return dice.randint(int(low), int(high)) if kind == "integer" else dice.uniform(low, high)
    return None if kind == "null" else " ".join(dice.choices(WORDS, k=6))
