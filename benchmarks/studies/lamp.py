#!/usr/bin/env python
"""The table of a finished LaMP study beside baselines that need no training.

    pfi study --data ../shared/data/lamp --split test --out runs/lamp-test
    python benchmarks/studies/lamp.py runs/lamp-test --to benchmarks/results/lamp-test

Writes ``<to>.md`` and ``<to>.json`` (the metrics without the per-user scores).  The baselines
are computed here from the same files, on the same questions, with the same metrics.  `--beside`
adds a column with the best arm of another model's ``<to>.json``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from pfi._util.files import write_atomic, write_json
from pfi.datasets.lamp import read_users
from pfi.records import User
from pfi.tasks import METRICS, Task, get_task

PERSONALISED = ("rag", "personal", "personal+rag", "pfi")
Baseline = Callable[[User, str], str]


def most_common(values: list[str]) -> str:
    """The most frequent value, the first one seen among equals."""
    return Counter(values).most_common(1)[0][0]


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark that ends a word."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def baselines(task: Task, train: list[User]) -> dict[str, Callable[[User, Any], str]]:
    """Baselines of a task: name -> (user, question) -> answer."""
    golds = [q.gold for user in train for q in user.questions if q.gold is not None]

    def users_own(user: User, question: Any) -> str:
        return most_common([r.output for r in user.history]) if user.history else golds[0]

    if task.name == "LaMP_1":

        def overlap(user: User, question: Any) -> str:
            known = set().union(*(words(r.input["title"]) for r in user.history), set())
            shares = [
                len(words(question.fields[f"option_{i}"]) & known)
                / max(1, len(words(question.fields[f"option_{i}"])))
                for i in (1, 2)
            ]
            return "[2]" if shares[1] > shares[0] else "[1]"

        return {"always [1]": lambda u, q: "[1]", "title-word overlap": overlap}
    if task.kind == "choice":
        majority = most_common(golds)
        return {f"always {majority}": lambda u, q: majority, "user's most frequent": users_own}
    if task.kind == "score":
        majority, mean = most_common(golds), str(fmean(map(float, golds)))
        return {
            f"always {majority}": lambda u, q: majority,
            "train mean": lambda u, q: mean,
            "user's mean": lambda u, q: str(fmean(float(r.output) for r in u.history)),
            "user's most frequent": users_own,
        }
    if task.name == "LaMP_7":
        return {"input copied": lambda u, q: q.fields["text"]}
    return {
        "first sentence": lambda u, q: first_sentence(task.query_text(q.fields)),
        "user's last title": lambda u, q: u.history[-1].output,
    }


def baseline_scores(
    task: Task, users: list[User], train: list[User]
) -> dict[str, dict[str, float]]:
    """Every baseline's metrics over all questions."""
    scores = {}
    for name, answer in baselines(task, train).items():
        pairs = [(answer(u, q), q.gold or "") for u in users for q in u.questions]
        scores[name] = task.score([p for p, _ in pairs], [g for _, g in pairs])
    return scores


def figure(cell: dict[str, Any], name: str) -> str:
    value = cell["metrics"][name]
    return f"{value['mean']:.3f} [{value['ci95'][0]:.3f}, {value['ci95'][1]:.3f}]"


def gain(cell: dict[str, Any]) -> str:
    low, high = cell["gain"]["ci95"]
    mark = " **+**" if low > 0 else " **-**" if high < 0 else ""
    return f"{cell['gain']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"


def sign_of(metric: str) -> int:
    return 1 if METRICS[metric].higher_is_better else -1


def best_of(values: dict[str, float], metric: str) -> tuple[str, float]:
    """The name and the value of the best, by a metric."""
    return max(values.items(), key=lambda pair: sign_of(metric) * pair[1])


def means(arms: dict[str, Any], task: str, metric: str) -> dict[str, float]:
    """By arm the mean of a task's metric."""
    return {
        arm: cells[task]["metrics"][metric]["mean"] for arm, cells in arms.items() if task in cells
    }


