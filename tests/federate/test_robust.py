"""Robust rules against plain loops and other packages, and what they withstand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import trim_mean

from pfi.errors import ConfigError
from pfi.federate.aggregate import robust_rules as rules
from pfi.federate.aggregate.robust import (
    RobustCombiner,
    RobustConfig,
    across_groups,
    bad_among,
    bad_groups,
    robust,
)

RULES = (
    "mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "norm-bound",
    "centred-clipping", "spectral",
)  # fmt: skip
ROBUST = tuple(rule for rule in RULES if rule != "mean")
PRE = ("none", "nnm", "bucketing")
#: These compare updates with zero, so that moving all of them is not the same.
WITH_ZERO = ("norm-bound", "spectral")


def made(count: int = 11, width: int = 37, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def config(rule: str = "mean", pre: str = "none", **other: Any) -> RobustConfig:
    return RobustConfig.model_validate({"rule": rule, "pre": pre, **other})


def apply(updates: np.ndarray, settings: RobustConfig, weights: Any = None, **other: Any) -> Any:
    weights = np.ones(len(updates)) if weights is None else np.asarray(weights, float)
    return robust(updates, weights, settings, **other)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BLOCK_BYTES", 1000)  # several blocks even in these tests


# Each rule against something independent ------------------------------------------------------


def test_coordinate_rules_equal_numpy_and_scipy() -> None:
    for count in (10, 11):
        x = made(count)
        assert np.allclose(apply(x, config("median")), np.median(x.astype(float), axis=0))
        bad = bad_among(count, 0.25)
        expected = trim_mean(x.astype(float), bad / count + 1e-9, axis=0)
        assert np.allclose(apply(x, config("trimmed-mean")), expected)


def test_weighted_rules_equal_repeated_updates() -> None:
    x, times = made(6), [3, 1, 2, 1, 4, 1]
    repeated = np.repeat(x, times, axis=0)
    for rule in ("mean", "median", "geometric-median"):
        same = apply(repeated, config(rule))
        assert np.allclose(apply(x, config(rule), times), same, atol=1e-5), rule
    # The share that is cut is of the weight: 1/3 of 12 at each end, a third of 6 updates.
    whole = np.sort(repeated.astype(float), axis=0)[4:8].mean(axis=0)
    assert np.allclose(apply(x, config("trimmed-mean", bad=1 / 3), times), whole)


def test_krum_equals_the_best_of_all_subsets() -> None:
    x, bad = made(9).astype(float), 2
    scores = []
    for i in range(9):
        others = [j for j in range(9) if j != i]
        scores.append(
            min(
                sum(float(((x[i] - x[j]) ** 2).sum()) for j in group)
                for group in itertools.combinations(others, 9 - bad - 2)
            )
        )
    pairs = rules.pairs_of(made(9), None)
    assert np.allclose(rules.krum_scores(pairs, bad), scores)
    assert np.allclose(apply(made(9), config("krum", bad=0.2)), x[int(np.argmin(scores))])
    best = np.argsort(scores)[: 9 - bad]
    weights = np.arange(1.0, 10.0)
    expected = np.average(x[best], axis=0, weights=weights[best])
    assert np.allclose(apply(made(9), config("multi-krum", bad=0.2), weights), expected)


def test_geometric_median_has_the_least_sum_of_distances() -> None:
    x, weights = made(9, 4).astype(float), np.arange(1.0, 10.0)

    def total(point: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(x - point, axis=1))

    best = minimize(total, x.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-7}).x
    found = apply(x.astype(np.float32), config("geometric-median"), weights)
    assert total(found) <= total(best) + 1e-9
    assert np.allclose(found, best, atol=1e-3)


def test_nearest_mixing_equals_a_loop() -> None:
    x, weights, bad = made(9), np.arange(1.0, 10.0), 2
    mixed = []
    for i in range(9):
        order = sorted(range(9), key=lambda j: float(((x[i] - x[j]).astype(float) ** 2).sum()))
        near = order[: 9 - bad]
        mixed.append(np.average(x[near].astype(float), axis=0, weights=weights[near]))
    for rule in ("mean", "median", "krum", "geometric-median", "spectral", "norm-bound"):
        # The same rule on the mixed updates, held as float32.
        expected = apply(np.array(mixed, np.float32), config(rule, bad=0.2), weights)
        found = apply(x, config(rule, "nnm", bad=0.2), weights)
        assert np.allclose(found, expected, atol=1e-5), rule


def test_clipping_equals_a_loop() -> None:
    x, last = made(9).astype(float) * np.arange(1, 10)[:, None], made(1)[0].astype(float)
    norms = np.linalg.norm(x, axis=1)
    bound = 0.7 * np.median(norms)
    clipped = [v * min(1.0, bound / n) for v, n in zip(x, norms, strict=True)]
    found = apply(x.astype(np.float32), config("norm-bound", bound=0.7))
    assert np.allclose(found, np.mean(clipped, axis=0), atol=1e-5)

    centre = last.copy()
    for _ in range(3):
        away = x - centre
        lengths = np.linalg.norm(away, axis=1)
        limit = np.median(lengths)
        steps = [v * min(1.0, limit / max(n, 1e-99)) for v, n in zip(away, lengths, strict=True)]
        centre = centre + np.mean(steps, axis=0)
    found = apply(x.astype(np.float32), config("centred-clipping", clip_steps=3), last=last)
    assert np.allclose(found, centre, atol=1e-4)


def test_spectral_equals_a_loop_on_whole_vectors() -> None:
    x = made(12, 30, 5).astype(float)
    x[:3] = x[:3] * 0.2 + 4.0 * np.sign(made(1, 30, 9))
    x[5] *= 30
    bound = np.median(np.linalg.norm(x, axis=1))
    points = np.array([v * min(1.0, bound / np.linalg.norm(v)) for v in x])
    left, least, rounds = np.ones(12), 12 - 1.5 * 3, 0
    while left.sum() > least:
        mean = (left[:, None] * points).sum(axis=0) / left.sum()
        spread = sum(w * np.outer(p - mean, p - mean) for w, p in zip(left, points, strict=True))
        values, vectors = np.linalg.eigh(spread)
        if values[-1] <= 2.0 * values[-4]:
            break
        far = ((points - mean) @ vectors[:, -1]) ** 2
        left *= 1 - far / far[left > 0].max()
        left = np.maximum(left, 0.0)
        rounds += 1
    assert rounds > 0 and left[:3].max() < 0.2 and np.median(left[3:]) > 0.5
    expected = (left[:, None] * points).sum(axis=0) / left.sum()
    found = apply(x.astype(np.float32), config("spectral"))
    assert np.allclose(found, expected, atol=1e-5)
    patient = apply(x.astype(np.float32), config("spectral", stands_out=1e3))
    assert np.allclose(patient, points.mean(axis=0), atol=1e-5)


def test_spectral_leaves_round_clouds_alone_and_is_the_same_for_many() -> None:
    x = made(260, 60, 3)
    bound = np.median(np.linalg.norm(x.astype(float), axis=1))
    factors = np.minimum(1.0, bound / np.linalg.norm(x.astype(float), axis=1))
    expected = (x * factors[:, None]).mean(axis=0)
    assert np.allclose(apply(x, config("spectral")), expected, atol=1e-6)
    matrix = (made(230, 40).astype(float) * np.linspace(1, 9, 40)) @ made(230, 40).T.copy()[:, :230]
    matrix = matrix @ matrix.T
    values, direction = rules._largest(matrix)  # the way for more than 200
    whole, vectors = np.linalg.eigh(matrix)
    assert np.allclose(values, whole[-4:], rtol=1e-8)
    assert abs(direction @ vectors[:, -1]) == pytest.approx(1.0)


def test_buckets_hold_every_update_once() -> None:
    x, weights = made(7), np.arange(1.0, 8.0)
    mixing = rules.bucket_mixing(weights, 2, np.random.default_rng(1))
    assert mixing.shape == (4, 7)
    assert ((mixing > 0).sum(axis=0) == 1).all() and ((mixing > 0).sum(axis=1) <= 2).all()
    found = apply(x, config("mean", "bucketing"), weights)
    assert np.allclose(found, np.average(x.astype(float), axis=0, weights=weights))


# What holds for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("pre", PRE)
@pytest.mark.parametrize("rule", RULES)
def test_order_size_and_place_of_updates_do_not_matter(rule: str, pre: str) -> None:
    x, weights, settings = made(10), np.linspace(1, 2, 10), config(rule, pre)
    last = made(1, seed=8)[0].astype(float)
    found = apply(x, settings, weights, last=last)
    if pre != "bucketing":  # buckets are drawn by position
        order = np.random.default_rng(3).permutation(10)
        same = apply(x[order], settings, weights[order], last=last)
        assert np.allclose(same, found, atol=1e-5)
    for size in (1e-12, 1e12):
        scaled = apply((x * size).astype(np.float32), settings, weights, last=last * size)
        assert np.allclose(scaled / size, found, atol=1e-4), size
    if rule not in WITH_ZERO:
        move = made(1, seed=4)[0]
        moved = apply(x + move, settings, weights, last=last + move)
        assert np.allclose(moved, found + move, atol=1e-4)


@pytest.mark.parametrize("pre", PRE)
@pytest.mark.parametrize("rule", RULES)
def test_equal_and_single_updates_are_their_own_result(rule: str, pre: str) -> None:
    for count in (1, 2, 3, 4, 5, 8):
        x = np.repeat(made(1), count, axis=0)
        found = apply(x, config(rule, pre), last=made(1)[0].astype(float))
        assert np.allclose(found, x[0], atol=1e-6), count
        assert np.allclose(apply(np.zeros_like(x), config(rule, pre)), 0.0)


@pytest.mark.parametrize("pre", ("none", "nnm"))
@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("far", (1e2, 1e30))
def test_far_outliers_move_a_robust_rule_little_and_the_mean_without_bound(
    rule: str, pre: str, far: float
) -> None:
    honest = made(15) + 1.0
    middle = honest.mean(axis=0)
    radius = float(np.linalg.norm(honest - middle, axis=1).max())
    bad = (made(5, seed=2) - 1.0) * np.float32(far)
    x = np.concatenate([honest, bad])
    away = np.linalg.norm(apply(x, config(rule, pre)) - middle)
    assert away <= 1.5 * radius
    assert np.linalg.norm(apply(x, config("mean")) - middle) > 10 * radius


@pytest.mark.parametrize("rule", ("median", "trimmed-mean"))
def test_coordinate_rules_stay_between_honest_values(rule: str) -> None:
    honest = made(7)
    for seed in range(20):
        bad = 1e3 * made(3, seed=seed + 10)
        found = apply(np.concatenate([honest, bad]), config(rule, bad=0.3))
        assert (found <= honest.max(axis=0)).all() and (found >= honest.min(axis=0)).all()


def test_spectral_keeps_the_mean_where_rules_of_distance_lose_it() -> None:
    """Clients of two kinds that differ more than they agree, and bad ones that turn the mean."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.eye(8, 200), 5, axis=0)
    honest = (3 * kinds + 0.05 * rng.standard_normal((40, 200))).astype(np.float32)
    mean = honest.mean(axis=0, dtype=float)

    def along(rule: str, pre: str = "none", bad: int = 10) -> float:
        turned = np.repeat(-3.0 * mean[None], bad, axis=0).astype(np.float32)
        found = apply(np.concatenate([honest, turned]), config(rule, pre, bad=0.25))
        return float(found @ mean / (mean @ mean))

    assert along("mean") < 0.25
    assert along("geometric-median") < 0.6
    assert along("spectral") > 0.9
    assert along("spectral", bad=0) == pytest.approx(1.0, abs=0.02)


