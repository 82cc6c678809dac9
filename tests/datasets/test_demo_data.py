"""The synthetic demo: labelled, deterministic, leak-free, and personal rules can be learnt."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pfi.datasets import demo_text
from pfi.datasets.demo import MAJORITY, SPLITS, TASKS, DemoTruth, Persona, oracle, write_demo
from pfi.datasets.demo_text import Style
from pfi.errors import ConfigError, StorageError
from pfi.records import History, Question, Record, parse_time
from pfi.tasks import get_task

Asked = list[dict[str, Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoTruth]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_demo(folder)


def read(folder: Path, task: str, split: str) -> tuple[Asked, dict[str, str]]:
    asked = json.loads((folder / task / f"{split}_questions.json").read_text())
    outputs = json.loads((folder / task / f"{split}_outputs.json").read_text())
    assert outputs["task"] == task
    assert [gold["id"] for gold in outputs["golds"]] == [question["id"] for question in asked]
    return asked, {gold["id"]: gold["output"] for gold in outputs["golds"]}


def history_of(task: str, question: dict[str, Any]) -> History:
    keys = get_task(task)
    return History(
        question["user_id"],
        (
            Record(
                id=item["id"],
                task=task,
                input={key: item[key] for key in keys.inputs},
                output=item[keys.output],
                time=parse_time(item["date"]),
            )
            for item in question["profile"]
        ),
    )


def pairs(folder: Path, task: str, split: str) -> Iterator[tuple[History, Question]]:
    asked, golds = read(folder, task, split)
    for raw in asked:
        question = Question(
            id=raw["id"],
            user_id=raw["user_id"],
            task=task,
            prompt=raw["input"],
            time=parse_time(raw["date"]),
            gold=golds[raw["id"]],
        )
        yield history_of(task, raw), question


def test_says_first_that_it_is_synthetic(demo: tuple[Path, DemoTruth]) -> None:
    folder, truth = demo
    for name in ("README.md", "truth.json"):
        first = (folder / name).read_text().splitlines()[0]
        assert "synthetic" in first and "no real people" in first
    written = json.loads((folder / "truth.json").read_text())
    assert set(written["users"]) == set(truth.personas)
    assert written["users"]["1"]["style"]["frame"] == truth.personas["1"].style.frame
    for task in TASKS:
        assert set(written["questions"][task]) == set(truth.questions[task])


def test_same_seed_same_bytes_other_seed_other_texts(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[str, bytes]:
        folder = tmp_path / name
        write_demo(folder, seed=seed, train_users=3, users=2)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    first = contents("a", 5)
    assert len(first) == 2 + len(TASKS) * len(SPLITS) * 2
    assert contents("b", 5) == first
    assert contents("a", 5) == first  # written over itself
    other = contents("c", 6)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


@pytest.mark.parametrize("task", TASKS)
def test_file_format(demo: tuple[Path, DemoTruth], task: str) -> None:
    folder, truth = demo
    definition = get_task(task)
    for split, count in (("train", 40), ("dev", 6), ("test", 12)):
        asked, golds = read(folder, task, split)
        assert Counter(q["user_id"] for q in asked) == dict.fromkeys(truth.splits[split], 4)
        assert len(truth.splits[split]) == count
        for question in asked:
            assert 12 <= len(question["profile"]) <= 20
            fields = definition.fields(question["input"])
            assert definition.prompt(fields) == question["input"]
            assert set(fields) - {"labels"} == set(definition.inputs)
            for item in question["profile"]:
                assert set(item) == {"id", "date", *definition.inputs, definition.output}
                assert 20 <= len(item[definition.inputs[0]].split()) <= 60
                if definition.labels:
                    assert item[definition.output] in definition.labels
            if definition.labels:
                assert golds[question["id"]] in definition.labels
            assert golds[question["id"]] == truth.questions[task][question["id"]].gold


def test_ids_are_unique_over_all_files(demo: tuple[Path, DemoTruth]) -> None:
    # One device may hold all three tasks in one history, so ids must not meet across tasks.
    seen: Counter[str] = Counter()
    for task in TASKS:
        for split in SPLITS:
            asked, _ = read(demo[0], task, split)
            profiles = {q["user_id"]: q["profile"] for q in asked}
            seen.update(q["id"] for q in asked)
            seen.update(item["id"] for profile in profiles.values() for item in profile)
    assert max(seen.values()) == 1


@pytest.mark.parametrize("task", TASKS)
def test_time_order_and_no_leak(demo: tuple[Path, DemoTruth], task: str) -> None:
    users: dict[str, set[str]] = {}
    texts: Counter[str] = Counter()
    key = get_task(task).inputs[0]
    for split in SPLITS:
        asked, _ = read(demo[0], task, split)
        users[split] = {q["user_id"] for q in asked}
        texts.update(get_task(task).fields(q["input"])[key] for q in asked)
        by_user: dict[str, Asked] = defaultdict(list)
        for question in asked:
            by_user[question["user_id"]].append(question)
        for own in by_user.values():
            assert all(question["profile"] == own[0]["profile"] for question in own)
            dates = [x["date"] for x in own[0]["profile"]] + [q["date"] for q in own]
            assert all(a < b for a, b in pairwise(dates))
            history = history_of(task, own[0])
            assert [r.id for r in history] == [item["id"] for item in own[0]["profile"]]
            assert len(history.before(parse_time(own[0]["date"]))) == len(history)
            texts.update(item[key] for item in own[0]["profile"])
    assert not users["train"] & users["dev"]
    assert not (users["train"] | users["dev"]) & users["test"]
    # No text at all is used twice, so no question's text is in any profile.
    assert max(texts.values()) == 1


def test_personas_vary_and_some_are_average(demo: tuple[Path, DemoTruth]) -> None:
    _, truth = demo
    assert len(truth.average_users("train")) == 8
    assert 2 <= len(truth.average_users("test")) <= 3
    for user, persona in truth.personas.items():
        assert len(persona.tags) == (0 if persona == MAJORITY else 3), user
    train = {repr(truth.personas[user]) for user in truth.splits["train"]} - {repr(MAJORITY)}
    test = {repr(truth.personas[user]) for user in truth.splits["test"]} - {repr(MAJORITY)}
    assert len(train) == 32
    assert not train & test


@pytest.mark.parametrize("seed", [0, 1])
def test_personal_answers_are_learnable(tmp_path: Path, seed: int) -> None:
    truth = write_demo(tmp_path, seed=seed, train_users=2, users=24)
    personal: dict[str, dict[str, float]] = {}
    generic: dict[str, dict[str, float]] = {}
    for task in TASKS:
        found = list(pairs(tmp_path, task, "test"))
        golds = [question.gold or "" for _, question in found]
        own = [oracle(history, question) for history, question in found]
        most = [truth.generic_answer(question) for _, question in found]
        assert [truth.rule_answer(question) for _, question in found] == golds
        assert [truth.questions[task][q.id].generic for _, q in found] == most
        personal[task] = get_task(task).score(own, golds)
        generic[task] = get_task(task).score(most, golds)
        for user in truth.average_users():
            answers = [truth.questions[task][q.id] for _, q in found if q.user_id == user]
            assert answers and all(answer.gold == answer.generic for answer in answers)
    assert personal["LaMP_2M"]["accuracy"] > 0.97
    assert 0.4 < generic["LaMP_2M"]["accuracy"] < 0.75
    assert personal["LaMP_3"]["mae"] < 0.1
    assert generic["LaMP_3"]["mae"] > 0.4
    assert personal["LaMP_4"]["rouge_1"] > 0.99
    assert generic["LaMP_4"]["rouge_1"] < 0.85


def test_another_users_history_does_not_help(demo: tuple[Path, DemoTruth]) -> None:
    """What the oracle finds is personal: with the next user's history it loses."""
    folder, truth = demo
    found = [p for p in pairs(folder, "LaMP_2M", "test") if truth.personas[p[1].user_id].tags]
    shifted = [*found[4:], *found[:4]]
    right = sum(oracle(h, q) == q.gold for h, q in found)
    wrong = sum(oracle(h, q) == q.gold for (h, _), (_, q) in zip(shifted, found, strict=True))
    assert right == len(found)
    assert wrong < 0.7 * len(found)


