"""What every engine that trains adapters shares: settings, jobs, encoding, order and rates.

An engine trains one adapter, or those of many users; ``train/trainers.py`` names them all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pfi.errors import ConfigError, DataError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece
from pfi.tasks import Example
from pfi.train.config import TrainConfig

#: Called after every step with the job's id, the steps done, the steps planned and the loss.
OnStep = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Job:
    """One adapter to train.

    Attributes:
        id: whose it is, unique within a run.
        examples: what it learns from, oldest first, of the kind that the objective takes:
            ``Example``, or ``Preference`` for DPO; a function is called when its turn comes.
        seed: of the initial factors and the order.
        start: the adapter to go on from; fresh factors when None.
    """

    id: str
    examples: Sequence[Any] | Callable[[], Sequence[Any]]
    seed: int = 0
    start: Adapter | None = None

    def load(self) -> Sequence[Any]:
        """The examples."""
        return self.examples() if callable(self.examples) else self.examples


@dataclass(frozen=True)
class TrainResult:
    """A trained adapter and what it took.

    Attributes:
        adapter: the result; with ``held_back``, the factors of the best epoch.
        losses: of every step; the mean cross-entropy of target tokens unless the trainer was
            given another objective.
        seconds: wall-clock time; where adapters are trained together, this one's share.
        stopped: why it ended before its last step, or None.
        examples: how many it was trained on.
    """

    adapter: Adapter
    losses: list[float]
    seconds: float
    stopped: str | None = None
    examples: int = 0

    @property
    def steps(self) -> int:
        return len(self.losses)


class Trainer(Protocol):
    """An engine that trains adapters over a backbone and leaves the backbone as it was."""

    #: Whether it trains several jobs in one pass.
    together: bool

    def train_many(
        self,
        backbone: Backbone,
        jobs: Iterable[Job],
        config: TrainConfig,
        *,
        on_step: OnStep | None = None,
        state: Path | None = None,
    ) -> Iterator[tuple[Job, TrainResult | None]]:
        """Train an adapter for every job, as the iterator is drawn from.

        Args:
            backbone: the frozen model, with what lies beneath the adapters merged in.
            jobs: drawn from as room becomes free, so they may be endless.
            config: the same for all.
            on_step: told of every step of every job.
            state: a folder for the state of unfinished jobs; a run that was killed goes on
                from there when the same jobs are given again.

        Yields:
            each job with its result as it ends, None when it has no examples; the order of
            the jobs is not kept.
        """
        ...


def train_one(
    trainer: Trainer,
    backbone: Backbone,
    examples: Sequence[Any],
    config: TrainConfig,
    *,
    seed: int = 0,
    start: Adapter | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    state: Path | None = None,
) -> TrainResult:
    """Train an adapter, a new one or on from ``start``; the same arguments give the same one.

    Args:
        trainer: the engine.
        backbone: the frozen model, with what lies beneath the adapter merged in.
        examples: what it learns from, see ``Job``.
        config: how.
        seed: of the initial factors and the order.
        start: the adapter to go on from; fresh factors when None.
        on_step: called with the steps done, the steps planned and the step's loss.
        state: a folder for the state while it is unfinished, see ``Trainer.train_many``.

    Raises:
        DataError: there are no examples.
    """

    def forward(_: str, step: int, steps: int, loss: float) -> None:
        if on_step:
            on_step(step, steps, loss)

    jobs = [Job("adapter", examples, seed, start)]
    for _, result in trainer.train_many(backbone, jobs, config, on_step=forward, state=state):
        if result is not None:
            return result
    raise DataError("there is nothing to train on", fix="import records first")


def encode(backbone: Backbone, example: Example, max_length: int) -> tuple[list[int], list[int]]:
    """An example as ``(prompt ids, target ids)``, together within ``max_length`` tokens.

    See ``encode_answers``.
    """
    prompt, targets = encode_answers(backbone, example.prompt, [example.target], max_length)
    return prompt, targets[0]


def encode_answers(
    backbone: Backbone, prompt: str, targets: Sequence[str], max_length: int
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers, each within ``max_length`` tokens and the context with it.

    An answer takes at most half of that.  One that is cut is not closed by the end token, which
    would teach to end in mid-sentence.  Adapters learn answers without thoughts.

    Raises:
        ConfigError: not even the frame of a prompt fits.
    """
    length = min(max_length, backbone.max_length)
    ids = [backbone.target_ids(target, max(1, length // 2)) for target in targets]
    prompter = backbone.prompter
    room = length - max(map(len, ids))
    asked = prompter.prompt_ids(prompt, max(1, room), thinking=False)
    if len(asked) > room:  # the frame alone is longer
        room = length - len(asked)
        if room < 1:
            what = f"a prompt takes {len(asked)} tokens without its text, of {length}"
            raise ConfigError(what, where="max_length", fix="give more, or use another backbone")
        ids = [one[:room] for one in ids]
    return asked, ids


def as_piece(backbone: Backbone, example: Example, max_length: int) -> Piece:
    """An example for packing, within ``max_length`` tokens."""
    prompt, target = encode(backbone, example, max_length)
    return Piece([*prompt, *target], len(target), example.weight)


def batches(
    lengths: Sequence[int], batch_size: int, epochs: float, rng: random.Random
) -> list[list[int]]:
    """The positions of the examples of every step.

    Each epoch shuffles, then sorts within windows of eight batches, so that rows of a batch
    are of similar length and padding is rare; the batches of an epoch are shuffled again.
    """
    total = max(1, math.ceil(len(lengths) / batch_size * epochs))
    steps: list[list[int]] = []
    while len(steps) < total:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        window = 8 * batch_size
        epoch = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: lengths[i])
            epoch += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        rng.shuffle(epoch)
        steps += epoch
    return steps[:total]


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Multiplier of the learning rate at ``step`` of ``steps``: up linearly, down to zero."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


def hold_back(rows: Sequence[Any], share: float) -> tuple[Sequence[Any], Sequence[Any]]:
    """Rows, oldest first, as those to train on and the newest ``share`` to measure on."""
    count = min(math.ceil(len(rows) * share), len(rows) - 1)
    return rows[: len(rows) - count], rows[len(rows) - count :]
