"""Ranked lists: the best of some scores, several rankings as one, and rankings that vary.

Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009) and maximal marginal relevance
(Carbonell and Goldstein 1998).  Records are named by their position in the history, so that of
equals the newest is the one with the highest number; it comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How little the first ranks differ in a fusion; the value of the paper.
CONSTANT = 60


def best(scores: NDArray[np.float64], k: int, allowed: NDArray[np.bool_]) -> list[int]:
    """The positions of the ``k`` highest scores, best first.

    Args:
        scores: (n,), by position.
        k: how many at most.
        allowed: (n,), which positions may be taken.
    """
    places = np.flatnonzero(allowed)
    if k <= 0 or not len(places):
        return []
    if k < len(places):
        values = scores[places]
        places = places[values >= np.partition(values, len(places) - k)[len(places) - k]]
    found: list[int] = places[np.lexsort((-places, -scores[places]))][:k].tolist()
    return found


def fuse(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
    """One ranking made of several: pairs of a position and its score, best first.

    Args:
        rankings: a weight and positions, best first, of each; a position that one of them lacks
            gets nothing from it.
    """
    scores: dict[int, float] = {}
    for weight, places in rankings:
        if weight > 0:
            for rank, place in enumerate(places, 1):
                scores[place] = scores.get(place, 0.0) + weight / (CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], -item[0]))


def diverse(
    ranking: Sequence[tuple[int, float]], alike: NDArray[Any], diversity: float, k: int
) -> list[int]:
    """The ``k`` positions that are relevant and unlike those before them, best first.

    Args:
        ranking: pairs of a position and its score, best first; the scores are scaled to [0, 1].
        alike: (n, n), how like each other the ranking's n positions are; at most 1.
        diversity: weight of being unlike those chosen before, in [0, 1]; relevance has the rest.
        k: how many at most.
    """
    if not ranking:
        return []
    places = np.array([place for place, _ in ranking])
    scores = np.array([score for _, score in ranking], dtype=np.float64)
    span = scores.max() - scores.min()
    relevance = (scores - scores.min()) / span if span > 0 else np.ones(len(scores))
    nearest = np.zeros(len(places))
    left = np.ones(len(places), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(places)):
        # The first one is like nothing chosen before: it is the most relevant.
        worth = (1 - diversity) * relevance - diversity * nearest if chosen else relevance
        equals = np.flatnonzero(left & (worth == worth[left].max()))
        at = equals[np.argmax(places[equals])]
        nearest = np.maximum(nearest, alike[at]) if chosen else alike[at]
        chosen.append(int(places[at]))
        left[at] = False
    return chosen


def overlap(texts: Sequence[set[str]]) -> NDArray[np.float64]:
    """Words that two texts share, as a part of the words of both (Jaccard): (n, n)."""
    alike = np.zeros((len(texts), len(texts)))
    for i, one in enumerate(texts):
        for j, other in enumerate(texts[: i + 1]):
            both = len(one | other)
            alike[i, j] = alike[j, i] = len(one & other) / both if both else 1.0
    return alike
