"""Tasks: prompts, answers and metrics; LaMP's and open-ended ones."""

from pfi.tasks.base import Example, Task, get_task, read_task, tasks
from pfi.tasks.metrics import METRICS, Metric

__all__ = ["METRICS", "Example", "Metric", "Task", "get_task", "read_task", "tasks"]
