"""How far a token reaches: several profiles, only as long as it lasts, only so many records."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_world import FakeEngine, World, make_homes, serving
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import ConfigError, StorageError
from pfi.profile.home import Home
from pfi.serve import opened
from pfi.serve.auth import (
    Caller,
    new_shared_token,
    new_token,
    revoke_token,
    tokens_of,
)
from pfi.serve.gatekeeper import Gatekeeper
from pfi.serve.opened import until_revoked


def client_of(world: World, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=world.url, api_key=token, max_retries=0, timeout=30)


def said(client: openai.OpenAI, model: str, **more: Any) -> Any:
    talk = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(model=model, messages=talk, **more)  # type: ignore[call-overload]


# Several profiles ---------------------------------------------------------------------


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Home]:
    return make_homes(tmp_path, ["ann", "bob", "cat"])


def test_one_token_opens_the_profiles_that_it_was_made_for(homes: dict[str, Home]) -> None:
    both = {name: homes[name] for name in ("ann", "cat")}
    token, text = new_shared_token(both, "window")
    assert [tokens_of(home)[0].id for home in both.values()] == [token.id] * 2
    with serving(homes, FakeEngine()) as world:
        client = client_of(world, text)
        names = [model.id for model in client.models.list()]
        assert names.count("generic") == 1 and {"ann", "cat"} <= set(names)
        assert not any(name.startswith("bob") for name in names)
        for name, home in both.items():
            assert home.keys.profile in said(client, name).choices[0].message.content
            assert client.models.retrieve(name).id == name
        assert homes["ann"].keys.profile in said(client, "generic").choices[0].message.content
        for name in ("bob", "bob/instruction", "dan"):
            with pytest.raises(openai.NotFoundError):
                said(client, name)
        tags = httpx.get(f"{world.root}/api/tags", headers={"Authorization": f"Bearer {text}"})
        assert {"ann", "cat"} <= {model["model"] for model in tags.json()["models"]}


def test_each_profile_takes_it_back_for_itself(homes: dict[str, Home]) -> None:
    both = {name: homes[name] for name in ("ann", "cat")}
    token, text = new_shared_token(both)
    keeper = Gatekeeper(homes)
    assert [one.profile for one in keeper.callers(text)] == ["ann", "cat"]
    revoke_token(homes["ann"], token.id)
    assert [one.profile for one in keeper.callers(text)] == ["cat"]
    revoke_token(homes["cat"], token.id)
    assert keeper.callers(text) == ()


def test_a_profile_that_gets_the_token_later_is_seen_at_once(homes: dict[str, Home]) -> None:
    """The server may read one vault before the token has been written to the other."""
    from pfi.serve.auth import _stored

    keeper = Gatekeeper(homes)
    both = {name: homes[name] for name in ("ann", "cat")}
    token, text = new_shared_token(both)
    revoke_token(homes["cat"], token.id)
    assert [one.profile for one in keeper.callers(text)] == ["ann"]
    _stored(homes["cat"], token)
    assert [one.profile for one in keeper.callers(text)] == ["ann", "cat"]


def test_no_token_is_half_made_and_none_is_everybodys_administrator(
    homes: dict[str, Home],
) -> None:
    for _ in range(100):
        new_token(homes["bob"])
    with pytest.raises(ConfigError, match="100 tokens"):
        new_shared_token({name: homes[name] for name in ("ann", "bob")})
    assert tokens_of(homes["ann"]) == []
    with pytest.raises(ConfigError, match="console"):
        new_shared_token(homes, scopes=["admin"])
    assert new_shared_token({"ann": homes["ann"]}, scopes=["admin"])[0].profiles == ()


def test_the_command_line_names_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    homes = make_homes(tmp_path, ["ann", "cat"], records=0)

    def pfi(*line: str) -> Any:
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
        return done

    text = pfi("tokens", "new", "--profile", "ann", "--profile", "cat").stdout.split()[0]
    assert [one.profile for one in Gatekeeper(homes).callers(text)] == ["ann", "cat"]
    (entry,) = json.loads(pfi("tokens", "list", "--profile", "cat", "--json").stdout)
    assert entry["profiles"] == ["ann", "cat"]
    done = pfi("tokens", "revoke", entry["id"], "--profile", "ann")
    assert f"pfi tokens revoke {entry['id']} --profile cat" in done.output
    pfi("tokens", "revoke", entry["id"], "--profile", "cat")
    assert Gatekeeper(homes).callers(text) == ()


# As long as it lasts ------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Answers take half a minute, unless they are ended."""
    homes = make_homes(tmp_path_factory.mktemp("slow"), ["ann"])
    with serving(homes, FakeEngine(delay=0.1, size=1, answer="x" * 300)) as world:
        yield world


