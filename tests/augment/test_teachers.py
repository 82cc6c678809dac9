"""Teachers over HTTP against a server that goes wrong, and teachers loaded from a folder."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fault_server import PASSING, FaultServer
from pydantic import BaseModel, ConfigDict, Field

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.chatting import prompt_ids
from pfi.augment.teachers.forms import merged, read_answer
from pfi.augment.teachers.local import LocalTeacher
from pfi.augment.teachers.make import make_teacher
from pfi.augment.teachers.remote import Pace, RemoteTeacher
from pfi.augment.teachers.teacher import (
    Call,
    Message,
    Reply,
    TeacherError,
    Unusable,
    Usage,
    is_here,
)
from pfi.errors import BackboneError
from pfi.inference.torch.sampling import Pick

KEY = "sk-planted-0123456789"


class Item(BaseModel):
    text: str
    label: Literal["good", "bad"]


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: Literal["good", "bad"]


class Items(BaseModel):
    items: list[Item] = Field(min_length=1)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key from outside and hardly any backoff; what Retry-After asks for stays."""
    import openai._base_client

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("pfi.augment.teachers.remote._DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def teacher(server: FaultServer, **settings: Any) -> RemoteTeacher:
    values = {"timeout": 5.0, "retries": 4, **settings}
    return RemoteTeacher(TeacherConfig(kind="openai", model="m", base_url=server.url, **values))


def call(text: str = "Say something.", **values: Any) -> Call:
    messages = (Message("system", "You write records."), Message("user", text))
    return Call("ann", messages, **{"max_tokens": 64, **values})


def ask(server: FaultServer, one: Call, **settings: Any) -> Reply | Unusable:
    return teacher(server, **settings).answer([one])[0]


def reply(result: Reply | Unusable) -> Reply:
    assert isinstance(result, Reply), result
    return result


def test_text_and_json_with_usage_and_price() -> None:
    with FaultServer() as server:
        asked = teacher(server, usd_per_million_prompt=2.0, usd_per_million_completion=8.0)
        text, form = asked.answer([call(temperature=0.7, seed=5), call(form=Items)])
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.body["messages"] == [
        {"role": "system", "content": "You write records."},
        {"role": "user", "content": "Say something."},
    ]
    settings = {k: v for k, v in sent.body.items() if k != "messages"}
    assert settings == {"model": "m", "max_tokens": 64, "temperature": 0.7, "seed": 5}
    usage = reply(text).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (9, len(reply(text).text) // 4 + 1)
    assert usage.usd == pytest.approx((2 * usage.prompt_tokens + 8 * usage.completion_tokens) / 1e6)
    assert Items.model_validate_json(reply(form).text).items
    asked_for = server.requests[1].body["response_format"]
    assert asked_for["type"] == "json_schema" and asked_for["json_schema"]["strict"]
    schema = asked_for["json_schema"]["schema"]
    assert schema["required"] == ["items"] and schema["additionalProperties"] is False
    # Some servers take a schema and ignore it: the words always go along.
    assert json.dumps(call(form=Items).schema) in server.requests[1].body["messages"][0]["content"]


def test_usage_is_left_to_the_desk_where_the_server_does_not_count() -> None:
    with FaultServer(usage=False) as server:
        assert reply(ask(server, call())).usage == Usage()


@pytest.mark.parametrize("fault", [*PASSING, "408", "409", "503", "not-json"])
def test_passing_faults_are_tried_again_with_the_same_key(fault: str) -> None:
    with FaultServer() as server:
        expected = ask(server, call(form=Items))
    with FaultServer([fault, fault], delay=0.4) as server:
        asked = teacher(server, timeout=0.1 if fault == "slow" else 5.0)
        assert asked.answer([call(form=Items)]) == [expected]
    assert len(server.requests) == 3
    key = call(form=Items).key(asked.name)
    assert {request.key for request in server.requests} == {key}
    assert server.paid == {key: 1}


def test_retry_after_is_waited_for() -> None:
    with FaultServer(["429-after"], retry_after=0.15) as server:
        reply(ask(server, call()))
    first, second = server.requests
    assert second.time - first.time >= 0.15


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", "does not accept the key"),
        ("402", "refuses us"),
        ("403", "refuses us"),
        ("404", "knows no model 'm'"),
        ("429", "takes no more calls"),
        ("drop", "cannot be reached"),
        ("drop-body", "cannot be reached"),
        ("cut-body", "other than JSON"),
        ("not-json", "other than JSON"),
        ("redirect", "another address"),
    ],
)
def test_what_no_call_survives_ends_it_and_never_names_the_key(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with FaultServer([fault] * 9) as server, pytest.raises(TeacherError) as caught:
        ask(server, call(), retries=1, api_key_env="OWN_KEY")
    error = caught.value
    assert said in str(error) and error.where == server.url and error.fix
    assert KEY not in repr(error) and error.__context__ is None
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in caplog.text
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert not server.paid
    once = {"401", "402", "403", "404", "redirect"}
    assert len(server.requests) == (1 if fault in once else 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("400", "refuses the call (400): fault 400 for key ***"),
        ("500", "fails (500)"),
        ("slow", "did not answer within 0.1 s"),
        ("cut-json", "cut off"),
        ("length", "cut off after 64 tokens"),
        ("wrong-schema", "wrong form: items: Field required"),
        ("empty", "empty"),
        ("refusal", "refuses to answer"),
        ("no-choice", "no answer"),
    ],
)
def test_what_is_wrong_with_one_call_makes_that_one_unusable(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    with FaultServer([fault, fault, "ok"], delay=0.4) as server:
        timeout = 0.1 if fault == "slow" else 5.0
        asked = teacher(server, retries=1, timeout=timeout, api_key_env="OWN_KEY")
        bad = asked.answer([call(form=Items)])[0]
        tries = len(server.requests)
        server.faults = []
        good = asked.answer([call("Another.", form=Items)])[0]
    assert isinstance(bad, Unusable) and said in str(bad)
    assert tries == (2 if fault in ("500", "slow") else 1)
    billed = fault not in ("400", "500", "slow")
    assert sum(server.paid.values()) == 1 + billed
    assert (bad.usage.tokens > 0) == billed  # it cost something all the same
    reply(good)


def test_json_in_prose_is_found() -> None:
    with FaultServer(["ok", "prose"]) as server:
        plain, wrapped = teacher(server).answer([call(form=Items)] * 2)
    assert reply(plain).text == reply(wrapped).text


def test_a_server_that_fails_call_after_call_is_given_up() -> None:
    with FaultServer(["ok", *["500"] * 99]) as server:
        asked = teacher(server, retries=0)
        with pytest.raises(TeacherError, match="fails"):
            for _ in range(9):
                asked.answer([call()])
    assert len(server.requests) == 6


def test_calls_that_are_refused_after_others_were_answered_stay_single() -> None:
    with FaultServer(["ok", *["400"] * 9]) as server:
        results = teacher(server).answer([call()] * 10)
    assert [type(result) for result in results] == [Reply] + [Unusable] * 9
    with FaultServer(["400"] * 9) as server, pytest.raises(TeacherError, match="refuses"):
        teacher(server).answer([call()] * 9)
    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("name", ["response_format", "seed", "temperature", "max_tokens"])
def test_a_refused_parameter_is_done_without_from_then_on(name: str, status: int) -> None:
    with FaultServer() as server:
        expected = ask(server, call(form=Items))
    with FaultServer(refuse=[name], refuse_status=status) as server:
        asked = teacher(server)
        first, second = asked.answer([call(form=Items), call("Another.", form=Items)])
    Items.model_validate_json(reply(first).text)
    if name != "seed":  # the server's answers follow from it
        assert first == expected
    reply(second)
    assert [name in request.body for request in server.requests] == [True, False, False]
    assert ("max_completion_tokens" in server.requests[1].body) == (name == "max_tokens")
    # Another request must not come with the key of the refused one, and the same with the same.
    keys = [request.key for request in server.requests]
    assert len(set(keys)) == 3
    assert keys[1] == f"{call(form=Items).key(asked.name)}-{name}"


@pytest.mark.parametrize(
    ("base_url", "own", "sent"),
    [
        ("https://api.openai.com/v1", None, True),
        ("https://API.openai.com:443/v1/", None, True),
        ("http://api.openai.com/v1", None, False),  # in the clear
        ("https://api.openai.com.evil.example/v1", None, False),
        ("https://api.openai.com@evil.example/v1", None, False),
        ("https://api.openai.com:444/v1", None, False),
        ("http://127.0.0.1:9/v1", None, False),
        ("http://localhost:11434/v1", None, False),
        ("https://proxy.example/v1", "https://proxy.example/v1", True),
        ("https://api.openai.com/v1", "https://proxy.example/v1", False),
    ],
)
def test_a_shared_key_goes_to_its_own_host_alone(
    base_url: str, own: str | None, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if own is not None:
        monkeypatch.setenv("OPENAI_BASE_URL", own)
    config = TeacherConfig(kind="openai", model="m", base_url=base_url)
    try:
        asked = RemoteTeacher(config)
    except TeacherError as error:
        assert not sent and KEY not in str(error) and "belongs to" in str(error)
    else:
        assert (asked._client.api_key == KEY) == sent


def test_a_server_near_by_gets_no_shared_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", "of-this-server")
    with FaultServer() as server:
        reply(ask(server, call()))
        reply(ask(server, call(), api_key_env="MY_KEY"))
    first, second = (request.headers.get("authorization") for request in server.requests)
    assert (first, second) == ("Bearer none", "Bearer of-this-server")


def test_no_call_goes_out_without_a_limit_of_tokens() -> None:
    with FaultServer(refuse=["max_tokens", "max_completion_tokens"]) as server:
        assert isinstance(ask(server, call()), Unusable)
    assert not server.paid
    with FaultServer(refuse=["seed", "response_format", "max_tokens"]) as server:
        reply(ask(server, call(form=Items)))


def test_a_server_that_ignores_the_schema_still_answers_with_json() -> None:
    with FaultServer(ignore=["response_format"]) as server:
        Items.model_validate_json(reply(ask(server, call(form=Items))).text)


def test_keys_hosts_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    away = TeacherConfig(kind="openai", model="gpt", base_url="https://api.example.org:8443/v1")
    with pytest.raises(TeacherError, match="set the environment variable OPENAI_API_KEY"):
        RemoteTeacher(away)
    monkeypatch.setenv("OTHER_KEY", KEY)
    remote = RemoteTeacher(away.model_copy(update={"api_key_env": "OTHER_KEY"}))
    assert (remote.name, remote.host) == (
        "openai:gpt@api.example.org:8443",
        "api.example.org",
    )
    assert KEY not in repr(vars(remote)["_config"]) and KEY not in remote.name
    for address, host in {
        "http://localhost:1/v1": "localhost:1",
        "http://127.0.0.9/v1": "127.0.0.9",
        "http://[::1]:8000/v1": "[::1]:8000",
    }.items():  # what listens there may pass calls on
        near = RemoteTeacher(away.model_copy(update={"base_url": address}))
        assert near.host == host and is_here(near.host)
    assert is_here(None) and not is_here(remote.host) and not is_here("localhost.evil.example")
    for address in ("localhost:1/v1", "ftp://x/v1", "", "http://[::1/v1", "http://x:no/v1"):
        with pytest.raises(TeacherError, match="no address"):
            RemoteTeacher(away.model_copy(update={"base_url": address}))
    with pytest.raises(TeacherError, match="no model"):
        RemoteTeacher(away.model_copy(update={"model": ""}))


def test_an_address_nobody_listens_at_and_its_password() -> None:
    with FaultServer() as server:
        address = server.url.replace("//", "//ann:secret@")
    config = TeacherConfig(kind="openai", model="m", base_url=address, retries=1)
    with pytest.raises(TeacherError, match="cannot be reached") as caught:
        RemoteTeacher(config).answer([call()])
    assert "secret" not in str(caught.value)


def test_nothing_on_this_device_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as proxy, FaultServer() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        reply(ask(server, call()))
    assert len(server.requests) == 1 and not proxy.requests


def test_calls_run_at_the_same_time_and_equal_those_one_by_one() -> None:
    calls = [call(f"Question {i}", form=Items if i % 2 else None) for i in range(24)]
    with FaultServer() as server:
        expected = teacher(server).answer(calls)
    with FaultServer(rate=0.3, kinds=["429", "500", "drop", "cut-body"], latency=0.01) as server:
        asked = teacher(server, concurrency=8)
        assert asked.concurrency == 8
        with ThreadPoolExecutor(asked.concurrency) as threads:
            results = list(threads.map(lambda one: asked.answer([one])[0], calls))
    assert results == expected
    assert 1 < server.most_at_once <= 8
    assert len(server.requests) > len(calls)  # there were faults
    assert server.paid == {one.key(asked.name): 1 for one in calls}


def test_pace_by_a_clock_of_our_own() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(30, lambda: now[0], sleep)
    for _ in range(3):
        pace.wait()
    assert slept == [2.0, 2.0]
    now[0] += 60  # a long rest does not save up turns
    pace.wait()
    pace.wait()
    assert slept == [2.0, 2.0, 2.0]


def test_pace_holds_across_threads_and_for_retries() -> None:
    with FaultServer(["500", "ok", "429"]) as server:
        asked = teacher(server, requests_per_minute=60 / 0.05)
        threads = [threading.Thread(target=asked.answer, args=([call(f"{i}")],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times = [request.time for request in server.requests]
    assert len(times) == 6
    assert times[-1] - times[0] >= 3 * 0.05  # of five; arrivals are not exact


class Flag(BaseModel):
    ok: bool = True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("nothing here", "no JSON object"),
        ('{"items": []}', "wrong form: items"),
        ('{"items": [{"text": "a", "label": "odd"}]}', r"items\.0\.label"),
        ('{"items": [{"text": "a", "label": "good"}', "cut off"),
        ('{"items": [{"text": "a, and', "cut off"),
        ('{"a":' * 9999, "deep|cut off"),
        ('{"items": [{"text": "\\ud800", "label": "good"}]}', "wrong form"),
    ],
)
def test_json_that_is_not_of_the_form(text: str, said: str) -> None:
    with pytest.raises(Unusable, match=said):
        read_answer(text, Items)


def test_json_is_read_leniently() -> None:
    item = '{"items": [{"text": "a } {", "label": "good"}], "more": 1}'
    expected = Items(items=[Item(text="a } {", label="good")]).model_dump_json()
    for text in (
        item,
        f"<think>{{hm}}</think> {item} {{",
        f'{{"x": 1}} {item}',
        f"```\n{item}\n```",
    ):
        assert read_answer(text, Items) == expected
    assert read_answer(" plain \ud800", None) == "plain ?"
    with pytest.raises(Unusable, match="cut off"):  # not the whole inner object
        read_answer('{"ok": {"ok": false}, "x": [', Flag)


def test_messages_in_words_and_merged() -> None:
    plain = call()
    assert plain.worded == plain.messages
    system, user = call(form=Items).worded
    assert system.content.startswith("You write records.\n\nAnswer with one JSON object")
    assert user == plain.messages[1]
    bare = Call("ann", (Message("user", "Hi"),), form=Items)
    assert [message.role for message in bare.worded] == ["system", "user"]
    assert merged(plain.messages) == (Message("user", "You write records.\n\nSay something."),)
    assert merged((Message("system", "S"),)) == (Message("user", "S"),)


# A model on this device

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"


@pytest.fixture
def folder(backbone_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A chat model's folder with this template."""

    def build(template: str, family: str = "llama") -> Path:
        made = tmp_path / f"chat-{abs(hash(template))}-{family}"
        made.mkdir()
        for file in backbone_folder(family).iterdir():
            (made / file.name).symlink_to(file)
        (made / "chat_template.jinja").write_text(template)
        return made

    return build


def local(folder: Path) -> LocalTeacher:
    return LocalTeacher(TeacherConfig(kind="local", model=str(folder)))


def ids(asked: LocalTeacher, messages: Sequence[Message]) -> list[int]:
    return prompt_ids(asked._backbone.prompter, messages, asked.name)


def prompt(asked: LocalTeacher, messages: Sequence[Message]) -> str:
    return str(asked._backbone.tokenizer.decode(ids(asked, messages)))


def test_local_prompts_follow_the_chat_template(folder: Callable[[str], Path]) -> None:
    messages = (*call("Hi </s><user>").messages, Message("assistant", "Yes"), Message("user", "?"))
    asked = local(folder(TEMPLATE))
    assert prompt(asked, messages) == (
        "<system>You write records.</s><user>Hi </s><user></s><assistant>Yes</s><user>?</s>"
        "<assistant>"
    )
    end = asked._backbone.end_id  # what a message writes out is no control token
    assert ids(asked, messages).count(end) == 4
    merging = local(folder(NO_SYSTEM + TEMPLATE))
    assert prompt(merging, call("Hi").messages) == ("<user>You write records.\n\nHi</s><assistant>")
    with pytest.raises(BackboneError, match="template drops"):
        local(folder(TEMPLATE.replace("{% for m in messages %}", "{% for m in [] %}")))


def test_local_answers_do_not_depend_on_the_batch(folder: Callable[[str], Path]) -> None:
    asked = local(folder(TEMPLATE))
    calls = [
        call("One", max_tokens=12, temperature=1.0, seed=1),
        call("One", max_tokens=12, temperature=1.0, seed=2),
        call("Another, longer question " * 3, max_tokens=20),
        call("One", max_tokens=30, temperature=0.5, seed=1),
        call("Form", form=Items, max_tokens=10),
        call("long " * 900),
    ]
    together = asked.answer(calls)
    alone = [asked.answer([one])[0] for one in calls]
    assert [str(a) for a in together] == [str(b) for b in alone]
    texts = [reply(result).text for result in together[:4]]
    assert len(set(texts)) == 4
    assert reply(together[0]).usage.completion_tokens <= 12
    assert reply(together[0]).usage.prompt_tokens == len(ids(asked, calls[0].messages))
    assert isinstance(together[4], Unusable) and together[4].usage.completion_tokens > 0
    assert isinstance(together[5], Unusable) and "too long" in str(together[5])
    assert asked.price(Usage(5, 5)) == Usage(5, 5)
    assert (asked.host, asked.batch, asked.concurrency) == (None, 2, 1)


@pytest.mark.parametrize("held", [True, False])
def test_local_gives_up_a_model_that_writes_no_json(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """A random model never ends an object, held to its form or not; that costs no hours."""
    if not held:
        monkeypatch.setattr("pfi.augment.teachers.local.grammar_of", lambda *_: None)
    asked = local(folder(TEMPLATE))
    calls = [
        call(f"Form {i}", form=Items, max_tokens=150, temperature=1.0, seed=i) for i in range(6)
    ]
    for i in (0, 2):
        for result in asked.answer(calls[i : i + 2]):
            assert isinstance(result, Unusable) and "JSON" in str(result)
    plain = asked.answer([call("Text", max_tokens=4, temperature=1.0)])
    assert isinstance(plain[0], Reply) and asked.batch == 2, "plain text says nothing of JSON"
    with pytest.raises(
        TeacherError, match=r"none of its first 6 answers.*: \d x the answer"
    ) as error:
        asked.answer(calls[4:])
    assert "take a larger model" in str(error.value)


def test_local_answers_are_held_to_their_form(folder: Callable[[str], Path]) -> None:
    """A random model writes JSON of any form that it can come to the end of."""
    asked = local(folder(TEMPLATE))
    calls = [call(f"{i}", form=Choice, max_tokens=40, temperature=1.0, seed=i) for i in range(4)]
    texts = [json.loads(reply(result).text) for result in asked.answer(calls)]
    assert all(text["label"] in ("good", "bad") for text in texts)


def test_local_goes_on_after_one_usable_answer(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = local(folder(TEMPLATE))
    good = asked._backbone.token_ids('{"items": [{"text": "a", "label": "bad"}]}')
    bad = asked._backbone.token_ids("no object")
    monkeypatch.setattr(asked, "_generate", lambda calls, *_: [good, *[bad] * (len(calls) - 1)])
    for _ in range(4):
        results = asked.answer([call(form=Items)] * 3)
        assert [isinstance(result, Reply) for result in results] == [True, False, False]
    assert asked.batch == 8


def test_local_ends_answers_that_are_whole_or_come_to_nothing(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = local(folder(TEMPLATE))
    ids = asked._backbone.token_ids
    scripts = [
        ids('{"items": [{"text": "a", "label": "bad"}]}' + " and more of it" * 100),
        ids("fox " * 300),
        ids(" ".join(f"word{i}" for i in range(300))),
    ]

    def scripted(one: Call) -> Pick:
        left = iter(scripts[one.seed])
        return lambda logits, numbers: torch.tensor([next(left)])

    monkeypatch.setattr(asked, "_pick", scripted)
    calls = [call(form=Items, max_tokens=500, seed=i) for i in range(3)]
    whole, looping, prose = asked.answer(calls)
    assert (
        reply(whole).usage.completion_tokens
        <= len(ids('{"items": [{"text": "a", "label": "bad"}]}')) + 16
    )
    assert isinstance(looping, Unusable) and looping.usage.completion_tokens <= 64
    assert isinstance(prose, Unusable) and prose.usage.completion_tokens <= 64
    text = asked.answer([call(max_tokens=500, seed=2)])[0]
    assert reply(text).usage.completion_tokens > 400, "plain text needs no brace"


def test_local_json_is_read_out_of_the_text(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = local(folder(TEMPLATE))
    written = 'Sure: {"items": [{"text": "a", "label": "bad"}]} ok'
    ids = asked._backbone.token_ids(written)
    monkeypatch.setattr(asked, "_generate", lambda *_: [ids, ids])
    text, form = asked.answer([call(), call(form=Items)])
    assert reply(text).text == written
    assert Items.model_validate_json(reply(form).text).items[0].label == "bad"
    assert reply(form).usage.completion_tokens == len(ids)


def test_local_without_a_template_and_models_that_cannot(
    backbone_folder: Callable[[str], Path], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = local(backbone_folder("gpt2"))
    assert prompt(bare, call("Hi").messages) == "You write records.\n\nHi\n"
    reply(bare.answer([call("Hi", max_tokens=9, temperature=1.0)])[0])
    with pytest.raises(TeacherError, match="encoder-decoder"):
        local(backbone_folder("t5"))
    with pytest.raises(TeacherError, match="no model"):
        LocalTeacher(TeacherConfig(kind="local"))
    with pytest.raises(BackboneError):
        local(tmp_path / "nothing")
    one, other = local(backbone_folder("llama")), local(backbone_folder("qwen2"))
    assert one.name != other.name and one.name == local(backbone_folder("llama")).name
    assert str(tmp_path.parent) not in one.name


def test_make_teacher_makes_the_one_that_is_named(backbone_folder: Callable[[str], Path]) -> None:
    stand_in: Any = object()

    def never() -> Any:
        raise AssertionError

    assert make_teacher(TeacherConfig(), embedded=lambda: stand_in) is stand_in
    config = TeacherConfig(kind="local", model=str(backbone_folder("gpt2")))
    assert isinstance(make_teacher(config, embedded=never), LocalTeacher)
    config = TeacherConfig(kind="openai", model="m", base_url="http://localhost:1/v1")
    assert isinstance(make_teacher(config, embedded=never), RemoteTeacher)
