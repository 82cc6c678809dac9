"""The kinds of identifiers that the privacy filter finds, and finding all of them in a text.

The time is linear in the text; names of people are in `names`.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from pfi.privacy.redaction import checksums, urls
from pfi.privacy.redaction.patterns import PATTERNS
from pfi.privacy.redaction.phones import national_phones

KINDS = {
    "EMAIL": "e-mail addresses",
    "PHONE": "phone numbers",
    "URL": "the part of an address behind the host, where it holds an id or a token",
    "IBAN": "bank accounts, by checksum",
    "CARD": "payment cards, by network and checksum",
    "ID": "national identity, tax and health numbers, by checksum where they have one",
    "KEY": "API keys, tokens and private keys",
    "PASSWORD": "passwords that are named so",
    "IP": "IP addresses",
    "MAC": "hardware addresses",
    "CRYPTO": "cryptocurrency addresses",
    "LOCATION": "coordinates",
    "ADDRESS": "street addresses in common spellings",
    "HANDLE": "@handles",
    "NAME": "names: those given, and those found in the records",
}


@dataclass(frozen=True, slots=True)
class Found:
    """An identifier in a text: where it is, its kind, and its value in one spelling."""

    start: int
    stop: int
    kind: str
    value: str


def plain(text: str) -> tuple[str, list[int] | None]:
    """The text in the spelling that the patterns know, and where each character came from.

    Digits, letters and signs of other widths become ASCII, all dashes and spaces one each, and
    characters without width are left out.  The positions are None where nothing moved.
    """
    if text.isascii():
        return text, None
    text = text.translate(_SAME)
    if not _INVISIBLE.search(text):
        return text, None
    kept = [place for place, letter in enumerate(text) if not _INVISIBLE.match(letter)]
    return "".join(text[place] for place in kept), kept


def identifiers(text: str) -> Iterator[Found]:
    """All identifiers but names, in a text as `plain` gives it; they may overlap."""
    digits = _GROUP.search(text) is not None
    for kind, pattern, check in PATTERNS:
        if kind in _OF_DIGITS and not digits:
            continue
        for match in pattern.finditer(text):
            if check is None or check(match):
                start, stop = match.span("value" if "value" in pattern.groupindex else 0)
                yield Found(start, stop, kind, _compact(kind, text[start:stop]))
    for start, stop in urls.private_parts(text):
        yield Found(start, stop, "URL", text[start:stop])
    for start, stop in urls.logins(text):
        yield Found(start, stop, "PASSWORD", text[start:stop])
    if digits:
        yield from _ibans(text)
        yield from _numbers(text)
        for start, stop in national_phones(text):
            yield Found(start, stop, "PHONE", _compact("PHONE", text[start:stop]))


_SAME = {n: str(unicodedata.decimal(chr(n))) for n in range(128, sys.maxunicode + 1)
         if chr(n).isdecimal()}  # fmt: skip
_SAME |= {n: chr(n - 0xFEE0) for n in range(0xFF01, 0xFF5F)}
_SAME |= dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE58, 0xFE63], "-")
_SAME |= dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_OF_DIGITS = frozenset(["PHONE", "ID", "IP", "CRYPTO", "LOCATION", "ADDRESS"])
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")


def _compact(kind: str, value: str) -> str:
    """One spelling for all spellings of a value."""
    if kind in ("PHONE", "MAC", "ID"):
        value = re.sub(r"[\s().:/-]", "", value)
    return value if kind in ("KEY", "PASSWORD", "CRYPTO") else value.casefold()


# Numbers ------------------------------------------------------------------------------

_IBAN_HEAD = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=IBAN))[A-Za-z]{2}\d\d(?=[ .-]?[A-Za-z0-9])")
_GROUP = re.compile(r"\d+")
_BETWEEN = re.compile(r"[ .-]|[ -]{2,3}|[ \t]{0,2}\r?\n[ \t]{0,2}")
_MIXED = "?"  # groups of digits with several signs between them
_WORD = frozenset(string.ascii_letters + string.digits + "_")


def _ibans(text: str) -> Iterator[Found]:
    """IBANs in any grouping; the country tells where they end."""
    for head in _IBAN_HEAD.finditer(text):
        left = checksums.iban_length(head[0][:2].upper()) - 4
        value, place = head[0].upper(), head.end()
        while left > 0 and place < len(text):
            if text[place] in " .-" and place + 1 < len(text):
                place += 1
            if not (text[place].isascii() and text[place].isalnum()):
                break
            value, place, left = value + text[place].upper(), place + 1, left - 1
        ends = place == len(text) or not (text[place].isascii() and text[place].isalnum())
        if left == 0 and ends and checksums.iban(value):
            yield Found(head.start(), place, "IBAN", value)


def _numbers(text: str) -> Iterator[Found]:
    """Cards and identity numbers of digits alone, in one group or in several."""
    groups = [match.span() for match in _GROUP.finditer(text)]
    for first, (start, stop) in enumerate(groups):
        if start and (text[start - 1] in _WORD):
            continue
        digits, shape, gap = text[start:stop] if stop - start < 20 else "", [stop - start], ""
        lines = False  # a card is broken into two lines at most; more are a column of numbers
        for after in range(first, min(first + 8, len(groups))):
            if after > first:
                begin, end = groups[after]
                between = text[stop:begin]
                if not _BETWEEN.fullmatch(between) or (lines and "\n" in between):
                    break
                lines = lines or "\n" in between
                gap = between if gap in ("", between) else _MIXED
                digits, stop = digits + text[begin : min(end, begin + 20)], end
                shape.append(end - begin)
            if not digits or len(digits) > 19:
                break
            if stop < len(text) and (text[stop] in _WORD):
                continue
            if kind := _number_kind(digits, shape, gap):
                yield Found(start, stop, kind, digits)


def _number_kind(digits: str, shape: list[int], gap: str) -> str | None:
    size = len(digits)
    if 13 <= size <= 19 and (len(shape) == 1 or min(shape[:-1]) >= 3):
        return "CARD" if checksums.card(digits) else None
    if shape == [3, 2, 4] and gap in ("-", " "):
        return "ID" if checksums.us_ssn(digits) else None
    if shape == [3, 3, 4] and gap in ("-", " "):
        return "ID" if checksums.uk_nhs(digits) else None
    if gap in ("", " ", "-", ".") and (shape == [2, 3, 3, 3] or shape == [11]):
        fits = checksums.de_tax(digits) or (shape == [11] and checksums.pl_pesel(digits))
        return "ID" if fits else None
    return None
