#!/usr/bin/env python
"""What each robust rule keeps of the quality when some clients are bad.

    python benchmarks/robust/robust.py --seeds 5 --workers 2

Every cell is a whole federation of 40 clients on real data: held-out accuracy after 30 rounds.
The rule's settings were chosen on the digits with seeds 0 to 3; here the seeds begin at 10, and
the tumours were not looked at before.  Cells that are in the JSON file already are not run again.
Writes `benchmarks/results/robust.md` and `.json`; `robust_lora.py` adds its part to both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from robust_problem import Problem, digits, run, tumours

from pfi._util.files import write_atomic, write_json
from pfi.federate.aggregate.robust import RobustConfig

RESULTS = Path(__file__).resolve().parents[1] / "results"
FIRST_SEED = 10
SHARES = (0.05, 0.1, 0.2, 0.4)
ATTACKS = (
    "sign-flip", "gaussian", "ipm", "alie", "mimic", "label-flip", "scaling", "nan", "wrong-rank",
    "hidden-flip",
)  # fmt: skip
#: Of these the worst decides; hidden-flip is our own, made against the default.
PUBLISHED = ATTACKS[:-1]
PLAIN, DEFAULT = "plain mean", "spectral (default)"
RULES: dict[str, RobustConfig | None] = {
    PLAIN: None,
    DEFAULT: RobustConfig(),
    "nnm + geometric-median": RobustConfig(pre="nnm", rule="geometric-median"),
    "nnm + trimmed-mean": RobustConfig(pre="nnm", rule="trimmed-mean"),
    "multi-krum": RobustConfig(rule="multi-krum"),
    "geometric-median": RobustConfig(rule="geometric-median"),
    "centred-clipping": RobustConfig(rule="centred-clipping"),
    "trimmed-mean": RobustConfig(rule="trimmed-mean"),
    "median": RobustConfig(rule="median"),
    "norm-bound": RobustConfig(rule="norm-bound"),
    "krum": RobustConfig(rule="krum"),
}
#: The rules of which all seeds come first.
MAIN = (PLAIN, DEFAULT, "nnm + geometric-median")
SPLITS = {"digits": ("iid", "0.3", "0.1"), "tumours": ("iid", "0.3")}
TITLES = {"digits": "Digits", "tumours": "Tumours"}
NAMES = {"iid": "IID", "0.3": "non-IID (0.3)", "0.1": "very non-IID (0.1)"}
Cell = tuple[str, str, str, str, float, int]


def cells(seeds: int) -> Iterator[Cell]:
    """All federations: data, split, rule, attack, share, seed; what matters most comes first.

    The first seed of all rules, the other seeds of the main ones, then of the others.
    """
    every = range(FIRST_SEED, FIRST_SEED + seeds)
    others = tuple(rule for rule in RULES if rule not in MAIN)
    yield from _cells(every[0], tuple(RULES))
    for seed in every[1:]:
        yield from _cells(seed, MAIN)
    for seed in every[1:]:
        yield from _cells(seed, others)


def _cells(seed: int, rules: Sequence[str]) -> Iterator[Cell]:
    for data, splits in SPLITS.items():
        for split, rule in product(splits, rules):
            yield data, split, rule, "none", 0.0, seed
            for share, attack in product(SHARES, ATTACKS):
                yield data, split, rule, attack, share, seed
            if data == "digits" and rule in MAIN:
                yield data, split, rule, "strongest", 0.2, seed


@cache
def problem(data: str, split: str, seed: int) -> Problem:
    """The federation's data."""
    alpha = None if split == "iid" else float(split)
    return digits(seed, alpha) if data == "digits" else tumours(seed, alpha)


@cache
def accuracy(data: str, split: str, rule: str, attack: str, share: float, seed: int) -> float:
    """One federation's held-out accuracy."""
    named = None if attack == "none" else attack
    return run(problem(data, split, seed), RULES[rule], named, share, seed)


