"""Whole products BA of factors: their mean over clients, held as one float64 matrix a layer, and
the base that carries them in a message, as thin factors where these are smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Array, Message

Matrix = NDArray[np.float64]
#: What rounding to float32 may cost a matrix, relative to its norm.
ROUNDING = 5e-7


class ProductMean:
    """The weighted mean of clients' products; no client's factors are kept.

    Args:
        layout: of the layers; rows may be of other ranks.

    Attributes:
        weight: of all that was added.
        rank: the sum of the ranks added, which the mean's rank cannot exceed.
    """

    def __init__(self, layout: Layout) -> None:
        self._sums = [np.zeros((layer.outputs, layer.inputs)) for layer in layout.layers]
        self.weight, self.rank = 0.0, 0

    def add(self, layout: Layout, row: Row, weight: float) -> None:
        """Take a client's row; the weight goes to one factor only, not to both."""
        for i, total in enumerate(self._sums):
            b = layout.b(row, i).astype(np.float64) * (weight * layout.scale)
            total += b.T @ layout.a(row, i).astype(np.float64)
        self.weight += weight
        self.rank += layout.rank

    def result(self) -> list[Matrix]:
        """By layer, ``(outputs, inputs)``."""
        return [total / self.weight for total in self._sums]


def thin(matrix: NDArray[Any], rank: int) -> tuple[Matrix, Matrix] | None:
    """A matrix as ``left @ right``, which is exact when its rank is no larger.

    As many random sums of its columns as its rank span all of them; their sums by the rows, in
    turn, do so without enlarging what rounding adds to the rank.

    Args:
        matrix: ``(outputs, inputs)``.
        rank: what its rank should be at most.

    Returns:
        ``(outputs, rank)``, and ``(rank, inputs)`` with orthonormal rows; None when the rank is
        larger, or so large that this is no smaller than the matrix.
    """
    outputs, inputs = matrix.shape
    if rank * (outputs + inputs) >= outputs * inputs:
        return None
    whole = matrix.astype(np.float64)
    drawn = generator(0, "range").standard_normal((inputs, rank))
    across = np.linalg.qr(whole.T @ np.linalg.qr(whole @ drawn)[0])[0]
    left, right = whole @ across, across.T
    lost = np.linalg.norm(whole - left @ right)
    return (left, right) if lost <= ROUNDING * np.linalg.norm(whole) else None


def pack_base(base: Sequence[NDArray[Any]], rank: int) -> dict[str, Array]:
    """What a base is sent as: each layer whole or thin, whichever is smaller.

    Args:
        base: by layer, ``(outputs, inputs)``.
        rank: which no layer's rank exceeds, rounding aside.
    """
    arrays: dict[str, Array] = {}
    for i, matrix in enumerate(base):
        factors = thin(matrix, rank)
        if factors is None:
            arrays[f"base.{i}"] = matrix.astype(np.float32)
        else:
            arrays[f"base.{i}.left"], arrays[f"base.{i}.right"] = (
                factor.astype(np.float32) for factor in factors
            )
    return arrays


def unpack_base(message: Message, layout: Layout) -> list[NDArray[np.float32]] | None:
    """The base in a message, ``(outputs, inputs)`` by layer; None where there is none.

    Raises:
        FederationError: a layer is missing, misshapen or not finite.
    """
    if not any(name.startswith("base.") for name in message.arrays):
        return None
    base = []
    for i, layer in enumerate(layout.layers):
        shape = (layer.outputs, layer.inputs)
        if f"base.{i}.left" in message.arrays:
            left = message.array(f"base.{i}.left", np.float32)
            right = message.array(f"base.{i}.right", np.float32)
            fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
            if not fits or (left.shape[0], right.shape[1]) != shape:
                raise FederationError(f"the base in a message does not fit the layer {layer.name}")
            matrix = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.float32)
        else:
            matrix = message.array(f"base.{i}", np.float32, shape)
        if not np.isfinite(matrix).all():
            raise FederationError(f"the base in a message is not finite in the layer {layer.name}")
        base.append(matrix)
    return base
