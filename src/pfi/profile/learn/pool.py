"""A pool: texts from a file, to be answered as the user would; see ``Subject.pool``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfi.errors import DataError
from pfi.readers.pieces import bounded_lines, parse_json
from pfi.readers.values import Unusable, as_text
from pfi.records import Record
from pfi.tasks import Task

#: Users of a LaMP file whose profiles are taken, and the longest line, in characters.
_USERS = 200
_LINE = 1_000_000
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_pool(path: Path, task: Task) -> list[Record]:
    """The records of a pool: `*_questions.json` (LaMP), JSON lines, CSV, TSV, or a text a line.

    Ids begin with `pool:`, so that none is one of the user's.

    Raises:
        DataError: the file is missing, damaged, or does not hold what the task asks about.
    """
    if not path.is_file():
        raise DataError("there is no such file", path=path, fix="check the path")
    if path.suffix == ".json":
        return _lamp(path, task)
    asked = task.inputs or [task.output]  # some tasks make the question from the output
    found: dict[tuple[str, ...], Record] = {}
    for line, row in _rows(path, asked):
        try:
            values = {name: as_text(row.get(name), name).strip() for name in asked}
        except Unusable as problem:
            raise DataError(problem.reason, path=path, line=line) from problem
        if not any(values.values()):
            continue
        inputs = values if task.inputs else {}
        output = "" if task.inputs else values[task.output]
        key = tuple(values.values())
        found.setdefault(key, Record(f"pool:{line}", task.name, inputs, output))
    if not found:
        raise DataError("the file holds no texts", path=path, fix="give a file with some")
    return list(found.values())


def _lamp(path: Path, task: Task) -> list[Record]:
    from pfi.datasets.lamp import open_users

    ending = "_questions.json"
    if not path.name.endswith(ending):
        fix = f"name it SPLIT{ending}, or give JSON lines, a table or a text a line"
        raise DataError("this is not the name of a LaMP file", path=path, fix=fix)
    users = open_users(path.parent, task, path.name.removesuffix(ending), limit=_USERS)
    return [
        replace(record, id=f"pool:{user.id}:{record.id}")
        for user in users
        for record in user.history
    ]


def _rows(path: Path, asked: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of a file as values by name, each with its number."""
    lines = _lines(path)
    if path.suffix in (".jsonl", ".ndjson"):
        for number, line in lines:
            try:
                row = parse_json(line) if line.strip() else {}
            except ValueError as error:
                raise DataError(f"the line is not JSON ({error})", path=path, line=number) from (
                    error
                )
            if not isinstance(row, dict):
                raise DataError("the line is not a JSON object", path=path, line=number)
            yield number, row
    elif path.suffix in _DELIMITERS:
        table = csv.DictReader((line for _, line in lines), delimiter=_DELIMITERS[path.suffix])
        if missing := [name for name in asked if name not in (table.fieldnames or ())]:
            fix = f"name the columns {', '.join(asked)}"
            raise DataError(f"there is no column {missing[0]!r}", path=path, line=1, fix=fix)
        try:
            for row in table:
                yield table.line_num, row
        except csv.Error as error:
            raise DataError(f"not valid CSV ({error})", path=path, line=table.line_num) from error
    elif len(asked) > 1:
        raise DataError(
            f"a text a line does not say which of {', '.join(asked)} it is",
            path=path,
            fix="give JSON lines or a table with these names",
        )
    else:
        for number, line in lines:
            yield number, {asked[0]: line}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in bounded_lines(path, "utf-8-sig", _LINE):
        if line is None:
            raise DataError(f"the line is longer than {_LINE} characters", path=path, line=number)
        yield number, line
