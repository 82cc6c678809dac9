"""What a document is called: by its heading, its file's name, or what its program keeps."""

from __future__ import annotations

import re

from pfi.readers.document_text import Paragraph

__all__ = ["titled"]

#: Words of which names consist that say nothing, as programs and haste give them, and of headings
#: of tables of contents.
_EMPTY_WORDS = """
untitled unbenannt sans titre sin título senza titolo sem título naamloos namnlös document dokument
documento dokumentti doc docx text new neues textdokument note notes scan letter draft entwurf final
copy version file cover index todo table of contents inhalt inhaltsverzeichnis sommaire des matières
índice sommario indice inhoud inhoudsopgave innehåll indhold innhold sisällys spis treści obsah
tartalom içindekiler оглавление содержание зміст документ 目录 目錄 目次 목차 文档 文書 문서
無題 无标题
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")
#: A day at the beginning or end of a name.
_DATED = re.compile(r"^\d{4}[-_.]?\d\d[-_.]?\d\d[-_ ]*|[-_ ]*\d{4}[-_.]?\d\d[-_.]?\d\d$")


def titled(paragraphs: list[Paragraph], stem: str, property_: str) -> tuple[str, list[Paragraph]]:
    """The title of a document, and its paragraphs without it.

    It is the heading that the document begins with, else its name, else what its program keeps.
    """
    if paragraphs and paragraphs[0].heading and _says_something(paragraphs[0].text):
        return paragraphs[0].text, paragraphs[1:]
    named = re.sub(r"[_\s]+", " ", _DATED.sub("", stem)).strip()
    kept = re.sub(r"^Microsoft Word - |\.\w{2,4}$", "", property_).strip()
    title = next((t for t in (named, kept) if _says_something(t)), "")
    if paragraphs and paragraphs[0].text.casefold() == title.casefold():
        paragraphs = paragraphs[1:]
    return title, paragraphs


def _says_something(title: str) -> bool:
    return any(len(word) > 1 and word not in _EMPTY for word in _WORD.findall(title.casefold()))
