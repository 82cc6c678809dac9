"""Connector for JSONL, CSV and TSV files: one record a row, columns named by the user.

Rows are read one at a time and lines of any length in bounded memory; a row that cannot be used
is skipped and counted.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pfi.errors import ConfigError, DataError
from pfi.readers.pieces import bounded_lines, parse_json
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, all_keys, as_id, needed_keys, past_time, record_fields
from pfi.records import Record
from pfi.sources.connectors import Connector, Options
from pfi.tasks import Task, get_task

_JSON = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
#: Columns that are taken without being asked for, besides those named like the task's fields.
_USUAL = {"id": ("id",), "time": ("time", "date")}

#: Place of a row, and its columns or why it cannot be used.
Row = tuple[str, Mapping[str, Any] | Unusable]


class TableOptions(Options):
    """Options of the `table` connector."""

    task: str = Field("instruction", description="task that the rows are records of")
    map: dict[str, str] = Field(
        {}, description="field=column pairs: which column holds a task field, time or id"
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="between cells; by default from the suffix"
    )
    encoding: str = Field("utf-8-sig", description="text encoding of the file")
    line_limit: int = Field(
        10_000_000, ge=1, description="longer lines, in characters, are skipped"
    )

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, value: Any) -> Any:
        """Accept a tab as shells pass it on."""
        return "\t" if value in ("\\t", "tab") else value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except (LookupError, ValueError):
            raise ValueError(f"there is no text encoding {value!r}") from None
        return value

    @field_validator("map", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Accept `a=b,c=d` and `["a=b", "c=d"]` beside a mapping."""
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            return value
        pairs: dict[str, str] = {}
        for part in value:
            name, equals, column = str(part).partition("=")
            if not equals or not name.strip() or not column.strip():
                raise ValueError(f"{part!r} is not of the form field=column")
            if name.strip() in pairs:
                raise ValueError(f"{name.strip()!r} is mapped twice")
            pairs[name.strip()] = column.strip()
        return pairs


class TableConnector(Connector[TableOptions]):
    """Reads one record a row."""

    name = "table"
    summary = "records from a JSONL, CSV or TSV file"
    options = TableOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a table whose first line has the fields of the usual task."""
        if path.suffix.lower() not in (*_JSON, *_DELIMITERS) or not path.is_file():
            return False
        with path.open("rb") as file:
            line = file.readline(4096)
        return all(name.encode() in line for name in needed_keys(get_task("instruction")))

    def read(self, path: Path, options: TableOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a row; without an id column its id comes from its content.

        Raises:
            DataError: the file is missing, of an unknown kind, lacks needed columns, or no row of
                it can be used.
            ConfigError: the mapping, task or encoding makes no sense.
        """
        task = get_task(options.task)
        unknown = [name for name in options.map if name not in (*all_keys(task), *_USUAL)]
        if unknown:
            fix = f"{task.name} has {', '.join(all_keys(task))}, and there are time and id"
            raise ConfigError(f"{task.name} has no field {unknown[0]!r}", where="map", fix=fix)
        suffix = path.suffix.lower()
        maker = _Maker(path, task, options.map)
        if suffix in _JSON:
            rows = _json_rows(path, options)
        elif suffix in _DELIMITERS or options.delimiter:
            delimiter = options.delimiter or _DELIMITERS[suffix]
            rows = _csv_rows(path, options, delimiter, maker)
        else:
            fix = f"give a file ending in {', '.join((*_JSON, *_DELIMITERS))}"
            raise DataError(f"unknown kind of table {suffix!r}", path=path, fix=fix)
        for place, row in rows:
            try:
                record = maker.record(row)
            except Unusable as problem:
                report.skip(problem.reason, place)
            else:
                report.read += 1
                yield record
        report.require_records(path, maker.advice())


