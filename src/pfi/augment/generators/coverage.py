"""Coverage: which of a user's records a teacher is shown, so that a few speak for all.

Records are compared by their words (tf-idf).  Every label that the user has given is there if it
fits, then comes what is least like the records chosen so far (farthest-first).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfi.augment.drafts import Subject
from pfi.records import Record


class Lexicon:
    """The space of tf-idf vectors over some texts; built in time linear in their length.

    Attributes:
        vectors: a row of length 1 (0 for a text without words) for every text; scipy CSR.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        # Hashing needs no vocabulary, so texts without a word are no special case.
        self._counts = HashingVectorizer(
            n_features=2**18, alternate_sign=False, norm=None, token_pattern=r"\w+"
        )
        self._weights = TfidfTransformer(sublinear_tf=True)
        self.vectors: Any = self._weights.fit_transform(self._counts.transform(texts))

    def of(self, texts: Sequence[str]) -> Any:
        """The vectors of other texts in the same space."""
        return self._weights.transform(self._counts.transform(texts))

    def likeness(self, vector: Any) -> np.ndarray:
        """Cosine of every text of the space to one vector; shape (texts,)."""
        return np.asarray(self.vectors @ vector.toarray().ravel())


def choose_records(subject: Subject, count: int, rng: random.Random) -> list[Record]:
    """Up to ``count`` of the user's records that cover the rest; ``rng`` breaks ties."""
    return coverage_sets(subject, count, 1, rng)[0]


def coverage_sets(
    subject: Subject, count: int, sets: int, rng: random.Random
) -> list[list[Record]]:
    """Several choices of up to ``count`` records each.

    Each prefers the records that the ones before it used least, so that every record is used
    once there are enough of them; where there are more labels than places, so are labels.
    """
    records = list(subject.history)
    lexicon = Lexicon([_text(subject, record) for record in records])
    ties = rng.sample(range(len(records)), len(records))
    by_label: dict[str, list[int]] = {}
    if subject.task.output:
        for i, record in enumerate(records):
            if record.output in subject.task.labels:
                by_label.setdefault(record.output, []).append(i)
    label_used = dict.fromkeys(by_label, 0)
    used = [0] * len(records)
    made = []
    for _ in range(sets):
        fewest = sorted(by_label, key=lambda label: (label_used[label], ties[by_label[label][0]]))
        for label in fewest[:count]:
            label_used[label] += 1
        chosen = _one_set(lexicon, [by_label[label] for label in fewest[:count]], count, used, ties)
        made.append([records[i] for i in chosen])
    return made


def _one_set(
    lexicon: Lexicon, groups: Sequence[Sequence[int]], count: int, used: list[int], ties: list[int]
) -> list[int]:
    """Positions of one record of each group and then of any; counts them in ``used``."""
    chosen: list[int] = []
    nearest = np.zeros(len(used))
    everyone = range(len(used))
    for place in range(min(count, len(used))):
        group = groups[place] if place < len(groups) else everyone
        free = [i for i in group if i not in chosen]
        best = min(free, key=lambda i: (used[i], round(float(nearest[i]), 6), ties[i]))
        chosen.append(best)
        used[best] += 1
        nearest = np.maximum(nearest, lexicon.likeness(lexicon.vectors[best]))
    return chosen


def _text(subject: Subject, record: Record) -> str:
    """The words of a record; a label says nothing about how alike two records are."""
    output = "" if subject.task.labels else record.output
    return " ".join([*record.input.values(), output])
