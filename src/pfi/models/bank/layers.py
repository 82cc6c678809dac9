"""Linear layers of a bank: ``x W + (x A) B`` for all rows, each with its own slot's factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pfi.errors import BackboneError


@dataclass(frozen=True)
class Target:
    """An adapted layer and where its factors lie in a slot's row.

    Attributes:
        name: the layer's name in the model.
        inputs, outputs: its sizes.
        rank: the bank's rank.
        at_a, at_b: where ``A`` and the transposed ``B`` begin.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    at_a: int
    at_b: int

    def a(self, rows: torch.Tensor) -> torch.Tensor:
        """The view ``(n, rank, inputs)`` of ``A`` in ``(n, width)`` rows."""
        part = rows[:, self.at_a : self.at_a + self.rank * self.inputs]
        return part.unflatten(1, (self.rank, self.inputs))

    def b(self, rows: torch.Tensor) -> torch.Tensor:
        """The view ``(n, rank, outputs)`` of the transposed ``B`` in ``(n, width)`` rows."""
        part = rows[:, self.at_b : self.at_b + self.rank * self.outputs]
        return part.unflatten(1, (self.rank, self.outputs))


def uniform_runs(slots: Sequence[int]) -> tuple[list[int], int]:
    """Slots of rows as ``(slots, rows per slot)``; row by row where runs are not alike."""
    runs = [(slot, len(list(run))) for slot, run in groupby(slots)]
    if len({count for _, count in runs}) == 1:
        return [slot for slot, _ in runs], runs[0][1]
    return list(slots), 1


@dataclass(frozen=True)
class Sharing:
    """Which rows share the factors of a slot, so that they are read once for all of them.

    Attributes:
        taken: ``(slots, most)`` the rows of each slot, filled up with any row.
        places: ``(rows,)`` where each row is in ``taken`` when that is flat.
    """

    taken: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, owners: Sequence[int], slots: int) -> Sharing:
        """The rows that belong to each of so many slots; ``owners`` has a row's slot."""
        rows_of: list[list[int]] = [[] for _ in range(slots)]
        for row, owner in enumerate(owners):
            rows_of[owner].append(row)
        most = max(map(len, rows_of))
        taken = torch.tensor([[*rows, *[0] * (most - len(rows))] for rows in rows_of])
        count = [0] * slots
        places = []
        for owner in owners:
            places.append(owner * most + count[owner])
            count[owner] += 1
        return cls(taken, torch.tensor(places))


@dataclass
class Dropout:
    """Dropout on the adapters' input, the same for a row whatever batch it is in.

    Attributes:
        rate: share of the inputs set to zero.
        seeds: one a row.
        lengths: tokens of each row; what follows is padding.
    """

    rate: float
    seeds: Sequence[int]
    lengths: Sequence[int]
    _generators: list[torch.Generator] = field(init=False)

    def __post_init__(self) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """The next layer's factors for ``x: (rows, tokens, inputs)``: 0 or ``1 / (1 - rate)``."""
        mask = torch.zeros(x.shape)
        for row, (generator, length) in enumerate(zip(self._generators, self.lengths, strict=True)):
            drawn = torch.rand(length, x.shape[2], generator=generator)[: x.shape[1]]
            mask[row, : len(drawn)] = (drawn >= self.rate) / (1 - self.rate)
        return mask.to(x)


