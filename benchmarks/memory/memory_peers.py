"""What the memory benchmark compares: pfi's store and others, each in a process of its own.

A process is told over its standard input what to do next, so that all can be asked in turn and
what else the machine does falls on all of them: ``build``, ``open``, ``ask``, ``add``, ``delete``.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pfi.memory.config import SearchConfig
from pfi.memory.embedders import Embedder, find_embedder
from pfi.memory.store import MemoryStore
from pfi.memory.words import words
from pfi.records import History, Record
from pfi.tasks import get_task

K = 10
TASK = get_task("LaMP_3")
START = datetime(2000, 1, 1, tzinfo=UTC)


class Data:
    """Texts, questions and their vectors, as ``memory_data.prepare`` wrote them."""

    def __init__(self, folder: Path, records: int) -> None:
        self.texts: list[str] = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        self.questions: list[str] = json.loads(
            (folder / "questions.json").read_text(encoding="utf-8")
        )
        self.vectors: NDArray[np.float32] = np.load(folder / "vectors.npy")
        self.asked: NDArray[np.float32] = np.load(folder / "questions.npy")
        self.records = records
        self.added = range(records, len(self.texts))
        #: As many of the old ones, spread over the whole.
        self.deleted = [n * records // len(self.added) for n in range(len(self.added))]


class Peer(Protocol):
    """An index over the data, kept in a folder; ``fixed`` names changes that it cannot make."""

    def __init__(self, data: Data, folder: Path) -> None: ...

    def build(self) -> None:
        """Index the records and write the index."""

    def open(self) -> None:
        """Read the index from the folder."""

    def search(self, question: int) -> Sequence[int]:
        """The records most like a question, best first."""
        ...

    def add(self) -> None:
        """Add the later records and write the index."""

    def delete(self) -> None:
        """Take the records to be deleted out and write the index."""


class Known:
    """Vectors that are known beforehand; anything else goes to the sentence model."""

    def __init__(self, data: Data, embed_questions: bool) -> None:
        self.name, self.width = "known", data.vectors.shape[1]
        self._vectors = dict(zip(data.texts, data.vectors, strict=True))
        self._model: Embedder | None = None
        if embed_questions:
            self._model = find_embedder()
            if self._model is not None:
                self._model.embed(["loads the model"])
        else:
            self._vectors.update(zip(data.questions, data.asked, strict=True))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, (n, width)."""
        if self._model is not None and texts[0] not in self._vectors:
            return self._model.embed(texts)
        return np.stack([self._vectors[text] for text in texts])


class Pfi:
    """pfi's own store, searched as a device does."""

    how: Any = "dense"
    embed_questions = False
    #: Folder of the peer whose file is this one's too.
    twin: str | None = None

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.path = data, folder / "memory.db"
        self._known = Known(data, self.embed_questions) if self.how != "bm25" else None
        # Made here: a device has its records before it indexes them.
        self._later = self._history(range(len(data.texts)))
        self.history = self._later[: data.records]

    def _history(self, numbers: Iterable[int]) -> History:
        return History("0", [
            Record(str(n), TASK.name, {"text": self.data.texts[n]}, "4", START + timedelta(hours=n))
            for n in numbers
        ])  # fmt: skip

    def build(self) -> None:
        if self.twin is not None:
            shutil.copy(self.path.parent.parent / self.twin / self.path.name, self.path)
            return
        with MemoryStore(self.path, self._known) as store:
            store.sync({TASK.name: self.history})

    def open(self) -> None:
        self.store = MemoryStore(self.path, self._known)
        config = SearchConfig(how=self.how)
        self.memory = self.store.memory(TASK, self.history, config)

    def search(self, question: int) -> Sequence[int]:
        return [int(r.id) for r in self.memory.search(self.data.questions[question], K)]

    def add(self) -> None:
        self.store.sync({TASK.name: self._later})

    def delete(self) -> None:
        self.store.delete(map(str, self.data.deleted))


class PfiBm25(Pfi):
    how = "bm25"


