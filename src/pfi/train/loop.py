"""The training loop: many adapters at a time, users are a batch dimension of a bank.

Each round takes every active job one step further.  A job's step equals a step of the same
adapter trained alone: its own loss, clipping, rate and AdamW state.  What is minimised is an
objective that is passed in.  Only targets get logits, beginnings that the examples of a step
share are computed once, and blocks below the lowest adapted one run once per example.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pfi._util.heap import Releaser
from pfi.errors import StorageError
from pfi.models.adapters import Adapter
from pfi.models.attention import takes_masks
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import AdapterBank
from pfi.models.bank.frozen_layers import split
from pfi.models.bank.layers import Dropout
from pfi.models.bank.packing import (
    Piece,
    Row,
    batch,
    padded_length,
    passes,
    target_losses,
)
from pfi.models.bank.recompute import activations_fit, recomputing
from pfi.models.families import block_count, width_of
from pfi.train import _state as bank_state
from pfi.train._state import JobState, RunState
from pfi.train.config import TrainConfig
from pfi.train.general import anchored_pieces, with_anchors
from pfi.train.job import Job, OnStep, TrainResult, batches, hold_back, rate_at
from pfi.train.objectives import CrossEntropy, Objective, Part, part_losses
from pfi.train.optim import SlotAdamW, clip
from pfi.train.precision import precision_of

#: Tokens of one micro-batch by device, see ``token_budget``.
_TOKENS = {"cpu": 512, "cuda": 16384}
#: Numbers of a CPU's micro-batch, tokens by hidden size, below which calls cost more than work.
_SMALLEST_MICRO_BATCH = 1 << 17
#: Cached hidden states of one job, in bytes; beyond, its frozen layers run at every step.
_CACHE = 1 << 28
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass
class ActiveJob:
    """A job that is being trained, in a slot of the bank.

    Attributes:
        job: whose it is.
        slot: where.
        pieces: its examples as tokens; ``Objective.pieces`` of them an example.
        held_back: those of the examples that are measured instead.
        plan: positions of the examples of every step.
        epoch: steps of an epoch.
        reference: target losses of every example before training, where the objective needs
            them, or None.
        held_back_reference: the same of the held-back examples.
        step: steps done.
        losses: the loss of each.
        seconds: its share of the time.
        best_loss: the lowest held-back loss.
        best: the factors that gave it, or None.
        without_improvement: epochs since.
        stopped: why it ended early, or None.
    """

    job: Job
    slot: int
    pieces: Sequence[Piece]
    held_back: Sequence[Piece]
    plan: list[list[int]]
    epoch: int
    reference: Sequence[torch.Tensor] | None = None
    held_back_reference: Sequence[torch.Tensor] | None = None
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best_loss: float = float("inf")
    best: torch.Tensor | None = None
    without_improvement: int = 0
    stopped: str | None = None

    @property
    def ended(self) -> bool:
        return self.stopped is not None or self.step == len(self.plan)

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.epoch == 0 or self.step == len(self.plan)


@dataclass
class Step:
    """The next step of one active job: what it computes."""

    active: ActiveJob
    parts: list[Part]

    @property
    def rows(self) -> list[Row]:
        return [row for part in self.parts for row in part.rows]

    @property
    def length(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def size(self) -> int:
        """Tokens, padding included."""
        return len(self.rows) * self.length

    @property
    def pieces(self) -> list[Piece]:
        return [piece for part in self.parts for piece in part.pieces]

    @property
    def cached(self) -> bool:
        """Whether its pieces come with hidden states of the frozen layers."""
        return self.parts[0].rows[0].pieces[0].hidden is not None


def token_budget(backbone: Backbone) -> int:
    """Tokens of one micro-batch: enough to keep the device busy, few enough for little memory."""
    tokens = _TOKENS.get(backbone.device.type, 512)
    return max(tokens, _SMALLEST_MICRO_BATCH // width_of(backbone.model.config))


class BankTrainer:
    """Trains a working set of jobs together; as one ends, the next takes its slot.

    Args:
        working_set: jobs in memory at a time.
        tokens: of one micro-batch; halved by itself when memory runs out.
        save_seconds: how often unfinished jobs are saved, where a state folder is given.
        objective: what is minimised; the cross-entropy of target tokens by default.
    """

    together = True

    def __init__(
        self,
        working_set: int = 16,
        tokens: int | None = None,
        save_seconds: float = 60.0,
        objective: Objective | None = None,
    ) -> None:
        self.working_set, self.tokens, self.save_seconds = working_set, tokens, save_seconds
        self.objective = objective

    def train_many(
        self,
        backbone: Backbone,
        jobs: Iterable[Job],
        config: TrainConfig,
        *,
        on_step: OnStep | None = None,
        state: Path | None = None,
    ) -> Iterator[tuple[Job, TrainResult | None]]:
        """See ``Trainer.train_many``."""
        size = self.working_set
        if isinstance(jobs, Sequence):
            size = min(size, max(1, len(jobs)))
        run = BankRun(backbone, iter(jobs), config, on_step, size, self.tokens, self.objective)
        yield from run.results(state, self.save_seconds)


class BankRun:
    """One call of ``train_many``; other kinds of training replace the methods of a slot.

    Args:
        backbone: beneath the adapters.
        jobs: drawn from as room becomes free.
        config: the same for all.
        on_step: called after every step.
        size: jobs in memory at a time.
        tokens: of one micro-batch; see ``token_budget`` when None.
        objective: what is minimised; the cross-entropy of target tokens by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        jobs: Iterator[Job],
        config: TrainConfig,
        on_step: OnStep | None,
        size: int,
        tokens: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.jobs, self.config, self.on_step = jobs, config, on_step
        self.objective: Objective = objective or CrossEntropy()
        self.tokens = tokens or token_budget(backbone)
        precision = precision_of(config, backbone)
        self.bank = AdapterBank(backbone, config, size, precision=precision)
        self.backbone: Backbone = self.bank.backbone
        self.optimizer = SlotAdamW(self.bank, config.weight_decay)
        self.active_jobs: list[ActiveJob] = []
        self._release = Releaser()
        self._recompute = False  # once memory ran out though nothing was left to divide
        self.drawn = 0
        #: The layers below the lowest adapter, and the model without them; None for a whole model.
        self._frozen_layers: Any = None
        self._adapted_layers: Backbone | None = None
        if config.layers != "all" and takes_masks(backbone, 1):
            last = int(config.layers.partition(":")[2])
            model = self.bank.backbone.model
            halves = split(model, block_count(model.config) - last)
            if halves is not None:
                self._frozen_layers = halves.lower
                self._adapted_layers = self.bank.at(halves.upper)

    def results(
        self, state: Path | None = None, save_seconds: float = 60.0
    ) -> Iterator[tuple[Job, Any]]:
        """Rounds until all jobs have ended.

        Raises:
            StorageError: the state is damaged or belongs to other jobs.
        """
        if state is not None:
            self.restore(state)
        saved = time.monotonic()
        while True:
            yield from self._admit()
            if not self.active_jobs:
                break
            for group in self._groups():
                self._advance(group)
            for active in [active for active in self.active_jobs if active.ended]:
                yield active.job, self._leave(active)
            if state is not None and time.monotonic() - saved >= save_seconds:
                self.save(state)
                saved = time.monotonic()
        if state is not None:
            bank_state.remove(state)

    # Jobs ---------------------------------------------------------------------------

    def _admit(self) -> Iterator[tuple[Job, None]]:
        """Fill the free slots; jobs without examples are given back at once."""
        while self.bank.free:
            job = next(self.jobs, None)
            if job is None:
                return
            self.drawn += 1
            if self.enter(job) is None:
                yield job, None

    def enter(self, job: Job) -> ActiveJob | None:
        """Put a job in a free slot; None when it has no examples."""
        pieces = self.encode(job)
        if not pieces:
            return None
        own, newest = (
            [*chain.from_iterable(examples)]
            for examples in hold_back(self._examples(pieces), self.config.held_back)
        )
        anchored = self._anchored(job)
        trained, held_back = self._cached([*own, *anchored]), self._cached(newest)
        plan = self.plan(job, trained[: len(own)])
        if anchored:
            plan = with_anchors(plan, len(own), len(anchored), self.config, job.seed)
        slot = self.open(job)
        self.optimizer.reset(slot)
        epoch = -(-len(self._examples(own)) // self.config.batch_size)
        active = ActiveJob(job, slot, trained, held_back, plan, epoch)
        if self.objective.needs_reference:
            active.reference = self._token_losses(slot, trained)
            active.held_back_reference = self._token_losses(slot, held_back)
        elif anchored:
            active.reference = self._anchors(trained)
        self.active_jobs.append(active)
        return active

    def encode(self, job: Job) -> Sequence[Piece]:
        """A job's examples as tokens, ``Objective.pieces`` pieces each."""
        backbone, longest = self.bank.backbone, self.config.max_length
        examples = [self.objective.encode(backbone, example, longest) for example in job.load()]
        return [*chain.from_iterable(examples)]

    def _anchored(self, job: Job) -> list[Piece]:
        """General text and questions beside a job's examples; none beside preferences."""
        if not self.config.general or not isinstance(self.objective, CrossEntropy):
            return []
        return anchored_pieces(self.bank.backbone, job.seed, self.config.max_length)

    def _anchors(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """The losses of the targets of anchored pieces without an adapter; zeros for the others."""
        anchored = [piece for piece in pieces if piece.anchored]
        found = iter(self._token_losses(None, anchored))
        return [next(found) if p.anchored else torch.zeros(p.targets) for p in pieces]

    def plan(self, job: Job, pieces: Sequence[Piece]) -> list[list[int]]:
        """The positions of the examples of every step of a job."""
        lengths = [part.length for part in self._parts(pieces)]
        config = self.config
        return batches(lengths, config.batch_size, config.epochs, random.Random(job.seed))

    def open(self, job: Job) -> int:
        """A slot with the factors that a job begins with."""
        return self.bank.new(job.seed) if job.start is None else self.bank.add(job.start)

    def result(self, active: ActiveJob) -> Any:
        """What is yielded with a job that has ended."""
        adapter: Adapter = self.bank.adapter(active.slot)
        examples = len(self._examples([p for p in active.pieces if not p.anchored]))
        return TrainResult(adapter, active.losses, active.seconds, active.stopped, examples)

    def _leave(self, active: ActiveJob) -> Any:
        """Take a job out of the bank."""
        if active.best is not None:
            self.bank.weights[active.slot] = active.best
        result = self.result(active)
        self.bank.remove(active.slot)
        self.active_jobs.remove(active)
        return result

    def _examples(self, pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
        """The pieces of each example."""
        each = self.objective.pieces
        return [pieces[i : i + each] for i in range(0, len(pieces), each)]

    def _parts(self, pieces: Sequence[Piece]) -> list[Part]:
        """Examples as rows of their own."""
        layout = self.objective.parts
        return [p for example in self._examples(pieces) for p in layout(self.backbone, example)]

    @torch.no_grad()
    def _cached(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Pieces with the hidden states that the frozen layers give them, if these are few."""
        width = width_of(self.backbone.model.config)
        each = width * (2 if self.bank.dtype == torch.bfloat16 else 4)
        lengths = [len(piece) for piece in pieces]
        if self._frozen_layers is None or sum(lengths) * each > _CACHE:
            return pieces
        if lengths and not takes_masks(self.backbone, max(lengths)):
            return pieces  # such rows are read by the whole model in its own way
        cached: list[Piece] = list(pieces)
        for picked in passes(lengths, self.tokens):
            rows = [Row([pieces[i]]) for i in picked]
            length = padded_length(self.backbone, rows)
            packed = batch(rows, self.bank.weights.device, length)
            states = self._frozen_layers(input_ids=packed.ids, use_cache=False)[0]
            for i, row in zip(picked, states, strict=True):
                piece = pieces[i]
                cached[i] = replace(piece, hidden=row[: len(piece)].clone())
            self._release()
        return cached

    def _model(self, cached: bool) -> Backbone:
        """The model that reads pieces with or without hidden states of the frozen layers."""
        if not cached:
            return self.backbone
        assert self._adapted_layers is not None
        return self._adapted_layers

    # Steps --------------------------------------------------------------------------

    def _groups(self) -> Iterator[list[Step]]:
        """Every job's next step, in groups of like size that fill a micro-batch."""
        steps = [self.next_step(active) for active in self.active_jobs]
        steps.sort(key=lambda step: (step.cached, len(step.rows), step.length))
        group: list[Step] = []
        for step in steps:
            alike = group and (
                len(step.rows) == len(group[0].rows)
                and step.cached == group[0].cached
                and (len(group) + 1) * step.size <= self.tokens
            )
            if group and not alike:
                yield group
                group = []
            group.append(step)
        yield group

    def next_step(self, active: ActiveJob) -> Step:
        """The rows of a job's next step, with the reference losses of their targets."""
        picked, each = active.plan[active.step], self.objective.pieces
        pieces = [piece for i in picked for piece in active.pieces[i * each : (i + 1) * each]]
        parts = self.objective.parts(self.backbone, pieces)
        if active.reference is None:
            return Step(active, parts)
        references = iter([active.reference[i] for i in picked])
        for n, part in enumerate(parts):
            own = [next(references) for _ in self._examples(part.pieces)]
            parts[n] = replace(part, reference=torch.cat(own))
        return Step(active, parts)

    def _advance(self, group: list[Step]) -> None:
        """One step of every job of a group; less at once when memory runs out."""
        started = time.perf_counter()
        try:
            losses, gradients = self.gradients(group)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not any(text in str(error).lower() for text in _OUT_OF_MEMORY):
                raise
            if len(group) == 1 and all(len(part) == 1 for part in self._micro_batches(group)):
                if self._recompute or self.config.dropout:
                    raise  # a single part cannot be made smaller
                self._recompute = True
            else:
                size = sum(step.size for step in group)
                self.tokens = max(1, min(self.tokens, size) // 2)
        else:
            self._update(group, losses, gradients)
            seconds = (time.perf_counter() - started) / len(group)
            for step in group:
                self._account(step.active, seconds)
            return
        # Outside of the handler, whose exception keeps the failed micro-batch's tensors alive.
        middle = (len(group) + 1) // 2
        for half in (group[:middle], group[middle:]):
            if half:
                self._advance(half)

    def gradients(self, group: list[Step]) -> tuple[list[float], torch.Tensor]:
        """The losses of like steps, and their gradients ``(steps, width)``."""
        slots = [step.active.slot for step in group]
        divisors = [self.objective.divisor(step.pieces) for step in group]
        total = torch.zeros(len(group))
        gradients: torch.Tensor | None = None
        for micro_batch in self._micro_batches(group):
            rows = [row for _, part in micro_batch for row in part.rows]
            owners = [number for number, part in micro_batch for _ in part.rows]
            dropout = self._dropout([group[number].active for number in owners], rows)
            model = self._model(group[0].cached)
            with (
                self.bank.recording([slots[i] for i in owners], dropout=dropout) as recorded,
                recomputing(model.model) if self._recomputes(model, rows) else nullcontext(),
            ):
                token_losses = target_losses(model, rows)
                losses = self._losses([part for _, part in micro_batch], token_losses)
                step_of, scales = [], []
                for number, part in micro_batch:
                    for example in self._examples(part.pieces):
                        step_of.append(number)
                        scales.append(example[0].weight / divisors[number])
                index = torch.tensor(step_of, device=losses.device)
                scaled = losses * torch.tensor(scales).to(losses)
                sums = losses.new_zeros(len(group)).index_add(0, index, scaled)
                sums.sum().backward()
            total += sums.detach().cpu()
            del token_losses, losses, scaled, sums
            self._release()
            gradients = recorded if gradients is None else gradients.add_(recorded)
        assert gradients is not None
        return total.tolist(), gradients

    def _recomputes(self, model: Backbone, rows: Sequence[Row]) -> bool:
        """Whether a micro-batch's backward pass computes activations again, to save memory."""
        if self.config.dropout:
            return False  # masks would be drawn anew
        length = padded_length(model, rows)
        return self._recompute or not activations_fit(model.model, len(rows) * length, length)

    def _losses(self, parts: Sequence[Part], token_losses: torch.Tensor) -> torch.Tensor:
        """The objective's losses ``(examples,)`` of some parts."""
        pieces = [piece for part in parts for piece in part.pieces]
        references = [part.reference for part in parts if part.reference is not None]
        reference = torch.cat(references) if references else None
        return self.objective.losses(pieces, token_losses, reference)

    def _micro_batches(self, group: list[Step]) -> Iterator[list[tuple[int, Part]]]:
        """The parts of a group, each with its step's number; only a lone step is ever divided."""
        parts = [(number, part) for number, step in enumerate(group) for part in step.parts]
        if len(group) > 1:
            yield parts
            return
        for picked in passes([part.length for _, part in parts], self.tokens):
            yield [parts[i] for i in picked]

    def _dropout(self, owners: Sequence[ActiveJob], rows: Sequence[Row]) -> Dropout | None:
        if not self.config.dropout:
            return None
        seeds = []
        for active, row in zip(owners, rows, strict=True):
            key = f"{active.job.seed} {active.step} {row.pieces[0].ids}"
            seeds.append(random.Random(key).getrandbits(63))
        return Dropout(self.config.dropout, seeds, [len(row) for row in rows])

    def _update(self, group: list[Step], losses: list[float], gradients: torch.Tensor) -> None:
        """Clip and update every slot whose loss and gradient are finite; stop the others."""
        self.adjust([step.active for step in group], gradients)
        norms = clip(gradients, self.config.clip).tolist()
        slots, finite_steps, rates = [], [], []
        for i, step in enumerate(group):
            active = step.active
            finite = torch.isfinite(torch.tensor([losses[i], norms[i]])).tolist()
            if not all(finite):
                what, value = ("gradient", norms[i]) if finite[0] else ("loss", losses[i])
                active.stopped = f"the {what} was {value} in step {active.step + 1}"
                continue
            slots.append(active.slot)
            rates.append(self.rate(active))
            finite_steps.append(i)
            active.losses.append(losses[i])
        if len(finite_steps) < len(group):
            gradients = gradients[finite_steps]
        self.optimizer.step(slots, gradients, rates)
        self.stepped([group[i].active for i in finite_steps])

    def stepped(self, jobs: Sequence[ActiveJob]) -> None:
        """Called after every step of some jobs."""

    def adjust(self, jobs: Sequence[ActiveJob], gradients: torch.Tensor) -> None:
        """Change the gradients ``(jobs, width)`` of a step before they are clipped."""

    def rate(self, active: ActiveJob) -> float:
        """The learning rate of a job's next step."""
        rate = rate_at(active.step, len(active.plan), self.config.warmup)
        return self.config.learning_rate * rate

    def _account(self, active: ActiveJob, seconds: float) -> None:
        """Count a job's step, and measure and perhaps stop it at the end of an epoch."""
        started = time.perf_counter()
        if active.stopped is None:
            active.step += 1
            if self.on_step:
                self.on_step(active.job.id, active.step, len(active.plan), active.losses[-1])
            if active.held_back and active.at_epoch_end:
                self._measure(active)
        active.seconds += seconds + time.perf_counter() - started

    def _measure(self, active: ActiveJob) -> None:
        loss = self._held_back_loss(active)
        if loss < active.best_loss:
            active.best_loss, active.without_improvement = loss, 0
            active.best = self.bank.weights[active.slot].clone()
        else:
            active.without_improvement += 1
        if active.without_improvement >= self.config.patience and not active.ended:
            active.stopped = f"the held-back loss rose after step {active.step}"

    def _held_back_loss(self, active: ActiveJob) -> float:
        """The objective's loss of all held-back examples."""
        parts = self._parts(active.held_back)
        if active.held_back_reference is not None:
            references = active.held_back_reference
            parts = [replace(p, reference=r) for p, r in zip(parts, references, strict=True)]
        token_losses = torch.cat(self._token_losses(active.slot, active.held_back))
        losses = self._losses(parts, token_losses)
        if self.objective.weighs_held_back:
            weights = [example[0].weight for example in self._examples(active.held_back)]
            losses = losses * torch.tensor(weights).to(losses)
        return float(losses.sum()) / self.objective.divisor(active.held_back)

    def _token_losses(self, slot: int | None, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """The losses ``(targets,)`` of the targets of each example, as the slot is now, if any."""
        if not pieces:
            return []
        model = self._model(pieces[0].hidden is not None)
        return part_losses(model, self._parts(pieces), slot, self.tokens)

    # State --------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the state of all active jobs; the last whole state is kept."""
        jobs = [
            JobState(
                active.job.id,
                active.step,
                active.losses,
                active.seconds,
                active.best_loss,
                active.best,
                active.without_improvement,
                self.bank.weights[active.slot],
                self.optimizer.first[active.slot],
                self.optimizer.second[active.slot],
                self.optimizer.steps[active.slot],
            )
            for active in self.active_jobs
        ]
        bank_state.save(folder, RunState(self.drawn, self.tokens, jobs))

    def restore(self, folder: Path) -> None:
        """Go on from a saved state, if there is one.

        Raises:
            StorageError: it is damaged or belongs to other jobs.
        """
        saved = bank_state.load(folder)
        if saved is None:
            return
        others = StorageError(
            "the state of a run belongs to other jobs",
            where=str(folder),
            fix=bank_state.how_to_start_anew(folder),
        )
        unfinished = {state.id for state in saved.jobs}
        drawn = {}
        for _ in range(saved.drawn):
            job = next(self.jobs, None)
            if job is None:
                break
            if job.id in unfinished:
                drawn[job.id] = job
        if drawn.keys() != unfinished:
            raise others
        self.drawn, self.tokens = saved.drawn, saved.tokens
        for state in saved.jobs:
            active = self.enter(drawn[state.id])
            if active is None or len(state.weights) != self.bank.width:
                raise others
            self.bank.weights[active.slot] = state.weights
            self.optimizer.first[active.slot] = state.first
            self.optimizer.second[active.slot] = state.second
            self.optimizer.steps[active.slot] = state.steps
            active.step, active.losses, active.seconds = state.step, state.losses, state.seconds
            active.best_loss, active.best = state.best_loss, state.best
            active.without_improvement = state.without_improvement
