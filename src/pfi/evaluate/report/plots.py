"""The report's plots as inline SVG: no scripts, no files, no pyplot.

Colours are written as CSS variables of the page, so that a plot follows the light or the dark
scheme; the palette is Okabe and Ito's, and shape tells what colour tells.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

Array = np.ndarray

#: Stand-ins that the SVG backend writes and `_svg` turns into the page's CSS variables.
_INK, _MUTED, _GRID = "#010203", "#020304", "#030405"
_BETTER, _WORSE, _SAME = "#040506", "#050607", "#060708"
_SHARED, _PERSONAL = "#070809", "#08090a"
_REAL, _SYNTHETIC = "#000102", "#000203"
_VARIABLES = {
    _INK: "ink", _MUTED: "muted", _GRID: "line", _BETTER: "better", _WORSE: "worse",
    _SAME: "same", _SHARED: "shared", _PERSONAL: "personal", _REAL: "real",
    _SYNTHETIC: "synthetic",
}  # fmt: skip

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """An inline SVG (safe markup) and how many users it shows as better, same and worse."""

    svg: Markup
    better: int = 0
    same: int = 0
    worse: int = 0


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches in the report's style, cleared afterwards."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        try:
            yield figure
        finally:
            figure.clear()


def _svg(figure: Figure, key: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element that can stand in a page beside others.

    Args:
        key: unique in the page; made of letters, digits and hyphens.
        label: what the plot says, for those who do not see it.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.DOTALL)
    # matplotlib's own style sheet would apply to the whole page.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace("xlink:href=", "href=").replace('href="#', f'href="#{key}-')
    text = text.replace("url(#", f"url(#{key}-").replace(' id="', f' id="{key}-')
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    box = re.search(r'<svg[^>]*viewBox="([-\d. ]+)"[^>]*>', text)
    assert box, "matplotlib writes a view box"
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(label)}">'
    return Markup(opening + re.sub(r">\s+<", "><", text[box.end() :]).strip())


def _label(text: str) -> str:
    # Lone surrogates and control characters, which JSON can hold, cannot be drawn.
    return re.sub(r"[\x00-\x1f\x7f]", " ", text.encode("utf-8", "replace").decode())


def _sides(differences: Array) -> Array:
    """1, 0 or -1 for each difference in the direction of improvement; rounding is a tie."""
    return np.where(np.abs(differences) < 1e-9, 0, np.sign(differences)).astype(int)


def _points(axes: Axes, x: Array, y: Array, sides: Array) -> None:
    """Better as blue triangles up, worse as orange ones down; equal points grow in area."""
    counts = Counter(zip(np.round(x, 9), np.round(y, 9), sides, strict=True))
    looks = {0: ("o", _SAME), 1: ("^", _BETTER), -1: ("v", _WORSE)}
    for side, (marker, colour) in looks.items():
        chosen = [(px, py, n) for (px, py, s), n in counts.items() if s == side]
        if chosen:
            xs, ys, n = (np.array(values, dtype=float) for values in zip(*chosen, strict=True))
            axes.scatter(
                xs, ys, s=26 * np.minimum(n, 12), marker=marker, color=colour, alpha=0.7,
                linewidths=0, zorder=3,
            )  # fmt: skip


def _tally(sides: Array) -> dict[str, int]:
    return {
        "better": int(sum(sides > 0)),
        "same": int(sum(sides == 0)),
        "worse": int(sum(sides < 0)),
    }


def scatter_plot(
    before: Sequence[float], after: Sequence[float], sign: int, names: tuple[str, str], metric: str,
    key: str,
) -> Plot:  # fmt: skip
    """Each user's score with one arm (y) against another (x); the diagonal is "no change".

    Args:
        before, after: scores of the same users, aligned, at least one.
        sign: 1 where higher is better, -1 where lower is, 0 where not known (no colours).
        names: the arms on x and on y.
    """
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    sides = _sides(sign * (y - x))
    tally = _tally(sides)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = (high - low) * 0.08 or max(abs(high) * 0.1, 0.1)
    ends = [low - margin, high + margin]
    label = f"Score of each of {len(x)} users, {metric}: {names[1]} against {names[0]}. "
    label += f"{tally['better']} better, {tally['same']} the same, {tally['worse']} worse."
    with _figure(3.5, 3.3) as figure:
        axes = figure.subplots()
        if sign:
            edge = ends[1] if sign > 0 else ends[0]
            axes.fill_between(ends, ends, [edge, edge], color=_BETTER, alpha=0.07, linewidth=0)
        axes.plot(ends, ends, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        _points(axes, x, y, sides)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set_xlabel(_label(f"{names[0]}, {metric}"))
        axes.set_ylabel(_label(f"{names[1]}, {metric}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        return Plot(_svg(figure, key, label), **tally)


def binned_means(
    x: Array, y: Array, bins: int = 5, least: int = 4
) -> list[tuple[float, float, float, float]]:
    """``(median x, mean y, low, high)`` of groups of users of like ``x``, about equal in size.

    Users with equal ``x`` stay together. The interval is a 95 % bootstrap over the group's
    users; a group has at least ``least`` of them, so few users give few groups or none.
    """
    bins = min(bins, len(x) // least)
    if bins < 1:
        return []
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    groups = np.searchsorted(edges, x, side="left")
    rng = np.random.default_rng(0)
    found = []
    for group in np.unique(groups):
        values = y[groups == group]
        if len(values) < least:
            continue
        means = rng.choice(values, (1000, len(values))).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        middle = float(np.median(x[groups == group]))
        found.append((middle, float(values.mean()), float(low), float(high)))
    return found


def history_plot(
    lengths: Sequence[float],
    gains: Sequence[float],
    names: tuple[str, str],
    metric: str,
    key: str,
    records: str = "records",
) -> Plot:
    """Each user's gain (positive is better) against the length of their history, in records.

    Args:
        lengths, gains: of the same users, aligned, at least one.
        names: the arm that the gain is over, and the arm that gains.
        records: what is counted, in words.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(gains, dtype=float)
    sides = _sides(y)
    label = f"Gain of {names[1]} over {names[0]} in {metric}, against the number of {records}, "
    label += f"for {len(x)} users from {x.min():.0f} to {x.max():.0f} {records}."
    with _figure(3.6, 2.8) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        _points(axes, x, y, sides)
        bins = binned_means(x, y)
        if bins:
            bx, mean, low, high = np.array(bins).T
            axes.errorbar(
                bx, mean, yerr=np.maximum([mean - low, high - mean], 0), color=_INK, marker="s",
                markersize=4.5, linewidth=1.4, capsize=3, zorder=4,
            )  # fmt: skip
            label += " Means by length: "
            label += ", ".join(f"{m:+.3f} at {b:.0f} records" for b, m, _, _ in bins) + "."
        if x.min() > 0 and x.max() / x.min() > 20:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            # The formatters of the scale write formulas.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif len(set(lengths)) > 1:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(f"{records} in the history")
        axes.set_ylabel(_label(f"gain in {metric}"))
        return Plot(_svg(figure, key, label), **_tally(sides))


