"""Metrics against values worked out by hand and against other implementations."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pfi.tasks import METRICS, get_task

LABELS = ["cat", "dog", "cow"]
STARS = ["1", "2", "3", "4", "5"]


def value(name: str, predictions: list[str], golds: list[str], labels: list[str]) -> float:
    return METRICS[name].compute(predictions, golds, labels)


def rouge(name: str, prediction: str, gold: str) -> float:
    return value(name, [prediction], [gold], [])


@pytest.mark.parametrize(
    ("predictions", "golds", "expected"),
    [
        (["cat", "dog", "cow", "cat"], ["cat", "dog", "dog", "dog"], 2 / 4),
        (["Cat", "cat"], ["cat", "cat"], 1 / 2),  # case counts
        (["a cat", ""], ["cat", "dog"], 0.0),
        (["horse", "cat"], ["bird", "cat"], 1 / 2),  # two unknown labels are not the same one
    ],
)
def test_accuracy(predictions: list[str], golds: list[str], expected: float) -> None:
    assert value("accuracy", predictions, golds, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predictions", "golds", "expected"),
    [
        # cat: P 1/2 R 1, F 2/3; dog: P 1 R 1/2, F 2/3; cow never occurs and counts as 0.
        (["cat", "cat", "dog"], ["cat", "dog", "dog"], (2 / 3 + 2 / 3 + 0) / 3),
        # cat: P 1 R 1/2, F 2/3; dog: P 1 R 1, F 1; the unknown answer is in no class.
        (["cat", "horse", "dog"], ["cat", "cat", "dog"], (2 / 3 + 1 + 0) / 3),
        (["CAT", "dog", "cow"], ["cat", "dog", "cow"], (0 + 1 + 1) / 3),
        (["horse", "bird"], ["cat", "dog"], 0.0),
        (["cat", "dog", "cow"], ["cat", "dog", "cow"], 1.0),
    ],
)
def test_macro_f1(predictions: list[str], golds: list[str], expected: float) -> None:
    assert value("macro_f1", predictions, golds, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predictions", "golds", "absolute", "squared"),
    [
        (["4", "2"], ["5", "5"], [1, 3], [1, 9]),
        (["4.0", " 4 "], ["4", "4"], [0, 0], [0, 0]),
        (["good"], ["1"], [4], [16]),
        (["good"], ["2"], [3], [9]),
        (["", "five"], ["4", "5"], [3, 4], [9, 16]),
        (["nan", "inf", "-inf", "9" * 400], ["4"] * 4, [3] * 4, [9] * 4),
    ],
)
def test_score_errors(
    predictions: list[str], golds: list[str], absolute: list[int], squared: list[int]
) -> None:
    assert value("mae", predictions, golds, STARS) == pytest.approx(np.mean(absolute))
    assert value("rmse", predictions, golds, STARS) == pytest.approx(np.mean(squared) ** 0.5)


def test_no_score_at_all_counts_as_the_far_end_and_as_5_in_the_middle() -> None:
    from pfi.tasks.metrics import parse_score

    assert [parse_score("?", gold) for gold in (1, 2, 3, 4, 5)] == [5, 5, 5, 1, 1]
    assert value("mae", ["?"], ["8"], [str(n) for n in range(1, 11)]) == 7  # its own scale


@pytest.mark.parametrize(
    ("prediction", "gold", "one", "longest"),
    [
        ("the cat sat", "the cat sat", 1, 1),
        # P 2/3, R 2/2
        ("the big cat", "the cat", 4 / 5, 4 / 5),
        # All four words match; the longest common subsequence is "a b d" or "a c d".
        ("a b c d", "a c b d", 1, 3 / 4),
        ("d c b a", "a b c d", 1, 1 / 4),
        # "the" twice against once: one match. P 1/2, R 1/3
        ("the the", "the cat sat", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3), 2 / 5),
        ("he runs", "he run", 1 / 2, 1 / 2),  # no stemming
        ("The CAT, sat!", "the cat sat", 1, 1),
        ("", "the cat", 0, 0),
        ("the cat", "", 0, 0),
        ("cow", "the cat", 0, 0),
    ],
)
def test_rouge(prediction: str, gold: str, one: float, longest: float) -> None:
    assert rouge("rouge_1", prediction, gold) == pytest.approx(one)
    assert rouge("rouge_l", prediction, gold) == pytest.approx(longest)


def test_rouge_is_the_mean_over_questions() -> None:
    predictions, golds = ["the big cat", "cow"], ["the cat", "dog"]
    assert value("rouge_1", predictions, golds, []) == pytest.approx(0.4)
    assert value("rouge_l", predictions, golds, []) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("abcd", "bcde", 2 * 3 / 8),
        ("abc", "ABC", 0.0),
        ("abc", "cba", 2 * 1 / 6),  # the order counts
        ("hi!", "hi", 2 * 2 / 5),
        ("", "hi", 0.0),
        ("same", "same", 1.0),
    ],
)
def test_edit_similarity(prediction: str, gold: str, expected: float) -> None:
    assert value("edit_similarity", [prediction], [gold], []) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_answers_and_golds_must_be_aligned(name: str) -> None:
    with pytest.raises(ValueError):
        value(name, ["1"], ["1", "2"], STARS)


def test_directions() -> None:
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "mae",
        "rmse",
    }
    assert {name for name, metric in METRICS.items() if not metric.per_question} == {
        "macro_f1",
        "rmse",
    }


def test_label_metrics_agree_with_a_confusion_matrix_and_sklearn() -> None:
    from sklearn.metrics import f1_score

    rng = random.Random(0)
    for _ in range(20):
        n = rng.randint(1, 40)
        golds = rng.choices(LABELS[: rng.randint(1, 3)], k=n)
        predictions = rng.choices([*LABELS, "horse", "Cat"], k=n)
        names = [*LABELS, "else"]
        table = np.zeros((4, 4))
        for p, g in zip(predictions, golds, strict=True):
            table[names.index(g), names.index(p if p in LABELS else "else")] += 1
        hits, sizes = np.diag(table)[:3], (table.sum(0) + table.sum(1))[:3]
        f1 = np.divide(2 * hits, sizes, out=np.zeros(3), where=sizes > 0).mean()
        assert value("macro_f1", predictions, golds, LABELS) == pytest.approx(f1)
        reference = f1_score(golds, predictions, labels=LABELS, average="macro", zero_division=0)
        assert value("macro_f1", predictions, golds, LABELS) == pytest.approx(reference)
        assert value("accuracy", predictions, golds, LABELS) == pytest.approx(hits.sum() / n)


def test_score_metrics_agree_with_sklearn() -> None:
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    rng = random.Random(1)
    golds = [rng.randint(1, 5) for _ in range(50)]
    guesses = [rng.uniform(-1, 8) for _ in range(50)]
    texts, expected = [repr(g) for g in guesses], [str(g) for g in golds]
    assert value("mae", texts, expected, STARS) == pytest.approx(
        mean_absolute_error(golds, guesses)
    )
    assert value("rmse", texts, expected, STARS) == pytest.approx(
        mean_squared_error(golds, guesses) ** 0.5
    )


def test_rouge_agrees_with_another_package() -> None:
    package = pytest.importorskip("rouge", reason="the package `rouge` is not installed")
    rng = random.Random(2)
    words = ["cat", "dog", "cow", "sat", "ran", "big", "red", "hat"]
    for _ in range(30):
        # That package counts every word once, so no word may come twice.
        prediction = " ".join(rng.sample(words, rng.randint(1, 7)))
        gold = " ".join(rng.sample(words, rng.randint(1, 7)))
        other = package.Rouge().get_scores(prediction, gold)[0]
        assert rouge("rouge_1", prediction, gold) == pytest.approx(other["rouge-1"]["f"], abs=1e-4)
        assert rouge("rouge_l", prediction, gold) == pytest.approx(other["rouge-l"]["f"], abs=1e-4)


def test_rouge_agrees_with_counting() -> None:
    rng = random.Random(3)
    for _ in range(30):
        a, b = (rng.choices("abcde", k=rng.randint(1, 9)) for _ in range(2))
        same = sum(min(a.count(word), b.count(word)) for word in set(a))
        longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                step = longest[i][j] + 1 if x == y else 0
                longest[i + 1][j + 1] = max(step, longest[i][j + 1], longest[i + 1][j])
        size = len(a) + len(b)  # F1 of two shares of the same hits
        assert rouge("rouge_1", " ".join(a), " ".join(b)) == pytest.approx(2 * same / size)
        expected = 2 * longest[-1][-1] / size
        assert rouge("rouge_l", " ".join(a), " ".join(b)) == pytest.approx(expected)


def test_a_task_scores_stripped_answers_with_all_its_metrics() -> None:
    task = get_task("LaMP_2M")
    scores = task.score([" comedy\n", "Comedy", "based on a book"], ["comedy", "comedy", "comedy"])
    # comedy: P 1, R 1/3, F 1/2; "based on a book": 0; 13 more labels: 0
    assert scores == pytest.approx({"accuracy": 1 / 3, "macro_f1": (1 / 2) / 15})
