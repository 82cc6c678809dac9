"""Vectors: what texts mean, kept in half precision, and the search for the nearest ones.

The search is exact.  Of very many vectors usearch's graph (HNSW, arXiv 1603.09320) finds the
candidates, where that package is installed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.memory.embedders import Embedder
from pfi.memory.ranking import best

#: As vectors are stored: little-endian whatever the machine.
STORED = np.dtype("<f2")
#: Exact search takes some 20 ms at this number of vectors of width 384.
GRAPH_FROM = 200_000
#: Searches after which the graph is made: it takes as long as thousands of exact ones.
PATIENCE = 20
#: Rows that stand for all of a large matrix where each would be compared with each.
SAMPLE = 1000
#: Cosines are rounded to this, so that equal texts score the same wherever they stand.
DECIMALS = 5


class VectorCache:
    """The vectors of texts that were embedded lately; it may be shared by memories and threads.

    Args:
        limit: texts that are remembered; each takes about 2 bytes for each place of its vector.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._vectors: OrderedDict[bytes, NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def embed(self, embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors in half precision, (n, width); only unknown ones are embedded."""
        keys = [_key(embedder, text) for text in texts]
        found: dict[bytes, NDArray[Any]] = {}
        with self._lock:
            for key in keys:
                if key in self._vectors:
                    self._vectors.move_to_end(key)
                    found[key] = self._vectors[key]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            made = embedder.embed(list(missing.values())).astype(STORED)
            # Copies: a row would keep the whole batch alive.
            found.update(zip(missing, map(np.copy, made), strict=True))
            with self._lock:
                self._vectors.update((key, found[key]) for key in missing)
                while len(self._vectors) > self.limit:
                    self._vectors.popitem(last=False)
        vectors = np.empty((len(texts), embedder.width), dtype=np.float32)
        for row, key in zip(vectors, keys, strict=True):
            row[:] = found[key]
        return vectors


def _key(embedder: Embedder, text: str) -> bytes:
    # A query may hold lone surrogates, which a record may not.
    content = f"{embedder.name}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


class Neighbours:
    """Search for the vectors that are nearest to one.

    The graph is made beside the searches, which are exact until it is there.

    Args:
        matrix: (n, width), rows of unit length.
        graph_from: from how many rows on a graph is made, if usearch is installed.

    Attributes:
        graph: usearch's index of the rows; None as long as there is none.
        making: the thread that makes it; None before it is started.
    """

    def __init__(self, matrix: NDArray[np.float32], graph_from: int = GRAPH_FROM) -> None:
        self.matrix = np.ascontiguousarray(matrix)
        self.graph: Any = None
        self.making: threading.Thread | None = None
        self._patience = PATIENCE if len(matrix) >= graph_from else -1

    def nearest(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
    ) -> tuple[list[int], NDArray[np.float64]]:
        """The ``k`` nearest rows, best first, and their cosines.

        Args:
            query: (width,), of unit length.
            k: how many at most.
            allowed: (n,), which rows may be found.
        """
        n = len(self.matrix)
        self._patience -= 1
        if self._patience == 0:
            self.making = threading.Thread(target=self._make_graph, daemon=True)
            self.making.start()
        wanted = min(k, int(np.count_nonzero(allowed)))
        if wanted <= 0:
            return [], np.zeros(0)
        asked = 2 * wanted + 16
        # Where few rows are allowed the graph would have to be walked through for them.
        while self.graph is not None and asked < n // 20:
            keys = np.unique(self.graph.search(query, asked).keys.astype(np.int64))
            keys = keys[allowed[keys]]
            if len(keys) >= wanted:
                return _choose(keys, self.matrix[keys] @ query, wanted)
            asked *= 4
        keys = np.flatnonzero(allowed)
        cosines = self.matrix @ query
        return _choose(keys, cosines if len(keys) == n else cosines[keys], wanted)

    def _make_graph(self) -> None:
        try:
            from usearch.index import Index
        except ImportError:
            return
        width = self.matrix.shape[1]
        graph = Index(ndim=width, metric="ip", dtype="f16", expansion_search=128)
        graph.add(np.arange(len(self.matrix)), self.matrix, threads=1)  # leaves the rest to others
        self.graph = graph


def mean_nearness(matrix: NDArray[np.float32], allowed: NDArray[np.bool_], k: int) -> float:
    """How near rows are to each other: mean cosine of a row to the ``k`` nearest others.

    The mean is over all rows, or ``SAMPLE`` of them, evenly spread; each is compared with all.

    Args:
        matrix: (n, width), rows of unit length.
        allowed: (n,), the rows concerned; at least two.
        k: how many, fewer where there are fewer.
    """
    rows = matrix[allowed]
    n = len(rows)
    k = min(k, n - 1)
    sample = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(np.int64))
    total = 0.0
    for part in np.array_split(sample, -(-len(sample) // 64)):  # memory stays bounded
        cosines = rows[part] @ rows.T
        cosines[np.arange(len(part)), part] = -2
        nearest = np.partition(cosines, n - k, axis=1)[:, n - k :]
        total += float(np.clip(nearest.astype(np.float64), -1, 1).sum()) / k
    return total / len(sample)


def _choose(
    keys: NDArray[np.int64], cosines: NDArray[Any], k: int
) -> tuple[list[int], NDArray[np.float64]]:
    # Clipped: half precision leaves lengths a little off 1.
    values: NDArray[np.float64] = cosines.astype(np.float64).clip(-1, 1).round(DECIMALS)
    at = best(values, k, np.ones(len(keys), dtype=bool))
    return keys[at].tolist(), values[at]
