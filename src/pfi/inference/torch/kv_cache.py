"""Keys and values of rows of different lengths, which join and leave between passes.

A row has a place in one buffer and its own length, so that a pass over any of them writes and
reads where they lie (iteration-level batches of Orca, OSDI 2022).  The buffer grows with the
longest row instead of reserving whole contexts, the waste that vLLM (arXiv 2309.06180) names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from pfi.models.attention import MATMUL, ROWS
from pfi.models.families import cache_of

#: The buffer grows by at least so many tokens.
_ROOM = 64


@dataclass(frozen=True)
class Aim:
    """Where the pass under way reads and writes.

    Attributes:
        rows: the rows' places; None where they lie side by side.
        first, count: of those that do.
        flat: ``(rows * tokens,)`` places of the new tokens in the flattened buffer.
        upto: tokens that the longest row has after the pass.
    """

    rows: torch.Tensor | None
    first: int
    count: int
    flat: torch.Tensor
    upto: int


class RowStore:
    """Keys and values of up to so many rows.

    Args:
        model: a decoder-only model that takes masks; its layers must be alike.
        max_rows: most rows.
        max_length: most tokens of a row.

    Attributes:
        dtype: of the keys and values.
        cache: what the model is given as its cache; aim it before every pass.
        token_bytes: what one token of one row takes.
    """

    def __init__(self, model: Any, max_rows: int, max_length: int) -> None:
        self.max_rows, self.max_length = max_rows, max_length
        probe = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            output = model.base_model(input_ids=probe, use_cache=True)
        held = cache_of(model.base_model, output)
        key = held.layers[0].keys
        own = model.config._attn_implementation in (MATMUL, ROWS)
        self.dtype = torch.float32 if own else key.dtype  # see attention.attend
        shape = len(held.layers), 2, 0, 0, key.shape[1], key.shape[3]
        # (layers, 2, rows, tokens, heads, width): zeros, since what is masked must be finite.
        self._data = torch.zeros(shape, dtype=self.dtype, device=key.device)
        self._layers = self._by_layer()
        self._aim: Aim | None = None
        self.cache = Cache(layers=[_StoredLayer(self, at) for at in range(len(held.layers))])
        self.token_bytes = 2 * len(held.layers) * key.numel() * self._data.element_size()

    @property
    def room(self) -> int:
        """Tokens that a row has memory for at present."""
        return int(self._data.shape[3])

    @property
    def bytes(self) -> int:
        return self._data.numel() * self._data.element_size()

    def reserve(self, rows: int, tokens: int) -> None:
        """Have memory for so many rows of so many tokens; what is there stays."""
        old = self._data
        if rows <= old.shape[2] and tokens <= old.shape[3]:
            return
        if rows > old.shape[2]:
            rows = min(max(rows, 2 * old.shape[2]), self.max_rows)
        if tokens > old.shape[3]:
            wanted = max(tokens, old.shape[3] * 3 // 2)
            tokens = min(-(-wanted // _ROOM) * _ROOM, max(self.max_length, tokens))
        rows, tokens = max(rows, old.shape[2]), max(tokens, old.shape[3])
        self._data = old.new_zeros(*old.shape[:2], rows, tokens, *old.shape[4:])
        self._data[:, :, : old.shape[2], : old.shape[3]] = old
        self._layers = self._by_layer()

    def release(self) -> None:
        """Give the memory back; all rows are lost."""
        shape = self._data.shape
        self._data = self._data.new_zeros(*shape[:2], 0, 0, *shape[4:])
        self._layers = self._by_layer()

    def _by_layer(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Of every layer its keys and its values: by row and token, and by token alone."""
        return [[(part, part.flatten(0, 1)) for part in layer] for layer in self._data]

    def read(self, place: int, begin: int, end: int) -> torch.Tensor:
        """A copy ``(layers, 2, tokens, heads, width)`` of some tokens of a row."""
        return self._data[:, :, place, begin:end].clone()

    def write(self, place: int, held: torch.Tensor) -> None:
        """Let a row begin with these keys and values, as ``read`` gave them."""
        self._data[:, :, place, : held.shape[2]] = held

    def move(self, source: int, target: int, tokens: int) -> None:
        """Move a row of so many tokens to a free place."""
        self._data[:, :, target, :tokens] = self._data[:, :, source, :tokens]

    def swap(self, first: int, second: int, tokens: int) -> None:
        """Exchange two rows of at most so many tokens."""
        kept = self._data[:, :, first, :tokens].clone()
        self._data[:, :, first, :tokens] = self._data[:, :, second, :tokens]
        self._data[:, :, second, :tokens] = kept

    def wipe(self, place: int) -> None:
        """Zeros for a row, which could hold numbers that are none."""
        self._data[:, :, place : place + 1] = 0

    def aim(self, places: Sequence[int], begins: Sequence[int], tokens: int) -> torch.Tensor:
        """Say which rows the next pass reads, and from which token on it writes ``tokens``.

        Returns:
            ``(rows, tokens)`` positions of the new tokens.
        """
        upto = max(begins) + tokens
        self.reserve(max(places) + 1, upto)
        device = self._data.device
        flat = [place * self.room + begin for place, begin in zip(places, begins, strict=True)]
        # One tensor, since a step of few rows takes hardly longer than such calls.
        at = torch.tensor([places, begins, flat], device=device)
        written, positions = at[2], at[1, :, None]
        if tokens > 1:
            further = torch.arange(tokens, device=device)
            written = (written[:, None] + further).flatten()
            # Padding could lie beyond the last position that a model knows.
            positions = (positions + further).clamp(max=self.max_length - 1)
        first, count = places[0], len(places)
        side_by_side = list(places) == list(range(first, first + count))
        self._aim = Aim(None if side_by_side else at[0], first, count, written, upto)
        return positions

    def hiding(self, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores of ``(rows, tokens)`` positions: ``(rows, 1, tokens, keys)``.

        A token sees the row up to itself: what lies beyond is of a shorter row, or an older one.
        """
        assert self._aim is not None
        places = torch.arange(self._aim.upto, device=positions.device)
        hidden = places > positions[:, None, :, None]
        zeros = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
        return zeros.masked_fill_(hidden, torch.finfo(dtype).min)

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``(rows, heads, tokens, width)``; all keys and values of these rows."""
        aim = self._aim
        assert aim is not None
        found = []
        for (held, by_token), new in zip(self._layers[layer], (keys, values), strict=True):
            by_token.index_copy_(0, aim.flat, new.transpose(1, 2).flatten(0, 1).to(self.dtype))
            rows = held.narrow(0, aim.first, aim.count) if aim.rows is None else held[aim.rows]
            found.append(rows.narrow(1, 0, aim.upto).transpose(1, 2))
        return found[0], found[1]


class _StoredLayer(DynamicLayer):
    """A layer of the store, as transformers wants it."""

    def __init__(self, store: RowStore, at: int) -> None:
        super().__init__()
        self.store, self.at = store, at
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.store.update(self.at, key_states, value_states)

    def get_seq_length(self) -> int:
        """Only asked for where no positions are given; we always give them."""
        return 0
