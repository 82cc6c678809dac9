"""Follows a run's log while another process appends to it, and once replaces it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfi._util.events import Event, read_lines
from pfi.errors import StorageError


class Follower:
    """Passes on the events that are logged from now on, each once.

    A run that goes on first writes its log anew, without the rounds that it does again.  So a place
    in the file holds only as long as the line before it is the same one; in a log that was written
    anew the events that were known are skipped by what they say.

    Args:
        log: the file; it may come later.
        on_event: gets every new event.
    """

    def __init__(self, log: Path, on_event: Callable[[Event], object]) -> None:
        self._log, self._on_event = log, on_event
        self._known: list[Event] = []
        self._end, self._last = 0, b""  # the place up to which it is known, and the line before it
        self._read(lambda event: None)

    def look(self) -> None:
        """Pass on what is new.

        Raises:
            StorageError: a line is damaged.
        """
        try:
            self._read(self._on_event)
        except FileNotFoundError:
            pass  # the next look meets the new one
        except StorageError:
            if self._is_same():
                raise

    def _read(self, on_event: Callable[[Event], object]) -> None:
        if not self._log.exists():
            return
        before: list[Event] = []
        if not self._is_same():
            before, self._known, self._end, self._last = self._known, [], 0, b""
        for event, end in read_lines(self._log, dict, start=self._end):
            self._last, self._end = self._bytes(self._end, end), end
            place = len(self._known)
            self._known.append(event)
            if place < len(before) and before[place] == event:
                continue
            before = []  # the first round that is done again: all that follow are new
            on_event(event)

    def _is_same(self) -> bool:
        """Whether the line that was read last is still where it was."""
        if not self._log.exists():
            return False
        return self._bytes(self._end - len(self._last), self._end) == self._last

    def _bytes(self, start: int, end: int) -> bytes:
        with self._log.open("rb") as file:
            file.seek(start)
            return file.read(end - start)
