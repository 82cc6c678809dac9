"""One factor at a time: RoLoRA (2502.01755) sends B and A by turns, FedSA-LoRA (2410.01463) only A.

Where one factor is the same for all, the mean of the other is the mean of the products.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pfi.errors import ConfigError
from pfi.federate.aggregate.optimizers import ServerOptimizer
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.strategy import LinearStrategy
from pfi.federate.work import Client, Memory, Model, State, Train, Trained, Update, Work, remembered


class RoLoRA(LinearStrategy):
    """RoLoRA: even rounds train and send B, odd ones A; the other factor is frozen.

    B comes first, as the gradient of A is zero while B is.  Both are arrays of their own in
    the state, so that the server's momentum of one never moves the other.

    Raises:
        ConfigError: the combination of updates leans on that of the round before.
    """

    name = "rolora"
    computes = "the mean of the BA exactly: B in even rounds, A in odd ones, the other frozen"

    def __init__(self, layout: Layout, config: FederateConfig) -> None:
        super().__init__(layout, config)
        # A factor is stepped every other round: its rate falls over half as many steps.
        self.optimizer = ServerOptimizer(config.server, -(-config.rounds // 2))
        what = "rolora's rounds take turns, so what one leaves for the next meets another factor"
        if config.privacy.mechanism in ("tree", "banded"):
            raise ConfigError(what, where="privacy.mechanism", fix="set it to gaussian")
        if config.robust is not None and config.robust.rule == "centred-clipping":
            raise ConfigError(what, where="robust.rule", fix="choose another rule")

    @property
    def size(self) -> int:
        """Numbers in an update: those of the larger factor; the smaller one ends in zeros."""
        return max(self.layout.split, self.layout.width - self.layout.split)

    def start(self) -> State:
        """The factors apart."""
        row = super().start()["row"]
        return {"a": row[: self.layout.split], "b": row[self.layout.split :]}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """Both factors: who joins now has neither."""
        return self.once(state, lambda: Message({"a": state["a"], "b": state["b"]}))

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """See ``LinearStrategy``."""
        name = _part(round).lower()
        return {**state, **self.optimizer.step(state, name, combined[: len(state[name])])}

    def model(self, state: State) -> Model:
        """See ``Strategy``."""
        return Model(np.concatenate([state["a"], state["b"]]), self.layout)

    def received(self, message: Message, name: str = "row") -> Row:
        """Both factors as sent."""
        split = self.layout.split
        a = message.array("a", np.float32, (split,))
        return np.concatenate([a, message.array("b", np.float32, (self.layout.width - split,))])

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the round's factor."""
        row, split, part = self.received(message), self.layout.split, _part(client.round)
        mask = self.layout.mask(part)
        trained: Trained = yield Train(row, mask, pull=row, mu=self.config.local.prox)
        change = trained.row - row
        sent = change[:split] if part == "A" else change[split:]
        vector = np.zeros(self.size, np.float32)
        vector[: len(sent)] = sent
        return Update(vector, trained.examples, part=part)


def _part(round: int) -> Literal["A", "B"]:
    return "A" if round % 2 else "B"


class FedSA(LinearStrategy):
    """FedSA-LoRA: A is learnt together, B stays at home.

    A client begins with ``B = 0``.  The server never has a B, not even their mean, so who never
    took part answers with ``B = 0``: as the backbone does, until it has trained a B at home.
    """

    name = "fedsa"
    computes = "the mean of the A; every client's BA is its own, as its B never leaves it"
    stateful = True

    @property
    def size(self) -> int:
        """Numbers in an update: A alone."""
        return self.layout.split

    def start(self) -> State:
        """A alone."""
        return {"a": super().start()["row"][: self.layout.split]}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """A alone."""
        return self.once(state, lambda: Message({"a": state["a"]}))

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """See ``LinearStrategy``."""
        return {**state, **self.optimizer.step(state, "a", combined)}

    def model(self, state: State) -> Model:
        """A newcomer's: ``B = 0``."""
        return Model(self._row(state["a"], {}), self.layout)

    def own_model(self, message: Message, memory: Memory) -> Model:
        """The server's A and the client's own B."""
        return Model(self._row(self._a(message), memory), self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train both factors, keep B, send A."""
        split = self.layout.split
        row = self._row(self._a(message), memory)
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        memory["b"] = trained.row[split:].copy()
        return Update(trained.row[:split] - row[:split], trained.examples)

    def _a(self, message: Message) -> NDArray[np.float32]:
        return message.array("a", np.float32, (self.size,))

    def _row(self, a: NDArray[np.float32], memory: Memory) -> Row:
        width = self.layout.width - self.layout.split
        b = remembered(memory, "b", np.float32, (width,))
        return np.concatenate([a, np.zeros(width, np.float32) if b is None else b])
