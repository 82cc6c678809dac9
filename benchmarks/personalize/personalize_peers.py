"""What the benchmark compares with: `peft` under transformers' Trainer, in a plain loop, mixed.

Users come one after the other, each with a new adapter over the one loaded model, as OPPU's
training does (Tan et al., arXiv 2402.04401).  Settings, data and step counts are the engine's.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from pfi.models.adapters import Adapter, lora_config
from pfi.models.backbone import Backbone
from pfi.train.config import TrainConfig
from pfi.train.job import Job, batches, encode, rate_at
from pfi.train.peft_reference import IGNORED, collate


class Trained(NamedTuple):
    """A job's adapter and the mean of its steps' training losses."""

    id: str
    adapter: Adapter
    loss: float


def steps_of(examples: int, config: TrainConfig) -> int:
    """How many steps every method takes for a user: the engine's own rule."""
    return len(batches([1] * examples, config.batch_size, config.epochs, random.Random(0)))


def with_trainer(backbone: Backbone, jobs: Iterable[Job], config: TrainConfig) -> Iterator[Trained]:
    """One user at a time with `peft` and `transformers.Trainer`; the engine's order."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = backbone.tokenizer
    for job in jobs:
        torch.manual_seed(job.seed)
        rows = [encode(backbone, example, config.max_length) for example in job.load()]
        data = [
            {
                "input_ids": [*prompt, *target],
                "attention_mask": [1] * (len(prompt) + len(target)),
                "labels": [*([IGNORED] * len(prompt)), *target],
            }
            for prompt, target in rows
        ]
        # The engine's order, so that quality can be compared; grouped by length as OPPU's is.
        lengths = [len(row["input_ids"]) for row in data]
        plan = batches(lengths, config.batch_size, config.epochs, random.Random(job.seed))
        ordered = [data[i] for picked in plan for i in picked]
        model: Any = get_peft_model(backbone.model, lora_config(config, backbone.model))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config.batch_size,
                max_steps=len(plan),
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                max_grad_norm=config.clip,
                warmup_steps=0,
                lr_scheduler_type="linear",
                train_sampling_strategy="sequential",
                bf16=config.precision == "bfloat16",
                use_cpu=backbone.device.type == "cpu",
                dataloader_pin_memory=backbone.device.type != "cpu",
                seed=job.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(
                model=model,
                args=arguments,
                train_dataset=ordered,  # type: ignore[arg-type]
                data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
            )
            loss = trainer.train().training_loss
        adapter = Adapter.of(model)
        model.unload()
        yield Trained(job.id, adapter, loss)
    backbone.model.eval()


def with_loop(backbone: Backbone, jobs: Iterable[Job], config: TrainConfig) -> Iterator[Trained]:
    """One user at a time with `peft` and as little as possible around it; the engine's order."""
    from peft import get_peft_model

    device, bfloat16 = backbone.device.type, config.precision == "bfloat16"
    for job in jobs:
        torch.manual_seed(job.seed)
        rows = [encode(backbone, example, config.max_length) for example in job.load()]
        lengths = [len(prompt) + len(target) for prompt, target in rows]
        plan = batches(lengths, config.batch_size, config.epochs, random.Random(job.seed))
        model: Any = get_peft_model(backbone.model, lora_config(config, backbone.model))
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        losses = []
        for step, picked in enumerate(plan):
            batch = collate(backbone, [rows[i] for i in picked])
            scale = rate_at(step, len(plan), config.warmup)
            optimizer.param_groups[0]["lr"] = config.learning_rate * scale
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    labels=batch.labels,
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        adapter = Adapter.of(model)
        model.unload()
        yield Trained(job.id, adapter, float(torch.stack(losses).mean()))
    backbone.model.eval()


def generate_plain(model: Any, ids: torch.Tensor, new_tokens: int, pad_id: int, **more: Any) -> Any:
    """transformers' greedy generation of exactly `new_tokens` tokens: no token ends it."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad_id, eos_token_id=-1
    )
    with torch.inference_mode():
        return model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **more
        )


def mixed_model(backbone: Backbone, adapters: Sequence[Adapter]) -> tuple[Any, list[str]]:
    """A peft model that holds all adapters, and their names for `adapter_names`."""
    from peft import LoraConfig, set_peft_model_state_dict

    model = adapters[0].apply(backbone.model)
    names = ["default", *(f"user{i}" for i in range(1, len(adapters)))]
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.add_adapter(name, LoraConfig(**adapter.settings))
        set_peft_model_state_dict(model, adapter.weights, adapter_name=name)
    return model.eval(), names
