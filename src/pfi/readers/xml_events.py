"""XML of foreign files as events, in bounded memory: no entities, no document types, no fetching.

    class Words:
        def start(self, tag, attributes): ...
        def end(self, tag): ...
        def data(self, text): ...

    parse_xml(stream, Words())

Names are `prefix:local`, with the prefixes of `PREFIXES` whatever the file calls them, so that
`w:p` is a paragraph of WordprocessingML in its transitional and its strict form.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import IO, Protocol

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from pfi.readers.values import Unusable

__all__ = ["DEPTH_LIMIT", "PREFIXES", "XML_LIMIT", "Handler", "XmlTexts", "parse_xml"]

#: Bytes of one XML file that are read at most, and how deep its elements may nest.
XML_LIMIT = 128 << 20
DEPTH_LIMIT = 400
_CHUNK = 1 << 16
#: Of metadata so many characters are kept.
_TEXT = 500

_ODF = "urn:oasis:names:tc:opendocument:xmlns:"
_OOXML = "http://schemas.openxmlformats.org/"
_STRICT = "http://purl.oclc.org/ooxml/"
#: Namespaces of documents, and how handlers see them; of all others the prefix is `x`.
PREFIXES = {
    f"{_OOXML}wordprocessingml/2006/main": "w",
    f"{_STRICT}wordprocessingml/main": "w",
    f"{_OOXML}markup-compatibility/2006": "mc",
    f"{_OOXML}package/2006/relationships": "rel",
    f"{_OOXML}package/2006/content-types": "types",
    f"{_OOXML}package/2006/metadata/core-properties": "cp",
    f"{_OOXML}officeDocument/2006/extended-properties": "app",
    f"{_STRICT}officeDocument/extendedProperties": "app",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://purl.org/dc/terms/": "dcterms",
    f"{_ODF}office:1.0": "office",
    f"{_ODF}text:1.0": "text",
    f"{_ODF}style:1.0": "style",
    f"{_ODF}table:1.0": "table",
    f"{_ODF}drawing:1.0": "draw",
    f"{_ODF}meta:1.0": "meta",
    f"{_ODF}manifest:1.0": "manifest",
    "urn:org:documentfoundation:names:experimental:office:xmlns:loext:1.0": "loext",
    "http://www.w3.org/1999/xlink": "xlink",
    "http://www.w3.org/XML/1998/namespace": "xml",
}


class Handler(Protocol):
    """Gets the events of a file."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""

    def end(self, tag: str) -> None:
        """An element ends."""

    def data(self, text: str) -> None:
        """Text within an element; it may come in pieces."""


class _Target:
    """What the parser calls: names are shortened, depth is bounded."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._names: dict[str, str] = {}
        self._depth = 0
        self.data = handler.data

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise Unusable("its XML nests too deeply")
        named = {self._name(key): value for key, value in attributes.items()}
        self._handler.start(self._name(tag), named)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._handler.end(self._name(tag))

    def close(self) -> None:
        """Called at the end."""

    def _name(self, name: str) -> str:
        short = self._names.get(name)
        if short is None:
            space, brace, local = name[1:].partition("}")
            short = f"{PREFIXES.get(space, 'x')}:{local}" if brace else name
            self._names[name] = short
        return short


def parse_xml(stream: IO[bytes], handler: Handler) -> None:
    """Give a handler the events of an XML file.

    Raises:
        Unusable: it is not XML, has a document type or entities (billion laughs, external files),
            is larger than `XML_LIMIT` or nests deeper than `DEPTH_LIMIT`.
        DataError: the stream cannot be read.
    """
    parser = XMLParser(target=_Target(handler), forbid_dtd=True)
    size = 0
    try:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > XML_LIMIT:
                raise Unusable(f"its XML is larger than {XML_LIMIT >> 20} MB")
            parser.feed(chunk)
        parser.close()
    except DefusedXmlException as error:
        raise Unusable("its XML has a document type or entities, as no document has") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unusable("its XML is damaged") from error


class XmlTexts:
    """Reads the text of each kind of element, of the first one that has some."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._open: list[tuple[str, list[str]]] = []

    def __getitem__(self, tag: str) -> str:
        return self._texts.get(tag, "")

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._open.append((tag, []))

    def end(self, tag: str) -> None:
        name, parts = self._open.pop()
        if text := "".join(parts).strip()[:_TEXT]:
            self._texts.setdefault(name, text)

    def data(self, text: str) -> None:
        if self._open:
            self._open[-1][1].append(text[:_TEXT])
