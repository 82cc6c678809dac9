"""What readers of text documents give: one's own paragraphs, what was left out and why, and what
the document says about itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from pfi.readers.values import Unusable, past_time
from pfi.readers.words import count_words

#: Characters of one document that are kept at most.
TEXT_LIMIT = 4_000_000
#: Shortest cell of a table or text in a box that says something, in words.
CELL_WORDS = 8

INSERTED = "someone else inserted it"
QUOTED = "it is a quotation"
CONTENTS = "it is a table of contents, an index or a bibliography"
PLACEHOLDER = "it is a place that was not filled in"
FIELD = "a program filled it in"
HIDDEN = "it is hidden"
CODE = "it is code"
CELL = f"it is in a table or box and has fewer than {CELL_WORDS} words"
COMMENT = "it is a comment"
FOOTNOTE = "it is a footnote"
LINK = "it is only an address"

#: Styles of text that is not the author's, by the names that Word and OpenDocument give them; some
#: programs and people call a style of quotes in their language.
_STYLE_REASONS = [
    (re.compile(r"(?:.*\b)?(?:quotes?|quotations?|block ?(?:text|quote)|zitat\w*|citation|citas?"
                r"|citazion[ei]|cita[çc][ãa]o|cit[ao]at\w*|sitat|sitaatti|cytat\w*|цитат[аы]|引用文?|引文|인용문?)"
                r"(?: \d)?", re.I), QUOTED),
    (re.compile(r"(?:toc|index|table of)\b.*|bibliography.*|contents \d+", re.I), CONTENTS),
    (re.compile(r"html (?:code|preformatted|sample|keyboard)|(?:source|verbatim) ?(?:code|char)?"
                r"|macro text|code\b.*|preformatted.*|listing.*", re.I), CODE),
    (re.compile(r"(?:header|footer|page number)\b.*", re.I), FIELD),
    (re.compile(r"(?:foot|end)note text", re.I), FOOTNOTE),
    (re.compile(r"annotation text|balloon text", re.I), COMMENT),
    (re.compile(r"placeholder text", re.I), PLACEHOLDER),
]  # fmt: skip
#: Fields by what their results are: lists of places and works; what a program or a file fills in.
_FIELDS = {
    **dict.fromkeys(("toc", "index", "toa", "bibliography", "rd"), CONTENTS),
    **dict.fromkeys(
        (
            "page", "pageref", "numpages", "sectionpages", "date", "time", "createdate", "savedate",
            "printdate", "author", "filename", "filesize", "lastsavedby", "docproperty", "info",
            "mergefield", "includetext", "includepicture", "database", "username", "useraddress",
            "userinitials", "template", "edittime", "numwords", "numchars", "revnum", "autotext",
        ),
        FIELD,
    ),
}  # fmt: skip
#: Lists of works that Zotero, EndNote, Mendeley and Citavi keep.
_BIBLIOGRAPHIES = re.compile(
    r"ADDIN\s+(?:ZOTERO_BIBL|EN\.REFLIST|Mendeley Bibliography|CITAVI\S*BIBLIOGRAPHY)", re.I
)
#: Whether a name is the person's own.
IsMine = Callable[[str], bool]


@dataclass(frozen=True)
class Properties:
    """What a document says about itself.

    Attributes:
        authors: those who began it.
        editor: who saved it last.
        title: as its program keeps it.
        created: when it was begun, in UTC.
        modified: when it was saved last, in UTC.
        program: what wrote the file.
        template: whether it is one to begin others from.
    """

    authors: tuple[str, ...] = ()
    editor: str = ""
    title: str = ""
    created: datetime | None = None
    modified: datetime | None = None
    program: str = ""
    template: bool = False


class Paragraph(NamedTuple):
    """A paragraph in plain text; `heading` if it is a title or heading."""

    text: str
    heading: bool = False


@dataclass
class Document:
    """The text of a document as one's own, in its order.

    Attributes:
        paragraphs: none of them blank.
        dropped: how many were left out whole or in part, by reason, with the number of the first.
        reviewers: those other than oneself whose changes or comments are marked as theirs.
    """

    paragraphs: list[Paragraph] = field(default_factory=list)
    dropped: dict[str, tuple[int, int]] = field(default_factory=dict)
    reviewers: set[str] = field(default_factory=set)
    _number: int = 0
    _size: int = 0

    def add(self, text: str, *, heading: bool = False) -> None:
        """Add a paragraph unless it is blank.

        Raises:
            Unusable: the document is too long.
        """
        self._number += 1
        text = text.strip()
        self._size += len(text)
        if self._size > TEXT_LIMIT:
            raise Unusable(f"it is longer than {TEXT_LIMIT} characters")
        if text:
            self.paragraphs.append(Paragraph(text, heading))

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that is left out of the paragraph that is added next."""
        before, first = self.dropped.get(reason, (0, self._number + 1))
        self.dropped[reason] = before + count, first

    def leave_out(self, text: str, reason: str, parts: set[str], *, boxed: bool) -> str:
        """Count what is left out of a paragraph.

        Args:
            text: of it, without what is left out.
            reason: why all of it is, by its style; empty if it is not.
            parts: why parts of it are.
            boxed: whether it is in a table or box.

        Returns:
            why all of it is left out; empty if it is not.
        """
        if not reason and text and boxed and count_words(text) < CELL_WORDS:
            reason = CELL
        for each in sorted(parts | ({reason} if reason and text else set())):
            self.drop(each)
        return reason