# The combiner ---------------------------------------------------------------------------------


def combined(combiner: RobustCombiner, x: np.ndarray, weight: float = 1.0) -> Any:
    for n, row in enumerate(x):
        combiner.add(f"c{n}", row, weight)
    return combiner.result()


def test_what_no_rule_should_see_is_refused() -> None:
    x = made(5, 8)
    broken = {
        "nan": (np.where(np.arange(8) == 3, np.nan, x[0]), 1.0, "not finite"),
        "inf": (np.where(np.arange(8) == 3, -np.inf, x[0]), 1.0, "not finite"),
        "huge": (np.full(8, 1e300), 1.0, "too large"),
        "short": (x[0][:4], 1.0, "shape"),
        "square": (x[0].reshape(2, 4), 1.0, "shape"),
        "negative": (x[0], -1.0, "weight"),
        "none": (x[0], 0.0, "weight"),
        "no-weight": (x[0], float("nan"), "weight"),
        "endless": (x[0], float("inf"), "weight"),
        "c1": (100 * x[0], 1.0, "second"),
    }
    for rule in RULES:
        combiner = RobustCombiner(8, config(rule))
        for n, row in enumerate(x):
            combiner.add(f"c{n}", row, 1.0)
        with np.errstate(over="ignore"):
            for client, (vector, weight, _) in broken.items():
                combiner.add(
                    client, vector.astype(np.float32) if client != "huge" else vector, weight
                )
        found = combiner.result()
        assert np.allclose(found.vector, apply(x, config(rule))), rule
        assert found.clients == 5 and set(found.refused) == set(broken)
        for client, (_, _, why) in broken.items():
            assert why in found.refused[client]
    nothing = RobustCombiner(8, config("spectral"))
    nothing.add("c", np.full(8, np.nan, np.float32), 1.0)
    assert nothing.result().clients == 0 and not nothing.result().vector.any()


