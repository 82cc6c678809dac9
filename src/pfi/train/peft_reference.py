"""Training with ``peft``'s LoRA in a plain loop: the reference that other engines must equal."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pfi.errors import ConfigError
from pfi.models.adapters import Adapter, lora_config
from pfi.models.attention import pad_rows
from pfi.models.backbone import Backbone
from pfi.train.config import TrainConfig
from pfi.train.job import Job, OnStep, TrainResult, batches, encode, hold_back, rate_at
from pfi.train.precision import precision_of

#: Marks labels that carry no loss.
IGNORED = -100


class PeftTrainer:
    """One job after the other, each with ``peft`` and a plain loop."""

    together = False

    def train_many(
        self,
        backbone: Backbone,
        jobs: Iterable[Job],
        config: TrainConfig,
        *,
        on_step: OnStep | None = None,
        state: Path | None = None,
    ) -> Iterator[tuple[Job, TrainResult | None]]:
        """See ``Trainer.train_many``; ``state`` is not used: a job starts anew."""
        if config.general:
            what = "the reference learns from the user's examples only"
            raise ConfigError(what, where="general", fix="use the engine `bank`")
        for job in jobs:
            yield job, self._train(backbone, job, config, on_step)

    def _train(
        self, backbone: Backbone, job: Job, config: TrainConfig, on_step: OnStep | None
    ) -> TrainResult | None:
        started = time.perf_counter()
        examples = job.load()
        if not examples:
            return None
        everything = [encode(backbone, example, config.max_length) for example in examples]
        rows, held_back = hold_back(everything, config.held_back)
        lengths = [len(prompt) + len(target) for prompt, target in rows]
        plan = batches(lengths, config.batch_size, config.epochs, random.Random(job.seed))
        epoch = -(-len(rows) // config.batch_size)
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            if job.start is not None:
                model: Any = job.start.apply(copy.deepcopy(backbone.model))
            else:
                model = _wrap(copy.deepcopy(backbone.model), config)
            _training(model)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(
                trained, lr=config.learning_rate, weight_decay=config.weight_decay
            )
            losses: list[float] = []
            best, best_loss, without_improvement, stopped = None, float("inf"), 0, None
            for step, picked in enumerate(plan):
                weights = [examples[i].weight for i in picked]
                batch = collate(backbone, [rows[i] for i in picked], weights)
                scale = rate_at(step, len(plan), config.warmup)
                optimizer.param_groups[0]["lr"] = config.learning_rate * scale
                with _precision(backbone, config):
                    loss = target_loss(model, batch, seq2seq=backbone.seq2seq)
                if not torch.isfinite(loss):
                    stopped = f"the loss was {loss.item()} in step {step + 1}"
                    break
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                if on_step:
                    on_step(job.id, step + 1, len(plan), losses[-1])
                if held_back and ((step + 1) % epoch == 0 or step + 1 == len(plan)):
                    measured = self._measure(backbone, model, held_back, config)
                    if measured < best_loss:
                        best, best_loss, without_improvement = Adapter.of(model), measured, 0
                    else:
                        without_improvement += 1
                    if without_improvement >= config.patience and step + 1 < len(plan):
                        stopped = f"the held-back loss rose after step {step + 1}"
                        break
        adapter = best or Adapter.of(model)
        seconds = time.perf_counter() - started
        return TrainResult(adapter, losses, seconds, stopped, len(rows))

    @staticmethod
    @torch.no_grad()
    def _measure(
        backbone: Backbone,
        model: Any,
        rows: Sequence[tuple[list[int], list[int]]],
        config: TrainConfig,
    ) -> float:
        """Mean cross-entropy of all target tokens of held-back examples."""
        model.eval()
        total = tokens = 0.0
        for start in range(0, len(rows), config.batch_size):
            part = rows[start : start + config.batch_size]
            count = sum(len(target) for _, target in part)
            with _precision(backbone, config):
                loss = target_loss(model, collate(backbone, part), seq2seq=backbone.seq2seq)
            total, tokens = total + loss.item() * count, tokens + count
        _training(model)
        return total / tokens


def _training(model: Any) -> None:
    """Turn dropout on in the adapter only: a frozen backbone's own would be noise."""
    model.eval()
    for name, module in model.named_modules():
        module.training = "lora_dropout" in name


def _precision(backbone: Backbone, config: TrainConfig) -> torch.autocast:
    bfloat16 = precision_of(config, backbone) == "bfloat16"
    return torch.autocast(backbone.device.type, torch.bfloat16, enabled=bfloat16)


@dataclass(frozen=True)
class Batch:
    """Padded tensors of shape ``(rows, length)``; ``labels`` are ignored outside targets.

    ``weights`` ``(rows,)`` say how much the loss of each row counts.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def collate(
    backbone: Backbone,
    rows: Sequence[tuple[list[int], list[int]]],
    weights: Sequence[float] | None = None,
) -> Batch:
    """Encoded examples as one batch on the backbone's device; of equal weight by default."""
    if backbone.seq2seq:
        inputs = [prompt for prompt, _ in rows]
        labels = [target for _, target in rows]
    else:
        inputs = [[*prompt, *target] for prompt, target in rows]
        labels = [[*([IGNORED] * len(prompt)), *target] for prompt, target in rows]
    mask = pad_rows([[1] * len(row) for row in inputs], 0)
    counts = torch.tensor([1.0] * len(rows) if weights is None else weights)
    batch = (pad_rows(inputs, backbone.pad_id), mask, pad_rows(labels, IGNORED), counts)
    return Batch(*(tensor.to(backbone.device) for tensor in batch))


def target_loss(model: Any, batch: Batch, *, seq2seq: bool) -> torch.Tensor:
    """Mean over the target tokens of their row's weight times their cross-entropy.

    Logits are made only from the first target on.
    """
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if seq2seq:
        labels = batch.labels
        logits = model(**arguments, labels=labels).logits
    else:
        first = int((batch.labels != IGNORED).int().argmax(dim=1).min())
        labels = batch.labels[:, first:]
        logits = model(**arguments, logits_to_keep=labels.shape[1] + 1).logits
        logits = logits[:, -labels.shape[1] - 1 : -1]  # some models make all of them
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none"
    )
    return (losses.sum(1) * batch.weights).sum() / (labels != IGNORED).sum()


def _wrap(model: Any, config: TrainConfig) -> Any:
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(config, model))
    except ValueError as error:
        raise ConfigError(str(error), where="targets", fix="use 'all-linear'") from error
