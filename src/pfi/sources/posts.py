"""One's own public posts as records of the task `continuation`.

What a post answers is in no archive, so a post stands alone.  A connector turns its archive into
`Post`s; this module decides what of them becomes a record: quotes, posts that are too short and
repetitions are left out, long ones are divided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.report import ImportReport
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.assistants import LEAST_WORDS, QUOTED, own_prose
from pfi.sources.connectors import Options
from pfi.sources.pasted import without_pasted

__all__ = ["POST_LIMIT", "Post", "PostOptions", "post_records", "without_leading_mentions"]

#: Characters of a post that are given as one record; a longer one is divided.
PIECE_LIMIT = 2000
#: Longest post that is read, in characters.
POST_LIMIT = 50_000

#: People as posts name them: `@sam`, `@sam.bsky.social`, `@sam@social.example`.
_MENTION = r"@[A-Za-z0-9_][A-Za-z0-9_.-]*(?:@[\w.-]+)?"
_LEADING = re.compile(rf"\A\s*\.?(?:{_MENTION}(?:[\s,:]+|\Z))+")
#: What is no word of one's own: addresses, names of people, tags.
_NO_WORD = re.compile(rf"(?:https?://|www\.)\S+|(?<!\w){_MENTION}|(?<!\w)#\w+", re.I)
#: A whole post in quotation marks, with whom it is from.
_QUOTATION = re.compile(
    r"\s*[“\"„«»「『][^“”\"„«»「」『』]{3,}[”\"“»«」』][.\s]*(?:[-–—―~]{1,3}\s*|\()"
    r"[^\n“\"„«「『]{2,80}\)?[\s.]*(?:(?:#|https?:)\S+\s*)*"
)
#: Paragraphs that are in quotation marks as a whole, with whom and what they are from.
_QUOTED = re.compile(
    r"(?:\A|(?<=\n))[ \t]*[“\"„«»「『][^“”\"„«»「」『』]{30,}[”\"“»«」』][.,]*"
    r"(?:[ \t]*(?:[-–—―~]{1,3}[ \t]*[^\s\"“][^\n\"“]{1,80}|\([^\n()]{2,80}\)"
    r"|(?:https?://|www\.)\S+|(?:by|via|de|von|par|per|di|van)[ :]*@\S+|[@#]\w\S*))*[ \t]*"
    r"(?:\n+[ \t]*[-–—―~]{1,3}[^\n]{2,80})?(?=\n|\Z)"
)
#: What stands for a quotation while the lines below it are looked at.
_GONE = "\0"
_OPENING, _CLOSING = '“"„«「『', '”"»」』'
_LINK = re.compile(r"\s*(?:(?:https?://|www\.)\S+\s*)+")
#: Words of the longest line that says where a quotation is from.
_SOURCE_WORDS = 15
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\s+")


class PostOptions(Options):
    """Options of the connectors for public posts."""

    replies: bool = Field(True, description="read your replies to others, too")


class Post(NamedTuple):
    """One post in this person's own words.

    Attributes:
        id: stable over exports, unique in its source.
        text: without what the program added.
        time: None if the archive tells none.
        reply: whether it answers somebody else.
    """

    id: str
    text: str
    time: datetime | None
    reply: bool = False


def without_leading_mentions(text: str) -> str:
    """A post without the names of those to whom it is said."""
    return _LEADING.sub("", text, count=1)


def post_records(
    posts: Iterable[Post], options: PostOptions, report: ImportReport, source: str
) -> Iterator[Record]:
    """The records of posts, in their order.

    Args:
        posts: of one archive; of several with one id the first is read.
        options: see `PostOptions`.
        report: told what is left out.
        source: where the records come from.
    """
    seen: set[str] = set()
    for post in posts:
        if post.id in seen:
            report.skip("it repeats a post", post.id)
            continue
        seen.add(post.id)
        if post.reply and not options.replies:
            report.skip("it is a reply", post.id)
            continue
        text = _own_words(post, report)
        if not text:
            continue
        if post.time is None:
            report.skip("it has no time", post.id)
            continue
        for number, piece in enumerate(_pieces(text), 1):
            id_ = post.id if number == 1 else f"{post.id}#{number}"
            try:
                record = Record(id_, "continuation", {}, piece, post.time, source=source)
            except DataError as error:
                report.skip(error.what, post.id)
                break
            report.read += 1
            yield record


def _own_words(post: Post, report: ImportReport) -> str:
    """What of a post can be learnt from; "" if that is nothing, which is counted."""
    if len(post.text) > POST_LIMIT:
        report.skip(f"it is longer than {POST_LIMIT} characters", post.id)
        return ""
    text = without_leading_mentions(post.text).strip()
    if not text:
        report.skip("it holds no words", post.id)
        return ""
    if _QUOTATION.fullmatch(text):
        report.skip("it is a quotation of somebody", post.id)
        return ""
    kept = without_pasted(own_prose(text, post.id, report))
    own = _without_quotations(kept)
    if own != kept:
        report.skip(QUOTED, post.id)
        kept = own
    if count_words(_NO_WORD.sub(" ", kept)) < LEAST_WORDS:
        report.skip(f"it has fewer than {LEAST_WORDS} words of yours", post.id)
        return ""
    return kept


def _without_quotations(text: str) -> str:
    """A post without paragraphs that are in quotation marks, and where they are from."""
    if not any(mark in text for mark in _OPENING):
        return text
    marked = _QUOTED.sub(_GONE, text.replace(_GONE, ""))
    kept: list[str] = []
    lines = marked.split("\n")
    below = False  # whether what stands above is a quotation
    for number, line in enumerate(lines):
        if not line.strip():
            kept.append("")
        elif line == _GONE or _is_unclosed(line):
            below = True
        elif below and _is_source(line, [other for other in lines[number + 1 :] if other.strip()]):
            below = False
        else:
            below = False
            kept.append(line)
    if len(kept) == len(lines):
        return text
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _is_unclosed(line: str) -> bool:
    """Whether a line opens a quotation that goes on in the next, which opens anew."""
    start = line.lstrip()[:1]
    if not start or start not in _OPENING or len(line) < 30:
        return False
    if start == '"':
        return line.count('"') % 2 == 1
    return line.count(start) > sum(line.count(mark) for mark in _CLOSING)


def _is_source(line: str, after: list[str]) -> bool:
    """Whether a line below a quotation names its author or page: no sentence, or a link next."""
    ends = line.rstrip().endswith((".", "!", "?", "…", "。", "！", "？", ":"))
    if ends or _LINK.fullmatch(line) or len(line.split()) > _SOURCE_WORDS:
        return False
    return not after or _LINK.fullmatch(after[0]) is not None


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most `PIECE_LIMIT` characters that each can be continued."""
    while len(text) > PIECE_LIMIT:
        head = text[:PIECE_LIMIT]
        end = max(head.rfind("\n"), 0)
        if end < PIECE_LIMIT // 2:
            end = max((match.end() for match in _SENTENCE.finditer(head)), default=0)
        end = end if end > 0 else PIECE_LIMIT
        if count_words(text[end:]) < LEAST_WORDS:
            break
        yield text[:end].rstrip()
        text = text[end:].lstrip()
    yield text
