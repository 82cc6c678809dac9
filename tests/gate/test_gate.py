"""The gate: its prior against simulated users, its choices, and its steps by question."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from pfi.gate.choices import (
    NOTHING,
    STEP,
    Choice,
    GateConfig,
    choices,
    mixing_weights,
    plain_choices,
)
from pfi.gate.prior import Likelier, Prior, Tried, choose, prior_with
from pfi.gate.trials import divide
from pfi.records import History, Record
from pfi.tasks import get_task
from pfi.train.examples import without_held_back

PLAIN = GateConfig(weights=[0.0, 1.0], ks=[0, 2], per_question=False)


def tried(gains: np.ndarray) -> Tried:
    return Tried(np.asarray(gains, float), np.full(len(gains), 0.5))


def people(rng, users, questions, mean, between, within):
    """Users whose true gains and whose gains question by question are drawn as the model says."""
    mean, between = np.asarray(mean, float), np.asarray(between, float)
    found, truth = [], []
    for _ in range(users):
        own = mean + between * rng.standard_normal(len(mean))
        gains = own + within * rng.standard_normal((questions, len(mean)))
        gains[:, 0] = 0
        found.append(tried(gains))
        truth.append(own)
    return found, np.array(truth)


def test_prior_finds_what_users_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    users, _ = people(rng, 400, 8, [0, 0.3, -0.1, 0], [0, 0.2, 0.1, 0], 0.5)
    prior = Prior.fit(users, PLAIN)
    assert prior.mean == pytest.approx([0, 0.3, -0.1, 0], abs=0.04)
    assert np.sqrt(prior.between) == pytest.approx([0, 0.2, 0.1, 0], abs=0.06)
    assert np.sqrt(prior.within[1:]) == pytest.approx([0.5, 0.5, 0.5], rel=0.03)
    assert prior.users == 400


def test_posterior_is_that_of_two_normals() -> None:
    prior = Prior(np.array([0.0, 0.2]), np.array([0.01, 0.04]), np.array([0.1, 0.25]))
    gains = np.array([[0.0, 1.0], [0.0, 0.4], [0.0, 0.7]])
    mean, deviation = prior.posterior(tried(gains))
    # By a grid, in place of the formula.
    grid = np.linspace(-3, 3, 60001)
    weight = stats.norm.pdf(grid, 0.2, 0.2)
    for gain in gains[:, 1]:
        weight *= stats.norm.pdf(gain, grid, 0.5)
    weight /= weight.sum()
    assert mean[1] == pytest.approx((grid * weight).sum(), abs=1e-6)
    spread = np.sqrt((weight * (grid - mean[1]) ** 2).sum())
    assert deviation[1] == pytest.approx(spread, abs=1e-6)
    assert prior.posterior(None)[0] == pytest.approx(prior.mean)


def test_own_records_outweigh_the_prior_the_more_there_are() -> None:
    prior = Prior(np.array([0.0, 0.1]), np.array([0.01, 0.01]), np.array([0.25, 0.25]))
    own = [prior.posterior(tried(np.tile([0.0, -0.5], (n, 1))))[0][1] for n in (1, 4, 32, 1000)]
    assert own == sorted(own, reverse=True)
    assert own[0] > 0 and own[-1] == pytest.approx(-0.5, abs=0.02)


def test_nothing_is_chosen_where_nothing_gains() -> None:
    prior = Prior(np.array([0.0, -0.1, 0.0]), np.full(3, 0.01), np.full(3, 0.25))
    assert choose(prior, None, 0.0)[0] == 0
    assert choose(prior, tried([[0.0, -1.0, -0.2]] * 5), 0.0)[0] == 0
    number, believed = choose(prior, tried([[0.0, -1.0, 2.0]] * 8), 1.0)
    assert number == 2
    assert believed[0] == 0 and believed[2] > 0


def test_caution_harms_fewer_users() -> None:
    rng = np.random.default_rng(1)
    others, _ = people(rng, 60, 6, [0, 0.02, 0.0, 0.03], [0, 0.3, 0.3, 0.3], 0.6)
    prior = Prior.fit(others, PLAIN)
    users, truth = people(rng, 600, 6, [0, 0.02, 0.0, 0.03], [0, 0.3, 0.3, 0.3], 0.6)
    harmed, gain = [], []
    for caution in (0.0, 1.0, 2.0):
        picked = [choose(prior, user, caution)[0] for user in users]
        own = truth[np.arange(len(users)), picked] * (np.array(picked) > 0)
        harmed.append(float((own < 0).mean()))
        gain.append(float(own.mean()))
    assert harmed[0] > 2 * harmed[1] > 2 * harmed[2]
    best = truth[:, 1:].mean(0).max()
    assert gain[0] > best and gain[1] > best  # better than the best choice for all alike


def test_a_prior_needs_users() -> None:
    with pytest.raises(ValueError, match="two questions"):
        Prior.fit([], PLAIN)
    with pytest.raises(ValueError, match="two questions"):
        Prior.fit([tried(np.zeros((1, 4)))], PLAIN)


def test_prior_survives_json() -> None:
    users, _ = people(np.random.default_rng(2), 5, 4, [0, 0.1, 0.1, 0.1], [0] * 4, 0.2)
    prior = Prior.fit(users, PLAIN)
    back = Prior.from_dict(json.loads(json.dumps(prior.to_dict())))
    assert back.to_dict() == prior.to_dict()
    one = users[0]
    assert Tried.from_dict(json.loads(json.dumps(one.to_dict()))).gains == pytest.approx(one.gains)


BOTH = PLAIN.model_copy(update={"signal": "both"})


def people_of_both(rng, users, questions, between, within, correlations):
    """Users with one choice whose gains in metric and likelihood are drawn with correlations."""

    def draw(spreads, correlation, size):
        shared = correlation * spreads[0] * spreads[1]
        table = [[spreads[0] ** 2, shared], [shared, spreads[1] ** 2]]
        return rng.multivariate_normal([0, 0], table, size=size)

    found, truth = [], draw(between, correlations[0], users)
    for own in truth:
        both = own + draw(within, correlations[1], questions)
        gains = np.stack([np.zeros_like(both), both], axis=1)  # (questions, choices, signals)
        found.append(Tried(gains[..., 0], np.full(questions, 0.5), gains[..., 1]))
    return found, truth


def test_prior_finds_how_the_signals_vary_together() -> None:
    users, _ = people_of_both(np.random.default_rng(3), 600, 8, (0.2, 0.5), (0.4, 0.3), (0.8, -0.3))
    second = Prior.fit(users, BOTH).likelier
    assert second is not None
    assert second.shared_between[1] == pytest.approx(0.8 * 0.2 * 0.5, rel=0.15)
    assert second.shared_within[1] == pytest.approx(-0.3 * 0.4 * 0.3, rel=0.15)
    assert np.sqrt(second.between[1]) == pytest.approx(0.5, rel=0.1)
    alone = Prior.fit(users, PLAIN.model_copy(update={"signal": "metric"}))
    assert alone.likelier is None


def test_posterior_of_both_is_that_of_two_dimensions() -> None:
    table, noise = np.array([[0.04, 0.03], [0.03, 0.09]]), np.array([[0.25, 0.02], [0.02, 0.16]])
    arrays = [np.array([value]) for value in (0.3, table[1, 1], noise[1, 1])]
    second = Likelier(*arrays, np.array([table[0, 1]]), np.array([noise[0, 1]]))
    prior = Prior(np.array([0.1]), table[:1, 0], noise[:1, 0], likelier=second)
    own = np.array([[0.5, 0.9], [-0.2, 0.8], [0.4, 0.1]])
    mean, deviation = prior.posterior(Tried(own[:, :1], np.zeros(3), own[:, 1:]))
    # By a grid, in place of the formula.
    x, y = np.meshgrid(np.linspace(-1.5, 1.7, 801), np.linspace(-2, 2.6, 801), indexing="ij")
    points = np.stack([x, y], axis=-1)
    weight = stats.multivariate_normal([0.1, 0.3], table).pdf(points)
    for gains in own:
        weight *= stats.multivariate_normal([0, 0], noise).pdf(gains - points)
    weight /= weight.sum()
    assert mean[0] == pytest.approx((weight * x).sum(), abs=1e-4)
    spread = np.sqrt((weight * (x - mean[0]) ** 2).sum())
    assert deviation[0] == pytest.approx(spread, abs=1e-4)


def test_the_likelihood_tells_of_the_metric() -> None:
    rng = np.random.default_rng(4)
    spreads = ((0.1, 0.3), (0.4, 0.2), (0.9, 0.1))
    others, _ = people_of_both(rng, 200, 6, *spreads)
    users, truth = people_of_both(rng, 800, 4, *spreads)
    gained = {}
    for signal in ("metric", "both"):
        prior = Prior.fit(others, PLAIN.model_copy(update={"signal": signal}))
        picked = np.array([choose(prior, user, 0.5)[0] for user in users])
        gained[signal] = float(np.where(picked > 0, truth[:, 0], 0).mean())
    assert gained["both"] > 1.5 * gained["metric"] > 0


def test_a_prior_of_the_metric_alone_leaves_likelihoods_unread() -> None:
    users, _ = people_of_both(np.random.default_rng(5), 9, 4, (0.2, 0.5), (0.4, 0.3), (0.8, 0))
    prior = Prior.fit(users, PLAIN.model_copy(update={"signal": "metric"}))
    with_both, alone = users[0], replace(users[0], likelier=None)
    assert prior.posterior(with_both)[0] == pytest.approx(prior.posterior(alone)[0])


def test_both_signals_survive_json() -> None:
    users, _ = people_of_both(np.random.default_rng(6), 9, 4, (0.2, 0.5), (0.4, 0.3), (0.8, 0))
    prior = Prior.fit(users, BOTH)
    back = Prior.from_dict(json.loads(json.dumps(prior.to_dict())))
    assert back.to_dict() == prior.to_dict() and back.likelier is not None
    again = Tried.from_dict(json.loads(json.dumps(users[0].to_dict())))
    assert again.likelier == pytest.approx(users[0].likelier)


@pytest.mark.parametrize("signal", ["metric", "likelihood", "both"])
def test_what_is_sure_is_left_alone_in_both_signals(signal: str) -> None:
    config = GateConfig(weights=[0.0, 1.0], ks=[0], signal=signal)
    likelier = np.array([[0, 1.0, 2.0], [0, -1.0, -2.0]])
    one = Tried(np.array([[0, 0.4, 0.3], [0, -0.6, -0.5]]), np.array([0.2, 0.9]), likelier)
    found = one.of_all(config, 0.7).likelier
    assert found is not None
    assert found.tolist() == [[0, 1.0, 2.0, 1.0, 2.0], [0, -1.0, -2.0, 0, 0]]


def shipped(signal: str | None, gain: float) -> bytes:
    """A prior's file; of the time before there were signals when None."""
    count = len(choices(PLAIN))
    arrays = {name: [gain] * count for name in ("mean", "between", "within")}
    config = PLAIN.model_dump(exclude={"signal"})
    told = {**config, "signal": signal} if signal else config
    return json.dumps({"gate": told, "prior": {**arrays, "sure": 0.4, "users": 9}}).encode()


