"""Rows that are answered: prompts read in parts, then all rows decoded a token at a time.

Iteration-level scheduling (Orca, OSDI 2022) with prompts in chunks between the steps of those
that decode (Sarathi-Serve, arXiv 2403.02310), every row with its own slot's adapter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch

from pfi.inference.constraints import Matcher
from pfi.inference.detokenizer import Written
from pfi.inference.engine import Penalties, Request
from pfi.inference.streams import Channel
from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.kv_cache import RowStore
from pfi.models.attention import pad_rows, row_lengths
from pfi.models.bank.bank import NO_ADAPTER, AdapterBank
from pfi.models.bank.layers import Route, Sharing, uniform_runs
from pfi.models.families import cache_argument

#: Of a pass over several prompts so much may be padding.
_PADDING = 0.25
#: Where nobody decodes, so many times the usual part of a prompt is read at once.
_UNDISTURBED = 4
#: Tokens of an answer that memory is taken for at once.
_AHEAD = 64


@dataclass(eq=False)
class Row:
    """One request and how far it has come.

    Attributes:
        request: what was asked.
        channel: where the answer goes.
        limit: most new tokens.
        written: the answer's text.
        draws: its own random numbers; None when greedy.
        tokens: the prompt and the answer so far.
        penalties: of what came before; None where there are none.
        matcher: what the answer is held to; None for nothing.
        slot: of its adapter.
        place: in the store of keys and values.
        read: tokens that the model has read.
        cacheable: whether its keys and values may be kept for its owner's next prompt.
    """

    request: Request
    channel: Channel
    limit: int
    written: Written
    draws: random.Random | None
    tokens: list[int]
    penalties: Penalties | None = None
    matcher: Matcher | None = None
    slot: int = NO_ADAPTER
    place: int = -1
    read: int = 0
    cacheable: bool = False

    @property
    def new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)


#: Rows whose next token is due, with their logits ``(rows, vocabulary)``.
Due = tuple[list[Row], torch.Tensor]


class Rows(Protocol):
    """Rows of one kind of model."""

    def __len__(self) -> int: ...

    def room(self, row: Row) -> bool:
        """Whether another row may join."""

    def join(self, row: Row, held: torch.Tensor | None) -> None:
        """Let a row join, with the keys and values of its first tokens if they are known."""

    def leave(self, row: Row, spoilt: bool = False) -> None:
        """Let go of a row; of a spoilt one nothing stays, since it holds numbers that are none."""

    def all(self) -> list[Row]:
        """Those that are here."""

    def passes(self) -> Iterator[Due]:
        """One round: every row that decodes gets its next logits, and some prompts are read."""

    def keep(self, row: Row, tokens: int) -> torch.Tensor | None:
        """A copy of the keys and values of a row's first tokens, if there is such a thing."""


