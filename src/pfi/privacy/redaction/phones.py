"""National phone numbers that nothing announces, by the numbering plans in phonenumbers.

Alone the library is too slow with many countries (70,000 characters a second) and takes dates and
decimals for phones; so a pattern proposes what is grouped like one, and some plan has to confirm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from phonenumbers import Leniency, PhoneNumberMatcher

# Whose plans are asked, first the likelier ones; each costs time for every proposal.
REGIONS = ("US", "GB", "DE", "FR", "AU", "CN", "JP", "NO", "BR", "ES", "IN",
           "IT", "NL", "PL", "SE", "CH", "KR", "MX", "RU", "TR", "ZA")  # fmt: skip

# 7 to 14 digits in groups, beside no sign that makes them a term, a list or a part of a path.
_GROUPED = re.compile(
    r"(?<![\w+.,/#$€£%*^~-])(?<![\d,;\])] )(?=\(?\d{1,6}[ ()./-])"
    r"\(?\d(?:[ \-/().]{0,3}\d){6,13}(?!\w|[.,;:/*+%-]\d|[,;]? [\d(]|-)",
    re.ASCII,
)
# Dates, years, thousands, versions and internet addresses, fractions, and plain pairs.
_OTHER = re.compile(
    r"(?:19|20)\d\d([-/. ])\d\d?\1\d\d?[\d ]*|\d\d?([-/. ])\d\d?\2(?:19|20)\d\d[\d ]*"
    r"|[1-9]\d{0,2}(?:[ .]\d{3})+|\d{1,3}(?:\.\d{1,3}){3}|\d+ ?\.+ ?\d+|[1-9]\d*(?: +| ?[-/] ?)\d+"
    r"|\d+(?: {2,}\d+)+|\d+(?:/\d+){2,}",
    re.ASCII,
)


def national_phones(text: str) -> Iterator[tuple[int, int]]:
    """Spans of grouped numbers that are valid in one of `REGIONS`."""
    for match in _GROUPED.finditer(text):
        value = match[0]
        groups = re.findall(r"\d+", value)
        few = len(groups) < 2 or 2 * len(groups) > sum(map(len, groups))  # or a list of digits
        mixed = "." in value and re.search(r"[ ()/-]", value)  # decimals
        if not few and not mixed and not _OTHER.fullmatch(value) and _known(value):
            yield match.span()


def _known(value: str) -> bool:
    return any(
        PhoneNumberMatcher(value, region, Leniency.VALID, max_tries=1).has_next()
        for region in REGIONS
    )
