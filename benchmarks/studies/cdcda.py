#!/usr/bin/env python
"""What synthetic records bring, by the number of real ones: a table and a plot of several studies.

    python benchmarks/studies/cdcda.py --runs runs/cdcda-4-* runs/cdcda-all-* --to NAME

Runs of other tasks whose users were cut to as many records belong together.  For every arm that
learns from synthetic records: the mean over users of the paired difference to `personal` (or
`personal+rag`), positive where it is better, with its 95 % bootstrap interval; and the mean over
tasks of that difference in points, hundredths of the range of the metric (1, or 4 for MAE on
scores of 1 to 5), its users drawn task by task.
Writes `<to>.md`, `<to>.json` and `<to>.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from points import Cells, arms_of, gain, regime, regimes, signed, tasks_of

from pfi._util.events import read_events
from pfi._util.files import write_atomic, write_json
from pfi.evaluate.study.arms import get_arm

COMPARED = ("synthetic-only", "cdcda", "cdcda-unfiltered")


def compare(cells: Cells) -> dict[str, Any]:
    """Gains over `personal` by arm: each task's, and their mean in points."""
    arms = [name + rag for name in COMPARED for rag in ("", "+rag")]
    found = {arm: gain(cells, arm, get_arm(arm).without_synthetic) for arm in arms}
    return {arm: entry for arm, entry in found.items() if entry is not None}


def augmentation(runs: list[Path]) -> list[str]:
    """A table of what the teacher made, by regime and task."""
    total: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        config = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["config"]
        for event in read_events(run / "events.jsonl"):
            if event["event"] == "augmented":
                total[regime(config), event["task"]].append(event)
    lines = [
        "| records | task | users | drafts | kept | dropped by |",
        "|---|---|---|---|---|---|",
    ]
    for (records, task), events in total.items():
        dropped: dict[str, int] = defaultdict(int)
        for event in events:
            for entry in event["filters"]:
                dropped[entry["name"]] += entry["before"] - entry["kept"]
        counts = ", ".join(f"{name} {count}" for name, count in dropped.items() if count)
        drafts, kept = (sum(e[key] for e in events) for key in ("drafts", "records"))
        lines.append(f"| {records} | {task} | {len(events)} | {drafts} | {kept} | {counts} |")
    return lines


def table(cells: Cells, compared: dict[str, Any]) -> list[str]:
    """All arms' values of a regime, and the gains over `personal`."""
    tasks, arms = tasks_of(cells), arms_of(cells)
    lines = [
        "| arm | " + " | ".join(f"{t} {cells[t, arms[0]]['main']}" for t in tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for arm in arms:
        values = [cells[task, arm] for task in tasks]
        shown = (f"{cell['metrics'][cell['main']]['mean']:.3f}" for cell in values)
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    lines += ["", "Gain over `personal` (`+rag`: over `personal+rag`), mean over users:", ""]
    lines += ["| arm | " + " | ".join(tasks) + " | mean over tasks, points |"]
    lines += ["|---" * (len(tasks) + 2) + "|"]
    for arm, entry in compared.items():
        shown = (signed(entry["tasks"][t]["gain"], entry["tasks"][t]["ci95"]) for t in tasks)
        whole = signed(entry["points"]["mean"], entry["points"]["ci95"], 1)
        lines.append(f"| {arm} | " + " | ".join(shown) + f" | {whole} |")
    return lines


def plot(results: dict[str, Any], path: Path) -> None:
    """The mean gain over tasks against the number of real records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = list(results)
    arms = list(dict.fromkeys(arm for entry in results.values() for arm in entry["compared"]))
    for i, arm in enumerate(arms):
        at = [j for j, name in enumerate(names) if arm in results[name]["compared"]]
        points = [results[names[j]]["compared"][arm]["points"] for j in at]
        middle = [point["mean"] for point in points]
        spread = [[abs(p["mean"] - p["ci95"][end]) for p in points] for end in (0, 1)]
        place = [j + (i - (len(arms) - 1) / 2) * 0.09 for j in at]
        axes.errorbar(place, middle, spread, fmt="o", capsize=3, label=arm)
    axes.axhline(0, color="0.5", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("real records of a user")
    axes.set_ylabel("gain over personal, points\n(mean over tasks, 95 % interval)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--to", type=Path, help="result file, without suffix")
    args = parser.parse_args()
    found = regimes(args.runs)
    results = {name: {"compared": compare(cells)} for name, cells in found.items()}
    command = " ".join(["python benchmarks/studies/cdcda.py", *sys.argv[1:]])
    lines = ["# Synthetic records beside real ones", "", f"`{command}`", ""]
    for name, cells in found.items():
        lines += [f"## {name} real records", "", *table(cells, results[name]["compared"]), ""]
    lines += ["`*`: the interval excludes zero.", "", "## What the teacher made", ""]
    lines += augmentation(args.runs)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.to:
        write_atomic(args.to.with_suffix(".md"), text)
        write_json(args.to.with_suffix(".json"), results)
        plot(results, args.to.with_suffix(".png"))


if __name__ == "__main__":
    main()
