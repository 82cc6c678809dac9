"""Where the LoRA factors of all target layers lie in a flat row; what a row stands for.

A row is a slot of ``AdapterBank``: first every target's ``A``, then every transposed ``B``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pfi.models.bank.bank import AdapterBank

Row = NDArray[np.float32]
Part = Literal["both", "A", "B"]


@dataclass(frozen=True)
class Layer:
    """A target layer: its name in the model and its sizes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Layout:
    """The places of factors in rows.

    Attributes:
        layers: the target layers in the model's order.
        rank: of the factors; those of a client with a smaller rank end in zeros.
        scale: the update of a layer is ``scale * B A``, whatever a client's rank.
        backbone: fingerprint of the model that the layers are of, where there is one.
    """

    layers: tuple[Layer, ...]
    rank: int
    scale: float
    backbone: str = field(default="", compare=False)

    @classmethod
    def of(cls, bank: AdapterBank, backbone: str = "") -> Layout:
        """The layout of a bank's rows."""
        layers = tuple(Layer(t.name, t.inputs, t.outputs) for t in bank.targets)
        return cls(layers, bank.rank, bank.config.alpha / bank.rank, backbone)

    @cached_property
    def split(self) -> int:
        """Where the ``B`` begin."""
        return self.rank * sum(layer.inputs for layer in self.layers)

    @cached_property
    def width(self) -> int:
        """Numbers in a row."""
        return self.split + self.rank * sum(layer.outputs for layer in self.layers)

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        places, at_a, at_b = [], 0, self.split
        for layer in self.layers:
            places.append((at_a, at_b))
            at_a += self.rank * layer.inputs
            at_b += self.rank * layer.outputs
        return places

    def a(self, row: NDArray[Any], layer: int) -> NDArray[Any]:
        """The view ``(..., rank, inputs)`` of a layer's ``A`` in ``(..., width)`` rows."""
        at, size = self._places[layer][0], self.layers[layer].inputs
        part = row[..., at : at + self.rank * size]
        return part.reshape(*row.shape[:-1], self.rank, size)

    def b(self, row: NDArray[Any], layer: int) -> NDArray[Any]:
        """The view ``(..., rank, outputs)`` of a layer's transposed ``B``."""
        at, size = self._places[layer][1], self.layers[layer].outputs
        part = row[..., at : at + self.rank * size]
        return part.reshape(*row.shape[:-1], self.rank, size)

    def product(self, row: NDArray[Any], layer: int) -> NDArray[np.float64]:
        """A layer's whole update ``scale * B A``, ``(outputs, inputs)``."""
        a, b = self.a(row, layer).astype(np.float64), self.b(row, layer).astype(np.float64)
        return self.scale * (b.T @ a)

    def products(self, row: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Every layer's whole update."""
        return [self.product(row, i) for i in range(len(self.layers))]

    def fresh(self, rng: np.random.Generator, rank: int | None = None) -> Row:
        """New factors: ``A`` uniform within ``1 / sqrt(inputs)``, ``B`` zero, as peft draws them.

        Args:
            rng: what draws them.
            rank: beyond it ``A`` is zero as well; all by default.
        """
        row = np.zeros(self.width, np.float32)
        for i, layer in enumerate(self.layers):
            bound = 1 / np.sqrt(layer.inputs)
            drawn = rng.uniform(-bound, bound, (rank or self.rank, layer.inputs))
            self.a(row, i)[: rank or self.rank] = drawn
        return row

    def mask(self, part: Part = "both", ranks: slice = slice(None)) -> NDArray[np.bool_]:
        """Which numbers of a row belong to ``A``, to ``B`` or both, within these ranks."""
        mask = np.zeros(self.width, bool)
        for i in range(len(self.layers)):
            if part != "B":
                self.a(mask, i)[ranks] = True
            if part != "A":
                self.b(mask, i)[ranks] = True
        return mask

    def with_rank(self, rank: int) -> Layout:
        """The same layers with factors of another rank and the same scale."""
        return Layout(self.layers, rank, self.scale, self.backbone)

    def resized(self, row: NDArray[Any], to: Layout) -> NDArray[Any]:
        """A row in the layout of another rank: cut, or filled with zeros."""
        resized = np.zeros(to.width, row.dtype)
        ranks = min(self.rank, to.rank)
        for i in range(len(self.layers)):
            to.a(resized, i)[:ranks] = self.a(row, i)[:ranks]
            to.b(resized, i)[:ranks] = self.b(row, i)[:ranks]
        return resized
