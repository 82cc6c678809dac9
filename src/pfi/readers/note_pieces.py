"""Long texts in pieces of whole paragraphs, each long enough to be continued."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pfi.readers.words import count_words

#: Longest piece of a text, in characters, and shortest that is continued, in words.
PIECE_LIMIT = 1200
LEAST_WORDS = 12

_SENTENCE_END = re.compile(r"[.!?…]+[\"”’)\]]*\s+|[。！？]+[」』）]*|\n+")


def pieces(text: str) -> list[str]:
    """A text in pieces of whole paragraphs; of a paragraph that is too long, of whole sentences."""
    result: list[str] = []
    piece = ""
    for paragraph in _paragraphs(text):
        if (
            piece
            and len(piece) + len(paragraph) > PIECE_LIMIT
            and count_words(piece) >= LEAST_WORDS
        ):
            result.append(piece)
            piece = ""
        piece = f"{piece}\n\n{paragraph}".strip()
    if count_words(piece) >= LEAST_WORDS:
        result.append(piece)
    elif piece and result:
        result[-1] += f"\n\n{piece}"  # too short to stand alone, and nothing is lost
    return result


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        while len(paragraph) > PIECE_LIMIT:
            ends = [m.end() for m in _SENTENCE_END.finditer(paragraph, 1, PIECE_LIMIT)]
            end = ends[-1] if ends else PIECE_LIMIT
            yield paragraph[:end].strip()
            paragraph = paragraph[end:]
        yield paragraph
