"""An adapter on records that it has not learnt from, and whether it is better there.

All is measured over one copy of the backbone's weights, in the precision that they are in: an
adapter is a slot of a bank over them, not merged into a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from pfi._util.heap import release_freed
from pfi.memory.prompts import Retrieval
from pfi.models.adapters import Adapter
from pfi.profile.learn.drift import gains
from pfi.tasks import METRICS, Example, Task

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.models.bank.packing import Piece

#: Longest prompt and answer, in tokens, whose loss is measured; longer prompts are cut.
LONGEST = 1024
#: Fewest records by which chance can be told from a gain.
LEAST = 4
#: The latest examples that are answered: an answer takes as long as many losses.
ANSWERED = 32
#: Level of the test of the gain.
ALPHA = 0.05
#: Answers in work at once, and most memory of their keys and values: little, beside a training.
_ROWS, _ROW_BYTES, _CACHE_BYTES = 8, 256 << 20, 16 << 20
_ROUNDS = 2000  # of the bootstrap

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """A model on some examples.

    Attributes:
        losses: of each example's true answer, nats a target token.
        answers: what it answered to the latest of them.
        metrics: mean loss and the task's metrics, by name.
    """

    losses: Sequence[float]
    answers: Sequence[str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """A model beside another one on the same records; see ``judge``.

    Attributes:
        better: whether the new one is.
        reason: why, in a sentence.
        records: how many records it rests on.
        improved: of how many of them the loss fell.
        gain: by how much the mean loss fell, nats a target token.
        interval: 95 % of the gain, by a paired bootstrap; None with fewer than four records.
        metric: the task's metric that is looked at, or None.
        change: 95 % interval of what it gained, or None.
    """

    better: bool
    reason: str
    records: int
    improved: int
    gain: float
    interval: Interval | None = None
    metric: str | None = None
    change: Interval | None = None


# Models ------------------------------------------------------------------------------


def measure(
    backbone: Backbone, task: Task, examples: Sequence[Example], adapter: Adapter | None = None
) -> Measured:
    """Losses, answers and metrics of examples, of which there is at least one.

    Args:
        backbone: the model.
        task: what kind of answer is wanted.
        examples: what is measured on.
        adapter: what answers over the backbone; None for nothing.
    """
    losses = example_losses(backbone, examples, adapter)
    release_freed()
    asked = examples[-ANSWERED:]
    answers = example_answers(backbone, task, asked, adapter)
    release_freed()
    scores = task.score(answers, [example.target for example in asked])
    return Measured(losses, answers, {"loss": fmean(losses), **scores})


def example_losses(
    backbone: Backbone, examples: Sequence[Example], adapter: Adapter | None = None
) -> list[float]:
    """Every example's loss, nats a target token; see ``measure``."""
    from pfi.models.bank.bank import holding
    from pfi.models.scoring import mean_losses

    if not examples:
        return []
    bank, slot = holding(backbone, adapter)
    pieces = [measured_piece(backbone, example) for example in examples]
    return mean_losses(bank.backbone, pieces, slots=[slot] * len(pieces))


def measured_piece(backbone: Backbone, example: Example) -> Piece:
    """An example as the tokens whose loss is measured."""
    from pfi.train.job import as_piece

    return as_piece(backbone, example, min(backbone.max_length, LONGEST))


def answer_scores(
    backbone: Backbone, task: Task, examples: Sequence[Example], adapter: Adapter | None = None
) -> dict[str, float]:
    """The task's metrics of the answers to the examples; see ``measure``."""
    answers = example_answers(backbone, task, examples, adapter)
    return task.score(answers, [example.target for example in examples])


