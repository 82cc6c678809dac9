"""What a connector makes of a source, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pfi.readers.report import ImportReport
from pfi.records import History, Record
from pfi.sources.connectors import get_connector


def read(
    name: str, path: Path, options: Mapping[str, object] | None = None
) -> tuple[list[Record], ImportReport]:
    """Everything that a connector yields, twice: the records must be the same."""
    connector, report = get_connector(name), ImportReport()
    records = list(connector.read(path, connector.configure(options or {}), report))
    again = list(connector.read(path, connector.configure(options or {}), ImportReport()))
    assert again == records and report.read == len(records)
    History("me", records)
    return records, report
