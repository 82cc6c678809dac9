#!/usr/bin/env python
"""Shared adapters by federation against central training and none: tables and a plot of studies.

    python benchmarks/studies/shared.py --runs runs/fed-* --to benchmarks/results/shared

The runs are studies of other tasks, or of the same users with other arms; together they have the
arms `generic`, `shared` and some `shared-fed:STRATEGY`.  Gaps are paired over users, positive
where federation is better; means over tasks have the users of every task drawn on their own.
Writes `<to>.md`, `<to>.json` and `<to>.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import points
from points import Cells, signed

from pfi._util.files import write_atomic, write_json
from pfi.evaluate.report.federated import Rounds, read_rounds
from pfi.evaluate.study.arms import FEDERATED

_MEGA = 1e6


def figures(cells: Cells, rounds: dict[tuple[str, str], Rounds]) -> dict[str, Any]:
    """All that the page shows."""
    arms = points.arms_of(cells)
    federated = sorted(arm for arm in arms if arm.startswith(FEDERATED))
    return {
        "tasks": {
            task: {
                "metric": cells[task, "shared"]["main"],
                "users": cells[task, "shared"]["n_users"],
                "questions": cells[task, "shared"]["n_questions"],
                "arms": {
                    arm: _arm(cells[task, arm], rounds.get((task, arm)))
                    for arm in ["generic", "shared", *federated]
                    if (task, arm) in cells
                },
            }
            for task in points.tasks_of(cells)
        },
        "gap_to_central": {arm: points.gain(cells, arm, "shared") for arm in federated},
        "gain_over_generic": {
            arm: points.gain(cells, arm, "generic") for arm in ["shared", *federated]
        },
        "worse_than_central": {arm: points.harmed(cells, arm) for arm in federated},
    }


def _arm(cell: dict[str, Any], rounds: Rounds | None) -> dict[str, Any]:
    """One arm of a task: quality, its worst tenth of users, and what federation sent."""
    found = {**cell["metrics"][cell["main"]], "worst_tenth": cell["worst_decile"]}
    if rounds is not None:
        found |= {
            "rounds": len(rounds.by_number),
            "bytes_up_a_client_round": rounds.each("up"),
            "bytes_down_a_client_round": rounds.each("down"),
            "bytes": rounds.total("up") + rounds.total("down"),
            "held_out_loss": rounds.loss,
        }
    return found


def page(found: dict[str, Any], command: str, config: dict[str, Any], machine: str) -> str:
    """The Markdown page."""
    federated = list(found["gap_to_central"])
    names = {arm: arm.removeprefix(FEDERATED) for arm in federated}
    fed = config["federation"]
    local, server = fed["local"], fed["server"]
    lines = [
        "# Shared adapters: federated, central, none",
        "",
        f"Made by `{command}`. Split `{config['split']}`, seed {config['seed']}, {machine}; "
        f"backbone `{config['backbone']}`. Clients are the train users, {fed['held_out']:.0%} of "
        f"them held out; {fed['cohort']} clients a round, of each {_steps(local)} of "
        f"{local['batch_size']} examples by {local['optimizer']} at {local['learning_rate']:g}; "
        f"{server['optimizer']} at {server['learning_rate']:g}, decay {server['decay']}. How the "
        "settings were chosen, and not on this split, is in [the log](../../dev/log.md).",
        "",
        "![Held-out loss against bytes]({picture})",
        "",
        "## Main metric",
        "",
        _row(["task", "metric", "users", "none", "central", *names.values()]),
        _row(["---"] * (5 + len(federated))),
    ]
    for task, row in found["tasks"].items():
        values = [
            f"{row['arms'][arm]['mean']:.3f}" if arm in row["arms"] else ""
            for arm in ["generic", "shared", *federated]
        ]
        lines.append(_row([task, row["metric"], str(row["users"]), *values]))
    lines += [
        "",
        "## Federated less central",
        "",
        "In the metric's own unit, positive where federation is better, with 95 % intervals over "
        "users; * where zero is outside. The last row is in points, hundredths of the metric's "
        "range.",
        "",
        _row(["task", *names.values()]),
        _row(["---"] * (1 + len(federated))),
    ]
    for task in found["tasks"]:
        cells = [found["gap_to_central"][arm]["tasks"].get(task) for arm in federated]
        lines.append(_row([task, *(signed(c["gain"], c["ci95"]) if c else "" for c in cells)]))
    lines.append(_row(["mean, points", *(_points(found["gap_to_central"][a]) for a in federated)]))
    lines.append(
        _row(["users worse than central", *(_share(found["worse_than_central"][a]) for a in names)])
    )
    over = found["gain_over_generic"]
    lines += [
        "",
        "Gain over no adapter, mean over tasks in points: "
        + "; ".join(
            f"{names.get(arm, 'central')} {_points(gain)}" for arm, gain in over.items() if gain
        )
        + ".",
        "",
        "## Bytes",
        "",
        "Megabytes as sent, safetensors with their headers: up and down for a client in a round, "
        "and of all clients and rounds together.",
        "",
        _row(["task", "rounds", *(f"{n}: up, down, all" for n in names.values())]),
        _row(["---"] * (2 + len(federated))),
    ]
    for task, row in found["tasks"].items():
        sent = [row["arms"].get(arm, {}) for arm in federated]
        counts = [str(arm["rounds"]) for arm in sent if "rounds" in arm]
        lines.append(_row([task, counts[0] if counts else "", *map(_sent, sent)]))
    return "\n".join(lines) + "\n"


def _steps(local: dict[str, Any]) -> str:
    return f"{local['steps']} steps" if local["steps"] else f"{local['epochs']:g} passes"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _points(gain: dict[str, Any] | None) -> str:
    return "" if gain is None else signed(gain["points"]["mean"], gain["points"]["ci95"], 1)


def _share(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['mean']:.0%}"


def _sent(arm: dict[str, Any]) -> str:
    if "bytes" not in arm:
        return ""
    each = [arm[f"bytes_{way}_a_client_round"] / _MEGA for way in ("up", "down")]
    return f"{each[0]:.2f}, {each[1]:.2f}, {arm['bytes'] / _MEGA:,.0f}"


def plot(rounds: dict[tuple[str, str], Rounds], path: Path) -> None:
    """Held-out loss against megabytes, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    tasks = sorted({task for task, _ in rounds})
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for (name, arm), found in sorted(rounds.items()):
            if name != task:
                continue
            reached = found.reached()["megabytes, all clients"]
            losses = [round_.loss for _, round_ in found.ordered]
            at = [(x, y) for x, y in zip(reached, losses, strict=True) if y is not None]
            axis.plot(*zip(*at, strict=True), marker="o", ms=3, label=arm.removeprefix(FEDERATED))
        axis.set_title(task, fontsize=9)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("megabytes sent, all clients, up and down", fontsize=9)
    figure.supylabel("loss of held-out clients", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders")
    parser.add_argument("--to", type=Path, required=True, help="files to write, without ending")
    parser.add_argument("--note", default="", help="what a reader has to know of these runs")
    given = parser.parse_args()
    by_records = points.regimes(given.runs)
    if len(by_records) > 1:
        sys.exit("the runs cut users to other numbers of records")
    (cells,) = by_records.values()
    rounds = {}
    for run in given.runs:
        rounds |= read_rounds(run / "events.jsonl")[0]
    metrics = json.loads((given.runs[0] / "metrics.json").read_text(encoding="utf-8"))
    found = figures(cells, rounds)
    names = " ".join(str(run) for run in given.runs)
    command = f"python benchmarks/studies/shared.py --runs {names} --to {given.to}"
    machine = ", ".join(f"{key} {value}" for key, value in metrics["machine"].items())
    text = page(found, command, metrics["config"], machine)
    if given.note:
        text = text.replace("## Main metric", f"{given.note}\n\n## Main metric", 1)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    plot(rounds, given.to.with_suffix(".png"))
    write_atomic(given.to.with_suffix(".md"), text.replace("{picture}", f"{given.to.name}.png"))
    write_json(given.to.with_suffix(".json"), found)
    print(text)


if __name__ == "__main__":
    main()
