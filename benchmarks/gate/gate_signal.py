#!/usr/bin/env python
"""Which signal the gate should judge by: the metric, the likelihood of the right answer, or both.

    python benchmarks/gate/gate_signal.py --run runs/dev --to benchmarks/results/gate-signal

``--run`` is the folder of a study; its settings are used, on its split, and its shared adapters
where it has trained some.  Of every user the newest records, at most 15, are tried with an adapter
that has learnt from the older ones; then an adapter of all records answers the user's questions.
For 2, 4, 8 and 15 of the tried records: how well do gains on them predict the gains on the
questions, and what does the gate's choice gain there?  The measurement goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import spearmanr

from pfi._util.files import write_atomic, write_json
from pfi.datasets.lamp import open_users
from pfi.evaluate.study.arms import get_arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.group_run import GroupRun
from pfi.evaluate.study.study import machine
from pfi.evaluate.study.task_setup import Group, TaskSetup
from pfi.gate.choices import Floats, GateConfig, choices
from pfi.gate.fit import choose_for
from pfi.gate.prior import Prior, Tried, weak_prior
from pfi.models.adapters import Adapter
from pfi.models.backbone import load_backbone
from pfi.tasks import Task, get_task

SIGNALS = ("metric", "likelihood", "both")
#: Half of a history is tried at most, and LaMP's have 30 records where they are long.
COUNTS = (2, 4, 8, 15)
GATE = GateConfig(
    weights=[0, 0.5, 1], ks=[0, 2], per_question=False, held_back=0.5, most=max(COUNTS)
)
#: Users whose adapters are trained and asked together; a stopped run loses no more.
TOGETHER = 4
ROUNDS = 2000


def load_config(run: Path) -> StudyConfig:
    """The settings of a run."""
    return StudyConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text("utf-8")))


# Measuring ----------------------------------------------------------------------------------


def measure(run: Path, out: Path, tasks: Sequence[str], users: int | None) -> None:
    """Write, by task and group of users, what choices gain on records and on questions."""
    config = load_config(run).model_copy(update={"gate": GATE, "users": users, "arms": ["pfi"]})
    backbone = load_backbone(config.backbone)
    arm = get_arm("pfi")
    assert arm.kind is not None
    for name in tasks:
        task = get_task(name)
        people = open_users(config.data / name, task, config.split, limit=users, seed=config.seed)
        folder = run / "checkpoints" / "shared" / name
        shared = Adapter.load(folder) if folder.exists() else None  # as on a device of its own
        with closing(TaskSetup(config, out / "run", task, backbone, shared)) as setup:
            for index, start in enumerate(range(0, len(people), TOGETHER)):
                path = out / "tried" / f"{name}-{index}.json"
                if path.exists():
                    continue
                begun = time.perf_counter()
                group = GroupRun(setup, Group(index, people[start : start + TOGETHER], {}, {}))
                records = group.try_records(arm, arm.kind)
                asked = group.try_questions(arm, arm.kind)
                write_json(
                    path,
                    {
                        user: {"records": records[user].to_dict(), "asked": asked[user].to_dict()}
                        for user in records
                        if user in asked
                    },
                )
                took = time.perf_counter() - begun
                print(
                    f"{name}: {start + TOGETHER} of {len(people)} users, {took:.0f} s", flush=True
                )


# Figures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What choices gained for a user, on the newest records and on the questions."""

    records: Tried
    asked: Tried


def read(out: Path) -> dict[str, list[Person]]:
    """By task the users who were measured."""
    found: dict[str, list[Person]] = {}
    for path in sorted((out / "tried").glob("*.json")):
        for entry in json.loads(path.read_text("utf-8")).values():
            person = Person(Tried.from_dict(entry["records"]), Tried.from_dict(entry["asked"]))
            found.setdefault(path.stem.rpartition("-")[0], []).append(person)
    return found


