"""Strategies that add to the backbone's weights: FLoRA (2409.05976), where the sum that stacked
factors stand for goes into the base, and FedEx-LoRA (2410.09432), where factors are averaged and
what that loses goes there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.federate.aggregate.factors import FactorAggregate, send_factors
from pfi.federate.aggregate.products import ProductMean, pack_base, unpack_base
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.strategy import Strategy
from pfi.federate.work import Client, Memory, Model, State, Train, Trained, Work


class BasedStrategy(Strategy):
    """Its state adds, after the first round, ``base.0``, ``base.1``... by layer, and has ``rank``,
    which no layer of the base exceeds.
    """

    _read: tuple[Message, Sequence[NDArray[np.float32]] | None] | None = None

    def start(self) -> State:
        """No base yet."""
        return {**super().start(), "rank": np.zeros(1, np.int64)}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """What is trained further, and the base once there is one."""

        def make() -> Message:
            base = self.held(state)
            arrays = {} if base is None else pack_base(base, int(state["rank"][0]))
            return Message({**self.trained(state), **arrays})

        return self.once(state, make)

    def trained(self, state: State) -> State:
        """What clients are sent besides the base."""
        return {"row": state["row"]}

    def held(self, state: State) -> Sequence[NDArray[np.float32]] | None:
        """The base in a state."""
        if "base.0" not in state:
            return None
        return [state[f"base.{i}"] for i in range(len(self.layout.layers))]

    def base(self, message: Message) -> Sequence[NDArray[np.float32]] | None:
        """See ``Strategy``; read once for all that are sent one message."""
        if self._read is None or self._read[0] is not message:
            self._read = message, unpack_base(message, self.layout)
        return self._read[1]

    def model(self, state: State) -> Model:
        """Factors and base."""
        return Model(state["row"], self.layout, self.held(state))

    def own_model(self, message: Message, memory: Memory) -> Model:
        """Factors and base as sent."""
        return Model(self.received(message), self.layout, self.base(message))


class Stacking(BasedStrategy):
    """Every round begins with fresh factors; a client sends its own ranks and receives the base.

    The products are added up layer by layer, so that the server never holds a stack, whatever the
    size of the cohort.
    """

    name = "flora"
    computes = "the mean of the BA by examples exactly, of clients of any rank; added to the base"

    def start(self) -> State:
        """No base yet, and no factors."""
        return {"rank": super().start()["rank"]}

    def trained(self, state: State) -> State:
        """Nothing: clients draw their factors themselves."""
        return {}

    def aggregate(self, state: State, round: int) -> _Sum:
        """See ``Strategy``."""
        return _Sum(self, state)

    def model(self, state: State) -> Model:
        """The base alone."""
        return Model(np.zeros(self.layout.width, np.float32), self.layout, self.held(state))

    def received(self, message: Message, name: str = "row") -> Row:
        """Factors that change nothing."""
        return np.zeros(self.layout.width, np.float32)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train fresh factors, which every client draws for itself, over the base."""
        row = self.layout.fresh(generator(client.seed, "fresh"), client.rank)
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        return send_factors(self.layout, trained.row, client.rank, trained.examples)


class _Sum(FactorAggregate):
    """Full matrices by layer; never the factors of more than one client."""

    def __init__(self, strategy: Stacking, state: State) -> None:
        super().__init__(strategy.layout, state)
        self.strategy, self.mean = strategy, ProductMean(strategy.layout)

    def take(self, layout: Layout, row: Row, examples: float) -> None:
        """See ``FactorAggregate``."""
        self.mean.add(layout, row, examples)

    def next_state(self) -> State:
        """The base after the server's step along the mean."""
        state = dict(self.state)
        for i, update in enumerate(self.mean.result()):
            state.setdefault(f"base.{i}", np.zeros(update.shape, np.float32))
            state |= self.strategy.optimizer.step(state, f"base.{i}", update)
        return {**state, "rank": self.state["rank"] + self.mean.rank}


class Residual(BasedStrategy):
    """The base takes ``mean(BA) - mean(B) mean(A)``.

    A client of a smaller rank receives all ranks, trains and sends the first of them, and leaves
    the others as they are: so its share of the mean is exact as well.  A server optimiser other
    than fedavg with the rate 1 steps the factors; the base still takes what averaging loses.
    """

    name = "fedex"
    computes = "the mean of the BA by examples exactly: mean A, mean B, and the rest in the base"

    def aggregate(self, state: State, round: int) -> _MeanAndRest:
        """See ``Strategy``."""
        return _MeanAndRest(self, state)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the ranks that this client can."""
        row = self.received(message)
        mask = None
        if client.rank < self.layout.rank:
            mask = self.layout.mask(ranks=slice(client.rank))
        trained: Trained = yield Train(row, mask, pull=row, mu=self.config.local.prox)
        return send_factors(self.layout, trained.row, client.rank, trained.examples)


class _MeanAndRest(FactorAggregate):
    """The sum of the factors and, by layer, that of the products."""

    def __init__(self, strategy: Residual, state: State) -> None:
        super().__init__(strategy.layout, state)
        self.strategy, self.mean = strategy, ProductMean(strategy.layout)
        self._rows = np.zeros(strategy.layout.width)

    def take(self, layout: Layout, row: Row, examples: float) -> None:
        """See ``FactorAggregate``."""
        whole = self.state["row"].copy()
        for i in range(len(layout.layers)):
            self.layout.a(whole, i)[: layout.rank] = layout.a(row, i)
            self.layout.b(whole, i)[: layout.rank] = layout.b(row, i)
        self.mean.add(self.layout, whole, examples)
        self._rows += examples * whole.astype(np.float64)

    def next_state(self) -> State:
        """The factors after the server's step, and the base."""
        row = self._rows / self.mean.weight
        state = dict(self.state)
        state |= self.strategy.optimizer.step(state, "row", row - self.state["row"])
        # Of a single client the mean loses nothing but rounding.
        products = self.mean.result() if len(self.ranks) > 1 else []
        for i, product in enumerate(products):
            rest = product - self.layout.product(row, i)
            old = state.get(f"base.{i}", np.zeros(rest.shape, np.float32))
            state[f"base.{i}"] = (old + rest).astype(np.float32)
        # It is the mean of (B - mean B)(A - mean A): one client's are given by the others'.
        rank = sum(self.ranks.values()) - min(self.ranks.values())
        return {**state, "rank": self.state["rank"] + rank}
