"""Federated shared adapters in a report: quality against rounds, bytes and epsilon.

The gap to central training, and how evenly users are served; from the ``round`` events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any, Literal, NamedTuple

from matplotlib.ticker import MaxNLocator
from pydantic import Field

from pfi._util.events import find_events
from pfi.evaluate.report.augment import Count
from pfi.evaluate.report.data import (
    Cell,
    Estimate,
    Finite,
    Lenient,
    MainMetric,
    Results,
    main_estimate,
    verdict,
)
from pfi.evaluate.report.plots import (
    _BETTER,
    _INK,
    _MUTED,
    _PERSONAL,
    _SAME,
    _SHARED,
    _SYNTHETIC,
    _WORSE,
    Plot,
    _figure,
    _label,
    _svg,
)
from pfi.evaluate.study.arms import FEDERATED, central

_MEGA = 1e6
#: What quality is shown against.
_TAKEN = _ROUNDS, _BYTES, _EPSILON = "rounds", "megabytes, all clients", "epsilon"


class RoundEvent(Lenient):
    """A federation ended a round."""

    event: Literal["round"]
    arm: str
    task: str
    round: Annotated[int, Field(ge=1, le=10**6)]
    asked: Count = None
    clients: Count = None
    failed: Count = None
    bytes_down: Count = None
    bytes_up: Count = None
    loss: Finite = None
    epsilon: Finite = None


class Round(NamedTuple):
    """What is kept of a round: clients asked and without an update, bytes of all of them."""

    asked: float
    failed: float
    down: float
    up: float
    loss: float | None
    epsilon: float | None


@dataclass
class Rounds:
    """The rounds of a federation, by number."""

    by_number: dict[int, Round] = field(default_factory=dict)

    @property
    def ordered(self) -> list[tuple[int, Round]]:
        """By number."""
        return sorted(self.by_number.items())

    def total(self, name: str) -> float:
        """The sum of ``asked``, ``failed``, ``down`` or ``up`` over all rounds."""
        return sum(getattr(found, name) for found in self.by_number.values())

    def each(self, name: str) -> float | None:
        """``down`` or ``up`` for a client in a round, in bytes."""
        asked = self.total("asked")
        return self.total(name) / asked if asked else None

    @property
    def loss(self) -> float | None:
        """The last one measured on held-out clients."""
        return next((r.loss for _, r in reversed(self.ordered) if r.loss is not None), None)

    @property
    def epsilon(self) -> float | None:
        """After the last round."""
        return next((r.epsilon for _, r in reversed(self.ordered) if r.epsilon is not None), None)

    def reached(self) -> dict[str, list[float | None]]:
        """By what it takes, how much of it each round had come to."""
        rounds = [found for _, found in self.ordered]
        return {
            _ROUNDS: [float(number) for number, _ in self.ordered],
            _BYTES: [total / _MEGA for total in accumulate(r.down + r.up for r in rounds)],
            _EPSILON: [r.epsilon for r in rounds],
        }


def read_rounds(path: Path) -> tuple[dict[tuple[str, str], Rounds], int]:
    """What an event log says of federations, by task and arm; of a round the last event counts.

    Returns:
        also how many such events do not have the shape of one. Lines that are not JSON are not
        among them.
    """
    found: dict[tuple[str, str], Rounds] = {}
    skipped = 0
    for _, content in find_events(path, "round"):
        try:
            event = RoundEvent.model_validate(content)
        except ValueError:  # also what pydantic's errors are
            skipped += 1
            continue
        rounds = found.setdefault((event.task, event.arm), Rounds())
        rounds.by_number[event.round] = Round(
            event.asked or 0,
            event.failed or 0,
            event.bytes_down or 0,
            event.bytes_up or 0,
            event.loss,
            event.epsilon,
        )
    return found, skipped


# What is shown --------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How evenly an arm serves users: the worst tenth's mean score, and the standard deviation."""

    worst: float | None
    deviation: float | None

    @classmethod
    def of(cls, cell: Cell) -> Spread:
        """Over the users of a cell."""
        scores = _scores(cell).values()
        return cls(cell.worst_decile, pstdev(scores) if scores else None)