def as_signal(tried: Tried, signal: str, newest: int | None = None) -> Tried:
    """As the gate would have seen it by one signal, on the last so many records."""
    assert tried.likelier is not None
    cut = slice(None) if newest is None else slice(max(0, len(tried.gains) - newest), None)
    gains = tried.likelier if signal == "likelihood" else tried.gains
    second = tried.likelier[cut] if signal == "both" else None
    return Tried(gains[cut], tried.confidence[cut], second)


def chosen_gains(
    task: Task, people: Sequence[Person], signal: str, count: int, prior: str
) -> Floats:
    """What the gate's choices gain on the questions in the metric, ``(users,)``."""
    config = GATE.model_copy(update={"signal": signal})
    seen = [as_signal(person.asked, signal) for person in people]
    gained = []
    for place, person in enumerate(people):
        others = [*seen[:place], *seen[place + 1 :]]
        known = Prior.fit(others, config) if prior == "others" else weak_prior(task, config)
        fitted = choose_for(config, known, as_signal(person.records, signal, count))
        at = choices(config).index(fitted.choice)
        gained.append(person.asked.gains.mean(0)[at])
    return np.array(gained)


def predicted(people: Sequence[Person], count: int) -> dict[str, float]:
    """Rank correlation of gains on so many records with those on questions, over all choices."""
    later = np.stack([person.asked.gains.mean(0) for person in people])[:, 1:]
    found = {}
    for signal in ("metric", "likelihood"):
        tried = [as_signal(person.records, signal, count).gains.mean(0) for person in people]
        found[signal] = float(spearmanr(np.stack(tried)[:, 1:].ravel(), later.ravel())[0])
    return found


def points(task: Task, gains: Floats) -> Floats:
    """Gains of a task in hundredths of its scale."""
    if task.kind != "score":
        return 100 * gains
    values = [float(label) for label in task.labels]
    return 100 * gains / (max(values) - min(values))


