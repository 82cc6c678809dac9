"""Words: BM25 scores of a query's words by SQLite's FTS5.

Scripts that put no spaces between words (Han, kana, Thai, Khmer, ...), and Korean, whose words
carry their particles, are cut into pairs of characters that overlap, as Lucene's CJK analyser does.

A query's score is the sum of its words' scores.  So in a large index each word is looked up once
and kept: the words that occur everywhere cost most, and come again in every query.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pfi._util.sqlite import sqlite3
from pfi.errors import StorageError

_SIGNS, _PLANE = ("Mn", "Mc"), 0x10000
#: Characters of which two are a word: Thai, Lao, Myanmar, Khmer, kana, Han, Hangul.
_DENSE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
#: Longer queries cost time and bring little; the first words are used.
MAX_QUERY_WORDS = 256
#: Scores that are kept for each record; each takes 16 bytes.
KEPT = 64
#: Records for which asking for all words at once is faster than word by word.
SMALL = 200
#: An index without a copy of the texts; it is searched by stems.
COLUMNS = (
    "text, content='', tokenize=\"porter unicode61 categories 'L* N* Co Mn Mc'\""  # signs of vowels
)


def words(text: str) -> list[str]:
    """The different words of a text in small letters, in the order of their first occurrence."""
    return list(dict.fromkeys(piece for word in _words(text.lower()) for piece in _cut(word)))


def is_dense(word: str) -> bool:
    """Whether a word is characters of a script that is cut into pairs."""
    return _DENSE.match(word) is not None


def _words(text: str) -> list[str]:
    return _word_pattern().findall(text)


@cache
def _word_pattern() -> re.Pattern[str]:
    """Letters, numbers and the signs between them: ``\\w`` lacks the vowels of Hindi or Thai."""
    signs = [code for code in range(0x300, _PLANE) if unicodedata.category(chr(code)) in _SIGNS]
    begins = [code for code, before in zip(signs, [0, *signs], strict=False) if code - before > 1]
    ends = [code for code, after in zip(signs, [*signs[1:], _PLANE], strict=True)
            if after - code > 1]  # fmt: skip
    ranges = "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(begins, ends, strict=True))
    return re.compile(rf"[\w{ranges}]+")


def _cut(word: str) -> Iterator[str]:
    """A word, what of it has no spaces in pairs of characters."""
    end = 0
    for run in _DENSE.finditer(word):
        if word[end : run.start()]:
            yield word[end : run.start()]
        end = run.end()
        pairs = range(max(1, len(run[0]) - 1))
        yield from (run[0][at : at + 2] for at in pairs)
    if word[end:]:
        yield word[end:]


def indexed(text: str) -> str:
    """A text as it is given to an index: with spaces between what is searched."""
    return _DENSE.sub(lambda run: f" {' '.join(_cut(run[0]))} ", text)


def create_index(db: sqlite3.Connection, table: str) -> None:
    """Make an empty FTS5 table.

    Raises:
        StorageError: this Python's SQLite was built without FTS5.
    """
    try:
        db.execute(f"CREATE VIRTUAL TABLE {table} USING fts5({COLUMNS})")
    except sqlite3.OperationalError as error:
        if "fts5" not in str(error):
            raise
        fix = "use a Python whose SQLite includes FTS5 (python.org builds do)"
        raise StorageError("memory needs SQLite's FTS5", fix=fix) from error


def add_texts(db: sqlite3.Connection, table: str, rows: Iterable[tuple[int, str]]) -> None:
    """Put texts into an FTS5 table, each under its row's number."""
    db.executemany(f"INSERT INTO {table}(rowid, text) VALUES (?, ?)", _cut_rows(rows))


def remove_texts(db: sqlite3.Connection, table: str, rows: Iterable[tuple[int, str]]) -> None:
    """Take texts out of an FTS5 table again."""
    delete = f"INSERT INTO {table}({table}, rowid, text) VALUES ('delete', ?, ?)"
    db.executemany(delete, _cut_rows(rows))


def _cut_rows(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((row, indexed(text)) for row, text in rows)


class WordIndex:
    """The words of records, by position; it may be used by several threads.

    Args:
        db: holds the FTS5 table; nothing may change there while this is used.
        table: its name.
        rows: the number of each position's row, -1 for a position that has none.
        lock: held while the database is used.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        table: str,
        rows: Sequence[int],
        lock: threading.RLock | None = None,
    ) -> None:
        self._db, self._table = db, table
        self._lock = lock or threading.RLock()
        numbers = np.array(rows, dtype=np.int64)
        self._places = np.argsort(numbers, kind="stable")
        self._numbers = numbers[self._places]
        self._kept: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        self._size = 0

    @classmethod
    def of(cls, texts: Mapping[int, str], size: int) -> WordIndex:
        """An index in memory over the texts of some of ``size`` positions.

        Raises:
            StorageError: this Python's SQLite was built without FTS5.
        """
        db = sqlite3.connect(":memory:", check_same_thread=False)
        create_index(db, "documents")
        add_texts(db, "documents", texts.items())
        return cls(db, "documents", range(size))

    def scores(self, query: str) -> NDArray[np.float64]:
        """The BM25 score of each position, (n,); 0 where no word fits.

        They are bit by bit what FTS5 gives for the words joined by OR, with the sign turned.
        """
        total = np.zeros(len(self._numbers))
        asked = words(query)[:MAX_QUERY_WORDS]
        with self._lock:
            if len(total) <= SMALL and asked:
                places, scores = self._match(" OR ".join(map(_quoted, asked)))
                total[places] = scores
                return total
            for word in asked:
                found = self._kept.pop(word, None)
                if found is None:
                    found = self._match(_quoted(word))
                    self._size += len(found[0])
                self._kept[word] = found  # the word used last comes last
                while self._size > KEPT * len(total) and len(self._kept) > 1:
                    self._size -= len(self._kept.pop(next(iter(self._kept)))[0])
                total[found[0]] += found[1]
        return total

    def holding(self, word: str) -> NDArray[np.int64]:
        """The positions of the records that hold a word, in any of its forms."""
        with self._lock:
            return self._match(_quoted(word))[0]

    def _match(self, expression: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The positions that fit, and their scores."""
        rows = self._db.execute(
            f"SELECT rowid, -rank FROM {self._table} WHERE {self._table} MATCH ?", (expression,)
        ).fetchall()
        found = np.array([row for row, _ in rows], dtype=np.int64)
        scores = np.array([score for _, score in rows], dtype=np.float64)
        at = np.searchsorted(self._numbers, found)
        at[at == len(self._numbers)] = 0
        known = self._numbers[at] == found  # others came later than this index
        return self._places[at[known]], scores[known]


def _quoted(word: str) -> str:
    return f'"{word}"'
