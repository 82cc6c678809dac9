"""Reading foreign files piece by piece: one JSON object of a list, or one line, at a time.

Any content gives values or a `DataError` with a place. (`ijson`'s C backend is not used: a number
of 5000 digits crashes the interpreter and deep nesting takes all memory.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from pfi.errors import ConfigError, DataError

CHUNK = 1 << 16
#: Longest single object of a JSON list that is read, in characters.
OBJECT_LIMIT = 256_000_000

_SPACE = re.compile(r"[ \t\n\r]*")
#: An unfinished escape, number or word at the end of a buffer is at most this long.
_TAIL = 16
_REWRITE = "save the file again as UTF-8"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def parse_json(text: str) -> Any:
    """The value of a whole JSON text.

    Raises:
        ValueError: it is not JSON, nests too deeply or holds a number that is too long.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("the JSON nests too deeply") from error


def open_file(path: Path) -> IO[bytes]:
    """Open a file of UTF-8 text as bytes, past the byte order mark if there is one.

    Raises:
        DataError: it is missing, not readable, empty, or in UTF-16 or UTF-32.
    """
    try:
        file = path.open("rb")
        head = file.read(4)
    except FileNotFoundError:
        raise DataError("there is no such file", path=path, fix="check the path") from None
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})"
        raise DataError(what, path=path, fix="give a readable file") from error
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        file.close()
        raise DataError("the file looks like UTF-16 or UTF-32, not UTF-8", path=path, fix=_REWRITE)
    if not head:
        file.close()
        raise DataError("the file is empty", path=path, fix="give a file with data")
    file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
    return file


class JsonArray:
    """The objects of a file that holds one JSON list, with the line each starts on.

    Attributes:
        place: where the object last given starts and how long it is, in bytes (`read_object`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = (0, 0)
        self._used = 0  # bytes of the file before `_at`
        self._buffer = ""
        self._at = 0  # what is before this position has been used
        self._line = 1
        self._count = 0
        self._end = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield `(line, object)`, holding one object at a time.

        Raises:
            DataError: the file is missing, cut off, not UTF-8, not JSON, or not a list of objects.
        """
        with open_file(self.path) as file:
            self._used = file.tell()
            self._expect(file, "[", "does not hold a JSON list")
            if self._peek(file) == "]":
                self._use(self._at + 1)
            else:
                while True:
                    if self._peek(file) not in ("{", ""):
                        self._fail("is not a JSON object", "give a list of objects")
                    line, start = self._line, self._used
                    value = self._value(file)
                    assert isinstance(value, dict)
                    self.place = (start, self._used - start)
                    yield line, value
                    self._count += 1
                    if self._peek(file) != ",":
                        break
                    self._use(self._at + 1)
                self._expect(file, "]", "is followed by neither a comma nor the end of the list")
            if self._peek(file):
                self._fail("is followed by more text", "remove what follows the list")

    def _value(self, file: IO[bytes]) -> Any:
        """The value that starts here, which ends before the end of the file."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._unfinished(error):
                    self._use(error.pos)
                    self._fail(f"is not valid JSON ({error.msg.lower()})", "correct the file")
                if self._end:
                    self._fail("is cut off", "the file is incomplete: copy or download it again")
            except (ValueError, RecursionError):
                what = "holds a number that is not allowed or nests too deeply"
                self._fail(what, "correct the file")
            else:
                # A number may go on: what follows "1" may be ".5", "e+5" or another digit.
                short = len(self._buffer) - end < 3 and isinstance(value, int | float)
                if short and not self._end:
                    self._fill(file, CHUNK)
                    continue
                self._use(end)
                return value
            held = len(self._buffer) - self._at
            if held > OBJECT_LIMIT:
                self._fail(f"is longer than {OBJECT_LIMIT} characters", "correct the file")
            # As much again as is held, so that parsing anew costs no more than reading once.
            self._fill(file, max(CHUNK, held))

    def _unfinished(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend the error."""
        if error.msg.startswith("Unterminated string"):
            return True
        return len(self._buffer[error.pos :].strip()) < _TAIL

    def _peek(self, file: IO[bytes]) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None
            self._use(match.end())
            if self._at < len(self._buffer) or self._end:
                return self._buffer[self._at : self._at + 1]
            self._fill(file, CHUNK)

    def _expect(self, file: IO[bytes], mark: str, problem: str) -> None:
        found = self._peek(file)
        if found == mark:
            self._use(self._at + 1)
        elif found == "":
            fix = "the file is incomplete: copy or download it again"
            self._fail(f"is cut off: there is no {mark!r}", fix, entry=False)
        else:
            self._fail(problem, "correct the file", entry=mark == "]")

    def _fill(self, file: IO[bytes], size: int) -> None:
        """Read more, or note the end of the file; what has been used is let go."""
        self._buffer = self._buffer[self._at :]
        self._at = 0
        data = file.read(size)
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._line + self._buffer.count("\n")
            line += error.object[: error.start].count(b"\n")
            what = f"the text after entry {self._count} is not UTF-8"
            raise DataError(what, path=self.path, line=line, fix=_REWRITE) from error
        self._buffer += text
        self._end = not data

    def _use(self, end: int) -> None:
        used = self._buffer[self._at : end]
        self._line += used.count("\n")
        self._used += len(used) if used.isascii() else len(used.encode())
        self._at = end

    def _fail(self, problem: str, fix: str, *, entry: bool = True) -> NoReturn:
        what = f"entry {self._count + 1} {problem}" if entry else f"the file {problem}"
        raise DataError(what, path=self.path, line=self._line, fix=fix) from None


def read_object(file: IO[bytes], place: tuple[int, int]) -> dict[str, Any] | None:
    """The object that `JsonArray` gave with this `place`; None if it is there no more."""
    start, length = place
    file.seek(start)
    try:
        value = parse_json(file.read(length).decode("utf-8"))
    except ValueError:  # also what is not UTF-8
        return None
    return value if isinstance(value, dict) else None


def bounded_lines(
    path: Path, encoding: str, limit: int, newline: str = "\n"
) -> Iterator[tuple[int, str | None]]:
    """Yield `(line number, line)`; a line of more than `limit` characters comes as None.

    Lines end with `newline`, a line feed or (old Macs) a carriage return, which is kept.  Bytes
    that do not fit the encoding come as lone surrogates (see `values.as_text`).  Never more than
    `limit` characters are held.

    Raises:
        DataError: the file is missing, unreadable, empty, or in another encoding throughout.
        ConfigError: there is no such encoding.
    """
    if encoding.lower().replace("_", "-").startswith("utf-8"):
        open_file(path).close()
    elif not path.is_file():
        raise DataError("there is no such file", path=path, fix="check the path")
    number = 0
    try:
        with path.open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
            while line := file.readline(limit + 1):
                number += 1
                if len(line) <= limit:
                    yield number, line
                    continue
                while line and not line.endswith(newline):
                    line = file.readline(CHUNK)
                yield number, None
    except LookupError:
        fix = "use the name of a text encoding, such as utf-8 or latin-1"
        raise ConfigError(f"unknown encoding {encoding!r}", where="encoding", fix=fix) from None
    except UnicodeError as error:
        what = f"the text is not {encoding}"
        fix = "name the right encoding"
        raise DataError(what, path=path, line=number + 1, fix=fix) from error
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})"
        raise DataError(what, path=path, fix="give a readable file") from error
