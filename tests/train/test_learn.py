"""Training: the adapter against a hand-written loop, and against plain peft on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from pfi.errors import BackboneError, ConfigError, DataError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import TrainResult, batches, encode, rate_at, train_one
from pfi.train.peft_reference import IGNORED, collate
from pfi.train.trainers import TRAINERS, get_trainer

Folder = Callable[[str], Path]
EXAMPLES = [
    Example(f"a quick {word} fox", target, {}, word)
    for word, target in [("brown", "good"), ("lazy", "bad dog"), ("film", "5"), ("book", "title")]
]
CONFIG = TrainConfig(rank=4, alpha=8, epochs=10, batch_size=2, learning_rate=1e-2)


def train(folder: Path, engine: str = "bank", **changes: object) -> Adapter:
    config = CONFIG.model_copy(update=changes)
    return train_one(get_trainer(engine), load_backbone(folder), EXAMPLES, config, seed=3).adapter


def train_on(backbone: Backbone, examples: list[Example], seed: int = 0) -> TrainResult:
    return train_one(get_trainer(), backbone, examples, CONFIG, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_the_adapter_and_gives_the_same_logits(
    backbone_folder: Folder, family: str, tmp_path: Path
) -> None:
    import transformers as t
    from peft import PeftModel

    folder = backbone_folder(family)
    backbone = load_backbone(folder)
    shared = train(folder)
    stacked = backbone.with_adapters([shared])
    own = train_on(stacked, EXAMPLES[:2], 4).adapter
    shared.save(tmp_path / "shared")
    own.save(tmp_path / "own")

    loader = t.AutoModelForSeq2SeqLM if family == "t5" else t.AutoModelForCausalLM
    plain = loader.from_pretrained(folder)
    plain = PeftModel.from_pretrained(plain, tmp_path / "shared").merge_and_unload()
    plain = PeftModel.from_pretrained(plain, tmp_path / "own").eval()
    ours = load_backbone(folder).with_adapters([Adapter.load(tmp_path / "shared"), own]).model
    arguments = {"input_ids": torch.tensor([backbone.prompt_ids("a quick fox")])}
    if family == "t5":
        arguments["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        expected, found = plain(**arguments).logits, ours(**arguments).logits
        untouched = backbone.model(**arguments).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, untouched, atol=1e-2)


@pytest.mark.parametrize("engine", TRAINERS)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_training_equals_a_loop_written_out(
    backbone_folder: Folder, family: str, engine: str
) -> None:
    """Same initial factors, order and optimiser: full logits and labels instead of our loss."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    folder = backbone_folder(family)
    backbone = load_backbone(folder)
    found = train(folder, engine, learning_rate=2e-3)

    torch.manual_seed(3)
    kind = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind)
    model = get_peft_model(load_backbone(folder).model, lora)
    model.eval()  # a frozen backbone's own dropout stays off
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01)
    rows = [encode(backbone, example, 640) for example in EXAMPLES]
    plan = batches([len(p) + len(t) for p, t in rows], 2, 10, random.Random(3))
    for step, picked in enumerate(plan):
        batch = collate(backbone, [rows[i] for i in picked])
        optimizer.param_groups[0]["lr"] = 2e-3 * rate_at(step, len(plan), 0.1)
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    expected = get_peft_model_state_dict(model)
    assert expected.keys() == found.weights.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found.weights[name], atol=1e-5), name


def test_training_is_repeatable_lowers_the_loss_and_leaves_the_backbone(
    backbone_folder: Folder,
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    results = [train_on(backbone, EXAMPLES, 1) for _ in range(2)]
    assert results[0].losses == results[1].losses
    assert results[0].losses[-1] < results[0].losses[0]
    other = train_on(backbone, EXAMPLES, 2)
    assert other.losses != results[0].losses
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


def test_only_targets_carry_loss_and_nothing_is_longer_than_allowed(
    backbone_folder: Folder,
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    prompt, target = encode(backbone, EXAMPLES[0], 640)
    batch = collate(backbone, [(prompt, target), (prompt[:2], target)])
    assert batch.labels[0].tolist() == [IGNORED] * len(prompt) + target
    assert int(batch.attention_mask[1].sum()) == 2 + len(target)
    long = Example("fox " * 500, "dog " * 500, {}, "long")
    prompt, target = encode(backbone, long, 64)
    assert len(prompt) + len(target) <= 64
    assert target[-1] != backbone.end_id, "an answer that is cut does not end there"


@pytest.mark.parametrize(("count", "size", "epochs"), [(7, 3, 2.0), (5, 8, 1.0), (9, 2, 0.5)])
def test_every_example_is_seen_once_an_epoch(count: int, size: int, epochs: float) -> None:
    plan = batches(list(range(count)), size, epochs, random.Random(0))
    per_epoch = -(-count // size)
    assert len(plan) == -(-count * epochs // size)
    whole = [i for step in plan[:per_epoch] for i in step]
    assert len(set(whole)) == len(whole)
    if epochs >= 1:
        assert sorted(whole) == list(range(count))


def test_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [rate_at(step, 20, 0.2) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[-1] == pytest.approx(1 / 16)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_adapters_that_cannot_be_used_are_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    adapter = train(backbone_folder("llama"), epochs=1)
    with pytest.raises(BackboneError, match=r"does not fit|lacks"):
        load_backbone(backbone_folder("gpt2")).with_adapters([adapter])
    with pytest.raises(BackboneError, match="no adapter"):
        Adapter.load(tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(BackboneError, match="pickled"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(BackboneError, match="damaged"):
        Adapter.load(tmp_path)


def test_mistakes_in_settings_have_one_clear_line(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    with pytest.raises(DataError, match="nothing to train on"):
        train_on(backbone, [])
    with pytest.raises(ConfigError, match="unknown engine"):
        get_trainer("missing")
    wrong = CONFIG.model_copy(update={"targets": ["no_such_layer"]})
    with pytest.raises(ConfigError, match="targets"):
        train_one(get_trainer(), backbone, EXAMPLES, wrong)
