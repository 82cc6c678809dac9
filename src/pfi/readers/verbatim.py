"""Lines of a text that stand word for word in another text, however they were wrapped."""

from __future__ import annotations

from collections.abc import Collection

#: Letters and digits that two texts do not share by chance: of words, and of scripts that write
#: a syllable or word with each character.
ENOUGH, ENOUGH_DENSE = 25, 10
#: Of the other text so many characters are looked at; lines that are longer together than this are
#: no answer that is read.
_LIMIT, _LINES_LIMIT = 400_000, 100_000


def squeezed(text: str) -> str:
    """The letters and digits of a text, without case."""
    return "".join(character for character in text.casefold() if character.isalnum())


def repeated_lines(lines: list[str], others: Collection[str]) -> set[int]:
    """The numbers of the lines that stand in one of the other texts.

    Lines that follow each other count together, and together they must be long enough not to be
    there by chance; blank ones between them do not matter.
    """
    texts = [squeezed(other[:_LIMIT]) for other in others]
    if not any(texts) or sum(map(len, lines)) > _LINES_LIMIT:
        return set()
    keys = [squeezed(line) for line in lines]
    repeated: set[int] = set()
    for text in filter(None, texts):
        start = 0
        while start < len(lines):
            end, run = start, ""
            while end < len(lines) and (run + keys[end]) in text and len(run) <= len(text):
                run += keys[end]
                end += 1
            if is_enough(run):
                repeated.update(range(start, end))
            start = max(end, start + 1) if is_enough(run) else start + 1
    return {number for number in repeated if keys[number]}


def is_enough(letters: str) -> bool:
    """Whether so many letters are not shared by chance."""
    dense = sum(character >= "\u2e80" for character in letters)
    return len(letters) >= ENOUGH or (dense * 2 > len(letters) >= ENOUGH_DENSE)
