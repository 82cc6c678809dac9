"""The bank: slots against merged adapters, plain peft on disk, and per-user autograd."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import FAMILIES
from pfi.errors import BackboneError, ConfigError
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import NO_ADAPTER, AdapterBank
from pfi.models.bank.frozen_layers import split
from pfi.models.bank.packing import Piece, Row, pack, target_losses
from pfi.train.gradients import clipped_sum, gradients

Folder = Callable[[str], Path]
CONFIG = AdapterConfig(rank=4, alpha=8)
DECODERS = [family for family in FAMILIES if family != "t5"]


def lively(backbone: Backbone) -> Backbone:
    """The tiny random model with larger weights, so that its layers matter; T5's are large."""
    for parameter in backbone.model.parameters():
        if parameter.ndim > 1 and not backbone.seq2seq:
            parameter.data.mul_(4)
    return backbone


def random_adapter(bank: AdapterBank, rank: int, seed: int, alpha: float = 8) -> Adapter:
    """An adapter whose update is not zero."""
    slot = bank.new(seed, rank=rank, alpha=alpha)
    adapter = bank.adapter(slot)
    bank.remove(slot)
    generator = torch.Generator().manual_seed(seed)
    for name, factor in adapter.weights.items():
        if "lora_B" in name:
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.1)
    return adapter


def logits(backbone: Backbone, ids: torch.Tensor) -> torch.Tensor:
    extra = {"decoder_input_ids": ids[:, :3]} if backbone.seq2seq else {}
    with torch.no_grad():
        return backbone.model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [[0, 0, 1, 1, 2, 2], [2, 0, 1, -1, 0, 2], [0, 0, 0, 1, 2, 2]])
def test_every_row_uses_its_own_slot(
    backbone_folder: Folder, family: str, order: list[int]
) -> None:
    backbone = lively(load_backbone(backbone_folder(family)))
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    bank = AdapterBank(backbone, CONFIG, 3)
    adapters = [random_adapter(bank, rank, rank, alpha=2 * rank + 1) for rank in (1, 3, 4)]
    slots = [bank.add(adapter) for adapter in adapters]
    assert slots == [0, 1, 2]
    ids = torch.randint(5, 300, (len(order), 9), generator=torch.Generator().manual_seed(0))
    with bank.backbone.rows(order):
        found = logits(bank.backbone, ids)
    for row, slot in enumerate(order):
        own = [] if slot == NO_ADAPTER else [adapters[slot]]
        expected = logits(backbone.with_adapters(own), ids[row : row + 1])[0]
        assert torch.allclose(found[row], expected, atol=2e-4), (row, slot)
    assert not torch.allclose(found[0], logits(backbone, ids)[0], atol=1e-2)
    assert torch.equal(logits(bank.backbone, ids), logits(backbone, ids))
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_slots_are_what_peft_makes_and_go_to_disk_as_peft(
    backbone_folder: Folder, family: str, layers: str, tmp_path: Path
) -> None:
    import transformers as t
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

    folder = backbone_folder(family)
    bank = AdapterBank(load_backbone(folder), CONFIG.model_copy(update={"layers": layers}), 2)
    slot = bank.new(7)
    loader = t.AutoModelForSeq2SeqLM if family == "t5" else t.AutoModelForCausalLM
    if layers == "all":
        torch.manual_seed(7)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        expected = get_peft_model_state_dict(get_peft_model(loader.from_pretrained(folder), lora))
        found = bank.adapter(slot).weights
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    else:
        assert not [t.name for t in bank.targets if re.search(r"\.(layers|h|block)\.0\.", t.name)]
    own = bank.add(random_adapter(bank, 3, 1))
    bank.save(own, tmp_path)
    plain = PeftModel.from_pretrained(loader.from_pretrained(folder), tmp_path).eval()
    ids = torch.tensor([[5, 9, 12, 40, 7]])
    extra = {"decoder_input_ids": ids[:, :3]} if family == "t5" else {}
    with torch.no_grad():
        expected_logits = plain(input_ids=ids, **extra).logits
    with bank.backbone.rows([own]):
        assert torch.allclose(logits(bank.backbone, ids), expected_logits, atol=1e-4)
    bank.remove(own)
    again = bank.load(tmp_path)
    with bank.backbone.rows([again]):
        assert torch.allclose(logits(bank.backbone, ids), expected_logits, atol=1e-4)


