"""What became of a source that was read: records that can be used, and what was left out, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pfi.errors import DataError

#: Reasons that an error names.
REASONS = 5


@dataclass
class ImportReport:
    """What became of a source.

    Attributes:
        read: records that can be used.
        skipped: how many were left out, by reason.
        examples: the first place of each reason, e.g. ``notes.jsonl, line 7``.
        notes: clauses on how the source was understood, where it could be otherwise.
        me: the names or addresses that are taken as the person's own.
        authors: messages by author, where the source has authors.
    """

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    me: list[str] = field(default_factory=list)
    authors: Counter[str] = field(default_factory=Counter)

    def identify(self, me: Iterable[str], authors: Mapping[str, int]) -> None:
        """Say who of the authors of messages the person is taken for, by the names shown."""
        self.me += [name for name in me if name not in self.me]
        self.authors.update(authors)

    def note(self, sentence: str) -> None:
        """Say once how the source is understood."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def skip(self, reason: str, place: str) -> None:
        """Count something that is left out."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, place)

    def merge(self, other: ImportReport) -> None:
        """Add the counts of another report."""
        self.read += other.read
        self.skipped.update(other.skipped)
        self.examples = {**other.examples, **self.examples}
        self.identify(other.me, other.authors)
        self.notes += [note for note in other.notes if note not in self.notes]

    def summary(self) -> str:
        """One line for people."""
        line = f"{self.read} record{'' if self.read == 1 else 's'} read"
        if not self.skipped:
            return line
        reasons = [
            f"{count} because {reason} (first: {self.examples[reason]})"
            for reason, count in self.skipped.most_common()
        ]
        return f"{line}, {self.skipped.total()} skipped: {'; '.join(reasons)}"

    def require_records(self, path: Path, fix: str) -> None:
        """Check that not everything was skipped.

        Raises:
            DataError: nothing was read; it names the reasons, the most frequent first.
        """
        if self.read:
            return
        what = "the source holds no records"
        if self.skipped:
            one = len(self.skipped) == 1
            shown = [
                f"{'' if one else f'{count} because '}{reason} ({self.examples[reason]})"
                for reason, count in self.skipped.most_common(REASONS)
            ]
            more = len(self.skipped) - len(shown)
            shown += [f"and {more} other reason{'' if more == 1 else 's'}"] if more else []
            what = f"none of {self.skipped.total()} records can be used: {'; '.join(shown)}"
        raise DataError(what, path=path, fix=fix)
