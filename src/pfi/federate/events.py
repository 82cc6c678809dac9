"""The rounds of a run folder: as they are logged, read and told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfi.errors import StorageError

FILE = "events.jsonl"


class Events:
    """Appends events to a run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def append(self, event: dict[str, Any]) -> None:
        """Write one."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")


def read_rounds(folder: Path) -> Iterator[dict[str, Any]]:
    """The rounds of a run, in order; a line torn by a kill is passed over.

    Raises:
        StorageError: there is no run, or a line is damaged.
    """
    path = folder / FILE
    if not path.exists():
        fix = "give the folder of a federation, or wait for its first round"
        raise StorageError("there are no rounds", where=str(folder), fix=fix)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError as error:
                where = f"{path}, line {number}"
                raise StorageError("the line is damaged", where=where) from error
            if isinstance(event, dict) and event.get("event") == "round":
                yield event


def headline(event: Mapping[str, Any]) -> str:
    """A round in a line."""
    parts = [f"round {event['number'] + 1}: {event['clients']} of {event['asked']} clients"]
    if event.get("loss") is not None:
        parts.append(f"held-out loss {event['loss']:.4f}")
    if not event["kept"]:
        why = event.get("why")
        parts.append(f"taken back: {why}" if why else "too few, not counted")
    if event.get("epsilon") is not None:
        parts.append(f"epsilon {event['epsilon']:.2f}")
    return ", ".join(parts)
