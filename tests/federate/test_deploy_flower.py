"""Deployment over TLS on loopback, with Flower's own SuperLink: what survives, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from deploy_world import World, until
from flwr.app import Message, RecordDict
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest

from pfi.errors import FederationError
from pfi.federate.aggregate.exact import as_adapter
from pfi.federate.config import FederateConfig
from pfi.federate.deploy import local
from pfi.federate.deploy.agent.agent import SOCKET, Agent
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.agent.link import Link
from pfi.federate.deploy.agent.runtime import DeviceRuntime
from pfi.federate.deploy.keys.invitation import Invitation, keep_roster
from pfi.federate.deploy.keys.keys import CA, load_server_keys, make_server_keys
from pfi.federate.deploy.keys.nodes import (
    DEVICE_KEY,
    NODE_KEY,
    ROSTER,
    load_node_key,
    make_device_keys,
    read_nodes,
    unregister,
)
from pfi.federate.deploy.records import pack, unpack
from pfi.federate.deploy.server.fleet import FlowerFleet
from pfi.federate.deploy.server.server_app import ADAPTER, make_strategy, run
from pfi.federate.deploy.server.settings import DeployConfig
from pfi.federate.deploy.server.superlink import SuperLink
from pfi.federate.events import read_rounds
from pfi.federate.message import Failure
from pfi.federate.rounds import Federation
from pfi.federate.simulate import SimulatedFleet
from pfi.federate.users import local_examples
from pfi.models.adapters import Adapter
from pfi.models.backbone import load_backbone
from pfi.privacy.ledger.entries import Entry
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.config import HomeConfig
from pfi.profile.erase.statement import sent
from pfi.profile.open import create_home, open_home
from pfi.records import History, Record
from pfi.tasks import Example, Task, get_task

SLOW_AGENT = """
import sys, time
from pathlib import Path
from pfi.federate.deploy.agent.agent import Agent
def work(data):
    Path(sys.argv[1] + ".busy").touch()
    time.sleep(60)
    return b""
Agent(Path(sys.argv[1]), work).serve()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("deploy"))
    yield made
    made.close()


def test_a_round_survives_devices_that_are_killed_late_or_failing(world: World) -> None:
    let_go = threading.Event()

    def late(data: bytes) -> bytes:
        if data == b"one":
            let_go.wait(200)
        return data[::-1]

    def bad(data: bytes) -> bytes:
        raise ValueError("a record's text")

    path = world.root / "killed" / SOCKET
    killed = subprocess.Popen([sys.executable, "-c", SLOW_AGENT, str(path)])
    try:
        with (
            world.device("good", lambda data: data[::-1]),
            world.device("late", late),
            world.device("bad", bad),
            world.device("killed", None),
        ):
            until(lambda: len(world.fleet.connected()) == 4)
            until(path.exists)
            asked = dict.fromkeys(["good", "killed", "bad", "gone"], b"zero")
            got: dict[str, Any] = {}
            for client, reply in world.fleet.ask(0, asked, 200):
                got[client] = reply
                if client == "good":
                    until(Path(f"{path}.busy").exists)
                    killed.kill()
            assert got["good"] == b"orez"
            why = {name: r.why for name, r in got.items() if isinstance(r, Failure)}
            assert why.pop("gone") == "it is not connected"
            assert why.pop("bad") == "the device failed (ValueError); see its log"
            assert why.pop("killed").startswith("the agent went away")
            assert not why
            got = dict(world.fleet.ask(1, {"late": b"one"}, 2))
            assert got == {"late": Failure("it was late: no reply in 2 s")}
            # The reply to round 1 that comes now is ignored; round 2 has its own.
            let_go.set()
            again = dict(world.fleet.ask(2, dict.fromkeys(["good", "late"], b"two"), 200))
            assert again == {"good": b"owt", "late": b"owt"}
            # An agent that was killed is missed until it is back.
            lost = dict(world.fleet.ask(3, {"killed": b"three"}, 200))
            assert isinstance(lost["killed"], Failure)
            assert "no agent is running" in lost["killed"].why
    finally:
        killed.kill()
        killed.wait()


def test_a_large_message_goes_in_pieces(world: World) -> None:
    data = os.urandom(6 << 20)
    with world.device("good", lambda data: data + b"!"):
        until(lambda: "good" in world.fleet.connected())
        assert dict(world.fleet.ask(1, {"good": data}, 120)) == {"good": data + b"!"}