def test_slots_do_not_touch_each_other(backbone_folder: Folder) -> None:
    bank = AdapterBank(load_backbone(backbone_folder("llama")), CONFIG, 4)
    first = bank.add(random_adapter(bank, 4, 1))
    kept = bank.weights[first].clone()
    second = bank.new(2)
    twin = bank.copy(first)
    assert bank.free == 1
    assert torch.equal(bank.weights[twin], kept)
    bank.reset(twin, 5)
    assert not torch.equal(bank.weights[twin], kept)
    bank.remove(second)
    assert bank.new(9) == second
    assert torch.equal(bank.weights[first], kept)
    assert not bank.weights[-1].any()


def test_a_shared_adapter_lies_beneath_every_slot(backbone_folder: Folder) -> None:
    backbone = lively(load_backbone(backbone_folder("llama")))
    shared = random_adapter(AdapterBank(backbone, CONFIG, 1), 4, 3)
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 1, shared=shared)
    own = random_adapter(bank, 2, 4)
    slot = bank.add(own)
    ids = torch.tensor([[5, 9, 12, 40], [6, 7, 8, 9]])
    with bank.backbone.rows([slot, NO_ADAPTER]):
        found = logits(bank.backbone, ids)
    both = logits(backbone.with_adapters([shared, own]), ids)
    assert torch.allclose(found[0], both[0], atol=1e-4)
    assert torch.allclose(found[1], logits(backbone.with_adapters([shared]), ids)[1], atol=1e-4)