def test_claimed_examples_are_capped_or_ignored() -> None:
    x = made(5, 8)
    claims = [10.0, 12.0, 8.0, 11.0, 1e12]

    def found(**settings: Any) -> np.ndarray:
        combiner = RobustCombiner(8, config("mean", **settings))
        for n, claim in enumerate(claims):
            combiner.add(f"c{n}", x[n], claim)
        return combiner.result().vector

    assert np.allclose(found(), x.mean(axis=0))
    capped = np.average(x, axis=0, weights=[10, 12, 8, 11, 22])
    assert np.allclose(found(weights="examples"), capped)


def test_updates_beyond_the_memory_go_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = made(9, 70_000)
    monkeypatch.setattr(rules, "BLOCK_BYTES", 1 << 22)
    settings = config("spectral", memory_mib=1)
    combiner = RobustCombiner(70_000, settings, folder=tmp_path)
    spilled = combined(combiner, x)
    assert combiner._file is not None and combiner._file.closed and not combiner._rows
    whole = combined(RobustCombiner(70_000, config("spectral")), x)
    assert np.array_equal(spilled.vector, whole.vector)
    assert not list(tmp_path.iterdir())


def test_an_update_is_copied_when_it_is_taken() -> None:
    combiner, row = RobustCombiner(8, config("mean")), made(1, 8)[0]
    expected = row.copy()
    combiner.add("a", row, 1.0)
    row[:] = 0
    assert np.allclose(combiner.result().vector, expected)


