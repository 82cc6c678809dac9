"""Flower ServerApp: the same round loop as in simulation, over the devices that are connected."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from pfi._util.events import JsonLog
from pfi._util.files import write_atomic
from pfi.errors import ConfigError, PfiError
from pfi.federate.aggregate.exact import as_adapter
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.check import run_check
from pfi.federate.deploy.keys.keys import OPERATOR, read
from pfi.federate.deploy.keys.nodes import ROSTER, read_nodes
from pfi.federate.deploy.server.fleet import FlowerFleet
from pfi.federate.deploy.server.handshake import agree, require
from pfi.federate.deploy.server.patience import Patience
from pfi.federate.deploy.server.rosters import RosterFleet
from pfi.federate.deploy.server.settings import DeployConfig
from pfi.federate.engine import Engine
from pfi.federate.events import FILE
from pfi.federate.message import Fleet
from pfi.federate.rounds import Federation
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.roster import Roster
from pfi.federate.strategies import check, get_strategy
from pfi.federate.strategy import LinearStrategy, Strategy
from pfi.models.backbone import load_backbone

FAILURE = "failure.txt"
ADAPTER = "adapter"  # what was learnt, as peft has it
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the clients, then do what the run folder's settings say."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    path = Path(str(context.run_config["settings"]))
    folder = path.parent
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        config = DeployConfig.read(path)
        fleet = FlowerFleet(
            grid,
            config.names or None,
            folder=folder,
            wait=config.wait,
            patience=Patience() if config.work == "train" else Patience(60, 10),
        )
        run(fleet, config, folder)
    except PfiError as error:
        write_atomic(folder / FAILURE, f"{error}\n")
        raise


def _end_with(parent: int) -> None:
    """End this process when the server's is gone: Flower would ask it again and again."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # whole rounds are on the disk


def run(fleet: FlowerFleet, config: DeployConfig, folder: Path) -> None:
    """Do the work of a server.

    Args:
        fleet: the devices.
        config: what is done with them.
        folder: of the run.

    Raises:
        ConfigError: the federation's settings make no sense.
        FederationError: too few devices are connected, or agree with the server's settings.
    """
    started = time.monotonic()
    if config.work == "train":
        settings = federation_config(config)
        strategy, shape = make_strategy(settings, config.backbone)  # while devices connect
    left = max(1.0, config.wait - (time.monotonic() - started))
    connected = fleet.wait_for(config.clients, left)
    log = JsonLog(folder / FILE)
    if config.work == "train":
        keys = Path(config.keys)
        fleet.largest = expected_reply(strategy)
        parties = _parties(settings, strategy, keys)
        asked: Fleet = fleet
        if parties is not None:
            asked = RosterFleet(fleet, keys, _operator(keys), parties)
        federation = Federation(
            settings,
            strategy,
            asked,
            folder,
            resume=config.resume,
            simulated=False,
            parties=parties,
        )
        agreement = agree(fleet, connected, settings, strategy.layout.backbone, settings.seconds)
        log.append(agreement.event())
        secure = settings.secure
        require(agreement, max(settings.least, secure.smallest if secure else 1))
        state = federation.run()
        as_adapter(strategy.model(state), shape).save(folder / ADAPTER)
    else:
        run_check(
            fleet,
            rounds=config.rounds,
            size=config.size,
            seconds=config.seconds,
            on_round=log.append,
        )


def federation_config(config: DeployConfig) -> FederateConfig:
    """The settings of the federation.

    Raises:
        ConfigError: they make no sense.
    """
    try:
        settings = FederateConfig.model_validate(config.federation)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(first["msg"], where=where, fix="see docs/federate.md") from error
    return check(settings)


def make_strategy(settings: FederateConfig, backbone: str) -> tuple[Strategy, dict[str, Any]]:
    """The strategy over a backbone's layers, and the settings of an adapter over them.

    The model itself is let go again.
    """
    kind = get_strategy(settings.strategy)
    engine = Engine(load_backbone(backbone), settings.local, kind.rank(settings), 1)
    return kind(engine.layout, settings), dict(engine.bank.settings)


def _parties(settings: FederateConfig, strategy: Strategy, keys: Path) -> Parties | None:
    """What the server knows for secure aggregation: the policy and the public keys."""
    if settings.secure is None or not isinstance(strategy, LinearStrategy):
        return None
    name = read_nodes(keys).federation
    roster = Roster.read(read(keys / ROSTER), _operator(keys), name)
    return Parties(settings.secure.pin(name, strategy.size), roster)


def _operator(keys: Path) -> bytes:
    """The key that signs rosters."""
    return bytes.fromhex(read(keys / OPERATOR).decode("ascii"))


def expected_reply(strategy: Strategy) -> int:
    """Bytes that an update has at most: of all that is learnt, or of one masked vector."""
    learnt = sum(array.nbytes for array in strategy.start().values())
    row = 4 * strategy.layout.width
    masked = 8 * (strategy.size + 1) if isinstance(strategy, LinearStrategy) else 0
    return max(learnt, row, masked)
