"""What a strategy is: the server's rule and the clients' local work, the same code in simulation
and in deployment.

A client's work is a generator that asks an engine for what needs the model (training, losses) and
ends with its update.  An engine serves many clients' requests in one pass of a bank, or one's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.combine import Combined, Combiner, Vector, WeightedMean
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Array, Message, Value
from pfi.federate.optimizers import ServerOptimizer
from pfi.federate.seeds import generator

if TYPE_CHECKING:
    from pfi.federate.config import FederateConfig

#: What the server has learnt, by name; a checkpoint holds it whole.
State = dict[str, Array]
#: What a client keeps at home from round to round, by name; it never leaves the device.
Memory = dict[str, Array]


@dataclass(frozen=True)
class Train:
    """Ask for a row to be trained on the client's own examples.

    Attributes:
        row: ``(width,)`` factors to begin with.
        mask: ``(width,)`` which numbers are trained; all when None.
        pull: ``(width,)`` what the row is pulled to, as in FedProx (1812.06127).
        mu: of ``mu / 2 * ||row - pull||²``, added to the loss.
        correction: ``(width,)`` added to every gradient before it is clipped.
        purpose: of this training, so that two of one round differ in their order of examples.
    """

    row: Row
    mask: NDArray[np.bool_] | None = None
    pull: Row | None = None
    mu: float = 0.0
    correction: Row | None = None
    purpose: str = "shared"


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        row: ``(width,)``, a copy of one's own.
        examples: how many it was trained on.
        steps: optimiser steps taken.
        loss: their mean loss.
    """

    row: Row
    examples: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Losses:
    """Ask for the mean loss of rows on the client's own examples; answered by a list of floats.

    Attributes:
        rows: each ``(width,)``.
        batch: only on the examples of this step of the local plan; on all when None.
    """

    rows: Sequence[Row]
    batch: int | None = None


@dataclass(frozen=True)
class Client:
    """What a client's work may know of itself.

    Attributes:
        id: its name.
        round: the number of the round.
        examples: how many it has.
        steps: of its local plan.
        rank: the largest rank that it can train; the layout's where it has no limit.
        seed: of its random choices in this round.
    """

    id: str
    round: int
    examples: int
    steps: int
    rank: int
    seed: int


@dataclass(frozen=True)
class Update:
    """What a client of a linear strategy sends.

    Attributes:
        vector: the difference to what was broadcast.
        weight: its number of examples.
        values: what else the strategy needs, in clear.
        part: of the state that the vector is of, where that differs from round to round; what
            compression has not sent yet waits for the same part.
    """

    vector: Vector
    weight: float
    values: dict[str, Value] = field(default_factory=dict)
    part: str = ""


Request = Train | Losses
Work = Generator[Request, Any, "Update | Message"]


@dataclass(frozen=True)
class Model:
    """What a client answers with.

    Attributes:
        row: ``(width,)`` in ``layout``.
        layout: the rank may be another than that of training.
        base: by layer what is added to the backbone's weights, ``(outputs, inputs)``; or None.
    """

    row: Row
    layout: Layout
    base: Sequence[NDArray[np.float32]] | None = None

    def products(self) -> list[NDArray[np.float64]]:
        """Every layer's whole update, the base's included, ``(outputs, inputs)``."""
        found = self.layout.products(self.row)
        return (
            found if self.base is None else [p + b for p, b in zip(found, self.base, strict=True)]
        )


class Aggregate(ABC):
    """Takes the updates of a round one by one and makes the server's next state."""

    @abstractmethod
    def add(self, client: str, message: Message) -> None:
        """Take a client's update.

        Raises:
            FederationError: it is refused; the round goes on without it.
        """

    @abstractmethod
    def result(self) -> tuple[State, Combined | None]:
        """The next state, and how it was combined where the strategy is linear."""


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
        from pfi.federate.upload import unpack

        self.combiner.add(client, *unpack(message, self.strategy.size))

    def result(self) -> tuple[State, Combined | None]:
        """See ``Aggregate``; without a single update the state stays, but for noise."""
        combined = self.combiner.result()
        if not combined.clients and not combined.vector.any():
            return self.state, combined
        return self.strategy.take(self.state, combined, self.round), combined
