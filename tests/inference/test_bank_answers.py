"""Answers of a bank for rows of different users equal those of one user at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pfi.inference.generation import generate
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import NO_ADAPTER, AdapterBank
from pfi.models.scoring import score_labels

Folder = Callable[[str], Path]
PROMPTS = ["a quick brown fox", "the lazy dog jumps " * 4, "1", "good film, bad book " * 2]
LABELS = ["1", "good", "a lazy dog, fine"]


def random_adapters(backbone: Backbone, count: int) -> list[Adapter]:
    """Adapters of different ranks whose updates are not zero."""
    config = AdapterConfig(rank=4, alpha=8.0)
    bank = AdapterBank(backbone, config, count)
    generator = torch.Generator().manual_seed(11)
    adapters = []
    for number in range(count):
        fresh = bank.adapter(bank.new(number, rank=4 - number))
        for name, weight in fresh.weights.items():
            fresh.weights[name] = torch.randn(weight.shape, generator=generator) * 0.3
        adapters.append(fresh)
    return adapters


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_rows_of_different_users_answer_as_one_user_at_a_time(
    backbone_folder: Folder, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    adapters = random_adapters(backbone, 3)
    bank = AdapterBank(backbone, AdapterConfig(rank=4, alpha=8.0), 5)
    slots = [bank.add(adapter) for adapter in adapters]
    alone = {
        slot: backbone.with_adapters([adapter])
        for slot, adapter in zip(slots, adapters, strict=True)
    }
    alone[NO_ADAPTER] = backbone
    rows = [
        (prompt, slot)
        for at, prompt in enumerate(PROMPTS)
        for slot in [*slots[at % 3 :], NO_ADAPTER, *slots[: at % 3]]
    ]
    prompts, users = [prompt for prompt, _ in rows], [slot for _, slot in rows]
    scores = score_labels(bank.backbone, prompts, LABELS, slots=users, batch_tokens=400)
    texts = generate(bank.backbone, prompts, 8, slots=users, batch_size=5)
    for (prompt, slot), row, text in zip(rows, scores, texts, strict=True):
        expected = score_labels(alone[slot], [prompt], LABELS)[0]
        assert row == pytest.approx(expected, abs=1e-4)
        assert text == generate(alone[slot], [prompt], 8)[0]
    by_slot = {
        slot: [t for t, (_, used) in zip(texts, rows, strict=True) if used == slot]
        for slot in slots
    }
    assert len({tuple(found) for found in by_slot.values()}) == 3, "the adapters change nothing"
    sampled = generate(bank.backbone, prompts, 8, slots=users, temperature=1.0, batch_size=5)
    assert sampled == generate(bank.backbone, prompts, 8, slots=users, temperature=1.0)
