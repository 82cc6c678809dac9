"""How a server ends, whom it lets go of, and what it keeps from other processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from serve_world import FakeEngine, FakeStream, make_homes, prompter

from pfi.inference.engine import Request
from pfi.serve import ServeConfig, Service
from pfi.serve.app import create_app
from pfi.serve.auth import new_token
from pfi.serve.server import address, listen, make_server


@dataclass
class Ending(FakeEngine):
    """An engine whose answers end with it, as the real ones' do."""

    streams: list[FakeStream] = field(default_factory=list)

    def generate(self, request: Request) -> FakeStream:
        self.streams.append(super().generate(request))
        return self.streams[-1]

    def close(self) -> None:
        for stream in self.streams:
            stream.cancel()


@contextmanager
def running(
    tmp_path: Path, engine: FakeEngine, **settings: object
) -> Iterator[tuple[str, str, uvicorn.Server, threading.Thread]]:
    """A server in a thread: its address, a token, itself, and the thread."""
    prompter()
    homes = make_homes(tmp_path, ["ann"])
    config = ServeConfig.model_validate({"port": 0, **settings})
    _, token = new_token(homes["ann"])
    app, listening = create_app(Service(homes, config, engine=engine), config), listen(config)
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield address(listening), token, server, thread
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def test_streams_end_whole_when_the_server_ends(tmp_path: Path) -> None:
    engine = Ending(delay=0.05, answer="word " * 5000)
    with running(tmp_path, engine) as (url, token, server, thread):
        body = {"model": "generic", "stream": True, "max_tokens": 2000}
        body |= {"messages": [{"role": "user", "content": "Tell a long story"}]}
        lines: list[str] = []
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30
        ) as reply:
            for line in reply.iter_lines():  # a body that is cut would raise
                lines.append(line)
                if len(lines) == 6:
                    server.should_exit, begun = True, time.monotonic()
        thread.join(10)
        assert not thread.is_alive() and time.monotonic() - begun < 5
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "closing" in events[-1]["error"]["message"]


def half_open(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=5)
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
    time.sleep(0.05)
    return client


def is_open(client: socket.socket) -> bool:
    client.settimeout(0.3)
    try:
        return client.recv(10) != b""
    except TimeoutError:
        return True


def test_half_open_connections_of_an_address_are_few(tmp_path: Path) -> None:
    with running(tmp_path, FakeEngine(), half_open=3, read_seconds=30) as (url, *_):
        clients = [half_open(url) for _ in range(5)]
        assert [is_open(client) for client in clients] == [False, False, True, True, True]
        assert httpx.get(f"{url}/healthz").status_code == 200  # nobody is kept out
        clients[-1].sendall(b"host\r\n\r\n")  # a whole header is no half one
        clients[-1].settimeout(5)
        assert b"200" in clients[-1].recv(1000)
        for client in clients:
            client.close()


SHOW = """
import os, resource, sys
from pfi._util.hardening import forget_variable, refuse_core_dumps
refuse_core_dumps()
for _ in range(2):
    forget_variable("PFI_PASSPHRASE")
whole = open("/proc/self/environ", "rb").read() if sys.platform == "linux" else b""
print("PFI_PASSPHRASE" in os.environ, b"correct horse" in whole, os.environ["OTHER"])
print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)
os.execvp("env", ["env"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no environment of that kind")
def test_a_passphrase_leaves_the_environment_and_no_core_is_dumped() -> None:
    secret = {"PFI_PASSPHRASE": "correct horse battery", "OTHER": "kept"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env={**os.environ, **secret}, capture_output=True, text=True
    )
    assert done.stdout.startswith("False False kept\n(0, 0)\n"), done.stdout + done.stderr
    assert "correct horse" not in done.stdout
