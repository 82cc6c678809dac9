"""The gate's arithmetic for three to five users, worked out on paper: see each test's comment."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pfi.gate.choices import GateConfig, choices
from pfi.gate.fit import choose_for
from pfi.gate.prior import Prior, Tried, choose, prior_with, weak_prior
from pfi.tasks import get_task

ONE = GateConfig(weights=[1.0], ks=[0], per_question=False, signal="metric")
BOTH = ONE.model_copy(update={"signal": "both"})


def user(gains: list[float], likelier: list[float] | None = None, sure: float = 0.5) -> Tried:
    """A user who tried nothing, which gains nothing, and one choice."""

    def beside(values: list[float]) -> Any:
        return np.stack([np.zeros(len(values)), np.array(values, float)], axis=1)

    second = None if likelier is None else beside(likelier)
    return Tried(beside(gains), np.full(len(gains), sure), second)


def test_four_users_with_one_to_four_questions() -> None:
    """Means 3, 1, 5, 3; squares about them 0, 2, 2, 4 with 0 + 1 + 2 + 3 degrees of freedom.

    Within 8 / 6. Weights n / within 3/4, 3/2, 9/4, 3, in all 15/2; centre 24 / 7.5 = 3.2; Q =
    14.7, less 3 degrees 11.7; scale 7.5 - 16.875 / 7.5 = 5.25; between 11.7 / 5.25 = 78/35.
    The mean weighs by 1 / (78/35 + within / n), and its own variance is added to between.
    """
    prior = Prior.fit([user([3]), user([0, 2]), user([4, 5, 6]), user([2, 2, 4, 4])], ONE)
    weights = [Fraction(105, 374), Fraction(105, 304), Fraction(315, 842), Fraction(105, 269)]
    mean = sum(w * m for w, m in zip(weights, (3, 1, 5, 3), strict=True)) / sum(weights)
    assert prior.within[1] == pytest.approx(4 / 3)
    assert prior.mean[1] == pytest.approx(float(mean))
    assert prior.between[1] == pytest.approx(float(Fraction(78, 35) + 1 / sum(weights)))
    assert prior.users == 4


def test_three_users_with_two_questions_in_both_signals() -> None:
    """Metric: means 2, 2, 6, within 12 / 3 = 4, between 10/3, its mean's variance 16/9.

    Likelihood: means 1, 2, 8, within 12 / 3 = 4, between 37/3, its mean's variance 43/9.
    Covariances: within (2 - 4 + 4) / 3; between (104/3 - 2 * 2/3) / (6 - 12/6) = 25/3.
    """
    users = [user([1, 3], [0, 2]), user([0, 4], [3, 1]), user([5, 7], [6, 10])]
    prior = Prior.fit(users, BOTH)
    second = prior.likelier
    assert second is not None
    assert (prior.mean[1], second.mean[1]) == pytest.approx((10 / 3, 11 / 3))
    assert (prior.within[1], second.within[1]) == pytest.approx((4, 4))
    assert prior.between[1] == pytest.approx(10 / 3 + 16 / 9)
    assert second.between[1] == pytest.approx(37 / 3 + 43 / 9)
    assert second.shared_within[1] == pytest.approx(2 / 3)
    assert second.shared_between[1] == pytest.approx(25 / 3)


def test_two_signals_that_are_one_count_as_correlated_by_no_more_than_95_percent() -> None:
    """Of questions 4 of 4, cut to 3.8; of users 10/3 of 46/9, which is less anyway."""
    for sign in (1, -1):
        users = [user(g, [sign * x for x in g]) for g in ([1.0, 3], [0.0, 4], [5.0, 7])]
        prior = Prior.fit(users, BOTH)
        assert prior.likelier is not None
        assert prior.likelier.shared_within[1] == pytest.approx(sign * 0.95 * 4)
        assert prior.likelier.shared_between[1] == pytest.approx(sign * 10 / 3)


def test_five_users_who_do_not_differ() -> None:
    """Q is 0, so between is 0 and not -4 / scale; what is left is the mean's variance 1 / 5."""
    prior = Prior.fit([user([0, 2])] * 5, ONE)
    assert (prior.mean[1], prior.within[1]) == pytest.approx((1, 2))
    assert prior.between[1] == pytest.approx(1 / 5)


def test_a_user_whose_likelihoods_are_missing_leaves_the_metric_alone() -> None:
    users = [user([1, 3], [0, 2]), user([0, 4])]
    assert Prior.fit(users, BOTH).likelier is None
    assert Prior.fit(users[:1] * 2, BOTH).likelier is not None
    assert Prior.fit(users[:1] * 2, ONE).likelier is None


def test_users_without_questions_count_for_nothing() -> None:
    nobody = Tried(np.zeros((0, 2)), np.zeros(0))
    prior = Prior.fit([nobody, user([1, 3], sure=0.2), user([2, 2, 2], sure=0.6)], ONE)
    assert prior.users == 2
    assert prior.sure == 0.6  # the median of .2 .2 .6 .6 .6: questions, not users


