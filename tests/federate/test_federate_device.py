"""A device in a federation while its records change, and simulation from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.datasets.demo import write_demo
from pfi.errors import FederationError
from pfi.federate.config import FederateConfig
from pfi.federate.deploy import local
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.agent.runtime import DeviceRuntime
from pfi.federate.deploy.keys.invitation import FILE, Invitation
from pfi.federate.deploy.keys.nodes import ROSTER
from pfi.federate.events import read_rounds
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.roster import Roster
from pfi.federate.strategy import LinearStrategy
from pfi.profile.config import HomeConfig
from pfi.profile.erase.statement import sent
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

TASK = "LaMP_3"
LOCAL = {"rank": 2, "max_length": 48}


def _record(n: int) -> Record:
    return Record(f"r{n}", TASK, {"text": f"review {n}"}, "4")


def test_a_running_device_learns_from_the_records_of_now(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    config = FederateConfig.model_validate({"local": LOCAL})
    home = create_home(
        "p", root=tmp_path, config=HomeConfig(backbone=str(backbone_folder("llama")))
    )
    invitation = Invitation(
        federation="f", client="p", server="host:1", ca="", operator="0" * 64, settings={}
    )
    runtime = DeviceRuntime(home, get_task(TASK), invitation, config)
    runtime.load()
    strategy = runtime._clients.strategy
    message = strategy.broadcast(strategy.start(), "p", 0)

    def counted(round: int) -> int:
        values = {**message.values, **runtime._clients.terms, "kind": "evaluate", "round": round}
        reply = runtime(Message(message.arrays, values).encode())
        return int(Message.decode(reply).number("examples"))

    with home.open_vault() as vault:
        vault.add(_record(n) for n in range(3))
        assert counted(0) == 3
        vault.add([_record(3)])
        assert counted(1) == 4
        vault.delete(["r0", "r1"])
        assert counted(2) == 2


def test_secure_sums_can_be_simulated_from_the_command_line(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    write_demo(tmp_path / "data", seed=1, train_users=6, users=2)
    local = "{rank: 2, max_length: 48, steps: 1}"
    secure = "secure={smallest: 4}"
    settings = ["rounds=1", "cohort=4", "held_out=0", f"local={local}", secure]
    arguments = ["federate", "simulate", "--data", str(tmp_path / "data"), "--task", TASK]
    arguments += ["--backbone", str(backbone_folder("llama")), "--out", str(tmp_path / "out")]
    for pair in settings:
        arguments += ["--set", pair]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


class Devices:
    """Real devices as a fleet, without what lies between them and a server."""

    def __init__(self, devices: Mapping[str, DeviceRuntime]) -> None:
        self.devices = devices

    def clients(self) -> Sequence[str]:
        return list(self.devices)

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for client, data in messages.items():
            try:
                yield client, self.devices[client](data)
            except FederationError as error:
                yield client, Failure(error.what)


#: What a device sends in a secure round, by the ledger's kinds.
SECURE = ["ready", "secure keys", "secure shares", "update", "secure survivors", "secure unmask"]


@pytest.mark.parametrize("secure", [True, False])
def test_the_ledger_names_what_left_and_a_statement_counts_one_update_a_round(
    tmp_path: Path, backbone_folder: Callable[[str], Path], secure: bool
) -> None:
    names = ["a", "b", "c", "d", "e"]
    settings: dict[str, Any] = {
        "strategy": "feddpa",
        "dual": {"rank": 1, "when": "F"},
        "rounds": 2,
        "evaluate_every": 1,
        "held_out": 0.2,
        "local": {**LOCAL, "steps": 1},
        "secure": {"smallest": 4} if secure else None,
    }
    keys = local.make_operator(tmp_path / "out", 1)
    homes = {
        name: create_home(
            name, root=tmp_path, config=HomeConfig(backbone=str(backbone_folder("llama")))
        )
        for name in names
    }
    local.invite(keys, {name: home.path / FOLDER for name, home in homes.items()}, settings, TASK)
    devices: dict[str, DeviceRuntime] = {}
    for name, home in homes.items():
        with home.open_vault() as vault:
            vault.add(_record(n) for n in range(2))
        invitation = Invitation.read(home.path / FOLDER / FILE)
        config = FederateConfig.model_validate(invitation.settings)
        devices[name] = DeviceRuntime(home, get_task(TASK), invitation, config)
    strategy = devices["a"]._clients.strategy
    assert isinstance(strategy, LinearStrategy)
    parties = None
    if config.secure is not None:
        operator = bytes.fromhex(invitation.operator)
        roster = Roster.read((keys / ROSTER).read_bytes(), operator, invitation.federation)
        parties = Parties(config.secure.pin(invitation.federation, strategy.size), roster)
    federation = Federation(
        config, strategy, Devices(devices), tmp_path / "run", simulated=False, parties=parties
    )
    federation.run()
    assert [event["clients"] for event in read_rounds(tmp_path / "run")] == [4, 4]
    assert len(federation.train) == 4

    ever = datetime.min.replace(tzinfo=UTC)
    for name, home in homes.items():
        kinds = [entry.kind for entry in home.open_ledger().entries()]
        updates = sent(home, lambda shows: False, ever)["updates"]
        if name in federation.held_out:
            assert kinds == ["measure"] * 2 and updates == {}
        else:
            assert kinds == (SECURE if secure else ["update"]) * 2 + ["finish"]
            assert updates == {"localhost": 2}