def measure(cell: Cell) -> tuple[Cell, float]:
    """A cell; what is refused in two ways leaves the same updates, and is run once."""
    data, split, rule, attack, share, seed = cell
    if attack == "wrong-rank" and RULES[rule] is not None:
        attack = "nan"
    return cell, accuracy(data, split, rule, attack, share, seed)


def key(cell: Cell) -> str:
    return "|".join(map(str, cell))


# The page -------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean over seeds, by Student's t."""
    from scipy.stats import t

    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(t.ppf(0.975, len(values) - 1) * error)


class Found:
    """The cells that were measured."""

    def __init__(self, values: dict[str, float]) -> None:
        self._values: dict[tuple[Any, ...], dict[int, float]] = {}
        for name, value in values.items():
            *cell, seed = name.split("|")
            self._values.setdefault(tuple(cell), {})[int(seed)] = value

    def __call__(
        self, data: str, split: str, rule: str, attack: str = "none", share: float = 0.0
    ) -> dict[int, float]:
        return self._values.get((data, split, rule, attack, str(share)), {})

    def kept(self, data: str, split: str, rule: str, attack: str, share: float) -> list[float]:
        """Accuracy as a share of the plain mean's without attack, seed by seed."""
        clean, values = self(data, split, PLAIN), self(data, split, rule, attack, share)
        return [values[seed] / clean[seed] for seed in values if seed in clean]

    def worst(self, data: str, split: str, rule: str, share: float) -> tuple[str, list[float]]:
        """The published attack that leaves least on average, and what it leaves."""
        every = {a: self.kept(data, split, rule, a, share) for a in PUBLISHED}
        every = {a: values for a, values in every.items() if values}
        if not every:
            return "", []
        name = min(every, key=lambda a: float(np.mean(every[a])))
        return name, every[name]

    def loss(self, data: str, split: str, rule: str) -> list[float]:
        """Points that the rule costs without attack, seed by seed."""
        clean, values = self(data, split, PLAIN), self(data, split, rule)
        return [100 * (clean[seed] - values[seed]) for seed in values if seed in clean]


