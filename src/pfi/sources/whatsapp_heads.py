"""Where a message begins in an exported WhatsApp chat: a date and a time, written as a phone does.

Phones write them in the form of their region: in brackets, before a dash or before a colon, date or
time first, in digits of any script, with words for the part of the day and marks for the direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pfi.readers.locales import ascii_digits, date_literals, is_clock_word, plain_word, settle

__all__ = ["Form", "Head", "Stamp", "begins_with_date", "head_of", "plain"]

#: Longest beginning of a line that may be a head, in characters.
HEAD_LIMIT = 110

#: Marks of direction and the like, which are invisible.
INVISIBLE = (
    "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2066\u2067\u2068\u2069\ufeff"
)
_SAME = str.maketrans(
    {**dict.fromkeys("\u00a0\u202f\u2009\u3000\t", " "), "،": ",", "，": ",", "、": ",", "：": ":",
     "／": "/", "．": ".", "﹣": "-", "−": "-", "‑": "-", "٫": ":", "–": "-", "—": "-"}
)  # fmt: skip
_OPEN, _CLOSE = r"[\[(【（〔［「]", r"[\])】）〕］」]"
_WORDS = r"[^\d\[\]:<>\"“”/]{0,40}?"
_ERA = r"[^\W\d_]{0,7}[. ]{0,2}?"
_SEP = r" ?(?:[./\-年년] ?)"
_SEP2 = r" ?(?:[./\-月월] ?)"
_NUMERIC = (
    rf"(?P<e1>{_ERA})(?P<n1>\d{{1,4}})(?P<sep>{_SEP})(?P<n2>\d{{1,2}}){_SEP2}"
    rf"(?P<e3>{_ERA})(?P<n3>\d{{1,4}})(?:[.日일])?"
)
_CLOCK = (
    r"(?P<hour>\d{1,2})(?: ?[:.h時时点點시] ?)(?P<minute>\d{2})[分분]?"
    r"(?: ?[:.] ?(?P<second>\d{2})|(?<=[分분]) ?(?P<second2>\d{1,2})[秒초])?(?:[.,]\d{1,3})?"
)
_DATE_FIRST = re.compile(
    rf"{_NUMERIC}(?=[ ,]|[^\W\d_])(?P<before>{_WORDS}){_CLOCK}(?P<after>{_WORDS})"
)
_TIME_FIRST = re.compile(
    rf"(?P<before>{_WORDS}){_CLOCK}(?P<after>{_WORDS})[ ,] ?{_NUMERIC}(?P<e4> ?[^\W\d_]{{1,4}})?"
)
_MONTH = r"(?P<date>[^:\[\]]{5,40}?)"
_WORD_DATE_FIRST = re.compile(rf"{_MONTH}(?:, ?| ){_CLOCK}(?: ?(?P<after>{_WORDS}))")
_WORD_TIME_FIRST = re.compile(rf"{_CLOCK}(?: ?(?P<after>{_WORDS})),? {_MONTH}")
_BRACKET = re.compile(rf"{_OPEN} ?(?P<stamp>[^\[\]]{{8,70}}?) ?{_CLOSE} ?-? ?")
_DASH = re.compile(r"(?P<stamp>[^\[\]]{8,80}?) - ")
_COLON = re.compile(r"(?P<stamp>[^\[\]]{10,60}?): ")
#: Names of eras, which stand beside a year; in the form of `plain_word`.
_ERAS = frozenset(["be", "พศ", "ah", "ه", "ap", "هش", "ad", "ce", "ac", "dc", "roc", "minguo"])
_CLOCK_ANYWHERE = re.compile(r"\d ?[:.h時时点點시] ?\d\d")


#: What stands where a head would, by its kind: many digits, and then a name.
_DAMAGED = {
    "bracket": re.compile(
        rf"\W?{_OPEN}(?:[^\[\]\d]*\d){{4}}[^\[\]]*{_CLOSE} ?[^:\n]{{1,80}}:(?: |$)"
    ),
    "dash": re.compile(r"\W?(?=\w)(?:[^\d\n]{0,12}\d){6}[^\n]{0,40}? - [^:\n]{1,80}:(?: |$)"),
    "colon": re.compile(r"\W?(?=\w)(?:[^\d\n]{0,12}\d){6}[^\n]{0,40}?: [^:\n]{1,80}:(?: |$)"),
}


class Form(NamedTuple):
    """How a chat writes its heads: one export writes all in one form."""

    kind: str  # bracket, dash or colon
    separator: str  # between the numbers of a date; a word stands for the name of a month
    date_first: bool


class Stamp(NamedTuple):
    """A date and time as written; which number is the day is not known yet.

    Attributes:
        numbers: of the date; the month is 0 where it is a word; 0 for a year that is not written.
        digits: with how many digits each is written.
        era: a word beside the year.
        month: the word that names it.
        words: what stands beside the clock.
    """

    numbers: tuple[int, int, int]
    digits: tuple[int, int, int]
    hour: int
    minute: int
    second: int
    era: str = ""
    month: str = ""
    words: tuple[str, ...] = ()


class Head(NamedTuple):
    """The beginning of a message: its form, its time, and where its rest begins in the line."""

    form: Form
    stamp: Stamp
    end: int


#: The commonest heads, which need no closer look.
_COMMON = re.compile(
    r"(\[)?(\d{1,4})([./-])(\d{1,2})\3(\d{1,4}),? (\d{1,2})[:.](\d\d)(?:[:.](\d\d))?"
    r"(?:[ \u202f\u00a0]([AaPp])[Mm])?(?(1)\] | - )"
)
_COMMON_FORMS = {
    (bracket, mark): Form("bracket" if bracket else "dash", mark, True)
    for bracket in ("[", None)
    for mark in "./-"
}
_HALVES = {"": (), "a": ("am",), "p": ("pm",)}


def plain(line: str) -> tuple[str, list[int] | None]:
    """The beginning of a line without marks, in ASCII digits and plain spaces; where each part was.

    The positions are None if nothing was taken out.
    """
    text = line[:HEAD_LIMIT]
    if text.isascii():
        return text, None
    kept = [at for at, char in enumerate(text) if char not in INVISIBLE]
    same = ascii_digits("".join(text[at] for at in kept).translate(_SAME))
    return same, kept


def head_of(line: str) -> Head | None:
    """The head that a line begins with, if it does."""
    if common := _COMMON.match(line):
        return _common_head(common)
    text, places = plain(line)
    if not _CLOCK_ANYWHERE.search(text):
        return None
    for kind, pattern in (("bracket", _BRACKET), ("dash", _DASH), ("colon", _COLON)):
        match = pattern.match(text)
        if match is not None and (read := _stamp(match["stamp"])) is not None:
            end = match.end() if places is None else places[match.end() - 1] + 1
            form = Form(kind, read[1], read[2])
            return Head(form, read[0], end)
    return None


def _common_head(match: re.Match[str]) -> Head:
    bracket, first, mark, second, third, hour, minute, seconds, half = match.groups()
    stamp = Stamp(
        (int(first), int(second), int(third)),
        (len(first), len(second), len(third)),
        int(hour),
        int(minute),
        int(seconds or 0),
        words=_HALVES[(half or "").lower()],
    )
    return Head(_COMMON_FORMS[bracket, mark], stamp, match.end())


def _stamp(text: str) -> tuple[Stamp, str, bool] | None:
    """A stamp, the separator of its date, and whether the date is first; None if it is none."""
    text = text.strip()
    for pattern, date_first in ((_DATE_FIRST, True), (_TIME_FIRST, False)):
        match = pattern.fullmatch(text)
        if match is not None:
            groups = match.groupdict()
            before = [word for word in re.split(r"[ ,]+", groups["before"]) if word]
            era = (groups["e1"] or groups["e3"] or groups.get("e4") or "").strip()
            if not era and date_first and before and plain_word(before[0]) in _ERAS:
                era = before.pop(0)
            numbers = [match["n1"], match["n2"], match["n3"]]
            words = (" ".join(before), groups["after"])
            stamp = _clocked(match, numbers, words, era)
            if era:  # it says which of the numbers is the year as well as four digits do
                first = bool(groups["e1"].strip())
                stamp = stamp._replace(digits=(4 if first else 2, 2, 2 if first else 4))
            return stamp, match["sep"].strip(), date_first
    for pattern, date_first in ((_WORD_DATE_FIRST, True), (_WORD_TIME_FIRST, False)):
        match = pattern.fullmatch(text)
        if match is not None and (named := _named_month(match["date"])) is not None:
            after = match["after"] or ""
            return _clocked(match, named[0], [after], month=named[1]), "word", date_first
    return None


def _clocked(
    match: re.Match[str],
    numbers: Sequence[str],
    words: Iterable[str],
    era: str = "",
    month: str = "",
) -> Stamp:
    first, second, third = numbers
    plain_words = [plain_word(word) for word in words]
    return Stamp(
        (int(first or 0), int(second or 0), int(third or 0)),
        (len(first), len(second), len(third)),
        int(match["hour"]),
        int(match["minute"]),
        int(match["second"] or match["second2"] or 0),
        era,
        month,
        tuple(w for w in plain_words if is_clock_word(w) or (w and w not in date_literals())),
    )


def _named_month(text: str) -> tuple[tuple[str, str, str], str] | None:
    """Day, nothing and year of a date such as `28 Aug 2013`, and the month's word."""
    numbers = re.findall(r"\d+", text)
    words = [plain_word(word) for word in re.findall(r"[^\W\d_][^\d\s,]*", text)]
    named = settle("month", {word: 1 for word in words if word not in date_literals()})
    months = [word for word in words if word in named]
    years = [n for n in numbers if len(n) == 4]
    days = [n for n in numbers if len(n) <= 2]
    if len(months) != 1 or len(words) > 4 or len(years) > 1 or not 1 <= len(days) <= 2 - len(years):
        return None
    if years:
        return (days[0], "", years[0]), months[0]
    return (days[0], "", days[1] if len(days) > 1 else ""), months[0]


def begins_with_date(line: str, forms: Iterable[Form]) -> bool:
    """Whether a line begins as the heads of a chat do, whatever comes after."""
    text, _ = plain(line)
    for form in forms:
        start = rf"\W?{_OPEN}[^\w]?" if form.kind == "bracket" else r"\W?"
        clock = r"\d{1,2} ?[:.h] ?\d\d"
        mark = re.escape(form.separator)
        date = rf"{_ERA}\d{{1,4}} ?{mark} ?\d{{1,2}} ?(?:{mark}|[月월]) ?{_ERA}\d{{1,4}}"
        if form.separator == "word":
            date = rf"(?=[^:]{{0,40}}{clock})\w"
        elif not form.date_first:
            date = rf"{clock}[^\n]{{0,40}}?{date}"
        if re.match(start + date, text) or _DAMAGED[form.kind].match(text):
            return True
    return False
