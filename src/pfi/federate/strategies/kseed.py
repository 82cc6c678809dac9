"""FedKSeed (2312.06353): rows are moved along directions that seeds decide, so only one number a
seed is ever sent, and adding these up is averaging the rows.

Directions are of random signs (Spall 1992) where the paper's are Gaussian: the same mean step with
less variance, and eight of them are replayed by one look-up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.strategy import LinearStrategy
from pfi.federate.work import Client, Losses, Memory, Model, State, Update, Work

#: Directions drawn together: byte ``j`` of a draw has their signs at place ``j`` of a row.
_TOGETHER = 8
_BITS = (np.arange(256)[:, None] >> np.arange(_TOGETHER)) & 1


class Directions:
    """The directions of all seeds, drawn when needed; each ``(width,)`` of signs.

    Args:
        width: of a row.
        count: how many seeds.
        seed: decides all.
    """

    def __init__(self, width: int, count: int, seed: int) -> None:
        self.width, self.count, self.seed = width, count, seed

    def one(self, index: int) -> Row:
        """A seed's direction."""
        block, bit = divmod(index, _TOGETHER)
        return ((self._draw(block) >> bit) & 1).astype(np.float32) * 2 - 1

    def sum(self, coefficients: NDArray[np.floating]) -> NDArray[np.float64]:
        """The sum of all directions, each times its coefficient.

        Args:
            coefficients: ``(count,)``; seeds with zeros cost nothing in blocks of eight.
        """
        padded = np.zeros(-(-self.count // _TOGETHER) * _TOGETHER)
        padded[: self.count] = coefficients
        total = np.zeros(self.width)
        blocks = padded.reshape(-1, _TOGETHER)
        for block in np.flatnonzero(blocks.any(axis=1)):
            total += ((2 * _BITS - 1) @ blocks[block])[self._draw(int(block))]
        return total

    def _draw(self, block: int) -> NDArray[np.uint8]:
        drawn = generator(self.seed, "direction", block).bytes(self.width)
        return np.frombuffer(drawn, np.uint8)


class FedKSeed(LinearStrategy):
    """FedKSeed with uniformly drawn seeds, over the LoRA row.

    The state is one coefficient a seed; the row is the seeded first one moved along every
    direction by its coefficient.  As seeds stay the same in all rounds, a sum a seed suffices.
    """

    name = "fedkseed"
    computes = "the mean of the clients' whole rows, told by one number a seed"

    def __init__(self, layout: Layout, config: FederateConfig) -> None:
        super().__init__(layout, config)
        self.directions = Directions(layout.width, config.kseed.seeds, config.seed)
        self._first = super().start()["row"]
        self._replayed: tuple[bytes, Row] | None = None

    @property
    def size(self) -> int:
        """Numbers in an update: one a seed."""
        return self.config.kseed.seeds

    def start(self) -> State:
        """No direction was gone."""
        return {"coefficients": np.zeros(self.size, np.float32)}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """The coefficients so far."""
        return self.once(state, lambda: Message({"coefficients": state["coefficients"]}))

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """See ``LinearStrategy``."""
        return {**state, **self.optimizer.step(state, "coefficients", combined)}

    def model(self, state: State) -> Model:
        """See ``Strategy``."""
        return Model(self.replay(state["coefficients"]), self.layout)

    def replay(self, coefficients: NDArray[np.float32]) -> Row:
        """The row of these coefficients; the last one is kept, as all of a cohort need it."""
        key = coefficients.tobytes()
        if self._replayed is None or self._replayed[0] != key:
            row = (self._first + self.directions.sum(coefficients)).astype(np.float32)
            self._replayed = key, row
        return self._replayed[1]

    def received(self, message: Message, name: str = "row") -> Row:
        """The row of the coefficients that were sent."""
        return self.replay(message.array("coefficients", np.float32, (self.size,)))

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Step along seeds' directions by the slope of the loss, two losses a step.

        Its own rate and no optimiser: of the settings of training only the batches count.
        """
        config, row = self.config.kseed, self.received(message)
        rate = config.learning_rate / self.layout.width
        chosen = generator(client.seed, "seeds").integers(0, config.seeds, client.steps)
        change = np.zeros(config.seeds)
        for step, index in enumerate(chosen):
            direction = self.directions.one(int(index))
            apart = np.float32(config.epsilon) * direction
            up, down = yield Losses([row + apart, row - apart], batch=step)
            slope = (up - down) / (2 * config.epsilon)
            if not np.isfinite(slope):
                raise FederationError(f"its loss at step {step} is not finite")
            change[index] -= rate * slope
            row = row - np.float32(rate * slope) * direction
        return Update(change.astype(np.float32), client.examples)
