"""Recall and precision of the privacy filter on planted identifiers, strictly by character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from identifier_cases import CONTACTS, Case

from pfi.privacy.redaction.identifiers import Found
from pfi.privacy.redaction.redactor import Redactor


@dataclass
class Score:
    """Counts by kind; `wrong` lists each miss and each excess."""

    planted: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)


def score(cases: Iterable[Case], find: Callable[[str], Sequence[Found]] | None = None) -> Score:
    """Score `find` (a redactor that knows the corpus's contacts by default).

    A planted identifier is a hit if no letter or digit of it stays, whatever the kind found.
    What is found is right if none of its letters and digits lies outside what was planted.
    """
    find = find or Redactor(CONTACTS).find
    result = Score()
    for case in cases:
        found = find(case.text)
        letters = {i for i, letter in enumerate(case.text) if letter.isalnum()}
        covered = {i for f in found for i in range(f.start, f.stop)}
        planted = {i for start, stop, _ in case.spans for i in range(start, stop)}
        for start, stop, kind in case.spans:
            result.planted[kind] += 1
            if letters & set(range(start, stop)) <= covered:
                result.hit[kind] += 1
            else:
                result.wrong.append(("missed", kind, case.text))
        for one in found:
            kind = one.kind.lower()
            result.found[kind] += 1
            if letters & set(range(one.start, one.stop)) <= planted:
                result.right[kind] += 1
            else:
                result.wrong.append(("excess", kind, case.text))
    return result
