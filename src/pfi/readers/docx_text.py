"""Text of Word documents (.docx, .docm) as its author wrote it.

A document is read as if all that others changed in it were rejected and all that its author
changed accepted.  Comments, notes, headers and footers are parts of their own and are only counted.
Names of styles are English in the file whatever the language of Word is; their ids are not.
The format is ECMA-376 (Office Open XML), in its transitional and its strict form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from pfi.readers.document_text import (
    COMMENT,
    CONTENTS,
    FIELD,
    FOOTNOTE,
    HIDDEN,
    INSERTED,
    PLACEHOLDER,
    Document,
    IsMine,
    OpenParagraph,
    OpenParagraphs,
    Properties,
    field_reason,
    style_reason,
)
from pfi.readers.exports import Member
from pfi.readers.ooxml_package import Package

__all__ = ["docx_document", "docx_properties"]

_HEADINGS = re.compile(r"(?:title|subtitle|heading \d+)", re.I)
#: Galleries of building blocks that Word fills.
_GALLERIES = re.compile(r"table of contents|bibliograph|table of figures|index", re.I)
_OFF = ("0", "false", "off")
#: Elements without text of this state of the document: former formats, what old programs see
#: instead of a box, readings above East Asian letters.
_SKIPPED = frozenset(
    (
        "w:pPrChange", "w:rPrChange", "w:sectPrChange", "w:tblPrChange", "w:trPrChange",
        "w:tcPrChange", "w:tblGridChange", "w:numberingChange", "w:sectPr", "w:tblPr", "w:tabs",
        "w:rt", "mc:Fallback", "w:delInstrText",
    )
)  # fmt: skip
_PROPERTIES = frozenset(("w:pPr", "w:rPr", "w:trPr", "w:tcPr", "w:sdtPr", "w:sdtEndPr", "w:ffData"))
#: Changes, and whether they take away.
_CHANGES = {"w:ins": False, "w:moveTo": False, "w:del": True, "w:moveFrom": True}
_BREAKS = {"w:br": "\n", "w:cr": "\n", "w:tab": " ", "w:ptab": " ", "w:noBreakHyphen": "-"}


def docx_properties(member: Member) -> Properties:
    """What a Word document says about itself.

    Raises:
        Unusable: it is none, or damaged, encrypted or refused.
    """
    return Package(member).properties()


def docx_document(member: Member, mine: IsMine) -> Document:
    """The text of a Word document.

    Args:
        member: the file.
        mine: whether an author of changes is the person whose text is wanted.

    Raises:
        Unusable: it is no Word document, or damaged, encrypted or refused.
    """
    package = Package(member)
    styles = _Styles()
    document = Document()
    package.parse(package.related("styles"), styles)
    body = _Body(document, styles, mine)
    package.parse(package.main, body, needed=True)
    body.close()
    for part, tag, reason in (
        ("comments", "w:comment", COMMENT),
        ("footnotes", "w:footnote", FOOTNOTE),
        ("endnotes", "w:endnote", FOOTNOTE),
    ):
        notes = _Notes(tag)
        package.parse(package.related(part), notes)
        if notes.count:
            document.drop(reason, notes.count)
        document.reviewers |= {name for name in notes.authors if not mine(name)}
    return document


class _Styles:
    """Reads `styles.xml`: which styles hold what is not the author's text."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._based_on: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._style = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "w:style":
            self._style = attributes.get("w:styleId", "")
        elif tag == "w:name" and self._style:
            self.names[self._style] = attributes.get("w:val", "")
        elif tag == "w:basedOn" and self._style:
            self._based_on[self._style] = attributes.get("w:val", "")
        elif tag == "w:vanish" and self._style and attributes.get("w:val") not in _OFF:
            self._hidden.add(self._style)

    def end(self, tag: str) -> None:
        if tag == "w:style":
            self._style = ""

    def data(self, text: str) -> None:
        """Styles have no text."""

    def lineage(self, style: str) -> list[str]:
        """The name of a style and of those that it is based on."""
        names: list[str] = []
        while style and len(names) < 12:
            names.append(self.names.get(style, style).removesuffix(" Char"))
            style = self._based_on.get(style, "")
        return names

    def reason(self, style: str) -> str:
        """Why text of a style is not the author's; empty if it is."""
        if style in self._hidden:
            return HIDDEN
        return next(filter(None, map(style_reason, self.lineage(style))), "")

    def is_heading(self, style: str) -> bool:
        return any(_HEADINGS.fullmatch(name) for name in self.lineage(style))


@dataclass
class _Field:
    """A field: an instruction, and what it gave."""

    instruction: str = ""
    result: bool = False

    @property
    def reason(self) -> str:
        if not self.result:
            return FIELD
        return field_reason(self.instruction)


