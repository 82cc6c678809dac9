"""packages: aiohttp

Open WebUI's back end needs torch; these are the requests that it sends (its routers `openai.py`
and `ollama.py`, its middleware, and the tasks of its chats), by the client that it sends them by.
"""

import asyncio
import json
import os
from typing import Any

import aiohttp

BASE, ROOT = os.environ["BASE"], os.environ["ROOT"]
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer " + os.environ["KEY"],
    "X-OpenWebUI-User-Name": "Ann%20Bee",
    "X-OpenWebUI-User-Id": "7",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "c1",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
        },
    },
}
#: What a user may set for a model, and what its own defaults add.
PARAMETERS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repeat_penalty": 1.1,
    "max_tokens": 40,
    "seed": 7,
    "stop": ["###"],
    "logit_bias": {"5": -10},
    "reasoning_effort": "low",
    "response_format": {"type": "text"},
    "stream_options": {"include_usage": True},
}


async def main() -> None:
    """A connection is tried, then chats with what they bring."""
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        await tried(session)
        await chats(session)
        await tasks(session)
        await of_ollama(session)


async def tried(session: aiohttp.ClientSession) -> None:
    """The list of models is what tells a connection."""
    async with session.get(f"{BASE}/models") as reply:
        models = (await reply.json())["data"]
    assert all(model["id"] and model["object"] == "model" for model in models)
    async with session.get(f"{BASE}/models", headers={"Authorization": "Bearer no"}) as reply:
        assert reply.status == 401 and (await reply.json())["error"]["message"]
    async with session.get(f"{ROOT}/api/version") as reply:
        assert (await reply.json())["version"]
    async with session.get(f"{ROOT}/api/tags") as reply:
        assert (await reply.json())["models"][0]["model"]
    async with session.get(f"{ROOT}/api/ps") as reply:
        assert "models" in await reply.json()


async def chats(session: aiohttp.ClientSession) -> None:
    """A stream with all that can be set, a call in it, and what goes on from there."""
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the time?"}]},
    ]
    ask = {"model": "ann", "stream": True, **PARAMETERS}
    chunks = await stream(session, {**ask, "messages": talk})
    assert any(chunk.get("usage") for chunk in chunks)
    chunks = await stream(
        session, {**ask, "messages": talk, "tools": [TOOL], "tool_choice": "required"}
    )
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            for part in choice["delta"].get("tool_calls") or []:
                calls.append(part)
    assert all(
        json.loads(call["function"]["arguments"])["zone"] in ("UTC", "CET") for call in calls
    )
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "noon"} for call in calls]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    assert await stream(session, {**ask, "messages": [*talk, said, *results], "tools": [TOOL]})
    # An answer that was stopped is gone on with.
    assert await stream(
        session, {**ask, "messages": [*talk, {"role": "assistant", "content": "It"}]}
    )
    # A user leaves while the answer comes.
    async with session.post(f"{BASE}/chat/completions", json={**ask, "messages": talk}) as reply:
        await reply.content.readany()


async def stream(session: aiohttp.ClientSession, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream."""
    async with session.post(f"{BASE}/chat/completions", data=json.dumps(body)) as reply:
        assert reply.status == 200, await reply.text()
        assert "text/event-stream" in reply.headers["Content-Type"]
        lines = [line.decode().strip() async for line in reply.content]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def tasks(session: aiohttp.ClientSession) -> None:
    """Titles, tags and follow-ups of a chat are asked for whole; texts become vectors."""
    body = {
        "model": "ann",
        "messages": [{"role": "user", "content": "### Task:\nA title as JSON."}],
        "stream": False,
        "max_completion_tokens": 30,
    }
    async with session.post(f"{BASE}/chat/completions", json=body) as reply:
        assert (await reply.json())["choices"][0]["message"]["content"] is not None
    body = {"input": ["a", "b"], "model": "minilm"}
    async with session.post(f"{BASE}/embeddings", json=body) as reply:
        assert len((await reply.json())["data"]) == 2
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "ann", "messages": [{"role": "user", "content": [picture]}]}
    async with session.post(f"{BASE}/chat/completions", json=body) as reply:
        assert reply.status == 400 and "image_url" in (await reply.json())["error"]["message"]


async def of_ollama(session: aiohttp.ClientSession) -> None:
    """The same where the connection is one of Ollama's: penalties have other names there."""
    body = {
        "model": "ann:latest",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "keep_alive": "5m",
        "options": {
            "num_predict": 8,
            "repeat_penalty": 0.0,
            "new_topic_penalty": 0.0,
            "num_ctx": 2048,
            "mirostat": 0,
            "temperature": 0.8,
        },
    }
    async with session.post(f"{ROOT}/api/chat", data=json.dumps(body)) as reply:
        assert reply.status == 200, await reply.text()
        lines = [json.loads(line) async for line in reply.content]
    assert lines[-1]["done"] and lines[-1]["eval_count"] >= 0
    body = {"model": "minilm", "input": ["a", "b"], "truncate": True}
    async with session.post(f"{ROOT}/api/embed", json=body) as reply:
        assert len((await reply.json())["embeddings"]) == 2


asyncio.run(main())
