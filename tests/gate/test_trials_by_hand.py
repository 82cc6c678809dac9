"""What trials measure, with an engine whose answers are written down."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pfi.gate import trials
from pfi.gate.choices import NOTHING, Choice, GateConfig
from pfi.gate.trials import Asker, Trial, confidences, question_trials, record_trials, worths
from pfi.inference.engine import Request
from pfi.records import History, Question, Record
from pfi.tasks import Task, get_task

START = datetime(2024, 1, 1, tzinfo=UTC)
MOOD = Task(
    name="mood", title="Mood", kind="choice", question="{text}", inputs=["text"], output="label",
    labels=["good", "bad"], item="{text} is {label}", item_trim="text", query=["text"],
    document=["text"], metrics=["accuracy"],
)  # fmt: skip
ENGINE: Any = object()


def record(name: str, text: str, hour: int, *, dated: bool = True) -> Record:
    return Record(
        name, "mood", {"text": text}, "good", START + timedelta(hours=hour) if dated else None
    )


# What is asked ------------------------------------------------------------------------


class Memory:
    """Notes what it holds and what it is asked."""

    def __init__(self, known: Sequence[Record]) -> None:
        self.known, self.asked = [r.id for r in known], []  # type: ignore[var-annotated]

    def search(self, query: str, most: int, **allowed: Any) -> list[Record]:
        self.asked.append(("search", query, most, allowed))
        return [record("found", "x", 0)]

    def likeness(self, query: str, **allowed: Any) -> float:
        self.asked.append(("likeness", query, allowed))
        return 0.25


@pytest.mark.parametrize("dated", [True, False])
def test_a_trial_sees_what_was_there_at_its_time_and_not_itself(
    dated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of r0 to r3 the last two are tried; r3 has the words of r1, and r2 the time of r3."""
    past = [
        record("r0", "rain", 0, dated=dated), record("r1", "tea", 1, dated=dated),
        record("r2", "snow", 2, dated=dated), record("r3", "tea", 2, dated=dated),
    ]  # fmt: skip
    history, memories, shown = History("u", past), [], []
    examples = Task.examples

    def made_of(task: Task, known: History, *rest: Any) -> Any:
        shown.append([r.id for r in known])
        return examples(task, known, *rest)

    monkeypatch.setattr(Task, "examples", made_of)

    def memory_of(known: History) -> Memory:
        memories.append(Memory(list(known)))
        return memories[-1]

    made = record_trials(MOOD, history, past[2:], memory_of, 5, 0)  # type: ignore[arg-type]
    assert [(t.user, t.target, t.likeness) for t in made] == [("u", "good", 0.25)] * 2
    assert ["snow" in made[0].prompt, "tea" in made[1].prompt] == [True, True]
    at_once = ["r0", "r1"] if dated else ["r0", "r1", "r2"]
    assert [memory.known for memory in memories] == [["r0", "r1"], at_once]
    assert shown == [["r0", "r1", "r2"], ["r0", "r1", "r2", "r3"]]  # nothing newer
    excluded = [{"r2"}, {"r3", "r1"}]
    for memory, one, own in zip(memories, past[2:], excluded, strict=True):
        allowed = {"before": one.time, "exclude": own}
        text = one.input["text"]
        assert memory.asked == [("search", text, 5, allowed), ("likeness", text, allowed)]
    assert record_trials(MOOD, history, [], memory_of, 5, 0) == []  # type: ignore[arg-type]


def test_questions_are_tried_with_what_was_there_before_each() -> None:
    seen: list[Any] = []

    def memory_at(time: datetime | None) -> Any:
        seen.append(time)
        return Memory([])

    asked = [
        Question("q1", "ann", "mood", "is it?", {"text": "rain"}, START, "good"),
        Question("q2", "bob", "mood", "and it?", {"text": "tea"}),
    ]
    made = question_trials(MOOD, asked, memory_at, 3)
    assert seen == [START, None]
    assert [(t.user, t.prompt, t.target, t.likeness) for t in made] == [
        ("ann", "is it?", "good", 0.25),
        ("bob", "and it?", "", 0.25),
    ]