@dataclass
class _Maker:
    """Makes records of rows; remembers the ids seen and whether the file is dated."""

    path: Path
    task: Task
    map: Mapping[str, str]
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._ids: set[str] = set()
        self._dated: bool | None = None

    def advice(self) -> str:
        """What to do if nothing fits: the columns found and those needed."""
        needs = ", ".join(needed_keys(self.task))
        found = ", ".join(map(repr, self.columns[:12])) or "no columns"
        return f"{self.task.name} needs {needs} and the file has {found}: map field=column"

    def check_columns(self, columns: Sequence[str]) -> None:
        """Check the header of a file that has one.

        Raises:
            DataError: a column comes twice, or a mapped or needed one is not there.
        """
        self.columns = columns
        problem = None
        missing = [self.map.get(key, key) for key in needed_keys(self.task)]
        for column in [*missing, *self.map.values()]:
            if column not in columns:
                problem = f"there is no column {column!r}"
                break
            if columns.count(column) > 1:
                problem = f"the column {column!r} comes twice"
                break
        if problem:
            raise DataError(problem, path=self.path, line=1, fix=self.advice())

    def record(self, row: Mapping[str, Any] | Unusable) -> Record:
        """The record of a row.

        Raises:
            Unusable: it has no record in it.
        """
        if isinstance(row, Unusable):
            raise row
        self.columns = self.columns or list(row)
        values = {
            key: row[column]
            for key in all_keys(self.task)
            if (column := self.map.get(key, key)) in row
        }
        fields, output = record_fields(self.task, values)
        time = past_time(self._usual(row, "time"))
        if self._dated is None:
            self._dated = time is not None
        if self._dated and time is None:
            raise Unusable("it has no time although the first record has one")
        if not self._dated and time is not None:
            raise Unusable("it has a time although the first record has none")
        given = self._usual(row, "id")
        source = f"table:{self.path.name}"
        name = "?" if given is None else as_id(given, "id")
        record = Record(name, self.task.name, fields, output, time, source=source)
        if given is None:
            record = replace(record, id=record.content_hash[:16])
        if record.id in self._ids:
            raise Unusable("it repeats a row" if given is None else "an earlier row has its id")
        self._ids.add(record.id)
        return record

    def _usual(self, row: Mapping[str, Any], name: str) -> Any:
        columns = (self.map[name],) if name in self.map else _USUAL[name]
        found = next((column for column in columns if column in row), None)
        if found is None and name in self.map:
            raise Unusable(f"{name} is missing")
        return None if found is None else row[found]


def _place(path: Path, line: int) -> str:
    return f"{path.name}, line {line}"


def _json_rows(path: Path, options: TableOptions) -> Iterator[Row]:
    for number, line in bounded_lines(path, options.encoding, options.line_limit):
        row: Mapping[str, Any] | Unusable
        if line is None:
            row = Unusable(f"the line is longer than {options.line_limit} characters")
        elif not line.strip():
            continue
        elif not line.isascii() and _undecodable(line):
            row = Unusable(f"the line is not {options.encoding}")
        else:
            try:
                row = parse_json(line)
            except ValueError:
                row = Unusable("the line is not JSON")
            if not isinstance(row, dict | Unusable):
                row = Unusable("the line is not a JSON object")
        yield _place(path, number), row


def _undecodable(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _csv_rows(path: Path, options: TableOptions, delimiter: str, maker: _Maker) -> Iterator[Row]:
    too_long = False

    def lines() -> Iterator[str]:
        nonlocal too_long
        for _, line in bounded_lines(path, options.encoding, options.line_limit):
            too_long = too_long or line is None
            # An empty line keeps the count of lines and ends nothing that is open.
            yield "\n" if line is None else line

    # The limit is the csv module's only guard against a quote that is never closed.
    csv.field_size_limit(max(csv.field_size_limit(), options.line_limit))
    try:
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    except (TypeError, ValueError) as error:
        fix = "use a comma, a semicolon or a tab"
        raise ConfigError(
            f"{delimiter!r} cannot divide cells", where="delimiter", fix=fix
        ) from error
    header: list[str] | None = None
    while True:
        start, too_long = reader.line_num + 1, False
        cells: list[str] | Unusable
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem = str(error).replace("unexpected end of data", "a quote is never closed")
            cells = Unusable(f"the row is not valid CSV ({problem})")
        if too_long:
            cells = Unusable(f"the line is longer than {options.line_limit} characters")
        elif isinstance(cells, list) and any(_undecodable(cell) for cell in cells):
            cells = Unusable(f"the line is not {options.encoding}")
        if header is None:
            if isinstance(cells, Unusable):
                fix = "the first line must name the columns"
                raise DataError(cells.reason, path=path, line=start, fix=fix)
            if cells:
                header = [cell.strip() for cell in cells]
                maker.check_columns(header)
        elif isinstance(cells, Unusable):
            yield _place(path, start), cells
        elif len(cells) > len(header):
            yield _place(path, start), Unusable("the row has more cells than the first line")
        elif cells:
            # Some programs leave empty cells out at the end of a row.
            cells += [""] * (len(header) - len(cells))
            yield _place(path, start), dict(zip(header, cells, strict=True))
