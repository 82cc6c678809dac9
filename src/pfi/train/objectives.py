"""What training minimises: an objective is passed to the training loop of ``bank_trainer``.

It says how an example becomes tokens and rows and what its loss is; the loop weighs the losses,
sums them and divides.  ``DPO`` is by Rafailov et al. 2023 (arXiv 2305.18290), or IPO (arXiv
2310.12036), with the likelihood term of Pang et al. 2024 (arXiv 2404.19733).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F

from pfi.errors import DataError
from pfi.models.attention import takes_masks
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece, Row, common_stem, pack, passes, target_losses
from pfi.models.families import width_of
from pfi.tasks import Example
from pfi.train.job import as_piece, encode_answers

_LONGEST_ROW = 768


@dataclass(frozen=True)
class Part:
    """Rows that belong in one micro-batch, since the loss of an example needs all of them.

    Attributes:
        rows: their pieces, in order, are those of one or more whole examples.
        reference: ``(targets,)`` losses of all targets before training, in order, or None.
    """

    rows: Sequence[Row]
    reference: torch.Tensor | None = None

    @property
    def pieces(self) -> list[Piece]:
        return [piece for row in self.rows for piece in row.pieces]

    @property
    def length(self) -> int:
        """Tokens, padding to the longest row included."""
        return len(self.rows) * max(len(row) for row in self.rows)


class Objective(Protocol):
    """A loss of examples.

    The loss of a step is the sum of ``weight * loss`` over its examples by ``divisor``, where
    the weight is that of an example's first piece.
    """

    #: How many pieces every example becomes.
    pieces: int
    #: Whether ``losses`` needs the losses of the targets before training.
    needs_reference: bool
    #: Whether examples have their weights in the held-back loss too, or count alike.
    weighs_held_back: bool

    def encode(self, backbone: Backbone, example: Any, max_length: int) -> Sequence[Piece]:
        """An example as ``pieces`` pieces of at most ``max_length`` tokens."""
        ...

    def parts(self, backbone: Backbone, pieces: Sequence[Piece]) -> list[Part]:
        """The pieces of examples as rows, in the same order."""
        ...

    def losses(
        self,
        pieces: Sequence[Piece],
        token_losses: torch.Tensor,
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """The losses of examples before weighing.

        Args:
            pieces: of whole examples.
            token_losses: ``(targets,)`` negative log-likelihoods of all targets in order, nats.
            reference: the same before training, where ``needs_reference``.

        Returns:
            ``(examples,)``.
        """
        ...

    def divisor(self, pieces: Sequence[Piece]) -> float:
        """What the sum of the weighted losses of all examples of a step is divided by."""
        ...


def piece_sums(pieces: Sequence[Piece], token_losses: torch.Tensor) -> torch.Tensor:
    """The sums ``(pieces,)`` of the losses ``(targets,)`` of each piece's targets."""
    counts = torch.tensor([piece.targets for piece in pieces])
    owner = torch.arange(len(pieces)).repeat_interleave(counts).to(token_losses.device)
    return token_losses.new_zeros(len(pieces)).index_add(0, owner, token_losses)


@torch.no_grad()
def part_losses(
    backbone: Backbone, parts: Sequence[Part], slot: int | None, tokens: int
) -> list[torch.Tensor]:
    """The target losses ``(targets,)`` of each part, without gradients.

    Args:
        backbone: the model; a bank's takes a slot.
        parts: what is measured.
        slot: whose adapter is used, or None.
        tokens: of one micro-batch.
    """
    losses_of = [torch.empty(0)] * len(parts)
    for picked in passes([part.length for part in parts], tokens):
        rows = [row for i in picked for row in parts[i].rows]
        with backbone.rows(None if slot is None else [slot] * len(rows)):
            losses = target_losses(backbone, rows)
        counts = [sum(piece.targets for piece in parts[i].pieces) for i in picked]
        for i, own in zip(picked, losses.split(counts), strict=True):
            losses_of[i] = own
    return losses_of


# Cross-entropy ------------------------------------------------------------------------


def _longest_row(backbone: Backbone) -> float:
    """Tokens of the longest row that examples are packed in, to bound memory.

    Large models are trained in bfloat16; the activations of a row of theirs take the most.
    """
    return _LONGEST_ROW if backbone.model.dtype == torch.bfloat16 else math.inf