def test_what_a_bank_cannot_hold_is_refused(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    bank = AdapterBank(backbone, CONFIG, 1)
    other = AdapterBank(load_backbone(backbone_folder("gpt2")), CONFIG, 1)
    with pytest.raises(BackboneError, match="lacks"):
        bank.add(random_adapter(other, 4, 1))
    large = AdapterBank(backbone, AdapterConfig(rank=8), 1)
    with pytest.raises(ConfigError, match=r"rank 8 .* rank 4"):
        bank.add(large.adapter(large.new(1)))
    slot = bank.new(1)
    with pytest.raises(ConfigError, match="all 1 slots"):
        bank.new(2)
    odd = bank.adapter(slot)
    odd.settings["use_dora"] = True
    bank.remove(slot)
    with pytest.raises(BackboneError, match="use_dora"):
        bank.add(odd)
    assert bank.free == 1
    with pytest.raises(ConfigError, match="slot 0 of the bank is free"), bank.backbone.rows([0]):
        pass
    with pytest.raises(ConfigError, match="output layer"):
        AdapterBank(backbone, AdapterConfig(targets=["lm_head"]), 1)
    with pytest.raises(ConfigError, match="has 2 blocks"):
        AdapterBank(backbone, AdapterConfig(layers="last:3"), 1)


# Packing ----------------------------------------------------------------------------

PIECES = [
    Piece([5, 6, 7, 8, 9, 10], 2),
    Piece([5, 6, 7, 11, 12], 1),
    Piece([5, 6, 7, 20, 21, 22, 23, 24], 3),
    Piece([5, 6, 7, 9, 10], 2),
]


def losses_alone(backbone: Backbone, piece: Piece) -> torch.Tensor:
    """Target losses from a plain forward pass over one example."""
    found = backbone.model(input_ids=torch.tensor([piece.ids])).logits[0, :-1]
    every = cross_entropy(found, torch.tensor(piece.ids[1:]), reduction="none")
    return every[-piece.targets :]


@pytest.mark.parametrize("family", DECODERS)
def test_a_shared_stem_and_cached_blocks_change_no_loss(
    backbone_folder: Folder, family: str
) -> None:
    backbone = lively(load_backbone(backbone_folder(family)))
    with torch.no_grad():
        expected = torch.cat([losses_alone(backbone, piece) for piece in PIECES])
        apart = [Row([piece]) for piece in PIECES]
        together = [Row(PIECES, 3), Row(PIECES[:1])]
        parts = split(backbone.model, 1)
        assert parts is not None
        lowered = [
            Piece(
                p.ids,
                p.targets,
                hidden=parts.lower(input_ids=torch.tensor([p.ids[:-1]]), use_cache=False)[0][0],
            )
            for p in PIECES
        ]
        upper = Backbone("upper", parts.upper, backbone.tokenizer, False, 100)
        found = [
            target_losses(backbone, apart),
            target_losses(backbone, together)[: len(expected)],
            target_losses(upper, [Row(lowered, 3)]),
        ]
    for losses in found:
        assert torch.allclose(losses, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_pieces_are_packed_only_where_it_saves_work() -> None:
    alike = [Piece([*range(40), 50 + i, 60 + i], 1) for i in range(4)]
    assert [row.stem for row in pack(alike, 256)] == [40]
    assert len(pack(alike, 256)[0]) == 40 + 4 * 1
    apart = [Piece([i, *range(40, 80)], 1) for i in range(4)]
    assert [row.stem for row in pack(apart, 256)] == [0, 0, 0, 0]
    # Targets are never part of a stem, even where they are the same.
    same = [Piece([1, 2, 3, 4, 5], 2)] * 2
    assert [row.stem for row in pack(same, 256)] == [3]


# Gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_users_and_examples_equal_autograd_one_by_one(
    backbone_folder: Folder, family: str
) -> None:
    """Against peft and autograd, a user and an example at a time."""
    backbone = lively(load_backbone(backbone_folder(family)))
    bank = AdapterBank(backbone, CONFIG, 3)
    adapters = [random_adapter(bank, rank, rank) for rank in (2, 4, 4)]
    for adapter in adapters:
        bank.add(adapter)
    pieces = [Piece([5 + i, 9, 12 + i, *range(20, 20 + 2 * i), 40, 7], 2) for i in range(5)]
    users = [0, 1, 1, 2, 2]

    def alone(slot: int, chosen: list[Piece]) -> dict[str, torch.Tensor]:
        model = adapters[slot].apply(lively(load_backbone(backbone_folder(family))).model)
        total = torch.zeros(())
        for piece in chosen:
            prompt, target = list(piece.ids[:-2]), list(piece.ids[-2:])
            if family == "t5":
                given = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([target])}
                total = total + model(**given).loss * 2
            else:
                found = model(input_ids=torch.tensor([piece.ids])).logits[0, -3:-1]
                total = total + cross_entropy(found, torch.tensor(target), reduction="sum")
        (total / sum(piece.targets for piece in chosen)).backward()
        return {
            name.replace(".default", ""): parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    def compare(row: torch.Tensor, slot: int, expected: dict[str, torch.Tensor]) -> None:
        rank = adapters[slot].settings["r"]
        assert len(expected) == 2 * len(bank.targets)
        largest = max(float(value.abs().max()) for value in expected.values())
        for target in bank.targets:
            name = f"base_model.model.{target.name}"
            a, b = target.a(row[None])[0, :rank], target.b(row[None])[0, :rank].t()
            for found, kind in ((a, "A"), (b, "B")):
                gap = (found - expected[f"{name}.lora_{kind}.weight"]).abs().max()
                # Float32: 1.13e-6 was seen with T5 on a CPU whose sums have another order.
                assert gap <= 2e-6 * max(1.0, largest), (name, kind)
            assert not target.a(row[None])[0, rank:].any()

    per_user = gradients(bank, users, pieces, users, tokens=40)
    per_example = gradients(bank, users, pieces)
    for user in range(3):
        chosen = [piece for piece, owner in zip(pieces, users, strict=True) if owner == user]
        compare(per_user[user], user, alone(user, chosen))
    for i, piece in enumerate(pieces):
        compare(per_example[i], users[i], alone(users[i], [piece]))

    norms = per_example.norm(dim=1)
    bound = float(norms.median())
    expected_sum = sum(row * min(1.0, bound / float(row.norm())) for row in per_example)
    total, found_norms = clipped_sum(per_example.clone(), bound)
    assert torch.allclose(found_norms, norms)
    assert torch.allclose(total, expected_sum, rtol=1e-4, atol=1e-6)
