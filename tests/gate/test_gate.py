"""The gate: its prior against simulated users, its choices, and its steps by question."""

from __future__ import annotations

import json
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
from pfi.gate.prior import Prior, Tried, choose
from pfi.gate.trials import divide
from pfi.records import History, Record
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
    mean, deviation = prior.posterior(gains)
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
    own = [prior.posterior(np.tile([0.0, -0.5], (n, 1)))[0][1] for n in (1, 4, 32, 1000)]
    assert own == sorted(own, reverse=True)
    assert own[0] > 0 and own[-1] == pytest.approx(-0.5, abs=0.02)


def test_nothing_is_chosen_where_nothing_gains() -> None:
    prior = Prior(np.array([0.0, -0.1, 0.0]), np.full(3, 0.01), np.full(3, 0.25))
    assert choose(prior, None, 0.0)[0] == 0
    assert choose(prior, np.array([[0.0, -1.0, -0.2]] * 5), 0.0)[0] == 0
    number, believed = choose(prior, np.array([[0.0, -1.0, 2.0]] * 8), 1.0)
    assert number == 2
    assert believed[0] == 0 and believed[2] > 0


def test_caution_harms_fewer_users() -> None:
    rng = np.random.default_rng(1)
    others, _ = people(rng, 60, 6, [0, 0.02, 0.0, 0.03], [0, 0.3, 0.3, 0.3], 0.6)
    prior = Prior.fit(others, PLAIN)
    users, truth = people(rng, 600, 6, [0, 0.02, 0.0, 0.03], [0, 0.3, 0.3, 0.3], 0.6)
    harmed, gain = [], []
    for caution in (0.0, 1.0, 2.0):
        picked = [choose(prior, user.gains, caution)[0] for user in users]
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
    assert both.tolist() == [[0, 0.4, 0.3, 0.4, 0.3], [0, -0.6, -0.5, 0, 0]]
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
