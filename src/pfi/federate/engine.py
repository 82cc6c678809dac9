"""What clients' work needs of the model, done for many clients in one pass of a bank.

A simulation gives it a chunk of a cohort, a device itself alone; both run the same code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfi._util.seeds import seed_of
from pfi.errors import FederationError
from pfi.federate.config import LocalConfig
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.work import Client, Losses, Request, Train, Trained, Update, Work
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece
from pfi.models.fingerprint import weights_fingerprint
from pfi.models.scoring import mean_losses
from pfi.tasks import Example
from pfi.train.job import Job, as_piece, batches
from pfi.train.loop import ActiveJob, BankRun
from pfi.train.optim import SlotSGD

#: What a client's work ends with.
Outcome = Update | Message | FederationError


@dataclass
class Task:
    """A client's work that is being done.

    Attributes:
        client: whose.
        pieces: its examples as tokens.
        work: what asks.
        request: what it waits for.
        outcome: what it ended with.
    """

    client: Client
    pieces: Sequence[Piece]
    work: Work
    request: Request | None = None
    outcome: Outcome | None = None

    def ended(self) -> Outcome:
        """The outcome, which is not held here any longer."""
        outcome, self.outcome = self.outcome, None
        assert outcome is not None
        return outcome

    def go_on(self, reply: Any) -> None:
        """Give the reply to a request, None at the beginning, and take the next one."""
        if isinstance(reply, FederationError):
            self.request, self.outcome = None, reply
            return
        try:
            self.request = self.work.send(reply)
        except StopIteration as end:
            self.request, self.outcome = None, end.value
        except FederationError as error:
            self.request, self.outcome = None, error


class Engine:
    """Serves clients' requests.

    Args:
        backbone: the frozen model; it is left as it was.
        config: how clients train.
        rank: of the rows, which may be more than that of one adapter.
        working_set: clients whose factors are in the bank at a time.

    Attributes:
        layout: of the rows.
    """

    def __init__(
        self, backbone: Backbone, config: LocalConfig, rank: int, working_set: int = 16
    ) -> None:
        self.config = config
        wide = config.model_copy(update={"rank": rank, "alpha": config.alpha / config.rank * rank})
        fingerprint = weights_fingerprint(backbone)  # before the bank changes its modules
        self._run = _RowRun(backbone, wide, working_set)
        self.bank = self._run.bank
        self.layout = Layout.of(self.bank, fingerprint)
        self._shifted = False

    def encode(self, examples: Sequence[Example]) -> list[Piece]:
        """A client's examples as tokens."""
        backbone, longest = self.bank.backbone, self.config.max_length
        return [as_piece(backbone, example, longest) for example in examples]

    def steps(self, pieces: Sequence[Piece]) -> int:
        """Steps of a client's local plan."""
        return _steps(self.config, len(pieces))

    def set_base(self, base: Sequence[NDArray[np.float32]] | None) -> None:
        """Add to the backbone's weights, until the next call.

        Args:
            base: by layer, ``(outputs, inputs)``; nothing when None.

        Raises:
            FederationError: the shapes are not those of the layers.
        """
        if base is None and not self._shifted:
            return
        if base is not None:
            wanted = [(layer.outputs, layer.inputs) for layer in self.layout.layers]
            if [part.shape for part in base] != wanted:
                raise FederationError("a base does not fit the backbone's layers")
        self._shifted = base is not None
        self.bank.shift(None if base is None else [torch.from_numpy(part) for part in base])

    def run(self, works: Sequence[tuple[Client, Sequence[Piece], Work]]) -> list[Outcome]:
        """Do clients' work together; each ends with its update, its message or an error."""
        outcomes = dict(self.outcomes(works))
        return [outcomes[i] for i in range(len(works))]

    def outcomes(
        self, works: Sequence[tuple[Client, Sequence[Piece], Work]]
    ) -> Iterator[tuple[int, Outcome]]:
        """The same one by one.

        Yields:
            each one's position, and its update, its message or an error, as soon as it ends: who
            draws need not hold them all.
        """
        tasks = [Task(*work) for work in works]
        replies: Iterator[tuple[Task, Any]] = ((task, None) for task in tasks)
        places = {id(task): i for i, task in enumerate(tasks)}
        while True:
            for task, reply in replies:
                task.go_on(reply)
                if task.outcome is not None:
                    yield places[id(task)], task.ended()
            waiting = [task for task in tasks if task.request is not None]
            if not waiting:
                return
            training = [task for task in waiting if isinstance(task.request, Train)]
            measuring = [task for task in waiting if isinstance(task.request, Losses)]
            measured = zip(measuring, self._losses(measuring), strict=True)
            replies = chain(measured, self._run.train(training))

    def _losses(self, tasks: Sequence[Task]) -> list[list[float]]:
        """Mean losses of the rows that tasks ask for, a target token of a client each alike."""
        asked: list[tuple[int, Row, Sequence[Piece]]] = []
        for i, task in enumerate(tasks):
            assert isinstance(task.request, Losses)
            pieces = task.pieces
            if task.request.batch is not None:
                plan = _plan(self.config, pieces, task.client.seed)
                pieces = [pieces[j] for j in plan[task.request.batch % len(plan)]]
            asked += [(i, row, pieces) for row in task.request.rows]
        means: list[list[float]] = [[] for _ in tasks]
        size = self.bank.capacity
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            slots = [self._run.put(row) for _, row, _ in part]
            pieces = [piece for *_, own in part for piece in own]
            owners = [slots[n] for n, (*_, own) in enumerate(part) for _ in own]
            losses = mean_losses(self.bank.backbone, pieces, slots=owners)
            at = 0
            for i, _, own in part:
                targets = np.array([piece.targets for piece in own])
                mine = np.array(losses[at : at + len(own)])
                means[i].append(float((mine * targets).sum() / targets.sum()) if own else 0.0)
                at += len(own)
            for slot in slots:
                self.bank.remove(slot)
        return means


