"""What an adapter makes a model forget: its loss on general text, and how often it still answers
general questions as before.

Losses are of whole passages; agreement is teacher-forced: after each beginning of the answer that
the model gave without the adapter, is the same token still the likeliest?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from pfi._util.files import write_json
from pfi._util.heap import release_freed
from pfi.inference.generation import greedy_ids
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import holding
from pfi.models.bank.packing import Piece
from pfi.models.scoring import losses_and_hits, mean_losses
from pfi.train.config import ForgettingConfig
from pfi.train.general import probe_passages, probe_questions, question_ids, text_piece

#: Tokens of an answer.
_ANSWER = 16


@dataclass(frozen=True)
class General:
    """How a model does on general text and questions.

    Attributes:
        text_loss: of the passages, nats a token.
        answer_loss: of the answers that the model gave without an adapter; None without questions.
        agreement: share of the tokens of those answers that are still the likeliest; or None.
    """

    text_loss: float
    answer_loss: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Forgetting:
    """A model without an adapter and with it.

    Attributes:
        before, after: what each does.
        bound: the most that the loss on general text may rise; None for any.
    """

    before: General
    after: General
    bound: float | None = None

    @property
    def rise(self) -> float:
        """What the loss on general text has risen by, nats a token."""
        return self.after.text_loss - self.before.text_loss

    @property
    def exceeded(self) -> bool:
        """Whether it forgets too much to be taken into use unasked."""
        return self.bound is not None and not self.rise <= self.bound

    def __str__(self) -> str:
        before, after = self.before.text_loss, self.after.text_loss
        change = 100 * self.rise / before if before else 0.0
        text = f"general text: loss {before:.2f} -> {after:.2f} nats a token ({change:+.0f} %)"
        if self.after.agreement is None:
            return text
        agreed = 100 * self.after.agreement
        return f"{text}; general questions: {agreed:.0f} % of tokens as the model answered before"

    @property
    def sentence(self) -> str:
        """The same as a sentence."""
        text = str(self)
        return f"{text[0].upper()}{text[1:]}."

    def figures(self) -> dict[str, float]:
        """All of them by name, for a manifest or an event."""
        before, after = asdict(self.before), asdict(self.after)
        del before["agreement"]  # with itself
        found = {**after, **{f"{name}_before": value for name, value in before.items()}}
        return {name: round(value, 5) for name, value in found.items() if value is not None}


class _Own(BaseModel):
    """What a model does without an adapter.

    Attributes:
        figures: how it does.
        answers: its answers as tokens.
        likeliest: of all their tokens in order, whether the model that reads the answer finds it
            the likeliest. In bfloat16 some are not, since tokens that are nearly as likely change
            places with the shape of a batch; those say nothing of an adapter.
    """

    figures: General
    answers: list[list[int]]
    likeliest: list[bool]


class GeneralProbe:
    """The probe over one model: its own figures, made once, and those of adapters over it.

    Args:
        backbone: the model without the adapters.
        config: how much is measured.
        folder: where what the model does without an adapter is kept; not kept when None.
    """

    def __init__(
        self, backbone: Backbone, config: ForgettingConfig, folder: Path | None = None
    ) -> None:
        self.backbone, self.config, self.folder = backbone, config, folder
        pieces = [text_piece(backbone, text) for text in probe_passages()[: config.passages]]
        self._texts = [piece for piece in pieces if piece.targets]
        self._prompts = [
            question_ids(backbone, question, _ANSWER)
            for question in probe_questions()[: config.questions]
        ]

    @property
    def before(self) -> General:
        """The model without an adapter."""
        return self._own.figures

    def forgetting(self, adapter: Adapter) -> Forgetting:
        """What an adapter makes the model forget."""
        own = self._own
        text_loss, tokens = self._measure(adapter, own.answers)
        after = General(text_loss)
        if len(tokens):
            agreed = tokens[:, 1][torch.tensor(own.likeliest)]
            after = General(text_loss, float(tokens[:, 0].mean()), float(agreed.mean()))
        return Forgetting(own.figures, after, self.config.bound)

    @cached_property
    def _own(self) -> _Own:
        file = None if self.folder is None else self.folder / f"general-{self._key()}.json"
        if file is not None and file.exists():
            with suppress(ValidationError):  # damaged: it is made again
                return _Own.model_validate_json(file.read_bytes())
        answers = greedy_ids(self.backbone, self._prompts, _ANSWER)
        release_freed()
        text_loss, tokens = self._measure(None, answers)
        figures = General(text_loss)
        if len(tokens):
            figures = General(text_loss, float(tokens[:, 0].mean()), 1.0)
        own = _Own(figures=figures, answers=answers, likeliest=tokens[:, 1].bool().tolist())
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, own.model_dump())
        return own

    def _measure(
        self, adapter: Adapter | None, answers: Sequence[Sequence[int]]
    ) -> tuple[float, torch.Tensor]:
        """The loss on text, and ``(tokens, 2)`` losses and hits of all tokens of the answers."""
        bank, slot = holding(self.backbone, adapter)
        losses = mean_losses(bank.backbone, self._texts, slots=[slot] * len(self._texts))
        text_loss = fmean(losses, [piece.targets for piece in self._texts])
        release_freed()
        asked = [
            Piece([*prompt, *answer], len(answer))
            for prompt, answer in zip(self._prompts, answers, strict=True)
        ]
        found = losses_and_hits(bank.backbone, asked, slots=[slot] * len(asked))
        release_freed()
        return text_loss, torch.cat([torch.empty(0, 2), *found])

    def _key(self) -> str:
        """Another one for other weights, tokens or sizes."""
        digest = hashlib.sha256()
        told: list[Any] = [[list(p.ids) for p in self._texts], self._prompts, _ANSWER]
        digest.update(json.dumps(told).encode())
        for name, weight in self.backbone.model.named_parameters():
            digest.update(f"{name} {weight.dtype}".encode())
            flat = weight.detach().cpu().contiguous().flatten()
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
        return digest.hexdigest()[:24]
