"""The event log of a run: what was trained and answered, in order; memory holds only whose work
is done.  ``docs/studies.md`` says which events there are and which values they have.
"""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path

from pfi._util.events import Event, JsonLog

_FIX = "remove that line to have its work done again, or start anew"


class EventLog(JsonLog):
    """The ``events.jsonl`` of a run; a torn last line is dropped on opening.

    Attributes:
        empty: whether nothing was logged yet.

    Raises:
        StorageError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, fix=_FIX)
        self.empty = True
        self._done: dict[tuple[str, str, str], set[str | None]] = {}
        self._rounds: dict[tuple[str, str], set[int]] = {}
        self.drop_torn(self._note)

    def append(self, event: Event) -> None:
        """Write one event with the time of day."""
        entry = {"event": event["event"], "time": round(time.time(), 3), **event}
        super().append(entry)
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

    def forgotten(self, adapter: str, task: str) -> Set[str | None]:
        """The users whose adapter of that kind was measured; None stands for the shared one."""
        return self._done.get(("forgetting", adapter, task), set())

    def rounds(self, arm: str, task: str) -> Set[int]:
        """The numbers of the rounds of a federation, by the arm that needs it, that were logged."""
        return self._rounds.get((arm, task), set())

    def _note(self, event: Event) -> None:
        self.empty = False
        kind = event["event"]
        if kind == "round":
            self._rounds.setdefault((event["arm"], event["task"]), set()).add(event["round"])
        if kind in ("trained", "answered", "augmented", "forgetting"):
            names = {"answered": "arm", "trained": "adapter", "forgetting": "adapter"}
            what = event[names.get(kind, "event")]
            self._done.setdefault((kind, what, event["task"]), set()).add(event["user"])
