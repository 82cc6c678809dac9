#!/usr/bin/env python
"""One page about streams: what it brings to go on learning as records come.

    python benchmarks/studies/stream.py --runs runs/stream-choice runs/stream-text \
        --flips runs/stream-flip --to benchmarks/results/stream

The runs are studies with `--protocol stream`, each of other tasks; their events are put
together, so that the mean over tasks and its interval are those of one run. `--flips` are runs
with a planted change. Writes `<to>.md`, `<to>.json` and `<to>.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pfi._util.events import read_events
from pfi._util.files import write_atomic
from pfi.evaluate.stream.metrics import GAINS, points_scale, stream_metrics
from pfi.evaluate.stream.replay import POLICIES
from pfi.evaluate.stream.report import read_metrics
from pfi.evaluate.study.config import StudyConfig
from pfi.tasks import get_task


def together(runs: list[Path]) -> dict[str, Any]:
    """The figures of several runs as those of one.

    Raises:
        SystemExit: their settings differ, or a task is in two of them.
    """
    configs = [
        StudyConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text("utf-8")))
        for run in runs
    ]
    names = [name for config in configs for name in config.tasks]
    if len(set(names)) < len(names):
        raise SystemExit("a task is in two of the runs")
    own: dict[str, Any] = {"tasks": [], "shared_from": None}
    if any(c.model_copy(update=own) != configs[0].model_copy(update=own) for c in configs):
        raise SystemExit("the runs have other settings than each other")
    config = configs[0].model_copy(update={"tasks": names})
    events = chain.from_iterable(read_events(run / "events.jsonl") for run in runs)
    metrics = stream_metrics(config, [get_task(name) for name in names], events)
    metrics["machine"] = read_metrics(runs[0]).get("machine", {})
    return metrics


def signed(value: dict[str, Any] | None, digits: int = 3) -> str:
    """A gain with its interval, starred where that excludes zero."""
    if value is None or value["mean"] is None:
        return "–"
    low, high = value["ci95"]
    mark = " *" if low > 1e-9 or high < -1e-9 else ""
    return f"{value['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{mark}"


def settings(config: dict[str, Any]) -> str:
    """What a run was: split, users, seed and how adapters were updated."""
    stream, personal, search = config["stream"], config["personal"], config["search"]
    updates = {name: stream[name] for name in ("first", "every", "replay", "anew", "epochs")}
    training = {name: personal[name] for name in ("rank", "learning_rate", "layers", "precision")}
    retrieved = config["retrieve"] if "retrieve" in config else config["k"]  # as older runs say
    given = {"users": config["users"], "seed": config["seed"], "k": retrieved, **updates}
    given |= {**training, "search": search["how"], "recency": search["recency"]}
    shown = ", ".join(f"{name} {'all' if v is None else v}" for name, v in given.items())
    return f"Split {config['split']}, backbone {config['backbone']}; {shown}."


def policy_table(metrics: dict[str, Any]) -> list[str]:
    """Each policy's main metric after the first update."""
    head = ["task", "metric", "users", "steps", *POLICIES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, cell in metrics["tasks"].items():
        final = cell["after_first_update"]
        row = [name, cell["metric"], str(final["n_users"]), str(cell["n_questions"])]
        for policy in POLICIES:
            found = final["policies"][policy]
            low, high = found["ci95"]
            row.append(f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def gain_table(metrics: dict[str, Any]) -> list[str]:
    """Gains by task, and on the mean over tasks in points."""
    names = [f"{policy} over {over}" for policy, over in GAINS]
    lines = ["| task | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task, cell in metrics["tasks"].items():
        gains = cell["after_first_update"]["gains"]
        lines.append(f"| {task} | " + " | ".join(signed(gains[name]) for name in names) + " |")
    points = (f"**{signed(metrics['points'].get(name), 1)}**" for name in names)
    lines.append("| **mean over tasks, points** | " + " | ".join(points) + " |")
    return lines


def over_time(metrics: dict[str, Any]) -> dict[str, list[float]]:
    """Gain over ``never`` by window in points: mean over the tasks that half their users reach."""
    found: dict[str, list[float]] = {}
    for place in range(max(len(cell["windows"]) for cell in metrics["tasks"].values())):
        cells = [
            (points_scale(get_task(name)), cell["windows"][place])
            for name, cell in metrics["tasks"].items()
            if place < len(cell["windows"])
            and 2 * cell["windows"][place]["n_users"] >= cell["n_users"]
        ]
        if not cells:
            break
        first, last = cells[0][1]["from"] + 1, cells[0][1]["to"] + 1
        gains = [
            float(np.mean([s * w["policies"][p]["over_never"]["mean"] for s, w in cells]))
            for p in POLICIES
            if p != "never"
        ]
        found[f"{first} to {last}"] = [float(len(cells)), *gains]
    return found


def time_table(rows: dict[str, list[float]]) -> list[str]:
    """The rows of ``over_time``."""
    lines = ["| steps | tasks | memory | adapter | both |", "|---|---|---|---|---|"]
    for steps, (tasks, *gains) in rows.items():
        lines.append(f"| {steps} | {tasks:.0f} | " + " | ".join(f"{g:+.1f}" for g in gains) + " |")
    return lines


def flip_table(metrics: dict[str, Any]) -> list[str]:
    """Levels before a planted change, the windows after it, and when a policy is back."""
    lines = ["| task | policy | before | after, by window | back after |", "|---" * 5 + "|"]
    for task, cell in metrics["tasks"].items():
        for policy, found in cell["flip"].items():
            low, high = found["before"]["ci95"]
            later = [
                f"{window['policies'][policy]['mean']:.2f}"
                for window in cell["windows"]
                if window["from"] >= 0 and 2 * window["n_users"] >= cell["n_users"]
            ]
            back = "not" if found["recovered"] is None else f"{found['recovered']} records"
            before = f"{found['before']['mean']:.2f} [{low:.2f}, {high:.2f}]"
            row = [f"{task} {cell['metric']}", policy, before, " ".join(later), back]
            lines.append("| " + " | ".join(row) + " |")
    return lines


def plot(rows: dict[str, list[float]], path: Path) -> None:
    """Gains over ``never`` by window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (policy, marker) in enumerate(zip(("memory", "adapter", "both"), "s^D", strict=True), 1):
        axes.plot(list(rows), [row[i] for row in rows.values()], marker=marker, label=policy)
    axes.axhline(0, color="grey", linewidth=1, linestyle="--")
    axes.set(xlabel="steps of the stream", ylabel="gain over never, points")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--flips", type=Path, nargs="*", default=[])
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    metrics = together(args.runs)
    rows = over_time(metrics)
    flips = {run.name: read_metrics(run) for run in args.flips}
    lines = [
        "# Streams: predict, then learn",
        "",
        f"`python benchmarks/studies/stream.py {' '.join(sys.argv[1:])}`",
        "",
        settings(metrics["config"]),
        "",
        "After the first update: mean over users of a user's own mean, 95 % intervals over users.",
        "",
        *policy_table(metrics),
        "",
        "Gains, positive where better; `*`: the interval excludes zero.",
        "",
        *gain_table(metrics),
        "",
        "Gain over `never` by window of the stream, in points (hundredths of the metric's range),",
        "mean over the tasks whose streams are still long enough for half of their users:",
        "",
        *time_table(rows),
        "",
        f"![gain over never by window]({args.to.name}.png)",
    ]
    for name, found in flips.items():
        lines += ["", f"## Planted change ({name})", "", settings(found["config"]), ""]
        lines += flip_table(found)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.to.with_suffix(".md"), "\n".join(lines) + "\n")
    kept = {"streams": metrics, "over_time": rows, "flips": flips}
    write_atomic(args.to.with_suffix(".json"), json.dumps(kept) + "\n")
    plot(rows, args.to.with_suffix(".png"))


if __name__ == "__main__":
    main()
