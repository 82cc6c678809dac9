"""Text of PDFs, in paragraphs: lines are joined, what stands on every page is left out.

`pypdf` reads them.  What a file may cost is bounded: its size, its pages, the bytes of a page that
are interpreted, and the time; nothing in it is run, and no other file is opened.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pypdf import PageObject, PdfReader
from pypdf.errors import PyPdfError

from pfi.errors import DataError
from pfi.readers.document_text import CONTENTS, FIELD, Document, Properties, time_of
from pfi.readers.exports import Member
from pfi.readers.values import Unusable

__all__ = ["pdf_document", "pdf_properties"]

#: Bytes of a file and of what a page draws, pages of a file, and seconds that it may take.
SIZE_LIMIT = 100 << 20
PAGE_LIMIT = 4 << 20
PAGES_LIMIT = 1000
SECONDS_LIMIT = 60.0

#: Lines at the top and bottom of a page that may be a running head, and pages that must have it.
_EDGE, _REPEATED = 2, 3
#: The share of lines that are not longer than a full one: a few may be.
_FULL = 0.97
#: A line that is shorter than this share of a full one may end a paragraph.
_SHORT = 0.8
_END = re.compile(r"[.!?…:。！？：][\"”’»)\]]*$")
#: Ends of lines after which a sentence goes on.
_OPEN = re.compile(r"[-,;，；、]$")
_ITEM = re.compile(r"(?:[-–—*•·▪●○◦‣⁃]|\(?\d{1,3}[.)]|[a-z][.)])\s+")
_BULLET = re.compile(r"^[•·▪●○◦‣⁃]\s+")
_LEADERS = re.compile(r"(?:\.\s?){4,}\s*\d{1,4}$|(?:…\s?){2,}\s*\d{1,4}$")
#: An entry of a table of contents without points, and how many in a row make one.
_ENTRY = re.compile(r"(?:\S.{0,90}\D)\s(\d{1,4})")
_ENTRIES = 4
_NUMBERED = re.compile(r"[\W\d_]+|\W*[ivxlc]{1,6}\W*", re.I)
_DATE = re.compile(r"D?:?(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?\s*(Z|[+-]\d\d'?:?\d\d)?")
_METADATA = 500


class _Late(Exception):
    """Time is up."""


def pdf_properties(member: Member) -> Properties:
    """What a PDF says about itself.

    Raises:
        Unusable: it is none, or damaged, too large or encrypted.
    """
    with _reader(member) as reader:
        info: dict[str, Any] = dict(reader.metadata or {})
        programs = (_text(info, key) for key in ("/Creator", "/Producer"))
        author = _text(info, "/Author")
        return Properties(
            authors=(author,) if author else (),
            title=_text(info, "/Title"),
            created=_time(_text(info, "/CreationDate")),
            modified=_time(_text(info, "/ModDate")),
            program=" / ".join(filter(None, programs)),
        )


def pdf_document(member: Member) -> Document:
    """The text of a PDF.

    Raises:
        Unusable: it is none, or damaged, too large, encrypted or without text.
    """
    with _reader(member) as reader:
        pages = _pages(reader)
    if not any(map(any, pages)):
        raise Unusable("it has no text, as if it were scanned")
    document = Document()
    lines = _without_running_heads(pages, document)
    paragraphs = list(_paragraphs(lines))
    contents = _contents(paragraphs)
    for number, paragraph in enumerate(paragraphs):
        if number in contents:
            document.drop(CONTENTS)
        document.add("" if number in contents else paragraph)
    return document


@contextmanager
def _reader(member: Member) -> Iterator[PdfReader]:
    """An open PDF; whatever is wrong with it is a reason not to use it."""
    if member.size > SIZE_LIMIT:
        raise Unusable(f"it is larger than {SIZE_LIMIT >> 20} MB")
    # pypdf tells of every flaw that it can work around.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with member.open() as stream:
            reader = PdfReader(stream)
            # What is locked against changes only opens without a password.
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unusable("it is encrypted: save it without a password")
            yield reader
    except _Late:
        raise Unusable(f"reading it takes longer than {SECONDS_LIMIT:g} seconds") from None
    except (PyPdfError, DataError) as error:
        raise Unusable("the PDF is damaged") from error
    except RecursionError as error:
        raise Unusable("the PDF nests too deeply") from error
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, OSError,
            TypeError, ValueError) as error:  # fmt: skip
        # Objects of other types than the format says surface as these in pypdf.
        raise Unusable("the PDF is damaged") from error


def _pages(reader: PdfReader) -> list[list[str]]:
    """The lines of every page.

    Raises:
        Unusable: there are too many pages, or one draws too much.
        _Late: it takes too long.
    """
    count = len(reader.pages)
    if count > PAGES_LIMIT:
        raise Unusable(f"it has more than {PAGES_LIMIT} pages")
    deadline = time.monotonic() + SECONDS_LIMIT

    def check(*_: Any) -> None:
        if time.monotonic() > deadline:
            raise _Late

    pages = []
    for page in reader.pages:
        check()
        pages.append(_lines(page, check))
    return pages


def _lines(page: PageObject, check: Callable[..., None]) -> list[str]:
    contents = page.get_contents()
    if contents is None:
        return []
    if len(contents.get_data()) > PAGE_LIMIT:
        raise Unusable("one of its pages draws too much to be read")
    text = page.extract_text(visitor_operand_before=check)
    text = text.replace("\0", "").replace("\u00ad\n", "").replace("\u00ad", "")
    return [line.strip() for line in text.encode("utf-8", "ignore").decode().split("\n")]


def _without_running_heads(pages: list[list[str]], document: Document) -> list[str]:
    """The lines of all pages without numbers of pages and what stands at the edge of several."""
    edges: Counter[str] = Counter()
    for page in pages:
        edges.update({_shape(page[number]) for number in _edge(page)})
    kept: list[str] = []
    for page in pages:
        edge = _edge(page)
        for number, line in enumerate(page):
            running = edges[_shape(line)] >= min(_REPEATED, max(2, len(pages)))
            if number in edge and (_NUMBERED.fullmatch(line) or running):
                document.drop(FIELD)
            else:
                kept.append(line)
    return kept


def _edge(page: list[str]) -> set[int]:
    filled = [number for number, line in enumerate(page) if line]
    count = min(_EDGE, len(filled) // 2)
    return {*filled[:count], *filled[len(filled) - count :]}


def _shape(line: str) -> str:
    return re.sub(r"\d+", "#", line.casefold())


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Lines as paragraphs; those of a list begin with a hyphen."""
    lengths = sorted(len(line) for line in lines if line)
    full = lengths[int((len(lengths) - 1) * _FULL)] if lengths else 0
    paragraph = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line or _ITEM.match(line):
            yield from filter(None, [paragraph])
            paragraph = _BULLET.sub("- ", line)
            continue
        paragraph = _joined(paragraph, line)
        heading = len(line) < full / 2 and not _OPEN.search(line) and not following[:1].islower()
        short = len(line) < _SHORT * full and (_END.search(line) or heading)
        if short or _LEADERS.search(line):
            yield paragraph
            paragraph = ""
    yield from filter(None, [paragraph])