def test_headline_style_of_the_profile_is_the_golds(demo: tuple[Path, DemoTruth]) -> None:
    folder, truth = demo
    capitals = 0
    for history, question in pairs(folder, "LaMP_4", "test"):
        style = truth.personas[question.user_id].style
        for title in [*(record.output for record in history), question.gold or ""]:
            assert title.isupper() == style.capitals
            assert title.upper().endswith(style.ending.upper())
            assert title.lower().startswith(("opinion: ", "watch: ")) == (
                style.frame in ("opinion", "watch")
            )
            assert title.startswith("5 ") == (style.frame == "number")
        capitals += style.capitals
    assert capitals


def test_majority_is_learnable_from_train_users(demo: tuple[Path, DemoTruth]) -> None:
    """Counting over the train users' records gives the generic answers to test questions."""
    folder, truth = demo
    records = {
        task: [
            r for h in {q.user_id: h for h, q in pairs(folder, task, "train")}.values() for r in h
        ]
        for task in TASKS
    }
    # Tags: the commonest one among the 25 records with the most words in common.
    bags = [(set(r.input["description"].split()), r.output) for r in records["LaMP_2M"]]
    agreeing = 0
    found = list(pairs(folder, "LaMP_2M", "test"))
    for _, question in found:
        words = set(get_task("LaMP_2M").fields(question.prompt)["description"].split())
        near = sorted(bags, key=lambda bag: -len(bag[0] & words))[:25]
        usual = Counter(tag for _, tag in near).most_common(1)[0][0]
        agreeing += usual == truth.generic_answer(question)
    assert agreeing > 0.85 * len(found)

    # Scores: the usual answer to the same mix of good and bad.
    scores: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records["LaMP_3"]:
        scores[MAJORITY.answer("LaMP_3", record.input["text"])][record.output] += 1
    assert {key: seen.most_common(1)[0][0] for key, seen in scores.items()} == {
        score: score for score in "12345"
    }

    # Headlines: no other style is nearly as common as the plain one.
    plain = sum(r.output == MAJORITY.answer("LaMP_4", r.input["text"]) for r in records["LaMP_4"])
    styles = Counter(truth.personas[user].style for user in truth.splits["train"])
    (first, often), (_, next_often) = styles.most_common(2)
    assert first == Style() and often >= 2 * next_often
    assert plain > 0.25 * len(records["LaMP_4"])