def interval(by_task: Mapping[str, Floats]) -> list[float]:
    """95 % of the mean over tasks of the mean over users, users drawn within tasks."""
    rng = np.random.default_rng(0)
    drawn = [
        values[rng.integers(len(values), size=(ROUNDS, len(values)))].mean(1)
        for values in by_task.values()
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return [float(low), float(high)]


def figures(found: Mapping[str, Sequence[Person]]) -> dict[str, Any]:
    """All figures of the page."""
    rows = []
    for count in COUNTS:
        able = {
            name: [p for p in people if len(p.records.gains) >= count]
            for name, people in found.items()
        }
        able = {name: people for name, people in able.items() if len(people) >= 3}
        if not able:
            continue
        for prior in ("own", "others"):
            for signal in SIGNALS:
                gains = {
                    name: points(
                        get_task(name), chosen_gains(get_task(name), p, signal, count, prior)
                    )
                    for name, p in able.items()
                }
                rows.append(
                    {
                        "records": count,
                        "prior": prior,
                        "signal": signal,
                        "users": sum(map(len, able.values())),
                        "gain": float(np.mean([g.mean() for g in gains.values()])),
                        "ci95": interval(gains),
                        "harmed": float(np.mean([(g < -1e-9).mean() for g in gains.values()])),
                        "left_alone": float(np.mean([(g == 0).mean() for g in gains.values()])),
                        "by_task": {name: float(g.mean()) for name, g in gains.items()},
                    }
                )
        best = {
            name: points(
                get_task(name), np.array([p.asked.gains.mean(0).max() for p in people])
            ).mean()
            for name, people in able.items()
        }
        full = {
            name: points(get_task(name), np.array([p.asked.gains.mean(0) for p in people])).mean(0)
            for name, people in able.items()
        }
        ranks = {name: predicted(people, count) for name, people in able.items()}
        rows.append(
            {
                "records": count,
                "users": sum(map(len, able.values())),
                "tasks": {name: len(people) for name, people in able.items()},
                "best_in_hindsight": float(np.mean(list(best.values()))),
                "same_for_all": [float(v) for v in np.mean(list(full.values()), axis=0)],
                "rank_correlation": {
                    signal: float(np.nanmean([one[signal] for one in ranks.values()]))
                    for signal in ("metric", "likelihood")
                },
                "rank_correlation_by_task": ranks,
            }
        )
    spreads = {}
    for name, people in found.items():
        config = GATE.model_copy(update={"signal": "both"})
        if len(people) < 3:
            continue
        prior = Prior.fit([as_signal(p.asked, "both") for p in people], config)
        second = prior.likelier
        assert second is not None
        spreads[name] = {
            "mean": prior.mean.tolist(),
            "between": np.sqrt(prior.between).tolist(),
            "within": np.sqrt(prior.within).tolist(),
            "likelihood": {
                "mean": second.mean.tolist(),
                "between": np.sqrt(second.between).tolist(),
                "within": np.sqrt(second.within).tolist(),
            },
            "correlation_between": (
                second.shared_between / np.sqrt(prior.between * second.between)
            ).tolist(),
            "correlation_within": (
                second.shared_within / np.sqrt(prior.within * second.within)
            ).tolist(),
        }
    return {"rows": rows, "spreads": spreads, "choices": [str(c) for c in choices(GATE)]}


def page(found: Mapping[str, Sequence[Person]], rows: Any, config: StudyConfig) -> str:
    """The page of results."""
    counted = ", ".join(f"{name} {len(people)}" for name, people in found.items())
    lines = [
        "# Which signal the gate judges by",
        "",
        f"Backbone {Path(config.backbone).name}, split {config.split}, seed {config.seed}. "
        f"Users: {counted}.",
        "Made by `benchmarks/gate/gate_signal.py`. Gains over the shared adapter alone on the",
        "users' later questions, in hundredths of the metric (labels: probability of the right",
        "one; scale: expected distance as a share of the scale; text: ROUGE-1), mean over tasks,",
        "95 % interval over users. Choices: weights 0, .5, 1 and 0 or 2 records. Prior: `own` is",
        "that of a device that knows nothing of others; `others` is fitted on the questions of the",
        "other users of the split.",
        "",
        "| records tried | users | prior | signal | later gain | harmed | left alone |",
        "|---:|---:|---|---|---|---:|---:|",
    ]
    for row in rows:
        if "signal" in row:
            low, high = row["ci95"]
            lines.append(
                f"| {row['records']} | {row['users']} | {row['prior']} | {row['signal']} | "
                f"{row['gain']:+.2f} [{low:+.2f}, {high:+.2f}] | {row['harmed']:.0%} | "
                f"{row['left_alone']:.0%} |"
            )
    lines += [
        "",
        "How gains on the tried records rank with gains in the metric on the later questions",
        "(Spearman, over users and choices, mean over tasks), what the best choice in hindsight",
        "would gain, and what the whole adapter with 2 records gains where all have it:",
        "",
        "| records tried | users | by the metric | by likelihood | in hindsight | all for all |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "signal" not in row:
            rank = row["rank_correlation"]
            lines.append(
                f"| {row['records']} | {row['users']} | {rank['metric']:.2f} | "
                f"{rank['likelihood']:.2f} | {row['best_in_hindsight']:+.2f} | "
                f"{row['same_for_all'][-1]:+.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="study with shared adapters")
    parser.add_argument("--work", type=Path, help="where to keep what is measured; beside the run")
    parser.add_argument("--tasks", default="", help="tasks, comma-separated; those of the run")
    parser.add_argument("--users", type=int, help="a random sample of users a task")
    parser.add_argument("--to", type=Path, required=True, help="results without their ending")
    parser.add_argument("--only-figures", action="store_true", help="of what is measured already")
    args = parser.parse_args()
    out = args.work or args.run / "gate-signal"
    config = load_config(args.run)
    if not args.only_figures:
        measure(args.run, out, args.tasks.split(",") if args.tasks else config.tasks, args.users)
    found = read(out)
    all_ = figures(found)
    write_json(args.to.with_suffix(".json"), {**all_, "machine": machine()})
    write_atomic(args.to.with_suffix(".md"), page(found, all_["rows"], config))
    print(page(found, all_["rows"], config))


if __name__ == "__main__":
    main()
