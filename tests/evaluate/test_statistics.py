"""Statistics over users: against brute force, by hand, and that intervals cover the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pfi._util.events import new_event
from pfi.evaluate.statistics import (
    Draws,
    UserAnswers,
    interval,
    metric_samples,
    summarise,
    user_scores,
    worst_decile,
)
from pfi.evaluate.study.arms import get_arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.tasks import get_task

CHOICE, SCORE, TEXT = get_task("LaMP_2M"), get_task("LaMP_3"), get_task("LaMP_7")


def resamples(users: int, rounds: int, seed: int) -> np.ndarray:
    """All draws as one table."""
    return np.array(list(Draws(users, rounds, seed)))


def people(labels: list[str], n: int = 7, seed: int = 0) -> dict[str, UserAnswers]:
    """Users with 1 to 6 questions each, who are right half of the time."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(n):
        golds = [str(g) for g in rng.choice(labels, rng.integers(1, 7))]
        answers = [g if rng.random() < 0.5 else str(rng.choice(labels)) for g in golds]
        made[f"u{i}"] = UserAnswers(answers, golds, history=10 * i)
    return made


def flat(users: list[UserAnswers]) -> tuple[list[str], list[str]]:
    return [a for u in users for a in u.answers], [g for u in users for g in u.golds]


def brute_force(name: str, users: list[UserAnswers]) -> float:
    """A metric over all the questions of some users, without pfi's code."""
    answers, golds = flat(users)
    if name == "accuracy":
        return float(np.mean([a == g for a, g in zip(answers, golds, strict=True)]))
    if name == "macro_f1":
        macro = f1_score(golds, answers, labels=CHOICE.labels, average="macro", zero_division=0)
        return float(macro)
    errors = np.array([float(a) - float(g) for a, g in zip(answers, golds, strict=True)])
    return float(np.abs(errors).mean() if name == "mae" else (errors**2).mean() ** 0.5)


@pytest.mark.parametrize(
    ("task", "name"),
    [(CHOICE, "accuracy"), (CHOICE, "macro_f1"), (SCORE, "mae"), (SCORE, "rmse")],
)
def test_samples_are_the_metric_over_resampled_users(task, name: str) -> None:  # type: ignore[no-untyped-def]
    users = list(people(task.labels[:5]).values())
    draws = resamples(len(users), 40, seed=3)
    full, samples = metric_samples(task, name, users, draws)
    assert full == pytest.approx(brute_force(name, users))
    expected = [brute_force(name, [users[i] for i in draw]) for draw in draws]
    assert samples == pytest.approx(np.array(expected))
    assert np.ptp(samples) > 0


def test_draws() -> None:
    draws = resamples(9, 500, seed=1)
    assert draws.shape == (500, 9)
    assert {*draws.ravel().tolist()} == {*range(9)}
    assert len({*draws[0].tolist()}) < 9  # with replacement
    assert (draws == resamples(9, 500, seed=1)).all()
    assert (draws != resamples(9, 500, seed=2)).any()


def test_interval_by_hand() -> None:
    assert interval(np.arange(1001.0)) == [25.0, 975.0]


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered, trials, widths = 0, 120, []
    for trial in range(trials):
        # Users differ: their own rates are beta(4, 2), so the truth is 2/3.
        rates = rng.beta(4, 2, size=40)
        users = []
        for rate in rates:
            right = rng.random(5) < rate
            users.append(UserAnswers(["comedy" if r else "action" for r in right], ["comedy"] * 5))
        draws = resamples(len(users), 300, seed=trial)
        low, high = interval(metric_samples(CHOICE, "accuracy", users, draws)[1])
        covered += low <= 2 / 3 <= high
        widths.append(high - low)
    assert 0.87 <= covered / trials < 1
    # Standard error with users as the unit: sqrt(variance of a user's share / 40).
    variance = 4 * 2 / (6**2 * 7)  # of beta(4, 2)
    share = variance + (2 / 9 - variance) / 5
    assert np.mean(widths) == pytest.approx(2 * 1.96 * (share / 40) ** 0.5, rel=0.08)


def users_of(*pairs: tuple[list[str], list[str]]) -> dict[str, UserAnswers]:
    return {f"u{n}": UserAnswers(answers, golds) for n, (answers, golds) in enumerate(pairs)}


