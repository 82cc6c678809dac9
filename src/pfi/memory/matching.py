"""Whether a record has to do with a question: what is not, enters no prompt.

A search gives the best records there are, however bad.  A record matches a question if it holds
enough of the words that tell what the question is about, or stands out by its meaning from the
records around it.  Words that tell nothing (``function_words.txt``) do not count, in any language,
so that "Where is Beijing?" does not match "Where is the bicycle?".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pfi.memory.index import Memory
from pfi.memory.off_topic import WINDOW, WINDOWS, general_holding
from pfi.memory.words import is_dense, words

#: The least share of a question's telling words, rare ones counting more, that a match holds; from
#: ``ENOUGH`` on it matches whichever they are, below only if one of them is rare.
SHARE, ENOUGH = 0.2, 0.5
#: A word is rare if so many records hold it, or this share of them.
RARE_RECORDS, RARE_SHARE = 3, 0.1
#: The least cosine of a match by meaning, and how far it is above the records ranked
#: ``AROUND``: texts in a language that the sentence model does not know are all alike to it.
#: Where there are not so many records it is farther above.
COSINE, ABOVE, ABOVE_FEW = 0.45, 0.2, 0.35
AROUND = slice(3, 8)


def matching(memory: Memory, query: str) -> NDArray[np.bool_]:
    """Which positions of a memory hold a record that has to do with a question, (n,)."""
    return _by_words(memory, query) | _by_meaning(memory, query)


def _by_words(memory: Memory, query: str) -> NDArray[np.bool_]:
    """Which positions hold enough of a question's words, (n,); of a long one, of a part of it."""
    telling = [(word, weight) for word in words(query) if (weight := telling_weight(word))]
    telling = telling[: WINDOW * WINDOWS]
    matches = np.zeros(len(memory), dtype=bool)
    for at in range(0, len(telling), WINDOW):
        matches |= _part_matches(memory, telling[at : at + WINDOW])
    return matches


def _part_matches(memory: Memory, telling: Sequence[tuple[str, float]]) -> NDArray[np.bool_]:
    """Which positions hold enough of some words, each with what it tells, (n,)."""
    allowed = memory.allowed()
    count = int(allowed.sum())
    total, own = 0.0, np.zeros(len(memory))
    rare = np.zeros(len(memory), dtype=bool)
    general = np.zeros(general_holding("").size)
    for word, tells in telling:
        holding = memory.holding(word)
        holding = holding[allowed[holding]]
        # A word that no record holds counts as one that one record holds: a question may be
        # asked in other words than the record has.
        held = max(1, len(holding))
        weight = tells * max(0.05, float(np.log((count + 1) / (held + 0.5))))
        total += weight
        own[holding] += weight
        if not word.isdecimal():  # that a general question has the number says nothing
            general += weight * general_holding(word)
        if held <= max(RARE_RECORDS, RARE_SHARE * count):
            rare[holding] = True
    if not total:
        return rare
    share = own / total
    matches = (share >= ENOUGH) | ((share >= SHARE) & rare)
    # What a general question holds more of is a general question.
    result: NDArray[np.bool_] = matches & (share >= general.max() / total) & allowed
    return result


def _by_meaning(memory: Memory, query: str) -> NDArray[np.bool_]:
    """Which positions stand out by their meaning, (n,)."""
    cosines = memory.cosines(query)
    if cosines is None:
        return np.zeros(len(memory), dtype=bool)
    ranked = np.sort(cosines[memory.allowed()])[::-1]
    around = ranked[AROUND]
    if not len(around):  # too few to tell whether one stands out
        return np.zeros(len(memory), dtype=bool)
    enough = ABOVE if len(around) == AROUND.stop - AROUND.start else ABOVE_FEW
    stands_out: NDArray[np.bool_] = (cosines >= COSINE) & (cosines - around.mean() >= enough)
    return stands_out


def telling_weight(word: str) -> float:
    """How much a word tells of what a text is about: 1, or less where it may be grammar."""
    spaced, characters = _function_words()
    if word in spaced:
        return 0.0
    if not is_dense(word):
        return float(len(word) > 1)
    grammar = sum(character in characters for character in word)
    return (1.0, 0.5, 0.0)[grammar] if len(word) > 1 else 0.5 * (not grammar)


@cache
def _function_words() -> tuple[frozenset[str], frozenset[str]]:
    """Words that tell nothing, and characters of scripts without spaces."""
    text = (resources.files("pfi.memory") / "function_words.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    # Cut as questions are: "can't" is two words.
    spaced = {part for line in lines for word in line[1:] for part in words(word)}
    dense = {word for line in lines for word in line[1:] if len(word) == 1 and is_dense(word)}
    return frozenset(spaced - dense), frozenset(dense)
