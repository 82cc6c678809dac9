"""Flower's SuperLink inside our server process, over TLS, for registered nodes only.

The nodes' list and the start of a run do not go through Flower's control interface, which stays
closed (see `Doors`), but straight to its state in this process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from flwr.app.user_config import UserConfigValue
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, Status
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.servicer.control import control_handlers

from pfi.errors import ConfigError, FederationError, StorageError
from pfi.federate.deploy.keys.keys import ServerKeys, write_private
from pfi.federate.deploy.keys.nodes import Nodes, PublicKeys
from pfi.federate.deploy.requests import RequestVerifier
from pfi.federate.deploy.server.doors import Doors
from pfi.federate.deploy.server.limits import ReplyLimits

PORT = 9092
APP = """
[project]
name = "pfi-federation"
version = "1.0.0"
description = "Hands messages to a device's resident agent"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "pfi"

[tool.flwr.app.components]
serverapp = "pfi.federate.deploy.server.server_app:app"
clientapp = "pfi.federate.deploy.agent.client_app:app"

[tool.flwr.app.config]
settings = ""
"""
_ANYWHERE = ("0.0.0.0", "::")
_LOOPBACK = "127.0.0.1"
_OPERATOR = AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)
_START = "from flwr.superlink.cli import flwr_serverapp; flwr_serverapp()"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `why` says what went wrong, if something did."""

    ok: bool
    why: str = ""


