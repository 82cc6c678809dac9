"""Memory: what is found, what must not be found, and training prompts that show no future."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from word_prompter import WordPrompter

from pfi._util.sqlite import sqlite3
from pfi.errors import ConfigError
from pfi.memory.config import How, SearchConfig
from pfi.memory.embedders import HashEmbedder
from pfi.memory.index import MAX_QUERY_WORDS, Memory
from pfi.memory.prompts import Retrieval
from pfi.memory.ranking import fuse
from pfi.memory.vectors import VectorCache, mean_nearness
from pfi.memory.words import WordIndex
from pfi.records import History, Record
from pfi.tasks import get_task
from pfi.train.examples import record_examples

TASK = get_task("LaMP_3")
START = datetime(2024, 1, 1, tzinfo=UTC)


def words(text: str, tokens: int) -> str:
    """A trim whose tokens are words."""
    return " ".join(text.split()[:tokens])


def record(key: str, text: str, day: int | None = None) -> Record:
    time = None if day is None else START + timedelta(days=day)
    return Record(key, "LaMP_3", {"text": text}, "4", time)


def memory(*texts: str) -> Memory:
    return Memory(TASK, [record(str(n), text) for n, text in enumerate(texts)])


def ids(found: list[Record]) -> list[str]:
    return [r.id for r in found]


BOOKS = memory(
    "the garden of roses and the gardener",
    "a ship sails over the sea",
    "the running dog and the sea",
    "cooking with garlic",
)


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("ships at sea", "1"),
        ("SHIP", "1"),
        ("he runs", "2"),  # stems
        ("the garlic", "3"),  # the rare word decides
        ("rose, garden!", "0"),
    ],
)
def test_the_right_record_is_found(query: str, best: str) -> None:
    assert ids(BOOKS.search(query, 1)) == [best]


def test_the_latest_fill_up_and_the_order_is_best_first() -> None:
    assert ids(BOOKS.search("garlic", 3)) == ["3", "2", "1"]
    assert ids(BOOKS.search("ship and sea", 2)) == ["1", "2"]
    assert ids(BOOKS.search("nothing fits", 2)) == ["3", "2"]
    assert sorted(ids(BOOKS.search("sea", 99))) == ["0", "1", "2", "3"]
    assert ids(BOOKS.search("sea", 0)) == ids(BOOKS.search("sea", -1)) == []
    assert len(BOOKS) == 4


def test_an_empty_memory() -> None:
    assert memory().search("sea", 3) == []


@pytest.mark.parametrize(
    "query",
    [
        "", " ", "AND", "OR NOT", "NEAR(", "NEAR(sea ship, 2)", '"', '""sea', "'", "*", "sea*",
        "text:sea", "documents", "^sea", "-sea", "(", "sea)", "_", "sea_ship", "\x00", "\ud800 sea",
        "🙂", "ſ K İ ²", "; DROP TABLE documents", "sea " * 50_000, "x" * 1_000_000,
        " ".join(map(str, range(20_000))),
    ],
)  # fmt: skip
def test_no_query_raises(query: str) -> None:
    found = ids(BOOKS.search(query, 3))
    assert len(set(found)) == 3
    if re.search(r"\bsea\b", query):
        assert {"1", "2"} & {*found[:1]}


def test_only_the_first_words_of_a_huge_query_count() -> None:
    unknown = [f"w{n}" for n in range(MAX_QUERY_WORDS)]
    assert ids(BOOKS.search(" ".join([*unknown[1:], "ship"]), 1)) == ["1"]
    assert ids(BOOKS.search(" ".join([*unknown, "ship"]), 1)) == ["3"]


def test_operators_are_words() -> None:
    box = memory("salt and pepper", "near the sea", "salt only")
    assert ids(box.search("NEAR", 1)) == ["1"]
    assert ids(box.search("salt AND pepper", 1)) == ["0"]
    assert ids(box.search("salt NOT pepper", 1)) == ["0"]  # not the one without pepper


def test_odd_texts_can_be_remembered() -> None:
    box = memory("a\x00b garlic", '"quoted" OR', "🙂", "x" * 100_000)
    assert ids(box.search("quoted", 1)) == ["1"]


TEXTS = st.lists(st.sampled_from(["sea", "ship", "sea ship", "dog", "sea dog ship"]), max_size=8)


@settings(max_examples=120, deadline=None)
@given(TEXTS, st.data())
def test_before_and_exclude_are_respected(texts: list[str], data: st.DataObject) -> None:
    days = data.draw(st.lists(st.integers(0, 5), min_size=len(texts), max_size=len(texts)))
    made = [record(str(n), text, days[n]) for n, text in enumerate(texts)]
    history = History("ann", made)
    before = data.draw(st.none() | st.integers(0, 6).map(lambda d: START + timedelta(days=d)))
    exclude = data.draw(st.sets(st.sampled_from("01234567"), max_size=4))
    k = data.draw(st.integers(0, 9))
    query = data.draw(st.sampled_from(["sea", "ship dog", "", "cow"]))
    found = Memory(TASK, history).search(query, k, before=before, exclude=exclude)
    allowed = [
        r
        for r in history
        if r.id not in exclude and (before is None or r.time < before)  # type: ignore[operator]
    ]
    assert len(found) == len(set(ids(found))) == min(k, len(allowed))
    assert all(r in allowed for r in found)
    asked = {*query.split()}
    fits = [bool(asked & {*r.input["text"].split()}) for r in found]
    assert fits == sorted(fits, reverse=True)
    assert sum(fits) == min(k, sum(bool(asked & {*r.input["text"].split()}) for r in allowed))
    filled = ids(found)[sum(fits) :]
    order = [r.id for r in reversed(history) if r.id in filled]
    assert filled == order


# Training prompts -----------------------------------------------------------------------


PROMPTER: Any = WordPrompter()


def unique(days: list[int] | list[None]) -> History:
    """Records of which each holds a mark of its own."""
    made = [record(str(n), f"the book mark{n}x was good", day) for n, day in enumerate(days)]
    return History("ann", made)


def marks(prompt: str) -> list[str]:
    return re.findall(r"mark(\d+)x", prompt)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=9), st.integers(1, 4))
def test_examples_show_only_their_own_past(days: list[int], k: int) -> None:
    history = unique(days)
    examples = record_examples(Retrieval(k, 1000, PROMPTER, 1.0), TASK, history, random.Random(0))
    assert [e.record_id for e in examples] == [r.id for r in history]
    for example in examples:
        *shown, asked = marks(example.prompt)
        assert asked == example.record_id
        day = days[int(asked)]
        assert all(days[int(n)] < day for n in shown)
        assert len(set(shown)) == len(shown) == min(k, sum(d < day for d in days))


def test_an_undated_history_shows_any_record_but_the_own() -> None:
    examples = record_examples(
        Retrieval(9, 1000, PROMPTER, 1.0), TASK, unique([None] * 4), random.Random(0)
    )
    for example in examples:
        *shown, asked = marks(example.prompt)
        assert asked == example.record_id
        assert sorted([*shown, asked]) == ["0", "1", "2", "3"]


def test_the_share_of_examples_with_records() -> None:
    history = unique(list(range(200)))
    plain = TASK.examples(history, random.Random(0))

    def made(k: int, share: float) -> list[int]:
        examples = record_examples(
            Retrieval(k, 1000, PROMPTER, share), TASK, history, random.Random(0)
        )
        assert [(e.target, e.fields) for e in examples] == [(e.target, e.fields) for e in plain]
        return [len(marks(e.prompt)) - 1 for e in examples]

    assert set(made(2, 0)) == set(made(0, 1)) == {0}
    assert made(2, 1) == [0, 1] + [2] * 198
    half = made(2, 0.5)
    assert 70 < half.count(2) < 130
    assert made(2, 0.5) == half


def test_a_record_that_the_prompt_shows_is_not_retrieved_for_it() -> None:
    """The right option of LaMP_1 practice is an own paper; showing it would tell the answer."""
    task = get_task("LaMP_1")
    papers = [Record(str(n), "LaMP_1", {"title": f"paper mark{n}x"}, "") for n in range(6)]
    pool = [Record("q", "LaMP_1", {"title": "by another"}, "")]
    retrieval = Retrieval(2, 1000, PROMPTER, 1.0)
    examples = record_examples(retrieval, task, History("ann", papers), random.Random(0), pool)
    assert len(examples) == 6
    for example in examples:
        shown = marks(example.prompt)
        assert len(shown) == len(set(shown)) == 4  # two items, the own title, the right option


def test_a_question_is_filled_with_the_records_that_fit() -> None:
    history = History("ann", [record("1", "a ship", 1), record("2", "a dog", 2)])
    memory, fields = Memory(TASK, history), {"text": "the ship"}
    retrieval = Retrieval(1, 100, PROMPTER)
    prompt = TASK.prompt(fields)

    def filled(**how: Any) -> str:
        return retrieval.fill(TASK, prompt, retrieval.search(TASK, memory, fields, **how)).prompt

    assert filled() == f'4 is the score for "a ship" . {prompt}'
    assert filled(exclude=["1"]) == f'4 is the score for "a dog" . {prompt}'
    assert filled(before=history[0].time) == prompt


# By meaning, and by both ----------------------------------------------------------------


class Counting(HashEmbedder):
    """Remembers what it was asked for."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return super().embed(texts)