def table(
    metrics: dict[str, Any],
    scores: dict[str, dict[str, dict[str, float]]],
    beside: dict[str, Any] | None = None,
) -> str:
    """The Markdown page; `beside` holds the arms of another model."""
    arms = metrics["arms"]
    tasks = [name for name in scores if name in arms["shared"]]
    head = ["task, metric", *arms, "best baseline", *(["other model's best"] if beside else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in tasks:
        for metric in get_task(name).metrics:
            by_name = {baseline: values[metric] for baseline, values in scores[name].items()}
            best_name, best = best_of(by_name, metric)
            cells = [figure(arms[arm][name], metric) for arm in arms]
            cells.append(f"{best:.3f} ({best_name})")
            if beside:
                other = means(beside, name, metric)
                arm, value = best_of(other, metric) if other else ("", float("nan"))
                cells.append(f"{value:.3f} ({arm})" if other else "")
            arrow = "↑" if sign_of(metric) > 0 else "↓"
            lines.append(f"| {name} {metric} {arrow} | " + " | ".join(cells) + " |")
    lines += ["", *gains_table(arms, tasks), "", *summary(arms, tasks, scores)]
    first = arms["shared"]
    counts = ", ".join(f"{n}: {first[n]['n_users']}/{first[n]['n_questions']}" for n in tasks)
    if left := {n: so_far for n, so_far in metrics.get("so_far", {}).items() if n in tasks}:
        parts = ", ".join(f"{name} {done} of {users}" for name, (done, users) in left.items())
        lines.append(f"- **Not all users**: {parts}; baselines are of the same users.")
    lines += [
        f"- Users/questions: {counts}.",
        f"- Machine: {', '.join(f'{k} {v}' for k, v in metrics['machine'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def gains_table(arms: dict[str, Any], tasks: list[str]) -> list[str]:
    """The personalised arms beside `shared`, task by task."""
    lines = ["Gain over `shared`, share of users harmed, mean of the worst tenth of users:", ""]
    present = [arm for arm in PERSONALISED if arm in arms]
    lines.append(
        "| task | " + " | ".join(f"{a}: gain | harmed | worst tenth" for a in present) + " |"
    )
    lines.append("|---" * (3 * len(present) + 1) + "|")
    for name in tasks:
        row = [
            f"{gain(arms[a][name])} | {arms[a][name]['harmed']:.2f} "
            f"| {arms[a][name]['worst_decile']:.3f}"
            for a in present
        ]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return lines


def summary(
    arms: dict[str, Any], tasks: list[str], scores: dict[str, dict[str, dict[str, float]]]
) -> list[str]:
    """On how many tasks what is ahead of what, by each task's main metric."""
    main = {name: get_task(name).main_metric for name in tasks}

    def ahead(of_baselines: tuple[str, ...]) -> int:
        count = 0
        for name, metric in main.items():
            _, best = best_of({b: s[metric] for b, s in scores[name].items()}, metric)
            reached = means({arm: arms[arm] for arm in of_baselines if arm in arms}, name, metric)
            count += sign_of(metric) * best_of(reached, metric)[1] > sign_of(metric) * best
        return count

    lines = [
        f"- `shared` beats every baseline on {ahead(('shared',))} of {len(tasks)} tasks; "
        f"`shared` or `rag` on {ahead(('shared', 'rag'))}."
    ]
    for arm in PERSONALISED:
        if arm not in arms:
            continue
        gains = [arms[arm][name]["gain"] for name in tasks]
        harmed = sum(arms[arm][n]["harmed"] * arms[arm][n]["n_users"] for n in tasks)
        users = sum(arms[arm][n]["n_users"] for n in tasks)
        lines.append(
            f"- `{arm}` beats `shared` on {sum(g['mean'] > 0 for g in gains)} of {len(tasks)} "
            f"tasks; the interval lies above zero on {sum(g['ci95'][0] > 0 for g in gains)}, below "
            f"on {sum(g['ci95'][1] < 0 for g in gains)}; harmed: {harmed / users:.1%} of users."
        )
    if "pfi" in arms and "generic" in arms:
        relative = []
        for name, metric in main.items():
            value = means(arms, name, metric)
            relative.append(
                sign_of(metric) * (value["pfi"] - value["generic"]) / abs(value["generic"])
            )
        lines.append(
            f"- Relative gain of `pfi` over `generic`, mean over tasks: {fmean(relative):+.1%} "
            f"({', '.join(f'{n} {r:+.0%}' for n, r in zip(main, relative, strict=True))})."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, tasks divided among them")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lamp"))
    parser.add_argument("--to", type=Path, required=True, help="result files, without suffix")
    parser.add_argument("--beside", type=Path, help="the json of another model's table")
    args = parser.parse_args()
    merged: dict[str, Any] = {}
    for run in args.runs:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        merged = merged or {**metrics, "arms": {arm: {} for arm in metrics["arms"]}, "settings": {}}
        merged["so_far"] = {**merged.get("so_far", {}), **metrics.get("so_far", {})}
        ignored = ("data", "tasks")
        settings = {k: v for k, v in metrics["config"].items() if k not in ignored}
        for name in metrics["arms"]["shared"]:
            same = {k: v for k, v in settings.items() if v != merged["config"].get(k)}
            merged["settings"][name] = same  # what differs from the first run's
        for arm, cells in metrics["arms"].items():
            merged["arms"][arm] |= cells
    merged["config"]["tasks"] = sorted(merged["arms"]["shared"])
    merged["config"]["data"] = "LAMP"  # the folder's path is nobody's business
    merged["config"]["backbone"] = Path(merged["config"]["backbone"]).name
    scores = {}
    for name in merged["config"]["tasks"]:
        task = get_task(name)
        answered = merged["arms"]["shared"][name]["users"]
        users = read_users(args.data / name, task, merged["config"]["split"])
        users = [user for user in users if user.id in answered]
        scores[name] = baseline_scores(task, users, read_users(args.data / name, task, "train"))
    for cells in merged["arms"].values():
        for cell in cells.values():
            del cell["users"]
    write_json(args.to.with_suffix(".json"), {**merged, "baselines": scores})
    beside = json.loads(args.beside.read_text(encoding="utf-8"))["arms"] if args.beside else None
    page = table(merged, scores, beside)
    head = args.to.with_suffix(".md")
    old = head.read_text(encoding="utf-8") if head.exists() else f"# {args.to.name}\n\n"
    write_atomic(head, old.split("<!-- table -->")[0].rstrip() + "\n\n<!-- table -->\n" + page)
    print(page)


if __name__ == "__main__":
    main()