@pytest.mark.parametrize("task", [CHOICE, SCORE])
def test_an_arm_against_itself_gains_exactly_nothing(task) -> None:  # type: ignore[no-untyped-def]
    arm = people(task.labels)
    cell = summarise(task, arm, arm, rounds=50, seed=0)
    assert cell["gain"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert cell["harmed"] == 0.0
    # The order of the users in the mapping says nothing.
    turned = summarise(task, dict(reversed(arm.items())), arm, rounds=50, seed=0)
    assert {**turned, "users": None} == {**cell, "users": None}


def test_gain_and_harm_by_hand() -> None:
    golds = ["comedy", "comedy"]
    good, half, bad = ["comedy", "comedy"], ["comedy", "action"], ["action", "action"]
    base = users_of((half, golds), (half, golds), (half, golds), (half, golds))
    arm = users_of((good, golds), (good, golds), (half, golds), (bad, golds))
    cell = summarise(CHOICE, arm, base, rounds=200, seed=0)
    assert cell["gain"]["mean"] == pytest.approx(5 / 8 - 4 / 8)
    assert cell["harmed"] == 1 / 4  # who stays the same is not harmed
    low, high = cell["gain"]["ci95"]
    assert low < 0 < high
    assert cell["metrics"]["accuracy"]["mean"] == pytest.approx(5 / 8)
    assert (cell["n_users"], cell["n_questions"]) == (4, 8)
    assert [cell["users"][f"u{n}"]["score"] for n in range(4)] == [1, 1, 0.5, 0]
    assert cell["worst_decile"] == 0


def test_less_error_is_a_gain() -> None:
    base = users_of((["3"], ["5"]), (["4"], ["5"]), (["1"], ["1"]))
    arm = users_of((["4"], ["5"]), (["2"], ["5"]), (["1"], ["1"]))
    cell = summarise(SCORE, arm, base, rounds=100, seed=0)
    assert cell["gain"]["mean"] == pytest.approx((2 + 1 + 0) / 3 - (1 + 3 + 0) / 3)
    assert cell["harmed"] == pytest.approx(1 / 3)
    assert cell["worst_decile"] == 3
    better = summarise(SCORE, users_of((["5"], ["5"])), users_of((["4"], ["5"])), rounds=9, seed=0)
    assert better["gain"] == {"mean": 1.0, "ci95": [1.0, 1.0]}


def test_the_gain_is_paired() -> None:
    """Users differ a lot, but each gains the same: only pairing shows it."""
    base = {f"u{n}": UserAnswers(["5"], [str(1 + n % 4)]) for n in range(20)}
    arm = {f"u{n}": UserAnswers(["4"], [str(1 + n % 4)]) for n in range(20)}
    cell = summarise(SCORE, arm, base, rounds=200, seed=0)
    assert cell["gain"]["ci95"] == pytest.approx([1, 1])
    low, high = cell["metrics"]["mae"]["ci95"]
    assert high - low > 0.5


def test_gains_of_the_main_metric_equal_brute_force() -> None:
    arm, base = people(CHOICE.labels, seed=1), people(CHOICE.labels, seed=1)
    base = {i: UserAnswers(["comedy"] * len(u.golds), u.golds) for i, u in base.items()}
    cell = summarise(CHOICE, arm, base, rounds=60, seed=5)
    ids = sorted(arm)
    gains = [
        brute_force("accuracy", [arm[ids[i]] for i in draw])
        - brute_force("accuracy", [base[ids[i]] for i in draw])
        for draw in resamples(len(ids), 60, seed=5)
    ]
    assert cell["gain"]["ci95"] == pytest.approx(np.quantile(gains, [0.025, 0.975]))


def test_the_gain_over_personal_by_hand() -> None:
    golds = ["comedy", "comedy"]
    good, half, bad = ["comedy", "comedy"], ["comedy", "action"], ["action", "action"]
    shared = users_of((bad, golds), (bad, golds))
    personal = users_of((half, golds), (good, golds))
    cdcda = users_of((good, golds), (good, golds))
    cell = summarise(CHOICE, cdcda, shared, personal=personal, rounds=200, seed=0)
    assert cell["gain"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    # A draw holds the first user, who gains 1/2, two times, once or never.
    assert cell["gain_over_personal"] == {"mean": 0.25, "ci95": [0.0, 0.5]}
    assert cell["harmed"] == 0.0  # against shared only
    worse = summarise(SCORE, users_of((["1"], ["5"])), None, personal=users_of((["3"], ["5"])),
                      rounds=9, seed=0)  # fmt: skip
    assert worse["gain_over_personal"] == {"mean": -2.0, "ci95": [-2.0, -2.0]}
    assert worse["gain"] is None and worse["harmed"] is None


@pytest.mark.parametrize(("task", "name", "sign"), [(CHOICE, "accuracy", 1), (SCORE, "mae", -1)])
def test_the_gain_over_personal_has_the_draws_of_the_gain(task, name: str, sign: int) -> None:  # type: ignore[no-untyped-def]
    """A second computation, without pfi's metrics; and the two gains differ as the arms do."""
    labels = task.labels[:4]
    arm, shared, personal = (people(labels, n=9, seed=7) for _ in range(3))
    shared = {i: UserAnswers([labels[0]] * len(u.golds), u.golds) for i, u in shared.items()}
    personal = {i: UserAnswers([labels[1]] * len(u.golds), u.golds) for i, u in personal.items()}
    cell = summarise(task, arm, shared, personal=personal, rounds=70, seed=5)
    ids = sorted(arm)
    for key, base in (("gain", shared), ("gain_over_personal", personal)):
        gains = [
            sign * (brute_force(name, [arm[ids[i]] for i in draw])
                    - brute_force(name, [base[ids[i]] for i in draw]))
            for draw in resamples(len(ids), 70, seed=5)
        ]  # fmt: skip
        assert cell[key]["ci95"] == pytest.approx(np.quantile(gains, [0.025, 0.975]))
        everyone = [base[i] for i in ids]
        expected = brute_force(name, [arm[i] for i in ids]) - brute_force(name, everyone)
        assert cell[key]["mean"] == pytest.approx(sign * expected)
    assert cell["gain"] != cell["gain_over_personal"]


def test_without_personal_answers_of_every_user_there_is_no_gain_over_them() -> None:
    arm = people(CHOICE.labels)
    for personal in (None, {}, {"u0": arm["u0"]}):
        cell = summarise(CHOICE, arm, arm, personal=personal, rounds=5, seed=0)
        assert cell["gain_over_personal"] is None and cell["gain"] is not None


def test_without_a_reference_for_every_user_there_is_no_gain() -> None:
    arm = people(CHOICE.labels)
    for reference in (None, {"u0": arm["u0"]}):
        cell = summarise(CHOICE, arm, reference, rounds=5, seed=0)
        assert cell["gain"] is None and cell["harmed"] is None
    more = {**people(CHOICE.labels), "other": UserAnswers(["x"], ["comedy"])}
    assert summarise(CHOICE, arm, more, rounds=5, seed=0)["gain"]["mean"] == 0


def test_a_cell_has_every_metric_and_answers_are_stripped() -> None:
    arm = users_of(([" the cat \n"], ["the cat"]), ([""], ["a dog"]))
    cell = summarise(TEXT, arm, None, rounds=20, seed=0)
    assert list(cell["metrics"]) == ["rouge_1", "rouge_l", "edit_similarity"]
    assert {m["mean"] for m in cell["metrics"].values()} == {0.5}
    assert {tuple(m["ci95"]) for m in cell["metrics"].values()} == {(0.0, 1.0)}
    assert user_scores(TEXT, arm) == {"u0": 1, "u1": 0}


@pytest.mark.parametrize(
    ("scores", "higher", "expected"),
    [
        ([0.5], True, 0.5),
        ([0.1 * n for n in range(1, 11)], True, 0.1),
        ([0.1 * n for n in range(1, 11)], False, 1.0),
        ([*range(11)], True, 0.5),  # a tenth of 11 users is 2
        ([*range(20)], False, 18.5),
    ],
)
def test_worst_decile(scores: list[float], higher: bool, expected: float) -> None:
    assert worst_decile(scores, higher) == pytest.approx(expected)


def test_a_study_compares_arms_with_synthetic_records_with_real_ones_alone(tmp_path: Path) -> None:
    """`+rag` with `+rag`, the others with `personal`; arms without synthetic records with none."""
    right = {"personal": 1, "personal+rag": 2, "cdcda": 3, "cdcda+rag": 3, "shared": 0,
             "synthetic-only+rag": 0, "cdcda-unfiltered": 0, "teacher": 3, "rag": 1}  # fmt: skip
    study = object.__new__(Study)
    study.config = StudyConfig(data=tmp_path, arms=list(right), bootstrap=20)
    study.arms, study.out = [get_arm(name) for name in right], tmp_path
    study.log = EventLog(tmp_path / "events.jsonl")
    for arm, n in right.items():
        given = [
            {"id": str(i), "prompt": "", "answer": "comedy" if i < n else "action",
             "gold": "comedy"}
            for i in range(4)
        ]  # fmt: skip
        study.log.append(new_event("answered", arm=arm, task="LaMP_2M", user="u", history=3,
                                   seconds=1.0, answers=given))  # fmt: skip
    cells = dict(study._cells(CHOICE, ["u"]))
    over = {arm: cell["gain_over_personal"] for arm, cell in cells.items()}
    assert {arm: gain and gain["mean"] for arm, gain in over.items()} == {
        "personal": None, "personal+rag": None, "shared": None, "teacher": None, "rag": None,
        "cdcda": 0.5, "cdcda+rag": 0.25, "synthetic-only+rag": -0.5, "cdcda-unfiltered": -0.25,
    }  # fmt: skip
    assert cells["teacher"]["gain"]["mean"] == 0.75 and cells["shared"]["gain"] is None
