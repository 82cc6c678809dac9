"""SCAFFOLD (1910.06378): control variates take the clients' drift out of many local steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfi.errors import ConfigError
from pfi.federate.aggregate.mean import Combined
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layout
from pfi.federate.message import Message
from pfi.federate.strategy import LinearStrategy
from pfi.federate.work import Client, Memory, State, Train, Trained, Update, Work, remembered


class Scaffold(LinearStrategy):
    """SCAFFOLD with option II of the paper for the clients' controls.

    Controls are those of the paper times the local learning rate: what a local step moves, so both
    halves of an update are of one unit.  As in the paper all clients count alike; weighting by
    examples would break the sum of controls.  A reply that is lost on its way, or a round that is
    taken back, leaves a small bias: the clients concerned renewed their controls, the server not.

    Raises:
        ConfigError: local steps are not plain SGD, the number of clients is not set, or updates
            would not be summed exactly.
    """

    name = "scaffold"
    computes = "the mean of the A and of the B, clients alike, with their drift corrected"
    stateful = True

    def __init__(self, layout: Layout, config: FederateConfig) -> None:
        super().__init__(layout, config)
        if config.local.optimizer != "sgd":
            what = "scaffold's controls are means of plain gradients"
            raise ConfigError(what, where="local.optimizer", fix="set it to sgd")
        if config.local.prox:
            what = "scaffold has a correction of its own"
            raise ConfigError(what, where="local.prox", fix="set it to 0")
        inexact = {
            "spare": config.spare > 0,
            "compress": config.compress.active,
            "privacy": config.privacy.mechanism != "none",
            "robust": config.robust is not None,
        }
        for where in (name for name, given in inexact.items() if given):
            what = "scaffold needs the exact sum of all controls: what it misses adds up"
            raise ConfigError(what, where=where, fix="leave it out, or use another strategy")
        if config.scaffold.clients < config.cohort:
            what = f"scaffold needs the number of all clients, at least the {config.cohort} asked"
            raise ConfigError(what, where="scaffold.clients", fix="set it")

    @property
    def size(self) -> int:
        """Numbers in an update: of the row and of the client's control."""
        return 2 * self.layout.width

    def start(self) -> State:
        """The row, and the mean of all clients' controls."""
        return {**super().start(), "control": np.zeros(self.layout.width, np.float32)}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """The row and the mean of the controls."""
        arrays = {"row": state["row"], "control": state["control"]}
        return self.once(state, lambda: Message(arrays))

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """The next state when a whole cohort took part."""
        return self.take(state, Combined(combined, self.config.cohort), round)

    def take(self, state: State, combined: Combined, round: int) -> State:
        """See ``LinearStrategy``: the mean of all controls moves by the share of the clients."""
        width = self.layout.width
        share = min(1.0, combined.clients / self.config.scaffold.clients)
        control = state["control"] + share * combined.vector[width:]
        moved = self.optimizer.step(state, "row", combined.vector[:width])
        return {**state, **moved, "control": control.astype(np.float32)}

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train with the correction, and renew the client's control."""
        row, control = self.received(message), self.received(message, "control")
        own = remembered(memory, "control", np.float32, (self.layout.width,))
        own = np.zeros_like(row) if own is None else own
        correction = (control - own) / np.float32(self.config.local.learning_rate)
        trained: Trained = yield Train(row, correction=correction)
        change = trained.row - row
        renewed = own - control - change / np.float32(trained.steps)
        memory["control"] = renewed
        return Update(np.concatenate([change, renewed - own]), 1.0)
