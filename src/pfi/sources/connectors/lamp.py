"""Connector for one user's records out of a LaMP questions file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from pfi.datasets.lamp import read_history
from pfi.datasets.lamp_layout import QUESTIONS, is_questions, questions_files, task_of
from pfi.errors import ConfigError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import Connector, Options
from pfi.tasks import get_task


class LampOptions(Options):
    """Options of the `lamp` connector."""

    task: str | None = Field(
        None, description="task of the file; by default found in the names of file and folders"
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
        """Whether it is a questions file of the benchmark, or a folder with them."""
        if path.is_dir():
            return any(is_questions(file) for file in questions_files(path)[:1])
        named = path.name.endswith(QUESTIONS)
        return path.is_file() and (named or (path.suffix == ".json" and is_questions(path)))

    def read(self, path: Path, options: LampOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the user's records, oldest first; see `Connector.read`."""
        if path.is_dir():
            path = _only_file(path)
        task = get_task(options.task or task_of(path))
        yield from read_history(path, task, options.user, report)


def _only_file(folder: Path) -> Path:
    """The questions file of a folder.

    Raises:
        ConfigError: it has none, or several.
    """
    files = questions_files(folder)
    if len(files) == 1:
        return files[0]
    names = [file.relative_to(folder).as_posix() for file in files]
    what = f"the folder holds {len(names)} questions files" if names else "there is no file of LaMP"
    fix = f"give one of {', '.join(names[:8])}" if names else f"give a file *{QUESTIONS}"
    raise ConfigError(what, where=str(folder), fix=fix)
