"""Who is answered next: requests in the order they came, as rows, adapters and memory allow.

All of it belongs to one thread.  Between two passes of the model rows leave and others join
(continuous batching, Orca, OSDI 2022).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from pfi.errors import BackboneError, ConfigError
from pfi.inference.engine import (
    AdapterRef,
    EngineClosedError,
    EngineStats,
    Finish,
    Likeliest,
    Piece,
)
from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.batch import Row, Rows
from pfi.inference.torch.prefix_cache import Group, PrefixCache
from pfi.inference.torch.sampling import allowed_only, biased, likeliest, nucleus, penalised
from pfi.models.bank.bank import NO_ADAPTER
from pfi.models.scoring import pass_tokens, score_ids

#: Of so many requests that cannot be let in yet, adapters are read ahead.
_AHEAD = 8


@dataclass(eq=False)
class Scores:
    """Targets to score after a prompt, and where their scores go."""

    prompt: Sequence[int]
    targets: Sequence[Sequence[int]]
    adapter: AdapterRef | None
    future: Future[list[float]]
    slot: int = NO_ADAPTER

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.targets))


@dataclass
class _Counts:
    """See ``EngineStats``."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0


class Scheduler:
    """Requests that wait and rows that are answered.

    Args:
        slots: the adapters.
        rows: the rows, by the kind of model.
        prefixes: beginnings of prompts that are kept.
        end_ids: the tokens that end an answer.
    """

    def __init__(
        self, slots: AdapterSlots, rows: Rows, prefixes: PrefixCache, end_ids: frozenset[int]
    ) -> None:
        self.slots, self.rows, self.prefixes, self.end_ids = slots, rows, prefixes, end_ids
        self.waiting: deque[Row | Scores] = deque()
        self.scoring: list[Scores] = []
        self._counts = _Counts()

    def stats(self) -> EngineStats:
        """Counts so far; any thread may ask."""
        return EngineStats(
            **vars(self._counts),
            running=len(self.rows) + len(self.scoring),
            waiting=len(self.waiting),
            adapters=len(self.slots),
            adapter_loads=self.slots.loads,
            prefix_bytes=self.prefixes.bytes,
        )

    def add(self, job: Row | Scores) -> None:
        """Queue a request."""
        self._counts.requests += 1
        self.waiting.append(job)

    def forget(self, owner: str) -> None:
        """Drop an owner's beginnings, those of rows under way included."""
        self.prefixes.forget(owner)
        for row in [*self.rows.all(), *(job for job in self.waiting if isinstance(job, Row))]:
            if row.request.owner == owner:
                row.cacheable = False

    def step(self) -> bool:
        """One round of all that can be done now; whether there was anything."""
        self._drop_cancelled()
        self._admit()
        busy = bool(self.scoring or len(self.rows))
        if self.scoring:
            self._score()
        if len(self.rows):
            self._decode()
        return busy

    def stop(self, error: Exception | None = None) -> None:
        """End everything: as cancelled, or with an error."""
        rows = self.rows.all()
        for row in rows:
            self._leave(row)
        for job in [*rows, *self.waiting, *self.scoring]:
            if error is None and isinstance(job, Row):
                job.channel.put(Piece("", 0, finish="cancelled"))
            else:
                _fail(job, error or EngineClosedError())
        self.waiting.clear()
        self.scoring.clear()

    # Joining ------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        for row in self.rows.all():
            if row.channel.cancelled:
                self._leave(row)
                row.channel.put(Piece("", 0, finish="cancelled"))
        gone = [job for job in self.waiting if isinstance(job, Row) and job.channel.cancelled]
        for row in gone:
            self.waiting.remove(row)
            row.channel.put(Piece("", 0, finish="cancelled"))
        if gone:
            self.slots.forget({ref.key for ref in map(_ref, self.waiting) if ref})

    def _admit(self) -> None:
        """Let requests in, first come, first served.

        One whose adapter is still being read is passed by; one that finds no row is passed by
        scores only, which need none; one that finds no slot by nobody, or it might wait for ever.
        """
        full, ahead = False, 0
        for job in list(self.waiting):
            ref, blocked = _ref(job), full and isinstance(job, Row)
            if blocked and ahead >= _AHEAD:
                continue
            if not self.slots.ready(ref, begin=ahead < _AHEAD) or blocked:
                ahead += 1
                continue
            if isinstance(job, Row) and not self.rows.room(job):
                full = True
                ahead += 1
                continue
            try:
                slot = self.slots.take(ref)
            except Exception as error:
                self.waiting.remove(job)
                _fail(job, error)
                continue
            if slot is None:
                return
            self.waiting.remove(job)
            job.slot = slot
            if isinstance(job, Scores):
                self.scoring.append(job)
                continue
            try:
                self._join(job)
            except RuntimeError as error:  # no memory
                self.slots.give(slot)
                _fail(job, error)

    def _join(self, row: Row) -> None:
        prompt = row.request.prompt
        # The last token is always read: its logits are needed.
        held = self.prefixes.find(_group(row), prompt[:-1]) if row.cacheable else None
        row.channel.cached = 0 if held is None else held.shape[2]
        self._counts.prompt_tokens += len(prompt)
        self._counts.cached_tokens += row.channel.cached
        self.rows.join(row, held)

    def _leave(self, row: Row, spoilt: bool = False) -> None:
        self.rows.leave(row, spoilt)
        self.slots.give(row.slot)

    # Passes -------------------------------------------------------------------------

    def _score(self) -> None:
        """Score those that came first, as many as fit in a pass."""
        backbone = self.slots.bank.backbone
        budget = pass_tokens(backbone)
        picked = [self.scoring.pop(0)]
        while self.scoring and sum(map(len, picked)) + len(self.scoring[0]) <= budget:
            picked.append(self.scoring.pop(0))
        chosen = [job.slot for job in picked]
        try:
            found = score_ids(
                backbone,
                [job.prompt for job in picked],
                [job.targets for job in picked],
                slots=None if set(chosen) == {NO_ADAPTER} else chosen,
            )
        except Exception as error:
            for job in picked:
                _fail(job, error)
        else:
            for job, scores in zip(picked, found, strict=True):
                job.future.set_result(scores)
        for job in picked:
            self.slots.give(job.slot)

    def _decode(self) -> None:
        try:
            for rows, logits in self.rows.passes():
                self._counts.steps += 1
                logits = logits.float()  # a CPU ranks bfloat16 slowly
                masks = self._masks(rows, logits.shape[-1])
                tokens = choose(logits, rows, masks)
                logprobs = _logprobs(logits, tokens)
                top = [
                    likeliest(logits[at], row.request.sampling.top_logprobs)
                    for at, row in enumerate(rows)
                ]
                for at, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                    if at in masks and masks[at] is None:
                        continue
                    self._extend(row, token, logprobs[at], top[at])
        except Exception as error:  # a bug, or no memory: those under way end, the engine goes on
            for row in self.rows.all():
                self._leave(row, spoilt=True)
                _fail(row, error)

    def _masks(self, rows: Sequence[Row], size: int) -> dict[int, np.ndarray | None]:
        """Which of ``size`` tokens rows with a grammar may go on with, by the rows' numbers.

        A row whose grammar is too complex ends; it has None.
        """
        masks: dict[int, np.ndarray | None] = {}
        for at, row in enumerate(rows):
            if row.matcher is None or row.written.in_thought:
                continue
            try:
                masks[at] = row.matcher.allowed(size)
            except ConfigError as error:
                masks[at] = None
                self._leave(row)
                _fail(row, error)
        return masks

    def _extend(self, row: Row, token: int, logprob: float, top: Likeliest) -> None:
        """Another token of an answer."""
        if not math.isfinite(logprob):
            self._leave(row, spoilt=True)
            what = "the model's scores are no numbers"
            _fail(row, BackboneError(what, fix="train the adapter anew, or answer without it"))
            return
        first = not row.new
        text, count = "", 0
        finish: Finish | None = None
        if token in self.end_ids:
            finish = "stop"
        else:
            self._counts.new_tokens += 1
            row.tokens.append(token)
            if row.penalties:
                row.penalties.add(token)
            held = row.matcher is not None and not row.written.in_thought
            text, count = row.written.add(token), 1
            if row.matcher is not None and held:
                row.matcher.add(token)
            if row.written.stopped or (row.matcher is not None and row.matcher.ended):
                finish = "stop"
            elif (
                row.new == row.limit
                or row.new - row.written.hidden >= row.request.sampling.max_tokens
            ):
                finish = "length"
        if finish:
            text += row.written.end()
        ids, tops = ((token,), (top,)) if count else ((), ())
        piece = Piece(text, count, (logprob,) * count, finish, ids, tops)
        if row.cacheable and (first or piece.finish):
            self._keep(row, row.read)
        if piece.finish:
            self._leave(row)
        row.channel.put(piece)

    def _keep(self, row: Row, tokens: int) -> None:
        """Keep what was read of a row for its owner's next prompt."""
        group, beginning = _group(row), row.tokens[:tokens]
        if not self.prefixes.known(group, beginning):
            held = self.rows.keep(row, tokens)
            if held is not None:
                self.prefixes.put(group, beginning, held)


