"""What a strategy is: the server's rule and the clients' local work, the same code in simulation
and in deployment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Combined, Combiner, WeightedMean
from pfi.federate.aggregate.optimizers import ServerOptimizer
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.work import Aggregate, Client, Losses, Memory, Model, State, Work, unpack


class Strategy(ABC):
    """A rule of aggregation and the local work that belongs to it.

    Args:
        layout: of the rows that clients train.
        config: all settings.

    Attributes:
        name: what it is called in commands and reports.
        computes: what the server computes, in a sentence for people.
        stateful: whether clients keep something at home from round to round.
    """

    name: ClassVar[str]
    computes: ClassVar[str]
    stateful: ClassVar[bool] = False

    def __init__(self, layout: Layout, config: FederateConfig) -> None:
        self.layout, self.config = layout, config
        self.optimizer = ServerOptimizer(config.server, config.rounds)
        self._made: tuple[State, dict[str, Message]] = ({}, {})

    @classmethod
    def rank(cls, config: FederateConfig) -> int:
        """The rank of the bank in which clients train."""
        return config.local.rank

    # Server -------------------------------------------------------------------------

    def start(self) -> State:
        """The state before the first round."""
        return {"row": self.layout.fresh(generator(self.config.seed, "start"))}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """What a client is sent; clients that are sent the same should be given one object."""
        return self.once(state, lambda: Message({"row": state["row"]}))

    def once(self, state: State, make: Callable[[], Message], which: str = "") -> Message:
        """A message of a state, made once for all clients that are sent it."""
        if self._made[0] is not state:
            self._made = state, {}
        if which not in self._made[1]:
            self._made[1][which] = make()
        return self._made[1][which]

    @abstractmethod
    def aggregate(self, state: State, round: int) -> Aggregate:
        """What takes this round's updates, unless the strategy is linear."""

    @abstractmethod
    def model(self, state: State) -> Model:
        """What a client that never took part answers with."""

    # Client -------------------------------------------------------------------------

    @abstractmethod
    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """A client's work in a round; it may change ``memory``."""

    def base(self, message: Message) -> Sequence[NDArray[np.float32]] | None:
        """What a message adds to the backbone's weights; the same for all clients of a round."""
        return None

    def own_model(self, message: Message, memory: Memory) -> Model:
        """What a client answers with after a round, given a broadcast and what it kept."""
        return Model(self.received(message), self.layout)

    def received(self, message: Message, name: str = "row") -> Row:
        """A row of a message, checked."""
        return message.array(name, np.float32, (self.layout.width,))

    def evaluate(self, message: Message, memory: Memory, client: Client) -> Work:
        """A client's measure of its own model: its mean loss, and how many examples it is of."""
        model = self.own_model(message, memory)
        if model.layout != self.layout:
            raise FederationError("a model of another rank cannot be measured in the bank")
        losses = yield Losses([model.row])
        return Message(values={"loss": losses[0], "examples": client.examples})

    @property
    def finishes(self) -> bool:
        """Whether clients have work at home after the last round."""
        return False

    def finish(self, message: Message, memory: Memory, client: Client) -> Work:
        """That work, given the last broadcast; what it ends with says nothing."""
        yield from ()
        return Message()


class LinearStrategy(Strategy):
    """A strategy whose update is one vector, and whose server needs only their combination.

    So robust rules, noise, compression and secure sums apply to it as they are.
    """

    @property
    def size(self) -> int:
        """Numbers in an update."""
        return self.layout.width

    def apply(self, state: State, combined: NDArray[np.float64], round: int) -> State:
        """The next state, given the combined vector: its row after a step along that."""
        return {**state, **self.optimizer.step(state, "row", combined)}

    def take(self, state: State, combined: Combined, round: int) -> State:
        """The next state, for a strategy that minds of how many clients the vector is."""
        return self.apply(state, combined.vector, round)

    def aggregate(
        self, state: State, round: int, combiner: Combiner | None = None
    ) -> LinearAggregate:
        """What combines this round's updates: by the weighted mean, unless told otherwise."""
        return LinearAggregate(self, state, round, combiner or WeightedMean(self.size))

    def model(self, state: State) -> Model:
        """See ``Strategy``."""
        return Model(state["row"], self.layout)


class LinearAggregate(Aggregate):
    """The updates of a linear strategy, given to a combiner."""

    def __init__(
        self, strategy: LinearStrategy, state: State, round: int, combiner: Combiner
    ) -> None:
        self.strategy, self.state, self.round, self.combiner = strategy, state, round, combiner

    def add(self, client: str, message: Message) -> None:
        """See ``Aggregate``."""
        self.combiner.add(client, *unpack(message, self.strategy.size))

    def result(self) -> tuple[State, Combined | None]:
        """See ``Aggregate``; without a single update the state stays, but for noise."""
        combined = self.combiner.result()
        if not combined.clients and not combined.vector.any():
            return self.state, combined
        return self.strategy.take(self.state, combined, self.round), combined
