"""Which part of a web address tells on somebody: an id, a token, a profile, a login.

The host stays readable, so that a teacher still sees what kind of page it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pfi.privacy.redaction import words

# Possessive, and only at a border: linear in the text.
_URL = re.compile(
    r"(?i)(?<![^\W_])(?:(?:https?|ftp|wss?|git|ssh|postgres(?:ql)?|mysql|redis|mongodb(?:\+srv)?)://"
    r"|www\.)(?P<host>[^\s/?#<>\"'`|]++)(?P<rest>[/?#][^\s<>\"'`|]*+)?"
)
_LOGIN = re.compile(r"(?!(?:git|hg|svn|anonymous)@)[^\s@]++(?=@)")
_UUID = re.compile(r"(?i)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_PIECES = re.compile(r"[A-Za-z0-9]+")


def private_parts(text: str) -> Iterator[tuple[int, int]]:
    """Spans behind the host, without the first sign, of addresses that hold an id or a token."""
    for match in _URL.finditer(text):
        if match["rest"] is None:
            continue
        rest = _without_end(match["rest"])
        if len(rest) > 1 and _tells(rest):
            yield match.start("rest") + 1, match.start("rest") + len(rest)


def logins(text: str) -> Iterator[tuple[int, int]]:
    """Spans of `user:password` or of a token before the host."""
    for match in _URL.finditer(text):
        if found := _LOGIN.match(match["host"]):
            yield match.start("host"), match.start("host") + found.end()


def _without_end(rest: str) -> str:
    """Without the signs that belong to the sentence."""
    while rest and (rest[-1] in ".,;:!?*_…。、，" or (rest[-1] in ")]}" and _unbalanced(rest))):
        rest = rest[:-1]
    return rest


def _unbalanced(rest: str) -> bool:
    last = rest[-1]
    return rest.count(last) > rest.count({")": "(", "]": "[", "}": "{"}[last])


def _tells(rest: str) -> bool:
    path, _, query = rest.replace("#", "?").partition("?")
    segments = [segment for segment in path.split("/") if segment]
    for before, segment in zip(["", *segments], segments, strict=False):
        if before.casefold() in words.PERSON_FOLDERS or segment[0] in "~@" or is_id(segment):
            return True
    for pair in re.split(r"[&?;]", query):
        name, _, value = pair.partition("=")
        if value and (name.casefold() in words.PRIVATE_KEYS or "@" in value or is_id(value)):
            return True
        if not value and is_id(name):
            return True
    return False


def is_id(segment: str) -> bool:
    """Whether a piece of an address looks like an id, unlike words, dates and versions."""
    if "@" in segment or "%40" in segment or _UUID.search(segment):
        return True
    if re.fullmatch(r"\d{4}\.\d{4,5}(?:v\d+)?(?:\.pdf)?", segment):  # of a paper on arXiv
        return False
    for piece in _PIECES.findall(segment):
        if piece.isdigit():
            if len(piece) >= 5 and not re.fullmatch(r"(?:19|20)\d{6}", piece):
                return True
            continue
        kinds = [
            any(c.isdigit() for c in piece),
            any(c.islower() for c in piece),
            any(c.isupper() for c in piece),
        ]
        if len(piece) >= 8 and kinds[0] and re.fullmatch(r"(?i)[0-9a-f]+", piece):
            return True
        if len(piece) >= 8 and all(kinds):
            return True
        if len(piece) >= 20 and sum(kinds) >= 2:
            return True
    # A token with signs inside: small, large and digits all mixed.
    mixed = re.findall(r"[a-z](?=[A-Z])|[A-Za-z](?=\d)|\d(?=[A-Za-z])", segment)
    return len(mixed) >= 4 and segment != segment.lower()
