"""Gradients of single examples or users from a bank, and their clipped sum.

What differentially private training needs (Abadi et al. 2016): a row of a batch, or a user,
is a slot of its own, so its gradient falls out of one common backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfi.models.bank.bank import AdapterBank
from pfi.models.bank.packing import Piece, Row, passes, target_losses
from pfi.train.optim import clip


def gradients(
    bank: AdapterBank,
    slots: Sequence[int],
    pieces: Sequence[Piece],
    owners: Sequence[int] | None = None,
    *,
    tokens: int = 1024,
) -> torch.Tensor:
    """The gradient of every owner's mean target loss by the factors of its slot.

    Args:
        bank: in which the slots are.
        slots: whose factors each piece uses.
        pieces: the examples.
        owners: the number, from 0, of the gradient that each piece adds to; its own by default.
        tokens: of one micro-batch, to bound memory.

    Returns:
        ``(owners, width)`` float32, laid out as the bank's ``weights``.
    """
    owners = list(range(len(pieces))) if owners is None else list(owners)
    count = max(owners) + 1
    targets = torch.zeros(count)
    targets.index_add_(0, torch.tensor(owners), torch.tensor([float(p.targets) for p in pieces]))
    device = bank.weights.device
    total = torch.zeros(count, bank.width, device=device)
    for part in passes([len(piece) for piece in pieces], tokens):
        with bank.recording([slots[i] for i in part], per_row=True) as found:
            losses = target_losses(bank.backbone, [Row([pieces[i]]) for i in part])
            shares = [
                pieces[i].weight / float(targets[owners[i]])
                for i in part
                for _ in range(pieces[i].targets)
            ]
            (losses * torch.tensor(shares).to(losses)).sum().backward()
        total.index_add_(0, torch.tensor([owners[i] for i in part], device=device), found)
    return total


def clipped_sum(rows: torch.Tensor, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of gradients, each scaled down to a norm of at most ``largest``.

    Args:
        rows: ``(n, width)``; they are clipped in place.
        largest: the clipping norm.

    Returns:
        the sum ``(width,)``, and the norms ``(n,)`` before clipping.
    """
    norms = clip(rows, largest)
    return rows.sum(0), norms