WORDS = ["sea", "ship", "ships", "dog", "the", "garden", "running", "x_y"]
SOME_TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), max_size=12)
QUERIES = st.lists(st.sampled_from([*WORDS, "cow", "run"]), max_size=6).map(" ".join)


@pytest.mark.parametrize("small", [0, 10**9])
@settings(max_examples=50, deadline=None)
@given(texts=SOME_TEXTS, query=QUERIES)
def test_words_score_bit_by_bit_as_fts5_does(
    small: int, texts: list[list[str]], query: str
) -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE plain USING fts5(text, tokenize='porter unicode61')")
    rows = [(place, " ".join(text)) for place, text in enumerate(texts)]
    db.executemany("INSERT INTO plain(rowid, text) VALUES (?, ?)", rows)
    asked = " OR ".join(f'"{word}"' for word in dict.fromkeys(query.split()))
    sql = "SELECT rowid, rank FROM plain WHERE plain MATCH ?"
    expected = {row: -rank for row, rank in db.execute(sql, (asked,))} if asked else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pfi.memory.words.SMALL", small)
        index = WordIndex.of(dict(rows), len(rows))
        for _ in range(2):  # the second time from what was kept
            scores = index.scores(query)
            assert {i: s for i, s in enumerate(scores) if s} == expected


