"""A whole federation on this machine for trying out: server, agents, TLS on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfi._util.files import write_atomic
from pfi.errors import DataError, FederationError, StorageError
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.keys.invitation import FILE, Invitation
from pfi.federate.deploy.keys.keys import make_server_keys
from pfi.federate.deploy.keys.nodes import ROSTER, create_nodes, make_device_keys, register
from pfi.federate.deploy.keys.sealed import KeySeal
from pfi.federate.users import Users
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home
from pfi.tasks import get_task

KEYS, DEVICES, LOGS = "keys", "devices", "logs"
_NAME = "local"
_POLL = "0.5"  # seconds


def make_operator(out: Path, port: int) -> Path:
    """The operator's folder, with keys for loopback only.

    Raises:
        StorageError: there was one before.
    """
    folder = out / KEYS
    if folder.exists():
        fix = "give another folder with --out, or remove this one"
        raise StorageError("the folder holds a run", where=str(out), fix=fix)
    make_server_keys(folder, ["localhost"], days=30)
    create_nodes(folder, _NAME, f"localhost:{port}")
    return folder


def invite(
    keys: Path,
    folders: Mapping[str, Path],
    settings: Mapping[str, Any],
    task: str | None = None,
    seals: Mapping[str, KeySeal] | None = None,
) -> None:
    """Give devices keys and register them, as operator and users would do together.

    Args:
        keys: the operator's folder.
        folders: the devices', by client; each gets its keys, an invitation and the roster.
        settings: how the federation learns.
        task: what.
        seals: what private keys are sealed with, by client; those of others stay plain.
    """
    for client, folder in folders.items():
        register(keys, make_device_keys(folder, client, under=(seals or {}).get(client)))
    roster = (keys / ROSTER).read_bytes()
    for client, folder in folders.items():
        Invitation.make(keys, client, dict(settings), task).save(folder / FILE)
        write_atomic(folder / ROSTER, roster)


def make_check(keys: Path, out: Path, count: int) -> dict[str, list[str]]:
    """Devices that answer checks only; gives their agents' arguments by client."""
    folders = {f"agent-{n}": out / DEVICES / f"agent-{n}" for n in range(1, count + 1)}
    invite(keys, folders, {})
    given = ["--check", "--poll", _POLL, "--folder"]
    return {client: [*given, str(folder)] for client, folder in folders.items()}


def make_homes(
    keys: Path,
    out: Path,
    data: Path,
    task: str,
    split: str,
    count: int,
    backbone: str,
    settings: Mapping[str, Any],
) -> dict[str, list[str]]:
    """A home with a vault for some users of a data set; gives their agents' arguments by client.

    Args:
        keys: the operator's folder.
        out: where homes are made.
        data: a folder as of LaMP.
        task: what they learn.
        split: whose users.
        count: how many.
        backbone: the model of all.
        settings: of the federation.

    Raises:
        DataError: the data cannot be read, or has fewer users.
    """
    users = Users(data, get_task(task), split, limit=count, seed=int(settings.get("seed", 0)))
    if len(users.clients()) < count:
        what = f"there are {len(users.clients())} users, not {count}"
        raise DataError(what, path=data, fix="start fewer agents")
    folders: dict[str, Path] = {}
    seals: dict[str, KeySeal] = {}
    for user in users.clients():
        client = f"user-{user}"
        # Made-up devices, whose keys do not belong into the keyring of who runs this.
        home_config = HomeConfig(backbone=backbone, task=task)
        home = create_home(client, root=out / DEVICES, config=home_config, lock="file")
        with home.open_vault() as vault:
            vault.add(users.history(user))
        folders[client], seals[client] = home.path / FOLDER, KeySeal.of(home.keys)
    invite(keys, folders, settings, task, seals)
    return {client: ["--profile", client, "--poll", _POLL] for client in folders}


def free_port() -> int:
    """A port of this machine that nothing listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Agents:
    """Agents as processes of their own, as `pfi federate agent` runs them; a context manager.

    They end with this process, whatever ends it.

    Args:
        out: where devices and logs are.
        arguments: of `pfi federate agent`, by client.
    """

    def __init__(self, out: Path, arguments: Mapping[str, Sequence[str]]) -> None:
        self._out, self._processes = out, dict[str, subprocess.Popen[bytes]]()
        (out / LOGS).mkdir(parents=True, exist_ok=True)
        try:
            for client, given in arguments.items():
                command = [sys.executable, "-m", "pfi.cli", "federate", "agent", *given]
                with (out / LOGS / f"{client}.log").open("wb") as log:
                    self._processes[client] = subprocess.Popen(
                        [*command, "--parent", str(os.getpid())],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={**os.environ, "PFI_HOME": str((out / DEVICES).resolve())},
                        start_new_session=True,  # Ctrl-C reaches us, and we end them
                    )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """See that all are running.

        Raises:
            FederationError: one ended.
        """
        for client, process in self._processes.items():
            if process.poll() is not None:
                log = self._out / LOGS / f"{client}.log"
                lines = log.read_text("utf-8", "replace").strip().splitlines()
                what = f"the agent of {client} ended: {lines[-1] if lines else 'no word'}"
                raise FederationError(what, where=str(log))

    def kill(self, client: str) -> None:
        """Kill one, as a crash would."""
        self._processes[client].kill()
        self._processes.pop(client).wait()

    def close(self) -> None:
        """End all and wait for it."""
        for process in self._processes.values():
            process.terminate()
        end = time.monotonic() + 10
        for process in self._processes.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
