"""Tasks: prompts, answers and metrics; LaMP's and open-ended ones."""

from pfi.tasks.metrics import METRICS, Metric
from pfi.tasks.task import Example, Task, get_task, read_task, tasks

__all__ = ["METRICS", "Example", "Metric", "Task", "get_task", "read_task", "tasks"]
