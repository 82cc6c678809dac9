#!/usr/bin/env python
"""Whether two studies of the same users and arms agree, and what each took.

    python benchmarks/studies/compare_runs.py --before runs/a runs/b --after runs/c runs/d --to NAME

For every task and arm: the mean over users of the paired difference of their main metric with
its 95 % bootstrap interval.  Of cells that differ by chance only about one in twenty excludes
zero.  Times are wall clock from a run's first event to its last.  Writes `<to>.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pfi._util.events import read_events
from pfi._util.files import write_atomic
from pfi.evaluate.statistics import Draws, interval
from pfi.tasks import METRICS


def cells(runs: list[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of several runs' metrics by task and arm."""
    found = {}
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        for arm, tasks in metrics["arms"].items():
            found.update({(task, arm): cell for task, cell in tasks.items()})
    return found


def difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, list[float]]:
    """Mean paired difference over users, positive where ``after`` is better; its interval."""
    users = sorted(before["users"])
    if users != sorted(after["users"]):
        raise SystemExit("the runs have other users")
    sign = 1.0 if METRICS[before["main"]].higher_is_better else -1.0
    gaps = np.array(
        [sign * (after["users"][u]["score"] - before["users"][u]["score"]) for u in users]
    )
    means = np.array([gaps[draw].mean() for draw in Draws(len(users), 2000, 0)])
    return float(gaps.mean()), interval(means)


def seconds(runs: list[Path]) -> dict[str, float]:
    """Wall clock of all runs, and of it the training of shared and of personal adapters."""
    total = {"wall clock": 0.0, "shared adapters": 0.0, "personal adapters": 0.0, "answers": 0.0}
    for run in runs:
        events = list(read_events(run / "events.jsonl"))
        total["wall clock"] += events[-1]["time"] - events[0]["time"]
        for event in events:
            if event["event"] == "trained":
                kind = "shared" if event["adapter"] == "shared" else "personal"
                total[f"{kind} adapters"] += event["seconds"]
            elif event["event"] == "answered":
                total["answers"] += event["seconds"]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--after", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--to", type=Path, help="result file, without suffix")
    args = parser.parse_args()
    old, new = cells(args.before), cells(args.after)
    rows, outside = [], 0
    both = [key for key in old if key in new]
    for task, arm in sorted(both):
        before, after = old[task, arm], new[task, arm]
        main_metric = before["main"]
        gap, (low, high) = difference(before, after)
        mark = "" if low <= 0 <= high else " *"
        outside += bool(mark)
        values = [cell["metrics"][main_metric]["mean"] for cell in (before, after)]
        figures = f"{values[0]:.3f} | {values[1]:.3f} | {gap:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"
        rows.append(f"| {task} {main_metric} | {arm} | {figures} |")
    spent = [seconds(args.before), seconds(args.after)]
    lines = [
        "| task, metric | arm | before | after | gain a user |",
        "|---|---|---|---|---|",
        *rows,
    ]
    lines += ["", f"{outside} of {len(rows)} intervals exclude zero (*).", ""]
    lines += ["| seconds | before | after | ratio |", "|---|---|---|---|"]
    for name, value in spent[0].items():
        now = spent[1][name]
        lines.append(f"| {name} | {value:,.0f} | {now:,.0f} | {value / max(now, 1e-9):.2f} |")
    command = " ".join(["python benchmarks/studies/compare_runs.py", *sys.argv[1:]])
    text = "\n".join(["# Two runs of the same study", "", f"`{command}`", "", *lines]) + "\n"
    print(text)
    if args.to:
        write_atomic(args.to.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
