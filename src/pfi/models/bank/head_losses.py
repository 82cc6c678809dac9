"""Losses of targets from hidden states, with few logits in memory at a time.

The logits of a large vocabulary are far more numbers than the states they come from.  A target's
loss depends on its own state only, so the gradient by that state is computed beside the loss,
part by part, and only states are kept for the backward pass (as Liger does, arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

#: Logits made at once, in numbers.
_LOGITS = 1 << 23
_ROUND = 32


def head_losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood ``(n,)`` of targets in float32.

    Args:
        head: the frozen output layer.
        states: ``(n, width)`` last hidden states that predict them.
        targets: ``(n,)`` tokens.
    """
    step = max(1, _LOGITS // int(head.weight.shape[0]))
    if torch.is_grad_enabled() and states.requires_grad and len(states) > step:
        losses: torch.Tensor = _HeadLosses.apply(states, targets, head, step)
        return losses
    parts = zip(states.split(step), targets.split(step), strict=True)
    return torch.cat([_losses(head, part, wanted) for part, wanted in parts])


def head_losses_and_hits(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """``(n, 2)``: each target's loss, and 1 where it is the likeliest token, else 0."""
    step = max(1, _LOGITS // int(head.weight.shape[0]))
    parts = zip(states.split(step), targets.split(step), strict=True)
    return torch.cat([losses_and_hits(_logits(head, part), wanted) for part, wanted in parts])


def losses_and_hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As ``head_losses_and_hits`` from logits ``(n, vocabulary)``."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.stack([losses, (logits.argmax(-1) == targets).float()], 1)


def _losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(_logits(head, states).float(), targets, reduction="none")


def _logits(head: Any, states: torch.Tensor) -> torch.Tensor:
    count = len(states)
    if states.dtype == torch.bfloat16 and count % _ROUND:
        # Of few lengths, see `packing.padded_length`.
        states = F.pad(states, (0, 0, 0, -count % _ROUND))
    return head(states)[:count]


class _HeadLosses(torch.autograd.Function):
    """The losses, and beside them the gradient of each by its own state."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: torch.Tensor, targets: torch.Tensor, head: Any, step: int
    ) -> torch.Tensor:
        losses, gradients = [], torch.empty_like(states)
        for start in range(0, len(states), step):
            at = slice(start, start + step)
            with torch.enable_grad():
                part = states[at].detach().requires_grad_()
                own = _losses(head, part, targets[at])
                (gradients[at],) = torch.autograd.grad(own.sum(), part)
            losses.append(own.detach())
        ctx.save_for_backward(gradients)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        scaled = gradients.float() * grad[:, None]
        return scaled.to(gradients), None, None, None
