"""Connectors: each reads one kind of source as records, one record at a time.

A connector is one file in this folder with a subclass of `Connector`; nothing else lists it.
What a connector cannot use it skips and counts in an `ImportReport`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pfi.errors import ConfigError, DataError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.glance import look

__all__ = [
    "Connector",
    "Options",
    "candidates",
    "connectors",
    "detect",
    "get_connector",
    "recognised",
]


class Options(BaseModel):
    """Options of a connector; the fields' descriptions are the help of the CLI."""

    model_config = ConfigDict(extra="forbid")


OptionsT = TypeVar("OptionsT", bound=Options)

_REGISTERED: dict[str, Connector[Any]] = {}


class Connector(ABC, Generic[OptionsT]):
    """One kind of source.  A subclass registers itself under its name.

    Attributes:
        name: how the CLI calls it.
        summary: one line of help.
        options: the model of its options.
        last: whether it is for what no other connector recognises.
    """

    name: str
    summary: str
    options: type[OptionsT]
    last: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _REGISTERED[cls.name] = cls()

    @abstractmethod
    def read(self, path: Path, options: OptionsT, report: ImportReport) -> Iterator[Record]:
        """Yield the records of a source; the same source always gives the same ids.

        Raises:
            DataError: the source cannot be used at all.
            ConfigError: the options do not fit the source.
        """

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder looks like this kind of source, by a glance at it."""
        return False

    def configure(self, values: Mapping[str, Any]) -> OptionsT:
        """Options from plain values.

        Raises:
            ConfigError: an option is unknown or its value does not fit.
        """
        try:
            return self.options.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "options"
            fix = f"the options are {', '.join(self.options.model_fields) or 'none'}"
            raise ConfigError(first["msg"], where=f"{self.name} {where}", fix=fix) from error


def connectors() -> dict[str, Connector[Any]]:
    """Every connector, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def get_connector(name: str) -> Connector[Any]:
    """The connector of that name.

    Raises:
        ConfigError: there is none; the error lists the names.
    """
    known = connectors()
    if name not in known:
        raise ConfigError(f"unknown connector {name!r}", fix=f"use one of {', '.join(known)}")
    return known[name]


def candidates(path: Path) -> list[str]:
    """The names of the connectors that a file or folder looks right for.

    One that fails at a glance, whatever its error, does not know the source: the others are asked.
    Those that come last are asked where no other does.
    """
    known = connectors()
    for last in (False, True):
        names = []
        for name, connector in known.items():
            with suppress(Exception):
                if connector.last is last and connector.recognises(path):
                    names.append(name)
        if names:
            return names
    return []


def detect(path: Path) -> str | None:
    """The name of the connector that reads a file or folder; None if it is not clear."""
    names = candidates(path)
    return names[0] if len(names) == 1 else None


def recognised(path: Path) -> str:
    """Like `detect`, for whoever needs a name.

    Raises:
        DataError: there is nothing at `path`.
        ConfigError: it is not clear which connector reads it; the error says what it seems to be.
    """
    if not path.exists():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    names = candidates(path)
    if len(names) == 1:
        return names[0]
    if names:
        fix = f"name the kind instead of auto: one of {', '.join(names)}"
        raise ConfigError(f"it may be {' or '.join(names)}", where=str(path), fix=fix)
    sight = look(path)
    if sight is None:
        fix = "name the kind instead of auto; `pfi connectors` lists them"
        raise ConfigError("it is not clear what this is", where=str(path), fix=fix)
    raise ConfigError(
        f"this is {sight.what}, which auto cannot read", where=str(path), fix=sight.fix
    )
