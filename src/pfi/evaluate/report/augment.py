"""Augmentation in a report: what the ``augmented`` events say, added up over users.

The log is read twice: once for where each user's last event stands, then those events one by
one, so that of every user little more than a place and a number is held.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pfi._util.events import find_events
from pfi.evaluate.report.data import Lenient, MainMetric, finite
from pfi.evaluate.report.plots import Plot, label_plot
from pfi.evaluate.report.text import shorten
from pfi.tasks import get_task

#: No count is larger: sums over any number of users stay finite.
_LARGEST = 1e15
#: Different names (filters, labels, reasons, teachers) that are told apart, and those shown.
_MOST_NAMES, _MOST_LABELS, _MOST_REASONS = 256, 20, 4
_MOST_EXAMPLES = 4
_OTHER = "other"


def _count(value: Any) -> float | None:
    number = finite(value)
    return number if number is not None and 0 <= number <= _LARGEST else None


def _share(value: Any) -> float | None:
    number = finite(value)
    return number if number is not None and 0 <= number <= 1 else None


def _counts(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError("not counts by name")
    found = {str(name): _count(n) for name, n in value.items()}
    return {name: n for name, n in found.items() if n is not None}


#: A number from 0 on; anything else, or one beyond all reason, becomes None.
Count = Annotated[float | None, BeforeValidator(_count)]
Counts = Annotated[dict[str, float], BeforeValidator(_counts)]


class Filter(Lenient):
    """How many drafts of one user a filter was given and kept, and why it dropped others."""

    name: str
    before: Count = None
    kept: Count = None
    dropped: Counts = Field({})


class Made(Lenient):
    """Who made a synthetic record, and how."""

    teacher: str = ""
    strategy: str = ""
    confidence: Annotated[float | None, BeforeValidator(_share)] = None


class SyntheticRecord(Lenient):
    """A synthetic record that the event shows."""

    input: dict[str, Any] = Field({})
    output: str = ""
    made: Made = Made()


class Augmented(Lenient):
    """Synthetic records were made for one user."""

    event: Literal["augmented"]
    task: str
    user: str
    teacher: str = ""
    real: Count = None
    drafts: Count = None
    records: Count = None
    filters: list[Filter] = Field([])
    confidence: Annotated[float | None, BeforeValidator(_share)] = None
    labels_real: Counts = Field({})
    labels_synthetic: Counts = Field({})
    prompt_tokens: Count = None
    completion_tokens: Count = None
    usd: Count = None
    examples: list[SyntheticRecord] = Field([])


# Adding up ------------------------------------------------------------------------------


@dataclass
class FilterTotal:
    """One filter over all users."""

    before: float = 0
    kept: float = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> Sequence[tuple[str, float]]:
        """Why drafts were dropped, the most frequent first, the rare ones as one."""
        found = self.dropped.most_common()
        rest = sum(n for _, n in found[_MOST_REASONS:])
        return found[:_MOST_REASONS] + ([("other reasons", rest)] if rest else [])


@dataclass
class TaskAugmentation:
    """The augmentation of a task's users.

    Attributes:
        real: number of real records, by user; of users of whom it is known.
        records: number of synthetic records of each user.
        totals: drafts, prompt_tokens, completion_tokens and usd, as far as they are known.
        teachers: by name, the users whom they wrote for.
        filters: by name, in the order of the pipeline.
        labels_real, labels_synthetic: how many records have a label.
        shown: the first users' synthetic records.
    """

    users: int = 0
    real: dict[str, float] = field(default_factory=dict)
    records: list[float] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)
    filters: dict[str, FilterTotal] = field(default_factory=dict)
    labels_real: Counter[str] = field(default_factory=Counter)
    labels_synthetic: Counter[str] = field(default_factory=Counter)
    shown: list[list[SyntheticRecord]] = field(default_factory=list)
    _sure: float = 0
    _judged: float = 0

    def add(self, event: Augmented) -> None:
        """Count one user's event."""
        self.users += 1
        if event.real is not None:
            self.real[event.user] = event.real
        if event.records is not None:
            self.records.append(event.records)
        for name in ("drafts", "prompt_tokens", "completion_tokens", "usd"):
            value = getattr(event, name)
            if value is not None:
                self.totals[name] += value
        if event.teacher:
            _add(self.teachers, {event.teacher: 1})
        for found in event.filters:
            if found.name in self.filters or len(self.filters) < _MOST_NAMES:
                total = self.filters.setdefault(found.name, FilterTotal())
                total.before += found.before or 0
                total.kept += found.kept or 0
                _add(total.dropped, found.dropped)
        if event.confidence is not None and event.records:
            self._sure += event.confidence * event.records
            self._judged += event.records
        _add(self.labels_real, event.labels_real)
        _add(self.labels_synthetic, event.labels_synthetic)
        if event.examples and len(self.shown) < _MOST_EXAMPLES:
            self.shown.append(event.examples[:_MOST_EXAMPLES])

    @property
    def median_real(self) -> float | None:
        """Real records of the user in the middle."""
        return median(self.real.values()) if self.real else None

    @property
    def median_records(self) -> float | None:
        """Synthetic records of the user in the middle."""
        return median(self.records) if self.records else None

    @property
    def without(self) -> int:
        """Users for whom no synthetic record was kept."""
        return self.records.count(0)

    @property
    def confidence(self) -> float | None:
        """Mean over the synthetic records."""
        return self._sure / self._judged if self._judged else None

    @property
    def examples(self) -> list[SyntheticRecord]:
        """A few synthetic records, of as many users as possible, in the run's order."""
        turns = chain.from_iterable(zip_longest(*self.shown))
        return [record for record in turns if record is not None][:_MOST_EXAMPLES]


