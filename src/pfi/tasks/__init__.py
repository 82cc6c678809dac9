"""Tasks: prompts, answers and metrics; LaMP's and open-ended ones."""

from pfi.tasks.metrics import METRICS, Metric
from pfi.tasks.task import (
    Example,
    Task,
    as_request,
    get_task,
    read_task,
    source_tasks,
    tasks,
    tasks_served,
)

__all__ = [
    "METRICS",
    "Example",
    "Metric",
    "Task",
    "as_request",
    "get_task",
    "read_task",
    "source_tasks",
    "tasks",
    "tasks_served",
]
