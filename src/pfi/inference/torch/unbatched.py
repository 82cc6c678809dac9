"""Rows of models that are not batched here: each with a cache of the model's own, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.batch import Due, Row
from pfi.models.bank.bank import NO_ADAPTER
from pfi.models.families import (
    accepts,
    cache_argument,
    cache_of,
    positions_argument,
    rope_border,
)


class LoneRows:
    """Rows of an encoder-decoder model, or of a decoder-only one of any kind.

    Args:
        slots: the adapters.
        max_rows: most rows.
    """

    def __init__(self, slots: AdapterSlots, max_rows: int) -> None:
        self.slots, self.max_rows = slots, max_rows
        self._rows: dict[Row, SingleRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def all(self) -> list[Row]:
        return list(self._rows)

    def room(self, row: Row) -> bool:
        return len(self) < self.max_rows

    def join(self, row: Row, held: torch.Tensor | None) -> None:
        self._rows[row] = SingleRow()

    def leave(self, row: Row, spoilt: bool = False) -> None:
        del self._rows[row]

    def keep(self, row: Row, tokens: int) -> torch.Tensor | None:
        return None

    def passes(self) -> Iterator[Due]:
        for row, single in list(self._rows.items()):
            bank = self.slots.bank
            with bank.using(None if row.slot == NO_ADAPTER else [row.slot]):
                yield [row], single.step(bank.backbone, row.request.prompt, row.tokens)
            row.read = len(row.tokens)


class SingleRow:
    """What one row's model remembers; rows of others change nothing."""

    def __init__(self) -> None:
        self._past: Any = None
        self._read = 0
        self._encoded: Any = None

    def step(self, backbone: Any, asked: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """The logits ``(1, vocabulary)`` of the token behind a prompt and its answer so far.

        Args:
            backbone: the model; a bank's with the row's slot in use.
            asked: the prompt.
            tokens: the prompt and the answer, one token longer than the last time.
        """
        model, device = backbone.model, backbone.device
        if backbone.seq2seq:
            prompt = torch.tensor([list(asked)], device=device)
            if self._encoded is None:
                self._encoded = model.get_encoder()(input_ids=prompt)
            begun = [model.config.decoder_start_token_id, *tokens[len(asked) :]]
            given: dict[str, Any] = {"encoder_outputs": self._encoded}
            name = "decoder_input_ids"
        else:
            begun, given, name = list(tokens), {}, "input_ids"
        border = rope_border(model.config)
        if border is not None and self._read <= border < len(begun):
            self._past = None  # the keys so far were turned by the factors of short rows
        self._read = len(begun)
        # A model without a cache reads all of it again.
        new = begun if self._past is None else begun[-1:]
        given[name] = torch.tensor([new], device=device)
        if not backbone.seq2seq:
            given |= positions_argument(model, len(begun) - len(new), given[name])
        if accepts(model, "use_cache"):
            given["use_cache"] = True
        output = model(**given, **cache_argument(model, self._past))
        self._past = cache_of(model, output)
        logits: torch.Tensor = output.logits[:, -1]
        return logits
