"""Deployment without a network: doors, the fleet over a grid, the ClientApp, commands."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deploy_agents import running
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.errors import FederationError
from pfi.federate.deploy.keys.invitation import Invitation
from pfi.federate.deploy.keys.keys import make_server_keys
from pfi.federate.deploy.keys.nodes import (
    PUBLIC,
    create_nodes,
    make_device_keys,
    register,
    unregister,
)
from pfi.federate.message import Failure, Message

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from flwr.supercore.task_identity import TaskIdentity

from pfi.federate.deploy.check import echo, run_check
from pfi.federate.deploy.records import pack, pack_failure, unpack
from pfi.federate.deploy.server.doors import LARGEST_REQUEST, verdict
from pfi.federate.deploy.server.fleet import FlowerFleet


def _scope(path: str, **change: Any) -> dict[str, Any]:
    headers = [(b"content-length", b"10")]
    plain = {"type": "http", "method": "POST", "path": path, "headers": headers}
    return {**plain, "client": ("198.51.100.2", 4000), **change}


def test_doors() -> None:
    here = {"client": ("127.0.0.1", 4000)}
    assert verdict(_scope("/v1/fleet/pull-messages")) is None
    assert verdict(_scope("/v1/runtime/pull-messages", **here)) is None
    assert verdict(_scope("/v1/runtime/pull-messages")) == 404
    assert verdict(_scope("/v1/runtime/pull-messages", client=None)) == 404
    for path in ("/v1/control/start-run", "/docs", "/openapi.json", "/health", "/"):
        assert verdict(_scope(path, **here)) == 404
    assert verdict(_scope("/v1/fleet/pull-messages", method="GET")) == 404
    assert verdict(_scope("/v1/fleet/x", type="websocket")) == 404
    for length in ([], [b"x"], [b"-1"], [b"1", b"1"], [b"%d" % (LARGEST_REQUEST + 1)]):
        headers = [(b"Content-Length", value) for value in length]
        assert verdict(_scope("/v1/fleet/push-object", headers=headers)) == 413
    chunked = [(b"transfer-encoding", b"chunked")]
    assert verdict(_scope("/v1/fleet/push-object", headers=chunked)) == 413


# The fleet, over a grid without a network -------------------------------------------------


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower's processes are told of themselves."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)


@dataclass
class FakeGrid:
    """Nodes that answer at once, with errors, late or never."""

    answers: Mapping[str, Any]
    most: int = 0
    sent: list[Any] = field(default_factory=list)
    run: Any = field(default_factory=lambda: SimpleNamespace(run_id=7))

    def get_nodes(self) -> Sequence[Any]:
        return [
            SimpleNamespace(name=name, node_id=number)
            for number, name in enumerate(self.answers, 1)
            if self.answers[name] != "away"
        ]

    def push_messages(self, messages: Sequence[Any]) -> list[str]:
        self.sent += messages
        names = list(self.answers)
        numbers = []
        for message in messages:
            name = names[message.metadata.dst_node_id - 1]
            numbers.append("" if self.answers[name] == "not taken" else name)
        return numbers

    def pull_messages(self, numbers: Sequence[str]) -> list[Any]:
        self.most = max(self.most, len(numbers))
        found = []
        for number in numbers:
            said = self.answers[number]
            if said in ("never", "away"):
                continue
            if isinstance(said, Exception):
                reply: Any = SimpleNamespace(
                    has_error=lambda: True, error=SimpleNamespace(reason=str(said), code=5)
                )
            else:
                content = said if not isinstance(said, bytes) else pack(said, id="x")
                reply = SimpleNamespace(has_error=lambda: False, content=content)
            reply.metadata = SimpleNamespace(reply_to_message_id=number)
            found.append(reply)
        return found


def test_a_fleet_yields_replies_and_says_why_others_gave_none() -> None:
    from flwr.app import ConfigRecord, RecordDict

    damaged = pack(b"good")
    damaged.config_records["about"]["sha256"] = "0" * 64
    answers = {
        "a": b"reply",
        "b": RuntimeError("node is not available"),
        "c": pack_failure("the device failed (OSError); see its log"),
        "d": RecordDict({"other": ConfigRecord({"x": 1})}),
        "e": damaged,
        "f": "never",
        "g": "away",
        "h": "not taken",
    }
    fleet = FlowerFleet(FakeGrid(answers), sorted(answers), poll=0.01)  # type: ignore[arg-type]
    assert fleet.clients() == list("abcdefgh")
    assert fleet.connected() == list("abcdefh")
    started = time.monotonic()
    got = dict(fleet.ask(3, dict.fromkeys([*answers, "stranger"], b"question"), 0.3))
    assert 0.3 < time.monotonic() - started < 2
    assert got.pop("a") == b"reply"
    why = {client: reply.why for client, reply in got.items() if isinstance(reply, Failure)}
    assert why == {
        "b": "node is not available",
        "c": "the device failed (OSError); see its log",
        "d": "a Flower message holds no message of ours",
        "e": "a message was damaged on its way",
        "f": "it was late: no reply in 0.3 s",
        "g": "it is not connected",
        "h": "the SuperLink did not take its message",
        "stranger": "it is not connected",
    }


def test_a_fleet_holds_few_replies_and_asks_alike_again() -> None:
    names = [f"n{number:03}" for number in range(50)]
    grid = FakeGrid(dict.fromkeys(names, b"r"))
    fleet = FlowerFleet(grid, poll=0.01)  # type: ignore[arg-type]
    assert fleet.clients() == names
    for _ in range(2):
        assert len(dict(fleet.ask(1, dict.fromkeys(names, b"q"), 5))) == 50
    assert grid.most <= 16
    ids = [unpack(message)[0] for message in grid.sent]
    assert ids[:50] == ids[50:]
    assert len(set(ids)) == 50
    assert {message.metadata.group_id.partition("/")[0] for message in grid.sent} == {"1"}
    assert max(message.metadata.ttl for message in grid.sent) < 60


def test_a_fleet_waits_for_clients_and_says_how_many_came() -> None:
    fleet = FlowerFleet(FakeGrid({"a": b"", "b": "away"}), ["a", "b"], poll=0.01)  # type: ignore[arg-type]
    assert fleet.wait_for(1, 1) == ["a"]
    with pytest.raises(FederationError, match="1 of 2 clients"):
        fleet.wait_for(2, 0.05)


def test_a_check_sees_what_was_changed_on_the_way() -> None:
    class Here:
        def clients(self) -> Sequence[str]:
            return ["good", "lying", "gone"]

        def ask(self, round: int, messages: Mapping[str, bytes], seconds: float | None = None):  # type: ignore[no-untyped-def]
            yield "good", echo(messages["good"])
            other = Message.decode(messages["lying"])
            values = {name: array + 1 for name, array in other.arrays.items()}
            yield "lying", Message(values, other.values).encode()
            yield "gone", Failure("it was late")

    events: list[dict[str, Any]] = []
    run_check(Here(), rounds=1, size=10, seconds=1, on_round=events.append)
    assert (events[0]["asked"], events[0]["clients"]) == (3, 1)
    assert events[0]["failed"] == {"lying": "its reply is not what it got", "gone": "it was late"}
    with pytest.raises(FederationError, match="answers checks only"):
        echo(Message(values={"kind": "train"}).encode())
    with pytest.raises(FederationError, match="malformed"):
        echo(b"nonsense")


def test_the_client_app_forwards_and_turns_errors_into_replies(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    from flwr.app import Context, RecordDict
    from flwr.app import Message as FlowerMessage

    from pfi.federate.deploy.agent.client_app import app as client_app

    def ask(config: dict[str, Any]) -> FlowerMessage:
        message = FlowerMessage(pack(b"question", id="1"), dst_node_id=1, message_type="query")
        message.metadata.__dict__.update(_run_id=1, _message_id="m", _src_node_id=2)
        context = Context(
            run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={}
        )
        return client_app(message=message, context=context)

    with running(home, lambda data: data + b"!") as path:
        assert unpack(ask({"agent": str(path)})) == ("1", b"question!")
    with pytest.raises(FederationError, match="no agent is running"):
        unpack(ask({"agent": str(path)}))
    with pytest.raises(FederationError, match="does not know its agent"):
        unpack(ask({}))


# Commands -------------------------------------------------------------------------------


def pfi(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_server_keys(folder, ["fl.example.org", "192.0.2.7"])
    create_nodes(folder, "club", "fl.example.org:9092")
    return folder


def test_keys_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    keys, config = str(tmp_path / "keys"), tmp_path / "federation.yaml"
    config.write_text("rounds: 3\nlocal: {steps: 2}\n")
    pfi("init", "--profile", "work")
    pfi("federate", "keys", "server", keys, "--host", "2001:db8::1", "--port", "9100")
    pfi("federate", "keys", "device", "--name", "phone-7", "--profile", "work")
    public = str(tmp_path / "root" / "work" / "federate" / PUBLIC)
    pfi("federate", "keys", "add", keys, public, "--config", str(config))
    shown = json.loads(pfi("federate", "keys", "show", keys, "--json").stdout)
    assert shown["devices"] == ["phone-7"]
    assert shown["server"] == "[2001:db8::1]:9100"
    path = tmp_path / "keys" / "invitations" / "phone-7.json"
    found = Invitation.read(path)
    assert (found.client, found.settings) == ("phone-7", {"rounds": 3, "local": {"steps": 2}})
    assert "PRIVATE" not in path.read_text()
    assert "phone-7" in pfi("federate", "keys", "show", keys).stdout
    pfi("federate", "keys", "renew", keys)
    pfi("federate", "keys", "remove", keys, "phone-7")
    assert json.loads(pfi("federate", "keys", "show", keys, "--json").stdout)["devices"] == []
    config.write_text("rounds: none\n")
    said = pfi("federate", "keys", "add", keys, public, "--config", str(config), code=2).stderr
    assert "rounds" in said
    assert said.count("\n") == 1


def test_errors_of_commands_are_one_line(tmp_path: Path, keys: Path) -> None:
    out, device = str(tmp_path / "out"), tmp_path / "device"
    register(keys, make_device_keys(tmp_path / "other", "other"))
    make_device_keys(device, "me")
    Invitation.make(keys, "other", {}).save(device / "invitation.json")
    unregister(keys, "other")
    (tmp_path / "tried" / "keys").mkdir(parents=True)
    for arguments, said in [
        (["server", str(keys), "--out", out], "no device is registered"),
        (["server", str(tmp_path / "none"), "--out", out], "cannot be read"),
        (["agent", "--check", "--folder", out], "there is no invitation"),
        (["agent", "--check", "--folder", str(device)], "for 'other', and this device is 'me'"),
        (["try", "--check", "--out", str(tmp_path / "tried")], "the folder holds a run"),
        (["try", "--out", out], "there is nothing to learn from"),
        (["status", out], "there are no rounds"),
        (["keys", "server", str(keys), "--host", "x.org"], "not overwritten"),
        (["keys", "server", out], "needs a host"),
    ]:
        found = pfi("federate", *arguments, code=2).stderr
        assert said in found
        assert found.count("\n") == 1
    assert not Path(out).exists()


def test_status_shows_rounds_bytes_loss_and_epsilon(tmp_path: Path) -> None:
    event = {
        "event": "round", "number": 0, "asked": 4, "clients": 2, "failed": {"b": "it was late"},
        "refused": {"c": "its update is not finite"}, "bytes_down": 4096, "bytes_up": 2048,
        "seconds": 1.5, "loss": 0.25, "kept": True, "losses": {},
    }  # fmt: skip
    lines = [
        event,
        {"event": "other"},
        {**event, "number": 1, "kept": False, "epsilon": 3.217, "spent": "It spent 3.2."},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "torn'
    (tmp_path / "events.jsonl").write_text(text)
    shown = pfi("federate", "status", str(tmp_path)).stdout
    assert "round 1: 2 of 4 clients, held-out loss 0.2500, 1.5 s\n  b: it was late\n" in shown
    said = "held-out loss 0.2500, too few, not counted, epsilon 3.22, 1.5 s"
    assert f"round 2: 2 of 4 clients, {said}" in shown
    assert "2 rounds, 8.0 KiB sent to clients, 4.0 KiB received" in shown
    assert shown.endswith("\nIt spent 3.2.\n")
    assert len(json.loads(pfi("federate", "status", str(tmp_path), "--json").stdout)) == 2
