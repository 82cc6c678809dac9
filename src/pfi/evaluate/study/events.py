"""The event log of a run: what was trained and answered, in order, safe against a kill.

The events stay in the file and are read one by one; memory holds only whose work is done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from pfi.errors import StorageError

#: An event without its time: ``event`` and the keys that belong to that kind.
Event = dict[str, Any]


def new_event(kind: str, **values: Any) -> Event:
    """An event of that kind; ``docs/studies.md`` says which values it has."""
    return {"event": kind, **values}


class EventLog:
    """The append-only ``events.jsonl`` of a run; a torn last line is dropped on opening.

    Iterating gives the events in order, read from the file.

    Attributes:
        empty: whether nothing was logged yet.

    Raises:
        StorageError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.empty = True
        self._done: dict[tuple[str, str, str], set[str | None]] = {}
        self._rounds: dict[tuple[str, str], set[int]] = {}
        if not path.exists():
            return
        whole, damaged = 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if damaged:
                    fix = "remove that line to have its work done again, or start anew"
                    raise StorageError(
                        "the line is damaged", where=f"{path}, line {damaged}", fix=fix
                    )
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("torn by a kill while it was written")
                    self._note(json.loads(line))
                except (ValueError, LookupError, TypeError):
                    damaged = number  # allowed for the last line only
                else:
                    whole += len(line)
        if damaged:
            os.truncate(path, whole)

    def __iter__(self) -> Iterator[Event]:
        return read_events(self.path)

    def append(self, event: Event) -> None:
        """Write one event with the time of day."""
        entry = {"event": event["event"], "time": round(time.time(), 3), **event}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._note(entry)

    def answered(self, arm: str, task: str) -> Set[str | None]:
        """The users whose questions of a task were answered under an arm."""
        return self._done.get(("answered", arm, task), set())

    def trained(self, adapter: str, task: str) -> Set[str | None]:
        """The users whose adapter of that kind was trained; None stands for the shared one."""
        return self._done.get(("trained", adapter, task), set())

    def augmented(self, task: str) -> frozenset[str | None]:
        """The users of a task for whom synthetic records were made."""
        return frozenset(self._done.get(("augmented", "augmented", task), ()))

    def rounds(self, arm: str, task: str) -> Set[int]:
        """The numbers of the rounds of a federation, by the arm that needs it, that were logged."""
        return self._rounds.get((arm, task), set())

    def _note(self, event: Event) -> None:
        self.empty = False
        kind = event["event"]
        if kind == "round":
            self._rounds.setdefault((event["arm"], event["task"]), set()).add(event["round"])
        if kind in ("trained", "answered", "augmented"):
            what = event[{"answered": "arm", "trained": "adapter"}.get(kind, "event")]
            self._done.setdefault((kind, what, event["task"]), set()).add(event["user"])


def find_events(path: Path, kind: str) -> Iterator[tuple[int, Event]]:
    """The events of a kind, each with the place of its line; what is no JSON object is passed over.

    Lines without the kind in quotes are not parsed: those of answers are many and long, and quotes
    in a text are escaped.
    """
    mark = f'"{kind}"'.encode()
    end = 0
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            place, end = end, end + len(line)
            if mark not in line:
                continue
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and content.get("event") == kind:
                yield place, content


def read_events(path: Path) -> Iterator[Event]:
    """The events of a log in order, without what a kill left of the last one."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)
