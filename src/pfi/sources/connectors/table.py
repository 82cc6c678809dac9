"""Connector for JSONL, CSV and TSV files: one record a row, columns named by the user.

Encoding, delimiter and the form of times are found from the file.  It is read twice, first for the
times; rows are read one at a time and lines of any length in bounded memory.  A row that cannot be
used is skipped and counted.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pfi.errors import ConfigError, DataError
from pfi.readers.columns import Order, TimeColumn
from pfi.readers.delimited import DELIMITERS, rows_of, separator_line, sniff
from pfi.readers.encodings import detect_encoding
from pfi.readers.pieces import bounded_lines, parse_json
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, all_keys, as_id, needed_keys, record_fields
from pfi.records import Record
from pfi.sources.connectors import Connector, Options
from pfi.tasks import Task, get_task

_JSON = (".jsonl", ".ndjson")
#: Delimiters by suffix, for files whose lines do not tell.
_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
#: Lines and characters of the beginning that the delimiter is found in.
_HEAD_LINES, _HEAD_LIMIT = 50, 1 << 16
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
        None, min_length=1, max_length=1, description="between cells; by default found in the file"
    )
    encoding: str = Field("auto", description="text encoding; auto finds it in the file")
    order: Order = Field(
        "auto", description="order of day, month and year in dates; auto finds it in the column"
    )
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
            if value != "auto":
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
        """Whether it is a table whose columns are the fields of the usual task."""
        if path.suffix.lower() not in (*_JSON, *_SUFFIXES, ".txt") or not path.is_file():
            return False
        columns = {name.casefold() for name in columns_of(path)}
        return columns.issuperset(needed_keys(get_task("instruction")))

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
        maker = _Maker(path, task, options.map, TimeColumn("time", options.order))
        layout = _layout(path, options, [options.map.get(key, key) for key in needed_keys(task)])
        for _, row in _rows(path, layout, options, maker):
            maker.survey(row)
        for note in (layout.note(options), maker.times.note()):
            if note:
                report.note(note)
        for place, row in _rows(path, layout, options, maker):
            try:
                record = maker.record(row)
            except Unusable as problem:
                report.skip(problem.reason, place)
            else:
                report.read += 1
                yield record
        if maker.untimed:
            report.note(f"{maker.untimed} rows have a time; as most have none it is left out")
        report.require_records(path, maker.advice())


@dataclass(frozen=True)
class _Layout:
    """How a file is written: `delimiter` is None for JSON, `skip` the lines before the header."""

    encoding: str
    newline: str = "\n"
    delimiter: str | None = None
    skip: int = 0

    def note(self, options: TableOptions) -> str | None:
        """What was found that is not the usual."""
        parts = []
        if options.encoding == "auto" and self.encoding != "utf-8-sig":
            parts.append(f"as {self.encoding}")
        if self.delimiter and not options.delimiter and self.delimiter != ",":
            parts.append(f"with {_shown(self.delimiter)} between cells")
        return f"the file is read {' and '.join(parts)}" if parts else None


def _shown(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else repr(delimiter)


def columns_of(path: Path) -> list[str]:
    """The columns of a table by a glance at its first line; none if it is no table."""
    with suppress(DataError, ConfigError, ValueError):
        layout = _layout(path, TableOptions(), needed_keys(get_task("instruction")))
        head = _head(path, layout.encoding, layout.newline)[layout.skip :]
        if layout.delimiter is None:
            row = parse_json(next((line for line in head if line.strip()), ""))
            return list(row) if isinstance(row, dict) else []
        for _, cells in rows_of(head, layout.delimiter, _HEAD_LIMIT):
            if isinstance(cells, Unusable):
                break
            if cells:
                return [cell.strip() for cell in cells]
    return []


def _layout(path: Path, options: TableOptions, wanted: Sequence[str]) -> _Layout:
    """How a file is written, from the options and from its beginning.

    Raises:
        DataError: it is missing or of an unknown kind.
    """
    suffix = path.suffix.lower()
    known = suffix in (*_JSON, *_SUFFIXES, ".txt") or options.delimiter
    if not known:
        fix = f"give a file ending in {', '.join((*_JSON, *_SUFFIXES))}"
        raise DataError(f"unknown kind of table {suffix!r}", path=path, fix=fix)
    if not path.is_file():
        raise DataError("there is no such file", path=path, fix="check the path")
    encoding = detect_encoding(path) if options.encoding == "auto" else options.encoding
    if suffix in _JSON:
        return _Layout(encoding)
    try:
        head = _head(path, encoding, "\n")
    except DataError as error:
        better = detect_encoding(path)
        fix = f"leave encoding out, or give --set encoding={better}"
        raise DataError(error.what, path=path, line=error.line, fix=fix) from error
    newline = "\n"
    if head and "\r" in head[0].rstrip("\r\n"):
        newline, head = "\r", _head(path, encoding, "\r")
    named = separator_line(head[0]) if head else None
    skip = int(named is not None)
    delimiter = (
        options.delimiter
        or named
        or sniff(head[skip:], wanted)
        or _SUFFIXES.get(suffix, DELIMITERS[0])
    )
    return _Layout(encoding, newline, delimiter, skip)


def _head(path: Path, encoding: str, newline: str) -> list[str]:
    lines = bounded_lines(path, encoding, _HEAD_LIMIT, newline)
    return [line or "" for _, line in islice(lines, _HEAD_LINES)]


@dataclass
class _Maker:
    """Makes records of rows; remembers the ids seen and the form of the times."""

    path: Path
    task: Task
    map: Mapping[str, str]
    times: TimeColumn
    columns: Sequence[str] = ()
    untimed: int = 0  # records whose time is left out, as most rows have none
    _ids: set[str] = field(default_factory=set)

    def advice(self) -> str:
        """What to do if nothing fits: the columns found and those needed."""
        needs = ", ".join(needed_keys(self.task))
        found = ", ".join(map(repr, self.columns[:12])) or "no columns"
        return f"{self.task.name} needs {needs} and the file has {found}: map field=column"

    def check_columns(self, columns: Sequence[str]) -> list[str]:
        """Check the header of a file that has one; the columns as they are called here.

        A column that differs from a wanted one in case only is taken for it.

        Raises:
            DataError: a column comes twice, or a mapped or needed one is not there.
        """
        wanted = [
            *self.map.values(),
            *all_keys(self.task),
            *(c for n in _USUAL.values() for c in n),
        ]
        names = {name.casefold(): name for name in reversed(wanted)}
        columns = [c if c in wanted else names.get(c.casefold(), c) for c in columns]
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
            raise DataError(problem, path=self.path, line=1, fix=self.advice() + self._better())
        return columns

    def _better(self) -> str:
        """The delimiter that would give more columns than the one in use."""
        with suppress(DataError, ConfigError):
            head = _head(self.path, detect_encoding(self.path), "\n")
            start = int(bool(head) and separator_line(head[0]) is not None)
            needed = [self.map.get(key, key) for key in needed_keys(self.task)]
            better = sniff(head[start:], needed)
            if better is not None and better in "".join(self.columns):
                name = "tab" if better == "\t" else f"'{better}'"
                return f"; cells seem to be divided by {_shown(better)}: --set delimiter={name}"
        return ""

    def survey(self, row: Mapping[str, Any] | Unusable) -> None:
        """Take the time of a row into account."""
        if not isinstance(row, Unusable):
            with suppress(Unusable):
                self.times.add(self._usual(row, "time"))

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
        if self.task.labels and self.task.output in values:
            values[self.task.output] = _plain_label(values[self.task.output])
        fields, output = record_fields(self.task, values)
        time = self.times.time(self._usual(row, "time"))
        if self.times.dated and time is None:
            raise Unusable("it has no time although other rows have one")
        given = self._usual(row, "id")
        source = f"table:{self.path.name}"
        name = "?" if given is None else as_id(given, "id")
        if not self.times.dated and time is not None:
            self.untimed, time = self.untimed + 1, None
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


def _plain_label(value: Any) -> Any:
    """A whole number as spreadsheets write it, `4,0`, as `4`."""
    match = re.fullmatch(r"\s*(\d+)[.,]0+\s*", value) if isinstance(value, str) else None
    return match[1] if match else value


def _place(path: Path, line: int) -> str:
    return f"{path.name}, line {line}"


def _rows(path: Path, layout: _Layout, options: TableOptions, maker: _Maker) -> Iterator[Row]:
    if layout.delimiter is None:
        yield from _json_rows(path, layout.encoding, options.line_limit)
    else:
        yield from _csv_rows(path, layout, layout.delimiter, options.line_limit, maker)


def _json_rows(path: Path, encoding: str, limit: int) -> Iterator[Row]:
    for number, line in bounded_lines(path, encoding, limit):
        row: Mapping[str, Any] | Unusable
        if line is None:
            row = Unusable(f"the line is longer than {limit} characters")
        elif not line.strip():
            continue
        elif not line.isascii() and _undecodable(line):
            row = Unusable(f"the line is not {encoding}")
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


def _csv_rows(
    path: Path, layout: _Layout, delimiter: str, limit: int, maker: _Maker
) -> Iterator[Row]:
    lines = (line for _, line in bounded_lines(path, layout.encoding, limit, layout.newline))
    header: list[str] | None = None
    for number, cells in rows_of(islice(lines, layout.skip, None), delimiter, limit):
        start = number + layout.skip
        if isinstance(cells, list) and any(_undecodable(cell) for cell in cells):
            cells = Unusable(f"the line is not {layout.encoding}")
        if header is None:
            if isinstance(cells, Unusable):
                fix = "the first line must name the columns"
                raise DataError(cells.reason, path=path, line=start, fix=fix)
            if cells:
                header = maker.check_columns([cell.strip() for cell in cells])
        elif isinstance(cells, Unusable):
            yield _place(path, start), cells
        elif len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            yield _place(path, start), Unusable("the row has more cells than the first line")
        elif any(cells):
            # Some programs leave empty cells out at the end of a row.
            cells += [""] * (len(header) - len(cells))
            yield _place(path, start), dict(zip(header, cells, strict=False))