def test_kept_scores_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfi.memory.words.SMALL", 0)
    monkeypatch.setattr("pfi.memory.words.KEPT", 1.5)
    index = WordIndex.of({n: f"sea w{n}" for n in range(4)}, 4)
    first = index.scores("sea w1 w2 w3 w0")
    assert [*index._kept] == ["w1", "w2", "w3", "w0"]
    assert index._size == 4
    assert (index.scores("sea w1 w2 w3 w0") == first).all()


def plain_cosines(embedder: HashEmbedder, query: str, texts: Sequence[str]) -> list[float]:
    vectors = embedder.embed([query, *texts]).astype(np.float16).astype(np.float64)
    return [round(float(min(v @ vectors[0], 1.0)), 4) for v in vectors[1:]]


MEANING = SearchConfig(how="dense")


@settings(max_examples=50, deadline=None)
@given(SOME_TEXTS, QUERIES.filter(bool), st.integers(0, 13))
def test_dense_search_is_by_cosine(texts: list[list[str]], query: str, k: int) -> None:
    embedder = HashEmbedder(64)
    made = [record(str(n), " ".join(text)) for n, text in enumerate(texts)]
    found = ids(Memory(TASK, made, embedder=embedder, config=MEANING).search(query, k))
    cosines = plain_cosines(embedder, query, [r.input["text"] for r in made])
    order = sorted(range(len(made)), key=lambda n: (-cosines[n], -n))
    assert found == [str(n) for n in order[:k]]


