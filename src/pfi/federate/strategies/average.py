"""Averages of factors: FedIT (2305.05644), FFA-LoRA (2403.12313)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pfi.federate.layout import Row
from pfi.federate.message import Message
from pfi.federate.strategy import LinearStrategy
from pfi.federate.work import Client, Memory, State, Train, Trained, Update, Work


class Average(LinearStrategy):
    """FedIT: A and B are averaged separately, which is not the average of the products BA."""

    name = "average"
    computes = "the mean of the A and the mean of the B, by examples; not the mean of the BA"

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the whole row."""
        row = self.received(message)
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        return Update(trained.row - row, trained.examples)


class FrozenA(LinearStrategy):
    """FFA-LoRA: A stays as it was drawn, so that averaging B averages the products."""

    name = "ffa"
    computes = "the mean of the BA exactly: A is drawn once and frozen, only B is sent"

    @property
    def size(self) -> int:
        """Numbers in an update: B alone."""
        return self.layout.width - self.layout.split

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """B alone; every client draws A from the seed."""
        return self.once(state, lambda: Message({"b": state["row"][self.layout.split :]}))

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """See ``LinearStrategy``."""
        whole = np.concatenate([np.zeros(self.layout.split), combined])
        return {**state, **self.optimizer.step(state, "row", whole)}

    @cached_property
    def _drawn(self) -> Row:
        """The row of the first round, with the A of all rounds."""
        return self.start()["row"]

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return self.layout.mask("B")

    def received(self, message: Message, name: str = "row") -> Row:
        """A as drawn, and B as sent."""
        row = self._drawn.copy()
        row[self.layout.split :] = message.array("b", np.float32, (self.size,))
        return row

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train B."""
        row = self.received(message)
        trained: Trained = yield Train(row, self._mask, pull=row, mu=self.config.local.prox)
        return Update((trained.row - row)[self.layout.split :], trained.examples)
