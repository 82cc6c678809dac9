"""What the gate chose, in a report: the ``gated`` events, added up over users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field

from pfi._util.events import find_events
from pfi.evaluate.report.augment import Count
from pfi.evaluate.report.data import Cell, Finite, Lenient, MainMetric
from pfi.evaluate.report.plots import Plot, gate_plot
from pfi.gate.choices import NOTHING, Choice, GateConfig, plain_choices

#: Rows and columns of a plot.
_MOST_SIDE = 12

_Value = TypeVar("_Value", int, tuple[bool, float])


class Gated(Lenient):
    """The gate chose for one user."""

    event: Literal["gated"]
    arm: str
    task: str
    user: str
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    k: Annotated[int, Field(ge=0, le=10**6)]
    by_likeness: bool = False
    if_unsure: bool = False
    gain: Finite = None
    tried: Count = None

    @property
    def choice(self) -> Choice:
        """What was chosen; all that amounts to nothing is ``NOTHING``."""
        if self.weight == 0 and self.k == 0:
            return NOTHING
        by_likeness = self.by_likeness and self.weight > 0
        return Choice(self.weight, self.k, by_likeness, self.if_unsure)


class Chosen(NamedTuple):
    """A user's choice, its gain as the gate believed it, and on how many records it was tried."""

    choice: Choice
    gain: float | None
    tried: float | None


@dataclass
class GateSums:
    """What an arm's gate chose for the users of a task; there is at least one.

    Attributes:
        users: their choices, by user.
    """

    users: dict[str, Chosen] = field(default_factory=dict)

    @property
    def choices(self) -> list[Choice]:
        """All choices, one a user."""
        return [chosen.choice for chosen in self.users.values()]

    @property
    def nothing(self) -> float:
        """Share of users whom the shared adapter answers alone."""
        return self.choices.count(NOTHING) / len(self.users)

    @property
    def weight(self) -> float:
        """Mean weight of the personal adapter, as chosen, before likeness."""
        return fmean(choice.weight for choice in self.choices)

    @property
    def k(self) -> float:
        """Mean number of retrieved records, as chosen."""
        return fmean(choice.k for choice in self.choices)

    @property
    def by_likeness(self) -> int:
        """Users whose weight depends on how like their records a question is."""
        return sum(choice.by_likeness for choice in self.choices)

    @property
    def if_unsure(self) -> int:
        """Users for whom the shared adapter answers what it is sure of."""
        return sum(choice.if_unsure for choice in self.choices)

    @property
    def by_question(self) -> int:
        """Users with either of the two."""
        return sum(choice.by_likeness or choice.if_unsure for choice in self.choices)

    @property
    def tried(self) -> float | None:
        """Records of the user in the middle on which choices were tried."""
        known = [chosen.tried for chosen in self.users.values() if chosen.tried is not None]
        return median(known) if known else None

    @property
    def untried(self) -> int:
        """Users with too few records to try a choice on any."""
        return sum(chosen.tried == 0 for chosen in self.users.values())

    @property
    def believed(self) -> float | None:
        """Mean over users of the gain that the gate believed in; 0 where it chose nothing."""
        known = [chosen.gain for chosen in self.users.values() if chosen.gain is not None]
        return fmean(known) if known else None


def read_gated(path: Path) -> tuple[dict[tuple[str, str], GateSums], int]:
    """What an event log says of gates, by task and arm; of a user's events the last one counts.

    Returns:
        also how many such events do not have the shape of one. Lines that are not JSON are not
        among them.
    """
    found: dict[tuple[str, str], GateSums] = {}
    skipped = 0
    for _, content in find_events(path, "gated"):
        try:
            event = Gated.model_validate(content)
        except ValueError:  # also what pydantic's errors are
            skipped += 1
            continue
        sums = found.setdefault((event.task, event.arm), GateSums())
        sums.users[event.user] = Chosen(event.choice, event.gain, event.tried)
    return found, skipped


# What is shown --------------------------------------------------------------------------


@dataclass(frozen=True)
class GateView:
    """What the page shows of an arm's gate on a task.

    Attributes:
        cell: what the arm reached.
        plot: weights and numbers of records.
        left_out: users whose choice the plot has no place for.
    """

    main: MainMetric
    arm: str
    sums: GateSums
    cell: Cell
    plot: Plot
    left_out: int


def gate_view(
    main: MainMetric, arm: str, sums: GateSums, cell: Cell, settings: Any, key: str
) -> GateView:
    """An arm's part of the section on a task.

    Args:
        settings: what the run's configuration says of the gate, to show what else there was to
            choose; it may be anything.
        key: unique in the page.
    """
    offered = _offered(settings)
    rows = _most_used(((c.by_likeness, c.weight) for c in sums.choices),
                      ((c.by_likeness, c.weight) for c in offered))  # fmt: skip
    columns = _most_used((c.k for c in sums.choices), (c.k for c in offered))
    users = Counter(((c.by_likeness, c.weight), c.k) for c in sums.choices)
    table = [[users[row, column] for column in columns] for row in rows]
    names = [f"{weight:.3g}{' by likeness' * like}" for like, weight in rows]
    plot = gate_plot(names, columns, table, key)
    return GateView(main, arm, sums, cell, plot, len(sums.users) - sum(map(sum, table)))


def _offered(settings: Any) -> list[Choice]:
    try:
        return plain_choices(GateConfig.model_validate(settings))
    except ValueError:  # also what pydantic's errors are: a run of another version, or damaged
        return [NOTHING]


def _most_used(chosen: Iterable[_Value], offered: Iterable[_Value]) -> list[_Value]:
    """What was chosen most and what else was offered, as many as a plot has room for, in order."""
    counts = Counter(chosen)
    counts.update(dict.fromkeys(offered, 0))
    return sorted(value for value, _ in counts.most_common(_MOST_SIDE))


def gate_views(
    sums: Mapping[tuple[str, str], GateSums],
    mains: Mapping[str, MainMetric],
    cells: Mapping[tuple[str, str], Cell],
    settings: Any,
) -> list[GateView]:
    """The section's parts, by task in the order of ``mains``."""
    return [
        gate_view(main, arm, found, cells[task, arm], settings, f"gate-{i}")
        for task, main in mains.items()
        for i, ((of, arm), found) in enumerate(sums.items())
        if of == task
    ]
