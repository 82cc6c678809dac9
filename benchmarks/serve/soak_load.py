"""Requests of a soak: what real and careless programs send, and what each must be answered with.

Every user's records hold a word that only theirs do; a response that shows another user's word has
crossed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: A planted word; what stands first is its user's number.
WORD = re.compile(r"u(\d\d)-[0-9a-f]{8}")
THINGS = (
    "amulet", "barometer", "compass", "diary", "easel", "flute", "globe", "hammock", "inkwell",
    "kettle", "lantern", "mandolin",
)  # fmt: skip
TOKENS = 8  # of an answer


def name_of(user: int) -> str:
    """A user's profile."""
    return f"user{user:02}"


def word_of(user: int, seed: int = 0) -> str:
    """The word that only this user's records hold."""
    return f"u{user:02}-{random.Random(f'{seed} {user}').getrandbits(32):08x}"


def question_of(thing: str) -> str:
    """What a record about a thing was asked."""
    return f"Where did I put the {thing}?"


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        kind: in the tables.
        user: whose token it has; None for none.
        path: below the server's address.
        body: JSON, or bytes that are none.
        statuses: what it may be answered with.
        leave: the client closes its connection, ``"at once"`` or ``"midway"``; else empty.
        matches: whether it asks about one of the user's records.
        get: whether it is a GET.
    """

    kind: str
    user: int | None
    path: str
    body: dict[str, Any] | bytes = field(default_factory=dict)
    statuses: tuple[int, ...] = (200,)
    leave: str = ""
    matches: bool = False
    get: bool = False

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


#: Of a hundred requests, how many are of each kind.
MIX = {
    "chat": 22,
    "chat, stream": 18,
    "completions": 5,
    "responses": 7,
    "responses, stream": 4,
    "ollama chat": 7,
    "ollama generate": 5,
    "json schema": 3,
    "models": 5,
    "embeddings": 4,
    "bad": 12,
    "cancelled": 8,
}


def requests(count: int, users: int, seed: int) -> Iterator[Asked]:
    """So many requests in a random order; the same seed gives the same ones."""
    rng = random.Random(seed)
    kinds, weights = list(MIX), list(MIX.values())
    for _ in range(count):
        yield _request(rng.choices(kinds, weights)[0], rng.randrange(users), users, rng)


def _request(kind: str, user: int, users: int, rng: random.Random) -> Asked:
    model = name_of(user)
    matches = rng.random() < 0.7
    thing = rng.choice(THINGS)
    text = question_of(thing) if matches else rng.choice(("Tell me a joke.", "2 + 2?", "你好吗?"))
    turns: list[dict[str, Any]] = [{"role": "user", "content": text}]
    if rng.random() < 0.3:
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello."},
            *turns,
        ]
    chat = {"model": model, "messages": turns, "max_tokens": TOKENS}
    if kind == "bad":
        return _bad(user, (user + 1) % users, chat, rng)
    if kind == "cancelled":
        leave = rng.choice(("at once", "midway"))
        long = {**chat, "max_tokens": 200, "stream": leave == "midway"}
        return Asked(kind, user, "/v1/chat/completions", long, leave=leave, matches=matches)
    told = {"num_predict": TOKENS}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("/v1/chat/completions", {**chat, "temperature": rng.choice((0, 1))}),
        "chat, stream": ("/v1/chat/completions", {**chat, "stream": True}),
        "completions": ("/v1/completions", {"model": model, "prompt": text, "max_tokens": TOKENS}),
        "responses": ("/v1/responses", {"model": model, "input": text, "max_output_tokens": 16}),
        "responses, stream": (
            "/v1/responses",
            {"model": model, "input": turns, "max_output_tokens": 16, "stream": True},
        ),
        "ollama chat": ("/api/chat", {"model": model, "messages": turns, "options": told}),
        "ollama generate": (
            "/api/generate",
            {"model": model, "prompt": text, "options": told, "stream": rng.random() < 0.5},
        ),
        "json schema": (
            "/v1/chat/completions",
            {**chat, "max_tokens": 24, "response_format": {"type": "json_object"}},
        ),
    }
    if kind == "models":
        return Asked(kind, user, rng.choice(("/v1/models", "/api/tags")), get=True)
    if kind == "embeddings":  # 404 where no sentence model is installed
        body = {"model": "minilm", "input": [text, thing]}
        return Asked(kind, user, "/v1/embeddings", body, (200, 404))
    path, body = asked[kind]
    return Asked(kind, user, path, body, matches=matches)


def _bad(user: int, other: int, chat: dict[str, Any], rng: random.Random) -> Asked:
    """What is refused, each in its own way."""
    url = "/v1/chat/completions"
    deep = b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    bodies: list[tuple[dict[str, Any] | bytes, int]] = [
        (b'{"model": "user', 400),
        (b"\xff\xfe\x00", 400),
        (deep, 400),
        ({**chat, "messages": []}, 400),
        ({**chat, "messages": "hello"}, 400),
        ({**chat, "temperature": 99}, 400),
        ({**chat, "max_tokens": "many"}, 400),
        ({**chat, "n": 99}, 400),
        ({**chat, "model": name_of(other)}, 404),
        ({**chat, "model": "../../etc/passwd"}, 404),
        ({**chat, "messages": [{"role": "user", "content": "word " * 5000}]}, 400),
        ({**chat, "response_format": {"type": "json_schema"}}, 400),
        ({**chat, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
    ]
    choice = rng.randrange(len(bodies) + 2)
    if choice == len(bodies):
        return Asked("bad", None, url, chat, (401,))
    if choice > len(bodies):
        return Asked("bad", user, "/v1/nothing", chat, (404,))
    body, status = bodies[choice]
    return Asked("bad", user, url, body, (status,))


def texts_of(body: bytes) -> str:
    """All texts of a response, those of a stream's pieces joined, in the order they came."""
    plain = body.decode("utf-8", "replace")
    whole: list[str] = []
    for line in plain.splitlines():
        line = line.removeprefix("data: ").strip()
        if line.startswith(("{", "[")):
            try:
                whole += _strings(json.loads(line))
            except ValueError:
                continue
    return plain + "\n" + "".join(whole)


def _strings(value: Any, name: str = "") -> Iterator[str]:
    """The texts that a model or a memory wrote, in a response's JSON."""
    if isinstance(value, str) and name in ("content", "delta", "response", "text"):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, name)


def crossed(asked: Asked, body: bytes) -> list[str]:
    """The planted words of other users that a response shows."""
    own = "--" if asked.user is None else f"{asked.user:02}"
    others = (match[0] for match in WORD.finditer(texts_of(body)) if match[1] != own)
    return list(dict.fromkeys(others))