def test_buckets_follow_the_seed() -> None:
    x, settings = made(8), config("median", "bucketing")

    def found(seed: int) -> np.ndarray:
        return combined(RobustCombiner(37, settings, seed=seed), x).vector

    assert np.array_equal(found(1), found(1)) and not np.array_equal(found(1), found(2))


def test_how_many_bad_ones_are_expected() -> None:
    assert [bad_among(n, 0.25) for n in (1, 2, 3, 4, 5, 8, 9, 40)] == [0, 0, 1, 1, 2, 2, 3, 10]
    assert bad_among(5, 0.49) == 2 and bad_among(10, 0.2) == 2 and bad_among(30, 0.1) == 3


# Groups ---------------------------------------------------------------------------------------


def test_a_rule_across_groups_withstands_groups_with_bad_clients() -> None:
    rng = np.random.default_rng(0)
    clients = made(160, 20) + 1.0
    clients[rng.permutation(160)[:8]] = -200.0  # 5 % of the clients
    means = clients.reshape(20, 8, 20).mean(axis=1)
    assert 4 <= (np.abs(means).max(axis=1) > 10).sum() <= 8
    for rule in ("median", "geometric-median", "multi-krum"):
        found = across_groups(means, np.ones(20), 8, config(rule, bad=0.05))
        assert found.clients == 20
        assert np.abs(found.vector - 1.0).max() < 1.0, rule
    assert np.abs(means.mean(axis=0) - 1.0).max() > 5.0
    broken = np.where(np.arange(20)[:, None] == 3, np.nan, means).astype(np.float32)
    assert set(across_groups(broken, np.ones(20), 8, config("median", bad=0.05)).refused) == {"3"}


def test_hopeless_groups_are_refused() -> None:
    drawn = np.random.default_rng(0).random((20_000, 8)) < 0.05
    assert bad_groups(0.05, 8) == pytest.approx(drawn.any(axis=1).mean(), abs=0.01)
    for share, size, hopeless in (
        (0.05, 8, False),
        (0.09, 8, True),
        (0.2, 8, True),
        (0.2, 3, False),
    ):
        act: Callable[[], Any] = lambda s=share, n=size: across_groups(  # noqa: E731
            made(10), np.ones(10), n, config("median", bad=s)
        )
        if hopeless:
            with pytest.raises(ConfigError, match=r"groups of 8 withstand less than 8\.3%"):
                act()
        else:
            assert act().clients == 10
