"""The report of a study: one HTML file that needs nothing else.

The page has no script and fetches nothing; the text of users and models is escaped by the
template engine, and a content security policy forbids what should slip through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pfi._util.files import write_atomic
from pfi._util.version import __version__
from pfi.evaluate.report.augment import TaskAugmentation, augment_view, read_augmented
from pfi.evaluate.report.data import (
    UPPER_BOUNDS,
    Answer,
    Cell,
    Estimate,
    Results,
    RunData,
    TaskView,
    Training,
    in_order,
    main_estimate,
    main_metric,
    read_run,
    real_only,
    sign_of,
    task_view,
    verdict,
)
from pfi.evaluate.report.federated import Rounds, federated_plots, federated_views, read_rounds
from pfi.evaluate.report.gate import GateSums, gate_views, read_gated
from pfi.evaluate.report.plots import Plot, history_plot, scatter_plot, training_plot
from pfi.evaluate.report.text import (
    arm_lines,
    count,
    duration,
    headline,
    interval,
    money,
    notes_on,
    number,
    percent,
    shorten,
)

#: Below these, settings and examples are shown in short.
_MOST_SETTINGS, _MOST_EXAMPLES = 12, 4
#: Arms of which the section on augmentation shows the best one's gain.
_AUGMENTED = ("cdcda", "cdcda+rag")


# What is shown ------------------------------------------------------------------------


@dataclass(frozen=True)
class CellView:
    """One arm on one task: the main metric's estimate and whether the gain is beyond chance.

    ``verdict`` is ``better``, ``worse`` (the gain's interval excludes zero), ``unsure`` or "";
    ``over_personal`` says the same of the gain over the arm with real records alone.
    """

    task: TaskView
    cell: Cell
    main: Estimate
    best: bool
    verdict: str
    over_personal: str


@dataclass(frozen=True)
class Example:
    """One question and what each arm answered: ``(arm, answer, equals the gold answer)``."""

    question: str
    gold: str | None
    answers: tuple[tuple[str, str, bool], ...]


def _cell_view(results: Results, arm: str, task: TaskView) -> CellView:
    cell = results.cell(arm, task.main.task)
    main, over = main_estimate(cell, task.main), verdict(cell.gain_over_personal)
    return CellView(task, cell, main, arm in task.best, verdict(cell.gain), over)


# Plots and examples -----------------------------------------------------------------------


#: A plot with its task and the words of its caption.
TaskPlot = tuple[TaskView, str, Plot | None]


def _pairs(
    results: Results,
    task: str,
    arms: tuple[str, str],
    records: Mapping[str, float] | None = None,
) -> list[tuple[float, float, float | None]]:
    """``(score with the first arm, with the second, records)`` of the users who have both.

    Args:
        records: by user, if not the whole history counts.
    """
    first, second = (results.cell(arm, task).users for arm in arms)
    found = []
    for user, score in second.items():
        before = first[user].score if user in first else None
        if before is not None and score.score is not None:
            length = score.history if records is None else records.get(user)
            found.append((before, score.score, length))
    return found


def _scatter(results: Results, task: TaskView, key: str) -> TaskPlot:
    if task.personalised is None:
        return task, "", None
    arms = ("generic", task.personalised)
    pairs = _pairs(results, task.main.task, arms)
    if not pairs:
        return task, "", None
    before, after, _ = zip(*pairs, strict=True)
    plot = scatter_plot(before, after, task.main.sign, arms, task.main.metric, key)
    return task, " against ".join(reversed(arms)), plot


def _history(results: Results, task: TaskView, key: str) -> TaskPlot:
    if task.personalised is None:
        return task, "", None
    return _gains(results, task, ("shared", task.personalised), key)


def _gains(
    results: Results,
    task: TaskView,
    arms: tuple[str, str],
    key: str,
    real: Mapping[str, float] | None = None,
) -> TaskPlot:
    """Users' gains of the second arm over the first, by length of history or of its real part."""
    pairs = _pairs(results, task.main.task, arms, real)
    points = [(n, task.main.sign * (b - a)) for a, b, n in pairs if n is not None]
    if not points or not task.main.sign:
        return task, "", None
    lengths, gains = zip(*points, strict=True)
    what = "records" if real is None else "real records"
    plot = history_plot(lengths, gains, arms, task.main.metric, key, what)
    return task, " against ".join(reversed(arms)), plot


def _augment_gains(
    results: Results, task: TaskView, augmented: TaskAugmentation, key: str
) -> TaskPlot:
    """Gains of the best arm with real and synthetic records over the one without those."""
    sign, name = task.main.sign, task.main.task
    means = {arm: main_estimate(results.cell(arm, name), task.main).mean for arm in _AUGMENTED}
    scores = {arm: sign * mean for arm, mean in means.items() if mean is not None}
    if not scores:
        return task, "", None
    best = max(scores, key=scores.__getitem__)
    return _gains(results, task, (real_only(best), best), key, augmented.real)


def _training(run: RunData, task: str, key: str) -> Plot | None:
    mine = [event for event in run.trained if event.task == task]
    shared = [event.losses for event in mine if event.adapter == "shared"]
    personal = [event.losses for event in mine if event.adapter == "personal"]
    return training_plot(shared[-1] if shared else [], personal, key)


def _examples(run: RunData, task: str) -> list[Example]:
    """Questions on which the arms disagree, of as many users as possible, in the run's order."""
    mine = [event for event in run.answered if event.task == task]
    # By (user, question), then by arm; the first arm, the plainest, lends prompt and gold.
    asked: dict[tuple[str, str], dict[str, Answer]] = {}
    for arm in in_order(dict.fromkeys(event.arm for event in mine)):
        for event in mine:
            for answer in event.answers if event.arm == arm else ():
                asked.setdefault((event.user, answer.id), {})[arm] = answer
    turns: Counter[str] = Counter()
    disputed = []
    for (user, _), by_arm in asked.items():
        if len({answer.answer.strip() for answer in by_arm.values()}) > 1:
            disputed.append((turns[user], by_arm))
            turns[user] += 1
    disputed.sort(key=lambda pair: pair[0])  # stable: the first question of each user leads
    return [_example(by_arm) for _, by_arm in disputed[:_MOST_EXAMPLES]]


def _example(by_arm: dict[str, Answer]) -> Example:
    first = next(iter(by_arm.values()))
    gold = None if first.gold is None else first.gold.strip()
    texts = ((arm, answer.answer.strip()) for arm, answer in by_arm.items())
    answers = tuple((arm, shorten(text), text == gold) for arm, text in texts)
    return Example(shorten(first.prompt), None if gold is None else shorten(gold), answers)


# The page -------------------------------------------------------------------------------


def _settings(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested configuration as ``(dotted name, short text)``."""
    if isinstance(value, dict):
        prefix = f"{name}." if name else ""
        return [pair for k, v in value.items() for pair in _settings(v, f"{prefix}{k}")]
    if isinstance(value, list):
        value = ", ".join(str(v) for v in value)
    return [] if value is None or value == "" else [(name, shorten(str(value), 120))]


def _summary(settings: list[tuple[str, str]], machine: list[tuple[str, str]]) -> str:
    """The settings that matter most and the machine, in one line for the head of the page."""
    found = dict(settings)
    named = [f"{key} {found[key]}" for key in ("backbone", "split", "seed") if key in found]
    return " · ".join(named + [f"{key} {value}" for key, value in machine])


def _seconds(run: RunData, tasks: Sequence[TaskView]) -> list[tuple[str, list[float | None]]]:
    """``(what, seconds for each task and in total)``: each arm, then training by adapter."""
    names = [task.main.task for task in tasks]
    rows: list[tuple[str, list[float | None]]] = [
        (arm, [run.results.cell(arm, task).seconds for task in names])
        for arm in run.results.arm_names
    ]
    for adapter in dict.fromkeys(adapter for _, adapter in run.training):
        took = [run.training.get((task, adapter), Training()) for task in names]
        rows.append((f"training: {adapter}", [training.seconds for training in took]))
    found = []
    for what, cells in rows:
        known = [seconds for seconds in cells if seconds is not None]
        if known:
            found.append((what, [*cells, sum(known)]))
    return found


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "interval": interval, "duration": duration,
        "count": count, "money": money, "shorten": shorten,
        "arrow": lambda metric: {1: "↑", -1: "↓"}.get(sign_of(metric), ""),
    }  # fmt: skip
    return environment


def _render(
    run: RunData,
    augmented: Mapping[str, TaskAugmentation],
    gated: Mapping[tuple[str, str], GateSums],
    rounds: Mapping[tuple[str, str], Rounds],
) -> str:
    results = run.results
    tasks = [task_view(results, task) for task in results.task_names]
    # Tasks that only the events know belong to a run that was killed before its results.
    seen = [*(event.task for event in run.trained), *(event.task for event in run.answered)]
    seen += [*augmented, *(task for task, _ in gated), *(task for task, _ in rounds)]
    names = list(dict.fromkeys([*results.task_names, *seen]))
    mains = {name: main_metric(results, name) for name in names}
    titles = {name: main.title for name, main in mains.items()}
    machine = run.results.machine
    machine = _settings(machine if isinstance(machine, dict) else {"machine": machine})
    settings = _settings({k: v for k, v in run.config.items() if k != "command"})
    federated = federated_views(rounds, mains, results, run.config.get("shared_how"))
    return _environment().get_template("report.html.j2").render(
        name=str(run.config.get("name") or run.name),
        command=run.config.get("command"),
        summary=_summary(settings, machine),
        settings=settings[:_MOST_SETTINGS],
        all_settings=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        more_settings=len(settings) > _MOST_SETTINGS,
        machine=machine,
        headline=headline(results, tasks),
        arm_lines=arm_lines(results, tasks),
        notes=notes_on(run, tasks),
        arms=results.arm_names,
        tasks=tasks,
        rows=[(arm, [_cell_view(results, arm, t) for t in tasks]) for arm in results.arm_names],
        all_metrics=_all_metrics(results, tasks),
        scatters=[_scatter(results, t, f"scatter-{i}") for i, t in enumerate(tasks)],
        histories=[_history(results, t, f"history-{i}") for i, t in enumerate(tasks)],
        augmented=[
            augment_view(main, augmented[name], f"labels-{i}")
            for i, (name, main) in enumerate(mains.items()) if name in augmented
        ],
        gains=[
            _augment_gains(results, t, augmented[t.main.task], f"gains-{i}")
            for i, t in enumerate(tasks) if t.main.task in augmented
        ],
        gates=gate_views(
            gated, mains, {(task, arm): results.cell(arm, task) for task, arm in gated},
            run.config.get("gate"),
        ),
        federated=federated,
        reached=federated_plots(federated),
        upper_bounds=[arm for arm in results.arm_names if arm in UPPER_BOUNDS],
        curves=[
            (titles[name], plot)
            for i, name in enumerate(names)
            if (plot := _training(run, name, f"training-{i}"))
        ],
        examples=[(titles[t], found) for t in names if (found := _examples(run, t))],
        forgetting=[
            (titles.get(name, name), kind, found)
            for name, kinds in results.forgetting.items() for kind, found in kinds.items()
        ],
        seconds=_seconds(run, tasks),
        version=__version__,
    )  # fmt: skip


def _all_metrics(
    results: Results, tasks: Sequence[TaskView]
) -> list[tuple[TaskView, str, list[Estimate]]]:
    rows = []
    for task in tasks:
        cells = [results.cell(arm, task.main.task) for arm in results.arm_names]
        for metric in dict.fromkeys(name for cell in cells for name in cell.metrics):
            rows.append((task, metric, [c.metrics.get(metric) or Estimate() for c in cells]))
    return rows


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder; a run without results gives a page that says so.

    Raises:
        StorageError: there is no such folder, or its ``metrics.json`` is damaged.
    """
    data = read_run(run)
    augmented, skipped = read_augmented(run / "events.jsonl")
    gated, odd = read_gated(run / "events.jsonl")
    rounds, broken = read_rounds(run / "events.jsonl")
    left_out = (("augmentation", skipped), ("the gate", odd), ("federation", broken))
    for what, number_left in left_out:
        if number_left:
            note = f"Events of {what} that cannot be read and are left out: {number_left}."
            data.notes.append(note)
    page = _render(data, augmented, gated, rounds)
    path = run / "report.html"
    # A model can produce lone surrogates, which UTF-8 cannot hold.
    write_atomic(path, page.encode("utf-8", "replace"))
    return path
