"""Likeness of texts, word for word: which drafts are copies.

Two measures that fail in different places: ROUGE-L (Lin 2004) finds texts with words changed
here and there, the Jaccard index of word shingles (Broder 1997) those with parts moved.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel

from pfi.augment.drafts import Draft
from pfi.records import Record
from pfi.tasks import Task

#: Words of a shingle.
SHINGLE = 3
# Scripts without spaces have no words to find; there each character is one.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class Likeness(NamedTuple):
    """How like two texts are, each in [0, 1]."""

    rouge: float = 0.0
    jaccard: float = 0.0


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; its characters if it has none."""
    return _WORD.findall(text.casefold()) or list("".join(text.split()))


def shingles(text: Sequence[str]) -> set[tuple[str, ...]]:
    """The runs of ``SHINGLE`` words; a shorter text is one run."""
    if not text:
        return set()
    return {tuple(text[i : i + SHINGLE]) for i in range(max(1, len(text) - SHINGLE + 1))}


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F1: twice the longest common subsequence over both lengths."""
    return Indel.normalized_similarity(a, b) if a and b else 0.0


def subject_text(task: Task, item: Draft | Record) -> str:
    """What a record is about: its input fields and its output, without a label."""
    output = "" if task.labels else item.output
    return "\n".join(text for text in (*_inputs(task, item), output) if text)


def whole_text(task: Task, item: Draft | Record) -> str:
    """Input fields and output."""
    return "\n".join(text for text in (*_inputs(task, item), item.output) if text)


def input_text(task: Task, item: Draft | Record) -> str:
    """The input fields; the output where the question is made from it."""
    return "\n".join(filter(None, _inputs(task, item))) or item.output


def _inputs(task: Task, item: Draft | Record) -> list[str]:
    return [item.input.get(name, "") for name in task.inputs]


class Copies:
    """Texts to compare others with.

    Args:
        texts: the first of them.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._letters: dict[str, str] = {}
        self._texts: list[str] = []
        self._sizes: list[int] = []
        self._holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare with this text too."""
        found = words(text)
        runs = shingles(found)
        for run in runs:
            self._holders[run].append(len(self._texts))
        self._sizes.append(len(runs))
        self._texts.append(self._spelt(found))

    def likest(self, text: str) -> Likeness:
        """The greatest likeness to any of the texts, each measure for itself."""
        found = words(text)
        if not found or not self._texts:
            return Likeness()
        best = process.extractOne(
            self._spelt(found), self._texts, scorer=Indel.normalized_similarity
        )
        runs = shingles(found)
        shared = Counter(i for run in runs for i in self._holders.get(run, ()))
        jaccard = (n / (len(runs) + self._sizes[i] - n) for i, n in shared.items())
        return Likeness(float(best[1]) if best else 0.0, max(jaccard, default=0.0))

    def _spelt(self, text: Sequence[str]) -> str:
        """A text with a letter for each word: strings are compared many times faster."""
        letters = self._letters
        for word in text:
            if word not in letters:
                number = len(letters)
                # Surrogates are no letters.
                letters[word] = chr(number if number < 0xD800 else number + 0x800)
        return "".join(letters[word] for word in text)
