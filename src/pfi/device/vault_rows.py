"""Records as rows of the vault's table, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from pfi.records import Origin, Provenance, Record

COLUMNS = "id, task, input, output, time, origin, source, added, made"


def row_of(record: Record) -> dict[str, str | None]:
    """A record as a row, by column; it counts as added now."""
    fields = json.dumps(dict(record.input), ensure_ascii=False)
    return {
        "id": record.id,
        "hash": record.content_hash,
        "task": record.task,
        "origin": record.origin,
        "time": record.time.astimezone(UTC).isoformat() if record.time else None,
        "added": datetime.now(UTC).isoformat(),
        "source": record.source,
        "input": fields,
        "output": record.output,
        "made": json.dumps(record.made.to_dict(), ensure_ascii=False) if record.made else None,
    }


def record_of(row: Sequence[str | None], *, fill_time: bool) -> Record:
    """The record of a row of `COLUMNS`.

    Args:
        row: the values.
        fill_time: let an undated record have the time at which it was added.
    """
    id_, task, fields, output, time, origin, source, added, made = row
    when = time_of(time or added if fill_time else time)
    values = (str(id_), str(task), json.loads(str(fields)), str(output), when)
    kind: Origin = "synthetic" if origin == "synthetic" else "real"
    provenance = Provenance.from_dict(json.loads(made)) if made else None
    return Record(*values, kind, str(source), provenance)


def time_of(text: str | None) -> datetime | None:
    """A time of the vault."""
    return datetime.fromisoformat(text) if text else None
