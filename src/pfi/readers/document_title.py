"""What a document is called: by its heading, its file's name, or what its program keeps."""

from __future__ import annotations

import re

from pfi.readers.document_text import Paragraph

__all__ = ["titled"]

#: Names of files that say nothing, as programs give them.
_NO_TITLE = re.compile(
    r"[\W\d_]*(?:(?:untitled|unbenannt|sans titre|sin título|senza titolo|sem título|naamloos"
    r"|document|dokument|documento|dokumentti|doc|docx?|text|new text document|neues textdokument"
    r"|note|notes|scan|letter|draft|entwurf|final|copy|v|version|file|letter|cover|index|todo"
    r"|(?:table of )?contents|inhalt(?:sverzeichnis)?|sommaire|table des matières|índice|sommario"
    r"|indice|inhoud(?:sopgave)?|innehåll|indhold|innhold|sisällys|spis treści|obsah|tartalom"
    r"|içindekiler|оглавление|содержание|зміст|目录|目錄|目次|목차"
    r"|документ|文档|文書|문서|無題|无标题)[\W\d_]*)*",
    re.I,
)
#: A day at the beginning or end of a name.
_DATED = re.compile(r"^\d{4}[-_.]?\d\d[-_.]?\d\d[-_ ]*|[-_ ]*\d{4}[-_.]?\d\d[-_.]?\d\d$")


def titled(paragraphs: list[Paragraph], stem: str, property_: str) -> tuple[str, list[Paragraph]]:
    """The title of a document, and its paragraphs without it.

    It is the heading that the document begins with, else its name, else what its program keeps.
    """
    if paragraphs and paragraphs[0].heading and not _NO_TITLE.fullmatch(paragraphs[0].text):
        return paragraphs[0].text, paragraphs[1:]
    named = re.sub(r"[_\s]+", " ", _DATED.sub("", stem)).strip()
    kept = re.sub(r"^Microsoft Word - |\.\w{2,4}$", "", property_).strip()
    title = next((t for t in (named, kept) if not _NO_TITLE.fullmatch(t)), "")
    if paragraphs and paragraphs[0].text.casefold() == title.casefold():
        paragraphs = paragraphs[1:]
    return title, paragraphs