def test_what_is_believed_of_a_user_by_hand() -> None:
    """Between 1, within 4: four questions weigh as much as the prior, sixteen four times so."""
    prior = Prior(np.array([0.0, 2.0]), np.array([1.0, 1.0]), np.array([4.0, 4.0]))
    for gains, mean, variance in (([6.0] * 4, 4, 0.5), ([6.0] * 16, 5.2, 0.2), ([], 2, 1.0)):
        believed, deviation = prior.posterior(user(gains))
        assert (believed[1], deviation[1] ** 2) == pytest.approx((mean, variance))
    # Less caution: 4 - 2 * sqrt(.5) is believed, 4 - 6 * sqrt(.5) is not.
    number, gain = choose(prior, user([6.0] * 4), 2.0)
    assert number == 1 and gain.tolist() == pytest.approx([0, 4 - 2 * 0.5**0.5])
    assert choose(prior, user([6.0] * 4), 6.0)[0] == 0


@pytest.mark.parametrize(
    ("task", "signal", "between", "within"),
    [
        ("LaMP_2N", "metric", 0.15, 0.2),
        ("LaMP_2N", "likelihood", 0.5, 0.7),
        ("LaMP_3", "metric", 0.28, 0.28),  # the scale goes from 1 to 5
        ("LaMP_3", "likelihood", 0.3, 0.4),
        ("LaMP_4", "metric", 0.05, 0.15),
        ("LaMP_4", "likelihood", 0.15, 0.25),
    ],
)
def test_a_prior_of_nobody_expects_nothing(
    task: str, signal: str, between: float, within: float
) -> None:
    config = ONE.model_copy(update={"signal": signal})
    prior = weak_prior(get_task(task), config, np.array([0.1, 0.9, 0.3]))
    assert prior.mean.tolist() == [0, 0] and prior.likelier is None
    assert np.sqrt(prior.between) == pytest.approx([between, between])
    assert np.sqrt(prior.within) == pytest.approx([within, within])
    assert (prior.sure, prior.users) == (0.3, 0)
    assert weak_prior(get_task(task), config).sure == 1.0
    assert weak_prior(get_task(task), config, np.zeros(0)).sure == 1.0


def test_a_prior_of_nobody_in_both_signals_is_that_of_each_and_their_correlation() -> None:
    prior = weak_prior(get_task("LaMP_3"), BOTH)
    second = prior.likelier
    assert second is not None and second.mean.tolist() == [0, 0]
    assert (prior.between[1], second.between[1]) == pytest.approx((0.28**2, 0.3**2))
    assert second.shared_between[1] == pytest.approx(0.7 * 0.28 * 0.3)
    assert second.shared_within[1] == pytest.approx(0.6 * 0.28 * 0.4)


@pytest.mark.parametrize(("records", "enough"), [(2, 0.195), (4, 0.121), (8, 0.079)])
def test_the_gain_from_which_on_it_is_believed_is_as_its_docstring_says(
    records: int, enough: float
) -> None:
    prior = weak_prior(get_task("LaMP_2N"), ONE)
    assert choose(prior, user([enough + 0.002] * records), 1.0)[0] == 1
    assert choose(prior, user([enough - 0.002] * records), 1.0)[0] == 0


def test_choices_that_the_shipped_prior_lacks_are_judged_by_the_weak_one() -> None:
    few = {"weights": [0.0, 1.0], "ks": [0], "per_question": False}
    arrays = {"mean": [0.0, 0.5], "between": [0.0, 0.25], "within": [0.0, 0.75]}
    shipped = json.dumps(
        {"gate": {**few, "signal": "metric"}, "prior": {**arrays, "sure": 0.4, "users": 9}}
    ).encode()
    config = GateConfig(weights=[0.5, 1.0], ks=[0], per_question=False, signal="metric")
    prior = prior_with(get_task("LaMP_2N"), config, shipped, np.array([0.7]))
    at = [choice.weight for choice in choices(config)].index(1.0)
    other = [choice.weight for choice in choices(config)].index(0.5)
    assert (prior.mean[at], prior.between[at], prior.within[at]) == (0.5, 0.25, 0.75)
    assert prior.mean[other] == 0 and prior.between[other] == pytest.approx(0.15**2)
    assert (prior.sure, prior.users) == (0.4, 9)


def test_a_users_choice_names_its_gain_and_on_how_many_records_it_rests() -> None:
    config = GateConfig(weights=[1.0], ks=[0], signal="metric", caution=0.0)
    known = choices(config)
    count = len(known)
    mean = np.array([0.1 * n for n in range(count)])
    prior = Prior(mean, np.full(count, 0.01), np.full(count, 0.01), sure=0.5)
    chosen = choose_for(config, prior, None)
    assert (chosen.choice, chosen.gain, chosen.tried) == (known[-1], pytest.approx(mean[-1]), 0)
    # Without a weight by likeness the best of the others.
    best = max(n for n, choice in enumerate(known) if not choice.by_likeness)
    plain = choose_for(config, prior, None, by_likeness=False)
    assert (plain.choice, plain.gain) == (known[best], pytest.approx(mean[best]))
    # Tried: all three lost a lot, so nothing is chosen, and that gains nothing.
    lost = np.full((3, len(known) // 2 + 1), -9.0)
    lost[:, 0] = 0
    own = choose_for(config, replace(prior, mean=0 * mean), Tried(lost, np.zeros(3)))
    assert (own.choice, own.gain, own.tried) == (known[0], 0.0, 3)
