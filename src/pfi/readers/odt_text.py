"""Text of OpenDocument texts (.odt, and .fodt as one XML file) as its author wrote it.

A document is read as if all that others changed in it were rejected and all that its author
changed accepted.  Names of styles are English in the file whatever the language of the program is.
The format is OASIS OpenDocument 1.3, whose changes are in 5.5 of its third part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pfi.errors import DataError
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
    split_names,
    style_reason,
    time_of,
)
from pfi.readers.exports import Member, nested_members
from pfi.readers.values import Unusable
from pfi.readers.xml_events import Handler, XmlTexts, parse_xml

__all__ = ["odt_document", "odt_properties"]

_KIND = "application/vnd.oasis.opendocument.text"
_HEADINGS = re.compile(r"(?:title|subtitle|heading(?: \d+)?)", re.I)
#: Lists of places and works that the program keeps.
_INDEXES = frozenset(
    (
        "text:table-of-content", "text:illustration-index", "text:table-index",
        "text:object-index", "text:user-index", "text:alphabetical-index", "text:bibliography",
    )
)  # fmt: skip
#: Fields that a program or a file fills in.
_FIELDS = re.compile(
    r"text:(?:page-number|page-count|page-continuation|page-variable-\w+|date|time|file-name"
    r"|author-(?:name|initials)|sender-[\w-]+|(?:print|creation|modification)-(?:date|time)"
    r"|printed-by|initial-creator|creator|title|subject|keywords|description|user-defined"
    r"|template-name|database-[\w-]+|[a-z]+-count|chapter|editing-\w+|sheet-name|dde-connection"
    r"|hidden-text|hidden-paragraph|conditional-text|bibliography-mark|meta-field)"
)
_SKIPPED = {
    "text:note": FOOTNOTE,
    "text:placeholder": PLACEHOLDER,
    "text:ruby-text": "",
    "text:script": "",
    "text:sequence-decls": "",
    "text:variable-decls": "",
    "text:user-field-decls": "",
    "draw:object": "",
    "draw:object-ole": "",
    "draw:plugin": "",
    **dict.fromkeys(_INDEXES, CONTENTS),
}
_SPACE = re.compile(r"[ \t\r\n]+")


def odt_properties(member: Member) -> Properties:
    """What an OpenDocument text says about itself.

    Raises:
        Unusable: it is none, or damaged, encrypted or refused.
    """
    files = _files(member)
    texts, kind = XmlTexts(), ""
    if "mimetype" in files:
        with files["mimetype"].open() as stream:
            kind = stream.read(200).decode("ascii", "replace").strip()
        if kind and not kind.startswith(_KIND):
            raise Unusable("it is no text document")
    if "META-INF/manifest.xml" in files:
        manifest = _Tags()
        _parse(files["META-INF/manifest.xml"], manifest)
        if "manifest:encryption-data" in manifest.tags:
            raise Unusable("it is encrypted: save it without a password")
    if "meta.xml" in files:
        _parse(files["meta.xml"], texts)
    return Properties(
        authors=split_names(texts["meta:initial-creator"]),
        editor=texts["dc:creator"],
        title=texts["dc:title"],
        created=time_of(texts["meta:creation-date"]),
        modified=time_of(texts["dc:date"]),
        program=texts["meta:generator"],
        template=kind.endswith("-template"),
    )


def odt_document(member: Member, mine: IsMine) -> Document:
    """The text of an OpenDocument text.

    Args:
        member: the file.
        mine: whether an author of changes is the person whose text is wanted.

    Raises:
        Unusable: it is none, or damaged, encrypted or refused.
    """
    files = _files(member)
    if "content.xml" not in files:
        raise Unusable("it is no text document")
    styles, document = _Styles(), Document()
    if "styles.xml" in files:
        _parse(files["styles.xml"], styles)
    body = _Body(document, styles, mine)
    _parse(files["content.xml"], body)
    body.close()
    if not body.seen:
        raise Unusable("it is no text document")
    return document


def _files(member: Member) -> dict[str, Member]:
    """The parts of a document by name; of a flat one it is all of them."""
    with member.open() as stream:
        if stream.read(5).lstrip(b"\xef\xbb\xbf")[:1] == b"<":
            return {"meta.xml": member, "styles.xml": member, "content.xml": member}
    try:
        files = nested_members(member, lambda name: name.endswith((".xml", "mimetype")))
    except DataError as error:
        raise Unusable(error.what) from error
    return {file.name: file for file in files}


def _parse(file: Member, handler: Handler) -> None:
    try:
        with file.open() as stream:
            parse_xml(stream, handler)
    except DataError as error:
        raise Unusable("it is damaged") from error


class _Tags:
    """Reads which elements there are."""

    def __init__(self) -> None:
        self.tags: set[str] = set()

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.tags.add(tag)

    def end(self, tag: str) -> None:
        """Nothing to do."""

    def data(self, text: str) -> None:
        """Text is not looked at."""


class _Styles:
    """Reads styles: their names, what they are based on, which are hidden."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._style = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "style:style":
            self._style = name = attributes.get("style:name", "")
            self._names[name] = attributes.get("style:display-name", name.replace("_20_", " "))
            self._parents[name] = attributes.get("style:parent-style-name", "")
        elif tag == "style:text-properties" and attributes.get("text:display") == "none":
            self._hidden.add(self._style)

    def end(self, tag: str) -> None:
        """Nothing to do."""

    def data(self, text: str) -> None:
        """Styles have no text."""

    def _lineage(self, style: str) -> list[str]:
        styles: list[str] = []
        while style and len(styles) < 12:
            styles.append(style)
            style = self._parents.get(style, "")
        return styles

    def reason(self, style: str) -> str:
        """Why text of a style is not the author's; empty if it is."""
        lineage = self._lineage(style)
        if any(each in self._hidden for each in lineage):
            return HIDDEN
        names = [self._names.get(each, each.replace("_20_", " ")) for each in lineage]
        return next(filter(None, map(style_reason, names)), "")

    def is_heading(self, style: str) -> bool:
        names = (self._names.get(each, each) for each in self._lineage(style))
        return any(_HEADINGS.fullmatch(name) for name in names)