class PfiHybrid(Pfi):
    how, twin = "hybrid", "pfi-dense"


class PfiDenseEmbedding(Pfi):
    embed_questions, twin = True, "pfi-dense"


class PfiHybridEmbedding(PfiHybrid):
    embed_questions = True


class Embedding:
    """The sentence model alone: what a question costs before anything is searched."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data = data

    def build(self) -> None: ...

    def open(self) -> None:
        found = find_embedder()
        if found is None:
            raise SystemExit("the sentence model's package is not installed")
        self.model = found
        self.model.embed(["loads the model"])

    def search(self, question: int) -> Sequence[int]:
        self.model.embed([self.data.questions[question]])
        return []

    def add(self) -> None:
        self.model.embed([self.data.texts[n] for n in self.data.added])

    def delete(self) -> None: ...


class Fts5:
    """A plain FTS5 table that holds the texts."""

    limit = K

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.path = data, folder / "fts5.db"

    def build(self) -> None:
        self.db = sqlite3.connect(self.path)
        self.db.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
        self._insert(range(self.data.records))
        self.db.close()

    def _insert(self, numbers: Iterable[int]) -> None:
        with self.db:
            rows = ((n, self.data.texts[n]) for n in numbers)
            self.db.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", rows)

    def open(self) -> None:
        self.db = sqlite3.connect(self.path)

    def search(self, question: int) -> Sequence[int]:
        expression = " OR ".join(f'"{word}"' for word in words(self.data.questions[question]))
        query = "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?"
        return [n for (n,) in self.db.execute(query, (expression, self.limit))]

    def add(self) -> None:
        self._insert(self.data.added)

    def delete(self) -> None:
        with self.db:
            rows = ((n,) for n in self.data.deleted)
            self.db.executemany("DELETE FROM texts WHERE rowid = ?", rows)


class Fts5Deep(Fts5):
    """Not timed: what hybrid search is checked against."""

    limit = 50


class Bm25s:
    """bm25s, which has to be built anew for every change."""

    fixed = ("add", "delete")

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.folder = data, folder / "index"

    def build(self) -> None:
        import bm25s

        texts = self.data.texts[: self.data.records]
        retriever = bm25s.BM25()
        tokens = bm25s.tokenize(texts, stopwords=None, show_progress=False)
        retriever.index(tokens, show_progress=False)
        retriever.save(str(self.folder))

    def open(self) -> None:
        import bm25s

        self.module, self.retriever = bm25s, bm25s.BM25.load(str(self.folder))

    def search(self, question: int) -> Sequence[int]:
        tokens = self.module.tokenize(
            [self.data.questions[question]], stopwords=None, show_progress=False
        )
        found, _ = self.retriever.retrieve(tokens, k=K, show_progress=False)
        found_numbers: list[int] = found[0].tolist()
        return found_numbers

    def add(self) -> None: ...

    def delete(self) -> None: ...


class Numpy:
    """Vectors in single precision in one file, all of them compared."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.path = data, folder / "vectors.npy"
        self.numbers = np.arange(data.records)

    def build(self) -> None:
        np.save(self.path, self.data.vectors[self.numbers])

    def open(self) -> None:
        self.matrix = np.load(self.path)

    def search(self, question: int) -> Sequence[int]:
        scores = self.matrix @ self.data.asked[question]
        best = np.argpartition(scores, -K)[-K:]
        return self.numbers[best[np.argsort(-scores[best])]].tolist()

    def add(self) -> None:
        self.numbers = np.append(self.numbers, self.data.added)
        self.matrix = np.concatenate([self.matrix, self.data.vectors[self.data.added]])
        np.save(self.path, self.matrix)

    def delete(self) -> None:
        keep = ~np.isin(self.numbers, self.data.deleted)
        self.numbers, self.matrix = self.numbers[keep], self.matrix[keep]
        np.save(self.path, self.matrix)


