"""What a run does at this moment, in a file of its folder for whoever looks in from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pfi._util.files import write_atomic

FILE = "now.json"
STALE = 30.0  # seconds without a sign of life
_EVERY = 1.0  # seconds between two writings at most
_NAMED = 50


class Now:
    """Writes it.

    Args:
        folder: of the run; None writes nothing.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = None if folder is None else folder / FILE
        self._clock, self._last = clock, 0.0

    def show(
        self,
        kind: str,
        *,
        round: int | None = None,
        asked: int = 0,
        waiting: Collection[str] = (),
        elapsed: float = 0.0,
        limit: float | None = None,
    ) -> None:
        """Say what is waited for.

        Args:
            kind: of what was asked.
            round: its number, from 0.
            asked: how many were.
            waiting: who has not replied.
            elapsed: seconds since they were asked.
            limit: seconds until those who have not are late.
        """
        now = self._clock()
        if self._path is None or 0 <= now - self._last < _EVERY:
            return
        self._last = now
        values = {
            "event": "now",
            "kind": kind,
            "round": round,
            "asked": asked,
            "waiting": len(waiting),
            "for": sorted(waiting)[:_NAMED],
            "elapsed": round_(elapsed),
            "limit": None if limit is None else round_(limit),
            "written": round_(now),
        }
        write_atomic(self._path, json.dumps(values) + "\n", private=True)

    def clear(self) -> None:
        """Nothing is waited for."""
        self._last = 0.0
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def round_(seconds: float) -> float:
    """To tenths."""
    return round(seconds, 1)


def read_now(folder: Path) -> dict[str, Any] | None:
    """What `Now` wrote; None if nothing is waited for, or it cannot be read."""
    try:
        values = json.loads((folder / FILE).read_bytes())
        values["asked"], values["waiting"], values["elapsed"], values["written"]
        return dict(values)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def headline(now: dict[str, Any], clock: Callable[[], float] = time.time) -> str:
    """The same in a line or two."""
    silent = clock() - float(now["written"])
    where = "" if now.get("round") is None else f"round {now['round'] + 1}, "
    line = f"{where}{now['kind']}: {now['asked'] - now['waiting']} of {now['asked']} replied"
    line += f" in {now['elapsed']:.0f} s"
    names = list(now.get("for", []))
    if names:
        more = now["waiting"] - len(names[:5])
        line += f"; waiting for {', '.join(map(str, names[:5]))}"
        line += f" and {more} more" if more > 0 else ""
    if now.get("limit") is not None:
        line += f", at most {now['limit']:.0f} s"
    if silent > STALE:
        line += f"\n  That was {silent:.0f} s ago: the server is stopped, or was killed."
    return line
