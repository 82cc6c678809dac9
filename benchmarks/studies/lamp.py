#!/usr/bin/env python
"""The table of a finished LaMP study beside baselines that need no training.

    pfi study --data ../shared/data/lamp --split test --out runs/lamp-test
    python benchmarks/studies/lamp.py runs/lamp-test --to benchmarks/results/lamp-test

Writes ``<to>.md`` and ``<to>.json`` (the metrics without the per-user scores).  The baselines
are computed here from the same files, on the same questions, with the same metrics.
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

PERSONALISED = ("rag", "personal", "personal+rag")
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


def table(metrics: dict[str, Any], scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """The Markdown page."""
    arms = metrics["arms"]
    tasks = [name for name in scores if name in arms["shared"]]
    lines = ["| task, metric | " + " | ".join(arms) + " | best baseline |"]
    lines.append("|---" * (len(arms) + 2) + "|")
    beats_baselines = beats_shared = clearly = 0
    for name in tasks:
        task = get_task(name)
        for metric in task.metrics:
            sign = 1 if METRICS[metric].higher_is_better else -1
            best_name, best = max(
                ((b, s[metric]) for b, s in scores[name].items()), key=lambda pair: sign * pair[1]
            )
            cells = " | ".join(figure(arms[arm][name], metric) for arm in arms)
            arrow = "↑" if sign > 0 else "↓"
            lines.append(f"| {name} {metric} {arrow} | {cells} | {best:.3f} ({best_name}) |")
            if metric == task.main_metric:
                value = arms["shared"][name]["metrics"][metric]["mean"]
                beats_baselines += sign * value > sign * best
        gains = [arms[arm][name]["gain"] for arm in PERSONALISED if arm in arms]
        beats_shared += any(g["mean"] > 0 for g in gains)
        clearly += any(g["ci95"][0] > 0 for g in gains)
    lines += [
        "",
        "Gain over `shared`, share of users harmed, mean of the worst tenth of users:",
        "",
    ]
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
    first = arms["shared"]
    counts = ", ".join(f"{n}: {first[n]['n_users']}/{first[n]['n_questions']}" for n in tasks)
    lines += [
        "",
        f"- `shared` beats every baseline on {beats_baselines} of {len(tasks)} tasks.",
        f"- The best personalised arm beats `shared` on {beats_shared} of {len(tasks)} tasks; "
        f"on {clearly} the interval excludes zero. Choosing the best of {len(present)} arms on "
        "the questions that it is scored on flatters it.",
        f"- Users/questions: {counts}.",
        f"- Machine: {', '.join(f'{k} {v}' for k, v in metrics['machine'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, tasks divided among them")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lamp"))
    parser.add_argument("--to", type=Path, required=True, help="result files, without suffix")
    args = parser.parse_args()
    merged: dict[str, Any] = {}
    for run in args.runs:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        merged = merged or {**metrics, "arms": {arm: {} for arm in metrics["arms"]}}
        for arm, cells in metrics["arms"].items():
            merged["arms"][arm] |= cells
    merged["config"]["tasks"] = sorted(merged["arms"]["shared"])
    merged["config"]["data"] = "LAMP"  # the folder's path is nobody's business
    scores = {}
    for name in merged["config"]["tasks"]:
        task = get_task(name)
        users = read_users(args.data / name, task, merged["config"]["split"])
        scores[name] = baseline_scores(task, users, read_users(args.data / name, task, "train"))
    for cells in merged["arms"].values():
        for cell in cells.values():
            del cell["users"]
    write_json(args.to.with_suffix(".json"), {**merged, "baselines": scores})
    page = table(merged, scores)
    head = args.to.with_suffix(".md")
    old = head.read_text(encoding="utf-8") if head.exists() else f"# {args.to.name}\n\n"
    write_atomic(head, old.split("<!-- table -->")[0].rstrip() + "\n\n<!-- table -->\n" + page)
    print(page)


if __name__ == "__main__":
    main()
