"""What WhatsApp itself writes into a message: placeholders of media, deleted messages, calls.

Most is told by its form in any language: marks of direction before it, angle brackets, the name of
a file.  The rest is WhatsApp's own wording in some 60 languages (`whatsapp_notes.txt`: what it
stands for, a tab, the words; `*` is anything), as public parsers of such chats list and show it.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pfi.readers.values import Unusable
from pfi.sources.whatsapp_heads import INVISIBLE

__all__ = ["NOTE", "own_words"]

NOTE = "it is a note of WhatsApp, media or a call"
DELETED = "it was deleted"

_MARKS = "\u200e\u200f"
_MARK_TABLE = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"))
_INVISIBLE_TABLE = dict.fromkeys(map(ord, INVISIBLE))
_BRACKETED = re.compile(r"<[^<>\n]{3,80}>")
_ATTACHED = re.compile(r"\S[^\n]{0,200}\.(\w{2,5}) \([^()\n]{3,40}\)")
_EDITED = re.compile(r"\s*<[^<>\n]{5,60}>\s*$|[ \t]*[\u200e\u200f]<[^<>\n:]{5,60}>[ \t]*(?=\n|$)")
_ATTACHMENT = re.compile(r"<[^<>:\n]{2,40}: ?[^<>\n]+\.\w{1,5}>")
_TAIL = re.compile(r"[ \t]*[\u200e\u200f]+([^\u200e\u200f\n]*)$")
#: A document's name, alone or with the number of its pages.
_FILE_NAME = re.compile(r"[^\n/]{1,200}\.[A-Za-z][A-Za-z0-9]{1,4}(?: ?[•·].{0,30})?")
_DOCUMENTS = {
    "pdf", "doc", "docx", "odt", "rtf", "txt", "md", "csv", "tsv", "xls", "xlsx", "ods", "ppt",
    "pptx", "odp", "key", "pages", "numbers", "zip", "rar", "7z", "apk", "vcf", "ics", "epub",
    "html", "htm", "xml", "json", "jpg", "jpeg", "png", "gif", "webp", "heic", "mp3", "m4a",
    "opus", "ogg", "wav", "aac", "mp4", "mov", "3gp", "avi", "mkv", "dwg", "psd", "ai", "svg",
    "exe",
}  # fmt: skip
_PLACE = re.compile(
    r"[^\s:]{1,24}(?: [^\s:]{1,24})?: ?https?://(?:maps\.google\.[a-z.]+|(?:www\.)?google\.[a-z.]+/maps)/?\S*\s*"
    r"|(?:[^\n]*\n){0,3}[^\n]*https?://(?:www\.)?foursquare\.com/v/\S+\s*"
    r"|(?:[^\n]+\n){1,3}https?://maps\.google\.[a-z.]+/\?q=\S+\s*"
)
#: A poll: a word and a colon, the question, and choices with how many took each.
_POLL = re.compile(
    r"[^\n:]{2,24} ?:\n.+(?:\n[^\n:]{2,24} ?:[^\n]+\([^()\n]*\d[^()\n]*\))+\s*", re.S
)
#: A placeholder that is as short as this might be words of somebody's if nothing marks it.
_SHORT = 9


def own_words(text: str, marked: bool = False) -> str:
    """The words of a message that its author wrote.

    Args:
        text: what follows the author's name, with all marks.
        marked: whether a mark stands before the date, as before those with an attachment.

    Raises:
        Unusable: there are none: it is a placeholder, or was deleted.
    """
    if text.isascii() and "<" not in text and "\n" not in text and "(" not in text and not marked:
        return _unplaced(text.strip())
    first, newline, caption = text.partition("\n")
    bare = first.translate(_INVISIBLE_TABLE).strip()
    if _BRACKETED.fullmatch(bare) or _is_attached(bare) or _known(bare) == "media":
        if not newline or _is_file_name(caption):
            raise Unusable(NOTE)
        text = caption
    elif first.lstrip("\ufeff")[:1] in tuple(_MARKS):
        raise Unusable(DELETED if _known(bare) == "deleted" else NOTE)
    elif newline and first != first.translate(_MARK_TABLE):  # a caption goes on below the mark
        with suppress(Unusable):
            text = "\n".join((_without_tail(first, marked), caption))
    text = _without_tail(text, marked)
    text = _EDITED.sub("", text)
    return _unplaced(text.translate(_MARK_TABLE).strip())


def _unplaced(text: str) -> str:
    """The text, if it is no placeholder."""
    kind = _known(text)
    if kind == "deleted":
        raise Unusable(DELETED)
    if kind or ("://" in text and _PLACE.fullmatch(text)) or _is_poll(text):
        raise Unusable(NOTE)
    if not text:
        raise Unusable("it is empty")
    return text


def _without_tail(text: str, marked: bool) -> str:
    """A text without what WhatsApp wrote after it, such as `2 pages document omitted`."""
    cut = False
    while match := _TAIL.search(text):
        tail = match[1].strip()
        edited = _BRACKETED.fullmatch(tail) and not _ATTACHMENT.fullmatch(tail)
        if not (marked or cut or _BRACKETED.fullmatch(tail) or _known(tail)):
            break
        text, cut = text[: match.start()], cut or not edited
    if cut and (not text.strip() or _is_file_name(text)):
        raise Unusable(NOTE)
    return text


def _is_poll(text: str) -> bool:
    return text.partition("\n")[0].endswith(":") and _POLL.fullmatch(text) is not None


def _is_attached(line: str) -> bool:
    """Whether a line is a file's name with `(file attached)` in any language."""
    match = _ATTACHED.fullmatch(line)
    return match is not None and match[1].casefold() in _DOCUMENTS