def test_same_text_different_answers() -> None:
    text = (
        "I read this on two long flights. The plot is boring and goes nowhere. The characters "
        "are believable and warm. The writing is elegant and sharp. The chapters are short."
    )
    assert demo_text.review_levels(text) == {"plot": -1, "writing": 1, "characters": 1}
    assert MAJORITY.answer("LaMP_3", text) == "4"
    assert Persona(offset=-1).answer("LaMP_3", text) == "3"
    assert Persona(offset=1).answer("LaMP_3", text) == "5"
    assert Persona(focus="plot").answer("LaMP_3", text) == "2"  # (4 * -1 + 1 + 1) / 2 = -1
    assert Persona(focus="writing", offset=1).answer("LaMP_3", text) == "5"
    article = (
        "On Monday the Ashwick police backed the flood wall, citing rising costs. More follows."
    )
    assert MAJORITY.answer("LaMP_4", article) == "Ashwick police back flood wall"
    style = Style("question", ", says report", True)
    assert style.headline(article) == "WHAT DOES THE FLOOD WALL MEAN FOR ASHWICK?, SAYS REPORT"


def test_phrases_can_be_told_apart() -> None:
    words = demo_text.phrases()
    cues = [cue for found in words["movie"]["cues"].values() for cue in found]
    cues += [s for a in words["review"]["aspects"].values() for level in a.values() for s in level]
    assert not [(a, b) for a in cues for b in cues if a is not b and a in b]
    labels = set(get_task("LaMP_2M").labels)
    assert {tag for tags in demo_text.tag_choices().values() for tag in tags} == labels
    with pytest.raises(ValueError, match="not an article"):
        Style().headline("Something else happened.")


@pytest.mark.parametrize("task", TASKS)
def test_the_lamp_reader_reads_it(demo: tuple[Path, DemoTruth], task: str) -> None:
    lamp = pytest.importorskip("pfi.datasets.lamp")
    folder, truth = demo
    for split in SPLITS:
        users = lamp.read_users(folder / task, get_task(task), split)
        assert {user.id for user in users} == set(truth.splits[split])
        for user in users:
            assert len(user.history) >= 12 and user.history.dated
            assert len(user.questions) == 4
            assert [truth.rule_answer(q) for q in user.questions] == [
                question.gold for question in user.questions
            ]
            assert [oracle(user.history, q) for q in user.questions]


def test_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 test users"):
        write_demo(tmp_path / "new", users=0)
    with pytest.raises(ConfigError):
        write_demo(tmp_path / "new", train_users=100_000)
    assert not (tmp_path / "new").exists()
    own = tmp_path / "own" / "LaMP_3" / "test_questions.json"
    own.parent.mkdir(parents=True)
    own.write_text("[]")
    with pytest.raises(StorageError, match="holds no demo"):
        write_demo(tmp_path / "own")
    assert own.read_text() == "[]"
