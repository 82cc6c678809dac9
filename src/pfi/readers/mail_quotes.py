"""Where in a mail's lines another mail begins: below headers, titles and `somebody wrote:` lines.

All functions take lines as `mail_words.simple` gives them.  A line is judged by its shape (a date,
an address, a name, a colon at its end) and by the words of mail programs; so a language that is
not in the table costs little.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pfi.readers.mail_words import introduces, is_bold, is_framed, key, label, wrote

#: Lines that `On that day, somebody wrote:` takes at most, and its characters.
_ATTRIBUTION_LINES, _ATTRIBUTION_LENGTH = 4, 500
#: Of a line's end so many characters are looked at, so that long lines take no long time.
_TAIL = 300
#: Lines of one header, where many people are named.
_CONTINUED = 12

_QUOTED = re.compile(r"\s{0,3}(>|\|(?= ))")
_RULE = re.compile(r"\s*[-_*=\u2014\u2500]{2,}\s*$")
_ADDRESS = re.compile(r"[\w.+'-]+@[\w-]+(?:\.[\w-]+)+")
_DATE = re.compile(
    r"(?<![\d.])\d{1,4}\s?[./\-\u5e74\ub144]\s?\d{1,2}\s?[./\-\u6708\uc6d4]\s?\d{1,4}(?!\d)"
)
_YEAR = re.compile(r"(?<!\d)(?:1[34]|19|20|25)\d\d(?!\d)")
_DAY = re.compile(r"(?<!\d)(?:[12]\d|3[01]|0?[1-9])(?!\d)")
_TIME = re.compile(r"(?<!\d)(?:[01]?\d|2[0-4])\s?[:.hH\u6642\u65f6\u70b9]\s?[0-5]\d(?!\d)")
_END = re.compile(r":[\s*_>]*$")
_OPEN_ADDRESS = re.compile(r"<[^<>]*@[^<>\s]*\s*$")
_ZOHO = re.compile(r"\s*-{2,}.*-{2,}\s*$")
_SENTENCE = re.compile(r"(\w{4,}|[\u3040-\u9fff])[.!?\u3002]\s*$")
_BARE = re.compile(r"\W*\w{0,14}\W{0,3}\d.*<[^<>]+@[^<>]+>\W*$")


class Cut(NamedTuple):
    """Where another mail begins.

    Attributes:
        above: how many lines stand above it and what introduces it.
        below: the number of its first line.
        forwards: whether it is passed on.
    """

    above: int
    below: int
    forwards: bool


def is_quoted(line: str) -> bool:
    """Whether a line is marked as a quote."""
    return _QUOTED.match(line) is not None


def unquoted(line: str) -> str:
    """A quoted line without its mark."""
    return _QUOTED.sub("", line, count=1).removeprefix(" ")


def is_rule(line: str) -> bool:
    """Whether a line is a rule made of dashes, underscores or the like."""
    return _RULE.match(line) is not None


def is_broken_address(before: str, line: str) -> bool:
    """Whether a line begins with the `>` of an address that the line before begins."""
    return (
        line.startswith(">")
        and not is_quoted(before)
        and bool(_OPEN_ADDRESS.search(before[-_TAIL:]))
    )


def find_cut(lines: Sequence[str], people: Collection[str] = (), subject: str = "") -> Cut | None:
    """Where another mail begins that is not marked line by line; None if there is none.

    Args:
        lines: of the whole mail.
        people: keys of names and addresses of those whom the mail answers.
        subject: of the mail, without `Re:`.
    """
    for i, line in enumerate(lines):
        if not line.strip() or is_quoted(line):
            continue
        title = introduces(line)
        if title:
            block = _headers_from(lines, i + 1, people, subject, introduced=True) or i + 1
            return Cut(_above(lines, i), _past_headers(lines, block), title == "forwarded")
        if block := _headers_from(lines, i, people, subject, introduced=_introduced(lines, i)):
            return Cut(_above(lines, i), block, False)
        count = attribution(lines, i, people)
        if count and not _quote_follows(lines, i):
            return Cut(_above(lines, i + 1 - count, keep_rules=True), i + 1, False)
    return None


def _past_headers(lines: Sequence[str], i: int) -> int:
    while i < len(lines) and (not lines[i].strip() or _known(lines[i])):
        i += 1
    return i


def _above(lines: Sequence[str], end: int, *, keep_rules: bool = False) -> int:
    """How many lines stand above, without rules and titles that lead over."""
    while end and (not lines[end - 1].strip() or (not keep_rules and _leads_over(lines[end - 1]))):
        end -= 1
    return end


def _leads_over(line: str) -> bool:
    return is_rule(line) or bool(introduces(line)) or is_framed(line)


def _introduced(lines: Sequence[str], i: int) -> bool:
    """Whether a rule or a title between dashes stands above a line."""
    above = next((line for line in reversed(lines[max(0, i - 3) : i]) if line.strip()), "")
    return _leads_over(above)


def _headers_from(
    lines: Sequence[str], start: int, people: Collection[str], subject: str, *, introduced: bool
) -> int:
    """The number of the line below the block of headers that begins at `start`; 0: none does."""
    while introduced and start < len(lines) and not lines[start].strip():
        start += 1
    if start >= len(lines) or not label(lines[start]):
        return 0
    block, end = _block(lines, start)
    if not block or (not block[0].roles and any(header.roles for header in block)):
        return 0  # a line of one's own above the block, such as `Three things:`
    if not _is_header(block, people, subject, introduced=introduced):
        return 0
    return end


class _Header(NamedTuple):
    roles: frozenset[str]
    value: str
    bold: bool


def _block(lines: Sequence[str], start: int) -> tuple[list[_Header], int]:
    """Headers that follow each other, and the number of the line below them."""
    block: list[_Header] = []
    end = i = start
    while i < len(lines) and len(block) < 30:
        line = lines[i]
        header = label(line)
        if header and (header[0] or not _is_prose(line)):
            block.append(_Header(header[0], header[1][:1000], is_bold(line)))
            end = i = i + 1
        elif not line.strip() and i + 1 < len(lines) and _known(lines[i + 1]):
            i += 1  # HTML has each in a paragraph of its own
        elif block and line.strip() and (more := _continued(lines, i)):
            end = i = i + more
        else:
            break
    return block, end


def _known(line: str) -> bool:
    header = label(line)
    return bool(header and header[0])


def _is_prose(line: str) -> bool:
    return len(line) > 160 or _SENTENCE.search(line) is not None


def _continued(lines: Sequence[str], i: int) -> int:
    """How many lines a header goes on for: more people, and then the next header."""
    for count in range(1, _CONTINUED):
        if i + count >= len(lines):
            return 0
        if not lines[i + count].strip():
            return count if _known("".join(lines[i + count + 1 : i + count + 2])) else 0
        if _known(lines[i + count]):
            return count
    return 0


def _is_header(
    block: Sequence[_Header], people: Collection[str], subject: str, *, introduced: bool
) -> bool:
    roles = frozenset().union(*(header.roles for header in block))
    labels = [header for header in block if header.roles]
    addressed = any(_ADDRESS.search(header.value) for header in block)
    dated = any(_has_date(header.value) for header in block)
    timed = any(_has_date(header.value) and _has_time(header.value) for header in block)
    known = any(names(header.value, people) for header in block)
    same = bool(subject) and any(key(subject) in key(header.value) for header in block)
    if sum("raw" in header.roles for header in block) >= 3:
        return True
    if introduced and "from" in roles and (len(labels) >= 2 or addressed):
        return True
    if introduced and len(block) >= 3 and addressed + dated + same + known >= 2:
        return True
    sure = addressed or known or same or "subject" in roles or all(h.bold for h in block)
    if len(labels) >= 3 and roles & {"from", "date"} and len(roles - {"raw"}) >= 3:
        return sure or (timed and {"from", "to"} <= roles)
    if len(labels) >= 2 and "from" in roles and "date" in roles:
        return (addressed or known) and dated
    return len(block) >= 3 and same and addressed + dated + known >= 2


def names(text: str, people: Collection[str]) -> bool:
    """Whether a text names one of the people."""
    words = key(text)
    return any(person in words for person in people)


def attribution(lines: Sequence[str], i: int, people: Collection[str] = ()) -> int:
    """How many lines, the last of them `i`, say `On that day, somebody wrote:`; 0: none do."""
    if not _may_end(lines, i):
        return 0
    quoted_below = _quote_follows(lines, i)
    joined, best = "", 0
    for count in range(1, _ATTRIBUTION_LINES + 1):
        first = i - count + 1
        if first < 0 or not lines[first].strip() or (count > 1 and _stops(lines[first])):
            break
        joined = f"{lines[first].strip()} {joined}".strip()
        if len(joined) > _ATTRIBUTION_LENGTH:
            break
        alone = first == 0 or not lines[first - 1].strip()
        if not _balanced(joined) or not _complete(joined, people, quoted_below, alone):
            continue
        dated = _has_date(joined) or _has_time(joined)
        if dated or not best or (alone and re.search(r"\d", lines[first])):
            best = count
        if dated:
            return best + _opening(lines, first)
    return best or int(quoted_below and _says_something(lines[i], people))


def _says_something(line: str, people: Collection[str]) -> bool:
    """Whether a line above a quote names an address, a time or a person, or says `wrote`."""
    return bool(
        _ADDRESS.search(line) or _has_time(line) or _has_date(line) or wrote(line)
        or names(line, people)
    )  # fmt: skip


def _may_end(lines: Sequence[str], i: int) -> bool:
    line = lines[i]
    if is_quoted(line) or len(line) > _ATTRIBUTION_LENGTH:
        return False
    if _END.search(line) or _ZOHO.match(line):
        return True
    following = lines[i + 1] if i + 1 < len(lines) else ""
    if following.strip() and not is_quoted(following):
        return False
    return _BARE.match(line) is not None or wrote(line[-40:])


def _stops(line: str) -> bool:
    """Whether a line cannot be the beginning of what the next one ends."""
    return is_quoted(line) or _SENTENCE.search(line[-_TAIL:]) is not None


def _opening(lines: Sequence[str], first: int) -> int:
    """1 if the line before is the short beginning of the same paragraph, as `On Monday,`."""
    if first < 1 or not lines[first - 1].strip() or (first > 1 and lines[first - 2].strip()):
        return 0
    line = lines[first - 1].strip()
    return int(len(line) <= 30 and line.endswith(","))


def _balanced(text: str) -> bool:
    return text.count("<") == text.count(">") and text.count("(") == text.count(")")


def _complete(text: str, people: Collection[str], quoted_below: bool, alone: bool) -> bool:
    """Whether a text says when or who, as far as that is needed to be sure."""
    address, date = _ADDRESS.search(text) is not None, _has_date(text)
    time, verb = _has_time(text), wrote(text)
    named = address or names(text, people)
    if _ZOHO.match(text):
        return (date or time) and (named or verb)
    if not _END.search(text):
        if verb and address and date:
            return alone
        return alone and not quoted_below and date and _BARE.match(text) is not None
    if quoted_below:
        return named and verb if not (date or time) else named or verb
    if verb:
        return date or time or named
    return date and (address or (time and named))


def _has_date(text: str) -> bool:
    if _DATE.search(text):
        return True
    year = _YEAR.search(text)
    return bool(year and _DAY.search(text[: year.start()] + " " + text[year.end() :]))


def _has_time(text: str) -> bool:
    return _TIME.search(_DATE.sub(" ", text)) is not None


def _quote_follows(lines: Sequence[str], i: int) -> bool:
    for number in range(i + 1, len(lines)):
        if lines[number].strip():
            return is_quoted(lines[number])
    return False
