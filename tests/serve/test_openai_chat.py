"""Chat completions as clients send them: turns of any kind, options, lengths, plain refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_world import FakeEngine, World, make_homes, replace_config, serving

from pfi.serve import ServeConfig
from pfi.serve.app import create_app


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann"])
    origins = {"origins": ["http://localhost:3000"]}
    config = ServeConfig.model_validate({"requests_per_minute": 10**6, **origins})
    with serving(homes, FakeEngine(), config) as world:
        yield world


@pytest.fixture
def engine(world: World) -> Iterator[FakeEngine]:
    yield world.engine
    world.engine.answer = None


@pytest.fixture(scope="module")
def http(world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=world.url, headers=world.headers("ann"), timeout=20) as client:
        yield client


def chat(http: httpx.Client, *turns: Any, **more: Any) -> httpx.Response:
    messages = [
        {"role": turn[0], "content": turn[1]} if isinstance(turn, tuple) else turn for turn in turns
    ]
    body = {"model": "generic", "max_tokens": 400, "messages": messages, **more}
    return http.post("/chat/completions", json=body)


def prompt(world: World) -> str:
    """What the model was last given to read."""
    return world.engine.prompter.text(world.engine.requests[-1].prompt)


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "x"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "half past nine"}


# Turns ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["generic", "ann"])
@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ([("user", "a"), ("assistant", None), ("user", "b")], ["a", "b"]),
        ([("user", "a"), {"role": "assistant"}, ("user", "b")], ["a", "b"]),
        ([("user", "what time"), CALL, RESULT], ["what time", '"now"', "half past nine"]),
        ([("user", "what time"), CALL, RESULT, ("assistant", "So")], ["half past nine", "So"]),
        ([("user", "t"), CALL, RESULT, ("user", "thanks")], ["half past nine", "thanks"]),
        ([("user", "q"), {**RESULT, "role": "function", "name": "now"}], ["q", "half past nine"]),
        ([("system", "Say hi")], ["Say hi"]),
        ([("developer", "Say hi")], ["Say hi"]),
        ([("system", "one"), ("developer", "two"), ("user", "three")], ["one", "two", "three"]),
        ([("user", "Hi"), ("assistant", "Hel")], ["Hi", "Hel"]),
        ([("user", "Hi"), ("assistant", "")], ["Hi"]),
        ([("user", [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}])],
         ["in parts"]),
        ([("user", {"type": "text", "text": "one part"})], ["one part"]),
        ([("user", ["bare ", "texts"])], ["bare texts"]),
        ([("user", "q"), ("assistant", [{"type": "refusal", "refusal": "I will not"}]),
          ("user", "why")], ["I will not", "why"]),
        ([("user", "one"), ("user", "two")], ["one", "two"]),
    ],
)  # fmt: skip
def test_turns_of_any_kind_are_answered(
    world: World, http: httpx.Client, model: str, turns: list[Any], shown: list[str]
) -> None:
    reply = chat(http, *turns, model=model)
    assert reply.status_code == 200, reply.text
    text = prompt(world)
    places = [text.find(part) for part in shown]
    assert -1 not in places and places == sorted(places)


def test_an_assistants_turn_is_gone_on_with(world: World, http: httpx.Client) -> None:
    chat(http, ("user", "Hi"))
    alone = world.engine.requests[-1].prompt
    chat(http, ("user", "Hi"), ("assistant", "Hello wor"))
    begun = world.engine.requests[-1].prompt
    assert begun[: len(alone)] == alone
    assert world.engine.prompter.text(begun[len(alone) :]) == "Hello wor"
    assert chat(http, ("assistant", "")).status_code == 400  # there is nothing to answer


def test_records_are_retrieved_for_the_users_question_behind_a_call(
    world: World, http: httpx.Client
) -> None:
    turns = [("user", "the secret of ann?"), CALL, RESULT]
    reply = chat(http, *turns, model="ann")
    assert reply.json()["pfi"]["records"] and "answer of ann 2" in prompt(world)


# Options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"stop": [f"s{n}" for n in range(40)]}, {"stop": tuple(f"s{n}" for n in range(40))}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": [""]}, {"stop": ()}),
        ({"stop": None}, {"stop": ()}),
        ({"frequency_penalty": 0.2, "presence_penalty": -1}, {"frequency_penalty": 0.2}),
        ({"logit_bias": {"5": -100, "7": 1.5}}, {"logit_bias": ((5, -100.0), (7, 1.5))}),
        ({"max_tokens": -1}, {"max_tokens": 256}),
        ({"max_tokens": None, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 30, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 10**6}, {"max_tokens": 2048 - 3}),  # what the context has room for
        ({"top_p": 0}, {"top_k": 1}),
        ({"logprobs": True, "top_logprobs": 5}, {"top_logprobs": 5}),
        ({"seed": -3}, {"seed": -3}),
    ],
)  # fmt: skip
def test_options_reach_the_engine(
    world: World, http: httpx.Client, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert chat(http, ("user", "x"), **given).status_code == 200
    sampling = world.engine.requests[-1].sampling
    assert {name: getattr(sampling, name) for name in kept} == kept


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
         "tool_choice": "none"},
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True}},
        {"stream_options": None},
        {"functions": [], "function_call": "none"},
        {"modalities": ["text"], "suffix": None, "best_of": 1},
        {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low",
         "verbosity": "low", "prediction": None, "prompt_cache_key": "x", "safety_identifier": "y",
         "parallel_tool_calls": False, "user": "me", "num_ctx": 9, "unheard_of": [1]},
        {"n": None, "temperature": None, "top_p": None, "seed": None, "logprobs": None},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_taken(
    world: World, http: httpx.Client, given: dict[str, Any]
) -> None:
    reply = chat(http, ("user", "x"), **given)
    assert reply.status_code == 200, reply.text
    assert prompt(world) == "x" and world.engine.requests[-1].sampling.grammar is None


# Lengths ----------------------------------------------------------------------------


def words(count: int) -> str:
    return "the" + " the" * (count - 1)


@pytest.mark.parametrize("model", ["generic", "ann"])
def test_a_conversation_is_read_whole_or_refused(
    world: World, http: httpx.Client, model: str
) -> None:
    longest = world.engine.prompter.max_length
    frame = len(world.engine.prompter.prompt_ids("the")) - 1
    for count in (longest - 200, longest - 97, longest - 10, longest - 1 - frame):
        reply = chat(http, ("user", words(count)), model=model)
        assert reply.status_code == 200
        assert reply.json()["usage"]["prompt_tokens"] == count + frame
    assert world.engine.requests[-1].sampling.max_tokens == 1
    for count in (longest - frame, longest + 500):
        reply = chat(http, ("user", words(count)), model=model)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
        assert f"maximum context length is {longest} tokens" in error["message"]
        assert error["param"] == "messages"


@pytest.mark.parametrize("model", ["generic", "ann"])
def test_no_turn_is_dropped_silently(world: World, http: httpx.Client, model: str) -> None:
    system, long = ("system", "The word is banana."), words(700)
    turns = [system, ("user", long), ("assistant", "ok"), ("user", long)]
    reply = chat(http, *turns, model=model)
    assert reply.status_code == 200 and "banana" in prompt(world)
    assert reply.json()["usage"]["prompt_tokens"] > 1400
    turns = [system, ("user", long), ("assistant", "ok"), ("user", long), ("assistant", "so"),
             ("user", f"{long} last")]  # fmt: skip
    assert chat(http, *turns, model=model).status_code == 400
    reply = chat(http, *turns, model=model, pfi={"truncation": "auto"})
    assert reply.status_code == 200
    assert reply.json()["pfi"]["dropped_turns"] == 2  # the oldest user's, and its answer
    text = prompt(world)
    assert "banana" in text and text.rstrip().endswith("last") and text.count("the") < 1500
    short = chat(http, ("user", "hi"), model=model, pfi={"truncation": "auto"})
    assert short.json()["pfi"]["dropped_turns"] == 0


def test_a_shorter_context_of_the_servers_counts(world: World) -> None:
    app = create_app(world.service, replace_config(world.app.state.config, context=64))

    async def ask(count: int) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
            body = {"model": "generic", "messages": [{"role": "user", "content": words(count)}]}
            headers = world.headers("ann")
            return await client.post("/chat/completions", json=body, headers=headers)

    assert asyncio.run(ask(50)).status_code == 200
    assert asyncio.run(ask(65)).json()["error"]["code"] == "context_length_exceeded"


# Bodies and refusals ----------------------------------------------------------------


BODY = {"model": "generic", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    "kind", [None, "application/x-www-form-urlencoded", "text/plain", "application/json; x=y"]
)
def test_a_body_is_json_whatever_its_type(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = http.post("/chat/completions", content=json.dumps(BODY).encode(), headers=headers)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{bad", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"", "empty"),
        (b"[1]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"null", "empty"),
        (b'{"model":"generic","messages":[{"role":"user","content":"\\ud800"}]}', "surrogate"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_plainly(
    http: httpx.Client, content: bytes, said: str
) -> None:
    reply = http.post(
        "/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, None, "invalid_json")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("changed", "param", "code", "said"),
    [
        ({"messages": None}, "messages", "invalid_type", "must be a list"),
        ({"model": ...}, "model", "missing_required_parameter", "'model'"),
        ({"messages": ...}, "messages", "missing_required_parameter", "'messages'"),
        ({"messages": []}, "messages", "empty_array", ""),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", ""),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role",
         "invalid_value", "'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content",
         "invalid_type", "must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages",
         "unsupported_parameter", "image_url"),
        ({"temperature": "hot"}, "temperature", "invalid_type", "must be a number"),
        ({"temperature": 3}, "temperature", "integer_above_max_value", "2"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value", "2"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", "1"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "whole number"),
        ({"stop": [1]}, "stop[0]", "invalid_type", "must be a text"),
        ({"stop": ["a"] * 300}, "stop", "array_above_max_length", "256"),
        ({"stream": "maybe"}, "stream", "invalid_type", "true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value", "`logprobs`"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value", "20"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter", "`tools`"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter", ""),
        ({"pfi": {"unknown": 1}}, "pfi.unknown", "unknown_parameter", ""),
        ({"n": 9}, "n", "invalid_value", "4"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_what_is_right(
    http: httpx.Client, changed: dict[str, Any], param: str, code: str, said: str
) -> None:
    body = {name: value for name, value in {**BODY, **changed}.items() if value is not ...}
    reply = http.post("/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error" and said in error["message"]
    assert "constrained" not in reply.text and "pydantic" not in reply.text


def test_private_text_is_not_repeated_in_a_refusal(http: httpx.Client) -> None:
    reply = chat(http, ("user", "x"), stop=[{"my secret": 1}], temperature="my secret")
    assert reply.status_code == 400 and "secret" not in reply.text


def test_unknown_addresses_say_what_there_is(http: httpx.Client) -> None:
    for method, path in (("POST", "/audio/speech"), ("GET", "/assistants"), ("POST", "/rerank")):
        reply = http.request(method, path)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (404, "unknown_url")
        assert "/v1/chat/completions" in error["message"] and path in error["message"]
    assert http.get("/chat/completions").json()["error"]["code"] == "method_not_allowed"


# Completions and embeddings ---------------------------------------------------------


def test_completions_echo_and_refuse_by_name(world: World, engine: FakeEngine) -> None:
    client: openai.OpenAI = world.client("ann")
    engine.answer = " and more"
    ask: dict[str, Any] = {"model": "generic", "prompt": ["one", "two"], "n": 2}
    texts = [choice.text for choice in client.completions.create(**ask, echo=True).choices]
    assert texts == ["one and more"] * 2 + ["two and more"] * 2
    parts = client.completions.create(model="generic", prompt="one", echo=True, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "one and more"
    for field, value in (
        ("suffix", "end"), ("best_of", 3), ("prompt", [1, 2]), ("prompt", [[1], [2]]),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "generic", "prompt": "x", field: value})
        assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_to_embed_are_refused_with_what_to_do(
    http: httpx.Client, tokens: list[Any]
) -> None:
    reply = http.post("/embeddings", json={"model": "minilm", "input": tokens})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "input")
    assert "send text" in error["message"] and "check_embedding_ctx_length" in error["message"]


def test_only_the_sentence_model_embeds(http: httpx.Client) -> None:
    for model in ("generic", "ann", "text-embedding-3-small"):
        reply = http.post("/embeddings", json={"model": model, "input": "x"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


# Pages of other origins -------------------------------------------------------------


def test_the_official_js_client_may_call_from_a_named_origin(world: World) -> None:
    asked = "authorization,content-type,openai-organization,user-agent,x-stainless-lang"
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
        "Access-Control-Request-Private-Network": "true",
    }
    reply = httpx.options(f"{world.url}/chat/completions", headers=headers)
    assert reply.status_code == 200
    assert set(asked.split(",")) <= {
        name.strip() for name in reply.headers["access-control-allow-headers"].lower().split(",")
    }
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    refused = httpx.options(
        f"{world.url}/chat/completions", headers={**headers, "Origin": "http://evil.example"}
    )
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    wrong = httpx.post(f"{world.url}/chat/completions", json=BODY, headers={
        "Origin": "http://localhost:3000"})  # fmt: skip
    assert wrong.status_code == 401  # and the page may read why
    assert wrong.headers["access-control-allow-origin"] == "http://localhost:3000"
