#!/usr/bin/env python
"""What the gate brings: tables and a plot of several studies with the arm `pfi`.

    python benchmarks/studies/gate.py --runs runs/pfi-test-* runs/pfi-cold-* --to NAME

Runs of other tasks whose users were cut to as many records belong together; runs with another
number are points of the cold-start curve.  Of the runs with the most records: all arms, whether
`pfi` is best or has the best arm's mean within its interval, users harmed, and what the gate chose.
Gains and shares over several tasks are means over tasks, the users of each drawn on their own.
Writes `<to>.md`, `<to>.json` and `<to>.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import points
from points import Cells, arms_of, sign, signed, tasks_of

from pfi._util.files import write_atomic, write_json
from pfi.evaluate.report.gate import GateSums, read_gated
from pfi.evaluate.statistics import interval
from pfi.evaluate.study.arms import get_arm
from pfi.gate.choices import NOTHING, Choice

#: What the issue asks of `pfi`: users harmed against `shared`, on average over tasks.
MOST_HARMED = 0.10
#: Users who lose no more than this many points count as unharmed in a second figure.
TOLERANCE = 1.0
PFI = "pfi"


# Figures ------------------------------------------------------------------------------------


def personalised(arms: Sequence[str]) -> list[str]:
    """The arms over the shared adapter that use a user's records, gated or not."""
    kinds = {arm: get_arm(arm) for arm in arms}
    return [arm for arm, kind in kinds.items() if kind.shared and (kind.memory or kind.personal)]


def standings(cells: Cells) -> dict[str, Any]:
    """By task: the best arm beside `pfi`, whether `pfi` is as good, and the paired difference."""
    found = {}
    for number, task in enumerate(tasks_of(cells)):
        main = {
            arm: cells[task, arm]["metrics"][cells[task, arm]["main"]]
            for arm in arms_of(cells)
            if (task, arm) in cells and not get_arm(arm).teacher
        }
        if PFI not in main or len(main) < 2:
            continue
        metric = cells[task, PFI]["main"]
        ranked = sorted(main, key=lambda arm: -sign(metric) * main[arm]["mean"])
        other = next(arm for arm in ranked if arm != PFI)
        mean, (low, high) = main[PFI]["mean"], main[PFI]["ci95"]
        best = sign(metric) * mean >= sign(metric) * main[other]["mean"]
        users = points.gaps(cells, task, PFI, other)
        assert users is not None
        found[task] = {
            "metric": metric,
            "pfi": main[PFI],
            "other": other,
            "other_mean": main[other]["mean"],
            "best": best,
            "best_or_within": best or low <= main[other]["mean"] <= high,
            "gain": float(users.mean()),
            "ci95": interval(points.means(users, number)),
        }
    return found


def as_good(cells: Cells) -> dict[str, int]:
    """By arm: on how many tasks it is best or has the best arm's mean within its interval.

    What intervals are too wide to tell apart passes: this says how much the count of `pfi` means.
    """
    counts = Counter({arm: 0 for arm in arms_of(cells) if not get_arm(arm).teacher})
    for task in tasks_of(cells):
        main = {
            arm: cells[task, arm]["metrics"][cells[task, arm]["main"]]
            for arm in counts
            if (task, arm) in cells
        }
        if not main:
            continue
        way = sign(next(cells[task, arm]["main"] for arm in main))
        top = max((value["mean"] for value in main.values()), key=lambda mean: way * mean)
        counts.update(arm for arm, v in main.items() if v["ci95"][0] <= top <= v["ci95"][1])
    return dict(counts)


def harm(cells: Cells) -> dict[str, Any]:
    """By personalised arm: the share of users harmed, and of those harmed beyond a point."""
    found = {}
    for arm in personalised(arms_of(cells)):
        entry, beyond = points.harmed(cells, arm), points.harmed(cells, arm, TOLERANCE)
        if entry is not None:
            found[arm] = {"harmed": entry, "beyond_a_point": beyond}
    return found


def cold_start(found: dict[str, Cells]) -> dict[str, Any]:
    """By number of records and arm: gain over `shared` in points and share harmed, over tasks."""
    curve: dict[str, Any] = {}
    for name, cells in found.items():
        curve[name] = {}
        for arm in personalised(arms_of(cells)):
            over, share = points.gain(cells, arm, "shared"), points.harmed(cells, arm)
            if over is not None and share is not None:
                curve[name][arm] = {
                    "points": over["points"],
                    "harmed": {"mean": share["mean"], "ci95": share["ci95"]},
                    "tasks": len(share["tasks"]),
                }
    return curve


def chosen(runs: Sequence[Path], records: str) -> dict[tuple[str, str], GateSums]:
    """By task and arm what the gate chose in the runs with that many records."""
    found: dict[tuple[str, str], GateSums] = {}
    for run in runs:
        config = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["config"]
        if points.regime(config) == records:
            found |= read_gated(run / "events.jsonl")[0]
    return dict(sorted(found.items()))