class _Body:
    """Reads `document.xml`."""

    def __init__(self, document: Document, styles: _Styles, mine: IsMine) -> None:
        self._document, self._styles, self._mine = document, styles, mine
        self._skip = 0  # depth within an element that is skipped
        self._properties = 0  # depth within properties
        self._boxes = 0
        self._paragraphs = OpenParagraphs(document, styles.reason)
        self._joined: list[bool] = []  # of each paragraph, whether its end was taken away
        self._changes: list[tuple[bool, bool]] = []  # takes away, by oneself
        self._fields: list[_Field] = []
        self._simple: list[str] = []  # reasons of simple fields
        self._controls: list[str] = []  # reasons of content controls
        self._run = ""  # why the text of this run is left out
        self._text = ""  # the element whose text is read

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._skip or tag in _SKIPPED:
            self._skip += 1
        elif tag in _PROPERTIES:
            self._properties += 1
        elif tag in _CHANGES:
            self._change(tag, attributes)
        elif self._properties:
            self._property(tag, attributes)
        elif tag == "w:p":
            self._begin()
        elif tag == "w:r":
            self._run = ""
        elif tag in ("w:t", "w:delText", "w:instrText"):
            self._text = tag
        elif tag in _BREAKS:
            self._write(_BREAKS[tag])
        elif tag == "w:fldChar":
            self._field(attributes.get("w:fldCharType", ""))
        elif tag == "w:fldSimple":
            self._simple.append(field_reason(attributes.get("w:instr", "")))
        elif tag == "w:sdt":
            self._controls.append("")
        elif tag in ("w:tbl", "w:txbxContent"):
            self._boxes += 1

    def end(self, tag: str) -> None:
        if self._skip:
            self._skip -= 1
        elif tag in _PROPERTIES:
            self._properties -= 1
        elif tag in _CHANGES:
            if not self._properties:
                self._changes.pop()
        elif self._properties:
            pass
        elif tag == "w:p":
            self._finish()
        elif tag == "w:r":
            self._run = ""
        elif tag in ("w:t", "w:delText", "w:instrText"):
            self._text = ""
        elif tag == "w:fldSimple":
            self._simple.pop()
        elif tag == "w:sdt":
            self._controls.pop()
        elif tag in ("w:tbl", "w:txbxContent"):
            self._boxes -= 1

    def data(self, text: str) -> None:
        if self._skip or self._properties or not self._text:
            return
        if self._text == "w:instrText":
            if self._fields and not self._fields[-1].result:
                self._fields[-1].instruction += text[:400]
        else:
            self._write(text)

    def _change(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An insertion or deletion: of what it holds, or of the end of the paragraph."""
        author = attributes.get("w:author", "")
        mine = self._mine(author)
        if not mine:
            self._document.reviewers.add(author)
        if not self._properties:
            self._changes.append((_CHANGES[tag], mine))
        elif self._paragraphs and _CHANGES[tag] == mine:
            self._joined[-1] = True

    def _property(self, tag: str, attributes: Mapping[str, str]) -> None:
        value = attributes.get("w:val", "")
        paragraph = self._paragraphs.last if self._paragraphs else None
        if tag == "w:pStyle" and paragraph is not None:
            paragraph.style = value
        elif tag == "w:numId" and paragraph is not None:
            paragraph.listed = value != "0"
        elif tag == "w:rStyle":
            self._run = self._run or self._styles.reason(value)
        elif tag in ("w:vanish", "w:webHidden") and value not in _OFF:
            self._run = self._run or HIDDEN
        elif self._controls and (
            tag == "w:bibliography" or (tag == "w:docPartGallery" and _GALLERIES.match(value))
        ):
            self._controls[-1] = CONTENTS
        elif self._controls and tag == "w:showingPlcHdr" and value not in _OFF:
            self._controls[-1] = PLACEHOLDER

    def _field(self, kind: str) -> None:
        if kind == "begin":
            self._fields.append(_Field())
        elif kind == "separate" and self._fields:
            self._fields[-1].result = True
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _begin(self) -> None:
        self._paragraphs.begin(OpenParagraph(boxed=self._boxes > 0))
        self._joined.append(False)
        self._run = ""

    def _finish(self) -> None:
        if not self._paragraphs:
            return
        paragraph = self._paragraphs.last
        paragraph.heading = self._styles.is_heading(paragraph.style)
        self._run = ""
        self._paragraphs.finish(joined=self._joined.pop())

    def _write(self, text: str) -> None:
        if self._paragraphs and (reason := self._reason()) != _DELETED:
            self._paragraphs.write(text, reason)

    def _reason(self) -> str:
        """Why the text that is read now is not the author's; empty if it is."""
        for takes_away, mine in self._changes:
            if takes_away and mine:
                return _DELETED
            if not takes_away and not mine:
                return INSERTED
        fields = (f.reason for f in self._fields)
        return self._run or next(filter(None, [*fields, *self._simple, *self._controls]), "")

    def close(self) -> None:
        """See `OpenParagraphs.close`."""
        self._paragraphs.close()


#: What the author took out is not counted.
_DELETED = "deleted"


class _Notes:
    """Counts the notes or comments of a part, with their authors."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.count = 0
        self.authors: set[str] = set()

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        # Lines between text and notes are notes of a type.
        if tag == self._tag and "w:type" not in attributes:
            self.count += 1
            with suppress(KeyError):
                self.authors.add(attributes["w:author"])

    def end(self, tag: str) -> None:
        """Nothing to do."""

    def data(self, text: str) -> None:
        """What is in a note is not looked at."""
