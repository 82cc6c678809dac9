"""AdamW for the slots of a bank: each with its own moments, step count, rate and clipping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adamw import adamw

from pfi.models.bank.bank import AdapterBank

_BETAS, _EPS = (0.9, 0.999), 1e-8


class SlotAdamW:
    """AdamW (Loshchilov and Hutter 2019) over rows of a bank.

    Args:
        bank: whose slots are trained.
        weight_decay: decoupled, as in torch's AdamW.

    Attributes:
        first, second: ``(capacity, width)`` moments of every slot.
        steps: ``(capacity,)`` steps taken.
    """

    def __init__(self, bank: AdapterBank, weight_decay: float) -> None:
        self.bank, self.weight_decay = bank, weight_decay
        shape = bank.capacity, bank.width
        self.first = torch.zeros(shape, device=bank.weights.device)
        self.second = torch.zeros(shape, device=bank.weights.device)
        self.steps = torch.zeros(bank.capacity, device=bank.weights.device)

    def reset(self, slot: int) -> None:
        """Forget a slot's moments, for another adapter in its place."""
        self.first[slot] = 0
        self.second[slot] = 0
        self.steps[slot] = 0

    def step(self, slots: Sequence[int], gradients: torch.Tensor, rates: Sequence[float]) -> None:
        """One step of some slots.

        Args:
            slots: which, each once; frozen ones are left as they are.
            gradients: ``(slots, width)``.
            rates: a learning rate each.
        """
        for rate in dict.fromkeys(rates):
            # One fused call updates all slots that have the same rate.
            at = [
                i for i, slot in enumerate(slots) if rates[i] == rate and not self.bank.frozen(slot)
            ]
            if not at:
                continue
            rows = [slots[i] for i in at]
            adamw(
                [self.bank.weights[row] for row in rows],
                [gradients[i] for i in at],
                [self.first[row] for row in rows],
                [self.second[row] for row in rows],
                [],
                [self.steps[row] for row in rows],
                fused=True,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=rate,
                weight_decay=self.weight_decay,
                eps=_EPS,
                maximize=False,
            )


class SlotSGD:
    """Plain gradient descent over rows of a bank; see ``SlotAdamW``, whose place it takes."""

    def __init__(self, bank: AdapterBank, weight_decay: float) -> None:
        self.bank, self.weight_decay = bank, weight_decay

    def reset(self, slot: int) -> None:
        """Nothing is kept of a slot."""

    def step(self, slots: Sequence[int], gradients: torch.Tensor, rates: Sequence[float]) -> None:
        """One step of some slots; see ``SlotAdamW.step``."""
        for slot, gradient, rate in zip(slots, gradients, rates, strict=True):
            if not self.bank.frozen(slot):
                row = self.bank.weights[slot]
                row.mul_(1 - rate * self.weight_decay).add_(gradient, alpha=-rate)


def clip(gradients: torch.Tensor, largest: float) -> torch.Tensor:
    """Scale rows down to a norm of at most ``largest``, in place.

    Returns:
        ``(rows,)`` norms before.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1)
    # The small term is torch's own, so that the result equals clip_grad_norm_.
    gradients *= (largest / (norms + 1e-6)).clamp(max=1)[:, None]
    return norms