# The page -----------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def arm_lines(cells: Cells) -> list[str]:
    """All arms' main metric on every task; the best mean in bold."""
    arms, head = arms_of(cells), ["arm"]
    rows = [[arm] for arm in arms]
    for task in tasks_of(cells):
        found = {arm: cells[task, arm] for arm in arms if (task, arm) in cells}
        metric = next(cell["main"] for cell in found.values())
        way = sign(metric)
        head.append(f"{task} {metric} {'↑' if way > 0 else '↓'}")
        main = {arm: cell["metrics"][metric] for arm, cell in found.items()}
        own = [way * value["mean"] for arm, value in main.items() if not get_arm(arm).teacher]
        for row in rows:
            value = main.get(row[0])
            if value is None:
                row.append("")
                continue
            text, (low, high) = f"{value['mean']:.3f}", value["ci95"]
            if not get_arm(row[0]).teacher and way * value["mean"] == max(own):
                text = f"**{text}**"
            row.append(f"{text} [{low:.3f}, {high:.3f}]")
    return table(head, rows)


def standing_lines(found: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """How `pfi` stands beside the best other arm, and how the same count is for all arms."""
    if not found:
        return ["No run has the arm `pfi` beside another one.", ""]
    rows = []
    for task, entry in found.items():
        low, high = entry["pfi"]["ci95"]
        state = "best" if entry["best"] else "within" if entry["best_or_within"] else "no"
        rows.append(
            [
                f"{task} {entry['metric']}",
                f"{entry['pfi']['mean']:.3f} [{low:.3f}, {high:.3f}]",
                f"{entry['other']} {entry['other_mean']:.3f}",
                state,
                signed(entry["gain"], entry["ci95"]),
            ]
        )
    head = ["task", "`pfi`", "best other arm", "`pfi` is best, or the best lies in its interval",
            "paired difference, mean over users"]  # fmt: skip
    best, within = (sum(e[key] for e in found.values()) for key in ("best", "best_or_within"))
    count = f"`pfi` is best on {best} and best or within its interval of the best on {within} of "
    others = ", ".join(f"`{arm}` {n}" for arm, n in counts.items() if arm != PFI)
    lines = [*table(head, rows), f"{count}{len(found)} tasks."]
    return [*lines, f"The same count of the other arms: {others}.", ""]


def harm_lines(cells: Cells, found: dict[str, Any]) -> list[str]:
    """Users harmed by arm and task."""
    if not found:
        return ["No run has the arm `shared` beside a personalised one.", ""]
    tasks, rows = tasks_of(cells), []
    for arm, entry in found.items():
        share, beyond = entry["harmed"], entry["beyond_a_point"]
        low, high = share["ci95"]
        cell = [
            f"{100 * share['tasks'][t]:.1f} ({100 * beyond['tasks'][t]:.1f})"
            if t in share["tasks"]
            else ""
            for t in tasks
        ]
        mean = f"{100 * share['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}] "
        rows.append([arm, *cell, mean + f"({100 * beyond['mean']:.1f})"])
    lines = table(["arm, % of users", *tasks, "mean over tasks"], rows)
    means_of = {arm: entry["harmed"]["mean"] for arm, entry in found.items()}
    plain = {arm: mean for arm, mean in means_of.items() if not get_arm(arm).gate}
    if PFI in means_of:
        mean = means_of[PFI]
        kept = "yes" if mean <= MOST_HARMED else "no"
        lines.append(f"- `pfi` harms {100 * mean:.1f} % on average; at most 10 %: {kept}.")
        if plain:
            least = min(plain, key=plain.__getitem__)
            above = [arm for arm, share in plain.items() if mean > share]
            text = f"- Least of the arms without a gate: `{least}`, {100 * plain[least]:.1f} %; "
            text += f"`pfi` is above {', '.join(f'`{arm}`' for arm in above) or 'none of them'}."
            lines.append(text)
        lines.append("")
    return lines


def named(choice: Choice) -> str:
    """A choice in short."""
    if choice == NOTHING:
        return "nothing"
    likeness, unsure = " by likeness" * choice.by_likeness, " if unsure" * choice.if_unsure
    return f"weight {choice.weight:g}{likeness}, k {choice.k}{unsure}"


def gate_lines(cells: Cells, found: dict[tuple[str, str], GateSums]) -> list[str]:
    """What the gate chose, by task."""
    if not found:
        return ["No run has an arm with a gate.", ""]
    rows = []
    for (task, arm), sums in found.items():
        common = Counter(sums.choices).most_common(3)
        measured = cells.get((task, arm), {}).get("gain")
        believed, tried = sums.believed, sums.tried
        rows.append(
            [
                f"{task} {arm}",
                str(len(sums.users)),
                f"{100 * sums.nothing:.0f} %",
                f"{sums.weight:.2f}",
                f"{sums.k:.1f}",
                f"{sums.by_likeness} · {sums.if_unsure}",
                "" if tried is None else f"{tried:g}",
                "" if believed is None else f"{believed:+.3f}",
                signed(measured["mean"], measured["ci95"]) if measured else "",
                "; ".join(f"{named(choice)}: {n}" for choice, n in common),
            ]
        )
    head = ["task, arm", "users", "nothing", "weight, mean", "k, mean",
            "by likeness · if unsure", "tried on, median", "gain believed", "gain measured",
            "most frequent choices"]  # fmt: skip
    return table(head, rows)


def cold_lines(curve: dict[str, Any]) -> list[str]:
    """Gains and users harmed by number of records."""
    arms = list(dict.fromkeys(arm for entry in curve.values() for arm in entry))
    gains, shares = [], []
    for arm in arms:
        found = [entry.get(arm) for entry in curve.values()]
        gains.append(
            [
                arm,
                *(signed(e["points"]["mean"], e["points"]["ci95"], 1) if e else "" for e in found),
            ]
        )
        shares.append([arm, *(_share(**e["harmed"]) if e else "" for e in found)])
    counts = {n: max((e["tasks"] for e in entry.values()), default=0) for n, entry in curve.items()}
    head = [f"{name} ({n} task{'s' * (n != 1)})" for name, n in counts.items()]
    lines = ["Gain over `shared` in points, mean over tasks:", "", *table(["arm", *head], gains)]
    lines += ["Users harmed, %, mean over tasks:", "", *table(["arm", *head], shares)]
    if len(set(counts.values())) > 1:
        lines += ["The numbers of records have other tasks: compare them with care.", ""]
    return lines


def _share(mean: float, ci95: Sequence[float]) -> str:
    return f"{100 * mean:.1f} [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def plot(curve: dict[str, Any], path: Path) -> None:
    """Gain over `shared` and users harmed against the number of records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = list(curve)
    arms = list(dict.fromkeys(arm for entry in curve.values() for arm in entry))
    for axes, (what, factor) in zip(panels, (("points", 1), ("harmed", 100)), strict=True):
        for i, arm in enumerate(arms):
            at = [j for j, name in enumerate(names) if arm in curve[name]]
            found = [curve[names[j]][arm][what] for j in at]
            middle = [factor * point["mean"] for point in found]
            spread = [[factor * abs(p["mean"] - p["ci95"][end]) for p in found] for end in (0, 1)]
            place = [j + (i - (len(arms) - 1) / 2) * min(0.08, 0.7 / len(arms)) for j in at]
            gate = get_arm(arm).gate
            look = {"linewidth": 2.2, "color": "black", "zorder": 3} if gate else {"linewidth": 1.0}
            axes.errorbar(place, middle, spread, fmt="o-", markersize=4, capsize=2, label=arm,
                          elinewidth=0.8, **look)  # fmt: skip
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("records of a user")
        axes.grid(alpha=0.3)
    panels[0].axhline(0, color="0.5", linewidth=1, linestyle="--")
    panels[0].set_ylabel("gain over shared, points\n(mean over tasks, 95 % interval)")
    panels[1].axhline(100 * MOST_HARMED, color="0.5", linewidth=1, linestyle="--")
    panels[1].set_ylabel("users harmed, %")
    if arms:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def results(runs: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """All figures, and the lines of the page."""
    found = points.regimes(runs)
    records, cells = list(found.items())[-1]
    standing, counts = standings(cells), as_good(cells)
    harms, curve = harm(cells), cold_start(found)
    gates = chosen(runs, records)
    lines = [f"## {records} records", "", "Main metric with its 95 % interval:", ""]
    lines += [*arm_lines(cells), *standing_lines(standing, counts)]
    lines += ["## Users harmed", "", "Worse than under `shared`; in brackets by more than a point:"]
    lines += ["", *harm_lines(cells, harms), "## What the gate chose", ""]
    lines += [*gate_lines(cells, gates), "## Few records", "", *cold_lines(curve)]
    lines += [
        "A point is a hundredth of the metric's range (1; 4 for MAE). Paired differences, gains in",
        "points and shares of users are over users, so that a user counts once however many",
        "questions were asked; main metrics are over questions. `*`: the interval excludes zero.",
    ]
    choices = {
        f"{task} {arm}": {named(c): n for c, n in Counter(sums.choices).most_common()}
        for (task, arm), sums in gates.items()
    }
    values = {"records": records, "standings": standing, "best_or_within": counts}
    return {**values, "harmed": harms, "choices": choices, "cold_start": curve}, lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--to", type=Path, help="result file, without suffix")
    args = parser.parse_args()
    values, lines = results(args.runs)
    command = " ".join(["python benchmarks/studies/gate.py", *sys.argv[1:]])
    text = "\n".join(["# The gate", "", f"`{command}`", "", *lines]) + "\n"
    print(text)
    if args.to:
        write_atomic(args.to.with_suffix(".md"), text)
        write_json(args.to.with_suffix(".json"), values)
        plot(values["cold_start"], args.to.with_suffix(".png"))


if __name__ == "__main__":
    main()
