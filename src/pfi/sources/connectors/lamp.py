"""Connector for one user's records out of a LaMP questions file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pfi.datasets.lamp import read_history
from pfi.errors import ConfigError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import Connector, Options
from pfi.tasks import get_task, tasks


class LampOptions(Options):
    """Options of the `lamp` connector."""

    task: str | None = Field(
        None, description="task of the file; by default found in the folder's or file's name"
    )
    user: str | None = Field(
        None, description="whose records to read; needed if the file holds several users"
    )


class LampConnector(Connector[LampOptions]):
    """Reads the profile of one user."""

    name = "lamp"
    summary = "one user's records from a LaMP questions file"
    options = LampOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is named as the benchmark names its files."""
        return path.is_file() and path.name.endswith("_questions.json")

    def read(self, path: Path, options: LampOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the user's records, oldest first; see `Connector.read`."""
        task = get_task(options.task or _task_name(path))
        yield from read_history(path, task, options.user, report)


def _task_name(path: Path) -> str:
    """The task that the file or its folder is named after."""
    absolute = path.absolute()
    for text in (absolute.name, absolute.parent.name):
        found = [name for name in tasks() if name.lower() in text.lower().replace("-", "_")]
        if len(found) == 1:
            return found[0]
    raise ConfigError(
        "the task is not clear from the file's name or folder",
        where=str(path),
        fix=f"name it with task: one of {', '.join(n for n in tasks() if n.startswith('LaMP'))}",
    )
