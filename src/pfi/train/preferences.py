"""Training on preferences: the settings and the entry point of DPO (see ``objectives.DPO``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from pfi.errors import DataError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.train.config import TrainConfig
from pfi.train.job import TrainResult, train_one
from pfi.train.loop import BankTrainer, token_budget
from pfi.train.objectives import DPO, Preference, part_losses, piece_sums


class PreferenceConfig(TrainConfig):
    """How an adapter is trained on preferences; a batch is of pairs."""

    learning_rate: float = Field(3e-4, gt=0, description="highest learning rate")
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid", description="`sigmoid` (DPO), or `ipo`, which stops at a margin of 1 / (2 beta)"
    )
    beta: float = Field(
        0.1, gt=0, description="pull towards the model before training; higher keeps it nearer"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of the pairs assumed to be the wrong way round"
    )
    sft_weight: float = Field(
        0.2, ge=0, description="weight of the chosen answer's own cross-entropy beside the loss"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceConfig:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is for the loss sigmoid only")
        return self

    def objective(self) -> DPO:
        """What is minimised."""
        return DPO(self.loss, self.beta, self.label_smoothing, self.sft_weight)


def train_preferences(
    backbone: Backbone,
    pairs: Sequence[Preference],
    config: PreferenceConfig,
    *,
    seed: int = 0,
    start: Adapter | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    tokens: int | None = None,
) -> TrainResult:
    """Train an adapter on pairs, oldest first; the same arguments give the same one.

    Args:
        backbone: the frozen model, with what lies beneath the adapter merged in.
        pairs: what the user prefers.
        config: how.
        seed: of the initial factors and the order.
        start: the adapter to go on from, and the reference; without it the reference is the
            backbone and factors are fresh.
        on_step: called with the steps done, the steps planned and the step's loss.
        tokens: of one micro-batch, to bound memory; by the kind of device when None.

    Returns:
        the adapter; ``losses`` are the weighted mean loss of every step's pairs.

    Raises:
        DataError: there are no pairs.
        BackboneError, ConfigError: see ``AdapterBank.add``.
    """
    if not pairs:
        fix = "give answers that were corrected, or compared, first"
        raise DataError("there are no preferences to train on", fix=fix)
    trainer = BankTrainer(1, tokens, objective=config.objective())
    return train_one(trainer, backbone, pairs, config, seed=seed, start=start, on_step=on_step)


def answer_log_probs(
    backbone: Backbone,
    pairs: Sequence[Preference],
    *,
    slot: int | None = None,
    max_length: int = 640,
    tokens: int | None = None,
) -> torch.Tensor:
    """How likely a model finds the answers of pairs.

    Args:
        backbone: the model; a bank's takes a slot.
        pairs: what is measured; where the chosen answer is likelier, model and user agree.
        slot: whose adapter answers, see ``AdapterBank``.
        max_length: longest prompt and answer, in tokens.
        tokens: of one micro-batch; by the kind of device when None.

    Returns:
        ``(n, 2)`` log-probabilities of the chosen and the rejected answers, in nats.
    """
    if not pairs:
        return torch.zeros(0, 2, device=backbone.device)
    objective = DPO()
    pieces = [p for pair in pairs for p in objective.encode(backbone, pair, max_length)]
    parts = objective.parts(backbone, pieces)
    losses = torch.cat(part_losses(backbone, parts, slot, tokens or token_budget(backbone)))
    return -piece_sums(pieces, losses).view(-1, 2)