class SuperLink:
    """A running SuperLink; use as a context manager, or call `close`.

    Args:
        keys: what it proves itself with.
        folder: of the run: logs, Flower's files.
        host, port: where it listens; port 0 takes a free one.

    Raises:
        ConfigError: nothing can listen there.
        StorageError: the certificate cannot be used.
        FederationError: it does not start.
    """

    def __init__(
        self, keys: ServerKeys, folder: Path, *, host: str = "0.0.0.0", port: int = PORT
    ) -> None:
        self._keys, self._folder = keys, folder
        self._token = folder / "token"
        self._nodes: dict[str, tuple[PublicKeys, int]] = {}
        self._child: subprocess.Popen[bytes] | None = None
        #: Called when it is closed.
        self.on_close: Callable[[], object] = lambda: None
        self._task = 0
        folder.mkdir(parents=True, exist_ok=True)
        _log_to(folder / "flower.log")
        self._sockets = _listen(host, port)
        self.port: int = self._sockets[0].getsockname()[1]
        app = create_app(_settings(keys, host, self.port), SuperLinkLifespan)
        self._state = app.state.linkstate_factory.state()
        ReplyLimits(self._state)
        self.verifier = RequestVerifier()
        app.add_middleware(Doors, verifier=self.verifier)
        try:
            config = uvicorn.Config(
                app,
                log_config=None,
                ws="none",
                access_log=False,
                proxy_headers=False,  # who is on this machine is not for others to say
                ssl_certfile=keys.certificate,
                ssl_keyfile=keys.key,
                timeout_graceful_shutdown=2,
            )
            config.load()
        except OSError as error:  # ssl.SSLError too
            self._close_sockets()
            where = str(keys.certificate)
            raise StorageError(f"the certificate cannot be used: {error}", where=where) from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": self._sockets}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                where = str(folder / "flower.log")
                raise FederationError("the SuperLink did not start; its log says why", where=where)
            time.sleep(0.02)

    def __enter__(self) -> SuperLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, nodes: Nodes) -> None:
        """Let exactly these nodes in; those that were taken out or have new keys are refused."""
        for client, (keys, number) in list(self._nodes.items()):
            if nodes.clients.get(client) != keys:
                request = UnregisterNodeRequest(node_id=number)
                control_handlers.unregister_node(request, _OPERATOR, self._state)
                del self._nodes[client]
        for client, keys in nodes.clients.items():
            if client not in self._nodes:
                register = RegisterNodeRequest(public_key=keys.pem(), name=client)
                response = control_handlers.register_node(register, _OPERATOR, self._state)
                self._nodes[client] = keys, response.node_id
        self.verifier.admit(keys.pem() for keys, _ in self._nodes.values())

    def online(self) -> list[str]:
        """The clients that are connected."""
        known = [number for _, number in self._nodes.values()]
        if not known:
            return []
        nodes = self._state.get_node_info(node_ids=known, statuses=["online"])
        return sorted(node.name for node in nodes)

    def start(self, settings: Mapping[str, UserConfigValue]) -> int:
        """Start the ServerApp as a process with these settings; gives the run's number.

        Raises:
            FederationError: Flower does not take the run.
        """
        run, token = self.claim(settings)
        self._launch(token)
        return run

    def claim(self, settings: Mapping[str, UserConfigValue]) -> tuple[int, str]:
        """Make a run; gives its number, and the token with which a ServerApp works on it.

        Raises:
            FederationError: Flower does not take the run.
        """
        fab = build_fab_from_files({"pyproject.toml": APP.encode()})[0]
        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab),
            override_config=user_config_to_proto(dict(settings)),
            federation=NOOP_FEDERATION_ID,
        )
        run: int = control_handlers.start_run(request, _OPERATOR, self._state, None).run_id
        tasks = self._state.get_tasks(run_ids=[run], statuses=[Status.PENDING])
        token = self._state.claim_task(tasks[0].task_id) if tasks else None
        if not token:
            raise FederationError(f"Flower did not take run {run}", where=str(self._folder))
        self._task = tasks[0].task_id
        return run, token

    def wait(self, run: int, seconds: float) -> Outcome | None:
        """How the run ended, if it does within so many seconds."""
        end = time.monotonic() + seconds
        while True:
            status = self._state.get_run_status({run})[run]
            if status.status == Status.FINISHED:
                return Outcome(status.sub_status == "completed", status.details)
            if self._child is not None and self._child.poll() is not None:
                time.sleep(0.2)  # it says how it ended last
                status = self._state.get_run_status({run})[run]
                if status.status != Status.FINISHED:
                    return Outcome(False, f"the ServerApp ended with {self._child.returncode}")
                continue
            if self._child is not None:
                # While its process lives it is alive, also where it is slow to start or to say so.
                self._state.acknowledge_task_heartbeat(self._task)
            if time.monotonic() > end:
                return None
            time.sleep(0.1)

    def close(self) -> None:
        """Stop the ServerApp and the SuperLink."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(8)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._token.unlink(missing_ok=True)
        self._server.should_exit = True
        self._thread.join(10)
        self._close_sockets()
        self.on_close()

    def _launch(self, token: str) -> None:
        command = [sys.executable, "-c", _START]
        command += ["--runtime-api-address", f"{_LOOPBACK}:{self.port}"]
        command += ["--root-certificates", str(self._keys.ca), "--parent-pid", str(os.getpid())]
        # Not on the command line, which others can read; gone when the server is.
        write_private(self._token, token.encode(), replace=True)
        home = {"FLWR_HOME": str(self._folder / "flower")}
        log = os.open(self._folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = subprocess.Popen(
                [*command, "--token-file", str(self._token)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **home},
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _close_sockets(self) -> None:
        for each in self._sockets:
            each.close()


def _settings(keys: ServerKeys, host: str, port: int) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=False,
        certificates=tuple(  # type: ignore[arg-type]
            path.read_bytes() for path in (keys.ca, keys.certificate, keys.key)
        ),
        superexec_auth_secret=secrets.token_bytes(32),  # nobody has it: nobody is handed a run
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(keys.ca),
        ssl_certfile=str(keys.certificate),
        ssl_keyfile=str(keys.key),
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for devices and, where that is another one, for this machine's ServerApp."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        dual = host == "::" and socket.has_dualstack_ipv6()
        first = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        fix = "choose another --host or --port, or stop what listens there"
        raise ConfigError(f"cannot listen: {error}", where=f"{host}:{port}", fix=fix) from error
    if host in (*_ANYWHERE, _LOOPBACK):
        return [first]
    try:
        return [first, socket.create_server((_LOOPBACK, first.getsockname()[1]))]
    except OSError as error:
        first.close()
        raise ConfigError(f"cannot listen: {error}", where=f"{_LOOPBACK}:{port}") from error


def _log_to(path: Path) -> None:
    """Flower's and uvicorn's talk goes to a file, so that ours can be read."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("flwr", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