def _is_file_name(text: str) -> bool:
    """Whether a text is only the name of a file."""
    name = text.translate(_INVISIBLE_TABLE).strip().rstrip("•· ")
    match = _FILE_NAME.fullmatch(name)
    return match is not None and (
        re.split(r"[•·]", name)[0].strip().rpartition(".")[2].casefold() in _DOCUMENTS
    )


def _plain(text: str) -> str:
    """A text in the form in which placeholders are compared."""
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE_TABLE))
    text = " ".join(text.casefold().split()).strip("<>")
    return re.sub(r"^[^\w]+|[\s.。।!,]+$", "", text)


class _Table(NamedTuple):
    """What the placeholders stand for, a pattern of those with a gap, the first word of each.

    `after_names` are the words that follow where a phrase begins with a name.
    """

    exact: dict[str, str]
    gaps: re.Pattern[str]
    beginnings: frozenset[str]
    after_names: frozenset[str]


@cache
def _table() -> _Table:
    path = Path(__file__).with_suffix(".txt")
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    exact = {_plain(words): kind for kind, words in rows if "*" not in words}
    gaps = [
        f"(?P<{kind}_{n}>{'[^,.:]{1,40}'.join(map(re.escape, words.casefold().split('*')))})"
        for n, (kind, words) in enumerate(rows)
        if "*" in words
    ]
    beginnings = frozenset(_plain(words).split(" ")[0].rstrip(".,") for _, words in rows)
    after_names = frozenset(words.split(" ")[1] for _, words in rows if words.startswith("* "))
    return _Table(exact, re.compile("|".join(gaps)), beginnings, after_names)


def _known(text: str) -> str:
    """What a placeholder stands for; empty if the text is none."""
    if not 2 < len(text) < 200 or "\n" in text:
        return ""
    table = _table()
    beginning = text.split(" ", 1)[0]
    named = table.after_names.intersection(text.split(" ")[1:5])
    if beginning.isalnum() and beginning.casefold() not in table.beginnings and not named:
        return ""
    words = _plain(text)
    kind = table.exact.get(words, "")
    if not kind and (match := table.gaps.fullmatch(words)):
        kind = str(match.lastgroup).partition("_")[0]
    unmarked = text[:1] not in tuple(_MARKS + "<") and words.isascii()
    return "" if kind == "media" and unmarked and len(words) < _SHORT else kind