def _thinned(losses: Array, most: int = 150) -> tuple[Array, Array]:
    """Steps (from 1) and losses, as means over equal stretches where there are very many."""
    steps = np.arange(1, len(losses) + 1)
    kept = np.isfinite(losses)
    steps, losses = steps[kept], losses[kept]
    parts = min(len(losses), most)
    if not parts:
        return steps.astype(float), losses
    return (
        np.array([part.mean() for part in np.array_split(steps, parts)]),
        np.array([part.mean() for part in np.array_split(losses, parts)]),
    )


def mean_curve(curves: Sequence[Sequence[float | None]]) -> tuple[Array, Array, Array]:
    """Mean, lower and upper quartile over users at each step, of curves of unequal length.

    It ends where fewer than half of the users still train: after that the mean would say more
    about who is left than about learning. Steps without any loss are NaN.
    """
    lengths = sorted((len(curve) for curve in curves), reverse=True)
    steps = lengths[(len(lengths) - 1) // 2]
    table = np.full((len(curves), steps), np.nan)
    for row, curve in zip(table, curves, strict=True):
        values = np.array(curve[:steps], dtype=float)
        row[: len(values)] = values
    empty = np.isnan(table).all(axis=0)
    table[:, empty] = 0.0  # nanmean warns of empty columns
    low, high = np.nanquantile(table, [0.25, 0.75], axis=0)
    found = np.nanmean(table, axis=0), low, high
    for values in found:
        values[empty] = np.nan
    return found


def training_plot(
    shared: Sequence[float | None], personal: Sequence[Sequence[float | None]], key: str
) -> Plot | None:
    """Training loss of the shared adapter, and of the personal ones as a mean over users.

    Returns:
        None where there is no loss to show.
    """
    users = [curve for curve in personal if any(loss is not None for loss in curve)]
    shared_loss = np.array(shared, dtype=float)
    panels = []
    if np.isfinite(shared_loss).any():
        panels.append("shared")
    if users:
        panels.append("personal")
    if not panels:
        return None
    label = "Training loss by step."
    with _figure(3.9 if len(panels) == 2 else 3.0, 2.6) as figure:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, panel in zip(grid[0], panels, strict=True):
            if panel == "shared":
                x, y = _thinned(shared_loss)
                axes.plot(x, y, color=_SHARED, linewidth=1.6)
                axes.set_title("shared", color=_SHARED, fontsize=10)
            else:
                mean, low, high = mean_curve(users)
                x, y = _thinned(mean)
                if len(users) > 1:
                    band = _thinned(low)[1], _thinned(high)[1]
                    axes.fill_between(x, *band, color=_PERSONAL, alpha=0.18, linewidth=0)
                axes.plot(x, y, color=_PERSONAL, linewidth=1.6)
                many = f", mean of {len(users)}" if len(users) > 1 else ", 1 user"
                axes.set_title("personal" + many, color=_PERSONAL, fontsize=10)
            if len(y) == 1:
                axes.plot(x, y, "o", color=_SHARED if panel == "shared" else _PERSONAL)
            label += f" {panel}: from {y[0]:.3f} to {y[-1]:.3f} in {round(x[-1])} steps."
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        grid[0][0].set_ylabel("loss")
        return Plot(_svg(figure, key, label))


def label_plot(
    labels: Sequence[str], real: Sequence[float], synthetic: Sequence[float], key: str
) -> Plot:
    """The share of each label among real and among synthetic records, as pairs of bars.

    Args:
        labels: from top to bottom, at least one.
        real, synthetic: how many records have each label, aligned with ``labels``.
    """
    totals = sum(real), sum(synthetic)
    parts = [
        np.array(counts, dtype=float) * 100 / (total or 1)
        for counts, total in zip((real, synthetic), totals, strict=True)
    ]
    names = [f"real, {totals[0]:,.0f}", f"synthetic, {totals[1]:,.0f}"]
    label = f"Share of each label among the records ({names[0]}; {names[1]}): "
    found = zip(labels, *parts, strict=True)
    label += "; ".join(f"{name} {a:.0f} % and {b:.0f} %" for name, a, b in found) + "."
    places = np.arange(len(labels))
    with _figure(3.6, 0.9 + 0.3 * len(labels)) as figure:
        axes = figure.subplots()
        axes.barh(places - 0.19, parts[0], 0.36, color=_REAL, label=names[0], zorder=2)
        # Hollow against full, for those who do not see the colours.
        axes.barh(
            places + 0.19, parts[1], 0.32, facecolor="none", edgecolor=_SYNTHETIC, linewidth=1.3,
            label=names[1], zorder=2,
        )  # fmt: skip
        axes.set_yticks(places, [_label(name) for name in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("share of the records, %")
        figure.legend(loc="outside upper right", ncols=2, fontsize=9, handlelength=1.2)
        return Plot(_svg(figure, key, label))


def gate_plot(
    weights: Sequence[str], ks: Sequence[int], users: Sequence[Sequence[int]], key: str
) -> Plot:
    """How many users the gate chose a weight (rows) and a number of records (columns) for.

    Args:
        weights: in words, from bottom to top, at least one.
        ks: from left to right, at least one.
        users: ``(weights, ks)``.
    """
    most = max(1, *(max(row) for row in users))
    found = [
        f"weight {weight}, {k} records: {n}"
        for weight, row in zip(weights, users, strict=True)
        for k, n in zip(ks, row, strict=True)
        if n
    ]
    label = "Users by weight of the personal adapter and by retrieved records: "
    label += "; ".join(found or ["none"]) + "."
    with _figure(3.6, 0.9 + 0.34 * len(weights)) as figure:
        axes = figure.subplots()
        axes.grid(visible=False)
        for y, row in enumerate(users):
            for x, n in enumerate(row):
                cell: dict[str, Any] = {"xy": (x - 0.5, y - 0.5), "width": 1, "height": 1}
                # Pale enough to read the number on; an empty cell has none.
                alpha = 0.5 * n / most
                axes.add_patch(Rectangle(**cell, facecolor=_PERSONAL, alpha=alpha, linewidth=0))
                axes.add_patch(Rectangle(**cell, fill=False, edgecolor=_GRID, clip_on=False))
                if n:
                    axes.text(x, y, f"{n:,}", ha="center", va="center", color=_INK)
        axes.set(xlim=(-0.5, len(ks) - 0.5), ylim=(-0.5, len(weights) - 0.5))
        axes.set_xticks(range(len(ks)), [f"{k:,}" for k in ks])
        axes.set_yticks(range(len(weights)), [_label(name) for name in weights])
        axes.tick_params(length=0)
        axes.set_xlabel("retrieved records")
        axes.set_ylabel("weight")
        return Plot(_svg(figure, key, label))
