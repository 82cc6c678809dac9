"""Records and histories: what a user did, oldest first, and splits that leak no future.

The words are those of the design: a record is one thing a user did, a history is one
user's records in time order, a question is something asked of the user's model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Any, Literal

from pfi.errors import DataError

Origin = Literal["real", "synthetic"]


def parse_time(value: str | int | float | date | datetime | None) -> datetime | None:
    """A timezone-aware UTC time from ISO 8601 text, a Unix time in seconds, or a date.

    Text without a zone is taken as UTC; None and the empty string mean "unknown".

    Raises:
        ValueError: the value is not a time.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise ValueError("a truth value is not a time")
    if isinstance(value, int | float):
        try:
            return datetime.fromtimestamp(value, UTC)
        except (OverflowError, OSError) as error:
            raise ValueError(f"{value} is not a Unix time in seconds") from error
    if isinstance(value, datetime):
        time = value
    elif isinstance(value, date):
        time = datetime(value.year, value.month, value.day)
    else:
        text = value.strip()
        time = datetime.fromisoformat(f"{text}-01-01" if len(text) == 4 else text)
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is outside the years 1 to 9999 in UTC") from error


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a synthetic record came about.

    Attributes:
        teacher: name of the teacher that wrote or answered it.
        strategy: name of the generation strategy.
        template: name and short hash of the prompt template, e.g. ``write-3f9a1c``.
        seeds: ids of the real records that the teacher was shown.
        source: id of the record that was varied, or of the pool's that was answered anew, or "".
        confidence: share of the teacher's votes, or their likeness, that back the output; in
            [0, 1].
        scores: what the filters measured, by filter.
    """

    teacher: str
    strategy: str
    template: str
    seeds: tuple[str, ...] = ()
    source: str = ""
    confidence: float = 1.0
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "seeds": list(self.seeds), "scores": dict(self.scores)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """From what ``to_dict`` gave."""
        return cls(**{**values, "seeds": tuple(values["seeds"])})


@dataclass(frozen=True, slots=True)
class Record:
    """One thing a user did.

    Attributes:
        id: unique within its history.
        task: name of the task the record belongs to, e.g. ``LaMP_3``.
        input: the input fields, by the names that the task's templates use.
        output: what the user wrote or chose; empty where the task derives it.
        time: when, kept in UTC; None when the source has no times.
        origin: ``real`` or ``synthetic``.
        source: where it came from, e.g. ``git:myrepo``; informative only.
        made: how a synthetic record came about; None for a real one.

    Raises:
        DataError: the id is empty, a field is not text or not valid Unicode, there is no text
            at all, or the time has no zone.
    """

    id: str
    task: str
    input: Mapping[str, str]
    output: str
    time: datetime | None = None
    origin: Origin = "real"
    source: str = ""
    made: Provenance | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise DataError("a record needs an id", record=repr(self.id))
        for name, value in self.input.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise DataError(f"field {name!r} is not text", record=self.id)
        if not isinstance(self.output, str):
            raise DataError("the output is not text", record=self.id)
        if not self.output.strip() and not any(v.strip() for v in self.input.values()):
            raise DataError("the record holds no text", record=self.id)
        if self.time is not None and self.time.tzinfo is None:
            raise DataError("the time has no zone", record=self.id, fix="use parse_time")
        try:  # lone surrogates can be neither hashed nor stored
            for text in (self.id, self.output, self.source, *self.input, *self.input.values()):
                text.encode()
            object.__setattr__(self, "time", parse_time(self.time))
        except UnicodeEncodeError as error:
            raise DataError("the text is not valid Unicode", record=ascii(self.id)) from error
        except ValueError as error:
            raise DataError(str(error), record=self.id) from error
        object.__setattr__(self, "input", MappingProxyType(dict(self.input)))

    def __reduce__(self) -> tuple[type[Record], tuple[object, ...]]:
        # mappingproxy cannot be copied; records cross process borders as plain values.
        values = (self.id, self.task, dict(self.input), self.output)
        return (type(self), (*values, self.time, self.origin, self.source, self.made))

    @property
    def content_hash(self) -> str:
        """sha256 over all but id, source and making: equal for the same record imported twice."""
        time = self.time.isoformat() if self.time else None
        content = [self.task, dict(sorted(self.input.items())), self.output, time, self.origin]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Question:
    """Something asked of a user's model, answered only from records older than it.

    Attributes:
        id: unique within its task and split.
        user_id: whose model is asked.
        task: name of the task.
        prompt: the full prompt without retrieved records, as the benchmark words it.
        fields: the input fields found in the prompt (see ``Task.fields``).
        time: when it is asked; None when the source has no times.
        gold: the expected answer, if known.
    """

    id: str
    user_id: str
    task: str
    prompt: str
    fields: Mapping[str, str] = field(default_factory=dict)
    time: datetime | None = None
    gold: str | None = None


class History(Sequence[Record]):
    """One user's records, oldest first.

    Dated records are sorted by time, keeping the given order among equal times.  A history
    is dated throughout or not at all: an undated one keeps the given order.

    Raises:
        DataError: two records share an id, or only some records have a time.
    """

    def __init__(self, user_id: str, records: Iterable[Record] = ()) -> None:
        self.user_id = user_id
        items = list(records)
        seen: set[str] = set()
        for record in items:
            if record.id in seen:
                raise DataError(
                    f"user {user_id} has two records with this id",
                    record=record.id,
                    fix="give every record of a user its own id",
                )
            seen.add(record.id)
        undated = [record for record in items if record.time is None]
        if undated and len(undated) < len(items):
            raise DataError(
                f"user {user_id} has records with a time and {len(undated)} without",
                record=undated[0].id,
                fix="give all of a user's records a time, or none",
            )
        if not undated:
            items.sort(key=_time)
        self._records = tuple(items)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """One record by position, or a history by slice."""
        if isinstance(index, slice):
            return History(self.user_id, self._records[index])
        return self._records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return (self.user_id, self._records) == (other.user_id, other._records)

    def __hash__(self) -> int:
        return hash((self.user_id, tuple(record.id for record in self._records)))

    def __repr__(self) -> str:
        return f"History({self.user_id!r}, {len(self)} records)"

    @property
    def dated(self) -> bool:
        """Whether the records have times."""
        return bool(self._records) and self._records[0].time is not None

    def before(self, time: datetime | None) -> History:
        """The records strictly older than ``time``; all of them when either has no time."""
        if time is None or not self.dated:
            return self
        return History(self.user_id, (r for r in self._records if _time(r) < time))

    def split(self, holdout: float | int) -> tuple[History, History]:
        """Divide into an older and a newer part; nothing older than a cut is after it.

        Args:
            holdout: the newest share (a float in [0, 1)) or number (an int) of records.

        Records with the same time stay on one side, so the newer part may come out smaller
        than asked for.  The older part is never empty unless the history is.
        """
        n = len(self._records)
        wanted = round(n * holdout) if isinstance(holdout, float) else int(holdout)
        cut = n - min(max(wanted, 0), max(n - 1, 0))
        if self.dated:
            while 0 < cut < n and _time(self._records[cut]) == _time(self._records[cut - 1]):
                cut += 1
        return self[:cut], self[cut:]


def _time(record: Record) -> datetime:
    assert record.time is not None
    return record.time


@dataclass(frozen=True, slots=True)
class User:
    """A user in a study: their history and the questions asked of their model."""

    id: str
    history: History
    questions: tuple[Question, ...] = ()