# What it is worth ---------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By prompt: shares of the labels, an answer, and what a target's tokens score."""
    table: dict[str, Any] = {}

    def of(request: Request, kind: str) -> Any:
        return table[kind]["".join(map(chr, request.prompt))]

    monkeypatch.setattr(trials, "label_scores", lambda engine, task, asked: [
        list(np.log(of(one, "shares")) + 7) for one in asked])  # fmt: skip
    monkeypatch.setattr(trials, "answers", lambda engine, task, asked: [
        of(one, "answers") for one in asked])  # fmt: skip
    monkeypatch.setattr(trials, "target_scores", lambda engine, asked, targets: [
        of(one, "targets") for one in asked])  # fmt: skip
    return table


def request(prompt: str) -> Request:
    return Request([ord(sign) for sign in prompt])


def test_how_sure_an_answer_is(scores: dict[str, Any]) -> None:
    scores["shares"] = {"a": [0.25, 0.75], "b": [0.5, 0.5]}
    asked = [request("a"), request("b")]
    assert confidences(ENGINE, MOOD, asked) == pytest.approx([0.75, 0.5])
    assert confidences(ENGINE, MOOD, []).shape == (0,)
    scores["answers"] = {"a": "x", "b": "y"}
    scores["targets"] = {"a": -0.5, "b": 0.0}
    sure = confidences(ENGINE, get_task("LaMP_4"), asked)
    assert sure == pytest.approx([np.exp(-0.5), 1.0])


def test_labels_by_their_shares_and_never_below_one_in_ten_thousand(
    scores: dict[str, Any],
) -> None:
    scores["shares"] = {"a": [0.25, 0.75], "b": [1 - 1e-6, 1e-6], "c": [0.5, 0.5]}
    asked, targets = [request(sign) for sign in "abc"], ["bad", "bad", "neither"]
    metric, likely = worths(ENGINE, MOOD, asked, targets, "both")
    assert metric == pytest.approx([0.75, 1e-6, 0])
    assert likely == pytest.approx(np.log([0.75, 1e-4, 1]))
    assert worths(ENGINE, MOOD, asked, targets, "metric")[1] is None
    alone, nothing = worths(ENGINE, MOOD, asked, targets, "likelihood")
    assert alone == pytest.approx(likely) and nothing is None


def test_a_scale_by_its_expected_distance(scores: dict[str, Any]) -> None:
    """Shares .1 .2 .3 .4 0 of 1 to 5: from 4 the distance is .3 + .4 + .3 = 1."""
    task = get_task("LaMP_3")
    scores["shares"] = {"a": [0.1, 0.2, 0.3, 0.4, 1e-30]}
    metric, likely = worths(ENGINE, task, [request("a")], ["4"], "both")
    assert metric == pytest.approx([-1.0]) and likely == pytest.approx([np.log(0.4)])


def test_a_metric_that_is_better_lower_counts_negatively(scores: dict[str, Any]) -> None:
    scores["answers"], scores["targets"] = {"a": "3"}, {"a": -2.0}
    task = get_task("LaMP_3").model_copy(update={"kind": "text", "metrics": ["mae"]})
    metric, likely = worths(ENGINE, task, [request("a")], ["5"], "both")
    assert metric == pytest.approx([-2.0]) and likely == pytest.approx([-2.0])


# Choices ------------------------------------------------------------------------------


def asker(**more: Any) -> Asker:
    """Prompts are the trial's, with a sign for each record; adapters are named by weight."""

    def fill(task: Task, prompt: str, records: Sequence[Record]) -> Any:
        return SimpleNamespace(ids=[ord(sign) for sign in prompt + "+" * len(records)])

    def weighted(user: str, weight: float) -> Any:
        return SimpleNamespace(key=f"{weight:g}") if weight and user == "ann" else None

    retrieval: Any = SimpleNamespace(fill=fill)
    return Asker(ENGINE, MOOD, retrieval, weighted)


