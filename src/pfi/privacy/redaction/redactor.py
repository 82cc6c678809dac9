"""The privacy filter: identifiers become placeholders on the way out and come back in the answer.

Redacted text is not anonymous: what a text tells without naming it stays in it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator

from pfi.privacy.redaction.identifiers import KINDS, Found, identifiers, plain
from pfi.privacy.redaction.names import NameFinder, names_in

__all__ = ["KINDS", "Found", "Redactor", "names_in"]

_ESCAPED = "TEXT"  # text of the user's own that looks like a placeholder
_INSIDE = rf"({'|'.join([*KINDS, _ESCAPED])})(?:\\?_|[ -])?(\d{{1,9}})([a-z]{{0,6}})"
# As written here, or as a model may write it: another case, spaces, or escaped for Markdown.
_PLACEHOLDER = re.compile(
    rf"(?i)\\\[\s{{0,2}}{_INSIDE}\s{{0,2}}\\\]|\[\s{{0,2}}{_INSIDE}\s{{0,2}}\]", re.ASCII
)


# Kinds that a word before them may have given away; known, they are found without it.
_KNOWN = frozenset(["PHONE", "ID", "KEY", "PASSWORD"])
_TOKEN = re.compile(r"[^\s\"'`<>,;]+")
_ENDS = ".:!?()[]{}"


class Redactor:
    """Replaces the identifiers in one user's texts by placeholders, and puts them back.

    A value has the same placeholder in all texts, e.g. ``[EMAIL_1]``; other spellings of the
    value share its number and take a letter (``[EMAIL_1b]``), so that `restore` gives back exactly
    what was there.  May be used by several threads.

    Args:
        names: people's names to replace, e.g. the user's own, their contacts', and `names_in`
            of their records.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._given = list(dict.fromkeys(names))
        self._names = NameFinder(self._given)
        self._numbers: dict[tuple[str, str], int] = {}  # (kind, value) -> number
        self._counts: dict[str, int] = {}
        self._spellings: dict[tuple[str, int], list[str]] = {}
        self._placeholders: dict[tuple[str, int, str], str] = {}
        self._texts: dict[str, str] = {}  # placeholder in capitals -> what it stands for
        self._known: dict[str, tuple[str, str]] = {}  # spelling -> (kind, value)
        self._lock = threading.Lock()

    def find(self, text: str) -> list[Found]:
        """What `redact` replaces, in order and without overlaps.

        Where identifiers overlap, all of what they cover is replaced, as the kind of the longest.
        """
        simple, origins = plain(text)
        found = [*identifiers(simple), *self._names.find(simple)]
        if origins is not None:
            found = [
                Found(origins[f.start], origins[f.stop - 1] + 1, f.kind, f.value) for f in found
            ]
        found += self._seen_before(text)
        for match in _PLACEHOLDER.finditer(text):
            found.append(Found(match.start(), match.end(), _ESCAPED, match[0]))
        return _joined(found, text)

    def learn(self, texts: Iterable[str]) -> None:
        """Number what is in these texts, in this order, so that later calls may come in any."""
        for text in texts:
            self.redact(text)

    def redact(self, text: str) -> str:
        """The text with placeholders for what identifies somebody."""
        parts, position = [], 0
        for found in self.find(text):
            parts += [text[position : found.start], self._placeholder(found, text)]
            position = found.stop
        return "".join([*parts, text[position:]])

    def redact_rest(self, text: str) -> str:
        """As `redact` for text that was redacted in part: placeholders made here stay."""
        made = set(self._placeholders.values())
        parts, position = [], 0
        for match in _PLACEHOLDER.finditer(text):
            if match[0] in made:
                parts += [self.redact(text[position : match.start()]), match[0]]
                position = match.end()
        return "".join([*parts, self.redact(text[position:])])

    def add_names(self, names: Iterable[str]) -> None:
        """Replace these names too, from here on."""
        new = [name for name in names if name not in self._given]
        if new:
            self._given += new
            self._names = NameFinder(self._given)

    def restore(self, text: str) -> str:
        """The text with the values for the placeholders; unknown placeholders stay."""
        return _PLACEHOLDER.sub(self._original, text)

    def _seen_before(self, text: str) -> Iterator[Found]:
        """Numbers and secrets that were replaced before, where nothing tells what they are."""
        if not self._known:
            return
        for match in _TOKEN.finditer(text):
            start, token = match.start(), match[0]
            if token not in self._known:
                start += len(token) - len(token.lstrip(_ENDS))
                token = token.strip(_ENDS)
            if token in self._known:
                yield Found(start, start + len(token), *self._known[token])

    def _original(self, match: re.Match[str]) -> str:
        kind, number, letters = (part for part in match.groups() if part is not None)
        return self._texts.get(f"{kind}_{int(number)}{letters}".upper(), match[0])

    def _placeholder(self, found: Found, text: str) -> str:
        spelling = text[found.start : found.stop]
        with self._lock:
            number = self._numbers.get((found.kind, found.value))
            if number is None:
                number = self._counts[found.kind] = self._counts.get(found.kind, 0) + 1
                self._numbers[found.kind, found.value] = number
            known = self._placeholders.get((found.kind, number, spelling))
            if known is None:
                spellings = self._spellings.setdefault((found.kind, number), [])
                spellings.append(spelling)
                name = f"{found.kind}_{number}{_letters(len(spellings))}"
                known = self._placeholders[found.kind, number, spelling] = f"[{name}]"
                self._texts[name.upper()] = spelling
                if found.kind in _KNOWN and len(spelling) >= 6 and re.search(r"\d", spelling):
                    self._known[spelling] = (found.kind, found.value)
            return known


def _letters(count: int) -> str:
    """Nothing for the first spelling, then b, c, ..., z, aa, ab, ..."""
    text = ""
    while count and (count > 1 or text):
        count, rest = divmod(count - 1, 26)
        text = chr(97 + rest) + text
    return text


def _joined(found: list[Found], text: str) -> list[Found]:
    """Overlapping ones made one: nothing that any of them covers may stay."""
    joined: list[Found] = []
    longest = 0
    for one in sorted(found, key=lambda f: (f.start, f.start - f.stop)):
        if not joined or one.start >= joined[-1].stop:
            joined.append(one)
            longest = one.stop - one.start
            continue
        last = joined[-1]
        if one.stop > last.stop:
            kind = one.kind if one.stop - one.start > longest else last.kind
            value = text[last.start : one.stop]
            joined[-1] = Found(last.start, one.stop, kind, value)
            longest = max(longest, one.stop - one.start)
    return joined
