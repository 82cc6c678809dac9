"""What an import believes about a source, for the person to look over before it is believed.

It watches the records as they are read.  Its examples are a person's own texts and those of others:
they are shown to whoever runs the import, and are written nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from pfi.readers.report import ImportReport
from pfi.records import Record

__all__ = ["Example", "SelfCheck"]

#: Tasks whose input is what others wrote; in the others it is one's own, or no text of anybody.
HEARD = {"chat_reply": "chat", "email_reply": "mail", "instruction": "instruction"}
#: Tasks whose records come chat by chat, each oldest first.
_IN_ORDER = {"chat_reply"}
#: Shares above which something is suspicious, and the least counts that a share is made of.
MISREAD, BACKWARDS, AT_ONE_TIME, ONE_AUTHOR = 0.02, 0.02, 0.5, 0.98
FEW, MANY = 10, 50
#: What reasons for leaving out say of what could not be read, unlike what is left out by rule.
_MISREAD = re.compile(
    r"not understood|not (valid )?(JSON|UTF|Unicode|CSV|utf)|is not valid|the line is not|cut off"
    r"|cannot be read|could not be|not clear who|ends there|no time of its own|more cells than"
)


class Example(NamedTuple):
    """A record that was read: its id, what was taken as one's own, what as others'."""

    place: str
    mine: str
    theirs: str


@dataclass
class SelfCheck:
    """Counts and examples of the records of one import.

    Attributes:
        records: how many were read; `repeated` of them have the content of an earlier one.
        tasks: records by task.
        first: the oldest record's time; None if none has a time.
        last: the newest record's time.
    """

    records: int = 0
    repeated: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None
    room: int = 32  # examples that are kept at most
    _contents: set[bytes] = field(default_factory=set)
    _times: Counter[int] = field(default_factory=Counter)
    _time_places: dict[int, str] = field(default_factory=dict)
    _before: dict[str, datetime] = field(default_factory=dict)
    _backwards: list[str] = field(default_factory=list)
    _ordered: int = 0
    _examples: list[Example] = field(default_factory=list)
    _stride: int = 1

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records, taken into account as they pass."""
        for record in records:
            self._take(record)
            yield record

    def _take(self, record: Record) -> None:
        if self.records % self._stride == 0:
            theirs = record.input.get(HEARD.get(record.task, ""), "")
            self._examples.append(Example(record.id, record.output, theirs))
            if len(self._examples) > self.room:  # keep every second, spread over all so far
                self._examples = self._examples[::2]
                self._stride *= 2
        self.records += 1
        self.tasks[record.task] += 1
        content = bytes.fromhex(record.content_hash[:24])
        self.repeated += content in self._contents
        self._contents.add(content)
        if record.time is None:
            return
        self.years[record.time.year] += 1
        self.first = min(self.first or record.time, record.time)
        self.last = max(self.last or record.time, record.time)
        second = int(record.time.timestamp())
        self._times[second] += 1
        self._time_places.setdefault(second, record.id)
        if record.task in _IN_ORDER:
            self._ordered += 1
            if record.time < self._before.get(record.source, record.time):
                self._backwards.append(record.id)
            self._before[record.source] = record.time

    def examples(self, count: int) -> list[Example]:
        """So many examples at most, spread over the records."""
        step = max(1, len(self._examples) // max(count, 1))
        return self._examples[::step][:count]

    def facts(self, report: ImportReport) -> list[str]:
        """Sentences on who the person is taken for, how much there is and of when."""
        facts = []
        if report.me:
            named = " or ".join(f'"{name}"' for name in report.me)
            written = sum(report.authors[name] for name in report.me)
            total = report.authors.total()
            share = f": {written} of {total} messages are yours" if total else ""
            facts.append(f"You are {named}{share}.")
        span = ""
        if self.first and self.last:
            span = f" from {self.first:%Y-%m-%d} to {self.last:%Y-%m-%d}"
        kinds = ", ".join(f"{count} {task}" for task, count in self.tasks.most_common())
        many = "" if self.records == 1 else "s"
        if self.records:
            facts.append(f"{self.records} record{many}{span} ({kinds}).")
        return facts + [f"{note[:1].upper()}{note[1:]}." for note in report.notes]

    def warnings(self, report: ImportReport) -> list[str]:
        """What is suspicious about the source as it was read, each with its first place."""
        warnings = []
        misread = {reason: n for reason, n in report.skipped.items() if _MISREAD.search(reason)}
        total = report.read + report.skipped.total()
        if misread and sum(misread.values()) > MISREAD * total:
            reason = max(misread, key=misread.__getitem__)
            share = 100 * sum(misread.values()) / total
            place = report.examples.get(reason, "?")
            warnings.append(f"{share:.0f} % could not be understood: {reason} (first: {place})")
        written = report.authors.total()
        if written >= FEW and len(report.authors) == 1:
            name = next(iter(report.authors))
            warnings.append(f'everything is by one author, "{name}"; others\' words are not marked')
        elif written >= MANY:
            own = sum(report.authors[name] for name in report.me)
            if own > ONE_AUTHOR * written:
                warnings.append(f"{100 * own / written:.0f} % of the messages are taken as yours")
        if len(self._backwards) > max(2, BACKWARDS * self._ordered):
            warnings.append(
                f"{len(self._backwards)} messages are older than the one before them, so dates "
                f"may be misread (first: {self._backwards[0]})"
            )
        if self._times:
            [(second, count)] = self._times.most_common(1)
            if count >= FEW and count > AT_ONE_TIME * self._times.total():
                warnings.append(
                    f"{count} of {self._times.total()} records are of one moment, which may be "
                    f"when the files were copied (first: {self._time_places[second]})"
                )
        return warnings
