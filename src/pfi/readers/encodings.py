"""Which encoding a text file is in: byte order marks, UTF-8, UTF-16, else a code page.

A code page cannot be proven.  `chardet` compares the lines that are not UTF-8 with how languages
are written in each; only those are compared that programs on desktops write.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import chardet

from pfi.errors import DataError

__all__ = ["detect_encoding", "python_name", "stream_encoding"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Windows' code pages, those of DOS and of old Macs, and Russian mail's.
_PAGES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258",
    "cp874", "cp932", "gb18030", "big5hkscs", "big5", "cp949", "mac-roman", "koi8-r", "cp850",
    "cp852", "cp866",
]  # fmt: skip
#: Names of `chardet` as Python and people write them.
_NAMES = {"macroman": "mac_roman", "ibm866": "cp866", "big5": "cp950"}
_PIECE, _SAMPLE = 1 << 16, 1 << 16


def detect_encoding(path: Path) -> str:
    """The encoding of a text file, by Python's name.

    The file is UTF-8 if as many lines beyond ASCII are UTF-8 as are not: then these are damaged.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return stream_encoding(file)
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})"
        raise DataError(what, path=path, fix="give a readable file") from error


def stream_encoding(file: IO[bytes]) -> str:
    """The encoding of a text, by Python's name; the file is read from its beginning."""
    head = file.read(4096)
    file.seek(0)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if name := _wide(head):
        return name
    good = bad = 0
    sample = bytearray()
    for piece, fits in _pieces(file):
        good, bad = good + fits, bad + (not fits)
        if not fits and len(sample) < _SAMPLE:
            sample += piece
    return "utf-8-sig" if good >= bad else _code_page(bytes(sample))


def python_name(name: str) -> str:
    """An encoding's name in Python, such as `cp1252` for `Windows-1252`."""
    name = name.lower()
    return _NAMES.get(name) or codecs.lookup(name.replace("windows-", "cp")).name


def _wide(head: bytes) -> str:
    """UTF-16 without a byte order mark: of text in most scripts every other byte is zero."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) < len(head) / 8 or len(head) < 4:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _pieces(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines beyond ASCII, in pieces if they are long, and whether they are UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while piece := file.readline(_PIECE):
        if piece.isascii() and not decoder.getstate()[0]:
            continue
        try:
            decoder.decode(piece, final=piece.endswith(b"\n"))
            yield piece, True
        except UnicodeDecodeError:
            decoder.reset()
            yield piece, False


def _code_page(sample: bytes) -> str:
    results = chardet.detect_all(sample, ignore_threshold=True, include_encodings=_PAGES)
    names = [python_name(str(result["encoding"])) for result in results if result["encoding"]]
    for name in [*names, "cp1252"]:
        try:
            text = sample.decode(name)
        except UnicodeDecodeError:
            continue
        if not _mixed(text):
            return name
    return "cp1252"


def _mixed(text: str) -> bool:
    """Whether a word has letters of several scripts, as decoding with a wrong page makes them."""
    for word in re.findall(r"[^\W\d_]+", text):
        if not word.isascii() and word[0].isascii() | word[-1].isascii():
            scripts = {unicodedata.name(c, "?").split()[0] for c in word}
            if len(scripts) > 1 and "LATIN" in scripts:
                return True
    return False
