"""Ollama's API: what its clients ask, in lines of JSON and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve_world import FakeEngine, WordEmbedder, World, make_homes, serving

CALL = '<tool_call>{"name": "now", "arguments": {"zone": "x"}}</tool_call>'
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(make_homes(tmp_path_factory.mktemp("homes"), ["ann"]), FakeEngine()) as world:
        world.service._embedder = WordEmbedder()  # type: ignore[assignment]
        yield world


@pytest.fixture
def http(world: World) -> Iterator[httpx.Client]:
    base, headers = f"{world.root}/api", world.headers("ann")
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        yield client
    world.engine.answer = None


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    assert reply.text.endswith("\n")
    return [json.loads(line) for line in reply.text.splitlines()]


def test_chat_streams_lines_unless_told_otherwise(world: World, http: httpx.Client) -> None:
    world.engine.answer = "good morning to you"
    ask = {"model": "ann:latest", "messages": user("hi")}
    *parts, last = lines(http.post("/chat", json=ask))
    assert "".join(part["message"]["content"] for part in parts) == "good morning to you"
    assert len(parts) > 1 and not any(part["done"] for part in parts)
    assert last["done"] and last["done_reason"] == "stop" and last["message"]["content"] == ""
    assert last["eval_count"] == len(parts) and last["prompt_eval_count"] > 0
    assert last["total_duration"] >= last["eval_duration"] > 0
    whole = http.post("/chat", json={**ask, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "good morning to you"}
    assert whole["done"] and whole["model"] == "ann" and whole["pfi"]["task"] == "instruction"


def test_options_reach_the_engine(world: World, http: httpx.Client) -> None:
    options = {
        "temperature": 0.7, "top_p": 0.5, "top_k": 9, "min_p": 0.1, "seed": 7, "num_predict": 11,
        "repeat_penalty": 1.1, "stop": ["END", ""], "num_ctx": 4096, "mirostat": 0,
    }  # fmt: skip
    http.post("/chat", json={"model": "generic", "messages": user("x"), "options": options})
    sampling = world.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (
        0.7, 0.5, 9, 0.1,
    )  # fmt: skip
    assert (sampling.seed, sampling.max_tokens, sampling.stop) == (7, 11, ("END",))
    assert sampling.repetition_penalty == 1.1
    for limit in (-1, -2):
        ask = {"model": "generic", "messages": user("x"), "options": {"num_predict": limit}}
        http.post("/chat", json=ask)
        assert world.engine.requests[-1].sampling.max_tokens > 1000


@pytest.mark.parametrize("penalty", [0, 0.0, None])
def test_no_penalty_is_none(world: World, http: httpx.Client, penalty: float | None) -> None:
    world.engine.answer = "yes"
    options = {"repeat_penalty": penalty}
    ask = {"model": "generic", "messages": user("x"), "options": options, "stream": False}
    assert http.post("/chat", json=ask).status_code == 200
    assert world.engine.requests[-1].sampling.repetition_penalty is None
    ask["options"] = {"repeat_penalty": -1}
    assert http.post("/chat", json=ask).status_code == 400


def test_tools_and_their_results(world: World, http: httpx.Client) -> None:
    world.engine.answer = CALL
    ask: dict[str, Any] = {"model": "ann", "messages": user("time?"), "tools": [NOW]}
    reply = http.post("/chat", json={**ask, "stream": False}).json()
    (call,) = reply["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": {"zone": "x"}}
    streamed = lines(http.post("/chat", json=ask))
    assert streamed[0]["message"]["tool_calls"][0]["function"] == call["function"]
    world.engine.answer = "nine"
    result = {"role": "tool", "tool_name": "now", "content": "half past nine"}
    turns = [*ask["messages"], reply["message"], result]
    again = http.post("/chat", json={**ask, "messages": turns, "stream": False})
    assert again.json()["message"]["content"] == "nine"
    text = world.engine.prompter.text(world.engine.requests[-1].prompt)
    assert '"zone": "x"' in text and "half past nine" in text


@pytest.mark.parametrize("form", ["json", {"type": "object"}, {"enum": ["a"]}, ""])
def test_a_format_is_a_grammar(world: World, http: httpx.Client, form: Any) -> None:
    ask = {"model": "generic", "messages": user("x"), "format": form, "stream": False}
    assert http.post("/chat", json=ask).status_code == 200
    assert (world.engine.requests[-1].sampling.grammar is not None) == bool(form)


def test_generate_answers_a_prompt(world: World, http: httpx.Client) -> None:
    world.engine.answer = "blue, mostly"
    ask = {"model": "generic", "prompt": "Why?", "system": "Be brief."}
    *parts, last = lines(http.post("/generate", json=ask))
    assert "".join(part["response"] for part in parts) == "blue, mostly" and last["done"]
    text = world.engine.prompter.text(world.engine.requests[-1].prompt)
    assert text.index("Be brief.") < text.index("Why?")
    whole = http.post("/generate", json={**ask, "stream": False}).json()
    assert whole["response"] == "blue, mostly"
    for field, value in (
        ("suffix", "end"), ("images", ["aGk="]), ("raw", True), ("context", [1]),
    ):  # fmt: skip
        reply = http.post("/generate", json={**ask, field: value})
        assert reply.status_code == 400 and field in reply.json()["error"]


def test_an_empty_request_loads_the_model(world: World, http: httpx.Client) -> None:
    count = len(world.engine.requests)
    for path, body in (("/generate", {}), ("/chat", {"messages": []})):
        reply = http.post(path, json={"model": "ann", **body})
        assert reply.json()["done_reason"] == "load"
    assert len(world.engine.requests) == count


def test_models_and_versions(http: httpx.Client) -> None:
    names = [model["name"] for model in http.get("/tags").json()["models"]]
    assert names == ["ann", "ann/instruction", "generic", "minilm"]
    assert [model["name"] for model in http.get("/ps").json()["models"]] == names
    shown = http.post("/show", json={"model": "ann"}).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["pfi.context_length"] > 100
    assert http.post("/show", json={"name": "minilm"}).json()["capabilities"] == ["embedding"]
    assert http.post("/show", json={}).status_code == 400
    assert http.get("/version").json()["version"].count(".") == 2


def test_embeddings_old_and_new(http: httpx.Client) -> None:
    both = http.post("/embed", json={"model": "minilm", "input": ["one", "two words"]}).json()
    assert len(both["embeddings"]) == 2 and both["prompt_eval_count"] == 3
    one = http.post("/embed", json={"model": "minilm:latest", "input": "one"}).json()
    assert one["embeddings"] == both["embeddings"][:1]
    assert http.post("/embed", json={"model": "minilm", "input": []}).json()["embeddings"] == []
    old = http.post("/embeddings", json={"model": "minilm", "prompt": "one"}).json()
    assert old["embedding"] == both["embeddings"][0]


def test_errors_are_a_text(world: World, http: httpx.Client) -> None:
    unknown = http.post("/chat", json={"model": "nobody", "messages": user("x")})
    assert unknown.status_code == 404 and "nobody" in unknown.json()["error"]
    other = http.post("/pull", json={"model": "x"})
    assert other.status_code == 404 and "/api/chat" in other.json()["error"]
    images = [{"role": "user", "content": "x", "images": ["aGk="]}]
    assert "images" in http.post("/chat", json={"model": "ann", "messages": images}).json()["error"]
    long = http.post("/chat", json={"model": "ann", "messages": user("the " * 3000)})
    assert long.status_code == 400 and "context length" in long.json()["error"]
    wrong = http.post(
        "/chat", json={"model": "ann", "messages": user("x"), "options": {"temperature": "hot"}}
    )
    assert wrong.json()["error"] == "options.temperature: must be a number"


def test_nothing_is_told_without_a_token(world: World) -> None:
    for path in ("tags", "version", "ps"):
        assert httpx.get(f"{world.root}/api/{path}", timeout=60).status_code == 401
    assert httpx.post(f"{world.root}/api/chat", json={}, timeout=60).status_code == 401
