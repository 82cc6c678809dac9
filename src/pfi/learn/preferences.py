"""Training on preferences by DPO: the chosen answer becomes likelier beside the rejected one.

The loss is that of Rafailov et al. 2023 (arXiv 2305.18290), or IPO's (arXiv 2310.12036), with
the likelihood term of Pang et al. 2024 (arXiv 2404.19733).  Both answers of a pair share their
prompt, which is computed once, and the reference is the model as it was before training.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from pfi.errors import DataError
from pfi.learn.slots import SlotAdamW, clip
from pfi.learn.training import TrainConfig, TrainResult, batches, hold_back, rate_at
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.models.bank import AdapterBank
from pfi.models.bank_layers import Dropout
from pfi.models.packing import Piece, Row, common_stem, passes, target_losses
from pfi.models.padding import takes_masks

#: Tokens of one pass by device; a single pair may have more.
_TOKENS = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which a user prefers one.

    Attributes:
        prompt: what the model reads.
        chosen: the answer that is preferred.
        rejected: the other one.
        weight: how much its loss counts beside that of other pairs.
        record_id: the record that it was made from.

    Raises:
        DataError: both answers are the same.
    """

    prompt: str
    chosen: str
    rejected: str
    weight: float = 1.0
    record_id: str = ""

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            what, fix = "a preference needs two different answers", "leave it out"
            raise DataError(what, record=self.record_id or None, fix=fix)


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


# Losses -------------------------------------------------------------------------------


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """DPO's loss ``(n,)`` of pairs from the log-probabilities ``(n,)`` of whole answers, in nats.

    Args:
        policy_chosen, policy_rejected: under the model that is trained.
        reference_chosen, reference_rejected: under the model before training.
        beta: pull towards the reference.
        label_smoothing: chance that a pair is the wrong way round (conservative DPO).
    """
    gain = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -(1 - label_smoothing) * F.logsigmoid(gain) - label_smoothing * F.logsigmoid(-gain)


def ipo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float = 0.1,
) -> torch.Tensor:
    """IPO's loss ``(n,)``; as ``dpo_loss``, but of log-probabilities that are means of tokens.

    ``beta`` is what the paper calls tau.  With sums, longer answers would have larger losses.
    """
    gain = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (gain - 1 / (2 * beta)) ** 2


# Pairs as tokens ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A preference as the rows of a pass: one with a shared stem, or one an answer."""

    rows: tuple[Row, ...]
    targets: tuple[int, int]
    weight: float

    @property
    def length(self) -> int:
        """Tokens, padded to the longer row."""
        return len(self.rows) * max(len(row) for row in self.rows)


