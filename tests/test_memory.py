"""Memory: what is found, what must not be found, and training prompts that show no future."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.data.records import History, Record
from pfi.memory import Memory, Retrieval
from pfi.memory.index import MAX_QUERY_WORDS
from pfi.tasks import get_task

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
    examples = Retrieval(k, 1000, 1.0, words).examples(TASK, history, random.Random(0))
    assert [e.record_id for e in examples] == [r.id for r in history]
    for example in examples:
        *shown, asked = marks(example.prompt)
        assert asked == example.record_id
        day = days[int(asked)]
        assert all(days[int(n)] < day for n in shown)
        assert len(set(shown)) == len(shown) == min(k, sum(d < day for d in days))


def test_an_undated_history_shows_any_record_but_the_own() -> None:
    examples = Retrieval(9, 1000, 1.0, words).examples(TASK, unique([None] * 4), random.Random(0))
    for example in examples:
        *shown, asked = marks(example.prompt)
        assert asked == example.record_id
        assert sorted([*shown, asked]) == ["0", "1", "2", "3"]


def test_the_share_of_examples_with_records() -> None:
    history = unique(list(range(200)))
    plain = TASK.examples(history, random.Random(0))

    def made(k: int, share: float) -> list[int]:
        examples = Retrieval(k, 1000, share, words).examples(TASK, history, random.Random(0))
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
    retrieval = Retrieval(2, 1000, 1.0, words)
    examples = retrieval.examples(task, History("ann", papers), random.Random(0), pool)
    assert len(examples) == 6
    for example in examples:
        shown = marks(example.prompt)
        assert len(shown) == len(set(shown)) == 4  # two items, the own title, the right option


def test_a_question_is_filled_with_the_records_that_fit() -> None:
    history = History("ann", [record("1", "a ship", 1), record("2", "a dog", 2)])
    memory, fields = Memory(TASK, history), {"text": "the ship"}
    retrieval = Retrieval(1, 100, 0.5, words)
    prompt = TASK.prompt(fields)
    assert (
        retrieval.prompt(TASK, memory, prompt, fields) == f'4 is the score for "a ship" . {prompt}'
    )
    exclude = retrieval.prompt(TASK, memory, prompt, fields, exclude=["1"])
    assert exclude == f'4 is the score for "a dog" . {prompt}'
    assert retrieval.prompt(TASK, memory, prompt, fields, before=history[0].time) == prompt