@dataclass
class Route:
    """Which factors the rows of a batch use.

    Attributes:
        factors: ``(slots, width)`` float32, ``A`` already scaled.
        per_slot: rows of each slot; they come in runs.
        dtype: what products are computed in.
        gradients: ``(slots, width)`` that backward passes add to, or None for no gradients.
        dropout: on the adapters' input.
        sharing: for single tokens on a CPU: rows in any order, several of a slot.
    """

    factors: torch.Tensor
    per_slot: int
    dtype: torch.dtype
    gradients: torch.Tensor | None = None
    dropout: Dropout | None = None
    sharing: Sharing | None = None
    _cast: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)
    _views: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        if self.sharing is not None:
            return len(self.sharing.places)
        return len(self.factors) * self.per_slot

    def views(self, target: Target, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """``A`` and transposed ``B`` of a layer, kept for the next token or pass."""
        key = target.name, dtype
        if key not in self._views:
            if dtype not in self._cast:
                self._cast[dtype] = self.factors.to(dtype)
            cast = self._cast[dtype]
            self._views[key] = target.a(cast), target.b(cast)
        return self._views[key]


class Router:
    """The route that is in force; shared by all layers of a bank."""

    def __init__(self) -> None:
        self.route: Route | None = None
        #: Ties the layers' outputs to the autograd graph, though no factor is a leaf of it.
        self.anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def on(self, route: Route | None) -> Iterator[None]:
        """Put a route in force."""
        before, self.route = self.route, route
        try:
            yield
        finally:
            self.route = before


class BankLayer(nn.Module):
    """A frozen linear layer plus the routed slots' factors."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, base: Any, target: Target, router: Router) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        # GPT-2 stores (inputs, outputs) where a linear layer stores (outputs, inputs).
        self.transposed = not isinstance(base, nn.Linear)
        self.target = target
        self.router = router

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(rows, tokens, inputs)``, or ``(rows * tokens, inputs)``, to ``outputs``."""
        weight = self.weight.t() if self.transposed else self.weight
        route = self.router.route
        if route is None:
            return F.linear(x, weight, self.bias)
        rows = route.rows
        if x.dim() != 3 or x.shape[0] != rows:
            # Some models flatten rows and tokens, rows first.
            if (x.dim() > 2 and x.shape[0] != rows) or x.shape[:-1].numel() % rows:
                what = f"its layer {self.target.name} mixes the rows of a batch"
                raise BackboneError(
                    f"this kind of model cannot be adapted: {what}",
                    fix="leave the layer out of the targets, or use another backbone",
                )
            y = self.forward(x.reshape(rows, -1, x.shape[-1]))
            return y.reshape(*x.shape[:-1], -1)
        if route.gradients is None:
            return self._answer(x, weight, route)
        a, b = route.views(self.target, route.dtype)
        grouped = x.reshape(len(a), -1, x.shape[-1])
        gradients = (self.target.a(route.gradients), self.target.b(route.gradients))
        mask = route.dropout.mask(x).reshape(grouped.shape) if route.dropout else None
        y = _Product.apply(grouped, self.router.anchor, weight, self.bias, a, b, mask, gradients)
        return y.reshape(*x.shape[:-1], -1)

    def _answer(self, x: torch.Tensor, weight: torch.Tensor, route: Route) -> torch.Tensor:
        """Without gradients; decoding comes here for every token, so little is done."""
        y = F.linear(x, weight, self.bias)
        if route.sharing is not None:
            a, b = route.views(self.target, torch.float32)
            own = torch.bmm(torch.bmm(x[:, 0].float()[route.sharing.taken], a.mT), b)
            return y.add_(own.flatten(0, 1)[route.sharing.places][:, None])
        if route.per_slot == 1 and x.shape[1] == 1 and x.device.type == "cpu":
            # A CPU's product of single tokens in bfloat16 takes 5 times as long as in float32.
            a, b = route.views(self.target, torch.float32)
            if y.dtype == torch.float32:
                return y.baddbmm_(torch.bmm(x, a.mT), b)
            return y.add_(torch.bmm(torch.bmm(x.float(), a.mT), b))
        a, b = route.views(self.target, route.dtype)
        inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(inner, b)
        return y


class _Product(torch.autograd.Function):
    """``x Wᵀ + bias + (x Aᵀ) B`` that adds the factors' gradients where they belong."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        mask: torch.Tensor | None,
        gradients: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        inner = torch.bmm(x if mask is None else x * mask, a.mT)
        ctx.save_for_backward(x, weight, a, b, mask, inner)
        ctx.gradients = gradients
        return F.linear(x, weight, bias).baddbmm_(inner, b)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, a, b, mask, inner = ctx.saved_tensors
        at_a, at_b = ctx.gradients
        grad_inner = torch.bmm(grad, b.mT)
        at_a += torch.bmm(grad_inner.mT, x if mask is None else x * mask)
        at_b += torch.bmm(inner.mT, grad)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, weight)
            if mask is None:
                grad_x.baddbmm_(grad_inner, a)
            else:
                grad_x += torch.bmm(grad_inner, a) * mask
        return grad_x, *([None] * 7)
