"""Adapters on top of each other as one, against merging them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfi.errors import BackboneError
from pfi.models.adapters import Adapter, AdapterConfig, lora_config, stacked
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank

Folder = Callable[[str], Path]


@pytest.fixture
def backbone(backbone_folder: Folder) -> Backbone:
    return load_backbone(backbone_folder("llama"))


def adapter(backbone: Backbone, seed: int, rslora: bool = False, **shape: Any) -> Adapter:
    from peft import get_peft_model

    torch.manual_seed(seed)
    config = lora_config(AdapterConfig(**shape), backbone.model)
    config.use_rslora = rslora
    model: Any = get_peft_model(backbone.model, config)
    made = Adapter.of(model)
    model.unload()
    return replace(made, weights={k: torch.randn_like(v) / 3 for k, v in made.weights.items()})


@torch.inference_mode()
def logits(backbone: Backbone) -> torch.Tensor:
    found: torch.Tensor = backbone.model(torch.tensor([[5, 9, 80, 200]])).logits
    return found


def test_it_is_the_weighted_sum_whatever_their_shapes(backbone: Backbone) -> None:
    first = adapter(backbone, 1, rank=3, alpha=5)
    for second in (
        adapter(backbone, 2, rank=3, alpha=5),
        adapter(backbone, 2, rank=4, alpha=7, rslora=True),
        adapter(backbone, 2, rank=2, layers="last:1", targets=["q_proj", "down_proj"]),
    ):
        one = stacked([(first, 1.0), (second, 0.3)])
        expected = logits(backbone.with_adapters([first, second.scaled(0.3)]))
        plain = logits(backbone.with_adapters([first]))
        assert torch.allclose(logits(backbone.with_adapters([one])), expected, atol=1e-5)
        assert not torch.allclose(plain, expected, atol=1e-2), "the second one does nothing"
        turned = stacked([(second, 0.3), (first, 1.0)])
        assert torch.allclose(logits(backbone.with_adapters([turned])), expected, atol=1e-5)
        bank = AdapterBank(backbone, AdapterConfig(rank=int(one.settings["r"])), 1)
        with bank.backbone.rows([bank.add(one)]):
            assert torch.allclose(logits(bank.backbone), expected, atol=1e-5)


def test_one_alone_is_itself(backbone: Backbone) -> None:
    first = adapter(backbone, 1, rank=3, alpha=5)
    expected = logits(backbone.with_adapters([first.scaled(0.5)]))
    alone = stacked([(first, 0.5)])
    assert alone.settings["r"] == 3
    assert torch.allclose(logits(backbone.with_adapters([alone])), expected, atol=1e-5)


def test_more_than_plain_lora_is_refused(backbone: Backbone) -> None:
    first = adapter(backbone, 1)
    for odd in ({"use_dora": True}, {"rank_pattern": {"q_proj": 4}}):
        with pytest.raises(BackboneError, match="plain LoRA"):
            stacked([(first, 1.0), (replace(first, settings={**first.settings, **odd}), 1.0)])
    magnitude = {**first.weights, "base_model.model.lm_head.weight": torch.ones(1)}
    with pytest.raises(BackboneError, match="plain LoRA"):
        stacked([(replace(first, weights=magnitude), 1.0)])
    with pytest.raises(BackboneError, match="missing"):
        stacked([(replace(first, weights=dict([*first.weights.items()][1:])), 1.0)])


def test_adapters_of_other_backbones_are_refused(
    backbone: Backbone, backbone_folder: Folder
) -> None:
    other = adapter(load_backbone(backbone_folder("qwen2")), 1)
    with pytest.raises(BackboneError, match="different backbones"):
        stacked([(adapter(backbone, 1), 1.0), (other, 1.0)])
