"""What the memory benchmark searches: texts, questions and their vectors, in a folder.

Texts are passages of a corpus in JSON lines, or made-up sentences of a Zipf vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfi._util.files import write_json
from pfi.memory.embedders import Embedder

PASSAGE_WORDS = 40
QUESTION_WORDS = 12
VOCABULARY = 20_000
#: Texts whose vectors are the sentence model's own; those of the others are made from them.
EMBEDDED = 10_000
#: Length of what is added to a vector of length 1 to make another one from it: cosine ~ 0.8.
NOISE = 0.75


def passages(corpus: Path, seed: int) -> list[str]:
    """Different passages of at most 40 words, in a random order.

    Args:
        corpus: a file or a folder of ``*.jsonl`` or ``*.jsonl.xz``, an object with ``text`` a line.
        seed: of the order.
    """
    files = sorted(corpus.glob("*.jsonl*")) if corpus.is_dir() else [corpus]
    found: dict[str, None] = {}
    for file in files:
        opened = lzma.open if file.suffix == ".xz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                words = json.loads(line)["text"].split()
                for start in range(0, len(words) - PASSAGE_WORDS // 4, PASSAGE_WORDS):
                    found[" ".join(words[start : start + PASSAGE_WORDS])] = None
    texts = list(found)
    random.Random(seed).shuffle(texts)
    return texts


def made_up(count: int, seed: int) -> list[str]:
    """Sentences of 5 to 40 words whose frequencies follow Zipf's law."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstv" for b in "aeiou"]
    names = ["".join(rng.choice(syllables, 2 + n % 3)) for n in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    lengths = rng.integers(5, PASSAGE_WORDS + 1, count)
    drawn = rng.choice(VOCABULARY, lengths.sum(), p=weights / weights.sum())
    parts = np.split(drawn, np.cumsum(lengths)[:-1])
    # The number makes every text a different one.
    return [" ".join([*(names[i] for i in part), str(n)]) for n, part in enumerate(parts)]


def embedded(texts: Sequence[str], embedder: Embedder, cache: Path) -> NDArray[np.float32]:
    """The texts' vectors, kept in ``cache``."""
    key = hashlib.sha256(json.dumps([embedder.name, *texts]).encode()).hexdigest()[:16]
    path = cache / f"{key}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        parts = [embedder.embed(texts[at : at + 500]) for at in range(0, len(texts), 500)]
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, np.concatenate(parts))
        partial.rename(path)
    return np.load(path)


def spread(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """``count`` vectors: those given, then ones near them in random directions."""
    if count <= len(vectors):
        return vectors[:count]
    rng = np.random.default_rng(seed)
    parts = [vectors]
    for start in range(len(vectors), count, len(vectors)):
        near = vectors[: count - start]
        noise = rng.standard_normal(near.shape, dtype=np.float32)
        near = near + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        parts.append(near / np.linalg.norm(near, axis=1, keepdims=True))
    return np.concatenate(parts)


def prepare(
    folder: Path,
    texts: Sequence[str],
    *,
    records: int,
    added: int,
    questions: int,
    embedder: Embedder,
    cache: Path,
    seed: int,
) -> None:
    """Write ``texts.json``, ``questions.json``, ``vectors.npy`` and ``questions.npy``.

    The first ``questions`` texts give the questions, by their first words, and are not searched;
    the next ``records`` are indexed, the ``added`` after them are added later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = records + added
    asked = [" ".join(text.split()[:QUESTION_WORDS]) for text in texts[:questions]]
    searched = list(texts[questions : questions + total])
    if len(searched) < total:
        raise SystemExit(f"the corpus has too few passages for {records} records")
    own = embedded(searched[: min(total, EMBEDDED)], embedder, cache)
    write_json(folder / "texts.json", searched)
    write_json(folder / "questions.json", asked)
    np.save(folder / "vectors.npy", spread(own, total, seed))
    np.save(folder / "questions.npy", embedded(asked, embedder, cache))


def exact(folder: Path, records: int, k: int, questions: int) -> Iterator[list[int]]:
    """The ``k`` records nearest to each question, by cosine in single precision, best first."""
    vectors = np.load(folder / "vectors.npy")[:records]
    for question in np.load(folder / "questions.npy")[:questions]:
        yield np.argsort(-(vectors @ question), kind="stable")[:k].tolist()