def example_answers(
    backbone: Backbone, task: Task, examples: Sequence[Example], adapter: Adapter | None = None
) -> list[str]:
    """The answers to the examples, without retrieved records; see ``measure``."""
    from pfi.inference.answering import answers, sampling_of
    from pfi.inference.engine import AdapterRef, Request
    from pfi.inference.torch.engine import TorchEngine
    from pfi.models.bank.bank import precision_name

    retrieval, sampling = Retrieval(0, 0, backbone.prompter), sampling_of(task)
    asked = [retrieval.fill(task, example.prompt).ids for example in examples]
    ref, rank = None, 1
    if adapter is not None:
        ref, rank = AdapterRef("measured", lambda: adapter), int(adapter.settings["r"])
    sizes = {"capacity": 1, "rank": rank, "max_rows": _ROWS}
    memory = {"row_bytes": _ROW_BYTES, "cache_bytes": _CACHE_BYTES}
    with TorchEngine(backbone, **sizes, **memory, precision=precision_name(backbone)) as engine:
        return answers(engine, task, [Request(ids, ref, sampling) for ids in asked])


# Which is better ---------------------------------------------------------------------


def judge(task: Task, examples: Sequence[Example], before: Measured, after: Measured) -> Verdict:
    """Whether a model is better than another on the same held-back examples.

    The likelihood of the true answers decides, since it sees on a few records what metrics of
    one answer each cannot: the mean loss must fall, and by the tests of ``gains`` this must be no
    chance (at the level ``ALPHA``; with fewer than ``LEAST`` records the mean decides alone).
    Beside it the task's first metric that is a mean over answers must not fall clearly: it does
    if the 95 % interval of its change, by a paired bootstrap over the records, is all on the
    worse side.

    Args:
        task: whose metrics.
        examples: what both were measured on; at least one.
        before, after: the model that is in use, and the new one.
    """
    fallen = [b - a for b, a in zip(before.losses, after.losses, strict=True)]
    gain, improved, n = fmean(fallen), sum(d > 0 for d in fallen), len(fallen)
    enough = n >= LEAST
    interval = paired_interval(fallen) if enough else None
    metric, changes = _metric_changes(task, examples, before, after)
    change = paired_interval(changes) if changes and enough else None
    surely = gains(before.losses, after.losses, least=LEAST, alpha=ALPHA).passed
    figures = f"{fmean(before.losses):.3f} to {fmean(after.losses):.3f} nats a token"
    on = f"on {n} held-back record{'' if n == 1 else 's'}"
    if gain <= 0:
        better, reason = False, f"the true answers became no likelier: loss {figures} {on}"
    elif enough and not surely:
        better, reason = False, f"the gain may be chance: loss {figures} {on}"
    elif change is not None and change[1] < 0:
        better = False
        worse = "fell clearly" if METRICS[str(metric)].higher_is_better else "got clearly worse"
        reason = f"the true answers became likelier, but {metric} {worse} {on}"
    else:
        better, reason = True, f"the true answers became likelier: loss {figures} {on}"
    return Verdict(better, reason, n, improved, gain, interval, metric, change)


def _metric_changes(
    task: Task, examples: Sequence[Example], before: Measured, after: Measured
) -> tuple[str | None, list[float]]:
    """The metric that is looked at, and what each record gained of it; more is better."""
    name = next((name for name in task.metrics if METRICS[name].per_question), None)
    if name is None:
        return None, []
    sign = 1 if METRICS[name].higher_is_better else -1

    def score(answer: str, example: Example) -> float:
        parsed, gold = task.parse(answer), task.parse(example.target)
        return METRICS[name].compute([parsed], [gold], task.labels)

    asked = examples[len(examples) - len(after.answers) :]
    pairs = zip(before.answers, after.answers, asked, strict=True)
    return name, [sign * (score(new, e) - score(old, e)) for old, new, e in pairs]


def paired_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993); the same each time."""
    import numpy as np

    values = np.asarray(differences, float)
    drawn = np.random.default_rng(0).integers(len(values), size=(_ROUNDS, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[drawn].mean(1), [tail, 1 - tail])
    return float(low), float(high)
