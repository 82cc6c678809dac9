"""Rows of models that are not batched here: each with a cache of the model's own, in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.batch import Due, Row
from pfi.models.bank.bank import NO_ADAPTER


class LoneRows:
    """Rows of an encoder-decoder model, or of a decoder-only one of any kind.

    Args:
        slots: the adapters.
        max_rows: most rows.
    """

    def __init__(self, slots: AdapterSlots, max_rows: int) -> None:
        self.slots, self.max_rows = slots, max_rows
        self._rows: dict[Row, _Lone] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def all(self) -> list[Row]:
        return list(self._rows)

    def room(self, row: Row) -> bool:
        return len(self) < self.max_rows

    def join(self, row: Row, held: torch.Tensor | None) -> None:
        self._rows[row] = _Lone()

    def leave(self, row: Row, spoilt: bool = False) -> None:
        del self._rows[row]

    def keep(self, row: Row, tokens: int) -> torch.Tensor | None:
        return None

    def passes(self) -> Iterator[Due]:
        for row, lone in list(self._rows.items()):
            bank = self.slots.bank
            with bank.using(None if row.slot == NO_ADAPTER else [row.slot]):
                yield [row], lone.step(bank.backbone, row)
            row.read = len(row.tokens)


class _Lone:
    """What one row's model remembers."""

    def __init__(self) -> None:
        self._past: Any = None
        self._encoded: torch.Tensor | None = None

    def step(self, backbone: Any, row: Row) -> torch.Tensor:
        """The logits ``(1, vocabulary)`` of the row's next token."""
        model, device = backbone.model, backbone.device
        if backbone.seq2seq:
            prompt = torch.tensor([row.request.prompt], device=device)
            if self._encoded is None:
                self._encoded = model.get_encoder()(input_ids=prompt).last_hidden_state
            begun = [model.config.decoder_start_token_id, *row.tokens[len(row.request.prompt) :]]
            given: dict[str, Any] = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self._encoded)
            }
            name = "decoder_input_ids"
        else:
            begun, given, name = row.tokens, {}, "input_ids"
        # A model without a cache reads all of it again.
        new = begun if self._past is None else begun[-1:]
        given[name] = torch.tensor([new], device=device)
        output = model(**given, past_key_values=self._past, use_cache=True)
        self._past = getattr(output, "past_key_values", None)
        logits: torch.Tensor = output.logits[:, -1]
        return logits