def test_a_reply_beyond_its_limit_is_dropped_as_it_comes(world: World) -> None:
    """Of a device that heeds no limit; it fails, and its link lives."""
    largest = [30 << 20]

    def answer(message: Message) -> RecordDict:
        return pack(os.urandom(largest[0]), id=unpack(message)[0])

    with world.link("good") as link:
        threading.Thread(target=link.serve, args=(answer,), daemon=True).start()
        until(lambda: "good" in world.fleet.connected())
        late = dict(world.fleet.ask(40, {"good": b"q"}, 8))["good"]
        assert isinstance(late, Failure)
        kept = world.server._state.object_store.store.values()
        assert sum(len(entry.content) for entry in kept) < 8 << 20
        largest[0] = 1000
        assert len(dict(world.fleet.ask(41, {"good": b"q"}, 120))["good"]) == 1000


def test_a_request_that_was_seen_is_of_no_use_to_another(world: World) -> None:
    with world.device("good", lambda data: data) as link:
        until(lambda: "good" in world.fleet.connected())
        requests: list[httpx.Request] = []
        send = link._client._client.send

        def seen(request: httpx.Request, *more: Any, **options: Any) -> httpx.Response:
            response = send(request, *more, **options)
            requests.append(request)  # now the server has it
            return response

        link._client._client.send = seen  # type: ignore[method-assign]
        until(lambda: requests)
        request = requests[0]
        beat = SendNodeHeartbeatRequest(node=link._node, heartbeat_interval=3600)
        for path, body in [
            (request.url.path, request.content),
            ("/v1/fleet/send-node-heartbeat", beat.SerializeToString()),
        ]:
            headers = {**request.headers, "content-length": str(len(body))}
            context = ssl.create_default_context(cadata=world.ca.decode())
            with httpx.Client(verify=context) as client:
                again = client.post(world.url + path, headers=headers, content=body)
            assert again.status_code == 401


def test_a_key_that_is_not_registered_is_refused(world: World, tmp_path: Path) -> None:
    make_device_keys(world.root / "stranger", "stranger")
    with (
        world.link("stranger") as link,
        pytest.raises(FederationError, match="refuses this device"),
    ):
        link.serve(lambda message: pytest.fail("it was sent something"))
    # Nor does it get in by registering itself, as Flower allows without node authentication.
    key = load_node_key(world.root / "stranger" / NODE_KEY)
    with world.link("stranger") as link, pytest.raises(httpx.HTTPStatusError):
        link._client.RegisterNode(RegisterNodeFleetRequest(public_key=link._public))
    # Nor by naming a node that is registered: its key signs every request.
    with world.device("good", lambda data: data), world.link("stranger") as link:
        until(lambda: "good" in world.fleet.connected())
        number = world.fleet._nodes()["good"]
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            link._client.PullMessages(PullMessagesRequest(node=Node(node_id=number)))
    assert key.key_size == 384


def test_a_device_that_is_taken_out_is_refused_while_the_server_runs(world: World) -> None:
    with world.device("removed", lambda data: data) as link:
        until(lambda: "removed" in world.fleet.connected())
        unregister(world.keys, "removed")
        world.server.admit(read_nodes(world.keys))
        until(lambda: "removed" not in world.fleet.connected())
        with pytest.raises(FederationError, match="refuses this device"):
            link.connect()
    assert isinstance(dict(world.fleet.ask(1, {"removed": b""}, 5))["removed"], Failure)


def test_a_server_with_another_certificate_is_refused(world: World, tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["localhost"])
    other = (tmp_path / CA).read_bytes()
    with world.link("good", other) as link, pytest.raises(FederationError, match="certificate is"):
        link.serve(lambda message: pytest.fail("it took something"))
    # The right CA under a name that is not the server's.
    with (
        world.link("good", host="0.0.0.0") as link,
        pytest.raises(FederationError, match="certificate is refused: IP address mismatch"),
    ):
        link.connect()


def test_flowers_other_doors_are_closed(world: World) -> None:
    assert world.post("/v1/control/start-run", StartRunRequest()) == 404
    assert world.post("/v1/fleet/pull-messages", PullMessagesRequest()) == 401
    # Without the secret that nobody has, no task is handed out; without its token, no node seen.
    world.server.claim({})
    acquire = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
    assert world.post("/v1/runtime/acquire-task", acquire) in (401, 403)
    assert world.post("/v1/runtime/get-nodes", GetNodesRequest()) in (401, 403)
    bogus = {"flwr-runtime-token": "0" * 256}
    assert world.post("/v1/runtime/get-nodes", GetNodesRequest(), **bogus) in (401, 403)


