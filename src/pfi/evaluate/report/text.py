"""The report's words: figures as text, the headline, and notes on what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from pfi.evaluate.report.data import (
    PERSONALISED,
    Estimate,
    Results,
    RunData,
    TaskView,
    real_only,
    verdict,
)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A figure as text: three digits, a dash for none, a true minus, no minus before zero."""
    if value is None:
        return "–"
    digits = digits if abs(value) < 100 else 1
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share in [0, 1] as per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def interval(estimate: Estimate, sign: bool = False) -> str:
    """The 95 % interval as ``[low, high]``; nothing where there is none."""
    if estimate.ci95 is None:
        return ""
    return f"[{', '.join(number(end, sign=sign) for end in estimate.ci95)}]"


def count(value: float | None) -> str:
    """How many, with commas between thousands; a dash for none."""
    return "–" if value is None else f"{value:,.0f}"


def money(usd: float | None) -> str:
    """US dollars, to the cent or to two digits of less; a dash where nothing is known or paid."""
    if not usd:
        return "–"
    return f"${usd:,.2f}" if usd >= 0.1 else f"${usd:.2g}"


def duration(seconds: float | None) -> str:
    """Seconds as text, in minutes or hours where that is easier to read."""
    if seconds is None:
        return "–"
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def shorten(text: str, most: int = 320) -> str:
    """The start and the end of a long text; what a prompt asks stands at either."""
    text = text.strip()
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


# The headline ---------------------------------------------------------------------------


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def headline(results: Results, tasks: Sequence[TaskView]) -> str:
    """One or two sentences: does personalisation beat `shared`, and is that beyond chance?"""
    if not tasks:
        return (
            "This run has no scored results: it has not finished, or its questions have no "
            "gold answers."
        )
    if all(task.personalised is None for task in tasks):
        return f"No personalised arm ({', '.join(PERSONALISED)}) was run: nothing to compare."
    gains = []
    for task in tasks:
        gain = results.cell(task.personalised or "", task.main.task).gain
        if gain is not None and gain.mean is not None:
            gains.append((task, gain.mean, verdict(gain)))
    if not gains:
        return (
            "The run reports no gain over shared, so it cannot tell whether personalisation helps."
        )
    wins = [found for _, mean, found in gains if mean > 0]
    sure = wins.count("better")
    of = f"{len(wins)} of {_count(len(gains), 'task')}"
    if not wins:
        where = "the one task" if len(gains) == 1 else f"any of the {len(gains)} tasks"
        text = f"The best personalised arm does not beat shared on {where}."
    elif not sure:
        text = f"The best personalised arm scores better than shared on {of}, but "
        text += "no 95 % interval of the gain excludes zero: it may be chance."
    else:
        text = f"The best personalised arm beats shared on {of}; "
        text += f"the 95 % interval of the gain excludes zero on {sure}."
    losses = [task.main.title for task, mean, _ in gains if mean < 0]
    clear = [found for _, mean, found in gains if mean < 0].count("worse")
    if losses:
        text += f" It is worse on {_count(len(losses), 'task')} ({', '.join(losses)})"
        text += f", with an interval that excludes zero on {clear}." if clear else "."
    return text


def arm_lines(results: Results, tasks: Sequence[TaskView]) -> list[str]:
    """For each personalised arm, without choosing one: wins, losses and users harmed."""
    lines = []
    for arm in (arm for arm in results.arm_names if arm in PERSONALISED):
        cells = [results.cell(arm, task.main.task) for task in tasks]
        parts = [
            _wins("shared", [cell.gain for cell in cells]),
            _wins(real_only(arm), [cell.gain_over_personal for cell in cells]),
        ]
        if not any(parts):
            continue
        line = f"{arm}: " + "; ".join(part for part in parts if part)
        harmed = sorted(cell.harmed for cell in cells if cell.harmed is not None)
        if harmed:
            spread = percent(harmed[0])
            if percent(harmed[-1]) != spread:
                spread += f" to {percent(harmed[-1])}"
            line += f"; users harmed: {spread}"
        lines.append(line + ".")
    return lines


def _wins(over: str, estimates: Sequence[Estimate | None]) -> str:
    """On how many tasks an arm is better than another; "" where that is not known of any."""
    gains = [gain for gain in estimates if gain is not None and gain.mean is not None]
    if not gains:
        return ""
    verdicts = [verdict(gain) for gain in gains]
    wins = sum(gain.mean > 0 for gain in gains if gain.mean is not None)
    text = f"better than {over} on {wins} of {_count(len(gains), 'task')}"
    text += f" (beyond chance on {verdicts.count('better')})"
    if verdicts.count("worse"):
        text += f", worse beyond chance on {verdicts.count('worse')}"
    return text


def notes_on(run: RunData, tasks: Sequence[TaskView]) -> list[str]:
    """What a reader should know before trusting the figures: what is missing or unknown."""
    notes, results = list(run.notes), run.results
    for name, (done, users) in results.so_far.items():
        notes.append(f"The run has not finished: {name} has {done} of {users} users so far.")
    for (name, adapter), training in run.training.items():
        if training.broken:
            notes.append(
                f"{name}: the training of {_count(training.broken, f'{adapter} adapter')} stopped "
                "early because a loss or gradient was not finite (NaN); see events.jsonl."
            )
    for arm, why in (
        ("shared", "no gain and no share of harmed users"),
        ("generic", "no plot of personalised against generic scores"),
    ):
        if tasks and arm not in results.arms:
            notes.append(f"There is no {arm} arm: {why}.")
    if tasks and not set(PERSONALISED) & set(results.arms):
        notes.append("There is no personalised arm: no plots of users.")
    for arm in results.arm_names:
        left = [t.main.task for t in tasks if t.main.task not in results.arms[arm]]
        if left:
            notes.append(f"The arm {arm} has no results on {', '.join(left)}.")
    for task in tasks:
        name = task.main.task
        if not task.main.known:
            notes.append(
                f"The task {name} is not known to this installation: its first metric is "
                "shown as the main one."
            )
        if not task.main.sign:
            notes.append(f"Which way is better on {name} is not known: no arm is marked best.")
        if task.n_users == 1:
            notes.append(f"{name} has one user: its intervals say nothing about other users.")
    return notes
