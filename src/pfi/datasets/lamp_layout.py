"""Where the files of the LaMP benchmark lie, and of which task they are.

The official downloads are `LaMP_4/dev/dev_questions.json`, `LaMP_2/new/train/...` (the second task
has an older and a newer data set under one number) and `time/LaMP_4/...` (split by time); people
also keep them as `LaMP-4/dev_questions.json` or `LaMP_time_4/...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfi.errors import ConfigError, DataError
from pfi.readers.pieces import JsonArray
from pfi.tasks import get_task, tasks

QUESTIONS = "_questions.json"
#: Folders above a file, and below a folder, that are looked at.
DEPTH = 4
_TASK = re.compile(r"lamp[-_ ]?(?:time[-_ ]?)?(\d)[-_ ]?([mn](?![a-z]))?", re.I)

__all__ = ["QUESTIONS", "is_questions", "questions_files", "task_of"]


def questions_files(folder: Path, split: str = "*") -> list[Path]:
    """The questions files below a folder, those of fewer folders first."""
    found = []
    for depth in range(DEPTH + 1):
        found += sorted(folder.glob("/".join([*["*"] * depth, f"{split}{QUESTIONS}"])))
    return found


def is_questions(path: Path) -> bool:
    """Whether a file is a list of questions with profiles, by its first entry."""
    first = _first(path)
    return {"id", "input", "profile"} <= first.keys() and isinstance(first["profile"], list)


def task_of(path: Path) -> str:
    """The task of a questions file: by the nearest name above it, else by its first question.

    Raises:
        ConfigError: neither tells.
    """
    names: list[str] = []
    for text in _names_above(path):
        names = _named(text)
        if names:
            break
    if len(names) != 1:
        fitting = _fitting(_first(path), names or _benchmark())
        names = fitting if len(fitting) == 1 else names
    if len(names) == 1:
        return names[0]
    what = "the task is not clear from the names of the file and its folders"
    fix = f"name it with task: one of {', '.join(names or _benchmark())}"
    raise ConfigError(what, where=str(path), fix=fix)


def _benchmark() -> list[str]:
    return [name for name in tasks() if name.startswith("LaMP")]


def _names_above(path: Path) -> Iterator[str]:
    absolute = path.absolute()
    yield absolute.name
    for parent in list(absolute.parents)[:DEPTH]:
        yield parent.name


def _named(text: str) -> list[str]:
    """The tasks that a file or folder may be named after; several for `LaMP_2`."""
    exact = [name for name in tasks() if name.lower() == text.lower().replace("-", "_")]
    if exact:
        return exact
    match = _TASK.search(text)
    if not match:
        own = [name for name in tasks() if name.lower() in text.lower().replace("-", "_")]
        return own if len(own) == 1 else []
    wanted = f"lamp_{match[1]}{match[2] or ''}".lower()
    return [name for name in _benchmark() if name.lower().startswith(wanted)]


def _fitting(question: dict[str, Any], names: list[str]) -> list[str]:
    """The tasks whose prompt the question is, or, if none, whose fields its profile has."""
    text = question.get("input")
    asked = []
    for name in names:
        fields = get_task(name).fields(text) if isinstance(text, str) else {"text": text}
        if fields != {"text": text}:
            asked.append(name)
    if asked:
        return asked
    profile = question.get("profile")
    item = profile[0] if isinstance(profile, list) and profile else None
    if not isinstance(item, dict):
        return []
    return [
        name
        for name in names
        if (task := get_task(name)).output and {*task.inputs, task.output} <= item.keys()
    ]


def _first(path: Path) -> dict[str, Any]:
    try:
        return next(iter(JsonArray(path)))[1]
    except (DataError, StopIteration):
        return {}