def choose(
    logits: torch.Tensor, rows: Sequence[Row], masks: Mapping[int, np.ndarray | None]
) -> torch.Tensor:
    """Tokens ``(rows,)``: each row by its own settings and its own random numbers.

    Args:
        logits: ``(rows, vocabulary)``.
        rows: in the same order.
        masks: the tokens that a row may go on with, by its number, where not any.
    """
    logits = penalised(logits, [row.penalties for row in rows])
    logits = biased(logits, [row.request.sampling.logit_bias for row in rows])
    logits = allowed_only(logits, {at: mask for at, mask in masks.items() if mask is not None})
    tokens = logits.argmax(-1)
    alike: dict[tuple[float, int, float], list[int]] = {}
    for at, row in enumerate(rows):
        if row.draws is not None:
            own = row.request.sampling
            alike.setdefault((own.top_p, own.top_k, own.min_p), []).append(at)
    for (top_p, top_k, min_p), picked in alike.items():
        index = torch.tensor(picked, device=logits.device)
        heat = [[rows[at].request.sampling.temperature] for at in picked]
        scaled = logits[index] / torch.tensor(heat, device=logits.device)
        drawn = [draws.random() for at in picked if (draws := rows[at].draws) is not None]
        tokens[index] = nucleus(scaled, top_p, drawn, top_k, min_p)
    return tokens


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    found: list[float] = (chosen - logits.logsumexp(-1)).tolist()
    return found


def _group(row: Row) -> Group:
    adapter = row.request.adapter
    return row.request.owner, "" if adapter is None else adapter.key


def _ref(job: Row | Scores) -> AdapterRef | None:
    return job.request.adapter if isinstance(job, Row) else job.adapter


def _fail(job: Row | Scores, error: Exception) -> None:
    if isinstance(job, Row):
        job.channel.fail(error)
    else:
        job.future.set_exception(error)
