"""Training one adapter on examples, behind the interface that every engine implements.

``PeftTrainer`` is the plain path: ``peft`` LoRA and a short loop.  It is the reference that
faster engines are compared with.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.learn.adapters import Adapter, AdapterConfig
from pfi.models.answering import pad_rows
from pfi.models.backbone import Backbone
from pfi.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Called after every step with the steps done, the steps planned and the step's loss.
OnStep = Callable[[int, int, float], None]
IGNORED = -100


class TrainConfig(AdapterConfig):
    """How an adapter is trained: AdamW, linear warm-up, linear decay to zero."""

    epochs: float = Field(3.0, gt=0, description="passes over the examples")
    batch_size: int = Field(8, ge=1, description="examples a step")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising rate")
    clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    max_length: int = Field(640, ge=16, description="longest prompt and target, in tokens")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass; weights and updates stay float32"
    )


@dataclass(frozen=True)
class TrainResult:
    """A trained adapter and what it took.

    Attributes:
        adapter: the result.
        losses: mean target-token cross-entropy of every step.
        seconds: wall-clock time.
    """

    adapter: Adapter
    losses: list[float]
    seconds: float

    @property
    def steps(self) -> int:
        return len(self.losses)


class Trainer(Protocol):
    """An engine that trains one adapter over a backbone and leaves the backbone as it was."""

    def train(
        self,
        backbone: Backbone,
        examples: Sequence[Example],
        config: TrainConfig,
        *,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> TrainResult:
        """Train a new adapter; the same arguments give the same adapter."""
        ...


@dataclass(frozen=True)
class Batch:
    """Padded tensors of shape ``(rows, length)``; ``labels`` are ignored outside targets."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def encode(backbone: Backbone, example: Example, max_length: int) -> tuple[list[int], list[int]]:
    """An example as ``(prompt ids, target ids)``, together within ``max_length`` tokens."""
    target = backbone.target_ids(example.target, max_length // 2)
    limit = min(max_length, backbone.max_length) - len(target)
    return backbone.prompt_ids(example.prompt, limit), target


def collate(backbone: Backbone, rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Encoded examples as one batch on the backbone's device."""
    if backbone.seq2seq:
        inputs = [prompt for prompt, _ in rows]
        labels = [target for _, target in rows]
    else:
        inputs = [[*prompt, *target] for prompt, target in rows]
        labels = [[*([IGNORED] * len(prompt)), *target] for prompt, target in rows]
    mask = pad_rows([[1] * len(row) for row in inputs], 0)
    batch = (pad_rows(inputs, backbone.pad_id), mask, pad_rows(labels, IGNORED))
    return Batch(*(tensor.to(backbone.device) for tensor in batch))


def batches(
    lengths: Sequence[int], batch_size: int, epochs: float, rng: random.Random
) -> list[list[int]]:
    """The positions of the examples of every step.

    Each epoch shuffles, then sorts within windows of eight batches, so that rows of a batch
    are of similar length and padding is rare; the batches of an epoch are shuffled again.
    """
    total = max(1, math.ceil(len(lengths) / batch_size * epochs))
    steps: list[list[int]] = []
    while len(steps) < total:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        window = 8 * batch_size
        epoch = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: lengths[i])
            epoch += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        rng.shuffle(epoch)
        steps += epoch
    return steps[:total]


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Multiplier of the learning rate at ``step`` of ``steps``: up linearly, down to zero."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


class PeftTrainer:
    """Train with ``peft``'s LoRA in a plain loop."""

    def train(
        self,
        backbone: Backbone,
        examples: Sequence[Example],
        config: TrainConfig,
        *,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> TrainResult:
        """See ``Trainer.train``.

        Raises:
            DataError: there are no examples.
        """
        if not examples:
            raise DataError("there is nothing to train on", fix="import records first")
        started = time.perf_counter()
        rows = [encode(backbone, example, config.max_length) for example in examples]
        lengths = [len(prompt) + len(target) for prompt, target in rows]
        plan = batches(lengths, config.batch_size, config.epochs, random.Random(seed))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: Any = _wrap(copy.deepcopy(backbone.model), config)
            model.train()
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(
                trained, lr=config.learning_rate, weight_decay=config.weight_decay
            )
            losses = []
            for step, picked in enumerate(plan):
                batch = collate(backbone, [rows[i] for i in picked])
                scale = rate_at(step, len(plan), config.warmup)
                optimizer.param_groups[0]["lr"] = config.learning_rate * scale
                with torch.autocast(
                    backbone.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
                ):
                    loss = target_loss(model, batch, seq2seq=backbone.seq2seq)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                if on_step:
                    on_step(step + 1, len(plan), losses[-1])
        return TrainResult(Adapter.of(model), losses, time.perf_counter() - started)


def target_loss(model: Any, batch: Batch, *, seq2seq: bool) -> torch.Tensor:
    """Mean cross-entropy over the target tokens; logits only from the first target on."""
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if seq2seq:
        return model(**arguments, labels=batch.labels).loss
    first = int((batch.labels != IGNORED).int().argmax(dim=1).min())
    keep = batch.labels.shape[1] - first + 1
    logits = model(**arguments, logits_to_keep=keep).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels[:, first:].flatten(), ignore_index=IGNORED
    )


def _wrap(model: PreTrainedModel, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(str(error), where="targets", fix="use 'all-linear'") from error


TRAINERS: dict[str, type[Trainer]] = {"peft": PeftTrainer}


def get_trainer(name: str = "peft") -> Trainer:
    """The engine of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TRAINERS:
        raise ConfigError(f"unknown engine {name!r}", fix=f"use one of {', '.join(TRAINERS)}")
    return TRAINERS[name]()