def _contents(paragraphs: list[str]) -> set[int]:
    """The numbers of the paragraphs that are entries of a table of contents.

    These are lines that lead to the number of a page by points, and several lines in a row that
    end in numbers which do not fall.
    """
    entries = {n for n, paragraph in enumerate(paragraphs) if _LEADERS.search(paragraph)}
    run: list[int] = []
    last = 0
    for number, paragraph in enumerate([*paragraphs, ""]):
        match = _ENTRY.fullmatch(paragraph)
        if match is not None and int(match[1]) >= last:
            run.append(number)
            last = int(match[1])
            continue
        if len(run) >= _ENTRIES:
            entries.update(run)
        run, last = ([number], int(match[1])) if match is not None else ([], 0)
    return entries


def _joined(paragraph: str, line: str) -> str:
    if not paragraph:
        return line
    if re.search(r"[^\W\d_]-$", paragraph) and line[:1].islower():
        return paragraph[:-1] + line
    # No spaces stand between the signs of East Asian scripts.
    between = "" if paragraph[-1] >= "\u2e80" and line[:1] >= "\u2e80" else " "
    return f"{paragraph}{between}{line}"


def _text(info: dict[str, Any], key: str) -> str:
    value = info.get(key)
    return str(value).replace("\0", "").strip()[:_METADATA] if value is not None else ""


def _time(text: str) -> datetime | None:
    match = _DATE.match(text)
    if match is None:
        return time_of(text)
    year, month, day, hour, minute, second, zone = match.groups()
    ahead = (zone or "Z").replace("'", "").replace(":", "")
    return time_of(
        f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}"
        f"{'+00:00' if ahead == 'Z' else ahead[:3] + ':' + ahead[3:]}"
    )
