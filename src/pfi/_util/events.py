"""Append-only logs of events, one JSON object a line, safe against a kill.

A line that a kill has torn is the last one; readers pass over it and writers drop it first. Events
stay in the file and are read one by one, so memory does not grow with a log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pfi._util.files import sync_folder, write_atomic
from pfi.errors import StorageError

#: What a line holds: plain values by name, ``event`` among them where a log has several kinds.
Event = dict[str, Any]
Content = TypeVar("Content")


def new_event(kind: str, **values: Any) -> Event:
    """An event of that kind."""
    return {"event": kind, **values}


class JsonLog:
    """Appends to a log and reads it from its file; iterating gives the events in order.

    Args:
        path: the file; made with its first event, or at once if `sync` is on.
        sync: have every event on the disk before the next is written.
        ascii: escape all other characters, for texts that may hold half a surrogate pair.
        fix: what to do about a line that is damaged.
        private: only its owner may read the file; otherwise it follows the umask.
    """

    def __init__(
        self,
        path: Path,
        *,
        sync: bool = False,
        ascii: bool = False,
        fix: str | None = None,
        private: bool = False,
    ) -> None:
        self.path, self._sync, self._ascii, self._fix = path, sync, ascii, fix
        self._mode = 0o600 if private else 0o666
        if sync:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            sync_folder(path.parent)

    def __iter__(self) -> Iterator[Event]:
        return read_events(self.path, fix=self._fix)

    def append(self, event: Event) -> None:
        """Write one event."""
        opener = partial(os.open, mode=self._mode)
        with open(self.path, "ab", opener=opener) as file:
            file.write(self._line(event))
            if self._sync:
                file.flush()
                os.fsync(file.fileno())

    def replace(self, events: Iterable[Event]) -> None:
        """Make these all that the log holds."""
        data = b"".join(map(self._line, events))
        write_atomic(self.path, data, private=self._mode == 0o600)

    def drop_torn(self, note: Callable[[Event], object] = dict) -> None:
        """Drop the last line if it is torn or damaged, so that others can follow.

        Args:
            note: gets every event; a ValueError, LookupError or TypeError means that it is damaged.

        Raises:
            StorageError: a line before the last one is damaged.
        """
        if not self.path.exists():
            return
        whole = 0
        try:
            for _, end in read_lines(self.path, note, fix=self._fix):
                whole = end
        except StorageError:
            with self.path.open("rb") as file:
                file.seek(whole)
                file.readline()
                if file.read(1):
                    raise
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def _line(self, event: Event) -> bytes:
        return json.dumps(event, ensure_ascii=self._ascii).encode() + b"\n"


def read_events(path: Path, *, fix: str | None = None) -> Iterator[Event]:
    """The events of a log in order; none if there is no file.

    Raises:
        StorageError: a line is damaged.
    """
    if path.exists():
        for event, _ in read_lines(path, dict, fix=fix):
            yield event


def read_lines(
    path: Path, read: Callable[[Event], Content], *, start: int = 0, fix: str | None = None
) -> Iterator[tuple[Content, int]]:
    """What ``read`` makes of every event of a log, each with the place in the file where it ends.

    Args:
        path: the file.
        read: may raise a ValueError, LookupError or TypeError, which means a damaged line.
        start: the place to begin at, where a line ended.
        fix: what to do about one.

    Raises:
        StorageError: a line is damaged.
    """
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # torn by a kill, or being written
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError("no JSON object")
                content = read(event)
            except (ValueError, LookupError, TypeError) as error:
                with path.open("rb") as before:
                    number = before.read(end).count(b"\n") + 1
                where = f"{path}, line {number}"
                raise StorageError("the line is damaged", where=where, fix=fix) from error
            end += len(line)
            yield content, end


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
