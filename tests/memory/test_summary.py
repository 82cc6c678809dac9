"""User summaries: what they count, how they fit their budget, and what they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Subject
from pfi.augment.generators.write import profile, summary_call
from pfi.memory.summary import common_words, summarise, summary_prompt
from pfi.records import History, Record
from pfi.tasks import get_task

START = datetime(2024, 1, 1, tzinfo=UTC)


def trim(text: str, tokens: int) -> str:
    """Words as tokens."""
    return text if len(text.split()) <= tokens else " ".join(text.split()[:tokens])


def records(task: str, outputs: Sequence[str], **fields: str) -> list[Record]:
    return [
        Record(f"r{i}", task, fields or {"text": "so it goes"}, output, START + timedelta(days=i))
        for i, output in enumerate(outputs)
    ]


def test_labels_are_counted_the_commonest_first_and_ties_as_the_task_lists_them() -> None:
    outputs = ["sports", "crime", "politics", "sports", "crime", "unheard of", "politics", "crime"]
    assert summarise(get_task("LaMP_2N"), records("LaMP_2N", outputs), trim) == (
        '"crime" (3), "sports" (2), "politics" (2) is the category of this user.'
    )


def test_scores_are_counted_and_averaged() -> None:
    history = records("LaMP_3", ["5", "5", "1", "5", "2"])
    assert summarise(get_task("LaMP_3"), history, trim) == (
        '"5" (3), "1" (1), "2" (1) is the score of this user, 3.6 on average.'
    )


def test_texts_give_the_words_that_most_of_them_share() -> None:
    titles = [
        "The budget of the city",
        "Budget again: a new BUDGET, a budget",
        "Why the harbour doesn't sleep",
        "A harbour in winter, and the budget",
    ]
    found = summarise(get_task("LaMP_6"), records("LaMP_6", titles), trim)
    # ``budget`` is in three titles and ``harbour`` in two, the others in one.
    assert found == ('"budget harbour city new sleep winter" is the kind of title of this user.')


def test_records_without_answers_tell_by_their_texts() -> None:
    history = records("LaMP_1", [""], title="Sparse attention", abstract="We study heads")
    assert summarise(get_task("LaMP_1"), history, trim) == (
        '"attention sparse" is the kind of title of this user.'
    )


def test_no_records_and_no_words_give_no_summary() -> None:
    for name in ("LaMP_1", "LaMP_2N", "LaMP_3", "LaMP_6", "LaMP_7"):
        assert summarise(get_task(name), [], trim) == ""
    assert summarise(get_task("LaMP_6"), records("LaMP_6", ["the of 2024", "12:30"]), trim) == ""


def test_the_rarest_are_left_out_where_the_budget_ends() -> None:
    task = get_task("LaMP_2N")
    history = records("LaMP_2N", ["crime"] * 3 + ["sports"] * 2 + ["travel"])
    for tokens, labels in ((12, 3), (11, 2), (10, 2), (9, 1), (8, 1), (7, 0)):
        found = summarise(task, history, trim, tokens)
        assert found.count("(") == labels, tokens
        assert len(found.split()) <= tokens
    assert summarise(task, history, trim, 10).startswith('"crime" (3), "sports" (2) is')


def test_only_the_records_given_are_told_of() -> None:
    """A history cut off before a question keeps the time order."""
    task = get_task("LaMP_2N")
    history = History("u", records("LaMP_2N", ["crime"] * 2 + ["travel"] * 5))
    found = summarise(task, history.before(START + timedelta(days=2)), trim)
    assert found == '"crime" (2) is the category of this user.'


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40), max_size=6), st.integers(0, 30), st.randoms())
def test_any_text_fits_the_budget_and_its_order_makes_no_difference(
    texts: list[str], tokens: int, rng: object
) -> None:
    task = get_task("LaMP_6")
    history = records("LaMP_6", texts)
    found = summarise(task, history, trim, tokens)
    assert len(found.split()) <= tokens
    rng.shuffle(history)  # type: ignore[attr-defined]
    assert summarise(task, history, trim, tokens) == found


def test_words_in_more_texts_come_before_words_that_one_text_repeats() -> None:
    assert common_words(["tea tea tea tea", "milk", "milk jam"]) == ["milk", "tea", "jam"]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("", "Ask?"),
        (" \n", "Ask?"),
        ("They like tea.", "They like tea. Ask?"),
        ("They like\n\ntea ", "They like tea. Ask?"),
    ],
)
def test_a_summary_comes_before_the_prompt(summary: str, expected: str) -> None:
    assert summary_prompt("Ask?", summary) == expected


def test_retrieved_records_find_their_place_before_the_summary_is_put_in() -> None:
    task = get_task("LaMP_1")
    fields = {"title": "Deep nets", "option_1": "one", "option_2": "two"}
    history = records("LaMP_1", [""], title="Sparse attention")
    prompt = task.retrieval_prompt(task.prompt(fields), history, trim, 64)
    found = summary_prompt(prompt, summarise(task, history, trim))
    assert found.endswith(prompt)
    assert 'with the title, and "Sparse attention" "Deep nets"' in found


def test_a_teacher_is_asked_for_a_summary_as_the_strategy_profile_asks() -> None:
    task, config = get_task("LaMP_6"), AugmentConfig(seed=3, records_per_call=2)
    history = History("u", records("LaMP_6", ["Tea", "Milk", "Jam", "Bread", "Salt"]))
    subject = Subject(task, history, (), trim, seed=5)
    call = summary_call(subject, config)
    assert next(profile(subject, config, 4)) == [call]
    assert call.material is not None and len(call.material.records) == 2
    assert "Describe the person" in call.messages[1].content
