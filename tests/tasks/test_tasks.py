"""Tasks: LaMP's own wording letter by letter, practices, and definitions that make no sense."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import ConfigError
from pfi.records import History, Question, Record
from pfi.tasks import Example, get_task, read_task, tasks
from pfi.tasks.practices import neutralise

REAL = Path(__file__).resolve().parents[3] / "shared/data/lamp"
LAMP = ["LaMP_1", "LaMP_2M", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"]

#: task -> (fields, prompt), worded as the benchmark words it
PROMPTS: dict[str, tuple[dict[str, str], str]] = {
    "LaMP_1": (
        {"title": "Own title", "option_1": "One", "option_2": "Two"},
        'For an author who has written the paper with the title "Own title", which reference is'
        " related? Just answer with [1] or [2] without explanation."
        ' [1]: "One" [2]: "Two"',
    ),
    "LaMP_2M": (
        {"description": "A plot."},
        "Which tag does this movie relate to among the following tags? Just answer with the tag "
        "name without further explanation. tags: [sci-fi, based on a book, comedy, action, twist "
        "ending, dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, "
        "social commentary, violence, true story] description: A plot.",
    ),
    "LaMP_2N": (
        {"text": "A piece."},
        "Which category does this article relate to among the following categories? Just answer "
        "with the category name without further explanation. categories: [travel, education, "
        "parents, style & beauty, entertainment, food & drink, science & technology, business, "
        "sports, healthy living, women, politics, crime, culture & arts, religion] "
        "article: A piece.",
    ),
    "LaMP_3": (
        {"text": "A book."},
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, "
        "3, 4, or 5 without further explanation. review: A book.",
    ),
    "LaMP_4": ({"text": "A piece."}, "Generate a headline for the following article: A piece."),
    "LaMP_5": (
        {"abstract": "We do."},
        "Generate a title for the following abstract of a paper: We do.",
    ),
    "LaMP_6": ({"text": "Dear all"}, "Generate a subject for the following email: Dear all"),
    "LaMP_7": (
        {"text": "a tweet."},
        "Paraphrase the following tweet without any explanation before or after it: a tweet.",
    ),
}

#: task -> (input and output of two records, what stands before the question)
ITEMS: dict[str, tuple[list[tuple[dict[str, str], str]], str]] = {
    "LaMP_2M": (
        [({"description": "D1"}, "comedy"), ({"description": "D2"}, "action")],
        'the tag for the movie: "D1" is "comedy" , and the tag for the movie: "D2" is "action" . ',
    ),
    "LaMP_2N": (
        [({"text": "A1", "title": "T1"}, "women"), ({"text": "A2", "title": "T2"}, "crime")],
        'the category for the article: "A1" is "women" , and '
        'the category for the article: "A2" is "crime" . ',
    ),
    "LaMP_3": (
        [({"text": "R1"}, "4"), ({"text": "R2"}, "1")],
        '4 is the score for "R1" , and 1 is the score for "R2" . ',
    ),
    "LaMP_4": (
        [({"text": "A1"}, "H1"), ({"text": "A2"}, "H2")],
        '"H1" is the title for "A1" , and "H2" is the title for "A2" . ',
    ),
    "LaMP_5": (
        [({"abstract": "A1"}, "T1"), ({"abstract": "A2"}, "T2")],
        '"T1" is a title for "A1" , and "T2" is a title for "A2" . Following the given patterns ',
    ),
    "LaMP_6": (
        [({"text": "M1"}, "S1"), ({"text": "M2"}, "S2")],
        '"S1" is the title for "M1" , and "S2" is the title for "M2" . ',
    ),
    "LaMP_7": (
        [({}, "T1"), ({}, "T2")],
        '"T1" , and "T2"  are written by a person. Following the given patterns ',
    ),
}


def words(text: str, tokens: int) -> str:
    """A trim whose tokens are words; what fits is left as it is."""
    found = text.split()
    return text if len(found) <= tokens else " ".join(found[:tokens])


def records(task: str, contents: list[tuple[dict[str, str], str]]) -> list[Record]:
    return [Record(f"r{n}", task, *content) for n, content in enumerate(contents)]


def papers(*titles: str, prefix: str = "p") -> list[Record]:
    return [Record(f"{prefix}{n}", "LaMP_1", {"title": t}, "") for n, t in enumerate(titles)]


def practise(task: str, made: list[Record], pool: list[Record], seed: int = 0) -> list[Example]:
    return get_task(task).examples(History("ann", made), random.Random(seed), pool)


# Prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAMP)
def test_prompts_are_the_benchmarks(name: str) -> None:
    fields, prompt = PROMPTS[name]
    assert get_task(name).prompt(fields) == prompt
    assert get_task(name).fields(prompt + " \n") == fields


@pytest.mark.parametrize("name", ITEMS)
def test_retrieval_prompts_are_the_benchmarks(name: str) -> None:
    contents, before = ITEMS[name]
    task, (_, prompt) = get_task(name), PROMPTS[name]
    assert task.retrieval_prompt(prompt, records(name, contents), words, 200) == before + prompt
    assert task.retrieval_prompt(prompt, [], words, 200) == prompt


def test_lamp_1_items_follow_the_first_word_title() -> None:
    task, (_, prompt) = get_task("LaMP_1"), PROMPTS["LaMP_1"]
    assert task.retrieval_prompt(prompt, papers("A", "B"), words, 200) == (
        'For an author who has written the paper with the title, and "A", and "B" "Own title", '
        "which reference is related? Just answer with [1] or [2] without explanation. "
        '[1]: "One" [2]: "Two"'
    )
    assert task.retrieval_prompt("no such word", papers("A"), words, 200) == "no such word"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(tasks())), st.data())
def test_fields_inverts_prompt(name: str, data: st.DataObject) -> None:
    task = get_task(name)
    names = task.fields(task.prompt({}))
    # Only LaMP_1 has text after a field; a quotation mark stands in each of its separators.
    text = st.text(st.characters(exclude_characters='"' if name == "LaMP_1" else ""), max_size=30)
    fields = {key: data.draw(text).rstrip() for key in names}
    assert task.fields(task.prompt(fields)) == fields


def test_a_prompt_of_another_wording_is_text() -> None:
    assert get_task("LaMP_4").fields("Tell me: more") == {"text": "Tell me: more"}


NASTY = "{labels} {items} {question} {text} {0} {} {{ }} \\1 \\g<0> %s"


@pytest.mark.parametrize("name", [*PROMPTS])
def test_braces_in_user_text_are_only_text(name: str) -> None:
    task, fields = get_task(name), PROMPTS[name][0]
    inputs, output = ITEMS[name][0][0] if name in ITEMS else ({"title": "A"}, "")

    def full(text: str) -> str:
        answer = text if name == "LaMP_7" else output
        record = Record("r", name, dict.fromkeys(inputs, text), answer)
        return task.retrieval_prompt(
            task.prompt(dict.fromkeys(fields, text)), [record], words, 1000
        )

    assert full(NASTY) == full("MARK").replace("MARK", NASTY)
    assert full(NASTY).count(NASTY) >= len(fields) + 1


def test_a_field_cannot_replace_the_list_of_labels() -> None:
    prompt = get_task("LaMP_2M").prompt({"description": "A plot.", "labels": "evil"})
    assert prompt == PROMPTS["LaMP_2M"][1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(tasks())),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4),
)
def test_items_are_trimmed_to_the_budget(name: str, sizes: list[tuple[int, int]]) -> None:
    task = get_task(name)
    made = []
    for n, (long, other) in enumerate(sizes):
        fields = dict.fromkeys({*task.inputs, task.item_trim} - {task.output}, "in " * long)
        made.append(Record(str(n), name, fields, "out " * other))
    full = task.retrieval_prompt("the title", made, words, 120)
    # Beyond the budget only: "and" before items, the prompt, the template's words around them.
    assert len(full.split()) <= 120 + len(sizes) + 12


def test_what_fits_the_budget_is_whole_and_the_budget_is_shared() -> None:
    task = get_task("LaMP_4")
    made = records("LaMP_4", [({"text": f"{n} " * 50}, "a b c") for n in "xyz"])
    full = task.retrieval_prompt("Q", made, words, 90)
    # A part is 30 tokens; the 8 fixed words count twice; 14 of the text are left.
    assert [full.count(n + " ") + full.count(n + '"') for n in "xyz"] == [14, 14, 14]
    assert task.retrieval_prompt("Q", made, words, 3 * 66).count("x") == 50


def test_an_item_whose_record_lacks_a_field_is_made_all_the_same() -> None:
    made = [Record("1", "LaMP_4", {"other": "x"}, "T")]
    full = get_task("LaMP_4").retrieval_prompt("Q", made, words, 90)
    assert full == '"T" is the title for "" . Q'


def test_what_is_searched() -> None:
    news = Record("1", "LaMP_2N", {"text": "the text", "title": "the title"}, "women")
    assert get_task("LaMP_2N").document_text(news) == "the title the text"
    assert get_task("LaMP_7").document_text(Record("1", "LaMP_7", {}, "a tweet")) == "a tweet"
    one = get_task("LaMP_1")
    assert one.query_text(PROMPTS["LaMP_1"][0]) == "One Two"
    assert one.query_text({"text": "all of it"}) == "all of it"


def test_a_question_as_an_example() -> None:
    fields, prompt = PROMPTS["LaMP_3"]
    question = Question("q", "ann", "LaMP_3", prompt, fields, None, "4")
    assert get_task("LaMP_3").example(question) == Example(prompt, "4", fields, "q")


# Practices ------------------------------------------------------------------------------


def test_direct_asks_the_fields_and_answers_the_output() -> None:
    made = records("LaMP_3", [({"text": "good book"}, "5"), ({"text": "bad book"}, "1")])
    examples = practise("LaMP_3", made, [])
    start = PROMPTS["LaMP_3"][1].removesuffix("A book.")
    assert [(e.prompt, e.target, e.record_id) for e in examples] == [
        (start + "good book", "5", "r0"),
        (start + "bad book", "1", "r1"),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("ABCDEFGH"), max_size=8),
    st.lists(st.sampled_from("EFGHIJKL"), max_size=6),
    st.integers(0, 99),
)
def test_citation_points_at_an_own_paper(own: list[str], pool: list[str], seed: int) -> None:
    others = [t for t in pool if t not in own]
    examples = practise("LaMP_1", papers(*own), papers(*pool, prefix="q"), seed)
    if len(set(own)) < 2 or not others:
        assert examples == []
        return
    assert [e.record_id for e in examples] == [f"p{n}" for n in range(len(own))]
    for title, example in zip(own, examples, strict=True):
        options = {"[1]": example.fields["option_1"], "[2]": example.fields["option_2"]}
        right = options.pop(example.target)
        (wrong,) = options.values()
        assert example.fields["title"] == title
        assert right in own and right != title
        assert wrong in others
        assert get_task("LaMP_1").fields(example.prompt) == example.fields


def test_citation_puts_the_right_answer_in_either_place() -> None:
    examples = practise("LaMP_1", papers(*map(str, range(60))), papers("x", prefix="q"))
    assert 15 < sum(e.target == "[1]" for e in examples) < 45


def test_citation_leaves_out_papers_without_a_title() -> None:
    made = [*papers("A", "B"), Record("x", "LaMP_1", {"abstract": "We do."}, "")]
    untitled = Record("y", "LaMP_1", {"abstract": "They do.", "title": ""}, "")
    examples = practise("LaMP_1", made, [untitled, *papers("C", prefix="q"), untitled])
    assert [e.record_id for e in examples] == ["p0", "p1"]
    assert all("C" in e.fields.values() for e in examples)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OMG!!! I can't waaaait 😀😀 :D http://t.co/x @bob", "i cannot waait."),
        ("I <3 u :)", "i you."),
        ("In 2000 I paid $10000, THX", "in 2000 i paid $10000, thanks."),
        ("Note:dinner at 8", "note dinner at 8."),
        ("She\u2019s sure it's 5<30", "she is sure it is 5 30."),
        ("😀 🎉", ""),
        ("...", ""),
    ],
)
def test_neutralise(text: str, expected: str) -> None:
    assert neutralise(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("aZ ':;)DpP!?.,@/#😀🎉3<üİ", max_size=40)))
def test_neutral_is_plain_and_lower_case(text: str) -> None:
    neutral = neutralise(text)
    assert neutral == neutral.lower() == " ".join(neutral.split())
    assert all(c.isalnum() or c in " _.,'$%&-" for c in neutral)
    assert neutral == "" or neutral.endswith(".")


def test_restore_gives_the_style_back() -> None:
    made = records("LaMP_7", [({}, "Wow, I LOVE this!!! 😀"), ({}, "😀")])
    (example,) = practise("LaMP_7", made, [])
    assert example.target == "Wow, I LOVE this!!! 😀"
    assert example.fields == {"text": "wow, i love this."}
    assert example.prompt.endswith("before or after it: wow, i love this.")
    assert example.record_id == "r0"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "bc", "d\ne", "", "\t"]), max_size=20).map(" ".join),
    st.integers(0, 9),
)
def test_continuation_halves_join_to_the_original(text: str, seed: int) -> None:
    if not text.strip():
        return
    made = practise("continuation", [Record("1", "continuation", {}, text)], [], seed)
    size = len(text.split(" "))
    if size < 6:
        assert made == []
    for example in made:
        start = example.fields["start"]
        assert f"{start} {example.target}" == text
        assert start.strip() and example.target.strip()
        assert size // 3 <= len(start.split(" ")) <= 2 * size // 3


@pytest.mark.parametrize("text", ["a b c d e f" + " " * 40, " " * 40 + "a b c d e f"])
def test_no_half_of_a_continuation_is_blank(text: str) -> None:
    for seed in range(20):
        assert practise("continuation", [Record("1", "continuation", {}, text)], [], seed) == []


def test_every_usable_text_is_continued() -> None:
    made = practise("continuation", [Record("1", "continuation", {}, "a b c d e f")], [])
    assert [example.record_id for example in made] == ["1"]


@pytest.mark.parametrize("name", ["LaMP_1", "continuation"])
def test_examples_depend_on_the_seed_alone(name: str) -> None:
    text = " ".join(map(str, range(90)))
    made = [Record(str(n), name, {"title": f"t{n}"}, text) for n in range(10)]
    pool = papers("x", "y", "z", prefix="q")
    assert practise(name, made, pool, 1) == practise(name, made, pool, 1)
    assert practise(name, made, pool, 1) != practise(name, made, pool, 2)


# Definitions ----------------------------------------------------------------------------

GOOD = {
    "name": "mine",
    "title": "Mine",
    "kind": "choice",
    "question": "Which of [{labels}]? {text}",
    "inputs": ["text"],
    "output": "label",
    "labels": ["a", "b"],
    "item": '"{text}" is {label}',
    "item_trim": "text",
    "query": ["text"],
    "document": ["text"],
    "metrics": ["accuracy"],
}


def save(folder: Path, content: Mapping[str, Any] | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_definition_of_ones_own(tmp_path: Path) -> None:
    path = save(tmp_path, GOOD)
    task = get_task(str(path))
    assert task == read_task(path)
    assert task.prompt({"text": "x"}) == "Which of [a, b]? x"
    assert task.main_metric == "accuracy"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({**GOOD, "metrics": ["bleu"]}, "not ['bleu']"),
        ({**GOOD, "metrics": []}, "metrics must be some of"),
        ({**GOOD, "labels": []}, "kind choice needs labels"),
        ({**GOOD, "kind": "score", "metrics": ["mae"], "labels": []}, "kind score needs labels"),
        ({**GOOD, "kind": "score", "metrics": ["mae"]}, "could not convert"),
        ({**GOOD, "kind": "text", "labels": []}, "accuracy and macro_f1 need labels"),
        ({**GOOD, "metrics": ["mae"]}, "mae and rmse need a task of kind score"),
        ({**GOOD, "practice": "luck"}, "practice must be one of"),
        ({**GOOD, "kind": "maybe"}, "kind: "),
        ({**GOOD, "colour": "red"}, "colour: Extra inputs"),
        ({**GOOD, "max_new_tokens": 0}, "max_new_tokens: "),
        ({**GOOD, "item_trim": "label2"}, "item_trim must be one of ['text', 'label']"),
        ({**GOOD, "question": "{text} or {text}"}, "each used once"),
        ({**GOOD, "question": "{1}"}, "each used once"),
        ({key: value for key, value in GOOD.items() if key != "item"}, "item: Field required"),
        ({}, "name: Field required"),
        (b"", "valid dictionary"),
        (b"name: [", "parsing"),
        (b"name: !!python/object:os.system x", "could not determine a constructor"),
        (b"name: \xff", "utf-8"),
    ],
)
def test_definitions_that_make_no_sense(tmp_path: Path, content: Any, what: str) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        get_task(str(path))
    message = str(caught.value)
    assert what in message and str(path) in message
    assert "\n" not in message and "pydantic.dev" not in message


def test_tasks_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'LaMP_9'.*LaMP_1"):
        get_task("LaMP_9")
    with pytest.raises(ConfigError, match="No such file"):
        get_task(str(tmp_path / "none.yaml"))


def test_what_ships() -> None:
    assert {*LAMP, "commit_message", "continuation", "instruction"} <= {*tasks()}
    assert all(name == task.name for name, task in tasks().items())
    assert {name: tasks()[name].metrics[:2] for name in LAMP} == {
        "LaMP_1": ["accuracy"],
        **{key: ["accuracy", "macro_f1"] for key in ["LaMP_2M", "LaMP_2N"]},
        "LaMP_3": ["mae", "rmse"],
        **{key: ["rouge_1", "rouge_l"] for key in ["LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"]},
    }


# Real data ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAMP)
def test_real_prompts_have_the_templates_wording(name: str) -> None:
    if not (REAL / name / "dev_questions.json").is_file():
        pytest.skip(f"there are no dev questions of {name} in {REAL}")
    task = get_task(name)
    questions = json.loads((REAL / name / "dev_questions.json").read_text(encoding="utf-8"))
    outputs = json.loads((REAL / name / "dev_outputs.json").read_text(encoding="utf-8"))
    assert questions
    for question in questions:
        fields = task.fields(question["input"])
        assert fields.keys() == PROMPTS[name][0].keys()
        assert all(value.strip() for value in fields.values())
        assert task.prompt(fields).strip() == question["input"].strip()
    if task.labels:
        assert {gold["output"] for gold in outputs["golds"]} <= {*task.labels}
