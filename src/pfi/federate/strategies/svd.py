"""FlexLoRA (2402.11505): the mean of the products, cut by SVD to each client's rank.

With ``flexlora.keep`` what was cut off for a client stays in the mean, as in FedHL (2505.18494).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.federate.aggregate.factors import FactorAggregate
from pfi.federate.aggregate.products import Matrix, ProductMean, thin
from pfi.federate.layout import Layout, Row
from pfi.federate.strategies.cut import CutStrategy, with_ranks
from pfi.federate.work import State

#: Singular values below this share of the largest are rounding.
_ZERO = 1e-6


class CutBySvd(CutStrategy):
    """The server keeps the whole mean; ``row`` holds its best approximation, best rank first.

    Cutting such a row gives the best approximation of the smaller rank, so one SVD serves all
    clients.  In the paper's rule a client's product takes the place of what it was sent, so what
    was cut off for it fades from the mean by its weight.

    Its state adds ``mean.0``, ``mean.1``... by layer, after the first round.
    """

    name = "flexlora"
    computes = (
        "the mean of the BA by examples exactly, kept whole by the server; each client is sent the "
        "best approximation of its own rank, and for it the rest is cut off"
    )

    def aggregate(self, state: State, round: int) -> _Mean:
        """See ``Strategy``."""
        return _Mean(self, state, round)

    def mean(self, state: State) -> list[Matrix]:
        """The whole mean by layer, ``(outputs, inputs)``, of which ``row`` is a part."""
        if "mean.0" not in state:
            return self.layout.products(state["row"])
        return [state[f"mean.{i}"].astype(np.float64) for i in range(len(self.layout.layers))]


class _Mean(FactorAggregate):
    """Full matrices by layer."""

    def __init__(self, strategy: CutBySvd, state: State, round: int) -> None:
        super().__init__(strategy.layout, state)
        self.strategy, self.round = strategy, round
        self.products = ProductMean(strategy.layout)
        self._sent: dict[int, float] = {}

    def take(self, layout: Layout, row: Row, examples: float) -> None:
        """See ``FactorAggregate``."""
        self.products.add(layout, row, examples)
        self._sent[layout.rank] = self._sent.get(layout.rank, 0.0) + examples

    def next_state(self) -> State:
        """The mean after the server's step, and its factors."""
        strategy, state = self.strategy, dict(self.state)
        rank = self.products.rank
        for i, product in enumerate(self.products.result()):
            old = state.setdefault(f"mean.{i}", np.zeros(product.shape, np.float32))
            before = self._began(i) if strategy.config.flexlora.keep else old
            state |= strategy.optimizer.step(state, f"mean.{i}", product - before)
        drawn = generator(strategy.config.seed, "fill", self.round)
        row = factors_of(self.layout, strategy.mean(state), rank, drawn)
        return {**state, "row": row, **with_ranks(self.state, self.ranks)}

    def _began(self, layer: int) -> Matrix:
        """The mean of the products that clients began with, each within its rank."""
        a, b = self.layout.a(self.state["row"], layer), self.layout.b(self.state["row"], layer)
        share = np.zeros(self.layout.rank)
        for rank, examples in self._sent.items():
            share[:rank] += examples / self.products.weight
        return self.layout.scale * (b.T * share).astype(np.float64) @ a.astype(np.float64)


def factors_of(layout: Layout, matrices: list[Matrix], rank: int, fill: np.random.Generator) -> Row:
    """The best approximation of full matrices in a layout's rank, largest singular value first.

    Args:
        layout: of the row.
        matrices: by layer, ``(outputs, inputs)``.
        rank: which they likely have at most; saves time where it is small.
        fill: draws ``A`` of the ranks that a matrix does not fill; their ``B`` is zero, so that
            they can be trained.
    """
    row = layout.fresh(fill)
    for i, matrix in enumerate(matrices):
        outputs, values, inputs = svd(matrix, rank)
        count = min(layout.rank, int((values > _ZERO * values.max(initial=0.0)).sum()))
        # A keeps the length 1 of singular vectors: gradients of B do not fade with small values.
        layout.a(row, i)[:count] = inputs[:count]
        layout.b(row, i)[:count] = (outputs[:, :count] * values[:count]).T / layout.scale
    return row


def svd(
    matrix: NDArray[np.float64], rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``u, s, vh`` of a matrix, by way of its thin factors where it has a small rank."""
    factors = thin(matrix, rank)
    if factors is None:
        return np.linalg.svd(matrix, full_matrices=False)
    left, right = factors
    outputs, values, inputs = np.linalg.svd(left, full_matrices=False)
    return outputs, values, inputs @ right
