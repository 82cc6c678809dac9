"""Any federated model as one plain LoRA: exactly, or cut to a rank with the error that it costs.

A base is a full matrix a layer; as factors it has a rank of at most ``min(inputs, outputs)``, and
of no more than the ranks that were added up in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.layout import Layout, Row
from pfi.federate.work import Model
from pfi.models.adapters import Adapter

#: What is left out of a layer's product when it is made exact, relative to its norm: rounding.
_ROUNDING = 3e-7
_PREFIX = "base_model.model."

Svd = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def exact(model: Model) -> Model:
    """The same model without a base, in the smallest rank that costs no more than rounding.

    Raises:
        FederationError: the model is not finite.
    """
    if model.base is None:
        return model
    parts = _svds(model.products())
    return _joined(model.layout, parts, max(1, *(_rank(values) for _, values, _ in parts)))


def compress(model: Model, rank: int) -> tuple[Model, float]:
    """The best approximation of a rank, without a base.

    Args:
        model: any.
        rank: of all layers.

    Returns:
        the model, and the norm of what it lacks relative to the norm of the whole, over all layers.

    Raises:
        FederationError: the rank is below 1, or the model is not finite.
    """
    if rank < 1:
        raise FederationError(f"nothing can be compressed to the rank {rank}")
    products = model.products()
    compressed = _joined(model.layout, _svds(products), rank)
    pairs = list(zip(products, compressed.products(), strict=True))
    whole = sum(float(np.square(product).sum()) for product, _ in pairs)
    lacks = sum(float(np.square(product - other).sum()) for product, other in pairs)
    return compressed, float(np.sqrt(lacks / whole)) if whole else 0.0


def as_adapter(model: Model, settings: Mapping[str, Any]) -> Adapter:
    """Any model as a plain LoRA that gives the same answers.

    Args:
        model: with or without a base.
        settings: of an adapter over the same layers of the backbone, as ``AdapterBank.settings``;
            its rank and scale are replaced.

    Raises:
        FederationError: the model is not finite.
    """
    plain = exact(model)
    layout, weights = plain.layout, {}
    for i, layer in enumerate(layout.layers):
        name = f"{_PREFIX}{layer.name}"
        a, b = layout.a(plain.row, i), layout.b(plain.row, i).T
        weights[f"{name}.lora_A.weight"] = torch.from_numpy(a.copy())
        weights[f"{name}.lora_B.weight"] = torch.from_numpy(np.ascontiguousarray(b))
    scale = {"r": layout.rank, "lora_alpha": layout.scale * layout.rank, "use_rslora": False}
    return Adapter({**settings, **scale}, weights)


def _svds(products: Sequence[NDArray[np.float64]]) -> list[Svd]:
    """``u, s, vh`` of every layer's product."""
    if not all(np.isfinite(product).all() for product in products):
        raise FederationError("a model is not finite", fix="go back to an earlier round")
    parts = [np.linalg.svd(product, full_matrices=False) for product in products]
    return [(part.U, part.S, part.Vh) for part in parts]


def _rank(values: NDArray[np.float64]) -> int:
    """How many singular values are more than rounding."""
    left_out = np.sqrt(np.cumsum(np.square(values[::-1]))[::-1])
    return int((left_out > _ROUNDING * left_out[0]).sum())


def _joined(layout: Layout, parts: Sequence[Svd], rank: int) -> Model:
    """The largest singular values of all layers as factors of equal size."""
    wide = layout.with_rank(rank)
    row: Row = np.zeros(wide.width, np.float32)
    for i, (outputs, values, inputs) in enumerate(parts):
        count = min(rank, len(values))
        root = np.sqrt(values[:count] / layout.scale)
        wide.a(row, i)[:count] = root[:, None] * inputs[:count]
        wide.b(row, i)[:count] = (outputs[:, :count] * root).T
    return Model(row, wide)
