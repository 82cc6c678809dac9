"""The report of the stream protocol: one HTML page with a plot a task, and a terminal table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from pfi._util.files import write_atomic
from pfi._util.version import __version__
from pfi.errors import StorageError
from pfi.evaluate.report.data import Estimate, sign_of
from pfi.evaluate.report.plots import (
    _BETTER,
    _MUTED,
    _PERSONAL,
    _SAME,
    _SHARED,
    Plot,
    _figure,
    _label,
    _svg,
)
from pfi.evaluate.report.report import _environment, _settings, _summary
from pfi.evaluate.report.text import interval, number
from pfi.evaluate.stream.metrics import GAINS
from pfi.evaluate.stream.replay import POLICIES
from pfi.tasks import get_task

#: How the policies are drawn: colour, marker, line.
_LOOKS: dict[str, tuple[str, str, Any]] = {
    "never": (_SAME, "o", (0, (1, 1.5))),
    "memory": (_SHARED, "s", (0, (4, 1.5))),
    "adapter": (_PERSONAL, "^", (0, (6, 1.5, 1, 1.5))),
    "both": (_BETTER, "D", "-"),
}


@dataclass(frozen=True)
class TaskView:
    """One task of the page.

    Attributes:
        windows: the windows shown; those that fewer than half of the users reach are left out.
    """

    name: str
    title: str
    metric: str
    arrow: str
    cell: dict[str, Any]
    windows: list[dict[str, Any]]
    plot: Plot | None


def shown_windows(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The windows that at least half of the users reach: else they say more of who is left."""
    return [window for window in cell["windows"] if 2 * window["n_users"] >= cell["n_users"]]


