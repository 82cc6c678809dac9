"""What a device has to remember by name, in a JSON file that is written before it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from pfi._util.files import locked, write_json
from pfi.errors import FederationError

Entry = TypeVar("Entry", bound=BaseModel)


class Remembered(Generic[Entry]):
    """An entry for each name; a name that is new begins with an empty one.

    Args:
        kind: of the entries.
        path: the file; None keeps them in memory only, for simulations.
        what: what the file is, for errors.
        fix: what to do where it is damaged. It is never taken for empty.
    """

    def __init__(self, kind: type[Entry], path: Path | None, *, what: str, fix: str) -> None:
        self._kind, self._path, self._what, self._fix = kind, path, what, fix
        self._entries: dict[str, Entry] = {}

    def change(self, name: str, change: Callable[[Entry], None]) -> None:
        """Change a name's entry, on the disk before this returns; nothing where it raises.

        Raises:
            FederationError: the file is damaged, or ``change`` raises it.
        """
        if self._path is None:
            change(self._entries.setdefault(name, self._kind()))
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_name(self._path.name + ".lock")):
            self._entries = self._read(self._path)
            change(self._entries.setdefault(name, self._kind()))
            write_json(self._path, {name: one.model_dump() for name, one in self._entries.items()})

    def _read(self, path: Path) -> dict[str, Entry]:
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): self._kind.model_validate(one) for name, one in content.items()}
        except (ValueError, AttributeError, TypeError, ValidationError) as error:
            what = f"{self._what} is damaged"
            raise FederationError(what, where=str(path), fix=self._fix) from error