def test_hybrid_is_the_fusion_of_both_and_of_recency() -> None:
    texts = ["ship ship sea", "sea", "dog", "garden of the sea", "ship garden", "cow"]
    made, embedder = [record(str(n), text, n) for n, text in enumerate(texts)], HashEmbedder(64)
    query = "ship in the garden"

    def of(how: How, recency: float = 0.0) -> list[int]:
        config = SearchConfig(how=how, recency=recency, depth=3)
        found = Memory(TASK, made, embedder=embedder, config=config).search(query, 6)
        return [int(r.id) for r in found]

    by_words = of("bm25")[: sum(bool({*t.split()} & {*query.split()}) for t in texts)]
    by_meaning, by_time = of("dense"), of("recent")
    assert by_time == [5, 4, 3, 2, 1, 0]
    for recency in (0.0, 0.7, 5.0):
        fused = fuse([(1, by_words), (1, by_meaning), (recency, by_time)])
        assert of("hybrid", recency) == [place for place, _ in fused]
    assert of("hybrid", 100.0) == by_time != of("hybrid")
    assert of("bm25", 100.0) == by_time
    assert of("auto") == of("hybrid") != of("bm25")


def test_depth_bounds_what_is_fused() -> None:
    texts = ["sea"] * 9 + ["cow"]
    made = [record(str(n), text, n) for n, text in enumerate(texts)]
    # Three records are fused: the newest two of the fitting ones, and the newest one.
    shallow = Memory(TASK, made, config=SearchConfig(how="bm25", recency=0.5, depth=2))
    assert ids(shallow.search("sea", 2)) == ["8", "7"]
    deep = Memory(TASK, made, config=SearchConfig(how="bm25", recency=2, depth=2))
    assert ids(deep.search("sea", 2)) == ["8", "9"]


@pytest.mark.parametrize("embedder", [None, HashEmbedder(64)])
def test_diversity_puts_off_what_is_alike(embedder: HashEmbedder | None) -> None:
    texts = ["a ship on the sea", "the ship at sea now", "the ship at sea now", "the dog"]
    made = [record(str(n), text) for n, text in enumerate(texts)]
    query = "the ship at sea"

    def of(diversity: float) -> list[str]:
        config = SearchConfig(diversity=diversity)
        return ids(Memory(TASK, made, embedder=embedder, config=config).search(query, 2))

    assert of(0.0) == ["2", "1"]
    assert of(0.6)[0] == "2"
    assert of(0.6)[1] != "1"


def test_a_source_is_a_prefix() -> None:
    made = [
        Record(str(n), "LaMP_3", {"text": "sea"}, "4", source=source)
        for n, source in enumerate(["git:one", "git:two", "mail:one", ""])
    ]
    for embedder in (None, HashEmbedder()):
        box = Memory(TASK, made, embedder=embedder, config=SearchConfig())
        assert ids(box.search("sea", 4, source="git:")) == ["1", "0"]
        assert ids(box.search("sea", 4, source="mail:one")) == ["2"]
        assert ids(box.search("cow", 4, source="none")) == []
        assert ids(box.search("cow", 4, source="")) == ["3", "2", "1", "0"]


def test_meaning_needs_an_embedder() -> None:
    for how in ("dense", "hybrid"):
        with pytest.raises(ConfigError, match="sentence model"):
            Memory(TASK, [], config=SearchConfig(how=how))
        with pytest.raises(ConfigError, match="sentence model"):
            BOOKS.search("sea", 1, how=how)
    assert ids(BOOKS.search("garlic", 2, how="auto")) == ids(BOOKS.search("garlic", 2))
    assert ids(BOOKS.search("garlic", 2, how="recent")) == ["3", "2"]


def test_a_query_without_words_means_nothing() -> None:
    made = [record(str(n), text) for n, text in enumerate(["sea", "ship", "dog"])]
    for how in ("dense", "hybrid"):
        box = Memory(TASK, made, embedder=HashEmbedder(), config=SearchConfig(how=how))
        assert ids(box.search(" ", 2)) == ["2", "1"]


