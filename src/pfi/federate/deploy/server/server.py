"""The server of a deployed federation: SuperLink, the nodes, and one run from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfi._util.events import Event
from pfi._util.files import locked
from pfi.errors import FederationError, StorageError
from pfi.federate.deploy.keys.keys import load_server_keys
from pfi.federate.deploy.keys.nodes import NODES, read_nodes
from pfi.federate.deploy.server.follow import Follower
from pfi.federate.deploy.server.settings import FILE as SETTINGS
from pfi.federate.deploy.server.settings import DeployConfig
from pfi.federate.deploy.server.superlink import SuperLink
from pfi.federate.events import FILE as LOG
from pfi.federate.lock import RunLock

LOCK = ".server.lock"  # of the run folder; the round loop in the ServerApp holds another
_LOOK = 0.3  # seconds between two looks at what happened


def open_server(
    keys: Path, out: Path, *, host: str, port: int, supernodes: bool = False
) -> SuperLink:
    """A SuperLink for the registered devices, which waits for them.

    Args:
        keys: the operator's folder.
        out: the run folder.
        host, port: where it listens.
        supernodes: let Flower's own SuperNodes in, whose signatures cover the time alone.

    Raises:
        ConfigError: nothing can listen there.
        StorageError: keys are missing, damaged or out of date, or another server works in the
            run folder.
        FederationError: no device is registered.
    """
    nodes = read_nodes(keys)
    if not nodes.clients:
        fix = "register some with `pfi federate keys add`"
        raise FederationError("no device is registered", where=str(keys / NODES), fix=fix)
    server_keys = load_server_keys(keys)
    lock = RunLock(out, LOCK)
    try:
        server = SuperLink(server_keys, out, host=host, port=port)
    except BaseException:
        lock.release()
        raise
    server.on_close = lock.release
    server.verifier.required = not supernodes
    server.admit(nodes)
    return server


def run_server(
    server: SuperLink,
    keys: Path,
    out: Path,
    config: DeployConfig,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    on_wait: Callable[[list[str]], None] = lambda online: None,
) -> None:
    """Do a federation's work and return when it is done.

    Devices that are registered or taken out meanwhile are admitted or refused at once.

    Args:
        server: where the devices are.
        keys: the operator's folder.
        out: the run folder; it may hold an earlier run only if the settings say to go on.
        config: what is done.
        on_event: gets what the ServerApp logs.
        on_wait: told now and then who is connected.

    Raises:
        FederationError: the work failed.
        StorageError: the folder holds a run.
    """
    log = out / LOG
    if log.exists() and not config.resume:
        fix = "add --resume to go on with it, or give another folder"
        raise StorageError("the folder holds a run", where=str(out), fix=fix)
    names = _names(keys, out, config)
    config = config.model_copy(update={"names": names, "keys": str(keys.resolve())})
    follower = Follower(log, on_event)
    run = server.start({"settings": str(config.save(out).resolve())})
    changed = (keys / NODES).stat().st_mtime_ns
    while True:
        outcome = server.wait(run, _LOOK)
        follower.look()
        if outcome is not None:
            break
        on_wait(server.online())
        if (now := (keys / NODES).stat().st_mtime_ns) != changed:
            changed = now
            with locked(keys / ".nodes.lock"):
                server.admit(read_nodes(keys))
    if not outcome.ok:
        what = _reason(out) or outcome.why or "the work failed"
        raise FederationError(what, where=str(out / "server.log"))


def _names(keys: Path, out: Path, config: DeployConfig) -> list[str]:
    """Who may be asked: for the whole of a run those that were registered when it began.

    Lots and epsilon are accounted for that fleet.  A device that was taken out since then is one
    that never replies; one that came since then waits for the next run.
    """
    if config.resume and (out / SETTINGS).exists():
        before = DeployConfig.read(out / SETTINGS)
        if before.work == config.work and before.names:
            return before.names
    return sorted(read_nodes(keys).clients)


def _reason(out: Path) -> str:
    """Why the ServerApp failed, where that is an error that a user can cause."""
    path = out / "failure.txt"
    return path.read_text("utf-8").strip() if path.exists() else ""
