"""`/v1/responses` as the official client sees it, whole and as events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_world import FakeEngine, World, make_homes, serving

CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
NOW = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(make_homes(tmp_path_factory.mktemp("homes"), ["ann"]), FakeEngine()) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    yield world.client("ann", timeout=120)
    world.engine.answer = None


def prompt(world: World) -> str:
    return world.engine.prompter.text(world.engine.requests[-1].prompt)


def test_a_text_is_answered(world: World, client: openai.OpenAI) -> None:
    world.engine.answer = "good morning"
    reply = client.responses.create(
        model="ann", input="hi", instructions="Be kind.", temperature=0.5, max_output_tokens=9
    )
    assert (reply.output_text, reply.status, reply.object) == (
        "good morning", "completed", "response",
    )  # fmt: skip
    assert reply.id.startswith("resp_") and reply.error is None and reply.store is False
    assert (reply.instructions, reply.temperature, reply.max_output_tokens) == ("Be kind.", 0.5, 9)
    assert reply.usage is not None and reply.usage.output_tokens == 2
    assert reply.usage.input_tokens == len(world.engine.requests[-1].prompt)
    assert reply.usage.input_tokens_details.cached_tokens == 3
    assert reply.pfi["task"] == "instruction"  # type: ignore[attr-defined]
    text = prompt(world)
    assert text.index("Be kind.") < text.index("hi")
    sampling = world.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 9)


def test_a_cut_answer_is_incomplete(world: World, client: openai.OpenAI) -> None:
    world.engine.answer = "one two three four"
    reply = client.responses.create(model="generic", input="x", max_output_tokens=1)
    assert reply.status == "incomplete" and reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_items_of_a_conversation(world: World, client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "rule"},
        {"role": "user", "content": [{"type": "input_text", "text": "what time"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "zone", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "nine"},
        {"type": "function_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "east"}]},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "It is", "annotations": []}]},
    ]  # fmt: skip
    client.responses.create(model="generic", input=items)
    text = prompt(world)
    places = [text.find(w) for w in ("rule", "what time", '"now"', '"zone"', "nine", "east")]
    assert -1 not in places and places == sorted(places)
    assert text.endswith("It is"), "it is gone on with"


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type",
         "unsupported_parameter"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
        ({"input": [{"type": "function_call"}]}, "input[0].name", "missing_required_parameter"),
        ({"input": []}, "input", "empty_array"),
        ({"input": "the " * 3000}, "input", "context_length_exceeded"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "blah"}}}},
         "text.format", "invalid_json_schema"),
        ({"model": "nobody"}, "model", "model_not_found"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(
    world: World, given: dict[str, Any], param: str, code: str
) -> None:
    body = {"model": "generic", "input": "x", **given}
    reply = httpx.post(
        f"{world.url}/responses", json=body, headers=world.headers("ann"), timeout=60
    )
    error = reply.json()["error"]
    assert reply.status_code in (400, 404) and (error["param"], error["code"]) == (param, code)


def test_truncation_is_asked_for_and_told_of(world: World, client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": "the " * 1500},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "the " * 1000},
    ]
    reply = client.responses.create(model="generic", input=items, truncation="auto")
    assert reply.truncation == "auto"
    assert reply.pfi["dropped_turns"] == 2  # type: ignore[attr-defined]


def test_a_stream_is_the_apis_events(world: World, client: openai.OpenAI) -> None:
    world.engine.answer = "good morning to you"
    events = list(client.responses.create(model="ann", input="hi", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == "good morning to you" == events[-1].response.output_text
    items = {e.item_id for e in events if e.type == "response.output_text.delta"}
    assert items == {events[-1].response.output[0].id}


def test_calls_whole_and_in_a_stream(world: World, client: openai.OpenAI) -> None:
    world.engine.answer = f"So: {CALL}\n{CALL}"
    ask: Any = {"model": "ann", "input": "time?", "tools": [NOW]}
    reply = client.responses.create(**ask)
    assert [item.type for item in reply.output] == ["message", "function_call", "function_call"]
    assert reply.output[1].name == "now"  # type: ignore[union-attr]
    assert reply.output[1].call_id != reply.output[2].call_id  # type: ignore[union-attr]
    with client.responses.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == [item.type for item in reply.output]
    assert kinds.count("response.function_call_arguments.done") == 2
    assert kinds[-1] == "response.completed"
    world.engine.answer = CALL
    alone = client.responses.create(**ask, tool_choice="required")
    assert [item.type for item in alone.output] == ["function_call"]


def test_an_error_in_a_stream_is_an_event(
    world: World, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.errors import BackboneError
    from pfi.inference.engine import Piece

    def broken(self: Any) -> Iterator[Piece]:
        yield Piece("begun")
        raise BackboneError("it broke", where="/secret")

    monkeypatch.setattr("serve_world.FakeStream.__iter__", broken)
    try:
        last = list(client.responses.create(model="generic", input="x", stream=True))[-1]
    except openai.APIError as error:  # where both pieces came at once, by status
        assert "cannot be used" in str(error)
    else:
        assert last.type == "response.failed" and last.response.error is not None
        assert "secret" not in last.response.error.message