class BatchRows:
    """Rows of a decoder-only model in one batch.

    Args:
        slots: the adapters.
        store: keys and values; rows that decode lie at its beginning, side by side.
        chunk: tokens of prompts read between two steps.
        max_bytes: of keys and values that rows may come to need together; one row always may.
    """

    def __init__(self, slots: AdapterSlots, store: RowStore, chunk: int, max_bytes: int) -> None:
        self.slots, self.store, self.chunk, self.max_bytes = slots, store, chunk, max_bytes
        self._decoding: list[Row] = []  # by place
        self._reading: list[Row] = []  # first come, first read
        self._routes = _Routes(slots, store.max_rows)

    def __len__(self) -> int:
        return len(self._decoding) + len(self._reading)

    def all(self) -> list[Row]:
        return [*self._decoding, *self._reading]

    def room(self, row: Row) -> bool:
        if not len(self):
            return True
        longest = max(len(r.request.prompt) + r.limit for r in [row, *self.all()])
        needed = (len(self) + 1) * longest * self.store.token_bytes
        return len(self) < self.store.max_rows and needed <= self.max_bytes

    def join(self, row: Row, held: torch.Tensor | None) -> None:
        used = {other.place for other in self.all()}
        row.place = next(i for i in range(self.store.max_rows) if i not in used)
        self.store.reserve(row.place + 1, len(row.tokens) + min(row.limit, _AHEAD))
        if held is not None:
            row.read = held.shape[2]
            self.store.write(row.place, held)
        self._reading.append(row)

    def leave(self, row: Row, spoilt: bool = False) -> None:
        if spoilt:
            self.store.wipe(row.place)
        if row in self._reading:
            self._reading.remove(row)
        else:
            last = self._decoding.pop()
            if last is not row:
                self.store.move(last.place, row.place, last.read)
                self._decoding[row.place] = last
                last.place = row.place
        if not len(self):
            self.store.release()

    def keep(self, row: Row, tokens: int) -> torch.Tensor | None:
        return self.store.read(row.place, 0, tokens)

    def passes(self) -> Iterator[Due]:
        if self._decoding:
            yield self._decode()
        if self._reading and (due := self._read()):
            yield due

    def _decode(self) -> Due:
        rows = list(self._decoding)
        ids = torch.tensor([row.tokens[-1:] for row in rows], device=self._device)
        states = self._pass(rows, ids, self._routes.of([row.slot for row in rows]))
        for row in rows:
            row.read += 1
        return rows, self._head(states[:, -1])

    def _read(self) -> Due | None:
        """Read on in the prompts that come first; those that are read now decode."""
        rows, lengths = self._next_parts()
        parts = [r.tokens[r.read : r.read + n] for r, n in zip(rows, lengths, strict=True)]
        ids = pad_rows(parts, 0).to(self._device)
        bank, slots = self.slots.bank, [row.slot for row in rows]
        route = None if set(slots) == {NO_ADAPTER} else bank.route(slots)
        states = self._pass(rows, ids, route)
        for row, length in zip(rows, lengths, strict=True):
            row.read += length
        done = [i for i, row in enumerate(rows) if row.read == len(row.tokens)]
        if not done:
            return None
        last = torch.tensor([lengths[i] - 1 for i in done], device=self._device)
        logits = self._head(states[torch.tensor(done, device=self._device), last])
        for i in done:
            self._promote(rows[i])
        return [rows[i] for i in done], logits

    def _next_parts(self) -> tuple[list[Row], list[int]]:
        """The rows whose prompts are read on now, in their order, and how far."""
        chunk = self.chunk if self._decoding else _UNDISTURBED * self.chunk
        rows: list[Row] = []
        lengths: list[int] = []
        for row in self._reading:
            length = min(len(row.tokens) - row.read, chunk)
            wide = (len(rows) + 1) * max([*lengths, length])
            if rows and (wide > chunk or sum(lengths) + length < (1 - _PADDING) * wide):
                continue
            rows.append(row)
            lengths.append(length)
        return rows, lengths

    def _promote(self, row: Row) -> None:
        """A row whose prompt is read moves to the end of those that decode."""
        self._reading.remove(row)
        target = len(self._decoding)
        other = next((r for r in self._reading if r.place == target), None)
        if other is not None:
            self.store.swap(row.place, target, max(row.read, other.read))
            other.place = row.place
        elif row.place != target:
            self.store.move(row.place, target, row.read)
        row.place = target
        self._decoding.append(row)

    def _pass(self, rows: Sequence[Row], ids: torch.Tensor, route: Route | None) -> torch.Tensor:
        """Hidden states of ``(rows, tokens)`` ids that follow what each row has read."""
        begins = [row.read for row in rows]
        tokens = ids.shape[1]
        positions = self.store.aim([row.place for row in rows], begins, tokens)
        # Without a mask attention takes its fastest path.
        alike = min(begins) == max(begins) and (tokens == 1 or not begins[0])
        model = self._model
        dtype = self.store.dtype if tokens == 1 else model.dtype
        mask = None if alike else self.store.hiding(positions, dtype)
        lengths = [begin + 1 for begin in begins] if tokens == 1 else None
        with self.slots.bank.on(route), row_lengths(lengths):
            states: torch.Tensor = model.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **cache_argument(model.base_model, self.store.cache),
            )[0]
        return states

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.get_output_embeddings()(states)
        return logits

    @property
    def _model(self) -> Any:
        return self.slots.bank.backbone.model

    @property
    def _device(self) -> torch.device:
        return self.slots.bank.backbone.device


