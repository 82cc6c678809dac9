"""A device in a federation while its records change, and simulation from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.data.demo import write_demo
from pfi.data.records import Record
from pfi.device import Home, HomeConfig
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.invitation import Invitation
from pfi.federate.deploy.runtime import DeviceRuntime
from pfi.federate.message import Message
from pfi.tasks import get_task

TASK = "LaMP_3"
LOCAL = {"rank": 2, "max_length": 48}


def _record(n: int) -> Record:
    return Record(f"r{n}", TASK, {"text": f"review {n}"}, "4")


def test_a_running_device_learns_from_the_records_of_now(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    config = FederateConfig.model_validate({"local": LOCAL})
    home = Home.create(
        "p", root=tmp_path, config=HomeConfig(backbone=str(backbone_folder("llama")))
    )
    invitation = Invitation(
        federation="f", client="p", server="host:1", ca="", operator="0" * 64, settings={}
    )
    runtime = DeviceRuntime(home, get_task(TASK), invitation, config)
    runtime.load()
    strategy = runtime._clients.strategy
    message = strategy.broadcast(strategy.start(), "p", 0)
    asked = Message(message.arrays, {**message.values, "kind": "evaluate", "round": 0})

    def counted() -> int:
        return int(Message.decode(runtime(asked.encode())).number("examples"))

    with home.open_vault() as vault:
        vault.add(_record(n) for n in range(3))
        assert counted() == 3
        vault.add([_record(3)])
        assert counted() == 4
        vault.delete(["r0", "r1"])
        assert counted() == 2


def test_secure_sums_can_be_simulated_from_the_command_line(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    write_demo(tmp_path / "data", seed=1, train_users=6, users=2)
    local = "{rank: 2, max_length: 48, steps: 1}"
    settings = ["rounds=1", "cohort=3", "held_out=0", f"local={local}", "secure={}"]
    arguments = ["federate", "simulate", "--data", str(tmp_path / "data"), "--task", TASK]
    arguments += ["--backbone", str(backbone_folder("llama")), "--out", str(tmp_path / "out")]
    for pair in settings:
        arguments += ["--set", pair]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