@pytest.mark.parametrize(
    ("theirs", "mine", "used"),
    [
        (None, "metric", True),
        (None, "both", True),
        ("metric", "both", True),
        ("both", "metric", True),
        ("likelihood", "likelihood", True),
        ("likelihood", "both", False),
        ("metric", "likelihood", False),
    ],
)
def test_a_shipped_prior_counts_where_it_is_of_the_same_measure(
    theirs: str | None, mine: str, used: bool
) -> None:
    config = PLAIN.model_copy(update={"signal": mine})
    prior = prior_with(get_task("LaMP_4"), config, shipped(theirs, 0.125), np.array([0.7]))
    assert (prior.mean[1] == 0.125, prior.users) == (used, 9 if used else 0)
    if used:
        assert prior.likelier is None


def test_choices_begin_with_nothing_and_come_once() -> None:
    assert choices(PLAIN) == [NOTHING, Choice(1.0, 0), Choice(0.0, 2), Choice(1.0, 2)]
    config = GateConfig(weights=[0.5, 1.0], ks=[1])
    found = choices(config)
    assert found[0] == NOTHING
    assert len(set(found)) == len(found) == 2 * len(plain_choices(config)) - 1
    asked = {c.weight_at(x) for c in found for x in np.linspace(0, 1, 41)}
    assert asked - {0.0} <= set(mixing_weights(config))


