"""The parts of an Office document (Open Packaging Conventions), each found by its relationship.

Names of parts are the program's choice: Word on the web calls the text `word/document2.xml`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from functools import cached_property

from pfi.errors import DataError
from pfi.readers.document_text import Properties, split_names, time_of
from pfi.readers.exports import Member, nested_members
from pfi.readers.values import Unusable
from pfi.readers.xml_events import Handler, XmlTexts, parse_xml

__all__ = ["Package"]

_CAPITAL = re.compile("([A-Z])")
_TYPES = "[Content_Types].xml"
_USUAL = "word/document.xml"
_ROOT = "_rels/.rels"
#: What every document of python-docx says, which copies it from its template.
_PYTHON_DOCX = ("python-docx", "2013-12-23T23:15:00Z")


class Package:
    """A .docx file.

    Raises:
        Unusable: it is no zip, or damaged, encrypted or refused.
    """

    def __init__(self, member: Member) -> None:
        try:
            files = nested_members(member, lambda name: name.endswith((".xml", ".rels")))
        except DataError as error:
            raise Unusable(error.what) from error
        self._files = {file.name: file for file in files}

    @cached_property
    def main(self) -> str:
        """The part that holds the text."""
        found = self._relations(_ROOT).get("officeDocument", _USUAL)
        return found if found in self._files else _USUAL

    def related(self, kind: str) -> str:
        """The part that the text names as its `styles`, `comments` or such; empty if none."""
        folder, name = posixpath.split(self.main)
        return self._relations(f"{folder}/_rels/{name}.rels", folder).get(kind, "")

    def parse(self, part: str, handler: Handler, *, needed: bool = False) -> None:
        """Give a handler the events of a part; of one that is not there only if it is needed.

        Raises:
            Unusable: it is damaged, or needed and not there.
        """
        if part not in self._files:
            if needed:
                raise Unusable("it is no text document of Word")
            return
        try:
            with self._files[part].open() as stream:
                parse_xml(stream, handler)
        except DataError as error:
            raise Unusable("it is damaged") from error

    def properties(self) -> Properties:
        """What the document says about itself.

        Raises:
            Unusable: that is damaged.
        """
        core, app, types = XmlTexts(), XmlTexts(), _Types(f"/{self.main}")
        root = self._relations(_ROOT)
        self.parse(root.get("core-properties", "docProps/core.xml"), core)
        self.parse(root.get("extended-properties", "docProps/app.xml"), app)
        self.parse(_TYPES, types)
        author, created, modified = (
            "" if text in _PYTHON_DOCX else text
            for text in (core["dc:creator"], core["dcterms:created"], core["dcterms:modified"])
        )
        return Properties(
            authors=split_names(author),
            editor=core["cp:lastModifiedBy"],
            title=core["dc:title"],
            created=time_of(created),
            modified=time_of(modified),
            program=app["app:Application"],
            template=".template." in types.kind,
        )

    def _relations(self, part: str, folder: str = "") -> dict[str, str]:
        relations = _Relations(folder)
        self.parse(part, relations)
        return relations.targets


class _Relations:
    """Reads the targets of relationships, by the last word of their types."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.targets: dict[str, str] = {}

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag != "rel:Relationship" or attributes.get("TargetMode") == "External":
            return
        kind = attributes.get("Type", "").rsplit("/", 1)[-1]
        # The strict form writes coreProperties for core-properties.
        kind = _CAPITAL.sub(r"-\1", kind).lower() if kind.endswith("Properties") else kind
        target = attributes.get("Target", "")
        joined = target[1:] if target.startswith("/") else posixpath.join(self._folder, target)
        self.targets.setdefault(kind, posixpath.normpath(joined))

    def end(self, tag: str) -> None:
        """Nothing to do."""

    def data(self, text: str) -> None:
        """Relationships have no text."""


class _Types:
    """Reads the content type of one part."""

    def __init__(self, part: str) -> None:
        self._part = part
        self.kind = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "types:Override" and attributes.get("PartName") == self._part:
            self.kind = attributes.get("ContentType", "")

    def end(self, tag: str) -> None:
        """Nothing to do."""

    def data(self, text: str) -> None:
        """Types have no text."""
