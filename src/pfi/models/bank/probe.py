"""Two rows with an adapter each through a model that was never tried: right, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from pfi.errors import BackboneError
from pfi.models.bank.layers import Route, Target
from pfi.models.probe import FIRST, logits_of

_CLOSE = {"atol": 2e-3, "rtol": 2e-3}
#: In bfloat16 single logits of 30 blocks differ by 11 of 29, and all of them by 11 %.
_CLOSE_HALF = 0.3


def check_adapting(
    model: Any,
    targets: Sequence[Target],
    on: Callable[[Route], AbstractContextManager[None]],
    dtype: torch.dtype,
    name: str,
) -> None:
    """Refuse a model whose rows would not get each their own adapter.

    One layer of each kind gets random factors, two rows each their own; then the same update is
    put into the weights themselves.

    Args:
        model: a bank's.
        targets: its adapted layers.
        on: puts a route in force.
        dtype: of the products.
        name: of the backbone.

    Raises:
        BackboneError: rows mix, or a layer's weights are used without calling the layer.
    """
    width = sum(target.rank * (target.inputs + target.outputs) for target in targets)
    kinds: dict[Any, Target] = {}
    for target in targets:
        parent, _, last = target.name.rpartition(".")
        kind = type(model.get_submodule(parent)).__name__, last, target.inputs, target.outputs
        kinds.setdefault(kind, target)
    generator = torch.Generator().manual_seed(0)
    factors = torch.zeros(2, width)
    for target in kinds.values():
        for part in (target.a(factors), target.b(factors)):
            part.copy_(torch.randn(part.shape, generator=generator) * part.shape[2] ** -0.5)
    factors = factors.to(model.device)
    ids = torch.arange(FIRST, FIRST + 6, device=model.device).repeat(2, 1)
    plain = {target: model.get_submodule(target.name).weight for target in kinds.values()}
    with torch.inference_mode():
        with on(Route(factors, 1, dtype)):
            together = logits_of(model, ids, name)
        try:
            for row, got in enumerate(together):
                for target, weight in plain.items():
                    layer = model.get_submodule(target.name)
                    a, b = target.a(factors)[row], target.b(factors)[row]
                    delta = (b.T @ a).to(weight)
                    changed = weight + (delta.T if layer.transposed else delta)
                    layer.weight = nn.Parameter(changed, requires_grad=False)
                if not _alike(got, logits_of(model, ids[:1], name)[0], dtype):
                    what = f"this kind of model ({model.config.model_type}) cannot be adapted"
                    raise BackboneError(
                        f"{what}: an adapter changes it otherwise than its weights would",
                        where=name,
                        fix="use it without an adapter, or a backbone of another family",
                    )
        finally:
            for target, weight in plain.items():
                model.get_submodule(target.name).weight = weight


def _alike(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool((got - expected).norm() <= _CLOSE_HALF * expected.norm())
    return torch.allclose(got, expected, **_CLOSE)  # type: ignore[arg-type]
