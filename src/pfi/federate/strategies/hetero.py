"""HetLoRA (2401.06432): factors of different ranks, filled up with zeros and averaged by the size
of their products; clients may prune their own rank.
"""

from __future__ import annotations

import numpy as np

from pfi.federate.aggregate.factors import FactorAggregate
from pfi.federate.layout import Layout, Row
from pfi.federate.strategies.cut import CutStrategy, with_ranks
from pfi.federate.work import State


class CutByPlace(CutStrategy):
    """Averages factors rank by rank; a client is sent the first ranks.

    A client that prunes adds the penalty ``|A| |B|`` of its last ranks to its loss, whose gradient
    is taken at the start of the round, and drops them if their norms shrank.  It drops them in all
    layers or none.
    """

    name = "hetlora"
    computes = (
        "the mean of the A and the mean of the B, filled up with zeros and weighted by the norm of "
        "the BA; not the mean of the BA"
    )

    def aggregate(self, state: State, round: int) -> _Mean:
        """See ``Strategy``."""
        return _Mean(self, state)

    def correction(self, row: Row, rank: int) -> Row | None:
        """The gradient of the penalty."""
        settings, last = self.config.hetlora, self._last(rank)
        if last is None or not settings.penalty:
            return None
        gradient = np.zeros_like(row)
        for i in range(len(self.layout.layers)):
            a, b = self.layout.a(row, i)[last], self.layout.b(row, i)[last]
            norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
            if norm_a and norm_b:
                self.layout.a(gradient, i)[last] = settings.penalty * norm_b / norm_a * a
                self.layout.b(gradient, i)[last] = settings.penalty * norm_a / norm_b * b
        return gradient

    def kept_rank(self, start: Row, trained: Row, rank: int) -> int:
        """Fewer ranks if the last ones shrank in training."""
        last = self._last(rank)
        if last is None or self._size(trained, last) >= self._size(start, last):
            return rank
        return last.start

    def _last(self, rank: int) -> slice | None:
        """The ranks that pruning would take; None if it takes none."""
        first = max(1, int(np.ceil(self.config.hetlora.keep * rank)))
        return slice(first, rank) if first < rank else None

    def _size(self, row: Row, ranks: slice) -> float:
        norms = (
            np.linalg.norm(self.layout.a(row, i)[ranks])
            * np.linalg.norm(self.layout.b(row, i)[ranks])
            for i in range(len(self.layout.layers))
        )
        return float(sum(norms))


class _Mean(FactorAggregate):
    """The weighted sum of the factors."""

    def __init__(self, strategy: CutByPlace, state: State) -> None:
        super().__init__(strategy.layout, state)
        self.strategy = strategy
        self._sum, self._weight = np.zeros(strategy.layout.width), 0.0

    def take(self, layout: Layout, row: Row, examples: float) -> None:
        """See ``FactorAggregate``."""
        by_norm = self.strategy.config.hetlora.weights == "norm"
        weight = product_norm(layout, row) if by_norm else examples
        self._sum += weight * layout.resized(row, self.layout).astype(np.float64)
        self._weight += weight

    def next_state(self) -> State:
        """The factors after the server's step; ranks that nobody sent stay as they were."""
        state = {**self.state, **with_ranks(self.state, self.ranks)}
        if not self._weight:
            return state
        away = self._sum / self._weight - state["row"]
        away[self.layout.mask(ranks=slice(max(self.ranks.values()), None))] = 0
        return {**state, **self.strategy.optimizer.step(state, "row", away)}


def product_norm(layout: Layout, row: Row) -> float:
    """The Frobenius norm of all layers' whole products, from ``rank x rank`` matrices."""
    squares = 0.0
    for i in range(len(layout.layers)):
        a, b = layout.a(row, i).astype(np.float64), layout.b(row, i).astype(np.float64)
        squares += float(((a @ a.T) * (b @ b.T)).sum())
    return layout.scale * float(np.sqrt(max(squares, 0.0)))
