"""Rows of a batch decoded token by token: cached keys and values, masks and positions.

Rows can leave the batch between steps, so that an answer that has ended costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pfi.inference.torch.unbatched import SingleRow
from pfi.models.attention import pad_rows, takes_masks
from pfi.models.backbone import Backbone
from pfi.models.families import cache_argument

#: Encoder-decoder families whose rows are batched, the encoder's padded at the right.
_SEQ2SEQ = {
    *("t5", "mt5", "umt5"),
    *("bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "m2m_100"),
}


class Rows(Protocol):
    """Rows in the middle of decoding."""

    def first(self) -> torch.Tensor:
        """Read the prompts; the logits ``(rows, vocabulary)`` of the first new token."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append ``(rows,)`` tokens; the logits ``(rows, vocabulary)`` of the next."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""


def start(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    new: int,
    slots: Sequence[int] | None = None,
) -> Rows:
    """Rows for prompts and up to ``new`` tokens each; one by one for a model of unknown kind."""
    if backbone.seq2seq:
        if backbone.model.config.model_type in _SEQ2SEQ:
            return Seq2seqRows(backbone, prompts, new)
    elif takes_masks(backbone, max(map(len, prompts)) + new):
        return CausalRows(backbone, prompts, new)
    return SingleRows(backbone, prompts, slots)


class SingleRows:
    """Rows of a model of any kind: each read alone, as an engine does, with its own slot."""

    def __init__(
        self, backbone: Backbone, prompts: Sequence[Sequence[int]], slots: Sequence[int] | None
    ) -> None:
        self._backbone = backbone
        self._rows = [
            (SingleRow(), prompt, list(prompt), None if slots is None else [slots[at]])
            for at, prompt in enumerate(prompts)
        ]

    def first(self) -> torch.Tensor:
        logits = []
        for row, prompt, tokens, slot in self._rows:
            with self._backbone.rows(slot):
                logits.append(row.step(self._backbone, prompt, tokens))
        return torch.cat(logits)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        for (_, _, read, _), token in zip(self._rows, tokens.tolist(), strict=True):
            read.append(token)
        return self.first()

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[at] for at in rows]


class GrowingLayer(DynamicLayer):
    """A layer's keys and values in memory taken once, where a step writes only its own token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.used = room, 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``(rows, heads, tokens, width)``; all keys and values so far."""
        if self.keys is None or self.values is None:
            self.keys, self.values = (
                part.new_empty(*part.shape[:2], self.room, part.shape[3])
                for part in (key_states, value_states)
            )
            self.is_initialized = True
        begin, self.used = self.used, self.used + key_states.shape[2]
        self.keys[:, :, begin : self.used] = key_states
        self.values[:, :, begin : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_seq_length(self) -> int:
        return self.used


def _select(cache: Cache, rows: torch.Tensor) -> None:
    for layer in cache.layers:
        layer.batch_select_indices(rows)  # type: ignore[union-attr]


class CausalRows:
    """Rows of a decoder-only model, padded at the left so that they end together."""

    def __init__(self, backbone: Backbone, prompts: Sequence[Sequence[int]], new: int) -> None:
        self.model: Any = backbone.model
        self.ids = pad_rows(prompts, backbone.pad_id, left=True).to(backbone.device)
        lengths = [len(prompt) for prompt in prompts]
        self.lengths = torch.tensor(lengths, device=backbone.device)[:, None]
        self.used = self.ids.shape[1]
        self.room = self.used + new
        count = self.model.config.num_hidden_layers
        self.cache = Cache(layers=[GrowingLayer(self.room) for _ in range(count)])
        #: Added to the attention scores of a step: ``(rows, 1, 1, room)``, None without padding.
        self.mask: torch.Tensor | None = None
        if min(lengths) < self.used:
            self.mask = self._hiding(~self._padding()[:, None, None, :])

    def _padding(self) -> torch.Tensor:
        """Which of the ``(rows, room)`` places are padding."""
        places = torch.arange(self.room, device=self.ids.device)
        return places < self.used - self.lengths

    def _hiding(self, seen: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return zeros.masked_fill_(~seen, torch.finfo(self.model.dtype).min)

    def first(self) -> torch.Tensor:
        if self.mask is None:
            return self._logits(self.ids, None, None)
        length = self.used
        # Padding sees itself: attention over nothing is no number in some kernels.
        square = torch.ones(length, length, dtype=torch.bool, device=self.ids.device)
        seen = square.tril() & ~self._padding()[:, None, :length] | square.tril().triu()
        places = torch.arange(length, device=self.ids.device)
        positions = (places - (length - self.lengths)).clamp(min=0)
        return self._logits(self.ids, self._hiding(seen[:, None]), positions)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.used += 1
        mask = None if self.mask is None else self.mask[..., : self.used]
        positions = self.lengths
        self.lengths = self.lengths + 1
        return self._logits(tokens[:, None], mask, positions)

    def _logits(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> torch.Tensor:
        states = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **cache_argument(self.model.base_model, self.cache),
        )[0]
        logits: torch.Tensor = self.model.get_output_embeddings()(states[:, -1])
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.ids.device)
        _select(self.cache, index)
        self.lengths = self.lengths[index]
        self.mask = None if self.mask is None else self.mask[index]


class Seq2seqRows:
    """Rows of an encoder-decoder model: prompts are encoded once, padded at the right."""

    def __init__(self, backbone: Backbone, prompts: Sequence[Sequence[int]], new: int) -> None:
        self.model: Any = backbone.model
        self.ids = pad_rows(prompts, backbone.pad_id).to(backbone.device)
        mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0).to(backbone.device)
        self.mask = None if bool(mask.all()) else mask
        config = self.model.config
        count = getattr(config, "num_decoder_layers", None) or config.decoder_layers
        own = Cache(layers=[GrowingLayer(new) for _ in range(count)])
        self.cache = EncoderDecoderCache(own, DynamicCache())
        self.encoded: torch.Tensor | None = None

    def first(self) -> torch.Tensor:
        encoder = self.model.get_encoder()
        self.encoded = encoder(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
        return self.step(torch.full_like(self.ids[:, 0], self.model.config.decoder_start_token_id))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded),
            attention_mask=self.mask,
            decoder_input_ids=tokens[:, None],
            use_cache=True,
            **cache_argument(self.model, self.cache),
        ).logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.ids.device)
        _select(self.cache.self_attention_cache, index)
        _select(self.cache.cross_attention_cache, index)
        self.mask = None if self.mask is None else self.mask[index]
        self.encoded = None if self.encoded is None else self.encoded[index]
