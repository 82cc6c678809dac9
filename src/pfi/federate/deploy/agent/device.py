"""A device in a federation: its agent, and the link process that connects it to the server.

The process that holds model, vault and ledger has no network; the one that has the network holds
nothing but the node's key.  Only messages pass between them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pfi.errors import FederationError
from pfi.federate.deploy.agent.agent import SOCKET, Agent, Handler
from pfi.federate.deploy.keys.invitation import Invitation
from pfi.federate.deploy.keys.nodes import NODE_KEY, PUBLIC, parse_node_key, read_public
from pfi.federate.deploy.keys.sealed import KeySeal, read_key

FOLDER = "federate"  # of a profile's home
_REFUSED = 3  # as in `link`, which imports Flower
_LONGEST_PAUSE = 60.0


def run_agent(
    folder: Path,
    handler: Handler,
    invitation: Invitation,
    *,
    poll: float = 1.0,
    link: bool = True,
    under: KeySeal | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> None:
    """Answer a server's messages until a signal or the server's refusal ends it.

    Args:
        folder: the device's, with its keys; only its owner may reach it.
        handler: makes the reply to a message.
        invitation: where the server is and how it proves itself.
        poll: seconds between two questions for messages.
        link: connect to the server; else something else brings messages to the socket.
        under: what the keys are sealed with, if they are.
        on_event: told what happens, in a few words.

    Raises:
        FederationError: the invitation is another device's; the server is not the one of the
            invitation, or refuses this device.
        StorageError: a key is missing, or another agent runs.
    """
    key = read_key(folder / NODE_KEY, under)
    parse_node_key(key, str(folder / NODE_KEY))
    if (own := read_public(folder / PUBLIC).client) != invitation.client:
        what = f"the invitation is for {invitation.client!r}, and this device is {own!r}"
        raise FederationError(what, where=str(folder), fix="get its own from the operator")
    with Agent(folder / SOCKET, handler) as agent:
        if not link:
            on_event(f"agent {invitation.client} answers at {agent.path}")
            agent.serve()
            return
        with _Link(folder, agent, invitation, poll, key) as process:
            on_event(f"agent {invitation.client} answers {invitation.server}")
            agent.serve()
    if process.refused:
        raise FederationError(process.refused)


class _Link:
    """Keeps a link process running beside an agent, and stops the agent when it is refused."""

    def __init__(
        self, folder: Path, agent: Agent, invitation: Invitation, poll: float, key: bytes
    ) -> None:
        self.refused = ""
        self._agent, self._stop, self._key = agent, threading.Event(), key
        self._errors = folder / "link.log"
        self._ca = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115
        self._ca.write(invitation.ca.encode())
        self._ca.flush()
        self._command = [sys.executable, "-m", "pfi.federate.deploy.agent.link"]
        self._command += ["--server", invitation.server, "--ca", self._ca.name]
        self._command += ["--agent", str(folder / SOCKET)]
        self._command += ["--poll", str(poll), "--parent", str(os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> _Link:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(10)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._ca.close()

    def _keep(self) -> None:
        pause = 1.0
        while not self._stop.is_set():
            started = time.monotonic()
            with self._errors.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=log, stderr=log
                )
                # Through a pipe: neither a file nor the command line shows the key in clear.
                with suppress(BrokenPipeError):
                    self._process.communicate(self._key)
                code = self._process.wait()
            if code == _REFUSED:
                lines = self._errors.read_text("utf-8", "replace").strip().splitlines()
                self.refused = lines[-1] if lines else "the server refuses this device"
                self._agent.stop()
                return
            pause = 1.0 if time.monotonic() - started > 60 else min(2 * pause, _LONGEST_PAUSE)
            self._stop.wait(pause)


@contextmanager
def until_terminated(parent: int | None = None) -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that everything is cleaned up.

    Args:
        parent: a process whose end counts as SIGTERM too.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, interrupt)
    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
