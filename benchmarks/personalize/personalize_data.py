"""What the benchmark measures on: kinds of records, models, people, and the task stage beneath."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scenario:
    """What a user's records look like; `exact` takes only rows that fill `max_length`."""

    task: str
    demo_task: str
    batch_size: int
    max_length: int
    exact: bool
    examples: int  # what a median user of the task has, less two held back
    most: int  # users at once; more make a batch of natural length too large


SCENARIOS = {
    "1x64": Scenario("LaMP_3", "LaMP_3", 1, 64, True, 12, 512),
    "4x64": Scenario("LaMP_3", "LaMP_3", 4, 64, True, 12, 512),
    "LaMP_3": Scenario("LaMP_3", "LaMP_3", 4, 640, False, 12, 16),
    "LaMP_5": Scenario("LaMP_5", "LaMP_4", 4, 640, False, 8, 16),
}
HELD_BACK = 2


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much of it a run can afford; no shape: a model that exists."""

    shape: dict[str, int] | None
    examples: int  # a user at most
    people: int
    repeats: int  # on a CPU at most
    staged: bool = False  # whether a task stage comes first


def _shape(width: int, inner: int, blocks: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SIZES = {
    "tiny": Size(_shape(32, 48, 3, 2, 2), 4, 2, 1),  # a check of the benchmark itself
    "embedded": Size(None, 12, 8, 9, staged=True),
    "m30": Size(_shape(512, 1408, 8, 8, 8), 4, 8, 3),
    "m135": Size(_shape(576, 1536, 30, 9, 3), 4, 4, 1),  # SmolLM2-135M
    "q500": Size(_shape(896, 4864, 24, 14, 2), 4, 4, 1),  # Qwen2-0.5B
    "real": Size(None, 12, 4, 1),  # what `--backbone` names
}
SHORT = ("1x64", "4x64")


def make_model(name: str, folder: Path, seed: int) -> str:
    """Where the model can be loaded from; a random one is made with the embedded tokenizer."""
    from pfi.models.backbone import load_backbone

    shape = SIZES[name].shape
    if shape is None:
        return name
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    embedded = load_backbone("embedded", device="cpu")
    given = embedded.model.config
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=given.vocab_size,
        max_position_embeddings=given.max_position_embeddings,
        tie_word_embeddings=True,
        **{key: getattr(given, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **shape,
    )
    path = folder / name
    LlamaForCausalLM(config).save_pretrained(path)
    embedded.tokenizer.save_pretrained(path)
    return str(path)


def make_data(
    scenario: str, folder: Path, lamp: Path | None, people: int, seed: int
) -> tuple[Path, str]:
    """Write people's examples and `others` for a task stage; the file and where they are from."""
    from pfi.datasets.demo import write_demo
    from pfi.datasets.lamp import read_users
    from pfi.models.backbone import load_backbone
    from pfi.tasks import get_task
    from pfi.train.job import encode

    kind, backbone = SCENARIOS[scenario], load_backbone("embedded", device="cpu")
    source = f"LaMP-format data, {kind.task}, split train"
    if lamp is None:
        source = f"MADE-UP people of pfi.datasets.demo ({kind.demo_task}): no real records"
        lamp = folder / "demo"
        if not lamp.exists():
            write_demo(lamp, seed=seed)
    task = get_task(kind.demo_task if source.startswith("MADE-UP") else kind.task)
    users = read_users(lamp, task, "train")
    random.Random(seed).shuffle(users)
    found: list[dict[str, Any]] = []
    others: list[list[str]] = []
    for user in users:
        rows = []
        for example in task.examples(user.history, random.Random(seed)):
            prompt, target = encode(backbone, example, kind.max_length)
            if not kind.exact or len(prompt) + len(target) == kind.max_length:
                rows.append([example.prompt, example.target])
        if len(found) < people and len(rows) >= kind.examples + HELD_BACK:
            rows = rows[: kind.examples + HELD_BACK]
            found.append({"train": rows[:-HELD_BACK], "held_back": rows[-HELD_BACK:]})
        else:
            others += rows
    if len(found) < people:
        raise SystemExit(f"{scenario}: only {len(found)} of {people} users have enough records")
    path = folder / f"{scenario}.json"
    path.write_text(json.dumps({"people": found, "others": others}), encoding="utf-8")
    return path, source


def stage(spec: dict[str, Any]) -> dict[str, Any]:
    """The task stage: an adapter learnt from other users, merged and saved under `to`.

    Personal adapters lie above a shared one in use; a user's few records do not teach a task.
    """
    import torch

    from pfi.models.backbone import load_backbone
    from pfi.tasks import Example
    from pfi.train.config import TrainConfig
    from pfi.train.job import train_one
    from pfi.train.trainers import get_trainer

    torch.set_num_threads(spec["threads"])
    backbone = load_backbone(spec["model_path"], device=spec["device"])
    others = json.loads(Path(spec["data"]).read_text(encoding="utf-8"))["others"]
    examples = [Example(prompt, target, {}, "") for prompt, target in others]
    config = TrainConfig(
        rank=16, alpha=32, learning_rate=2e-3, batch_size=8, max_length=spec["max_length"]
    )
    # Half a step less, so that rounding up gives the number exactly.
    epochs = (spec["steps"] - 0.5) * config.batch_size / len(examples)
    config = config.model_copy(update={"epochs": epochs})
    result = train_one(get_trainer(), backbone, examples, config, seed=spec["seed"])
    backbone.with_adapters([result.adapter]).model.save_pretrained(spec["to"])
    backbone.tokenizer.save_pretrained(spec["to"])
    return {"losses": [result.losses[0], result.losses[-1]]}
