"""A study's results in the terminal: tasks as rows where all arms fit beside each other, else
arms as rows, in blocks of as many tasks as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pfi.evaluate.report.data import Results, TaskView, main_estimate, parse_results, task_view
from pfi.evaluate.report.text import number

_TITLE = "Main metric ± half the 95 % interval over users"
_CAPTION = "↑ higher is better, ↓ lower is better, * best"


class ResultTable:
    """The main metric of every arm on every task, the best one in bold and starred.

    Args:
        results: of the study.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._tasks = [task_view(results, name) for name in results.task_names]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(table: Table) -> bool:
            room = options.update(width=10_000)
            return Measurement.get(console, room, table).maximum <= options.max_width

        whole = self._by_task()
        if not self._tasks or fits(whole):
            tables = [whole]
        else:
            blocks: list[list[TaskView]] = []
            for task in self._tasks:
                if blocks and fits(self._by_arm([*blocks[-1], task])):
                    blocks[-1].append(task)
                else:
                    blocks.append([task])
            tables = [self._by_arm(block) for block in blocks]
        yield Text(_TITLE, "italic")
        yield from tables
        yield Text(_CAPTION, "dim")

    def _by_task(self) -> Table:
        """Tasks as rows, arms as columns."""
        table = Table("task")
        for arm in self._results.arm_names:
            table.add_column(Text(arm), justify="right", no_wrap=True)
        for task in self._tasks:
            cells = [self._cell(arm, task) for arm in self._results.arm_names]
            table.add_row(Text(_name(task, "  "), no_wrap=True), *cells)
        return table

    def _by_arm(self, tasks: Sequence[TaskView]) -> Table:
        """Arms as rows, these tasks as columns."""
        table = Table("arm")
        for task in tasks:
            table.add_column(Text(_name(task, "\n")), justify="right", no_wrap=True)
        for arm in self._results.arm_names:
            table.add_row(Text(arm, no_wrap=True), *(self._cell(arm, task) for task in tasks))
        return table

    def _cell(self, arm: str, task: TaskView) -> Text:
        main = main_estimate(self._results.cell(arm, task.main.task), task.main)
        text = number(main.mean)
        if main.ci95 is not None:
            low, high = main.ci95
            text += f" ± {number((high - low) / 2)}"
        best = arm in task.best
        return Text(f"{text} *" if best else text, "bold" if best else "")


def _name(task: TaskView, gap: str) -> str:
    return f"{task.main.task}{gap}{task.main.metric} {task.main.arrow}".rstrip()


def terminal_table(metrics: dict[str, Any]) -> ResultTable:
    """The results as a table that fits the terminal.

    Args:
        metrics: the content of ``metrics.json``.

    Raises:
        StorageError: it does not have the shape of a study's results.
    """
    return ResultTable(parse_results(metrics))