def trial(user: str, prompt: str, likeness: float = 1.0) -> Trial:
    return Trial(user, prompt, "good", [record(f"m{n}", "x", n) for n in range(5)], likeness)


def test_a_choice_says_which_records_and_how_much_of_the_adapter() -> None:
    one = asker().request(trial("ann", "q", 0.3), Choice(1.0, 2, by_likeness=True))
    assert "".join(map(chr, one.prompt)) == "q++"
    assert one.adapter is not None and one.adapter.key == "0.25"
    plain = asker().request(trial("ann", "q"), NOTHING)
    assert plain.adapter is None and "".join(map(chr, plain.prompt)) == "q"
    assert plain.sampling.max_tokens == MOOD.max_new_tokens


@pytest.mark.parametrize("signal", ["metric", "both"])
def test_gains_are_over_nothing_and_what_comes_to_the_same_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    asked: list[tuple[str, str, str]] = []

    def worth(engine: Any, task: Any, requests: Any, targets: Any, wanted: str) -> Any:
        assert engine is ENGINE and task is MOOD
        found = []
        for one, target in zip(requests, targets, strict=True):
            prompt, key = "".join(map(chr, one.prompt)), one.adapter.key if one.adapter else ""
            asked.append((prompt, key, target))
            found.append({"a": 1.0, "b": 2.0, "c": 4.0}[prompt[0]]
                         + 10 * prompt.count("+") + 100 * float(key or 0))  # fmt: skip
        assert wanted == signal
        return np.array(found), -np.array(found) if wanted == "both" else None

    monkeypatch.setattr(trials, "worths", worth)

    def sure_of(engine: Any, task: Any, plain: Any) -> Any:
        assert engine is ENGINE and task is MOOD
        return np.array([ord("".join(map(chr, one.prompt))) / 1000 for one in plain])

    monkeypatch.setattr(trials, "confidences", sure_of)
    config = GateConfig(weights=[0.0, 1.0], ks=[0, 2], per_question=False, signal=signal)
    mine = [trial("ann", "a"), trial("bob", "b"), trial("ann", "c")]
    tried = asker().try_choices(mine, config)
    assert {user: one.gains.tolist() for user, one in tried.items()} == {
        "ann": [[0, 100, 20, 120]] * 2,
        "bob": [[0, 0, 20, 20]],  # without an adapter
    }
    assert len(asked) == 4 + 2 + 4 and len({*asked}) == 10
    assert tried["ann"].confidence.tolist() == [0, 0]
    if signal == "both":
        assert tried["ann"].likelier is not None
        assert tried["ann"].likelier.tolist() == [[0, -100, -20, -120]] * 2
    else:
        assert tried["ann"].likelier is None
    by_question = config.model_copy(update={"per_question": True})
    sure = asker().try_choices(mine, by_question)
    assert sure["ann"].confidence == pytest.approx([0.097, 0.099])
    assert sure["bob"].confidence == pytest.approx([0.098])


def test_what_the_shared_adapter_is_sure_of_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = {"a": 0.5, "b": 0.49}
    asked: list[str] = []

    def certain(engine: Any, task: Any, plain: Any) -> Any:
        asked.extend("".join(map(chr, one.prompt)) for one in plain)
        return np.array([sure["".join(map(chr, one.prompt))] for one in plain])

    monkeypatch.setattr(trials, "confidences", certain)
    monkeypatch.setattr(trials, "answers", lambda engine, task, all_: [
        "".join(map(chr, one.prompt)) for one in all_])  # fmt: skip
    chosen = {"ann": Choice(0.0, 2, if_unsure=True), "bob": Choice(0.0, 1)}
    questions = [trial("bob", "c"), trial("ann", "a"), trial("ann", "b")]
    assert asker().answers(questions, chosen, 0.5) == ["c+", "a", "b++"]
    assert asked == ["a", "b"]  # of the others nobody asks how sure it is