@dataclass(frozen=True)
class AnswerView:
    """What an arm over a federated shared adapter reached on a task.

    Attributes:
        score: in the main metric.
        against: the arm that differs by central training, "" where it was not run.
        central: its score.
        gap: central minus federated, turned so that more is in favour of central.
        mark: whether that is beyond chance: ``better`` where federation is, ``worse``, ``unsure``.
        below: share of users who score worse than with the central one.
        own, other: how evenly the two serve users.
    """

    arm: str
    score: Estimate
    against: str
    central: Estimate
    gap: Estimate | None
    mark: str
    below: float | None
    own: Spread
    other: Spread


@dataclass(frozen=True)
class FederatedView:
    """A federation of a task: what it took, and what the arms over it reached."""

    main: MainMetric
    arm: str
    rounds: Rounds
    answers: Sequence[AnswerView]

    @property
    def strategy(self) -> str:
        """Its name."""
        return self.arm.removeprefix(FEDERATED)


@dataclass(frozen=True)
class FederatedPlot:
    """A plot with its caption."""

    main: MainMetric
    caption: str
    plot: Plot


def _scores(cell: Cell) -> dict[str, float]:
    return {user: found.score for user, found in cell.users.items() if found.score is not None}


def _turned(gain: Estimate | None) -> Estimate | None:
    """A gain over the central arm as the gap to it."""
    if gain is None or gain.mean is None:
        return None
    low, high = gain.ci95 or (None, None)
    ends = None if low is None or high is None else (-high, -low)
    return Estimate(mean=-gain.mean, ci95=ends)


def _answer(results: Results, main: MainMetric, arm: str) -> AnswerView:
    cell, against = results.cell(arm, main.task), central(arm)
    other = results.cell(against, main.task) if against else Cell()
    gain = cell.gain_over_central
    if gain is None:  # nothing central was run, or what is called so was learnt by federation
        against, other = "", Cell()
    mine, theirs = _scores(cell), _scores(other)
    both = mine.keys() & theirs.keys()
    worse = [main.sign * (mine[user] - theirs[user]) < -1e-9 for user in both]
    return AnswerView(
        arm,
        main_estimate(cell, main),
        against,
        main_estimate(other, main),
        _turned(gain),
        verdict(gain),
        fmean(worse) if worse and main.sign else None,
        Spread.of(cell),
        Spread.of(other),
    )


def _over(results: Results, main: MainMetric, kind: str, how: Any) -> list[str]:
    """The arms whose answers rest on a federated shared adapter alone."""
    arms = [arm for arm in results.arm_names if main.task in results.arms[arm]]
    found = [a for a in arms if a.partition("@")[0] in (kind, f"{kind}+rag")]
    if how == f"fed:{kind.removeprefix(FEDERATED)}":
        found += [arm for arm in arms if arm == "shared" or arm.partition("@")[0] == "rag"]
    return found


def federated_views(
    rounds: Mapping[tuple[str, str], Rounds],
    mains: Mapping[str, MainMetric],
    results: Results,
    how: Any,
) -> list[FederatedView]:
    """The section's rows, by task in the order of ``mains``.

    Args:
        rounds: what the events say.
        mains: by task.
        results: of the study.
        how: the setting ``shared_how``; it may be anything.
    """
    return [
        FederatedView(
            main, arm, found, [_answer(results, main, a) for a in _over(results, main, arm, how)]
        )
        for task, main in mains.items()
        for (of, arm), found in rounds.items()
        if of == task
    ]


def federated_plots(views: Sequence[FederatedView]) -> list[FederatedPlot]:
    """By task: held-out loss, then the first arm's score, against what each took."""
    places = {arm: i for i, arm in enumerate(dict.fromkeys(view.arm for view in views))}
    found = []
    for number, task in enumerate(dict.fromkeys(view.main.task for view in views)):
        mine = [view for view in views if view.main.task == task]
        for name, draw in (("loss", _loss_plot), ("score", _score_plot)):
            for i, taken in enumerate(_TAKEN):
                plot = draw(mine, taken, places, f"federated-{number}-{name}-{i}")
                if plot is not None:
                    found.append(plot)
    return found


