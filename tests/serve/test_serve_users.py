"""Many users at once: nobody gets another's adapter, records or answers."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serve_world import FakeEngine, World, make_homes, serving

from pfi.models.adapters import Adapter
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.home import Home
from pfi.serve import ServeConfig

WIDE: Any = {"running": 400, "running_per_token": 100, "requests_per_minute": 100_000}
WIDE |= {"tokens_per_minute": 10_000_000}


def give_adapter(home: Home, adapter: Adapter) -> None:
    info = AdapterInfo(task="instruction", backbone=home.config.backbone)
    home.personal_adapters.use(home.personal_adapters.add(adapter, info).version)


def marked(number: int) -> Adapter:
    """A tiny adapter whose weights are all that number."""
    settings = {"r": 1, "lora_alpha": 1, "target_modules": ["q"], "peft_type": "LORA"}
    names = ("A", "B")
    weights = {
        f"base_model.model.q.lora_{n}.weight": torch.full((1, 1), 1.0 * number) for n in names
    }
    return Adapter(settings, weights)


async def send(
    client: httpx.AsyncClient, url: str, token: str | None, body: Mapping[str, Any]
) -> tuple[int, str]:
    """The status and the text of an answer, whole or put together."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reply = await client.post(f"{url}/chat/completions", json=body, headers=headers)
    if reply.status_code != 200:
        return reply.status_code, reply.text
    if not body.get("stream"):
        return 200, str(reply.json()["choices"][0]["message"]["content"])
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    return 200, "".join(delta.get("content", "") for delta in deltas)


async def storm(
    world: World, requests: list[tuple[str | None, dict[str, Any]]], at_once: int
) -> list[tuple[int, str]]:
    """All requests, some at a time, in an order of their own."""
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def one(token: str | None, body: dict[str, Any]) -> tuple[int, str]:
            async with gate:
                return await send(client, world.url, token, body)

        return await asyncio.gather(*(one(*request) for request in requests))


@pytest.mark.parametrize(
    ("users", "count"), [(15, 150), pytest.param(50, 1000, marks=pytest.mark.slow)]
)
def test_interleaved_requests_of_many_users_do_not_cross(
    tmp_path: Path, users: int, count: int
) -> None:
    names = [f"user{number:02}x" for number in range(users)]
    homes = make_homes(tmp_path, names, records=2)
    for number, home in enumerate(homes.values()):
        give_adapter(home, marked(number))
    draw, engine = random.Random(7), FakeEngine(delay=0.001, size=24, capacity=users // 3)
    asked: list[tuple[int, str, int]] = []
    requests: list[tuple[str | None, dict[str, Any]]] = []
    with serving(homes, engine, ServeConfig(**WIDE)) as world:
        for turn in range(count):
            user = draw.randrange(users)
            kinds = {"own": 70, "generic": 15, "foreign": 9, "none": 3, "wrong": 3}
            kind = draw.choices(list(kinds), list(kinds.values()))[0]
            other = {"generic": "generic", "foreign": names[(user + 1) % users]}
            token = world.tokens[names[user]]
            body = {
                "model": other.get(kind, names[user]),
                "messages": [
                    {"role": "user", "content": f"earlier {names[user]}"},
                    {"role": "assistant", "content": "yes"},
                    {"role": "user", "content": f"secret {turn} of {names[user]}"},
                ],
                "stream": draw.random() < 0.5,
                "max_tokens": 500,
            }
            requests.append(({"none": None, "wrong": token[:-2] + "zz"}.get(kind, token), body))
            asked.append((user, kind, turn))
        replies = asyncio.run(storm(world, requests, 40))
    for (user, kind, turn), (status, text) in zip(asked, replies, strict=True):
        assert status == {"foreign": 404, "none": 401, "wrong": 401}.get(kind, 200)
        if status != 200:
            assert set(re.findall(r"user\d\dx", text)) <= {names[(user + 1) % users]}
            continue
        assert set(re.findall(r"user\d\dx", text)) == {names[user]}
        assert f"[{homes[names[user]].keys.profile}]" in text
        assert text.endswith(f"secret {turn} of {names[user]}")
        assert text.startswith(f"[adapter {user}]" if kind == "own" else "[no adapter]")
        assert ("secret of" in text) == (kind == "own")
    assert Counter(kind for _, kind, _ in asked)["own"] > 0.6 * count
    assert engine.loads > users  # some were pushed out and read again
    owners = {request.owner for request in engine.requests}
    assert owners == {home.keys.profile for home in homes.values()}


def leave_in_the_middle(world: World, user: str) -> None:
    """A client that goes away frees its row of the batch."""
    before = world.engine.stats().new_tokens
    # So hot that the end token hardly ever comes.
    body = {"model": user, "prompt": "x", "stream": True, "max_tokens": 900, "temperature": 2}
    headers = {"Authorization": f"Bearer {world.tokens[user]}"}
    with httpx.stream("POST", f"{world.url}/completions", json=body, headers=headers) as reply:
        next(reply.iter_raw())
        assert world.engine.stats().running == 1
    until = time.monotonic() + 20
    while world.engine.stats().running and time.monotonic() < until:
        time.sleep(0.01)
    assert world.engine.stats().running == 0
    assert 0 < world.engine.stats().new_tokens - before < 400


def test_a_hundred_requests_of_ten_users_on_the_torch_engine(tmp_path: Path) -> None:
    """Every answer is that of the backbone with the user's own adapter merged in."""
    from engine_world import World as Merged
    from engine_world import make_adapter

    from pfi.inference.torch.engine import TorchEngine
    from pfi.models.backbone import load_backbone

    names = [f"user{number}x" for number in range(10)]
    homes = make_homes(tmp_path, names, records=2)
    questions = {name: f"what is the secret of {name}?" for name in names}  # like their records
    backbone = load_backbone("embedded")
    merged = Merged(backbone, [make_adapter(backbone, number) for number in range(10)])
    for home, adapter in zip(homes.values(), merged.adapters, strict=True):
        give_adapter(home, adapter)
    expected: dict[str, str] = {}
    engine = TorchEngine(load_backbone("embedded"), max_rows=8, capacity=8)
    with serving(homes, engine, ServeConfig(**WIDE)) as world:
        for number, user in enumerate(names):
            ids = world.service.prepare(user, questions[user]).ids
            expected[user] = merged.expected(ids, number, 6)[0]
        asked = [(user, turn % 2 == 1) for turn in range(10) for user in names]
        random.Random(3).shuffle(asked)
        requests = [
            (
                world.tokens[user],
                {
                    "model": user,
                    "messages": [{"role": "user", "content": questions[user]}],
                    "stream": stream,
                    "max_tokens": 6,
                },
            )
            for user, stream in asked
        ]
        replies = asyncio.run(storm(world, requests, 20))
        leave_in_the_middle(world, names[0])
    assert len(set(expected.values())) == 10  # so that a mistake would show
    for (user, _), reply in zip(asked, replies, strict=True):
        assert reply == (200, expected[user])
    assert engine.stats().adapter_loads > 10  # some were pushed out and read again