def _plan(config: LocalConfig, pieces: Sequence[Piece], seed: int) -> list[list[int]]:
    """The positions of the examples of a client's local steps."""
    lengths = [len(piece) for piece in pieces]
    if not lengths:
        return []
    steps = _steps(config, len(pieces))
    epochs = steps * config.batch_size / len(pieces)
    return batches(lengths, config.batch_size, epochs, random.Random(seed))[:steps]


def _steps(config: LocalConfig, examples: int) -> int:
    """Steps of a local plan: whole passes, as clients often have less than a batch."""
    planned = math.ceil(config.epochs * math.ceil(examples / config.batch_size))
    return min(planned, config.steps or planned)


@dataclass(frozen=True, eq=False)
class _RowJob(Job):
    """A request for training as a job of the bank."""

    pieces: Sequence[Piece] = ()
    request: Train | None = None


class _RowRun(BankRun):
    """Training of rows in a bank that stays from round to round."""

    config: LocalConfig

    def __init__(self, backbone: Backbone, config: LocalConfig, size: int) -> None:
        super().__init__(backbone, iter(()), config, None, size)
        if config.optimizer == "sgd":
            self.optimizer: Any = SlotSGD(self.bank, config.weight_decay)

    def train(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Trained | FederationError]]:
        """What tasks ask for, each as it ends."""
        jobs: list[_RowJob] = []
        for task in tasks:
            request = task.request
            assert isinstance(request, Train)
            seed = task.client.seed
            if request.purpose != "shared":
                seed = seed_of(seed, request.purpose)
            jobs.append(_RowJob(str(len(jobs)), (), seed, None, task.pieces, request))
        self.jobs = iter(jobs)
        try:
            for job, trained in self.results():
                yield tasks[int(job.id)], trained or FederationError("a client has no examples")
        finally:  # who draws may have stopped
            for active in self.active_jobs:
                self.bank.remove(active.slot)
            self.active_jobs.clear()

    def put(self, row: Row) -> int:
        """A free slot with these factors."""
        slot = self.bank.take()
        self.bank.weights[slot] = torch.from_numpy(row)
        return slot

    def encode(self, job: Job) -> Sequence[Piece]:
        """See ``BankRun``."""
        return _request(job)[0]

    def plan(self, job: Job, pieces: Sequence[Piece]) -> list[list[int]]:
        """See ``BankRun``."""
        return _plan(self.config, pieces, job.seed)

    def open(self, job: Job) -> int:
        """See ``BankRun``."""
        return self.put(_request(job)[1].row)

    def rate(self, active: ActiveJob) -> float:
        """Constant: the server's steps decide what is learnt in the end."""
        return self.config.learning_rate

    @torch.no_grad()
    def adjust(self, jobs: Sequence[ActiveJob], gradients: torch.Tensor) -> None:
        """Add pulls and corrections; numbers that are not trained get no gradient."""
        for active, gradient in zip(jobs, gradients, strict=True):
            _, request = _request(active.job)
            if request.mu and request.pull is not None:
                pull = torch.from_numpy(request.pull).to(gradient)
                gradient.add_(self.bank.weights[active.slot] - pull, alpha=request.mu)
            if request.correction is not None:
                gradient.add_(torch.from_numpy(request.correction).to(gradient))
            if request.mask is not None:
                gradient.mul_(torch.from_numpy(request.mask).to(gradient.device))

    def stepped(self, jobs: Sequence[ActiveJob]) -> None:
        """Put back what is not trained, which weight decay reaches nevertheless."""
        for active in jobs:
            _, request = _request(active.job)
            if request.mask is not None:
                row = self.bank.weights[active.slot]
                mask, start = torch.from_numpy(request.mask), torch.from_numpy(request.row)
                torch.where(mask.to(row.device), row, start.to(row), out=row)

    def result(self, active: ActiveJob) -> Trained | FederationError:
        """See ``BankRun``."""
        if active.stopped is not None:
            return FederationError(f"a client's training stopped: {active.stopped}")
        row = self.bank.weights[active.slot].cpu().numpy().copy()
        return Trained(row, len(active.pieces), active.step, float(np.mean(active.losses)))


def _request(job: Job) -> tuple[Sequence[Piece], Train]:
    assert isinstance(job, _RowJob) and job.request is not None
    return job.pieces, job.request
