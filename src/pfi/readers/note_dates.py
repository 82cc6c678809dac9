"""When a note was written: as its front matter says, its name, its title."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pfi.readers.dates import DateStyle, date_in_name, date_in_path, date_of
from pfi.readers.front_matter import Front, compact
from pfi.readers.values import FUTURE_SLACK

#: Longest title that is looked at for a date, in characters.
TITLE_LIMIT = 40

#: Words of keys that say when a note was begun, what day it is of, when it was published, and when
#: changed, in the order in which they are believed; of other languages what their users write.
_CREATED = """
created creation ctime createdat createdtime createdon erstellt angelegt creado creada creación créé
création creato criado criação aangemaakt skapad oprettet opprettet utworzono создано создан
作成 作成日 作成日時 创建 创建时间 创建日期 建立時間 生成日 생성 생성일 작성일 oluşturuldu
"""
_DAY = "date datetime day datum fecha data dato tarih дата 日付 日期 날짜 timestamp written"
_PUBLISHED = "published publish publishdate pubdate datepublished posted"
_CHANGED = """
updated update modified modification mtime lastmod edited changed geändert modificado modifié
modificato изменено 更新 更新日 修改 修改时间 수정일
"""
_RANKS = [frozenset(words.split()) for words in (_CREATED, _DAY, _PUBLISHED, _CHANGED)]
#: Keys with such words that are about something else.
_OTHER_WORDS = """
due deadline end start until birth birthday born died expires expiry review reviewed next scheduled
remind reminder read clipped saved accessed event release released format week
"""
_OTHERS = frozenset(_OTHER_WORDS.split())


def note_time(front: Front, parts: Sequence[str], title: str, style: DateStyle) -> datetime | None:
    """When a note was written, in UTC; None if it does not say, or says a time to come.

    What it says of its beginning and its day goes before its name and title, these before what it
    says of its last change.

    Args:
        front: what is said about the note.
        parts: its path within the folder of notes, the last without its suffix.
        title: without markup.
        style: of the folder's dates.
    """
    keys = _date_keys(front)
    for key in keys:
        if _rank(key) < len(_RANKS) - 1 and (time := _past(date_of(front[key], style))):
            return time
    named = date_in_name(parts[-1], style) or date_in_path(parts)
    if named is None and len(title) < TITLE_LIMIT and title != parts[-1]:
        named = date_in_name(title, style)
    if _past(named) is not None:
        return named
    return next((time for key in keys if (time := _past(date_of(front[key], style)))), None)


def date_values(front: Front) -> Iterator[str]:
    """What is written where a note says when it was written."""
    for key in _date_keys(front):
        value = front[key]
        yield from value if isinstance(value, list) else [value]


def _date_keys(front: Front) -> list[str]:
    """The keys that tell when a note was written, the most believed first."""
    ranked = [(rank, key) for key in front if (rank := _rank(key)) < len(_RANKS)]
    return [key for _, key in sorted(ranked, key=lambda pair: pair[0])]


def _rank(key: str) -> int:
    """How much a key's date is believed, 0 most; the number of ranks if it is none."""
    words = {compact(key), *re.split(r"[\W_]+", key)}
    words |= {compact(key).removeprefix("date"), compact(key).removesuffix("date")}
    if words & _OTHERS:
        return len(_RANKS)
    return next((n for n, names in enumerate(_RANKS) if words & names), len(_RANKS))


def _past(time: datetime | None) -> datetime | None:
    return time if time is None or time <= datetime.now(UTC) + FUTURE_SLACK else None
