"""Accounting: against closed forms, own integrals, another library and brute force."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from pfi.errors import ConfigError
from pfi.federate.privacy.accounting import _ORDERS, Accountant, Plan, calibrated
from pfi.federate.privacy.dp_fedavg import AdaptiveClip, PrivacyConfig, PrivateRounds
from pfi.federate.privacy.matrix_mechanism import Tree

ROOT = Path(__file__).resolve().parents[2]
#: A plan for which an epsilon is printed.
PLAN = Plan(fleet=10_000, cohort=500, sampling="poisson", noise=1.0, delta=4e-5, width=1024)
GRID = np.linspace(-60, 60, 240_001)


def accountant(**changes: object) -> Accountant:
    return Accountant(replace(PLAN, **changes))  # type: ignore[arg-type]


def integral(values: np.ndarray) -> float:
    return float(values.sum() * (GRID[1] - GRID[0]))


def log_mixture(rate: float, shift: float, noise: float) -> np.ndarray:
    """The logarithm of the density of a sum in which one client is with this probability."""
    out, inside = norm.logpdf(GRID, 0, noise), norm.logpdf(GRID, shift, noise)
    return np.logaddexp(math.log1p(-rate) + out, math.log(rate) + inside)


def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    """Rényi divergence of two log densities."""
    return math.log(integral(np.exp(order * p + (1 - order) * q))) / (order - 1)


def delta_of(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    """The hockey-stick divergence of two log densities."""
    return integral(np.maximum(0, np.exp(p) - np.exp(epsilon + q)))


def exact_epsilon(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    return float(brentq(lambda e: delta_of(p, q, e) - delta, 0, 100))


# Poisson sampling -----------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "noise", "rounds"), [(0.05, 1.0, 100), (0.3, 2.0, 40)])
def test_renyi_divergence_of_poisson_sampling_equals_own_integral(
    rate: float, noise: float, rounds: int
) -> None:
    plain, mixed = norm.logpdf(GRID, 0, noise), log_mixture(rate, 1, noise)
    found = []
    for order in [order for order in _ORDERS if order <= 24]:
        one = max(divergence(mixed, plain, order), divergence(plain, mixed, order))
        convert = math.log1p(-1 / order) - math.log(PLAN.delta * order) / (order - 1)
        found.append(rounds * one + convert)
    assert 0 < found.index(min(found)) < len(found) - 1, "the best order is among those tried"
    own = accountant(cohort=round(rate * PLAN.fleet), noise=noise).epsilon(rounds, by="renyi")
    assert own == pytest.approx(min(found), rel=1e-6)


@pytest.mark.parametrize(("cohort", "noise", "rounds"), [(100, 0.8, 300), (2000, 3.0, 100)])
def test_loss_distributions_lie_between_their_lower_bound_and_renyi(
    cohort: int, noise: float, rounds: int
) -> None:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    lower = from_gaussian_mechanism(
        noise,
        sampling_prob=cohort / PLAN.fleet,
        pessimistic_estimate=False,
        value_discretization_interval=2e-4,
        use_connect_dots=False,
    ).self_compose(rounds)
    own = accountant(cohort=cohort, noise=noise)
    best, renyi = own.epsilon(rounds), own.epsilon(rounds, by="renyi")
    bound = lower.get_epsilon_for_delta(PLAN.delta)
    assert bound < best < renyi
    assert best < 1.05 * bound and renyi < 1.5 * best


def test_small_losses_are_counted_finely() -> None:
    """Rounded up to a thousandth each, ten thousand of them would be twice as many."""
    own = accountant(fleet=1_000_000, cohort=1000, noise=5.0, delta=1e-7)
    assert 0.0830 < own.epsilon(10_000) < 0.0840  # 0.0830 in steps of 5e-6
    fixed = accountant(fleet=1_000_000, cohort=1000, noise=10.0, delta=1e-7, sampling="fixed")
    assert 0.0893 < fixed.epsilon(10_000) < 0.0905  # 0.0893


def test_one_round_of_poisson_sampling_is_exact() -> None:
    plain, mixed = norm.logpdf(GRID, 0, 1), log_mixture(0.05, 1, 1)
    exact = max(exact_epsilon(mixed, plain, 4e-5), exact_epsilon(plain, mixed, 4e-5))
    assert accountant().epsilon(1) == pytest.approx(exact, abs=2e-3)


def test_opacus_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "build" / "opacus"))
    opacus = pytest.importorskip(
        "opacus.accountants", reason="opacus 1.6 is not in build/opacus (pip install --no-deps)"
    )
    for cohort, noise, rounds in [(100, 0.9, 500), (1000, 2.0, 200)]:
        own = accountant(cohort=cohort, noise=noise)
        history = [(noise, cohort / PLAN.fleet, rounds)]
        renyi, loss = opacus.RDPAccountant(), opacus.PRVAccountant()
        renyi.history, loss.history = list(history), list(history)
        theirs = renyi.get_epsilon(PLAN.delta, alphas=_ORDERS)
        assert own.epsilon(rounds, by="renyi") == pytest.approx(theirs, rel=1e-6)
        assert own.epsilon(rounds) == pytest.approx(loss.get_epsilon(PLAN.delta), abs=0.015)


# Cohorts of a fixed size ------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7, 0.95])
def test_fixed_cohorts_are_never_accounted_below_what_one_client_can_do(rate: float) -> None:
    """Nobody but one client, who sends the longest update or its opposite: an exact case."""
    noise = 2.0
    this, other = log_mixture(rate, 1, noise), log_mixture(rate, -1, noise)
    exact = exact_epsilon(this, other, PLAN.delta)
    own = accountant(sampling="fixed", cohort=round(rate * PLAN.fleet), noise=noise)
    assert own.epsilon(1) >= exact
    # The proof lets the client swap with one that is asked or not: twice as far, or nothing.
    plain, swapped = norm.logpdf(GRID, 0, noise), log_mixture(rate, 2, noise)
    assert own.epsilon(1) == pytest.approx(exact_epsilon(swapped, plain, PLAN.delta), abs=2e-3)


@pytest.mark.parametrize(("cohort", "noise", "rounds"), [(500, 2.0, 100), (3000, 8.0, 50)])
def test_fixed_cohorts_lie_between_poisson_sampling_at_half_the_noise_and_renyi(
    cohort: int, noise: float, rounds: int
) -> None:
    """Of the first, each round moves one way; here the worse of both ways counts every round."""
    own = accountant(sampling="fixed", cohort=cohort, noise=noise)
    least = accountant(cohort=cohort, noise=noise / 2).epsilon(rounds)
    assert least < own.epsilon(rounds) < min(1.25 * least, own.epsilon(rounds, by="renyi"))


def test_fixed_cohorts_have_the_divergence_of_one_in_anothers_place() -> None:
    """The same in many rounds: divergences add up, and the accounted ones are no smaller."""
    this, other = log_mixture(0.3, 1, 2.0), log_mixture(0.3, -1, 2.0)
    rounds = 20
    convert = [math.log1p(-1 / a) - math.log(PLAN.delta * a) / (a - 1) for a in range(2, 30)]
    least = [rounds * divergence(this, other, a) for a in range(2, 30)]
    known = min(c + d for c, d in zip(convert, least, strict=True))
    own = accountant(sampling="fixed", cohort=3000, noise=2.0).epsilon(rounds)
    assert own >= known


def test_drawing_lots_never_costs_privacy() -> None:
    for cohort in (9_000, 9_999, 10_000):
        part = accountant(sampling="fixed", cohort=cohort, noise=4.0).epsilon(50)
        whole = accountant(sampling="all", cohort=10_000, noise=2.0).epsilon(50)
        assert part <= whole * (1 + 1e-9)
    assert part == pytest.approx(whole)


# Everyone, and by turns -------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "rounds"), [(2.0, 1), (10.0, 50)])
def test_full_participation_is_one_gaussian(noise: float, rounds: int) -> None:
    epsilon = accountant(sampling="all", cohort=PLAN.fleet, noise=noise).epsilon(rounds)
    size = math.sqrt(rounds) / noise
    below, above = norm.cdf(size / 2 - epsilon / size), norm.cdf(-size / 2 - epsilon / size)
    assert below - math.exp(epsilon) * above == pytest.approx(PLAN.delta, rel=1e-6)


def test_sampling_everyone_is_full_participation() -> None:
    whole = accountant(sampling="all", cohort=PLAN.fleet, noise=5.0).epsilon(10)
    assert accountant(cohort=PLAN.fleet, noise=5.0).epsilon(10) == whole


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7, 8, 100])
def test_one_participation_in_a_tree_is_accounted_as_by_dp_accounting(rounds: int) -> None:
    from dp_accounting import NeighboringRelation, SingleEpochTreeAggregationDpEvent, rdp

    event = SingleEpochTreeAggregationDpEvent(3.0, rounds)
    theirs = rdp.RdpAccountant(_ORDERS, NeighboringRelation.REPLACE_SPECIAL).compose(event)
    tree = Tree(rounds)
    own = accountant(
        sampling="turns", noise=3.0, sensitivity=lambda n: tree.sensitivity(n, rounds, 1)
    )
    assert own.epsilon(rounds, by="renyi") == pytest.approx(theirs.get_epsilon(PLAN.delta))


# Noise for an epsilon, rounds for a budget ---------------------------------------------------


@pytest.mark.parametrize("sampling", ["poisson", "fixed", "all"])
def test_calibrated_noise_spends_just_the_epsilon(sampling: str) -> None:
    cohort = PLAN.fleet if sampling == "all" else PLAN.cohort
    plan = replace(PLAN, sampling=sampling, cohort=cohort)  # type: ignore[arg-type]
    found = calibrated(plan, 3.0, 40)
    spent = Accountant(found).epsilon(40)
    assert 3.0 * 0.995 <= spent <= 3.0
    assert replace(found, noise=plan.noise) == plan


def test_calibration_agrees_with_that_of_dp_accounting() -> None:
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    def event(noise: float) -> dp.DpEvent:
        once = dp.PoissonSampledDpEvent(PLAN.rate, dp.GaussianDpEvent(noise))
        return dp.SelfComposedDpEvent(once, 40)

    theirs = dp.calibrate_dp_mechanism(
        lambda: PLDAccountant(value_discretization_interval=1e-3),
        event,
        2.0,
        PLAN.delta,
        dp.ExplicitBracketInterval(0.7, 2.0),
        tol=1e-3,
    )
    assert calibrated(PLAN, 2.0, 40).noise == pytest.approx(theirs, abs=2e-3)


def test_there_is_noise_for_every_epsilon_but_none() -> None:
    for epsilon in (1e-4, 1000.0):
        found = calibrated(PLAN, epsilon, 3)
        assert Accountant(found).epsilon(3) <= epsilon
    with pytest.raises(ConfigError):
        calibrated(PLAN, 0.0, 3)
    with pytest.raises(ConfigError):
        calibrated(PLAN, 1.0, 0)


@pytest.mark.parametrize("sampling", ["poisson", "all"])
def test_a_budget_allows_the_last_round_that_fits(sampling: str) -> None:
    cohort = PLAN.fleet if sampling == "all" else PLAN.cohort
    own = accountant(sampling=sampling, cohort=cohort, noise=4.0)
    rounds = own.rounds_within(2.0)
    assert rounds > 2 and own.epsilon(rounds) <= 2.0 < own.epsilon(rounds + 1)
    assert own.rounds_within(1e-9) == 0
    assert own.rounds_within(2.0, most=3) == 3


# What is printed --------------------------------------------------------------------------


def test_what_is_spent_is_said_and_never_too_low() -> None:
    for sampling, relation, hidden in [
        ("poisson", "add-or-remove", "whether any one client is in the fleet"),
        ("fixed", "replace-one", "which of any two clients is in the fleet"),
        ("all", "zero-out", "whether the updates of any one client were used"),
        ("turns", "zero-out", "whether the updates of any one client were used"),
    ]:
        cohort = PLAN.fleet if sampling == "all" else PLAN.cohort
        own = accountant(sampling=sampling, cohort=cohort, noise=8.0)
        spent = own.spent_after(10)
        assert spent.relation == relation and spent.rounds == 10 and spent.refused is None
        assert spent.epsilon is not None
        assert own.epsilon(10) <= spent.epsilon <= own.epsilon(10) + 1e-3
        assert hidden in spent.sentence and relation in spent.sentence
        assert f"epsilon is {spent.epsilon:g} at delta 4e-05" in spent.sentence
    assert accountant().spent_after(0).epsilon == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fleet": 999, "cohort": 900, "delta": 1e-4}, "999 clients are too few"),
        ({"delta": 1.01e-4}, "must be below 1/clients"),
        ({"width": 1_010_000}, "2.01 times as long"),
        ({"gain": 32.0}, "2.05 times as long"),
        ({"noise": 0.02}, "above 50"),
    ],
)
def test_an_epsilon_that_would_mislead_is_refused(changes: dict[str, float], why: str) -> None:
    allowed = {"fleet": 1000, "cohort": 900, "delta": 1e-4}, {"delta": 0.99e-4}, {"width": 990_000}
    for fine in allowed:
        assert accountant(**fine).spent_after(1).epsilon is not None
    spent = accountant(**changes).spent_after(1)
    assert spent.epsilon is None
    assert spent.refused is not None and why in spent.refused
    assert "no epsilon is given" in spent.sentence and why in spent.sentence
    assert not re.search(r"epsilon is \d", spent.sentence)


@pytest.mark.parametrize(
    "changes",
    [{"cohort": 0}, {"cohort": 10_001}, {"noise": 0.0}, {"noise": math.nan}, {"delta": 0.0}],
)
def test_plans_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        accountant(**changes)


# The documentation ------------------------------------------------------------------------


def table_row(clients: int, cohort: int, rounds: int, noise: float) -> str:
    """A line of the table in docs/federate-privacy.md."""
    cells = []
    for sampling in ("poisson", "fixed"):
        delta = clients**-1.1
        plan = Plan(clients, cohort, sampling, noise, delta, width=1024)  # type: ignore[arg-type]
        epsilon = Accountant(plan).spent_after(rounds).epsilon
        cells.append("refused" if epsilon is None else f"{math.ceil(100 * epsilon) / 100:.2f}")
    return f"| {clients:,} | {cohort:,} | {rounds:,} | {noise:g} | {cells[0]} | {cells[1]} |"


ROWS = [
    (300, 30, 50, 1.0),
    (1_000, 50, 50, 1.0),
    (1_000, 100, 50, 2.0),
    (10_000, 100, 100, 1.0),
    (10_000, 500, 100, 1.0),
    (10_000, 500, 100, 4.0),
    (10_000, 500, 1_000, 4.0),
    (100_000, 1_000, 100, 1.0),
    (100_000, 1_000, 1_000, 1.0),
    (1_000_000, 5_000, 1_000, 1.0),
]


def test_the_table_of_the_documentation_is_current() -> None:
    page = (ROOT / "docs" / "federate-privacy.md").read_text("utf-8")
    rows = [table_row(*row) for row in ROWS]
    assert "\n".join(rows) in page, "the table should be:\n" + "\n".join(rows)


def noise_row(clients: int, cohort: int, rounds: int, epsilon: float) -> str:
    """A line of the second table: noise on the running sum that an epsilon takes."""
    cells = []
    for mechanism, sampling in [
        ("gaussian", "poisson"),
        ("gaussian", "fixed"),
        ("tree", "fixed"),
        ("banded", "fixed"),
    ]:
        config = PrivacyConfig(
            mechanism=mechanism,  # type: ignore[arg-type]
            epsilon=epsilon,
            separation=clients // cohort,
        )
        plan = PrivateRounds(
            config,
            fleet=clients,
            cohort=cohort,
            sampling=sampling,  # type: ignore[arg-type]
            rounds=rounds,
            width=1024,
            seed=0,
        ).plan
        cells.append(f"{plan.noise * plan.gain:.2f}")
    return f"| {clients:,} | {cohort:,} | {rounds:,} | {epsilon:g} | " + " | ".join(cells) + " |"


def test_the_table_of_mechanisms_is_current() -> None:
    page = (ROOT / "docs" / "federate-privacy.md").read_text("utf-8")
    rows = [noise_row(1_000, 100, 50, 4.0), noise_row(10_000, 500, 100, 2.0)]
    assert "\n".join(rows) in page, "the table should be:\n" + "\n".join(rows)


def test_the_example_of_the_documentation_works() -> None:
    page = (ROOT / "docs" / "federate-privacy.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    private = names["private"]
    assert isinstance(private, PrivateRounds) and private.released == 1
    assert shown.split() == private.spent().sentence.split()


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "federate-privacy.md").read_text("utf-8")
    for name in PrivacyConfig.model_fields:
        assert f"| `{name}` |" in page
    for name in AdaptiveClip.model_fields:
        assert f"| `adaptive.{name}` |" in page