def with_interval(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {spread(values):.{digits}f}"


_HEAD = """\
# Robust rules under attack

`python benchmarks/robust/robust.py`. A federation of 40 clients, all in each of 30 rounds, 5 local
steps of 16 examples each, on real data that come with scikit-learn. *Digits*: one hidden layer of
32, 1,438 training examples, 359 held out. *Tumours* (breast cancer, two classes): one hidden layer
of 16, 456 training examples, 113 held out. Dealt out evenly (IID) or by Dirichlet(0.3) or (0.1)
over classes: with 0.1 most clients have one to three digits.

Figures are held-out accuracy after the last round, means over seeds from 10 on; ± is half of the
95 % interval of that mean (Student's t; none where there is one seed: not all cells have been run
with all seeds, and the command adds what is missing). The default was chosen on the digits with
seeds 0 to 3, and the tumours were not looked at before. Every rule expects 25 % bad
clients, whatever the column says. Attackers see all honest updates and claim the most examples.

The bar: at most 1 point of clean loss, and at 20 % bad clients at least 90 % of the clean quality
(that of the plain mean without attack) under the worst attack of the published ones; hidden-flip,
which we made against the default, has its own column.
"""


def page(found: Found, lora: str) -> str:
    """The Markdown page."""
    lines = [_HEAD]
    for data in SPLITS:
        lines += summary(found, data)
    lines += known_rule(found)
    for data, splits in SPLITS.items():
        for split, share in product(splits, SHARES):
            lines += by_attack(found, data, split, share)
    if lora:
        lines += [lora]
    return "\n".join(lines).rstrip() + "\n"


def summary(found: Found, data: str) -> list[str]:
    """Clean loss, and what the worst attack leaves of the clean quality."""
    lines = []
    for split in SPLITS[data]:
        if not found(data, split, PLAIN):
            continue
        clean = [100 * v for v in found(data, split, PLAIN).values()]
        lines += [
            f"## {TITLES[data]}, {NAMES[split]}: what the worst attack leaves",
            "",
            f"Clean quality: {with_interval(clean)} %.",
            "",
            "| rule | seeds | clean loss, points | "
            + " | ".join(f"{s:.0%} bad, % of clean" for s in SHARES)
            + " | bar | 20% hidden-flip |",
            "| --- | ---: | ---: |" + " ---: |" * len(SHARES) + " --- | ---: |",
        ]
        for rule in RULES:
            loss = found.loss(data, split, rule)
            if not loss:
                continue
            row = [rule, str(len(loss)), with_interval(loss)]
            for share in SHARES:
                name, kept = found.worst(data, split, rule, share)
                row.append(f"{with_interval([100 * k for k in kept])} ({name})" if kept else "-")
            kept = found.worst(data, split, rule, 0.2)[1]
            held = kept and np.mean(loss) <= 1 and np.mean(kept) >= 0.9
            row += ["met" if held else "missed" if kept else "-"]
            hidden = found.kept(data, split, rule, ATTACKS[-1], 0.2)
            row.append(with_interval([100 * k for k in hidden]))
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    return lines


def known_rule(found: Found) -> list[str]:
    """Attackers who know the rule."""
    lines = [
        "## Attackers who know the rule",
        "",
        "20 % bad clients, digits. In each round they try IPM, ALIE and hidden-flip in nine",
        "strengths each on the rule itself, and send what moves the result farthest. % of clean.",
        "",
        "| rule | " + " | ".join(NAMES[split] for split in SPLITS["digits"]) + " |",
        "| --- |" + " ---: |" * len(SPLITS["digits"]),
    ]
    for rule in (PLAIN, DEFAULT, "nnm + geometric-median"):
        kept = [found.kept("digits", s, rule, "strongest", 0.2) for s in SPLITS["digits"]]
        cells_ = [with_interval([100 * k for k in values]) for values in kept]
        lines.append(f"| {rule} | " + " | ".join(cells_) + " |")
    return [*lines, ""]


def by_attack(found: Found, data: str, split: str, share: float) -> list[str]:
    """Accuracy of each rule under each attack."""
    if not found(data, split, PLAIN, ATTACKS[0], share):
        return []
    lines = [
        f"## {TITLES[data]}, {NAMES[split]}, {share:.0%} bad: accuracy by attack",
        "",
        "| rule | none | " + " | ".join(ATTACKS) + " |",
        "| --- | ---: |" + " ---: |" * len(ATTACKS),
    ]
    for rule in RULES:
        values = [found(data, split, rule)]
        values += [found(data, split, rule, attack, share) for attack in ATTACKS]
        if not any(values[1:]):
            continue
        row = [f"{100 * np.mean(list(v.values())):.1f}" if v else "-" for v in values]
        lines.append(f"| {rule} | " + " | ".join(row) + " |")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop beginning cells then")
    parser.add_argument("--to", type=Path, default=RESULTS / "robust")
    given = parser.parse_args(arguments)
    path = given.to.with_suffix(".json")
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    values: dict[str, float] = stored.get("cells", {})
    wanted = [cell for cell in cells(given.seeds) if key(cell) not in values]
    started, saved = time.monotonic(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.workers) as pool:
        for cell, value in pool.imap(measure, wanted):
            values[key(cell)] = value
            now = time.monotonic()
            if now - saved > 30:
                write_json(path, {**stored, "cells": values})
                saved = now
                print(f"{len(values)} cells, {now - started:.0f} s", file=sys.stderr)
            if now - started > 60 * given.minutes:
                break
        pool.terminate()
    stored["cells"] = dict(sorted(values.items()))
    write_json(path, stored)
    write_atomic(given.to.with_suffix(".md"), page(Found(values), stored.get("lora", "")))


if __name__ == "__main__":
    main()