def _loss_plot(
    views: Sequence[FederatedView], taken: str, places: Mapping[str, int], key: str
) -> FederatedPlot | None:
    curves = []
    for view in views:
        losses = [found.loss for _, found in view.rounds.ordered]
        pairs = zip(view.rounds.reached()[taken], losses, strict=True)
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        curves.append(Curve(view.strategy, places[view.arm], points))
    plot = reach_plot(curves, (taken, "held-out loss"), key)
    return None if plot is None else FederatedPlot(views[0].main, f"held-out loss by {taken}", plot)


def _score_plot(
    views: Sequence[FederatedView], taken: str, places: Mapping[str, int], key: str
) -> FederatedPlot | None:
    """None by rounds where all have equally many: that would be a line upright."""
    curves, level = [], None
    main = views[0].main
    for view in views:
        known = [x for x in view.rounds.reached()[taken] if x is not None]
        first = view.answers[0] if view.answers else None
        if not known or first is None or first.score.mean is None:
            continue
        points = [(known[-1], first.score.mean)]
        curves.append(Curve(view.strategy, places[view.arm], points, first.score.ci95))
        level = first.central.mean if level is None else level
    if taken == _ROUNDS and len({curve.points[0][0] for curve in curves}) < 2:
        return None
    metric = f"{main.metric} {main.arrow}".strip()
    plot = reach_plot(curves, (taken, metric), key, level)
    caption = f"{main.metric} at the end by {taken}"
    return None if plot is None else FederatedPlot(main, caption, plot)


#: Marker, line and colour of each federation in turn; marker and line alone tell 30 apart.
_LOOKS = [
    (marker, line, colour)
    for line in ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 1)))
    for marker, colour in zip("o^svDP", [_BETTER, _WORSE, _PERSONAL, _SHARED, _SYNTHETIC, _SAME],
                              strict=True)
]  # fmt: skip
#: Beyond this many points a curve has no markers.
_MOST_MARKERS = 25


@dataclass(frozen=True)
class Curve:
    """One federation in a plot.

    Attributes:
        name: in the legend.
        place: among all federations of the page, so that one looks the same everywhere.
        points: ``(x, y)`` in order.
        interval: of the last point's y.
    """

    name: str
    place: int
    points: Sequence[tuple[float, float]]
    interval: tuple[float, float] | None = None


def reach_plot(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    key: str,
    central: float | None = None,
) -> Plot | None:
    """What federations reach (y) against what it took so far (x).

    Args:
        curves: those without points are left out.
        labels: of x and y.
        key: unique in the page.
        central: a level to compare with, dashed.

    Returns:
        None where there is nothing to show.
    """
    shown = [curve for curve in curves if curve.points]
    if not shown:
        return None
    label = f"{labels[1]} against {labels[0]}:"
    for curve in shown:
        (x0, y0), (x1, y1) = curve.points[0], curve.points[-1]
        start = f"from {y0:.3f} at {x0:.4g} to " if len(curve.points) > 1 else ""
        label += f" {curve.name}: {start}{y1:.3f} at {x1:.4g}."
    if central is not None:
        label += f" Learnt centrally: {central:.3f}."
    with _figure(3.6, 2.6 + 0.17 * len(shown)) as figure:
        axes = figure.subplots()
        for curve in shown:
            marker, line, colour = _LOOKS[curve.place % len(_LOOKS)]
            xs, ys = zip(*curve.points, strict=True)
            axes.plot(
                xs, ys, color=colour, linestyle=line, linewidth=1.5, label=_label(curve.name),
                marker=marker if len(xs) <= _MOST_MARKERS else None, markersize=5, zorder=3,
            )  # fmt: skip
            if curve.interval is not None:
                axes.vlines(xs[-1], *curve.interval, color=colour, linewidth=1.2, zorder=2)
        if central is not None:
            axes.axhline(
                central, color=_MUTED, label="learnt centrally", linestyle=(0, (4, 3)),
                linewidth=1, zorder=1,
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=labels[0] == "rounds"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(_label(labels[0]))
        axes.set_ylabel(_label(labels[1]))
        figure.legend(loc="outside upper left", fontsize=9, labelcolor=_INK, handlelength=2.6)
        return Plot(_svg(figure, key, label))
