"""What mail programs write around another mail, in all their languages.

The words are in `mail_words.txt`.  Lines are compared without case, accents and direction marks.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources

#: Sections of the table that are labels of headers.
HEADERS = frozenset(("from", "to", "cc", "date", "subject", "reply"))

_LABEL = re.compile(r"[\s*_]*([^\W\d_][^:@<>*]{0,38}?)[\s*_]*:[*_]*(?:\s+(.*)|(\S.*)?)$")
_RAW = re.compile(
    r"(?i)(return-path|received|message-id|delivered-to|mime-version|content-[\w-]+|x-[\w-]+|"
    r"dkim-signature|references|in-reply-to|user-agent|thread-[\w-]+|authentication-results)$"
)
_DIVIDER = re.compile(r"\s*[-_*=~\u2014\u2500]{2,}\s*([^\W_].*?)\s*[-_*=~:\u2014\u2500]*\s*$")
_FRAMED = re.compile(r"\s*[-_*=\u2014\u2500]{3,}\s*\w[\w\W]{2,80}?[-_*=\u2014\u2500]{2,}\s*$")


#: Longest title above another mail.
_TITLE_LENGTH = 300
_ASCII = str.maketrans({"：": ":", "﹕": ":", "\u2019": "'", "＜": "<", "＞": ">"})


def simple(text: str) -> str:
    """Text for looking at, not for keeping: digits and colons as in ASCII, no marks or no-break."""
    if text.isascii():
        return text
    kept = []
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        if kind == "Nd":
            kept.append(str(unicodedata.digit(character)))
        elif kind == "Zs":
            kept.append(" ")
        elif kind != "Cf":
            kept.append(character)
    return "".join(kept).translate(_ASCII)


def key(text: str) -> str:
    """What a word of the table is looked up by."""
    text = text.replace("\u2019", "'").casefold()
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(
            c for c in parts if not unicodedata.combining(c) and unicodedata.category(c) != "Cf"
        )
    return " ".join(text.split())


@cache
def _table() -> dict[str, frozenset[str]]:
    """The words of each section, as keys."""
    text = resources.files("pfi.readers").joinpath("mail_words.txt").read_text("utf-8")
    sections: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            words = sections.setdefault(line[1:-1], set())
        elif line and not line.startswith("#"):
            words.update(key(word) for word in line.split("|"))
    return {name: frozenset(words) for name, words in sections.items()}


@cache
def _roles() -> dict[str, frozenset[str]]:
    roles: dict[str, set[str]] = {}
    for role in HEADERS:
        for word in _table()[role]:
            roles.setdefault(word, set()).add(role)
    return {word: frozenset(names) for word, names in roles.items()}


@cache
def _pattern(section: str) -> re.Pattern[str]:
    """Matches any word of a section; in scripts that separate words, only whole ones."""
    words = sorted(_table()[section], key=len, reverse=True)
    parts = (
        re.escape(word) if _unspaced(word) else rf"(?<!\w){re.escape(word)}(?!\w)" for word in words
    )
    return re.compile("|".join(parts))


def _unspaced(word: str) -> bool:
    # Chinese, Japanese, Korean, Thai, Khmer, Hindi: words touch, or take endings.
    return any(
        "\u0900" <= c <= "\u109f" or "\u1100" <= c <= "\u11ff" or "\u1780" <= c <= "\u17ff"
        or c >= "\u2e80" for c in word
    )  # fmt: skip


def label(line: str) -> tuple[frozenset[str], str] | None:
    """The roles of a header's label, empty if it is unknown, and the header's value.

    None if the line is no label with a value.
    """
    match = _LABEL.match(line)
    if not match:
        return None
    name, value = match[1], (match[2] or match[3] or "").strip()
    if _RAW.match(name):
        return frozenset(("raw",)), value
    return _roles().get(key(name), frozenset()), value


def is_bold(line: str) -> bool:
    """Whether a line begins with a label in bold, as HTML becomes plain text."""
    return line.lstrip().startswith("*")


def introduces(line: str) -> str:
    """`original` or `forwarded`, if a line is the title above another mail; else empty."""
    if len(line) > _TITLE_LENGTH:
        return ""
    match = _DIVIDER.match(line)
    words = key(match[1]).strip(" -_*=:") if match else ""
    if words in _table()["original"] and match and match[0].strip() != words:
        return "original"
    if match and any(
        words == title or words.startswith(title + " ") for title in _table()["forwarded"]
    ):
        return "forwarded"
    if line.rstrip().endswith(":") and key(line).strip(" :") in _table()["begin"]:
        return "forwarded"
    return ""


def is_framed(line: str) -> bool:
    """Whether a line is words between dashes, whatever the language."""
    return len(line) <= _TITLE_LENGTH and _FRAMED.match(line) is not None


def wrote(text: str) -> bool:
    """Whether a line says that somebody wrote."""
    return _pattern("wrote").search(key(text)) is not None


def mailed(text: str) -> bool:
    """Whether a line says that something was sent."""
    return _pattern("mailed").search(key(text)) is not None


def is_folder(kind: str, name: str) -> bool:
    """Whether a mail program calls the folder for `sent` mail, `drafts` or `junk` so."""
    return key(name).strip("'\" ") in _table()[kind]
