"""The optimisers of a bank's slots, on a bank that is an array: by hand, and beside torch's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pfi.train.optim import SlotAdamW, SlotSGD, clip

WIDTH = 3


@dataclass
class Bank:
    """As much of an adapter bank as an optimiser uses."""

    weights: torch.Tensor
    frozen_slots: set[int] = field(default_factory=set)

    @property
    def capacity(self) -> int:
        return self.weights.shape[0]

    @property
    def width(self) -> int:
        return self.weights.shape[1]

    def frozen(self, slot: int) -> bool:
        return slot in self.frozen_slots


def bank(slots: int = 3, frozen: set[int] = frozenset()) -> Any:  # type: ignore[assignment]
    weights = torch.arange(1.0, slots * WIDTH + 1).reshape(slots, WIDTH)
    return Bank(weights, set(frozen))


def test_a_step_of_sgd_by_hand() -> None:
    """The weight 4 at rate .1 with decay .5: 4 * (1 - .05) - .1 * 20 = 1.8."""
    of = bank()
    before = of.weights.clone()
    SlotSGD(of, 0.5).step([1], torch.tensor([[20.0, 0.0, -10.0]]), [0.1])
    assert of.weights[1].tolist() == pytest.approx([1.8, 4.75, 6.7])
    assert torch.equal(of.weights[[0, 2]], before[[0, 2]])


def test_decay_makes_weights_smaller_in_both_optimisers() -> None:
    for optimiser in (SlotSGD, SlotAdamW):
        of = bank()
        optimiser(of, 0.1).step([0], torch.zeros(1, WIDTH), [0.5])
        assert of.weights[0].tolist() == pytest.approx([0.95, 1.9, 2.85])


@pytest.mark.parametrize("optimiser", [SlotSGD, SlotAdamW])
def test_frozen_slots_stay_and_the_others_of_the_same_step_move(optimiser: Any) -> None:
    of = bank(frozen={1})
    before = of.weights.clone()
    optimiser(of, 0.1).step([2, 1, 0], torch.ones(3, WIDTH), [0.1, 0.1, 0.2])
    assert torch.equal(of.weights[1], before[1])
    assert (of.weights[0] < before[0]).all() and (of.weights[2] < before[2]).all()
    only = bank(frozen={0, 1, 2})
    optimiser(only, 0.1).step([0, 2], torch.ones(2, WIDTH), [0.1, 0.3])
    assert torch.equal(only.weights, bank().weights)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_are_those_of_torch_slot_by_slot(kind: str) -> None:
    """Slots of different rates, steps and gradients; one begins anew in between."""
    ours = bank()
    decay, rates = 0.01, [0.1, 0.02, 0.1]
    optimiser = SlotSGD(ours, decay) if kind == "sgd" else SlotAdamW(ours, decay)
    theirs = [torch.nn.Parameter(row.clone()) for row in bank().weights]

    def fresh(slot: int) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD([theirs[slot]], lr=rates[slot])
        return torch.optim.AdamW([theirs[slot]], lr=rates[slot], weight_decay=decay)

    torch.manual_seed(0)
    others = [fresh(slot) for slot in range(3)]
    for slots in ([0, 1, 2], [2, 0], [0, 2, 1], [1], [1, 2]):
        gradients = torch.randn(len(slots), WIDTH)
        optimiser.step(slots, gradients, [rates[slot] for slot in slots])
        for slot, gradient in zip(slots, gradients, strict=True):
            if kind == "sgd":  # torch's decay is no part of the rate's step: by hand
                with torch.no_grad():
                    theirs[slot] *= 1 - rates[slot] * decay
            theirs[slot].grad = gradient.clone()
            others[slot].step()
        if slots == [2, 0]:
            optimiser.reset(2)
            others[2] = fresh(2)
    torch.testing.assert_close(ours.weights, torch.stack([t.detach() for t in theirs]))


def test_a_reset_forgets_one_slot_only() -> None:
    of = bank()
    optimiser = SlotAdamW(of, 0.0)
    for state in (optimiser.first, optimiser.second, optimiser.steps):
        assert not state.any()
    optimiser.step([0, 1], torch.ones(2, WIDTH), [0.1, 0.1])
    assert optimiser.steps.tolist() == [1, 1, 0]
    optimiser.reset(0)
    assert not optimiser.first[0].any() and not optimiser.second[0].any()
    assert optimiser.first[1].all() and optimiser.second[1].all()
    assert optimiser.steps.tolist() == [0, 1, 0]


def test_rows_are_clipped_each_by_its_own_norm() -> None:
    gradients = torch.tensor([[3.0, 0.0, 4.0], [0.3, 0.0, 0.4], [0.0, 0.0, 0.0]])
    expected = gradients.clone()
    for row in expected:
        parameter = torch.nn.Parameter(torch.zeros(WIDTH))
        parameter.grad = row
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    norms = clip(gradients, 1.0)
    assert norms.tolist() == pytest.approx([5, 0.5, 0])
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)