def test_the_budget_ends_the_list() -> None:
    box = memory("sea one two", "sea ship one two three", "dog")
    found = ["1", "0", "2"]
    for budget, length in [(9, 3), (8, 2), (7, 1), (5, 1), (4, 0), (0, 0)]:
        assert ids(box.search("sea ship", 3, budget=budget)) == found[:length]
    assert ids(box.search("sea ship", 3, budget=22, count=len)) == found[:1]
    assert ids(box.search("sea ship", 3, budget=33, count=len)) == found[:2]
    assert ids(box.search("sea ship", 3)) == found


def test_vectors_are_made_once_and_only_when_needed() -> None:
    embedder, cache = Counting(), VectorCache()
    made = [record(str(n), text) for n, text in enumerate(["sea", "ship", "sea"])]
    for _ in range(3):
        box = Memory(TASK, made, embedder=embedder, vectors=cache)
        box.search("dog", 2, how="bm25")
        assert len(cache) == len(embedder.asked)
        box.search("dog", 2, how="dense")
        box.similarity("dog")
    assert sorted(embedder.asked) == ["dog", "sea", "ship"]


def test_the_cache_is_bounded_and_tells_embedders_apart() -> None:
    cache, one, two = VectorCache(limit=2), Counting(64), Counting(128)
    first = cache.embed(one, ["a", "b"])
    cache.embed(one, ["a"])
    cache.embed(one, ["c"])  # b was asked for longest ago
    assert len(cache) == 2
    assert (cache.embed(one, ["a", "a", "b"]) == first[[0, 0, 1]]).all()
    assert one.asked == ["a", "b", "c", "b"]
    assert cache.embed(two, ["a"]).shape == (1, 128)
    assert cache.embed(one, []).shape == (0, 64)
    exact = one.embed(["x y z"]).astype(np.float16).astype(np.float32)
    assert (cache.embed(one, ["x y z"]) == exact).all()


@settings(max_examples=50, deadline=None)
@given(SOME_TEXTS, QUERIES, st.data())
def test_similarity_is_the_mean_of_the_five_nearest(
    texts: list[list[str]], query: str, data: st.DataObject
) -> None:
    embedder = HashEmbedder(64)
    made = [record(str(n), " ".join(text), n) for n, text in enumerate(texts)]
    exclude = data.draw(st.sets(st.sampled_from("0123"), max_size=2))
    days = data.draw(st.none() | st.integers(0, 12))
    before = None if days is None else START + timedelta(days=days)
    left = [
        r.input["text"]
        for n, r in enumerate(made)
        if r.id not in exclude and (days is None or n < days)
    ]
    box = Memory(TASK, made, embedder=embedder, config=SearchConfig())
    near = box.similarity(query, before=before, exclude=exclude)
    typical = box.typical(before=before, exclude=exclude)
    assert box.typical(before=before, exclude=exclude) == typical
    if len(left) < 2:
        assert near is typical is None
        return

    def mean(text: str, others: list[str]) -> float:
        nearest = sorted(plain_cosines(embedder, text, others))[-5:]
        return sum(nearest) / len(nearest)

    assert near == pytest.approx(mean(query, left), abs=1e-3)
    each = [mean(text, left[:n] + left[n + 1 :]) for n, text in enumerate(left)]
    assert typical == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_nothing_is_similar_without_an_embedder() -> None:
    assert BOOKS.similarity("sea") is BOOKS.typical() is None


def test_a_sample_stands_for_a_large_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((300, 16)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    everyone = np.ones(300, dtype=bool)
    whole = mean_nearness(matrix, everyone, 5)
    monkeypatch.setattr("pfi.memory.vectors.SAMPLE", 100)
    sampled = mean_nearness(matrix, everyone, 5)
    assert sampled != whole
    assert sampled == pytest.approx(whole, abs=0.02)


def test_one_memory_may_be_asked_by_several_threads() -> None:
    made = [record(str(n), f"sea w{n % 7} w{n % 11}") for n in range(300)]
    box = Memory(TASK, made, embedder=HashEmbedder(), config=SearchConfig())
    queries = [f"sea w{n}" for n in range(11)] * 4
    alone = Memory(TASK, made, embedder=HashEmbedder(), config=SearchConfig())
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda query: ids(box.search(query, 5)), queries))
    assert together == [ids(alone.search(query, 5)) for query in queries]