def test_a_link_that_was_cut_off_gets_in_again(world: World) -> None:
    """Flower takes a node that said no goodbye for connected, and does not let it in twice."""
    key = load_node_key(world.root / "gone" / NODE_KEY)
    cut_off = world.link("gone")
    number = cut_off.connect()
    address = f"127.0.0.1:{world.server.port}"
    with Link(address, world.ca, key, poll=0.3, patience=60) as link:
        with pytest.raises(FederationError, match="refuses this device"):
            link.connect()
        threading.Thread(target=link.serve, args=(lambda m: pytest.fail(),), daemon=True).start()
        time.sleep(0.5)
        world.server._state.deactivate_node(number)  # as Flower does after two missed beats
        until(lambda: link._node.node_id == number)
    cut_off._client._client.close()


def test_a_link_comes_back_to_a_server_that_was_started_anew(world: World, tmp_path: Path) -> None:
    keys = load_server_keys(world.keys)
    port = local.free_port()
    key = load_node_key(world.root / "good" / NODE_KEY)
    link = Link(f"127.0.0.1:{port}", world.ca, key, poll=0.3)
    with link:
        threading.Thread(target=link.serve, args=(lambda m: pytest.fail(),), daemon=True).start()
        for run in ("a", "b"):
            with SuperLink(keys, tmp_path / run, host="127.0.0.1", port=port) as server:
                server.admit(read_nodes(world.keys))
                until(lambda server=server: server.online() == ["good"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("more", "close"),
    [
        ({}, 1e-5),
        pytest.param({"secure": {"smallest": 4}, "rounds": 1}, 3e-4, marks=pytest.mark.slow),
    ],
)
def test_four_agents_learn_what_four_slots_of_a_simulation_learn(
    world: World,
    backbone_folder: Callable[[str], Path],
    tmp_path: Path,
    more: dict[str, Any],
    close: float,
) -> None:
    backbone = str(backbone_folder("llama"))
    local = {"rank": 2, "learning_rate": 0.005, "batch_size": 2, "max_length": 64, "epochs": 2}
    # Without `least` a device that is slow to come is done without.
    plain = {"rounds": 2, "cohort": 4, "least": 4, "held_out": 0.0, "seed": 5, "local": local}
    settings = {**plain, **more}
    task = get_task("LaMP_3")
    histories = {name: _history(name, count) for count, name in enumerate(FOUR, 3)}
    out, began = tmp_path / "deployed", datetime.now(UTC)
    out.mkdir()
    with ExitStack() as stack:
        for name, history in histories.items():
            config = HomeConfig(backbone=backbone, task=task.name)
            home = create_home(name, root=tmp_path / "homes", config=config)
            with home.open_vault() as vault:
                vault.add(history)
            invitation = Invitation.make(world.keys, name, settings)
            (home.path / FOLDER).mkdir()
            shutil.copy(world.root / name / DEVICE_KEY, home.path / FOLDER)
            keep_roster(home.path / FOLDER, (world.keys / ROSTER).read_bytes(), invitation)
            runtime = DeviceRuntime(home, task, invitation, FederateConfig(**settings))
            stack.enter_context(world.device(name, runtime))
        config = DeployConfig(
            names=FOUR,
            clients=4,
            wait=300,
            federation=settings,
            backbone=backbone,
            keys=str(world.keys),
        )
        run(FlowerFleet(world.grid, FOUR, poll=0.5), config, out)

    # Secure sums are compared with a simulation in the open: they are the same but for rounding.
    open_ = FederateConfig(**{**settings, "secure": None})
    people = Population(task, histories, open_.seed)
    slots = SimulatedFleet(load_backbone(backbone), people, open_, tmp_path / "kept")
    federation = Federation(open_, slots.strategy, slots, tmp_path / "simulated")
    row = slots.strategy.model(federation.run()).row
    _, shape = make_strategy(open_, backbone)
    expected = as_adapter(slots.strategy.model(federation.state), shape).weights
    found = Adapter.load(out / ADAPTER).weights
    assert found.keys() == expected.keys()
    apart = max(float((found[key] - expected[key]).abs().max()) for key in found)
    moved = float(abs(row - slots.strategy.start()["row"]).max())
    assert moved > 0.01, moved
    assert apart < close, (apart, moved)

    events = list(read_rounds(out))
    assert [event["clients"] for event in events] == [4] * settings["rounds"]
    before, entries = _entries(tmp_path, FOUR[0])
    assert before == (["agree", "roster"] if more else ["agree"])
    policies = {"secure sum", "clear"} if more else {"clear"}
    assert {entry.policy for entry in entries} == policies
    assert {entry.to for entry in entries} == {"localhost"}
    stages = ["ready", "secure keys", "secure shares", "update", "secure survivors"]
    kinds = [*stages, "secure unmask"] if more else ["update"]
    assert [entry.kind for entry in entries] == kinds * settings["rounds"]
    counted = sent(open_home(FOUR[0], root=tmp_path / "homes"), lambda shows: False, began)
    assert counted["updates"] == {"localhost": settings["rounds"]}
    left = sum(entry.bytes for name in FOUR for entry in _entries(tmp_path, name)[1])
    assert left == sum(event["bytes_up"] for event in events)


def _entries(folder: Path, name: str) -> tuple[list[str], list[Entry]]:
    """A device's ledger: kinds of what it said before it learnt, and the entries of the rounds."""
    entries = list(Ledger(folder / "homes" / name / "ledger.jsonl").entries())
    talk = [entry.kind for entry in entries if entry.kind in ("agree", "roster")]
    return talk, [entry for entry in entries if entry.kind not in ("agree", "roster")]


FOUR = ["good", "killed", "late", "zoe"]


class Population:
    """Four clients' examples from memory, as their devices make them from their vaults."""

    def __init__(self, task: Task, histories: Mapping[str, History], seed: int) -> None:
        self.task, self.histories, self.seed = task, histories, seed

    def clients(self) -> list[str]:
        return sorted(self.histories)

    def examples(self, client: str) -> list[Example]:
        return local_examples(self.task, self.histories[client], self.seed)

    def rank(self, client: str) -> None:
        return None


def _history(name: str, count: int) -> History:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return History(
        name,
        [
            Record(
                f"{name}{n}",
                "LaMP_3",
                {"text": f"a {name} book {n}"},
                str(1 + (n + count) % 5),
                start + timedelta(days=n),
            )
            for n in range(count)
        ],
    )


@pytest.mark.slow
def test_flowers_own_supernode_forwards_to_the_agent(world: World, tmp_path: Path) -> None:
    path = world.root / "good" / SOCKET
    world.server.verifier.required = False  # a SuperNode signs the time alone
    programs = str(Path(sys.executable).parent)
    command = [f"{programs}/flower-supernode", "--superlink", f"127.0.0.1:{world.server.port}"]
    command += ["--root-certificates", str(world.keys / CA), "--port", str(local.free_port())]
    command += ["--auth-supernode-private-key", str(world.root / "good" / NODE_KEY)]
    command += ["--node-config", f'agent="{path}"']
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flower"),
    }
    with (
        Agent(path, lambda data: data[::-1]) as agent,
        subprocess.Popen(command, env=environment, start_new_session=True) as node,
    ):
        threading.Thread(target=agent.serve, daemon=True).start()
        try:
            until(lambda: "good" in world.fleet.connected(), 90)
            assert dict(world.fleet.ask(1, {"good": b"abc"}, 120)) == {"good": b"cba"}
            agent.close()
            lost = dict(world.fleet.ask(2, {"good": b"abc"}, 120))["good"]
            assert isinstance(lost, Failure)
            assert "no agent is running" in lost.why
        finally:
            world.server.verifier.required = True
            node.terminate()


def _descendants(out: Path) -> list[int]:
    """Processes that belong to a run, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if os.fsencode(out) in command and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_one_command_runs_everything_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pfi.cli", "federate", "try", "--check", "--agents", "2"]
    told = tmp_path / "told.txt"  # no pipe: Flower's servers of other tests may close its end
    with told.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--rounds", "1000", "--out", str(out)], stdout=stream, stderr=stream
        )
    try:
        log = out / "events.jsonl"
        until(lambda: process.poll() is not None or (log.exists() and log.stat().st_size), 200)
        assert process.poll() is None, told.read_text()
        event = json.loads(log.read_text().splitlines()[0])
        assert (event["asked"], event["clients"], event["failed"]) == (2, 2, {})
        assert event["bytes_up"] == event["bytes_down"] > 800_000
        assert len(_descendants(out)) >= 5  # server, ServerApp, two agents, two links
        process.send_signal(number)
        process.wait(60)
        until(lambda: not _descendants(out))
    finally:
        process.kill()
        process.wait()
