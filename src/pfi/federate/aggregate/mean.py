"""What makes one vector of many clients' updates; the weighted mean of FedAvg (1602.05629)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pfi.federate.aggregate.bounds import update_refusal, weight_refusal

Vector = NDArray[np.float32]
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Combined:
    """One vector of many.

    Attributes:
        vector: ``(width,)``.
        clients: how many updates are in it.
        refused: why updates of clients were left out.
    """

    vector: NDArray[np.float64]
    clients: int
    refused: Mapping[str, str] = field(default_factory=dict)


class Combiner(Protocol):
    """Makes one vector of the updates of a round."""

    def add(self, client: str, vector: Vector, weight: float) -> None:
        """Take an update, the difference to what was broadcast.

        Args:
            client: whose it is.
            vector: ``(width,)``.
            weight: its number of examples, which the client states itself.
        """
        ...

    def result(self) -> Combined:
        """The one vector."""
        ...


class WeightedMean:
    """The mean by number of examples, or with equal weights; holds one float64 vector."""

    def __init__(self, width: int, *, equal: bool = False) -> None:
        self._sum, self._weight, self._clients = np.zeros(width), 0.0, 0
        self._equal = equal
        self._refused: dict[str, str] = {}

    def add(self, client: str, vector: Vector, weight: float) -> None:
        """See ``Combiner``."""
        why = update_refusal(vector, len(self._sum)) or weight_refusal(weight)
        if why is not None:
            self._refused[client] = why
        else:
            share = 1.0 if self._equal else weight
            # Block by block: a float64 copy of a large update would cost more than the sum.
            for at in range(0, len(vector), _BLOCK):
                part = vector[at : at + _BLOCK].astype(np.float64)
                part *= share
                self._sum[at : at + _BLOCK] += part
            self._weight += share
            self._clients += 1

    def result(self) -> Combined:
        """See ``Combiner``."""
        mean = self._sum / self._weight if self._weight else self._sum
        return Combined(mean, self._clients, self._refused)