def stream_plot(cell: dict[str, Any], key: str, first: int, places: str) -> Plot | None:
    """Mean score of each policy over time, with 95 % intervals as bands.

    Args:
        cell: a task of ``metrics.json``.
        key: unique in the page.
        first: records before the first update.
        places: what is counted on the x axis.
    """
    windows = shown_windows(cell)
    if not windows:
        return None
    flipped = cell["flip"] is not None
    x = np.array([(w["from"] + w["to"]) / 2 + (0 if flipped else 1) for w in windows])
    arrow = {1: "↑", -1: "↓"}.get(sign_of(cell["metric"]), "")
    label = f"{cell['metric']} over time, by {places}."
    with _figure(4.6, 3.0) as figure:
        axes = figure.subplots()
        for policy, (colour, marker, line) in _LOOKS.items():
            found = [w["policies"][policy] for w in windows]
            mean = np.array([f["mean"] for f in found], dtype=float)
            low, high = np.array([f["ci95"] for f in found], dtype=float).T
            axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
            axes.plot(
                x, mean, color=colour, marker=marker, markersize=4, linestyle=line,
                linewidth=1.6, label=policy, zorder=3,
            )  # fmt: skip
            label += f" {policy}: " + ", ".join(f"{m:.3f}" for m in mean) + "."
        if flipped:
            axes.axvline(0, color=_MUTED, linewidth=1.2)
            axes.annotate(
                "labels change", (0, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
                textcoords="offset points", fontsize=8, color=_MUTED, va="top",
            )  # fmt: skip
        else:
            axes.axvline(first + 0.5, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                "first update", (first + 0.5, 0), xycoords=("data", "axes fraction"),
                xytext=(3, 3), textcoords="offset points", fontsize=8, color=_MUTED,
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set_xlabel(places)
        axes.set_ylabel(_label(f"{cell['metric']} {arrow}"))
        figure.legend(loc="outside upper center", ncols=4, fontsize=9, handlelength=2.4)
        return Plot(_svg(figure, key, label))


def headline(metrics: dict[str, Any]) -> str:
    """In a sentence or two: what updating brings, and whether both are better than each."""
    points = metrics["points"]
    if not points:
        return "No stream went beyond the first update: there is nothing to compare."
    gain = points["both over never"]
    text = (
        f"After the first update, adapter and memory together are {_points(gain)} points from "
        f"never updating on the mean over {_tasks(gain['tasks'])}; "
    )
    parts = [
        f"{_points(points[f'both over {over}'])} from {over} alone"
        for over in ("memory", "adapter")
    ]
    return text + " and ".join(parts) + "."


def _points(gain: dict[str, Any]) -> str:
    estimate = _estimate(gain)
    return f"{number(estimate.mean, 1, sign=True)} {_interval(estimate)}"


def _interval(estimate: Estimate) -> str:
    if estimate.ci95 is None:
        return ""
    return f"[{', '.join(number(end, 1, sign=True) for end in estimate.ci95)}]"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _estimate(value: dict[str, Any]) -> Estimate:
    ends = value["ci95"]
    return Estimate(mean=value["mean"], ci95=None if ends is None else (ends[0], ends[1]))


def _verdict(value: dict[str, Any]) -> str:
    """``better`` or ``worse`` where the interval of a gain excludes zero."""
    if value["ci95"] is None:
        return ""
    low, high = value["ci95"]
    return "better" if low > 1e-9 else "worse" if high < -1e-9 else ""


def write_stream_report(run: Path) -> Path:
    """Write ``report.html`` into the run folder from its ``metrics.json``.

    Raises:
        StorageError: there are no metrics, or not of the stream protocol.
    """
    metrics = read_metrics(run)
    config = metrics["config"]
    flipped = config["stream"]["flip"] is not None
    places = "records since the labels changed" if flipped else "place in the stream, in records"
    views = []
    for i, (name, cell) in enumerate(metrics["tasks"].items()):
        plot = stream_plot(cell, f"stream-{i}", config["stream"]["first"], places)
        arrow = {1: "↑", -1: "↓"}.get(sign_of(cell["metric"]), "")
        views.append(
            TaskView(
                name, get_task(name).title, cell["metric"], arrow, cell, shown_windows(cell), plot
            )
        )
    machine = _settings(metrics.get("machine", {}))
    environment = _environment()
    page = environment.get_template("stream.html.j2").render(
        name=run.name,
        headline=headline(metrics),
        summary=_summary(_settings(config), machine),
        policies=POLICIES,
        gains=[(f"{a} over {b}", f"{a} over {b}") for a, b in GAINS],
        points=metrics["points"],
        tasks=views,
        flipped=flipped,
        places=places,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        machine=machine,
        estimate=_estimate,
        interval=interval,
        verdict=_verdict,
        points_of=_points,
        version=__version__,
    )
    path = run / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def read_metrics(run: Path) -> dict[str, Any]:
    """The figures of a run of the stream protocol.

    Raises:
        StorageError: there are none, or they are another protocol's.
    """
    path = run / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if metrics["protocol"] != "stream":
            raise ValueError("of another protocol")
    except (OSError, ValueError, LookupError, TypeError) as error:
        fix = "give the folder of a finished run of `pfi study --protocol stream`"
        raise StorageError("holds no figures of a stream", where=str(path), fix=fix) from error
    return metrics


def stream_table(metrics: dict[str, Any]) -> Table:
    """Each policy's main metric after the first update; gains over never as a mean over tasks.

    Args:
        metrics: the content of ``metrics.json``.
    """
    table = Table(title="After the first update, mean over users ± half the 95 % interval")
    table.caption = "↑ higher is better, ↓ lower is better; points: hundredths of the range"
    table.add_column("task", no_wrap=True)
    for policy in POLICIES:
        table.add_column(policy, justify="right")
    for name, cell in metrics["tasks"].items():
        arrow = {1: "↑", -1: "↓"}.get(sign_of(cell["metric"]), "")
        row = [Text(f"{name}  {cell['metric']} {arrow}".rstrip())]
        for policy in POLICIES:
            found = _estimate(cell["after_first_update"]["policies"][policy])
            text = number(found.mean)
            if found.ci95 is not None:
                text += f" ± {number((found.ci95[1] - found.ci95[0]) / 2)}"
            row.append(Text(text))
        table.add_row(*row)
    for over in ("never", "memory", "adapter"):
        cells = [metrics["points"].get(f"{policy} over {over}") for policy in POLICIES]
        if any(cells):
            table.add_section()
            shown = ["" if cell is None else _points(cell) for cell in cells]
            table.add_row(f"points over {over}", *shown)
    return table
