"""A SuperLink over TLS on loopback with registered devices, for tests."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from pfi.federate.deploy import local
from pfi.federate.deploy.agent.agent import SOCKET, Agent, Handler
from pfi.federate.deploy.agent.client_app import answer
from pfi.federate.deploy.agent.link import Link
from pfi.federate.deploy.keys.keys import CA, load_server_keys
from pfi.federate.deploy.keys.nodes import (
    NODE_KEY,
    load_node_key,
    make_device_keys,
    read_nodes,
    register,
)
from pfi.federate.deploy.server.fleet import FlowerFleet
from pfi.federate.deploy.server.superlink import SuperLink

NAMES = ["good", "late", "killed", "bad", "gone", "removed", "zoe"]


class World:
    """A SuperLink with registered devices, and the fleet as a ServerApp sees it."""

    def __init__(self, root: Path) -> None:
        self.root, self.keys = root, local.make_operator(root, local.free_port())
        for name in NAMES:
            register(self.keys, make_device_keys(root / name, name))
        self.server = SuperLink(load_server_keys(self.keys), root / "run", host="127.0.0.1", port=0)
        self.server.admit(read_nodes(self.keys))
        self.url = f"https://127.0.0.1:{self.server.port}"
        run, token = self.server.claim({})
        self.grid = HttpGrid(
            f"127.0.0.1:{self.server.port}", root_certificates=self.ca, token=token
        )
        given = self.grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        self.grid.set_run(Run.create_empty(run))
        beat = make_task_heartbeat_fn_http(self.grid._runtime_client)
        self.beats = HeartbeatSender(beat)
        self.beats.start()
        TaskIdentity.run_id, TaskIdentity.task_id = run, given.task_id
        TaskIdentity.node_id = given.context.node_id
        self.fleet = FlowerFleet(self.grid, NAMES, poll=0.3)

    @property
    def ca(self) -> bytes:
        return (self.keys / CA).read_bytes()

    def link(self, name: str, ca: bytes | None = None, host: str = "127.0.0.1") -> Link:
        key = load_node_key(self.root / name / NODE_KEY)
        return Link(f"{host}:{self.server.port}", ca or self.ca, key, poll=0.5, patience=0)

    @contextmanager
    def device(self, name: str, handler: Handler | None) -> Iterator[Link]:
        """A device: its link, and its agent unless that runs elsewhere."""
        path = self.root / name / SOCKET
        with self.link(name) as link:
            threading.Thread(target=self._serve, args=(link, path), daemon=True).start()
            if handler is None:
                yield link
                return
            with Agent(path, handler) as agent:
                threading.Thread(target=agent.serve, daemon=True).start()
                yield link

    @staticmethod
    def _serve(link: Link, path: Path) -> None:
        link.serve(lambda message: answer(message, path))

    def post(self, path: str, message: Any, **headers: str) -> int:
        """The status of a request that no node signed."""
        content = {"content-type": "application/protobuf", **headers}
        context = ssl.create_default_context(cadata=self.ca.decode())
        with httpx.Client(verify=context) as client:
            found = client.post(
                self.url + path, content=message.SerializeToString(), headers=content
            )
        return found.status_code

    def close(self) -> None:
        self.beats.stop()
        self.grid.close()
        self.server.close()
        TaskIdentity._run_id = TaskIdentity._task_id = TaskIdentity._node_id = None


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
