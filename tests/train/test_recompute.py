"""Activations that are computed again where memory is short: fewer kept, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pfi.models.backbone import load_backbone
from pfi.models.bank import recompute
from pfi.models.families import kept_numbers
from pfi.tasks import Example
from pfi.train import loop
from pfi.train.config import TrainConfig
from pfi.train.job import Job, TrainResult, train_one
from pfi.train.loop import BankRun, BankTrainer

CONFIG = TrainConfig(rank=4, alpha=8, epochs=2, batch_size=2, learning_rate=2e-3)
EXAMPLES = [Example(f"a quick fox {'dog ' * i}", "film book", {}, str(i)) for i in range(4)]


@pytest.fixture
def train(backbone_folder: Callable[[str], Path]) -> Callable[..., tuple[TrainResult, int]]:
    """Train an adapter; it, and how often the first block ran."""

    def run(config: TrainConfig = CONFIG) -> tuple[TrainResult, int]:
        backbone = load_backbone(backbone_folder("llama"), device="cpu")
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        mlp = backbone.model.model.layers[0].mlp
        # Before: a block that runs again stops as soon as it has what it needs.
        handle = mlp.register_forward_pre_hook(count)
        try:
            return train_one(BankTrainer(), backbone, EXAMPLES, config, seed=0), calls
        finally:
            handle.remove()

    return run


def assert_same(one: TrainResult, other: TrainResult) -> None:
    assert one.losses == other.losses
    for name, weight in one.adapter.weights.items():
        assert torch.equal(weight, other.adapter.weights[name])


def test_short_memory_has_blocks_run_again_to_the_same_adapter(
    train: Callable[..., tuple[TrainResult, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, once = train()
    monkeypatch.setattr(recompute, "free_memory", lambda: (1 << 10, 1 << 30))
    short, twice = train()
    assert_same(plain, short)
    assert twice > once


def test_with_dropout_blocks_run_once(
    train: Callable[..., tuple[TrainResult, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"dropout": 0.3})
    plain, once = train(config)
    monkeypatch.setattr(recompute, "free_memory", lambda: (1 << 10, 1 << 30))
    short, again = train(config)
    assert_same(plain, short)
    assert again == once


def test_a_lone_row_that_does_not_fit_is_tried_once_more_with_less(
    train: Callable[..., tuple[TrainResult, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"batch_size": 1})
    plain, _ = train(config)
    gradients, failed = BankRun.gradients, []

    def full(self: BankRun, group: list[loop.Step]) -> object:
        if not self._recompute:
            failed.append(group)
            raise torch.OutOfMemoryError("out of memory")
        return gradients(self, group)

    monkeypatch.setattr(BankRun, "gradients", full)
    short, _ = train(config)
    assert len(failed) == 1
    assert_same(plain, short)


def test_what_is_kept_for_the_backward_pass_is_less(backbone_folder: Callable[[str], Path]) -> None:
    run = BankRun(
        load_backbone(backbone_folder("llama"), device="cpu"),
        iter([Job("u", EXAMPLES, 0)]),
        CONFIG,
        None,
        1,
    )
    list(run._admit())
    step = [run.next_step(run.active_jobs[0])]

    def kept() -> int:
        size = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.gradients(step)
        return size

    plain = kept()
    run._recompute = True
    # Outer hooks do not see what a recomputed block keeps while it runs backward.
    assert kept() < 0.7 * plain  # one of two blocks; the last one runs once


def test_the_estimate_grows_with_rows_and_their_length() -> None:
    sizes = {"hidden": 576, "intermediate": 1536, "heads": 9}
    short, long = kept_numbers(512, 64, **sizes), kept_numbers(512, 512, **sizes)
    assert 512 * (8 * 576 + 4 * 1536) < short < long
    assert kept_numbers(1024, 64, **sizes) == 2 * short
