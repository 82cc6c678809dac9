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

__all__ = ["Post", "PostOptions", "post_records", "without_leading_mentions"]

#: Characters of a post that are given as one record; a longer one is divided.
PIECE_LIMIT = 2000
#: Longest post that is read, in characters.
POST_LIMIT = 200_000

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
#: Paragraphs of a post that are in quotation marks as a whole, with whom they are from.
_QUOTED = re.compile(
    r"(?:\A|(?<=\n))[ \t]*[“\"„«»「『][^“”\"„«»「」『』]{30,}[”\"“»«」』][.,\s]*?"
    r"(?:[ \t]*\n+[ \t]*[-–—―~]{1,3}[^\n]{2,80})?(?=\n|\Z)"
)
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
    kept, quotes = _QUOTED.subn("", without_pasted(own_prose(text, post.id, report)))
    if quotes:
        report.skip(QUOTED, post.id)
        kept = re.sub(r"\n{3,}", "\n\n", kept).strip()
    if count_words(_NO_WORD.sub(" ", kept)) < LEAST_WORDS:
        report.skip(f"it has fewer than {LEAST_WORDS} words of yours", post.id)
        return ""
    return kept


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