@dataclass
class OpenParagraph:
    """A paragraph that is being read.

    Attributes:
        parts: its text so far.
        reasons: why some of it is left out.
        style: the name by which the document calls its style.
        heading: whether it is a title or heading.
        listed: whether it is in a list.
        boxed: whether it is in a table or box.
    """

    parts: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    style: str = ""
    heading: bool = False
    listed: bool = False
    boxed: bool = False


class OpenParagraphs:
    """The paragraphs that are being read, each within the one before; false where none is.

    Args:
        document: is given them when they end.
        reason_of: why text of a style is not the author's; empty if it is.
    """

    def __init__(self, document: Document, reason_of: Callable[[str], str]) -> None:
        self._document, self._reason_of = document, reason_of
        self._open: list[OpenParagraph] = []
        self._carried: OpenParagraph | None = None

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def last(self) -> OpenParagraph:
        """The one that text goes to; there must be one."""
        return self._open[-1]

    def begin(self, paragraph: OpenParagraph) -> None:
        """Begin one, with what is to be joined to it."""
        if self._carried is not None and not self._open:
            paragraph.parts, paragraph.reasons = self._carried.parts, self._carried.reasons
            self._carried = None
        self._open.append(paragraph)

    def write(self, text: str, reason: str) -> None:
        """Add text to the last one, or the reason why it is left out."""
        if not reason:
            self.last.parts.append(text)
        elif text.strip():
            self.last.reasons.add(reason)

    def finish(self, *, joined: bool) -> None:
        """End the last one.

        Args:
            joined: whether its end is not there, so that the next one goes on with it.
        """
        paragraph = self._open.pop()
        if joined and not self._open:
            self._carried = paragraph
        else:
            self._keep(paragraph)

    def close(self) -> None:
        """Keep what was to be joined to a paragraph that did not come."""
        if self._carried is not None:
            self._keep(self._carried)
            self._carried = None

    def _keep(self, paragraph: OpenParagraph) -> None:
        text = "".join(paragraph.parts).strip()
        reason = self._document.leave_out(
            text, self._reason_of(paragraph.style), paragraph.reasons, boxed=paragraph.boxed
        )
        if paragraph.listed and text:
            text = f"- {text}"
        heading = paragraph.heading and not paragraph.boxed
        self._document.add("" if reason else text, heading=heading)


def split_names(text: str) -> tuple[str, ...]:
    """The names of several authors, which Word divides by semicolons."""
    return tuple(name.strip() for name in text.split(";") if name.strip())


def time_of(text: str) -> datetime | None:
    """A time of a document's properties, in UTC and seconds; None if it makes no sense."""
    try:
        time = past_time(text.strip() or None)
    except Unusable:
        return None
    return time.replace(microsecond=0) if time is not None else None


def style_reason(name: str) -> str:
    """Why text of a style is not the author's, by the style's name; empty if it is."""
    return next((reason for pattern, reason in _STYLE_REASONS if pattern.fullmatch(name)), "")


def field_reason(instruction: str) -> str:
    """Why what a field of Word shows is not the author's, by its instruction; empty if it is."""
    words = instruction.split(None, 1)
    if _BIBLIOGRAPHIES.match(instruction.strip()):
        return CONTENTS
    return _FIELDS.get(words[0].casefold(), "") if words else ""