class CrossEntropy:
    """The mean negative log-likelihood of a step's target tokens.

    Of an anchored piece the losses are held to what they were without the adapter: half the square
    of their difference is added for each of its targets. This estimates the KL divergence from
    the model as it was (the k2 estimator of Schulman 2020) without logits of whole vocabularies.
    """

    pieces = 1
    needs_reference = False
    weighs_held_back = False

    def encode(self, backbone: Backbone, example: Example, max_length: int) -> Sequence[Piece]:
        """See ``Objective``."""
        return (as_piece(backbone, example, max_length),)

    def parts(self, backbone: Backbone, pieces: Sequence[Piece]) -> list[Part]:
        """A row each, or one with a common stem where that is cheaper; anchored ones come last."""
        own = [piece for piece in pieces if not piece.anchored]
        if 0 < len(own) < len(pieces):
            return [*self.parts(backbone, own), *self.parts(backbone, pieces[len(own) :])]
        together = sum(len(piece) for piece in pieces)
        if backbone.seq2seq or not takes_masks(backbone, together):
            return [Part([Row([piece])]) for piece in pieces]
        width = width_of(backbone.model.config)
        rows = pack(pieces, width)
        half = len(pieces) // 2
        if half and len(rows) == 1 and len(rows[0]) > _longest_row(backbone):
            return [*self.parts(backbone, pieces[:half]), *self.parts(backbone, pieces[half:])]
        return [Part([row]) for row in rows]

    def losses(
        self,
        pieces: Sequence[Piece],
        token_losses: torch.Tensor,
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """See ``Objective``; the reference counts for anchored pieces only."""
        if reference is not None:
            counts = torch.tensor([piece.targets for piece in pieces])
            held = torch.tensor([piece.anchored for piece in pieces]).repeat_interleave(counts)
            drift = token_losses - reference.to(token_losses)
            token_losses = torch.where(held.to(drift.device), 0.5 * drift**2, token_losses)
        return piece_sums(pieces, token_losses)

    def divisor(self, pieces: Sequence[Piece]) -> float:
        """The number of target tokens, of pieces that are not anchored if there are some."""
        own = sum(piece.targets for piece in pieces if not piece.anchored)
        return own or sum(piece.targets for piece in pieces)


# Preferences --------------------------------------------------------------------------


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


@dataclass(frozen=True)
class DPO:
    """The mean loss of pairs: the chosen answer becomes likelier beside the rejected one.

    The reference is the model before training: the backbone with the adapter that a job goes
    on from. Fresh factors change nothing, so that without one it is the backbone.

    Attributes:
        loss: ``sigmoid`` (DPO) or ``ipo``.
        beta: pull towards the reference.
        label_smoothing: share of the pairs assumed to be the wrong way round.
        sft_weight: weight of the chosen answer's own mean cross-entropy.
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.2

    pieces = 2
    needs_reference = True
    weighs_held_back = True

    def encode(self, backbone: Backbone, example: Preference, max_length: int) -> Sequence[Piece]:
        """A pair as the chosen and the rejected answer, each after the same prompt."""
        # The longer answer decides how much of the prompt fits, so that both have the same.
        texts = [example.chosen, example.rejected]
        prompt, answers = encode_answers(backbone, example.prompt, texts, max_length)
        return [Piece([*prompt, *ids], len(ids), example.weight) for ids in answers]

    def parts(self, backbone: Backbone, pieces: Sequence[Piece]) -> list[Part]:
        """Every pair in one row, whose stem is the prompt, or in two for an encoder-decoder."""
        parts = []
        for i in range(0, len(pieces), 2):
            pair = pieces[i : i + 2]
            together = Row(pair, common_stem(pair))
            shared = not backbone.seq2seq and takes_masks(backbone, len(together))
            parts.append(Part([together] if shared else [Row([piece]) for piece in pair]))
        return parts

    def losses(
        self,
        pieces: Sequence[Piece],
        token_losses: torch.Tensor,
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """See ``Objective``."""
        assert reference is not None
        policy = -piece_sums(pieces, token_losses).view(-1, 2)
        before = -piece_sums(pieces, reference).view(-1, 2)
        counts = torch.tensor([piece.targets for piece in pieces]).view(-1, 2).to(policy)
        if self.loss == "ipo":
            own, start = policy / counts, before / counts
            losses = ipo_loss(own[:, 0], own[:, 1], start[:, 0], start[:, 1], self.beta)
        else:
            losses = dpo_loss(
                policy[:, 0],
                policy[:, 1],
                before[:, 0],
                before[:, 1],
                self.beta,
                self.label_smoothing,
            )
        return losses - self.sft_weight * policy[:, 0] / counts[:, 0]

    def divisor(self, pieces: Sequence[Piece]) -> float:
        """The number of pairs."""
        return len(pieces) / 2
