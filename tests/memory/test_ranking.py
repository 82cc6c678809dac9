"""Ranked lists against plain computations of the same formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.memory.ranking import best, diverse, fuse, overlap

FEW = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # few values: many are equal


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FEW, st.booleans()), max_size=12), st.integers(-1, 13))
def test_best_is_the_head_of_a_stable_sort(pairs: list[tuple[float, bool]], k: int) -> None:
    scores = np.array([score for score, _ in pairs], dtype=np.float64)
    allowed = np.array([may for _, may in pairs], dtype=bool)
    places = [place for place, (_, may) in enumerate(pairs) if may]
    expected = sorted(places, key=lambda place: (-scores[place], -place))[: max(k, 0)]
    assert best(scores, k, allowed) == expected


def test_fusion_by_hand() -> None:
    fused = fuse([(1.0, [5, 3]), (1.0, [3, 9]), (0.5, [9])])
    assert fused == [
        (3, pytest.approx(1 / 62 + 1 / 61)),
        (9, pytest.approx(1 / 62 + 0.5 / 61)),
        (5, pytest.approx(1 / 61)),
    ]


def test_of_equals_the_newest_comes_first() -> None:
    assert [place for place, _ in fuse([(1.0, [1, 2]), (1.0, [2, 1])])] == [2, 1]
    assert [place for place, _ in fuse([(1.0, [4]), (1.0, [7]), (1.0, [5])])] == [7, 5, 4]


def test_a_ranking_without_weight_counts_nothing() -> None:
    assert fuse([(0.0, [1, 2])]) == []
    assert [place for place, _ in fuse([(1.0, [3, 8]), (0.0, [8, 3, 1])])] == [3, 8]


@given(st.lists(st.integers(0, 30), unique=True))
def test_one_ranking_stays_as_it_is(places: list[int]) -> None:
    assert [place for place, _ in fuse([(0.3, places)])] == places


def plain_mmr(
    ranking: list[tuple[int, float]], alike: np.ndarray, weight: float, k: int
) -> list[int]:
    """Carbonell and Goldstein's rule, one sum after the other."""
    scores = [score for _, score in ranking]
    low, high = min(scores), max(scores)
    left, chosen = list(range(len(ranking))), []
    while left and len(chosen) < k:

        def worth(i: int) -> float:
            relevance = (scores[i] - low) / (high - low) if high > low else 1.0
            if not chosen:
                return relevance
            return (1 - weight) * relevance - weight * max(alike[i, j] for j in chosen)

        at = max(left, key=lambda i: (round(worth(i), 12), ranking[i][0]))
        left.remove(at)
        chosen.append(at)
    return [ranking[i][0] for i in chosen]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_diverse_is_maximal_marginal_relevance(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    places = data.draw(st.permutations(range(n)))
    scores = sorted(data.draw(st.lists(FEW, min_size=n, max_size=n)), reverse=True)
    ranking = list(zip(places, scores, strict=True))
    alike = np.eye(n)
    for i in range(n):
        for j in range(i):
            alike[i, j] = alike[j, i] = data.draw(FEW)
    weight, k = data.draw(FEW), data.draw(st.integers(0, 8))
    assert diverse(ranking, alike, weight, k) == plain_mmr(ranking, alike, weight, k)


def test_diversity_puts_off_the_copy() -> None:
    ranking = [(0, 1.0), (1, 0.9), (2, 0.5), (3, 0.0)]
    alike = np.eye(4)
    alike[0, 1] = alike[1, 0] = 1.0
    assert diverse(ranking, alike, 0.0, 3) == [0, 1, 2]
    assert diverse(ranking, alike, 0.5, 3) == [0, 2, 3]
    assert diverse([], np.zeros((0, 0)), 0.5, 3) == []


def test_overlap_of_words() -> None:
    alike = overlap([{"sea", "ship"}, {"sea", "dog", "ship"}, {"cow"}, set(), set()])
    assert alike[0].tolist() == [1.0, pytest.approx(2 / 3), 0.0, 0.0, 0.0]
    assert alike[3, 4] == 1.0
    assert (alike == alike.T).all()