def _pair(backbone: Backbone, preference: Preference, max_length: int) -> _Pair:
    answers = [
        backbone.target_ids(text, max_length // 2)
        for text in (preference.chosen, preference.rejected)
    ]
    # The longer answer decides how much of the prompt fits, so that both have the same.
    longest = max(len(ids) for ids in answers)
    prompt = backbone.prompt_ids(preference.prompt, min(max_length, backbone.max_length) - longest)
    pieces = [Piece([*prompt, *ids], len(ids)) for ids in answers]
    together = Row(pieces, common_stem(pieces))
    shared = not backbone.seq2seq and takes_masks(backbone, len(together))
    rows = (together,) if shared else tuple(Row([piece]) for piece in pieces)
    return _Pair(rows, (len(answers[0]), len(answers[1])), preference.weight)


def _log_probs(backbone: Backbone, pairs: Sequence[_Pair]) -> torch.Tensor:
    """Log-probabilities ``(n, 2)`` of chosen and rejected answers, end tokens included."""
    losses = target_losses(backbone, [row for pair in pairs for row in pair.rows])
    counts = torch.tensor([count for pair in pairs for count in pair.targets])
    owner = torch.arange(len(counts)).repeat_interleave(counts).to(losses.device)
    return losses.new_zeros(len(counts)).index_add(0, owner, -losses).view(-1, 2)


@torch.no_grad()
def _all_log_probs(
    backbone: Backbone, pairs: Sequence[_Pair], slot: int | None, tokens: int
) -> torch.Tensor:
    found = torch.zeros(len(pairs), 2, device=backbone.device)
    for picked in passes([pair.length for pair in pairs], tokens):
        part = [pairs[i] for i in picked]
        with backbone.rows(None if slot is None else [slot] * sum(len(p.rows) for p in part)):
            found[picked] = _log_probs(backbone, part)
    return found


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
        tokens: of one pass; by the kind of device when None.

    Returns:
        ``(n, 2)`` log-probabilities of the chosen and the rejected answers, in nats.
    """
    budget = tokens or _TOKENS.get(backbone.device.type, 1024)
    encoded = [_pair(backbone, pair, max_length) for pair in pairs]
    return _all_log_probs(backbone, encoded, slot, budget)


# Training -----------------------------------------------------------------------------


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
        on_step: told the steps done, the steps planned and the step's loss.
        tokens: of one pass, to bound memory; by the kind of device when None.

    Returns:
        the adapter; ``losses`` are the weighted mean loss of every step's pairs.

    Raises:
        DataError: there are no pairs.
        BackboneError, ConfigError: see ``AdapterBank.add``.
    """
    if not pairs:
        fix = "give answers that were corrected, or compared, first"
        raise DataError("there are no preferences to train on", fix=fix)
    started = time.perf_counter()
    run = _Run(backbone, pairs, config, seed, start, tokens)
    losses, stopped = run.train(on_step)
    adapter = run.bank.adapter(run.slot)
    return TrainResult(adapter, losses, time.perf_counter() - started, stopped, len(run.pairs))


class _Run:
    """One call of ``train_preferences``."""

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[Preference],
        config: PreferenceConfig,
        seed: int,
        start: Adapter | None,
        tokens: int | None,
    ) -> None:
        self.config, self.seed = config, seed
        self.tokens = tokens or _TOKENS.get(backbone.device.type, 1024)
        self.bank = AdapterBank(backbone, config, 1, precision=config.precision)
        self.slot = self.bank.new(seed) if start is None else self.bank.add(start)
        encoded = [_pair(self.bank.backbone, pair, config.max_length) for pair in pairs]
        self.pairs, self.held_back = hold_back(encoded, config.held_back)
        # Fresh factors change nothing, so that the slot is the reference in either case.
        self.reference = self._log_probs(self.pairs)
        self.held_back_reference = self._log_probs(self.held_back)

    def _log_probs(self, pairs: Sequence[_Pair]) -> torch.Tensor:
        return _all_log_probs(self.bank.backbone, pairs, self.slot, self.tokens)

    def train(
        self, on_step: Callable[[int, int, float], None] | None
    ) -> tuple[list[float], str | None]:
        """All steps; the losses, and why training ended early."""
        config, weights = self.config, self.bank.weights
        optimizer = SlotAdamW(self.bank, config.weight_decay)
        lengths = [pair.length for pair in self.pairs]
        plan = batches(lengths, config.batch_size, config.epochs, random.Random(self.seed))
        epoch = -(-len(self.pairs) // config.batch_size)
        losses: list[float] = []
        best_loss, best, waited, stopped = float("inf"), None, 0, None
        for step, picked in enumerate(plan, 1):
            loss, gradient = self.gradient(picked, step)
            norm = float(clip(gradient, config.clip))
            for what, value in (("loss", loss), ("gradient", norm)):
                if not torch.isfinite(torch.tensor(value)):
                    stopped = stopped or f"the {what} was {value} in step {step}"
            if stopped:
                break
            rate = config.learning_rate * rate_at(step - 1, len(plan), config.warmup)
            optimizer.step([self.slot], gradient, [rate])
            losses.append(loss)
            if on_step:
                on_step(step, len(plan), loss)
            if self.held_back and (step % epoch == 0 or step == len(plan)):
                measured = self._held_back_loss()
                if measured < best_loss:
                    best_loss, best, waited = measured, weights[self.slot].clone(), 0
                else:
                    waited += 1
                if waited >= config.patience and step < len(plan):
                    stopped = f"the held-back loss rose after step {step}"
                    break
        if best is not None:
            weights[self.slot] = best
        return losses, stopped

    def gradient(self, picked: Sequence[int], step: int) -> tuple[float, torch.Tensor]:
        """The weighted mean loss of some pairs, and its gradient ``(1, width)``."""
        total = 0.0
        gradient = torch.zeros(1, self.bank.width, device=self.bank.weights.device)
        for part in passes([self.pairs[i].length for i in picked], self.tokens):
            numbers = [picked[i] for i in part]
            chosen = [self.pairs[i] for i in numbers]
            rows = [row for pair in chosen for row in pair.rows]
            slots, dropout = [self.slot] * len(rows), self._dropout(rows, step)
            with self.bank.recording(slots, dropout=dropout) as recorded:
                found = _log_probs(self.bank.backbone, chosen)
                losses = self._losses(chosen, found, self.reference[numbers])
                loss = losses.sum() / len(picked)
                loss.backward()
            total += loss.item()
            gradient += recorded
        return total, gradient

    def _losses(
        self, pairs: Sequence[_Pair], policy: torch.Tensor, reference: torch.Tensor
    ) -> torch.Tensor:
        """Weighted losses ``(n,)`` of pairs from log-probabilities ``(n, 2)``."""
        config = self.config
        counts = torch.tensor([pair.targets for pair in pairs]).to(policy)
        if config.loss == "ipo":
            own, before = policy / counts, reference / counts
            losses = ipo_loss(own[:, 0], own[:, 1], before[:, 0], before[:, 1], config.beta)
        else:
            losses = dpo_loss(
                policy[:, 0],
                policy[:, 1],
                reference[:, 0],
                reference[:, 1],
                config.beta,
                config.label_smoothing,
            )
        losses = losses - config.sft_weight * policy[:, 0] / counts[:, 0]
        return losses * torch.tensor([pair.weight for pair in pairs]).to(losses)

    def _dropout(self, rows: Sequence[Row], step: int) -> Dropout | None:
        if not self.config.dropout:
            return None
        keys = [f"{self.seed} {step} {[piece.ids for piece in row.pieces]}" for row in rows]
        seeds = [random.Random(key).getrandbits(63) for key in keys]
        return Dropout(self.config.dropout, seeds, [len(row) for row in rows])

    def _held_back_loss(self) -> float:
        policy = self._log_probs(self.held_back)
        return float(self._losses(self.held_back, policy, self.held_back_reference).mean())
