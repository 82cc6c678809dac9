"""User-level privacy in the round: against plain loops, brute force and measured frequencies."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pfi.errors import ConfigError, FederationError
from pfi.federate.privacy.dp_fedavg import PrivacyConfig, PrivateRounds
from pfi.federate.privacy.matrix_mechanism import Banded, Factor, Tree
from pfi.federate.privacy.private_mean import PrivateMean, clipped, secret_normal
from pfi.federate.sampling import Participation, fixed_cohort, poisson_cohort

NAMES = [f"c{i:03d}" for i in range(40)]


def private_mean(width: int = 8, **changes: Any) -> PrivateMean:
    """One whose noise is nearly none, unless told otherwise."""
    values: dict[str, Any] = {"clip": 1.0, "deviation": 1e-9, "denominator": 1.0}
    rng = np.random.default_rng(0)
    values |= {"noise": lambda: rng.standard_normal(width)} | changes
    return PrivateMean(width, **values)


def rounds_of(seed: int | None = 0, width: int = 8, **changes: Any) -> PrivateRounds:
    """Privacy over a run of 40 clients."""
    run: dict[str, Any] = {"fleet": 40, "cohort": 10, "sampling": "poisson", "rounds": 12}
    run |= {name: changes.pop(name) for name in list(changes) if name in run}
    settings = {"mechanism": "gaussian", "noise": 1.0, "smallest_fleet": 10} | changes
    return PrivateRounds(PrivacyConfig(**settings), width=width, seed=seed, **run)


def vectors(count: int, width: int = 8, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    lengths = scale * rng.lognormal(0, 1, (count, 1))
    return list((rng.standard_normal((count, width)) * lengths).astype(np.float32))


# Clipping and the sum ---------------------------------------------------------------------


def test_updates_are_clipped_as_by_a_plain_loop() -> None:
    mean = private_mean(clip=1.5, denominator=7.0)
    expected, shortened = [0.0] * 8, 0
    for name, vector in zip(NAMES, vectors(20), strict=False):
        mean.add(name, vector, 1.0)
        norm = math.sqrt(sum(float(x) ** 2 for x in vector))
        shortened += norm > 1.5
        for i, x in enumerate(vector):
            expected[i] += float(x) * min(1.0, 1.5 / norm) / 7
    assert 5 < shortened < 20
    np.testing.assert_allclose(mean.result().vector, expected, atol=1e-8)
    assert mean.result().clients == 20


def test_one_client_never_adds_more_than_the_bound() -> None:
    for vector in vectors(50, scale=10.0):
        mean = private_mean(deviation=1e-3, noise=lambda: np.zeros(8))
        mean.add("a", vector, 1.0)
        assert np.linalg.norm(mean.result().vector) <= 1.0


def test_weights_change_nothing_and_dropouts_not_the_denominator() -> None:
    mean = private_mean(denominator=10.0)
    mean.add("a", np.full(8, 0.1, np.float32), 1e6)
    mean.add("b", np.full(8, 0.2, np.float32), 1e-6)
    np.testing.assert_allclose(mean.result().vector, 0.03, atol=1e-7)


def test_the_denominator_is_the_cohort_that_is_planned() -> None:
    """By Poisson sampling too, whoever is drawn; otherwise it would tell how many were."""
    private = rounds_of(noise=1e-9, cohort=10)
    mean = private.combiner(NAMES[:3])
    for name in NAMES[:3]:
        mean.add(name, np.full(8, 0.1, np.float32), 1.0)
    np.testing.assert_allclose(mean.result().vector, 0.03, atol=1e-6)


def test_updates_that_cannot_be_summed_are_refused() -> None:
    mean = rounds_of(noise=1e-9).combiner(NAMES[:9])
    good = np.full(8, 0.1, np.float32)
    for i, bad in enumerate([math.nan, math.inf, -math.inf]):
        mean.add(NAMES[i], np.where(np.arange(8) == 3, bad, good).astype(np.float32), 1.0)
    mean.add(NAMES[3], good[:7], 1.0)
    mean.add("stranger", good, 1.0)
    mean.add(NAMES[4], good, 1.0)
    mean.add(NAMES[4], 2 * good, 1.0)
    result = mean.result()
    np.testing.assert_allclose(result.vector, 0.01, atol=1e-6)
    assert result.clients == 1
    whys = [*["not finite"] * 3, "shape", "not asked", "two updates"]
    names = [*NAMES[:4], "stranger", NAMES[4]]
    assert list(result.refused) == names
    assert all(why in result.refused[name] for name, why in zip(names, whys, strict=True))
    with pytest.raises(FederationError, match="after the round's result"):
        mean.add(NAMES[5], good, 1.0)


def test_the_order_of_updates_does_not_matter_to_the_last_bit() -> None:
    found = []
    for order in (1, -1):
        mean = private_mean(deviation=0.3)
        for name, vector in list(zip(NAMES, vectors(40), strict=True))[::order]:
            mean.add(name, vector, 1.0)
        found.append(mean.result().vector.tobytes())
    assert found[0] == found[1]


def test_results_are_whole_grains_whatever_the_updates() -> None:
    """So that the last bits of a result do not tell which sums it can come from."""
    for scale in (1e-6, 1.0):
        mean = private_mean(width=100, deviation=0.3)
        for name, vector in zip(NAMES, vectors(40, 100, scale), strict=True):
            mean.add(name, vector, 1.0)
        grains = mean.result().vector / 2.0**-22
        assert (grains == np.rint(grains)).all() and (grains % 2 == 1).any()


def test_the_bit_of_a_client_that_clips_first_is_that_of_one_that_does_not() -> None:
    for vector in vectors(50):
        sent, within = clipped(vector, 1.5)
        assert within == (np.linalg.norm(vector.astype(np.float64)) < 1.5)
        assert clipped(sent.astype(np.float32), 1.5)[1] == within


# Noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, None])
def test_noise_has_the_deviation_that_is_accounted(seed: int | None) -> None:
    private = rounds_of(seed, width=60_000, noise=1.7, clip=0.5, cohort=10)
    rows = np.stack([private.combiner([]).result().vector for _ in range(3)])
    wanted = 1.7 * 0.5 / 10
    assert private.plan.noise == 1.7
    np.testing.assert_allclose(rows.std(axis=1), wanted, rtol=0.015)
    for row in rows:
        assert stats.kstest(row / wanted, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(rows) - np.eye(3)).max() < 0.02


def test_noise_of_the_system_is_another_one_every_time_and_that_of_a_seed_is_not() -> None:
    def noise(seed: int | None) -> bytes:
        return rounds_of(seed).combiner([]).result().vector.tobytes()

    assert noise(1) == noise(1) != noise(2)
    assert noise(None) != noise(None)


def test_noise_is_drawn_once() -> None:
    private = rounds_of()
    first, second = private.combiner(NAMES), private.combiner(NAMES)
    assert first.result() is first.result()
    assert private.released == 1
    with pytest.raises(FederationError, match="already"):
        second.result()


def test_rounds_may_differ_in_width_where_noise_is_independent() -> None:
    private = rounds_of(width=30_000)
    row = private.combiner([], 10_000).result().vector
    assert row.shape == (10_000,) and row.std() == pytest.approx(0.1, rel=0.04)
    assert private.combiner([]).result().vector.shape == (30_000,)
    with pytest.raises(FederationError, match="same numbers"):
        rounds_of(**CORRELATED["tree"]).combiner([], 7)


def test_secret_normal_numbers_are_normal_and_belong_to_key_and_label() -> None:
    numbers = secret_normal(b"k" * 32, "sum 0", 200_001)
    assert numbers.shape == (200_001,)
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
    tail = int((np.abs(numbers) > 3.5).sum())
    assert stats.binomtest(tail, 200_001, 2 * stats.norm.sf(3.5)).pvalue > 1e-4
    half = 100_001  # the two numbers of a pair
    assert abs(np.corrcoef(numbers[: half - 1], numbers[half:])[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[: half - 1] ** 2, numbers[half:] ** 2)[0, 1]) < 0.015
    assert (numbers == secret_normal(b"k" * 32, "sum 0", 200_001)).all()
    for key, label in [(b"j" * 32, "sum 0"), (b"k" * 32, "sum 1")]:
        assert abs(np.corrcoef(numbers, secret_normal(key, label, 200_001))[0, 1]) < 0.015


# Adaptive clipping ------------------------------------------------------------------------


def test_noise_is_split_so_that_both_parts_are_one_gaussian() -> None:
    private = rounds_of(width=40_000, noise=1.5, cohort=20, adaptive={"noise": 1.0, "rate": 1e-9})
    row = private.combiner([]).result().vector * 20
    shares = (private.config.clip / row.std()) ** 2 + (0.5 / 1.0) ** 2
    assert shares**-0.5 == pytest.approx(1.5, rel=0.01)
    assert row.std() > 1.5 * 1.4


def test_the_count_has_the_noise_that_it_is_accounted_with() -> None:
    """Without updates, all that moves the bound is that noise, and the quantile."""
    private = rounds_of(noise=1.0, cohort=20, adaptive={"noise": 3.0, "rate": 1.0})
    steps = []
    for _ in range(2000):
        before = private.clip
        private.combiner([]).result()
        steps.append(-math.log(private.clip / before))
        private.clip = 1.0
    assert np.std(steps) == pytest.approx(3.0 / 20, rel=0.06)
    assert abs(np.mean(steps)) < 4 * 0.15 / math.sqrt(2000)


@pytest.mark.parametrize(("start", "quantile"), [(50.0, 0.5), (0.01, 0.8)])
def test_the_bound_finds_the_quantile(start: float, quantile: float) -> None:
    adaptive = {"quantile": quantile, "rate": 0.3, "largest": 1000}
    private = rounds_of(clip=start, fleet=400, cohort=400, noise=1.0, adaptive=adaptive)
    updates = vectors(400)
    names = [str(i) for i in range(400)]
    for _ in range(90):
        mean = private.combiner(names)
        for name, vector in zip(names, updates, strict=True):
            mean.add(name, clipped(vector, private.clip)[0].astype(np.float32), 1.0)
        mean.result()
    short = np.mean([np.linalg.norm(vector) < private.clip for vector in updates])
    assert short == pytest.approx(quantile, abs=0.06)


def test_noise_follows_the_bound() -> None:
    private = rounds_of(width=40_000, clip=1.0, cohort=40, noise=1.0, adaptive={})
    private.clip = 8.0
    row = private.combiner([]).result().vector * 40
    assert row.std() == pytest.approx(8.0 * (1 - 1 / 16) ** -0.5, rel=0.02)


def test_a_count_that_would_take_all_of_the_privacy_is_refused() -> None:
    with pytest.raises(ConfigError, match="count"):
        rounds_of(noise=1.0, adaptive={"noise": 0.5})
    with pytest.raises(ConfigError, match="count"):
        rounds_of(noise=1.0, cohort=10, adaptive={})  # its default: 10 / 20
    rounds_of(noise=1.0, adaptive={"noise": 0.51})


# Sampling ---------------------------------------------------------------------------------


def inclusion(private: PrivateRounds, draws: int) -> np.ndarray:
    """Who is asked, ``(draws, clients)``."""
    found = np.zeros((draws, len(NAMES)))
    for row in found:
        asked = private.cohort(NAMES)
        row[[NAMES.index(name) for name in asked]] = 1
        private.released += 1
    return found


@pytest.mark.parametrize("seed", [5, None])
def test_poisson_cohorts_are_drawn_at_the_rate_that_is_accounted(seed: int | None) -> None:
    private = rounds_of(seed, cohort=10)
    drawn = inclusion(private, 1500)
    rate = private.plan.rate
    spread = math.sqrt(rate * (1 - rate) / 1500)
    assert np.abs(drawn.mean(axis=0) - rate).max() < 4.5 * spread
    assert abs(drawn.mean() - rate) < 4.5 * spread / math.sqrt(40)
    # Each by itself: sizes vary as those of a binomial, and no two clients go together.
    assert drawn.sum(axis=1).var() == pytest.approx(40 * rate * (1 - rate), rel=0.2)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(40)).max() < 0.13


@pytest.mark.parametrize("seed", [5, None])
def test_fixed_cohorts_are_any_set_of_their_size_alike(seed: int | None) -> None:
    private = rounds_of(seed, cohort=10, sampling="fixed")
    drawn = inclusion(private, 1500)
    assert (drawn.sum(axis=1) == 10).all()
    assert np.abs(drawn.mean(axis=0) - 0.25).max() < 4.5 * math.sqrt(0.25 * 0.75 / 1500)
    pairs = (drawn.T @ drawn / 1500)[np.triu_indices(40, 1)]
    chance = 10 * 9 / (40 * 39)
    assert np.abs(pairs - chance).max() < 5 * math.sqrt(chance / 1500)


def test_cohorts_do_not_depend_on_the_order_of_clients_nor_on_repetition() -> None:
    mixed = [*NAMES[::-1], *NAMES[:10]]
    assert poisson_cohort(mixed, 0.3, 7) == poisson_cohort(NAMES, 0.3, 7)
    assert fixed_cohort(mixed, 9, 7) == fixed_cohort(NAMES, 9, 7)
    assert poisson_cohort(NAMES, 0.3, 7) != poisson_cohort(NAMES, 0.3, 8)
    assert poisson_cohort(NAMES, 0, None) == [] and poisson_cohort(NAMES, 1, None) == NAMES


def test_cohorts_that_cannot_be_drawn_are_refused() -> None:
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="rate"):
            poisson_cohort(NAMES, rate, 0)
    with pytest.raises(FederationError, match="41"):
        fixed_cohort(NAMES, 41, 0)


def test_fixed_cohorts_are_not_drawn_from_fewer_clients_than_accounted() -> None:
    """Each of them would be in it more often; Poisson sampling does not mind."""
    with pytest.raises(FederationError, match="accounted for 40"):
        rounds_of(sampling="fixed").cohort(NAMES[:39])
    assert len(rounds_of(sampling="fixed").cohort([*NAMES, "new"])) == 10
    rounds_of(sampling="fixed").combiner(NAMES[:10])
    with pytest.raises(FederationError, match="spare"):
        rounds_of(sampling="fixed").combiner(NAMES[:11])
    rounds_of().combiner(NAMES[:11])
    drawn = [len(rounds_of(seed).cohort(NAMES[:20])) for seed in range(300)]
    assert np.mean(drawn) == pytest.approx(20 * 0.25, abs=0.5)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_cohort_of_everyone_is_accounted_without_lots(sampling: str) -> None:
    private = rounds_of(cohort=40, sampling=sampling)
    assert private.plan.sampling == "all" and private.plan.relation == "zero-out"
    assert private.cohort(NAMES) == NAMES


# Noise that cancels -----------------------------------------------------------------------


def patterns(rounds: int, separation: int, most: int, start: int = 0) -> Iterator[tuple[int, ...]]:
    """Every set of rounds in which one client may take part."""
    yield ()
    for i in range(start, rounds if most else start):
        for rest in patterns(rounds, separation, most - 1, i + separation):
            yield (i, *rest)


def brute_force(matrix: np.ndarray, separation: int, most: int) -> float:
    found = patterns(len(matrix), separation, most)
    return float(max(np.linalg.norm(matrix[:, list(pattern)].sum(1)) for pattern in found))


CASES = [(r, s, m) for r in (1, 2, 3, 5, 8, 11) for s in (1, 2, 3, 5) for m in (1, 2, 99)]


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_sensitivity_of_a_band_is_that_of_the_worst_choice_of_rounds(bands: int) -> None:
    for rounds, separation, most in CASES:
        if bands <= separation:
            worst = brute_force(Banded(rounds, bands).matrix(), separation, most)
            found = Banded(rounds, bands).sensitivity(rounds, separation, most)
            assert found == pytest.approx(worst), (rounds, separation, most)


def test_sensitivity_of_a_tree_is_never_below_that_of_the_worst_choice_of_rounds() -> None:
    for rounds, separation, most in CASES:
        worst = brute_force(Tree(rounds).matrix(), separation, most)
        found = Tree(rounds).sensitivity(rounds, separation, most)
        assert worst - 1e-9 <= found <= 1.07 * worst, (rounds, separation, most)
        if most == 1:
            assert found == pytest.approx(worst)


@pytest.mark.parametrize("factor", [Tree(9), Banded(9, 3)], ids=["tree", "banded"])
def test_sensitivity_after_some_rounds_is_that_of_the_rows_so_far(factor: Factor) -> None:
    for rounds in range(1, 10):
        worst = brute_force(factor.matrix()[:rounds, :rounds], 3, 99)
        found = factor.sensitivity(rounds, 3, 99)
        assert worst - 1e-9 <= found <= 1.07 * worst
    assert factor.sensitivity(0, 3, 99) == 0


@pytest.mark.parametrize("factor", [Tree(9), Banded(9, 3)], ids=["tree", "banded"])
def test_no_updates_move_the_sums_more_than_the_same_one_every_time(factor: Factor) -> None:
    rng, matrix = np.random.default_rng(0), factor.matrix()
    assert (matrix >= 0).all() and (np.triu(matrix, 1) == 0).all() and (np.diag(matrix) == 1).all()
    limit = factor.sensitivity(9, 3, 99)
    for pattern in patterns(9, 3, 99):
        moved = rng.standard_normal((30, len(pattern), 2))
        moved /= np.maximum(1, np.linalg.norm(moved, axis=2, keepdims=True))
        sizes = np.linalg.norm(matrix[:, list(pattern)] @ moved, axis=(1, 2))
        assert sizes.max(initial=0) <= limit + 1e-9


def test_bands_that_meet_in_a_round_are_refused() -> None:
    with pytest.raises(ConfigError, match="bands"):
        Banded(9, 4).sensitivity(9, 3, 2)
    with pytest.raises(ValidationError, match="bands"):
        PrivacyConfig(mechanism="banded", noise=1, separation=3, bands=4)


def test_turns_that_the_fleet_is_too_small_for_are_refused() -> None:
    rounds_of(mechanism="tree", separation=4)
    with pytest.raises(ConfigError, match="need 50 clients"):
        rounds_of(mechanism="tree", separation=5)


@pytest.mark.parametrize(
    "factor", [Tree(1), Tree(12), Banded(1, 1), Banded(12, 1), Banded(12, 4), Banded(3, 9)]
)
def test_streams_are_the_inverse_of_the_matrix(factor: Factor) -> None:
    stream = factor.stream()
    rows = np.stack([stream.next(row) for row in np.eye(factor.rounds)])
    np.testing.assert_allclose(rows, np.linalg.inv(factor.matrix()), atol=1e-12)
    sums = np.tril(np.ones_like(rows))
    error = np.linalg.norm(sums @ rows) / np.linalg.norm(sums)
    assert factor.gain() == pytest.approx(error)


@pytest.mark.parametrize("bands", [3, 8])
def test_a_whole_band_is_the_square_root_of_running_sums(bands: int) -> None:
    matrix = Banded(8, bands).matrix()
    sums = np.tril(np.ones((8, 8)))
    np.testing.assert_allclose((matrix @ matrix)[:bands], sums[:bands], atol=1e-12)


CORRELATED: dict[str, dict[str, Any]] = {
    "tree": {"mechanism": "tree", "separation": 3},
    "banded": {"mechanism": "banded", "separation": 3},
}


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("name", CORRELATED)
def test_covariance_of_the_noise_over_rounds(name: str, seed: int | None) -> None:
    private = rounds_of(seed, width=30_000, rounds=8, noise=2.0, clip=0.5, **CORRELATED[name])
    rows = np.stack([private.combiner([]).result().vector for _ in range(8)])
    assert private.factor is not None
    inverse = np.linalg.inv(private.factor.matrix())
    wanted = (2.0 * 0.5 / 10) ** 2 * inverse @ inverse.T
    np.testing.assert_allclose(rows @ rows.T / 30_000, wanted, atol=0.03 * wanted.max())
    assert np.abs(wanted - np.diag(np.diag(wanted))).max() > 0.1 * wanted.max()
    with pytest.raises(FederationError, match="8 rounds"):
        private.combiner([])
    assert not private.allows()


@pytest.mark.parametrize("name", CORRELATED)
def test_who_may_take_part_is_enforced(name: str) -> None:
    private = rounds_of(noise=1e-9, **CORRELATED[name])
    update = np.full(8, 0.1, np.float32)
    took_part: dict[str, list[int]] = {client: [] for client in NAMES}
    for number in range(12):
        asked = private.cohort(NAMES)
        assert len(asked) == (0 if number % 3 else 10)
        mean = private.combiner(NAMES)  # a server that lets everyone in, asked or not
        for client in NAMES:
            mean.add(client, update, 1.0)
        result = mean.result()
        np.testing.assert_allclose(result.vector, 0.1 * result.clients / 10, atol=1e-6)
        for client in NAMES:
            if client not in result.refused:
                took_part[client].append(number)
            else:
                assert "took part in round" in result.refused[client]
    assert all(rounds == [0, 3, 6, 9] for rounds in took_part.values())


@pytest.mark.parametrize("name", CORRELATED)
def test_cohorts_are_drawn_from_those_who_may_take_part(name: str) -> None:
    private = rounds_of(**CORRELATED[name])
    mean = private.combiner(NAMES[:35])
    mean.add_sum(NAMES[:35], np.zeros(8))
    mean.result()
    assert private.cohort(NAMES) == NAMES[35:]


def test_participation_by_turns_and_times() -> None:
    turns = Participation(separation=3, most=2)
    turns.record(["a", "b"], 0)
    assert turns.available(["a", "b", "c"], 2) == ["c"]
    assert turns.available(["a", "b", "c"], 3) == ["a", "b", "c"]
    turns.record(["a"], 3)
    assert turns.available(["a", "b"], 9) == ["b"]
    again = Participation(3, 2)
    again.restore(json.loads(json.dumps(turns.state())))
    for state in (turns, again):
        state.record(["b"], 4)
        with pytest.raises(FederationError, match="took part 2 times"):
            state.record(["a"], 9)
        with pytest.raises(FederationError, match="may again in round 7"):
            state.record(["b"], 5)


def test_turns_are_accounted_with_the_sensitivity_of_their_participation() -> None:
    for name, values in CORRELATED.items():
        private = rounds_of(noise=4.0, fleet=2000, cohort=600, width=64, **values)
        for rounds in (1, 4, 12):
            assert private.factor is not None
            size = brute_force(private.factor.matrix()[:rounds, :rounds], 3, 99)
            alone = rounds_of(noise=4.0 / size, fleet=2000, cohort=2000)
            found = private.accountant.epsilon(rounds)
            assert alone.accountant.epsilon(1) <= found + 1e-9
            if name == "banded":
                assert found == pytest.approx(alone.accountant.epsilon(1))
        assert private.spent().relation == "zero-out"
        assert private.accountant.epsilon(13) == math.inf
        assert private.accountant.rounds_within(1e6) == 12
    fewer = rounds_of(noise=4.0, participations=1, fleet=2000, cohort=600, **CORRELATED["banded"])
    assert fewer.accountant.epsilon(12) < private.accountant.epsilon(12)


# Budget and epsilon -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"sampling": "fixed"}, {"cohort": 40}, *CORRELATED.values()], ids=str
)
def test_a_run_stops_at_its_budget(changes: dict[str, Any]) -> None:
    private = rounds_of(noise=4.0, **changes)
    budget = private.accountant.epsilon(5) + 1e-6
    private = rounds_of(noise=4.0, budget=budget, **changes)
    while private.allows():
        assert private.released < 12
        private.combiner([]).result()
    spent = [private.accountant.epsilon(private.released + more) for more in (0, 1)]
    assert spent[0] <= budget < spent[1]
    assert private.released >= 5


@pytest.mark.parametrize("changes", [{}, CORRELATED["tree"], CORRELATED["banded"]], ids=str)
def test_noise_for_an_epsilon_lasts_for_the_rounds_planned(changes: dict[str, Any]) -> None:
    private = rounds_of(noise=None, epsilon=3.0, delta=1e-3, **changes)
    assert 2.98 < private.accountant.epsilon(12) <= 3.0
    private.released = 11
    assert private.allows()
    private.released = 12
    assert not private.allows()


def test_what_is_spent_counts_results_and_keeps_silent_for_small_fleets() -> None:
    private = rounds_of(noise=4.0, smallest_fleet=40, cohort=20)
    assert private.spent().epsilon == 0
    private.combiner([])
    assert private.spent().rounds == 0
    private.combiner([]).result()
    spent = private.spent()
    assert spent.rounds == 1 and spent.epsilon is not None
    assert spent.epsilon >= private.accountant.epsilon(1)
    assert spent.delta == 40**-1.1
    small = rounds_of(noise=4.0, smallest_fleet=41, cohort=20).spent()
    assert small.epsilon is None and "40 clients are too few" in small.sentence
    loud = rounds_of(noise=4.0, cohort=20, width=101).spent()
    assert loud.epsilon is None and "2.01 times" in loud.sentence
    assert rounds_of(noise=4.0, cohort=20, width=99).spent().epsilon is not None


# Checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize(
    "changes",
    [{"adaptive": {"noise": 2.0}}, CORRELATED["tree"], CORRELATED["banded"]],
    ids=["adaptive", "tree", "banded"],
)
def test_a_run_goes_on_from_its_checkpoint(changes: dict[str, Any], seed: int | None) -> None:
    def play(private: PrivateRounds, rounds: int) -> list[bytes]:
        found = []
        for _ in range(rounds):
            asked = NAMES[private.released % 3 * 10 :][:10]
            mean = private.combiner(asked)
            for name in asked:
                mean.add(name, np.full(8, 0.1, np.float32), 1.0)
            found.append(mean.result().vector.tobytes())
        return found

    first, second = rounds_of(seed, **changes), rounds_of(seed, **changes)
    play(first, 5)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.released == 5 and second.clip == first.clip
    assert second.state() == first.state()
    # Independent noise of the system is new; noise that cancels has to be the same.
    same = seed is not None or first.factor is not None
    assert (play(first, 7) == play(second, 7)) == same


def test_secrets_of_independent_noise_are_never_kept() -> None:
    private = rounds_of(None)
    assert set(private.state()) == {"released", "clip", "plan"}
    drawn = [private._normal("sum", 4).tolist() for _ in range(2)]
    assert drawn[0] != drawn[1], "a key of its own every time"


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    state = rounds_of(noise=1.0).state()
    rounds_of(noise=1.0, budget=3, rounds=13).restore(state)
    for changes in (
        *({"noise": 1.1}, {"cohort": 11}, {"sampling": "fixed"}, {"width": 9}),
        *({"clip": 2.0}, {"adaptive": {"noise": 3.0}}, {"delta": 0.01}),
    ):
        with pytest.raises(FederationError, match="other settings"):
            rounds_of(**({"noise": 1.0} | changes)).restore(state)


# Secure sums ------------------------------------------------------------------------------


def test_a_secure_sum_counts_as_its_updates_do() -> None:
    settings: dict[str, Any] = {"noise": 1e-6, "cohort": 20, "adaptive": {}}
    one, many = rounds_of(**settings), rounds_of(**settings)
    names, updates = NAMES[:12], [clipped(v, 1.0) for v in vectors(12)]
    mean, secure = many.combiner(NAMES), one.combiner(NAMES)
    for name, (update, _) in zip(names, updates, strict=True):
        mean.add(name, update.astype(np.float32), 1.0)
    secure.add_sum(names, sum(u for u, _ in updates), sum(within for _, within in updates))
    np.testing.assert_allclose(secure.result().vector, mean.result().vector, atol=1e-6)
    assert one.clip == many.clip != 1.0
    assert secure.result().clients == 12


def test_secure_sums_that_cannot_be_are_refused() -> None:
    total = np.full(8, 1.0)  # as long as 2.83 clipped updates
    cases: list[tuple[list[str], np.ndarray, int]] = [
        (NAMES[:4], total[:7], 0),
        (NAMES[:4], total * math.nan, 0),
        (NAMES[:4], total, 5),
        (NAMES[:4], total, -1),
        ([*NAMES[:3], "stranger"], total, 0),
        ([*NAMES[:3], NAMES[0]], total, 0),
    ]
    for clients, vector, within in cases:
        mean = rounds_of().combiner(NAMES)
        with pytest.raises(FederationError, match="refused"):
            mean.add_sum(clients, vector, within)
        assert mean.result().clients == 0
    mean = rounds_of().combiner(NAMES)
    mean.add_sum(NAMES[:4], total)
    with pytest.raises(FederationError, match="already"):
        mean.add_sum(NAMES[3:7], total)


# Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"mechanism": "gaussian"},
        {"mechanism": "gaussian", "noise": 1, "epsilon": 1},
        {"mechanism": "tree", "noise": 1, "adaptive": {}},
        {"mechanism": "gaussian", "noise": 1, "delta": 1},
        {"mechanism": "gaussian", "noise": -1},
        {"mechanism": "laplace", "noise": 1},
        {"noise_multiplier": 1},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrivacyConfig.model_validate(settings)


def test_no_mechanism_is_no_privacy() -> None:
    assert PrivacyConfig().mechanism == "none"
    with pytest.raises(ConfigError, match="mechanism"):
        rounds_of(mechanism="none")


def test_importing_needs_neither_torch_nor_the_accountant() -> None:
    code = (
        "import sys, pfi.federate.privacy.dp_fedavg; "
        "print({'torch', 'dp_accounting'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
