"""Rosters go out in the round: a device that came later breaks nobody's secure sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from pfi.errors import FederationError, PfiError, StorageError
from pfi.federate.agreement import KIND as AGREE
from pfi.federate.agreement import disagreement
from pfi.federate.config import FederateConfig
from pfi.federate.deploy import local
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.agent.runtime import ROSTER_KIND, SERIAL, DeviceRuntime
from pfi.federate.deploy.keys.invitation import Invitation
from pfi.federate.deploy.keys.keys import OPERATOR, OPERATOR_KEY, load_private, make_server_keys
from pfi.federate.deploy.keys.nodes import (
    ROSTER,
    create_nodes,
    make_device_keys,
    register,
    unregister,
)
from pfi.federate.deploy.keys.sealed import KeySeal
from pfi.federate.deploy.server.rosters import RosterFleet
from pfi.federate.events import read_rounds
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.roster import Roster
from pfi.federate.strategy import LinearStrategy
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "cohort": 8,
    "held_out": 0.0,
    "local": {"rank": 2, "max_length": 48, "steps": 1},
    "secure": {"smallest": 4},
}


class Devices:
    """Devices in this process, as a fleet; who is asked what is noted."""

    def __init__(self, devices: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.devices = dict(devices)
        self.asked: list[tuple[str, list[str]]] = []

    def clients(self) -> Sequence[str]:
        return sorted(self.devices)

    def available(self, clients: Sequence[str], least: int, again: int = 0) -> Sequence[str]:
        return clients

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for client, data in messages.items():
            kind = str(Message.decode(data).values["kind"])
            if not self.asked or self.asked[-1][0] != kind:
                self.asked.append((kind, []))
            self.asked[-1][1].append(client)
            try:
                yield client, self.devices[client](data)
            except PfiError as error:
                yield client, Failure(error.what)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return local.make_operator(tmp_path / "out", 1)


def _parties(keys: Path, length: int = 4) -> Parties:
    config = FederateConfig.model_validate(SETTINGS)
    assert config.secure is not None
    text, operator = (keys / ROSTER).read_bytes(), _operator(keys)
    return Parties(config.secure.pin("local", length), Roster.read(text, operator, "local"))


def _operator(keys: Path) -> bytes:
    return bytes.fromhex((keys / OPERATOR).read_text())


# The server -----------------------------------------------------------------------------


class Pocket:
    """A device that keeps the newest roster that it is sent."""

    def __init__(self, operator: bytes, refuses: bool = False) -> None:
        self.operator, self.refuses, self.serial = operator, refuses, -1

    def __call__(self, data: bytes) -> bytes:
        message = Message.decode(data)
        if message.values["kind"] != ROSTER_KIND:
            return b"update"
        if self.refuses:
            raise FederationError("no room")
        roster = Roster.read(str(message.values["roster"]).encode(), self.operator, "local")
        self.serial = max(self.serial, roster.serial)
        return Message(values={SERIAL: self.serial}).encode()


def test_each_device_gets_a_roster_once_and_each_newer_one(keys: Path, tmp_path: Path) -> None:
    for name in "abc":
        register(keys, make_device_keys(tmp_path / name, name))
    parties = _parties(keys)
    devices = Devices({name: Pocket(_operator(keys)) for name in "abc"})
    fleet = RosterFleet(devices, keys, _operator(keys), parties)  # type: ignore[arg-type]
    train, measure = (Message(values={"kind": k}).encode() for k in ("train", "evaluate"))

    def ask(names: str, message: bytes = train) -> list[str]:
        devices.asked.clear()
        assert set(dict(fleet.ask(0, dict.fromkeys(names, message)))) == set(names)
        return [f"{kind} {''.join(clients)}" for kind, clients in devices.asked]

    assert ask("ab", measure) == ["evaluate ab"]
    assert ask("ab") == ["roster ab", "train ab"]
    assert ask("abc") == ["roster c", "train abc"]
    unregister(keys, "b")  # while the run goes on
    assert ask("ac") == ["roster ac", "train ac"]
    assert (set(parties.roster), parties.roster.serial) == ({"a", "c"}, 4)
    # A device with a newer one than the server's keeps it, and is asked.
    devices.devices["a"].serial = 9  # type: ignore[attr-defined]
    register(keys, make_device_keys(tmp_path / "d", "d"))
    assert ask("ac") == ["roster ac", "train ac"]
    assert ask("") == []


def test_a_device_that_does_not_take_the_roster_fails_alone(keys: Path, tmp_path: Path) -> None:
    for name in "ab":
        register(keys, make_device_keys(tmp_path / name, name))
    pockets = {"a": Pocket(_operator(keys)), "b": Pocket(_operator(keys), refuses=True)}
    fleet = RosterFleet(Devices(pockets), keys, _operator(keys), _parties(keys))  # type: ignore[arg-type]
    train = Message(values={"kind": "train"}).encode()
    got = dict(fleet.ask(0, dict.fromkeys("ab", train)))
    assert got == {"a": b"update", "b": Failure("it did not take roster 2: no room")}


def test_a_roster_that_the_operator_did_not_sign_ends_the_run(keys: Path, tmp_path: Path) -> None:
    register(keys, make_device_keys(tmp_path / "a", "a"))
    devices = Devices({"a": Pocket(_operator(keys))})
    fleet = RosterFleet(devices, keys, _operator(keys), _parties(keys))  # type: ignore[arg-type]
    (keys / ROSTER).write_bytes((keys / ROSTER).read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(StorageError, match="signature is not valid"):
        dict(fleet.ask(0, {"a": Message(values={"kind": "train"}).encode()}))
    assert devices.asked == []


# Devices --------------------------------------------------------------------------------


def _device(tmp_path: Path, keys: Path, name: str, backbone: Path) -> DeviceRuntime:
    """A registered device with records and an invitation, and no roster."""
    home = create_home(name, root=tmp_path / "homes", config=HomeConfig(backbone=str(backbone)))
    with home.open_vault() as vault:
        vault.add(Record(f"{name}{n}", "LaMP_3", {"text": f"book {n}"}, "4") for n in range(2))
    register(keys, make_device_keys(home.path / FOLDER, name, under=KeySeal.of(home.keys)))
    invitation = Invitation.make(keys, name, SETTINGS)
    config = FederateConfig.model_validate(SETTINGS)
    return DeviceRuntime(home, get_task("LaMP_3"), invitation, config)


def test_a_device_that_came_later_is_in_the_sum_with_the_others(
    tmp_path: Path, keys: Path, backbone_folder: Callable[[str], Path]
) -> None:
    backbone = backbone_folder("llama")
    names = [f"phone-{n}" for n in range(4)]
    devices = {name: _device(tmp_path, keys, name, backbone) for name in names}
    for device in devices.values():
        (device.home.path / FOLDER / ROSTER).write_bytes((keys / ROSTER).read_bytes())
        device.load()  # with the roster of the four
    devices["new"] = _device(tmp_path, keys, "new", backbone)
    config = FederateConfig.model_validate(SETTINGS)
    strategy = devices["new"]._clients.strategy
    assert isinstance(strategy, LinearStrategy)
    parties = _parties(keys, strategy.size)
    fleet = RosterFleet(Devices(devices), keys, _operator(keys), parties)  # type: ignore[arg-type]
    out = tmp_path / "run"
    Federation(config, strategy, fleet, out, simulated=False, parties=parties).run()
    (event,) = read_rounds(out)
    assert (event["clients"], event["failed"]) == (5, {})
    for device in devices.values():
        kept = Roster.read(
            (device.home.path / FOLDER / ROSTER).read_bytes(), _operator(keys), "local"
        )
        assert kept.serial == 5
        kinds = [entry.kind for entry in device.home.open_ledger().entries()]
        assert kinds[:2] == [ROSTER_KIND, "ready"]


def test_a_device_takes_newer_rosters_of_its_operator_only(
    tmp_path: Path, keys: Path, backbone_folder: Callable[[str], Path]
) -> None:
    device = _device(tmp_path, keys, "phone", backbone_folder("llama"))
    path = device.home.path / FOLDER / ROSTER

    def send(text: bytes) -> int:
        values: dict[str, Any] = {"kind": ROSTER_KIND, "roster": text.decode()}
        return int(Message.decode(device(Message(values=values).encode())).number(SERIAL))

    first = (keys / ROSTER).read_bytes()
    assert not path.exists() and send(first) == 1 and path.read_bytes() == first
    register(keys, make_device_keys(tmp_path / "other", "other"))
    second = (keys / ROSTER).read_bytes()
    assert send(second) == 2 and send(first) == 2, "an older one is left alone"
    assert path.read_bytes() == second
    other = tmp_path / "foreign"
    make_server_keys(other, ["localhost"])
    create_nodes(other, "local", "localhost:1")
    for text in ((other / ROSTER).read_bytes(), b"", b"nonsense", second.replace(b"other", b"o")):
        with pytest.raises(FederationError, match="signature is not valid"):
            send(text)
    # One that lacks this device, or has another key for it, is not taken into use.
    operator = load_private(keys / OPERATOR_KEY)
    for clients in ({}, {"phone": bytes(32)}):
        with pytest.raises(StorageError, match="lacks this device's key"):
            send(Roster(clients, "local", 9).signed(operator))
    assert path.read_bytes() == second


def test_a_device_says_what_it_works_with_and_refuses_messages_that_do_not(
    tmp_path: Path, keys: Path, backbone_folder: Callable[[str], Path]
) -> None:
    device = _device(tmp_path, keys, "phone", backbone_folder("llama"))
    said = Message.decode(device(Message(values={"kind": AGREE}).encode()))
    fingerprint = device._clients.strategy.layout.backbone
    assert said.values["task"] == "LaMP_3"
    assert disagreement(device.config, fingerprint, said) == ""
    (entry,) = device.home.open_ledger().entries()
    assert entry.kind == AGREE
    for kind in ("train", "evaluate", "finish", "other"):
        asked = Message(values={"kind": kind, "round": 0}).encode()
        with pytest.raises(FederationError, match="the server runs other settings"):
            device(asked)