class _Routes:
    """Factors of the slots whose rows decode, kept from step to step.

    When a slot's first row comes, its factors are copied to a place that is free.
    """

    def __init__(self, slots: AdapterSlots, max_rows: int) -> None:
        self.slots, self.max_rows = slots, max_rows
        self._begin(slots.bank)

    def _begin(self, bank: AdapterBank) -> None:
        self.bank = bank
        self.on_cpu = bank.backbone.device.type == "cpu"
        # A CPU multiplies single tokens in float32, see BankLayer.
        self.dtype = torch.float32 if self.on_cpu else bank.dtype
        # There the rows of a slot share its factors, and one place is for rows without adapter.
        self.most = min(self.max_rows, bank.capacity + 1) if self.on_cpu else self.max_rows
        self._factors = bank.weights.new_zeros(0, bank.width, dtype=self.dtype)
        self._held: list[tuple[int, int]] = []
        self._by_count: dict[int, Route] = {}
        self._alike: tuple[tuple[int, int, int], Route] | None = None
        self._shared: tuple[list[int], Route] | None = None

    def of(self, slots: Sequence[int]) -> Route | None:
        """The route of rows with these slots, one token each; None without any adapter."""
        bank, stamp = self.slots.bank, self.slots.stamp
        if bank is not self.bank:
            self._begin(bank)
        if set(slots) == {NO_ADAPTER}:
            return None
        kept, per_slot = uniform_runs(slots)
        if len(kept) == 1:
            key = kept[0], stamp(kept[0]), per_slot
            if self._alike is None or self._alike[0] != key:
                self._alike = key, Route(bank.factors(kept), per_slot, bank.dtype)
            return self._alike[1]
        if self.on_cpu and len(set(slots)) < len(slots):
            return self._sharing(slots)
        rows = len(slots)
        self._hold(list(enumerate(slots)), rows)
        if rows not in self._by_count:
            self._by_count[rows] = Route(self._factors[:rows], 1, self.dtype)
        return self._by_count[rows]

    def _sharing(self, slots: Sequence[int]) -> Route:
        """Rows of which several have the same slot: its factors are held and read once.

        Held for every row they would take gigabytes: 29 MB a row of SmolLM2-135M at rank 24.
        """
        wanted = dict.fromkeys(slots)
        at = {slot: place for place, (slot, _) in enumerate(self._held) if slot in wanted}
        free = (place for place in count() if place not in set(at.values()))
        for slot in wanted:
            if slot not in at:
                at[slot] = next(free)
        self._hold([(place, slot) for slot, place in at.items()], max(at.values()) + 1)
        owners = [at[slot] for slot in slots]
        if self._shared is None or self._shared[0] != owners:
            places = max(owners) + 1
            sharing = Sharing.of(owners, places)
            route = Route(self._factors[:places], 1, self.dtype, sharing=sharing)
            self._shared = owners, route
        return self._shared[1]

    def _hold(self, places: Sequence[tuple[int, int]], needed: int) -> None:
        """Have the factors of slots at these places, of which so many are needed."""
        if needed > len(self._factors):
            grown = max(needed, min(2 * len(self._factors), self.most))
            self._factors = self._factors.new_zeros(grown, self.bank.width)
            self._held, self._by_count, self._shared = [(NO_ADAPTER, 0)] * grown, {}, None
        for place, slot in places:
            held = slot, self.slots.stamp(slot)
            if self._held[place] != held:
                self._factors[place] = self.bank.factors([slot])[0]
                self._held[place] = held
