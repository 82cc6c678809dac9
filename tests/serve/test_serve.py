"""`pfi serve` as the official `openai` client sees it, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_world import FakeEngine, WordEmbedder, World, make_homes, serving

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.remote import RemoteTeacher
from pfi.augment.teachers.teacher import Call, Message, Reply
from pfi.errors import BackboneError, StorageError
from pfi.memory.embedders import HashEmbedder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann", "bob"])
    with serving(homes, FakeEngine()) as world:
        world.service._embedder = WordEmbedder()  # type: ignore[assignment]
        yield world


@pytest.fixture
def engine(world: World) -> Iterator[FakeEngine]:
    yield world.engine
    world.engine.delay, world.engine.fails, world.engine.answer = 0.0, None, None


@pytest.fixture(scope="module")
def ann(world: World) -> openai.OpenAI:
    return world.client("ann")


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


# Chat -------------------------------------------------------------------------------


def test_chat_answers_from_the_profiles_records(ann: openai.OpenAI, world: World) -> None:
    asked_for = user("the secret of ann?")
    reply = ann.chat.completions.create(model="ann", messages=asked_for, max_tokens=200)
    text = reply.choices[0].message.content or ""
    owner = world.service.home("ann").keys.profile
    assert f"[{owner}]" in text and "answer of ann 2" in text
    assert text.endswith("the secret of ann?")
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion" and reply.model == "ann"
    assert abs(reply.created - time.time()) < 60
    used, asked = reply.usage, world.engine.requests[-1]
    assert used is not None and used.prompt_tokens == len(asked.prompt)
    assert used.completion_tokens == -(-len(text) // 8)
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.prompt_tokens_details is not None
    assert used.prompt_tokens_details.cached_tokens == 3


def test_a_question_unlike_the_records_is_the_backbones(ann: openai.OpenAI) -> None:
    reply = ann.chat.completions.create(model="ann", messages=user("hi"), max_tokens=100)
    assert (reply.choices[0].message.content or "").endswith("] hi")
    found = reply.pfi  # type: ignore[attr-defined]
    assert found["records"] == [] and "not like your records" in found["gate"]


def test_the_extension_says_what_the_answer_rests_on(ann: openai.OpenAI) -> None:
    reply = ann.chat.completions.create(
        model="ann", messages=user("secret of ann"), extra_body={"pfi": {"records": 1}}
    )
    found = reply.pfi  # type: ignore[attr-defined]
    assert [record["id"] for record in found["records"]] == ["ann-2"]
    assert found["records"][0]["text"] == "secret of ann number 2 answer of ann 2"
    assert found["task"] == "instruction" and "not fitted" in found["gate"]
    assert (found["personal"], found["shared"], found["weight"]) == (None, None, 0.0)
    none = ann.chat.completions.create(
        model="ann", messages=user("hi"), extra_body={"pfi": {"records": 0}}
    )
    assert none.pfi["records"] == []  # type: ignore[attr-defined]


def test_generic_uses_no_records_and_no_adapter(ann: openai.OpenAI, world: World) -> None:
    reply = ann.chat.completions.create(model="generic", messages=user("hi"), max_tokens=100)
    owner = world.service.home("ann").keys.profile
    assert reply.choices[0].message.content == f"[no adapter] [{owner}] hi"


def test_a_model_may_name_a_task(ann: openai.OpenAI) -> None:
    reply = ann.chat.completions.create(
        model="ann/LaMP_4", messages=user("the text"), max_tokens=200
    )
    assert reply.pfi["task"] == "LaMP_4"  # type: ignore[attr-defined]
    assert "Generate a headline" in (reply.choices[0].message.content or "")
    same = ann.chat.completions.create(
        model="ann", messages=user("the text"), extra_body={"pfi": {"task": "LaMP_4"}}
    )
    assert same.pfi["task"] == "LaMP_4"  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match=r"pfi\.task"):
        ann.chat.completions.create(
            model="ann/LaMP_4", messages=user("x"), extra_body={"pfi": {"task": "LaMP_5"}}
        )


def test_a_label_comes_whole_and_the_other_fields_are_asked_for(ann: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "ann/LaMP_3", "messages": user("the food was cold")}
    reply = ann.chat.completions.create(**asked)
    assert reply.choices[0].message.content == "1"  # the fake engine finds the first one best
    chunks = list(ann.chat.completions.create(**asked, stream=True))
    assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == ["1"]
    with pytest.raises(openai.BadRequestError, match="several fields"):
        ann.chat.completions.create(model="ann/LaMP_1", messages=user("a title"))


def test_earlier_turns_go_before_the_question(ann: openai.OpenAI, world: World) -> None:
    parts = [{"type": "text", "text": "second "}, {"type": "text", "text": "one"}]
    talk: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "first question", "name": "x"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": parts},
    ]
    reply = ann.chat.completions.create(model="generic", messages=talk, max_tokens=200)
    text = reply.choices[0].message.content or ""
    places = [
        text.find(part) for part in ("be brief", "first question", "first answer", "second one")
    ]
    assert -1 not in places and places == sorted(places)
    personal = ann.chat.completions.create(model="ann", messages=talk, max_tokens=200)
    assert "first answer" in (personal.choices[0].message.content or "")


def test_sampling_reaches_the_engine(ann: openai.OpenAI, world: World) -> None:
    ann.chat.completions.create(
        model="generic",
        messages=user("x"),
        temperature=0.7,
        top_p=0.5,
        seed=7,
        n=2,
        stop=["END"],
        max_completion_tokens=9,
        user="someone",
        extra_body={"unheard_of": 1, "tools": [], "logit_bias": {}, "top_k": 9, "min_p": 0.1},
        presence_penalty=0.5,
        frequency_penalty=-0.25,
    )
    one, two = (request.sampling for request in world.engine.requests[-2:])
    assert (one.temperature, one.top_p, one.stop, one.max_tokens) == (0.7, 0.5, ("END",), 9)
    assert {one.seed, two.seed} == {7, 8}
    assert (one.top_k, one.min_p, one.repetition_penalty) == (9, 0.1, None)
    assert (one.presence_penalty, one.frequency_penalty) == (0.5, -0.25)
    ann.chat.completions.create(model="generic", messages=user("x"))
    assert world.engine.requests[-1].sampling.temperature == 0
    assert world.engine.requests[-1].sampling.max_tokens == 256


def test_stop_and_length_end_an_answer(ann: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = "one two three four five"
    ask: Any = {"model": "generic", "messages": user("x")}
    stopped = ann.chat.completions.create(**ask, stop="three").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one two ", "stop")
    cut = ann.chat.completions.create(**ask, max_tokens=2).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("one two three fo", "length")


def test_logprobs_are_those_of_the_tokens(ann: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = "zwölf Äpfel"
    ask: Any = {"model": "generic", "messages": user("x"), "logprobs": True}
    found = ann.chat.completions.create(**ask).choices[0].logprobs
    assert found is not None and found.content is not None
    assert [(t.token, t.logprob) for t in found.content] == [("zwölf Äp", -0.5), ("fel", -0.5)]
    assert bytes(found.content[0].bytes or []).decode() == "zwölf Äp"
    streamed = [
        token.token
        for chunk in ann.chat.completions.create(**ask, stream=True)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for token in logprobs.content or []
    ]
    assert streamed == ["zwölf Äp", "fel"]


# Streaming --------------------------------------------------------------------------


def test_a_stream_says_the_same_as_the_whole_answer(ann: openai.OpenAI) -> None:
    ask: Any = {"model": "ann", "messages": user("same?"), "max_tokens": 200}
    whole = ann.chat.completions.create(**ask)
    options = {"include_usage": True}
    chunks = list(ann.chat.completions.create(**ask, stream=True, stream_options=options))
    *parts, last = chunks
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.model_dump() == whole.usage.model_dump()
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[0].pfi["records"] == whole.pfi["records"]  # type: ignore[attr-defined]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in parts][-1] == "stop"
    assert all(chunk.choices[0].finish_reason is None for chunk in parts[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert text == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in parts)


def test_the_stream_on_the_wire_is_that_of_the_api(world: World) -> None:
    body = {"model": "generic", "messages": user("é"), "stream": True, "n": 2, "max_tokens": 99}
    reply = httpx.post(f"{world.url}/chat/completions", json=body, headers=world.headers("ann"))
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = reply.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines[:-1])
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == "stop"
        assert "".join(c["delta"].get("content", "") for c in mine).endswith("é")
    assert all("usage" not in chunk for chunk in chunks)
    assert sum("pfi" in chunk for chunk in chunks) == 1


def test_pieces_arrive_one_by_one(ann: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer, engine.delay = "x" * 40, 0.1
    begun, times = time.monotonic(), []
    for _ in ann.chat.completions.create(model="generic", messages=user("x"), stream=True):
        times.append(time.monotonic() - begun)
    assert times[1] < 0.35 < times[-1]


# Text completions and embeddings ----------------------------------------------------


def test_completions_take_one_or_several_prompts(ann: openai.OpenAI, world: World) -> None:
    owner = world.service.home("ann").keys.profile
    reply = ann.completions.create(model="generic", prompt=["a", "b"], n=2, max_tokens=99)
    assert [c.text[-1] for c in reply.choices] == ["a", "a", "b", "b"]
    assert [c.index for c in reply.choices] == [0, 1, 2, 3]
    one = ann.completions.create(model="generic", prompt="é", max_tokens=99, logprobs=0)
    assert one.choices[0].text == f"[no adapter] [{owner}] é" and one.object == "text_completion"
    found = one.choices[0].logprobs
    assert found is not None and "".join(found.tokens or []) == one.choices[0].text
    assert (found.text_offset or [])[:3] == [0, 8, 16]
    chunks = list(ann.completions.create(model="generic", prompt="é", max_tokens=99, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_embeddings_in_both_encodings(ann: openai.OpenAI) -> None:
    texts = ["one text", "another"]
    numbers = ann.embeddings.create(model="minilm", input=texts, encoding_format="float")
    packed = ann.embeddings.create(model="minilm", input=texts)  # the client asks for base64
    expected = HashEmbedder().embed(texts)
    for reply in (numbers, packed):
        assert [row.index for row in reply.data] == [0, 1]
        assert [row.embedding for row in reply.data] == expected.tolist()
        assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (3, 3)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        ann.embeddings.create(model="minilm", input="x", dimensions=5)


def test_embeddings_say_when_there_is_no_sentence_model(
    world: World, ann: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: None)
    monkeypatch.setattr(world.service, "_embedder", None)
    with pytest.raises(openai.NotFoundError, match="not installed") as caught:
        ann.embeddings.create(model="minilm", input="x")
    assert caught.value.code == "model_not_found"  # a retry would be of no use
    assert "minilm" not in [model.id for model in ann.models.list()]


def test_the_real_sentence_model_counts_its_tokens() -> None:
    from pfi.memory.embedders import find_embedder

    if (found := find_embedder()) is None:
        pytest.skip("no sentence model is installed")
    assert found.count(["hello", "hello world"]) == 3 + 4  # each framed by two


# Models and errors ------------------------------------------------------------------


def test_models_are_the_profiles_own(ann: openai.OpenAI) -> None:
    names = [model.id for model in ann.models.list()]
    assert names == ["ann", "ann/instruction", "generic", "minilm"]
    assert ann.models.retrieve("ann/instruction").id == "ann/instruction"
    for other in ("bob", "bob/instruction", "nobody", "ann/nothing", "ann/../bob", "ann/"):
        with pytest.raises(openai.NotFoundError) as caught:
            ann.models.retrieve(other)
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            ann.chat.completions.create(model=other, messages=user("x"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "web_search"}]),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "grammar"}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"5": 101}),
        ("top_logprobs", 2),
        ("temperature", 3),
        ("n", 50),
        ("max_tokens", 0),
        ("stop", [1]),
        ("messages", []),
        ("messages", [{"role": "critic", "content": "x"}]),
        ("messages", [{"role": "assistant", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
    ],
)
def test_what_would_be_answered_wrongly_is_refused(
    ann: openai.OpenAI, field: str, value: Any
) -> None:
    body = {"model": "ann", "messages": user("x"), field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        ann.chat.completions.create(**body)
    assert caught.value.param is not None and caught.value.param.startswith(field)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")


def test_an_empty_or_too_long_question_is_refused(ann: openai.OpenAI, world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="empty"):
        ann.chat.completions.create(model="ann", messages=user("  "))
    many = "word " * world.engine.prompter.max_length
    with pytest.raises(openai.BadRequestError) as caught:
        ann.chat.completions.create(model="ann", messages=user(many))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        ann.completions.create(model="ann", prompt=many)


def test_trouble_of_the_device_is_no_fault_of_the_caller(
    ann: openai.OpenAI, engine: FakeEngine
) -> None:
    ask: Any = {"model": "generic", "messages": user("x")}
    engine.fails = BackboneError("adapter 3 is damaged", where="/home/ann/.pfi/secret")
    for stream in (False, True):  # the stream too says it by status: nothing was sent yet
        with pytest.raises(openai.InternalServerError) as caught:
            ann.chat.completions.create(**ask, stream=stream)
        assert caught.value.status_code == 503 and "secret" not in str(caught.value)
    engine.fails = RuntimeError("private text")
    with pytest.raises(openai.InternalServerError) as caught:
        ann.chat.completions.create(**ask)
    assert caught.value.status_code == 500 and "private" not in str(caught.value)
    engine.fails = None
    assert ann.chat.completions.create(**ask).choices  # and it goes on


def test_a_vault_in_use_is_503(
    world: World, ann: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise StorageError("the vault is in use", where="/home/ann/.pfi/vault.db")

    monkeypatch.setattr(world.service, "prepare", busy)
    with pytest.raises(openai.InternalServerError) as caught:
        ann.chat.completions.create(model="ann", messages=user("x"))
    assert caught.value.status_code == 503 and "vault.db" not in str(caught.value)


def test_an_error_after_the_first_piece_is_told_in_the_stream(
    ann: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any) -> Iterator[Any]:
        from pfi.inference.engine import Piece

        yield Piece("begun")
        time.sleep(0.1)
        raise BackboneError("it broke", where="/secret")

    monkeypatch.setattr("serve_world.FakeStream.__iter__", broken)
    stream = ann.chat.completions.create(model="generic", messages=user("x"), stream=True)
    with pytest.raises(openai.APIError, match="cannot be used"):
        list(stream)


# Cancellation -----------------------------------------------------------------------


def test_a_client_that_leaves_a_stream_ends_the_decoding(
    ann: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.answer, engine.delay, before = "x" * 8000, 0.02, engine.cancelled
    stream = ann.chat.completions.create(model="generic", messages=user("x"), stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: engine.cancelled == before + 1)


def test_a_client_that_leaves_while_it_waits_ends_the_decoding(
    world: World, engine: FakeEngine
) -> None:
    engine.answer, engine.delay, before = "x" * 8000, 0.02, engine.cancelled
    body = json.dumps({"model": "generic", "messages": user("x")}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        f"\r\nAuthorization: Bearer {world.tokens['ann']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = world.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        count = len(engine.requests)
        client.sendall(head.encode() + body)
        wait_for(lambda: len(engine.requests) > count)
    wait_for(lambda: engine.cancelled == before + 1)
    wait_for(lambda: world.app.state.limits._running.total() == 0)


def test_a_client_timeout_is_a_cancellation(world: World, engine: FakeEngine) -> None:
    engine.answer, engine.delay, before = "x" * 8000, 0.02, engine.cancelled
    with pytest.raises(openai.APITimeoutError):
        world.client("ann", timeout=0.5).chat.completions.create(
            model="generic", messages=user("x")
        )
    wait_for(lambda: engine.cancelled == before + 1)


def test_clients_do_not_wait_for_each_other(world: World, engine: FakeEngine) -> None:
    engine.answer, engine.delay = "x" * 80, 0.05
    create = world.client("ann").completions.create
    clients = [
        threading.Thread(target=create, kwargs={"model": "generic", "prompt": "x"})
        for _ in range(8)
    ]
    begun = time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert time.monotonic() - begun < 8 * 0.5  # one alone takes 0.5 s


# As a teacher -----------------------------------------------------------------------


def test_another_pfi_takes_it_as_its_teacher(
    world: World, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydantic import BaseModel

    class Draft(BaseModel):
        title: str

    engine.answer = 'Here it is: {"title": "tea"}'
    monkeypatch.setenv("PFI_KEY", world.tokens["ann"])
    config = TeacherConfig(kind="openai", base_url=world.url, model="ann", api_key_env="PFI_KEY")
    teacher = RemoteTeacher(config)
    messages = (Message("system", "You write titles."), Message("user", "One on tea."))
    call = Call("draft", messages, form=Draft, max_tokens=64)
    for reply in teacher.answer([call, call]):
        assert isinstance(reply, Reply) and json.loads(reply.text) == {"title": "tea"}
        assert reply.usage.completion_tokens == 4
    assert not teacher._refused
    sent = engine.requests[-1].sampling.grammar
    assert sent is not None and '"title"' in sent.text


def test_the_example_in_the_documentation_works(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text("utf-8")
    block = page.partition("<!-- example: openai -->\n```python\n")[2].partition("```")[0]
    for shown, real in (
        ("http://127.0.0.1:8484/v1", world.url),
        ("TOKEN", world.tokens["ann"]),
        ('"default"', '"ann"'),
    ):
        assert shown in block
        block = block.replace(shown, real)
    exec(block, {})
    assert capsys.readouterr().out.count("A title for a talk on tea") == 2
