"""What languages call the parts of a day and the months, from Unicode's CLDR; digits of any script.

The same word may mean different things in different languages, so words are read together: the
languages that know most of them decide (`settle`).  `scripts/locale_words.py` writes the tables.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["ascii_digits", "clock_hour", "date_literals", "is_clock_word", "plain_word", "settle"]

FOLDER = Path(__file__).parent
#: Words of WhatsApp and phones beyond CLDR's, by what CLDR would say of them.
_MORE_CLOCK = {"पूर्वाह्न": "0-12", "अपराह्न": "12-24", "uhr": "0-24", "hrs": "0-24"}
#: Words between date and time (CLDR's `atTime` patterns, which `babel` does not carry).
_GLUE = [
    "at", "à", "a", "as", "às", "um", "uhr", "u", "om", "kl", "klo", "kello", "klokken", "o", "ob",
    "у", "в", "на", "alle", "ore", "la", "saat", "hrs",
]  # fmt: skip

_INVISIBLE = re.compile(r"[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def plain_word(word: str) -> str:
    """A word in the form in which words are compared: small, without spaces and points."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", word)).casefold()
    return re.sub(r"[\s.,،·'’ـ]+", "", text)


def ascii_digits(text: str) -> str:
    """The text with the digits of other scripts as 0 to 9; it keeps its length."""
    if text.isascii():
        return text
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text
    )


@cache
def _table(name: str) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Word -> meaning -> locales."""
    table: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        word, meaning, locales = line.split("\t")
        table[word][meaning] = tuple(locales.split())
    if name == "clock_words.txt":
        for word, meaning in _MORE_CLOCK.items():
            table[plain_word(word)].setdefault(meaning, ("und",))
    return table


@cache
def date_literals() -> frozenset[str]:
    """Words in dates that tell nothing, such as the Finnish `klo`; in the form of `plain_word`."""
    return frozenset([*_table("date_literals.txt"), *_GLUE])


def is_clock_word(word: str) -> bool:
    """Whether a language calls a part of the day so; the word is in the form of `plain_word`."""
    return word in _table("clock_words.txt")


def settle(kind: str, words: Mapping[str, int]) -> dict[str, str]:
    """What the words of one text mean; words that no language knows are not in it.

    Args:
        kind: `clock` (meanings are hours, like `21-24,0-6`) or `month` (numbers).
        words: how often each occurs, in the form of `plain_word`.
    """
    table = _table(f"{kind}_words.txt")
    known = {word: table[word] for word in words if word in table}
    votes: Counter[str] = Counter()
    for word, meanings in known.items():
        for language in {_language(name) for names in meanings.values() for name in names}:
            votes[language] += words[word]
    most = max(votes.values(), default=0)
    settled: dict[str, str] = {}
    for word, meanings in known.items():
        # Of the languages that know the word those that know most of the others, too.
        best = max(votes[_language(n)] for names in meanings.values() for n in names)
        top = min(best, most)
        settled[word] = max(
            meanings,
            key=lambda meaning: (
                _weight({_language(n) for n in meanings[meaning] if votes[_language(n)] >= top}),
                _width(meaning),
            ),
        )
    return settled


def _weight(languages: set[str]) -> tuple[int, int]:
    """How much languages count: first those with a code of two letters, which many people speak."""
    return sum(len(language) == 2 for language in languages), len(languages)


def _width(meaning: str) -> int:
    """How many hours a part of the day has: the half of a day rather than the afternoon."""
    spans = [span.split("-") for span in meaning.split(",")]
    return sum(int(span[-1]) - int(span[0]) for span in spans)


def _language(name: str) -> str:
    return name.partition("_")[0]


def clock_hour(hour: int, minute: int, meaning: str) -> int:
    """The hour from 0 to 23 that a clock with a word for the part of the day shows.

    Args:
        hour: as written; one above 12 needs no word.
        minute: of the hour.
        meaning: the word's hours, see `settle`.
    """
    if hour > 12 or meaning == "0-24":
        return hour
    first = hour % 12
    return min((first, first + 12), key=lambda h: (_distance(h + minute / 60, meaning), h))


def _distance(time: float, meaning: str) -> float:
    """Hours from a time of the day to the nearest of the hours; 0 within."""
    nearest = 24.0
    for span in meaning.split(","):
        start, end = (int(part) for part in span.split("-"))
        if start <= time < end or time == start:
            return 0.0
        away = min(abs(time - start), abs(time - end))
        nearest = min(nearest, away, 24 - away)
    return nearest + 1e-6
