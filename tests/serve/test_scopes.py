"""What a token opens, for how long, and that it ends at once: in the API and in the console."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from console_service import headline, make_home, make_service
from fastapi.testclient import TestClient
from serve_world import FakeEngine, World, make_homes, serving

from pfi.errors import ConfigError, PfiError, StorageError
from pfi.profile.home import TOKENS, Home
from pfi.serve import ServeConfig
from pfi.serve.app import create_app
from pfi.serve.auth import Caller, new_token, note_use, revoke_token, tokens_of
from pfi.serve.console.view import ROOT, console_of
from pfi.serve.gatekeeper import FRESH_SECONDS, Gatekeeper

BASE = "http://127.0.0.1:8484"
FROM_HERE = {"Origin": BASE, "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def ann(tmp_path: Path) -> Home:
    return make_homes(tmp_path, ["ann"], records=0)["ann"]


def hour(n: float) -> datetime:
    """Some hours from now."""
    return datetime.now(UTC) + timedelta(hours=n)


# Scopes -----------------------------------------------------------------------------


def test_a_token_is_an_answer_token_unless_said_otherwise(ann: Home) -> None:
    keeper = Gatekeeper({"ann": ann})
    expected = {
        (): {"answer"},
        ("answer",): {"answer"},
        ("memory",): {"answer", "memory"},
        ("admin",): {"answer", "memory", "admin"},
    }
    for scopes, opened in expected.items():
        _, text = new_token(ann, scopes=scopes) if scopes else new_token(ann)
        caller = keeper.caller(text)
        assert caller is not None and caller.scopes == opened
    for wrong in (["root"], ["answer", "Admin"], []):
        with pytest.raises(ConfigError):
            new_token(ann, scopes=wrong)


def test_tokens_of_an_older_pfi_open_the_least(ann: Home) -> None:
    token, text = new_token(ann, scopes=["admin"])
    old = {"id": token.id, "sha256": token.sha256, "label": "", "created": token.created}
    with ann.open_vault() as vault:
        vault.set_setting(TOKENS, [old])
    caller = Gatekeeper({"ann": ann}).caller(text)
    assert caller is not None and caller.scopes == {"answer"}


@pytest.mark.parametrize(
    "entry", [{}, {"id": "x"}, {"scopes": 5, "id": "x"}, {"id": "x", "sha256": 1}]
)
def test_a_damaged_list_opens_nothing(ann: Home, entry: dict[str, object]) -> None:
    _, text = new_token(ann)
    with ann.open_vault() as vault:
        vault.set_setting(TOKENS, [entry])
    with pytest.raises(PfiError):
        assert Gatekeeper({"ann": ann}).caller(text) is None
        raise StorageError("refused")


def test_only_an_admin_signs_in_to_the_console(tmp_path: Path) -> None:
    anna = make_home(tmp_path, "anna", [headline(1)])
    app = create_app(make_service([anna]))
    for scopes, status in {("answer",): 403, ("memory",): 403, ("admin",): 303}.items():
        client = TestClient(app, base_url=BASE, headers=FROM_HERE)
        _, text = new_token(anna, scopes=scopes)
        reply = client.post(f"{ROOT}/signin", data={"token": text}, follow_redirects=False)
        assert reply.status_code == status
        assert bool(client.cookies) == (status == 303)
        seen = client.get(f"{ROOT}/data/records", follow_redirects=False)
        assert ("Ice closes harbour 1" in seen.text) == (status == 303)


# What a session makes ---------------------------------------------------------------


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[Home, TestClient, str]]:
    """A profile, a browser that signed in with an admin's token, and that token's id."""
    anna = make_home(tmp_path, "anna", [headline(1)])
    app = create_app(make_service([anna]))
    token, text = new_token(anna, scopes=["admin"], expires=hour(5))
    client = TestClient(app, base_url=BASE, headers=FROM_HERE)
    assert client.post(f"{ROOT}/signin", data={"token": text}).status_code == 200
    yield anna, client, token.id


def make(client: TestClient, **form: str) -> str:
    shown = client.post(f"{ROOT}/settings/tokens", data=form).text
    (text,) = re.findall(r"pfi-[\w-]{40,}", shown)
    return str(text)


def test_what_a_token_makes_ends_with_it(console: tuple[Home, TestClient, str]) -> None:
    anna, client, parent = console
    keeper = Gatekeeper({"anna": anna})
    text = make(client, memory="true", days="300")
    caller = keeper.caller(text)
    assert caller is not None and caller.scopes == {"answer", "memory"}
    child = next(token for token in tokens_of(anna) if token.id == caller.token)
    assert child.parent == parent
    assert child.expires is not None and datetime.fromisoformat(child.expires) <= hour(5)
    revoked = revoke_token(anna, parent)
    assert [token.id for token in revoked] == [parent, child.id]
    assert keeper.caller(text) is None and tokens_of(anna) == []
    assert client.get(f"{ROOT}/data", follow_redirects=False).status_code == 303


def test_no_token_makes_one_that_opens_the_console(console: tuple[Home, TestClient, str]) -> None:
    anna, client, parent = console
    make(client, scopes="admin", scope="admin", admin="true")
    assert [token.scopes for token in tokens_of(anna) if token.parent] == [("answer",)]
    with pytest.raises(ConfigError, match="admin"):
        new_token(anna, scopes=["admin"], parent=parent)
    app, _ = new_token(anna, scopes=["memory"])
    for nobody in (app.id, "nothing"):
        with pytest.raises(ConfigError, match="admin token"):
            new_token(anna, parent=nobody)


def test_the_owners_link_makes_tokens_that_last(tmp_path: Path) -> None:
    anna = make_home(tmp_path, "anna")
    app = create_app(make_service([anna]))
    client = TestClient(app, base_url=BASE, headers=FROM_HERE)
    code = console_of(app).sessions.new_code("anna")
    client.post(f"{ROOT}/signin", data={"code": code})
    caller = Gatekeeper({"anna": anna}).caller(make(client))
    assert caller is not None
    (token,) = tokens_of(anna)
    assert token.parent is None and token.expires is None


def test_grandchildren_go_too_and_others_stay(ann: Home) -> None:
    first, _ = new_token(ann, scopes=["admin"])
    other, text = new_token(ann)
    new_token(ann, parent=first.id)
    second, _ = new_token(ann, parent=first.id)
    with ann.open_vault() as vault, vault.change_setting(TOKENS) as setting:
        setting.value = [
            {**entry, "parent": second.id} if number == 2 else entry
            for number, entry in enumerate(setting.value)
        ]
    assert len(revoke_token(ann, first.id)) == 3
    assert tokens_of(ann) == [other]
    with pytest.raises(ConfigError, match="no token"):
        revoke_token(ann, first.id)
    assert Gatekeeper({"ann": ann}).caller(text) == Caller("ann", other.id)


# Until when -------------------------------------------------------------------------


def test_an_expired_token_opens_nothing_and_neither_does_what_it_made(ann: Home) -> None:
    now = [datetime.now(UTC)]
    keeper = Gatekeeper({"ann": ann}, now=lambda: now[0])
    parent, text = new_token(ann, scopes=["admin"], expires=hour(1))
    _, child = new_token(ann, parent=parent.id)
    assert keeper.caller(text) and keeper.caller(child)
    now[0] += timedelta(minutes=61)
    assert keeper.caller(text) is None and keeper.caller(child) is None
    assert not keeper.still("ann", parent.id, "admin")
    now[0] -= timedelta(days=1)  # a clock that is set back prolongs nothing
    assert keeper.caller(text) is None
    with pytest.raises(ConfigError, match="ended"):
        new_token(ann, expires=hour(-1))


def test_a_clock_set_back_before_the_last_use_ends_a_token(ann: Home) -> None:
    token, text = new_token(ann, expires=hour(3))
    note_use(ann, token.id, hour(5))
    assert Gatekeeper({"ann": ann}).caller(text) is None


def test_the_last_use_is_noted_once_an_hour(ann: Home) -> None:
    now = [datetime(2030, 5, 1, 10, 40, tzinfo=UTC)]
    token, text = new_token(ann)
    other, _ = new_token(ann)
    keeper = Gatekeeper({"ann": ann}, now=lambda: now[0])
    for _ in range(3):
        assert keeper.caller(text)
    keeper.close()
    used = {one.id: one.used for one in tokens_of(ann)}
    assert used == {token.id: "2030-05-01T10:00:00+00:00", other.id: None}


# At once ----------------------------------------------------------------------------


def test_revoking_ends_at_once_and_a_new_token_works_at_once(ann: Home) -> None:
    keeper = Gatekeeper({"ann": ann}, clock=lambda: 0.0)  # time never helps
    token, text = new_token(ann)
    assert keeper.caller(text) == Caller("ann", token.id)
    assert keeper.caller("pfi-" + "x" * 43) is None
    again, newer = new_token(ann)
    assert keeper.caller(newer) == Caller("ann", again.id)
    revoke_token(ann, token.id)
    assert keeper.caller(text) is None and keeper.caller(newer) is not None


def test_tokens_are_read_again_even_if_no_file_seems_to_change(
    ann: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    keeper = Gatekeeper({"ann": ann}, clock=lambda: clock[0])
    token, text = new_token(ann)
    monkeypatch.setattr("pfi.serve.gatekeeper._Kept._stamp_now", lambda kept: ())
    assert keeper.caller(text) is not None
    revoke_token(ann, token.id)
    clock[0] = FRESH_SECONDS + 0.1
    assert keeper.caller(text) is None


def test_a_vault_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    homes = make_homes(tmp_path, ["ann", "bob"], records=0)
    ann, bob = (new_token(home)[1] for home in homes.values())
    keeper = Gatekeeper(homes)
    caller = keeper.caller(ann)
    assert caller is not None
    keeper.close()  # the note of the use is written: nothing repairs what is destroyed now
    for file in homes["ann"].path.glob("vault.db*"):
        file.write_bytes(b"x" * 5000)
    with pytest.raises(StorageError):  # cached tokens too: what cannot be checked is closed
        keeper.caller(ann)
    with pytest.raises(StorageError):
        keeper.still("ann", caller.token, "answer")
    found = keeper.caller(bob)
    assert found is not None and found.profile == "bob"


def test_a_vault_that_is_back_opens_again(ann: Home) -> None:
    clock = [0.0]
    keeper = Gatekeeper({"ann": ann}, clock=lambda: clock[0])
    _, text = new_token(ann)
    assert keeper.caller(text)
    away = ann.vault_file.rename(ann.path / "away.db")
    with pytest.raises(StorageError):
        keeper.caller(text)
    away.rename(ann.vault_file)
    clock[0] += 1.1
    assert keeper.caller(text) is not None


# Over HTTP --------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serving(make_homes(tmp_path, ["ann"]), FakeEngine(), ServeConfig()) as world:  # type: ignore[call-arg]
        yield world


def status_of(world: World, token: str) -> tuple[int, dict[str, object]]:
    reply = httpx.get(f"{world.url}/models", headers={"Authorization": f"Bearer {token}"})
    return reply.status_code, reply.json()


def test_a_vault_that_cannot_be_read_is_503_and_the_key_is_kept(world: World) -> None:
    home, token = world.service.home("ann"), world.tokens["ann"]
    assert status_of(world, token)[0] == 200
    away = home.vault_file.rename(home.path / "away.db")
    home.vault_file.mkdir()
    for key in (token, "pfi-" + "x" * 43):  # nobody can tell which is right
        status, body = status_of(world, key)
        assert status == 503 and "Keep the key" in json.dumps(body)
        assert str(home.path) not in json.dumps(body)
    assert status_of(world, "sk-other")[0] == 401  # which is none of ours, whatever happens
    home.vault_file.rmdir()
    away.rename(home.vault_file)


def test_a_full_disk_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    home, token = world.service.home("ann"), world.tokens["ann"]
    away = home.vault_file.rename(home.path / "away.db")
    monkeypatch.setattr("pfi.serve.guard.disk_full", lambda folder: True)
    status, body = status_of(world, token)
    assert status == 503 and "no space is left" in json.dumps(body)
    away.rename(home.vault_file)


def test_revoking_ends_the_api_at_once(world: World) -> None:
    home, token = world.service.home("ann"), world.tokens["ann"]
    assert status_of(world, token)[0] == 200
    revoke_token(home, tokens_of(home)[0].id)
    assert status_of(world, token)[0] == 401
