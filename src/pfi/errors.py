"""Errors that a user can cause: what is wrong, where, and what to do about it.

The CLI prints them in one line and exits with 2.  Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

from pathlib import Path


class PfiError(Exception):
    """Base of every error that a user can cause.

    Args:
        what: what is wrong, in one sentence without a full stop.
        where: the file, line, record or setting concerned.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        super().__init__(" ".join(map(_sentence, parts)))


def _sentence(text: str) -> str:
    """The text with a full stop; one that ends a list with "..." stays as it is."""
    text = text.rstrip()
    return text if text.endswith("...") else text.rstrip(".") + "."


class DataError(PfiError):
    """Input data that cannot be used; names the file, the line and the record where known."""

    def __init__(
        self,
        what: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        record: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.path, self.line, self.record = path, line, record
        where = str(path) if path is not None else ""
        if line is not None:
            where += f", line {line}"
        if record is not None:
            where += f", record {record}"
        super().__init__(what, where=where.strip(", ") or None, fix=fix)


class ConfigError(PfiError):
    """A setting, flag or configuration file that makes no sense."""


class BackboneError(PfiError):
    """A backbone or an adapter that cannot be loaded or does not fit."""


class StorageError(PfiError):
    """A profile's home, a run folder or an artifact that is missing, locked or damaged."""


class FederationError(PfiError):
    """A message, a peer or a round of a federation that is refused."""