def test_weight_follows_likeness_in_steps() -> None:
    by = Choice(1.0, 0, by_likeness=True)
    assert [by.weight_at(x) for x in (0.0, 0.1, 0.3, 0.6, 1.0)] == [0, 0, STEP, 2 * STEP, 1]
    assert Choice(0.5, 0).weight_at(0.1) == 0.5


def test_what_is_sure_is_left_alone() -> None:
    config = GateConfig(weights=[0.0, 1.0], ks=[0])
    one = Tried(np.array([[0, 0.4, 0.3], [0, -0.6, -0.5]]), np.array([0.2, 0.9]))
    both = one.of_all(config, 0.7)
    assert both.gains.tolist() == [[0, 0.4, 0.3, 0.4, 0.3], [0, -0.6, -0.5, 0, 0]]
    assert choices(config)[3:] == [
        Choice(1.0, 0, if_unsure=True),
        Choice(1.0, 0, by_likeness=True, if_unsure=True),
    ]


def history(count: int, *, dated: bool = True) -> History:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    return History(
        "u",
        [
            Record(
                f"r{i}", "LaMP_3", {"text": f"t{i}"}, "3", start + timedelta(i) if dated else None
            )
            for i in range(count)
        ],
    )


@pytest.mark.parametrize("dated", [True, False])
def test_the_newest_records_are_held_back(dated: bool) -> None:
    config = GateConfig(held_back=0.3, least=2, most=8)
    for count, kept in ((0, 0), (3, 0), (4, 2), (10, 3), (20, 6), (60, 8)):
        older, newest = divide(config, history(count, dated=dated))
        assert len(newest) == kept
        assert [r.id for r in (*older, *newest)] == [f"r{i}" for i in range(count)]


def test_synthetic_records_that_know_what_is_held_back_are_left_out() -> None:
    from pfi.records import Provenance

    older, newest = divide(GateConfig(), history(8))

    def made(name: str, seeds: tuple[str, ...], source: str = "") -> Record:
        by = Provenance("t", "write", "x", seeds, source)
        return Record(name, "LaMP_3", {"text": name}, "3", None, "synthetic", made=by)

    last = newest[0].id
    records = [
        made("a", ("r0", "r1")),
        made("b", ("r0", last)),
        made("c", ("r0",), source=last),
        made("d", ("r0",), source="pool-7"),
        Record("e", "LaMP_3", {"text": "e"}, "3", None, "synthetic"),
    ]
    assert [record.id for record in without_held_back(records, older, newest)] == ["a", "d"]
