"""The event log of a run: what was trained and answered, in order, safe against a kill."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pfi.errors import StorageError
from pfi.files import write_atomic


class EventLog:
    """The append-only ``events.jsonl`` of a run; a torn last line is dropped on opening.

    Raises:
        StorageError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("torn by a kill while it was written")
                self.events.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    fix = "remove that line to have its work done again, or start anew"
                    where = f"{path}, line {number}"
                    raise StorageError("the line is damaged", where=where, fix=fix) from error
                write_atomic(path, b"".join(lines[:-1]))

    def append(self, event: str, **values: Any) -> None:
        """Write one event with the time of day."""
        entry = {"event": event, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.events.append(entry)
