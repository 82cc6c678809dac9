"""Tables as text: which character stands between the cells, and the rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from pfi.errors import ConfigError
from pfi.readers.values import Unusable

__all__ = ["DELIMITERS", "rows_of", "separator_line", "sniff"]

#: In the order in which they are taken when nothing speaks for one of them.
DELIMITERS = (",", ";", "\t", "|")
#: Rows that are compared to find the delimiter.
_ROWS = 50
#: A first line that Excel reads and leaves out: which character stands between cells.
_SEPARATOR = re.compile(r'\ufeff?"?sep=(.)"?[\s;,|]*', re.I)


def separator_line(line: str) -> str | None:
    """The delimiter that a line like `sep=;` names; None if it is another line."""
    match = _SEPARATOR.fullmatch(line.rstrip("\r\n"))
    return match[1] if match else None


def sniff(lines: Iterable[str], wanted: Collection[str]) -> str | None:
    """The delimiter of a table, from its first lines; None if it seems to have one column.

    Args:
        lines: the header, and as many rows as are at hand.
        wanted: columns that are looked for, in any case; a delimiter that gives them wins, else
            the one that divides all rows alike.
    """
    names = {name.casefold() for name in wanted}
    best, best_score = None, (False, 0.0, 0)
    lines = list(lines)
    for delimiter in DELIMITERS:
        rows = [row for row in _leniently(lines, delimiter) if row]
        if not rows or len(rows[0]) < 2:
            continue
        width = len(rows[0])
        alike = sum(len(row) == width for row in rows) / len(rows)
        score = (names <= {cell.strip().casefold() for cell in rows[0]}, alike, width)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _leniently(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    try:
        return list(islice(csv.reader(lines, delimiter=delimiter), _ROWS))
    except csv.Error:
        return []


def rows_of(
    lines: Iterable[str | None], delimiter: str, limit: int
) -> Iterator[tuple[int, list[str] | Unusable]]:
    """Yield `(line on which it starts, cells)` of every row, or why a row cannot be used.

    Args:
        lines: None for a line of more than `limit` characters.

    Raises:
        ConfigError: the delimiter cannot divide cells.
    """
    too_long = False

    def counted() -> Iterator[str]:
        nonlocal too_long
        for line in lines:
            too_long = too_long or line is None
            # An empty line keeps the count of lines and ends nothing that is open.
            yield "\n" if line is None else line

    # The limit is the csv module's only guard against a quote that is never closed.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    try:
        reader = csv.reader(counted(), delimiter=delimiter, strict=True)
    except (TypeError, ValueError) as error:
        what = f"{delimiter!r} cannot divide cells"
        fix = "use a comma, a semicolon or a tab"
        raise ConfigError(what, where="delimiter", fix=fix) from error
    while True:
        start, too_long = reader.line_num + 1, False
        cells: list[str] | Unusable
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = str(error).replace("unexpected end of data", "a quote is never closed")
            cells = Unusable(f"the row is not valid CSV ({problem})")
        if too_long:
            cells = Unusable(f"the line is longer than {limit} characters")
        yield start, cells
