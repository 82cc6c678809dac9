"""Attacks do what they say, ruin the plain mean, and are withstood by the default rule."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.federate import attacks
from pfi.federate.aggregate.robust import RobustConfig
from pfi.federate.attacks import ATTACKS
from pfi.tasks import Example

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("robust_problem")


def honest(count: int = 12, width: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((count, width)) + 0.5).astype(np.float32)


def made(name: str, bad: int = 4, seed: int = 1) -> np.ndarray:
    return ATTACKS[name](honest(), bad, np.random.default_rng(seed))


def test_attacks_give_as_many_updates_as_there_are_bad_clients() -> None:
    before = honest()
    for name, attack in ATTACKS.items():
        for bad in (1, 5):
            given = honest()
            found = attack(given, bad, np.random.default_rng(0))
            width = 20 if name == "wrong-rank" else 40
            assert found.shape == (bad, width) and found.dtype == np.float32, name
            assert np.array_equal(given, before), name
        assert np.isfinite(found).all() == (name != "nan")


def test_what_each_attack_makes_of_the_mean() -> None:
    x = honest()
    mean = x.mean(axis=0, dtype=float)

    def after(name: str) -> np.ndarray:
        return np.concatenate([x, made(name)]).mean(axis=0, dtype=float)

    assert np.allclose(after("sign-flip"), mean * (12 - 4 * 4) / 16, atol=1e-5)
    # Just beyond nothing: the smallest strength that turns the mean round is n / bad.
    assert np.allclose(after("ipm"), mean * -0.1 * 12 / 16, atol=1e-5)
    assert np.allclose(after("scaling"), -10 * mean, atol=1e-4)
    target = np.arange(40, dtype=np.float32)
    replaced = attacks.scaling(x, 4, np.random.default_rng(0), target=target)
    assert np.allclose(np.concatenate([x, replaced]).mean(axis=0), target, atol=1e-4)


def test_little_is_enough_stays_within_the_spread() -> None:
    x = honest()
    shift = (made("alie")[0] - x.mean(axis=0)) / x.std(axis=0)
    # 16 clients, 4 bad: 5 honest ones are to lie farther out, so 7 of 12 nearer: Phi(z) = 7/12.
    assert np.allclose(shift, -0.2104, atol=1e-3)
    strong = attacks.little_is_enough(x, 4, np.random.default_rng(0), strength=1.5)
    assert np.allclose(strong[0], x.mean(axis=0) - 1.5 * x.std(axis=0), atol=1e-5)


def test_mimic_copies_who_is_farthest_along_the_main_direction() -> None:
    x = honest()
    _, _, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    far = int(np.argmax(np.abs((x - x.mean(axis=0)) @ directions[0])))
    assert np.array_equal(made("mimic"), np.repeat(x[far][None], 4, axis=0))


def test_noise_has_its_strength_and_follows_the_generator() -> None:
    x = honest(width=4000)
    noise = attacks.gaussian(x, 3, np.random.default_rng(0), strength=2.0)
    median = np.median(np.linalg.norm(x, axis=1))
    assert np.allclose(np.linalg.norm(noise, axis=1) / median, 2.0, atol=0.1)
    assert np.abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.1
    assert np.array_equal(made("gaussian"), made("gaussian"))
    assert not np.array_equal(made("gaussian"), made("gaussian", seed=2))


def test_hidden_flip_is_as_long_as_honest_updates_and_in_two_camps() -> None:
    x, found = honest(), made("hidden-flip")
    mean = x.mean(axis=0)
    median = np.median(np.linalg.norm(x, axis=1))
    camps = found - found.mean(axis=0)
    assert np.allclose(camps[0], -camps[1], atol=1e-4) and np.linalg.norm(camps[0]) > 0
    cosine = found.mean(axis=0) @ mean / np.linalg.norm(found.mean(axis=0)) / np.linalg.norm(mean)
    assert cosine == pytest.approx(-1.0, abs=1e-4)
    part = attacks.hidden_flip(x, 2, np.random.default_rng(0), strength=1.0)
    assert np.allclose(part.mean(axis=0), -mean, atol=1e-4)
    lengths = np.linalg.norm(found - found.mean(axis=0), axis=1) ** 2
    assert np.allclose(np.sqrt(lengths + median**2 / 2), median, rtol=1e-3)


def test_the_strongest_is_the_worst_of_those_tried() -> None:
    x, rng = honest(), np.random.default_rng(0)

    def median(updates: np.ndarray) -> np.ndarray:
        return np.median(updates, axis=0)

    def harm(bad: np.ndarray) -> float:
        return float(np.linalg.norm(median(np.concatenate([x, bad])) - x.mean(axis=0)))

    found = attacks.strongest(x, 4, rng, median, strengths=(0.5, 1.0, 3.0))
    for attack in (attacks.inner_product, attacks.little_is_enough, attacks.hidden_flip):
        for strength in (0.5, 1.0, 3.0):
            assert harm(found) >= harm(attack(x, 4, rng, strength=strength)) - 1e-9
    assert harm(found) > harm(made("alie"))


def test_labels_are_flipped_end_to_end() -> None:
    def examples(*targets: str) -> list[Example]:
        return [Example(f"p{t}", t, {}, f"r{n}", 0.5) for n, t in enumerate(targets)]

    def targets(found: list[Example]) -> list[str]:
        return [example.target for example in found]

    labels = ["1", "2", "3", "4", "5"]
    given = examples(*labels)
    found = attacks.label_flip(given, labels)
    assert targets(found) == ["5", "4", "1", "2", "1"]
    assert [(e.prompt, e.record_id, e.weight) for e in found] == [
        (e.prompt, e.record_id, e.weight) for e in given
    ]
    assert targets(attacks.label_flip(examples("no", "yes"), ["yes", "no"])) == ["yes", "no"]
    assert targets(attacks.label_flip(examples("a", "b", "c"), [])) == ["c", "a", "b"]


@pytest.mark.parametrize("alpha", (None, 0.3))
def test_attacks_ruin_the_plain_mean_and_not_the_default(problem: Any, alpha: float | None) -> None:
    """A tiny federation of ten clients, two of them bad; each attack at what it is good at."""
    few = problem.clusters(3, alpha)

    def accuracy(config: RobustConfig | None, attack: str | None, share: float) -> float:
        with np.errstate(all="ignore"):
            return problem.run(few, config, attack, share, 5)

    clean = accuracy(None, None, 0.0)
    assert clean > 0.9
    assert accuracy(RobustConfig(), None, 0.0) > clean - 0.05
    for attack in ("sign-flip", "ipm", "scaling", "nan", "wrong-rank"):
        assert accuracy(None, attack, 0.2) < 0.7, attack
        assert accuracy(RobustConfig(), attack, 0.2) >= 0.9 * clean, attack


def test_quiet_attacks_ruin_the_plain_mean_where_clients_differ(problem: Any) -> None:
    """Digits, a client has one to three of them, 40 % bad: each costs 5 points and more."""
    many = problem.digits(3, 0.1)
    clean = problem.run(many, None, None, 0.0, 5)
    assert clean > 0.85
    for name in ("gaussian", "alie", "mimic", "label-flip", "hidden-flip"):
        assert problem.run(many, None, name, 0.4, 5) < clean - 0.05, name


def test_the_benchmark_writes_its_page(
    problem: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("robust")
    wanted = list(benchmark.cells(2))
    assert len(wanted) == len(set(wanted))
    rules, splits = len(benchmark.RULES), len(benchmark.SPLITS["digits"])
    digits = [
        cell for cell in wanted if cell[0] == "digits" and cell[3] not in ("none", "strongest")
    ]
    assert len(digits) == 2 * rules * splits * len(benchmark.SHARES) * len(benchmark.ATTACKS)
    few = problem.clusters(3, None)
    monkeypatch.setattr(benchmark, "problem", lambda *_: few)
    cell = ("digits", "iid", benchmark.DEFAULT, "nan", 0.2, 10)
    assert benchmark.measure(cell)[1] > 0.9

    def quality(cell: tuple[Any, ...]) -> float:
        hurt = cell[2] == benchmark.PLAIN and cell[3] == "ipm"
        return 0.1 if hurt else 0.9 if cell[3] == "none" else 0.85 + cell[5] / 1000

    page = benchmark.page(
        benchmark.Found({benchmark.key(c): quality(c) for c in wanted}), "The end"
    )
    row = next(line for line in page.splitlines() if line.startswith("| spectral (default) | 2 |"))
    # 0.855 and 0.856 of 0.9: 0.9506 ± 12.7 * 0.0007 / sqrt(2).
    assert "| 95.6 ± 0.7 (" in row and "| met |" in row
    assert "| plain mean | 2 | 0.0 ± 0.0 | 11.1 ± 0.0 (ipm) |" in page
    assert page.endswith("The end\n")