@dataclass
class _Region:
    """A change: of what kind, by whom, and what was deleted, a text a paragraph."""

    deletes: bool = False
    author: str = ""
    paragraphs: list[str] = field(default_factory=list)


class _Body:
    """Reads `content.xml`."""

    def __init__(self, document: Document, styles: _Styles, mine: IsMine) -> None:
        self.seen = False  # whether there is a text at all
        self._document, self._styles, self._mine = document, styles, mine
        self._skip = 0  # depth within what is skipped
        self._annotation = False
        self._region: _Region | None = None  # the change that is being read
        self._info = ""  # the element of it whose text is read
        self._regions: dict[str, _Region] = {}
        self._inserted: set[str] = set()  # changes of others that are open
        self._paragraphs = OpenParagraphs(document, styles.reason)
        self._boxes = self._lists = 0
        self._spans: list[str] = []  # reasons of spans
        self._sections: list[str] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._skip:
            self._skip += 1
            self._info = tag if self._annotation and tag == "dc:creator" else ""
        elif not self.seen:
            self._styles.start(tag, attributes)
            self.seen = tag == "office:text"
        elif tag == "text:changed-region":
            self._region = _Region()
            name = attributes.get("text:id") or attributes.get("xml:id", "")
            self._regions[name] = self._region
        elif self._region is not None:
            self._change(tag, attributes)
        elif tag == "office:annotation":
            self._skip, self._annotation = 1, True
            self._document.drop(COMMENT)
        elif tag in _SKIPPED or tag.startswith(("x:", "office:")):
            self._skip = 1
            if reason := _SKIPPED.get(tag):
                self._document.drop(reason)
        elif _FIELDS.fullmatch(tag):
            self._skip = 1
        else:
            self._element(tag, attributes)

    def _element(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in ("text:p", "text:h"):
            style = attributes.get("text:style-name", "")
            heading = tag == "text:h" or self._styles.is_heading(style)
            self._begin(style, heading=heading)
        elif tag == "text:span":
            self._spans.append(self._styles.reason(attributes.get("text:style-name", "")))
        elif tag == "loext:content-control":
            filled = attributes.get("loext:showing-place-holder") != "true"
            self._spans.append("" if filled else PLACEHOLDER)
        elif tag == "text:section":
            hidden = attributes.get("text:display") == "none"
            self._sections.append(HIDDEN if hidden else "")
        elif tag == "text:section-source" and self._sections:
            self._sections[-1] = FIELD  # what is in another file
        elif tag == "text:list":
            self._lists += 1
        elif tag.startswith("draw:") or tag == "table:table":
            self._boxes += 1
        elif tag in ("text:s", "text:tab"):
            self._write(" ")
        elif tag == "text:line-break":
            self._write("\n")
        elif tag == "text:change-start":
            name = attributes.get("text:change-id", "")
            region = self._regions.get(name)
            if region is None or (not region.deletes and not self._mine(region.author)):
                self._inserted.add(name)
        elif tag == "text:change-end":
            self._inserted.discard(attributes.get("text:change-id", ""))
        elif tag == "text:change":
            self._restore(self._regions.get(attributes.get("text:change-id", "")))

    def end(self, tag: str) -> None:
        if self._skip:
            self._skip -= 1
            self._annotation = self._annotation and self._skip > 0
            self._info = ""
        elif tag == "text:changed-region":
            region, self._region = self._region, None
            if region is not None and not self._mine(region.author):
                self._document.reviewers.add(region.author)
        elif self._region is not None:
            self._info = ""
        elif tag in ("text:p", "text:h"):
            self._finish()
        elif tag in ("text:span", "loext:content-control") and self._spans:
            self._spans.pop()
        elif tag == "text:section" and self._sections:
            self._sections.pop()
        elif tag == "text:list":
            self._lists -= 1
        elif tag.startswith("draw:") or tag == "table:table":
            self._boxes -= 1

    def data(self, text: str) -> None:
        if self._annotation and self._info:
            if not self._mine(text):
                self._document.reviewers.add(text)
        elif self._skip:
            return
        elif self._region is not None:
            if self._info == "dc:creator":
                self._region.author += text
            elif self._info == "text:p" and self._region.paragraphs:
                self._region.paragraphs[-1] += _SPACE.sub(" ", text)
        elif self._paragraphs:
            self._write(_SPACE.sub(" ", text))

    def _change(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element within what is told of a change."""
        assert self._region is not None
        if tag == "text:deletion":
            self._region.deletes = True
        elif tag == "dc:creator":
            self._info = tag
        elif tag in ("text:p", "text:h"):
            self._region.paragraphs.append("")
            self._info = "text:p"
        elif tag in ("text:span", "text:a"):
            self._info = "text:p"
        elif tag == "text:s" and self._region.paragraphs:
            self._region.paragraphs[-1] += " "

    def _restore(self, region: _Region | None) -> None:
        """Put back what someone else deleted here."""
        if region is None or not region.deletes or self._mine(region.author):
            return
        for number, text in enumerate(region.paragraphs):
            if not self._paragraphs:
                self._begin("")
                self._write(text)
                self._finish()
                continue
            if number:
                style = self._paragraphs.last.style
                self._finish()
                self._begin(style)
            self._write(text)

    def _begin(self, style: str, *, heading: bool = False) -> None:
        paragraph = OpenParagraph(
            style=style,
            heading=heading,
            listed=self._lists > 0 and not heading,
            boxed=self._boxes > 0 or bool(self._paragraphs),
        )
        self._paragraphs.begin(paragraph)

    def _finish(self) -> None:
        if self._paragraphs:
            # Within an insertion the paragraph's end is someone else's, too.
            self._paragraphs.finish(joined=bool(self._inserted))

    def _write(self, text: str) -> None:
        if self._paragraphs:
            reasons = [INSERTED if self._inserted else "", *self._spans, *self._sections]
            self._paragraphs.write(text, next(filter(None, reasons), ""))

    def close(self) -> None:
        """See `OpenParagraphs.close`."""
        self._paragraphs.close()
