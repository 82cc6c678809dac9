"""What training keeps in memory: few logits, few lengths, no scores; the results are the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfi._util import heap
from pfi.models import attention
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank import head_losses as heads
from pfi.models.bank.bank import sharing_copy
from pfi.models.bank.head_losses import head_losses
from pfi.models.bank.packing import Piece, Row, batch, padded_length, target_losses
from pfi.train.objectives import CrossEntropy

Folder = Callable[[str], Path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_of_parts_are_those_of_all_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50).to(dtype).requires_grad_(False)
    targets, weights = torch.randint(50, (11,)), torch.rand(11)
    states = torch.randn(11, 8).to(dtype)

    def run(compute: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = states.clone().requires_grad_()
        losses = compute(leaf)
        (losses * weights).sum().backward()
        assert leaf.grad is not None
        return losses.detach(), leaf.grad

    whole, expected = run(lambda x: F.cross_entropy(head(x).float(), targets, reduction="none"))
    monkeypatch.setattr(heads, "_LOGITS", 4 * 50)
    sizes: list[int] = []
    head.register_forward_hook(lambda module, given, result: sizes.append(len(result)))
    losses, gradient = run(lambda x: head_losses(head, x, targets))
    assert len(sizes) == 3 and (max(sizes) == 4 or dtype == torch.bfloat16)
    near = {"atol": 1e-6} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    assert torch.allclose(losses, whole, **near)
    assert torch.allclose(gradient.float(), expected.float(), **near)
    with torch.no_grad():
        assert torch.allclose(head_losses(head, states, targets), whole, **near)


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_LOGITS", 10 * 1000)
    head = nn.Linear(4, 1000).requires_grad_(False)
    states = torch.randn(40, 4, requires_grad=True)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = head_losses(head, states, torch.zeros(40, dtype=torch.long))
    assert sum(kept[-1:]) == states.numel() and losses.shape == (40,)


def half(backbone: Backbone) -> Backbone:
    return replace(backbone, model=sharing_copy(backbone.model, torch.bfloat16))


def test_rows_are_padded_to_few_lengths_in_bfloat16(backbone_folder: Folder) -> None:
    whole = load_backbone(backbone_folder("llama"))
    backbone = half(whole)
    pieces = [Piece(list(range(2, 2 + n)), 3) for n in (9, 12, 33, 40)]
    lengths = {padded_length(backbone, [Row([piece])]) for piece in pieces}
    assert lengths == {32, 64}
    assert padded_length(whole, [Row([pieces[0]])]) == 8
    short = replace(backbone, max_length=20)  # never beyond what the model reads
    assert padded_length(short, [Row([pieces[0]])]) == 8
    # Padding changes no loss.
    rows = [Row([pieces[0]]), Row([pieces[1]])]
    apart = torch.cat([target_losses(backbone, [row]) for row in rows])
    exact = torch.cat([target_losses(whole, [row]) for row in rows])
    assert torch.allclose(apart, exact, atol=5e-2)
    packed, plain = (batch(rows, whole.device, length) for length in (32, None))
    assert packed.ids.shape == (2, 32) and plain.ids.shape == (2, 11)
    assert packed.wanted.shape[1] % 16 == 0 and packed.targets.tolist() == plain.targets.tolist()
    for given in (packed, plain):
        chosen = given.wanted.flatten()[given.at].tolist()
        assert chosen == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("masked", [False, True])
def test_long_rows_keep_no_attention_scores(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 24, 8) for heads in (4, 2, 2))
    mask = None
    if masked:
        seen = torch.ones(24, 24, dtype=torch.bool).tril()
        seen[20:, 5:20] = False
        mask = torch.zeros(1, 1, 24, 24).masked_fill(~seen, torch.finfo(torch.float32).min)

    def run() -> tuple[torch.Tensor, torch.Tensor, int]:
        leaf = query.clone().requires_grad_()
        kept: list[int] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            mixed, _ = attention.attend(None, leaf, key, value, mask)
        mixed.square().sum().backward()
        assert leaf.grad is not None
        return mixed.detach(), leaf.grad, max(kept)

    expected = run()
    monkeypatch.setattr(attention, "_KEPT_SCORES", 100)
    found = run()
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert torch.allclose(found[1], expected[1], atol=1e-5)
    assert expected[2] == 4 * 24 * 24
    assert found[2] < expected[2] or masked  # the mask itself is kept


def test_long_rows_are_not_packed_in_bfloat16(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.train.objectives._LONGEST_ROW", 60)
    whole = load_backbone(backbone_folder("llama"))
    stem = list(range(2, 32))
    pieces = [Piece([*stem, *range(40 + n, 50 + n)], 4) for n in range(6)]
    together = CrossEntropy().parts(whole, pieces)
    parts = CrossEntropy().parts(half(whole), pieces)
    assert len(together) == 1 and len(together[0].rows[0]) > 60
    assert len(parts) > 1 and max(part.length for part in parts) <= 60
    assert [p for part in parts for p in part.pieces] == pieces


def test_freed_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    heap.release_freed()
    asked: list[int] = []

    class Library:
        def malloc_trim(self, pad: int) -> None:
            asked.append(pad)

    clock: list[Any] = [0.0, 0.1, 0.6, 0.6, 0.7]
    monkeypatch.setattr(heap, "_library", lambda: Library())
    monkeypatch.setattr(heap.time, "monotonic", lambda: clock.pop(0))
    release = heap.Releaser()
    for _ in range(3):
        release()
    assert asked == [0]


def test_code_is_kept_for_few_shapes_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "9")
    heap.keep_few_kernels()
    assert os.environ[name] == "9"
    monkeypatch.delenv(name)
    heap.keep_few_kernels()
    assert os.environ[name] == "256"