def _add(total: Counter[str], counts: Mapping[str, float]) -> None:
    """Add counts; when there are very many names, further ones are counted as one."""
    for name, n in counts.items():
        known = name in total or len(total) < _MOST_NAMES
        total[name if known else _OTHER] += n  # type: ignore[assignment]  # counts may be floats


def read_augmented(path: Path) -> tuple[dict[str, TaskAugmentation], int]:
    """What an event log says of augmentation, by task; of a user's events the last one counts.

    Returns:
        also how many such events do not have the shape of one. Lines that are not JSON are not
        among them.
    """
    places: dict[str, dict[str, int]] = {}
    found: dict[str, TaskAugmentation] = {}
    skipped = 0
    for place, content in find_events(path, "augmented"):
        try:
            event = Augmented.model_validate(content)
        except ValueError:  # also what pydantic's errors are
            skipped += 1
        else:
            places.setdefault(event.task, {})[event.user] = place
    if not places:
        return found, skipped
    with path.open("rb") as file:
        for task, users in places.items():
            found[task] = TaskAugmentation()
            for place in users.values():
                file.seek(place)
                found[task].add(Augmented.model_validate(json.loads(file.readline())))
    return found, skipped


# What is shown --------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelView:
    """A task's labels, real against synthetic.

    Attributes:
        apart: share of the synthetic records that would need another label for the same
            distribution (total variation distance), in [0, 1].
    """

    plot: Plot
    apart: float


@dataclass(frozen=True)
class ExampleView:
    """A synthetic record in short: its fields as ``(name, text)``, and how it was made."""

    input: Sequence[tuple[str, str]]
    output: str
    made: Made


@dataclass(frozen=True)
class AugmentView:
    """What the page shows of a task's augmentation."""

    main: MainMetric
    sums: TaskAugmentation
    labels: LabelView | None
    examples: Sequence[ExampleView]


def augment_view(main: MainMetric, sums: TaskAugmentation, key: str) -> AugmentView:
    """A task's part of the section; ``key`` is unique in the page."""
    examples = [_example(record) for record in sums.examples]
    return AugmentView(main, sums, _labels(main, sums, key), examples)


def _labels(main: MainMetric, sums: TaskAugmentation, key: str) -> LabelView | None:
    """None unless both kinds of records have labels."""
    real, synthetic = sums.labels_real, sums.labels_synthetic
    totals = sum(real.values()), sum(synthetic.values())
    if not all(totals):
        return None
    seen = {name for name in chain(real, synthetic) if real[name] or synthetic[name]}
    apart = sum(abs(real[n] / totals[0] - synthetic[n] / totals[1]) for n in seen) / 2
    known = [str(label) for label in get_task(main.task).labels or ()] if main.known else []
    # The order of the labels means something for scores; otherwise the user's own favourites lead.
    ordered = not known or get_task(main.task).kind != "score"
    names = [n for n in known if n in seen] + sorted(seen - set(known))
    if ordered:
        names.sort(key=lambda name: -real[name])
    names = names[:_MOST_LABELS]
    columns = [[float(counts[name]) for name in names] for counts in (real, synthetic)]
    rest = [total - sum(column) for total, column in zip(totals, columns, strict=True)]
    if any(part > 0 for part in rest):
        names.append(_OTHER)
        columns = [[*column, part] for column, part in zip(columns, rest, strict=True)]
    shown = [shorten(name, 24) for name in names]
    return LabelView(label_plot(shown, columns[0], columns[1], key), apart)


def _example(record: SyntheticRecord) -> ExampleView:
    fields = [(shorten(name, 40), shorten(str(text))) for name, text in record.input.items()]
    made = record.made.model_copy(
        update={name: shorten(getattr(record.made, name), 60) for name in ("teacher", "strategy")}
    )
    return ExampleView(fields[:_MOST_EXAMPLES], shorten(record.output), made)