def later(seconds: float, act: Callable[[], Any]) -> None:
    threading.Timer(seconds, act).start()


STREAMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, "data: "),
    "completions": ("/v1/completions", {"prompt": "hi"}, "data: "),
    "responses": ("/v1/responses", {"input": "hi"}, "data: "),
    "ollama": ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}, ""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_revoking_ends_an_answer_that_streams(slow: World, name: str) -> None:
    path, body, mark = STREAMS[name]
    home = slow.service.home("ann")
    token, text = new_token(home)
    before, begun = slow.engine.cancelled, 0.0
    lines = []
    ask = {"model": "ann", "stream": True, "max_tokens": 300, **body}
    headers = {"Authorization": f"Bearer {text}"}
    with httpx.stream("POST", slow.root + path, json=ask, headers=headers, timeout=40) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if not lines:
                revoke_token(home, token.id)
                begun = time.monotonic()
            if line:
                lines.append(line)
    assert time.monotonic() - begun < 4
    assert "revoked" in lines[-1] and lines[-1].startswith(mark)
    if name in ("chat", "completions"):
        assert json.loads(lines[-1].removeprefix(mark))["error"]["code"] == "invalid_api_key"
    until = time.monotonic() + 5
    while slow.engine.cancelled == before and time.monotonic() < until:
        time.sleep(0.05)
    assert slow.engine.cancelled == before + 1


def test_revoking_and_expiry_end_an_answer_that_comes_whole(slow: World) -> None:
    home = slow.service.home("ann")
    token, text = new_token(home)
    later(0.5, lambda: revoke_token(home, token.id))
    _, brief = new_token(home, expires=datetime.now(UTC) + timedelta(seconds=3))
    for key in (text, brief):
        begun = time.monotonic()
        with pytest.raises(openai.AuthenticationError, match="before the answer was whole"):
            said(client_of(slow, key), "ann", max_tokens=300)
        assert time.monotonic() - begun < 8


def test_another_tokens_end_ends_nothing(slow: World) -> None:
    home = slow.service.home("ann")
    other, _ = new_token(home)
    later(0.3, lambda: revoke_token(home, other.id))
    answer = said(slow.client("ann"), "ann", max_tokens=30)
    assert len(answer.choices[0].message.content) == 30


class Locked:
    """A gatekeeper whose vault cannot be read for some time, or ever."""

    pool = None

    def __init__(self, answers: list[bool | None]) -> None:
        self.answers = answers

    def still(self, *_: str) -> bool:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise StorageError("locked")
        return answer


@pytest.mark.parametrize(
    ("answers", "least", "most"),
    [
        ([None, True, None, None, False], 0.05, 0.3),  # a lock that passes
        ([None], 0.2, 0.6),  # one that does not
    ],
)
def test_a_vault_that_cannot_be_read_ends_an_answer_after_a_while(
    monkeypatch: pytest.MonkeyPatch, answers: list[bool | None], least: float, most: float
) -> None:
    monkeypatch.setattr(opened, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(opened, "UNCHECKED_SECONDS", 0.2)
    keeper: Any = Locked(answers)
    begun = time.monotonic()
    asyncio.run(asyncio.wait_for(until_revoked(keeper, Caller("ann", "t")), 5))
    assert least - 0.02 <= time.monotonic() - begun < most + 2


# Only so many records -----------------------------------------------------------------


def test_an_app_gets_no_more_records_than_the_profile_says(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann"], records=12)
    most = homes["ann"].config.retrieve
    assert most < 12
    _, app_token = new_token(homes["ann"])
    with serving(homes, FakeEngine()) as world:
        counts = {}
        for name, key in {"answer": app_token, "memory": world.tokens["ann"]}.items():
            for wanted in (0, 1, 12):
                asked = {"pfi": {"records": wanted}}
                talk = [{"role": "user", "content": "secret of ann number 3"}]
                reply = client_of(world, key).chat.completions.create(
                    model="ann",
                    messages=talk,  # type: ignore[arg-type]
                    max_tokens=5,
                    extra_body=asked,
                )
                why: Any = reply.pfi  # type: ignore[attr-defined]
                counts[name, wanted] = why["retrieved"] + why["dropped"]
    assert [counts["answer", n] for n in (0, 1, 12)] == [0, 1, most]
    assert [counts["memory", n] for n in (0, 1)] == [0, 1] and counts["memory", 12] > most