class Usearch:
    """usearch's HNSW in half precision, as pfi uses it for very many records."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.path = data, folder / "usearch.index"

    def build(self) -> None:
        from usearch.index import Index

        index = Index(
            ndim=self.data.vectors.shape[1],
            metric="ip",
            dtype="f16",
            connectivity=16,
            expansion_search=128,
        )
        index.add(np.arange(self.data.records), self.data.vectors[: self.data.records], threads=1)
        index.save(str(self.path))

    def open(self) -> None:
        from usearch.index import Index

        self.index = Index.restore(str(self.path))
        self.index.expansion_search = 128  # not kept in the file

    def search(self, question: int) -> Sequence[int]:
        return self.index.search(self.data.asked[question], K, threads=1).keys.tolist()

    def add(self) -> None:
        numbers = np.array(self.data.added)
        self.index.add(numbers, self.data.vectors[numbers], threads=1)
        self.index.save(str(self.path))

    def delete(self) -> None:
        self.index.remove(np.array(self.data.deleted))
        self.index.save(str(self.path))


class FaissFlat:
    """faiss, all vectors compared."""

    def __init__(self, data: Data, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        self.data, self.path = data, folder / "faiss.index"

    def _empty(self) -> Any:
        return self.faiss.IndexIDMap2(self.faiss.IndexFlatIP(self.data.vectors.shape[1]))

    def build(self) -> None:
        self.index = self._empty()
        self._insert(np.arange(self.data.records))

    def _insert(self, numbers: NDArray[np.int64]) -> None:
        self.index.add_with_ids(self.data.vectors[numbers], numbers)
        self.faiss.write_index(self.index, str(self.path))

    def open(self) -> None:
        self.index = self.faiss.read_index(str(self.path))

    def search(self, question: int) -> Sequence[int]:
        return self.index.search(self.data.asked[question][None], K)[1][0].tolist()

    def add(self) -> None:
        self._insert(np.array(self.data.added))

    def delete(self) -> None:
        self.index.remove_ids(np.array(self.data.deleted))
        self.faiss.write_index(self.index, str(self.path))


class FaissHnsw(FaissFlat):
    """faiss' HNSW, which cannot delete."""

    fixed = ("delete",)

    def _empty(self) -> Any:
        index = self.faiss.IndexHNSWFlat(
            self.data.vectors.shape[1], 32, self.faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efSearch = 64
        return self.faiss.IndexIDMap2(index)


PEERS: dict[str, Callable[[Data, Path], Peer]] = {
    "pfi bm25": PfiBm25,
    "FTS5": Fts5,
    "bm25s": Bm25s,
    "pfi dense": Pfi,
    "numpy, exact": Numpy,
    "faiss, flat": FaissFlat,
    "faiss, HNSW": FaissHnsw,
    "usearch, HNSW": Usearch,
    "pfi hybrid": PfiHybrid,
    "MiniLM alone": Embedding,
    "pfi dense, with MiniLM": PfiDenseEmbedding,
    "pfi hybrid, with MiniLM": PfiHybridEmbedding,
    "reference words": Fts5Deep,
}


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, and the seconds by the clock and of this process's CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    given = work()
    return given, time.perf_counter() - clock, time.process_time() - cpu


def serve(name: str, source: Path, folder: Path, records: int) -> None:
    """Do what standard input says, one command a line; answer each in JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # peers may print
    data = Data(source, records)
    folder.mkdir(parents=True)
    peer = PEERS[name](data, folder)
    for line in sys.stdin:
        command, *numbers = line.split()
        answer: dict[str, Any]
        if command == "ask":
            rows = [timed(lambda n=n: peer.search(n)) for n in range(*map(int, numbers))]
            found, clock, cpu = zip(*rows, strict=True)
            answer = {"found": found, "clock": clock, "cpu": cpu}
        elif command in getattr(peer, "fixed", ()):
            answer = {}
        else:
            _, clock, cpu = timed(getattr(peer, command))
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            answer = {"clock": clock, "cpu": cpu, "bytes": size}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
