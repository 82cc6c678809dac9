"""A device's agent: its socket, what it refuses, what it survives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from deploy_agents import running

from pfi.errors import FederationError, StorageError
from pfi.federate.deploy.agent import wire
from pfi.federate.deploy.agent.agent import SOCKET, Agent
from pfi.federate.deploy.agent.wire import forward
from pfi.federate.deploy.check import echo


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


def test_an_agent_answers_and_leaves_nothing_behind(home: Path) -> None:
    with running(home, lambda data: data[::-1]) as path:
        assert forward(path, b"abc", 60) == b"cba"
        assert forward(path, b"", 5) == b""
        big = os.urandom(3 << 20)
        assert forward(path, big, 5) == big[::-1]
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    with pytest.raises(FederationError, match="no agent is running"):
        forward(path, b"abc", 60)


def test_the_same_message_is_worked_on_once(home: Path) -> None:
    seen: list[bytes] = []

    def count(data: bytes) -> bytes:
        seen.append(data)
        return b"reply %d" % len(seen)

    with running(home, count) as path:
        assert forward(path, b"a", 60, id="1") == b"reply 1"
        assert forward(path, b"a", 60, id="1") == b"reply 1"
        with pytest.raises(FederationError, match="used for another message"):
            forward(path, b"other", 60, id="1")
        assert forward(path, b"a", 60, id="2") == b"reply 2"
        assert forward(path, b"a", 5) == b"reply 3"  # without an id it is another one
        for number in range(9):
            forward(path, b"a", 60, id=f"x{number}")
        assert forward(path, b"a", 60, id="1") == b"reply 13"  # forgotten by now
    assert len(seen) == 13


def test_a_forwarder_that_dies_loses_no_work(home: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def slow(data: bytes) -> bytes:
        seen.append(data)
        started.set()
        go_on.wait(10)
        return b"done"

    with running(home, slow) as path:
        dying = _connected(path)
        dying.sendall(wire._ASK.pack(wire.MAGIC, 1, 4) + b"7data")
        assert started.wait(60)
        dying.close()
        go_on.set()
        assert forward(path, b"data", 60, id="7") == b"done"
        assert seen == [b"data"]
        # One that dies in the middle of its message is passed over.
        dying = _connected(path)
        dying.sendall(wire._ASK.pack(wire.MAGIC, 1, 400) + b"8half")
        dying.close()
        assert forward(path, b"more", 60, id="9") == b"done"
        assert seen == [b"data", b"more"]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (wire._ASK.pack(b"http", 0, 3) + b"abc", "does not begin"),
        (wire._ASK.pack(wire.MAGIC, 0, 1 << 40), "more than 100"),
        (wire._ASK.pack(wire.MAGIC, 0, 101) + bytes(101), "more than 100"),
        (wire._ASK.pack(wire.MAGIC, 60_000, 3), "an id has 60000"),
        (wire._ASK.pack(wire.MAGIC, 1, 1) + b"\xffa", "not UTF-8"),
    ],
)
def test_malformed_frames_are_refused(home: Path, frame: bytes, said: str) -> None:
    seen: list[bytes] = []
    with running(home, lambda data: seen.append(data) or b"", largest=100) as path:
        with _connected(path) as peer:
            peer.sendall(frame)
            magic, status, length = wire._REPLY.unpack(wire.receive(peer, wire._REPLY.size))
            assert (magic, status) == (wire.MAGIC, 1)
            assert said in wire.receive(peer, length).decode()
        assert seen == []
        assert forward(path, bytes(100), 5) == b""


def test_what_fails_on_a_device_stays_there(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(data: bytes) -> bytes:
        if data == b"bug":
            raise KeyError("private text")
        if data == b"disk":
            raise OSError("private path")
        if data == b"vault":
            raise StorageError("private text", where="private path")
        raise FederationError("a message is malformed")

    with running(home, fail) as path:
        for data, name in ((b"bug", "KeyError"), (b"disk", "OSError"), (b"vault", "StorageError")):
            with pytest.raises(FederationError, match=rf"failed \({name}\)") as error:
                forward(path, data, 5)
            assert "private" not in str(error.value)
        with pytest.raises(FederationError, match="a message is malformed"):
            forward(path, b"else", 5)
    assert caplog.text.count("private") >= 3


def test_closing_twice_closes_nobody_elses_file(home: Path, tmp_path: Path) -> None:
    agent = Agent(home / SOCKET, echo)
    agent.close()
    others = [(tmp_path / str(n)).open("w") for n in range(3)]  # take the freed numbers
    agent.close()
    for file in others:
        file.write("still open")
        file.close()


def test_one_agent_in_a_folder_that_is_its_owners(home: Path) -> None:
    with running(home, echo), pytest.raises(StorageError, match="an agent is running"):
        Agent(home / SOCKET, echo)
    home.chmod(0o755)
    with pytest.raises(StorageError, match="others can reach"):
        Agent(home / SOCKET, echo)
    home.chmod(0o700)
    # The socket of an agent that was killed is in nobody's way.
    left = socket.socket(socket.AF_UNIX)
    with wire.address(home / SOCKET) as name:
        left.bind(name)
    left.close()
    with running(home, lambda data: b"new") as path:
        assert forward(path, b"", 5) == b"new"


def test_a_silent_agent_and_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    deep.chmod(0o700)
    with running(deep, lambda data: time.sleep(0.5) or b"late") as path:
        with pytest.raises(FederationError, match="silent for"):
            forward(path, b"", 0.05)
        assert forward(path, b"", 5) == b"late"


def test_what_forwards_needs_no_model() -> None:
    pytest.importorskip("flwr", reason="the extra `federate` is not installed")
    code = (
        "import sys, pfi.federate.deploy.agent.client_app, pfi.federate.deploy.agent.link;"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def _connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(60)
    with wire.address(path) as name:
        peer.connect(name)
    return peer
