"""Whole studies over tiny random backbones: schema, resume after a kill, awkward users."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import FAMILIES
from pfi.datasets.demo import write_demo
from pfi.datasets.lamp import read_outputs
from pfi.errors import BackboneError, ConfigError, DataError, PfiError, StorageError
from pfi.evaluate.study import study, task_setup
from pfi.evaluate.study.arms import ARMS
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.memory.embedders import HashEmbedder
from pfi.models.adapters import stacked
from pfi.models.backbone import load_backbone
from pfi.train.config import ForgettingConfig, TrainConfig
from pfi.train.forgetting import GeneralProbe

Folder = Callable[[str], Path]
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=1e-2, max_length=128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo: three train users and three to evaluate."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=3, users=3)
    return folder


def config(data: Path, backbone: Path, **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "data": data,
        "tasks": ["LaMP_3", "LaMP_4"],
        "split": "test",
        "backbone": str(backbone),
        "shared": QUICK,
        "personal": QUICK,
        "bootstrap": 20,
        "max_prompt": 128,
        "retrieval_budget": 32,
        **changes,
    }
    return StudyConfig.model_validate(values)


def test_settings_of_older_runs_are_read(data: Path) -> None:
    """`k`, `records` and `retrieval_budget` have better names; what is written has those."""
    old = {"data": data, "k": 3, "records": 8, "retrieval_budget": 64}
    new = StudyConfig.model_validate(
        {"data": data, "retrieve": 3, "history": 8, "record_tokens": 64}
    )
    assert StudyConfig.model_validate(old) == new
    assert not {"k", "records", "retrieval_budget"} & new.model_dump().keys()


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without wall-clock times, which differ from run to run."""
    copy = json.loads(json.dumps(metrics))
    for tasks in copy["arms"].values():
        for cell in tasks.values():
            del cell["seconds"]
    return copy


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "llama")],
)
def test_every_family_runs_every_arm(
    data: Path,
    backbone_folder: Folder,
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for room in (study, task_setup):  # the sentence model is an extra
        monkeypatch.setattr(room, "find_embedder", lambda name: HashEmbedder())
    settings = config(data, backbone_folder(family), arms=list(ARMS), users=2)
    metrics = Study(settings, tmp_path / "run").run()
    assert list(metrics["arms"]) == list(ARMS)
    for arm, tasks in metrics["arms"].items():
        assert list(tasks) == ["LaMP_3", "LaMP_4"]
        for task, cell in tasks.items():
            assert (cell["n_users"], cell["n_questions"]) == (2, 8)
            for value in cell["metrics"].values():
                assert value["ci95"][0] <= value["mean"] <= value["ci95"][1]
            compared = arm not in ("generic", "generic+rag", "shared")
            assert (cell["harmed"] is not None) is compared
            assert (cell["gain"] is not None) is compared
            name, answers = read_outputs(tmp_path / "run" / "predictions" / arm / f"{task}.json")
            assert (name, len(answers)) == (task, 8)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert "LaMP_4" in (tmp_path / "run" / "report.html").read_text()


class _Stop(Exception):
    """Stands for a kill at one moment of a run."""


@pytest.mark.parametrize(("engine", "parts"), [("bank", (1, 3, 5, 7, 9)), ("peft", (5, 8))])
def test_a_stopped_run_resumes_to_the_same_metrics(
    data: Path, backbone_folder: Folder, tmp_path: Path, engine: str, parts: tuple[int, ...]
) -> None:
    settings = config(data, backbone_folder("llama"), engine=engine, working_set=2)
    moments = 0

    def count(text: str, done: int, planned: int) -> None:
        nonlocal moments
        moments += 1

    whole = comparable(Study(settings, tmp_path / "whole", on_progress=count).run())
    for part in parts:
        out = tmp_path / f"part-{part}"
        left = moments * part // 10

        def stop(text: str, done: int, planned: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Stop

        with pytest.raises(_Stop):
            Study(settings, out, on_progress=stop).run()
        with (out / "events.jsonl").open("a") as file:
            file.write('{"event": "answered", "arm": "gen')  # a line torn by the kill
        assert comparable(Study(settings, out, resume=True).run()) == whole
        trained = [e for e in EventLog(out / "events.jsonl") if e["event"] == "trained"]
        keys = [(e["task"], e["adapter"], e["user"]) for e in trained]
        assert len(keys) == len(set(keys)) == 2 * (1 + 3)


def test_a_stopped_run_reports_the_users_that_it_has(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"], working_set=2)
    whole = Study(settings, tmp_path / "whole").run()
    out = tmp_path / "part"
    with pytest.raises(DataError, match="no user"):
        Study(settings, out).so_far()

    def stop(text: str, done: int, planned: int) -> None:
        if done > 2 * len(settings.arms):  # one answer of the second group is there already
            raise _Stop

    with pytest.raises(_Stop):
        Study(settings, out, resume=True, on_progress=stop).run()
    part = Study(settings, out, resume=True).so_far()
    assert part["so_far"] == {"LaMP_3": [2, 3]}
    for arm, cells in part["arms"].items():
        users = cells["LaMP_3"]["users"]
        assert len(users) == 2
        same = whole["arms"][arm]["LaMP_3"]["users"]
        assert all(users[user] == same[user] for user in users)
    assert "LaMP_3 has 2 of 3 users so far" in (out / "report.html").read_text()
    rest = Study(settings, out, resume=True).run()
    assert comparable(rest) == comparable(whole)
    assert "so_far" not in json.loads((out / "metrics.json").read_text())


def test_a_killed_process_resumes_to_the_same_metrics(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "pfi.cli", "study", "--data", str(data), "--split", "test"),
        *("--tasks", "LaMP_3", "--backbone", str(backbone_folder("llama"))),
        *("--set", "shared.epochs=1", "--set", "personal.epochs=1", "--set", "bootstrap=20"),
    ]
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    events = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if events.exists() and events.read_text().count('"answered"') >= 4:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    assert not (out / "metrics.json").exists(), "the run ended before it could be killed"
    for args in (["--out", str(out), "--resume"], ["--out", str(tmp_path / "whole")]):
        subprocess.run([*command, *args], check=True, stdout=subprocess.DEVNULL)
    found, whole = (
        comparable(json.loads((folder / "metrics.json").read_text()))
        for folder in (out, tmp_path / "whole")
    )
    assert found == whole


def test_the_same_seed_gives_the_same_metrics_and_another_one_other_adapters(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    runs = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"], seed=seed)
        Study(settings, tmp_path / name).run()
        log = EventLog(tmp_path / name / "events.jsonl")
        runs.append([e["losses"] for e in log if e["event"] == "trained"])
    assert runs[0] == runs[1] != runs[2]


def test_shared_adapters_of_another_run_give_what_training_them_gives(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"])
    first = comparable(Study(settings, tmp_path / "first").run())
    again = settings.model_copy(update={"shared_from": tmp_path / "first"})
    second = comparable(Study(again, tmp_path / "second").run())
    assert second["arms"] == first["arms"]
    log = EventLog(tmp_path / "second" / "events.jsonl")
    copied = [e for e in log if e["event"] == "trained" and e["user"] is None]
    assert [e["copied_from"] for e in copied] == ["first"]
    missing = settings.model_copy(update={"shared_from": tmp_path / "nowhere"})
    with pytest.raises(BackboneError, match="no adapter here"):
        Study(missing, tmp_path / "third").run()


def test_what_adapters_forget_is_measured_once_even_afterwards(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    arms = ["shared", "personal", "personal-only"]
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"], arms=arms)
    out = tmp_path / "run"
    assert "forgetting" not in Study(settings, out).run()
    measuring = settings.model_copy(update={"forgetting": 2})
    found = Study(measuring, out, resume=True).run()["forgetting"]["LaMP_3"]
    assert {kind: cell["adapters"] for kind, cell in found.items()} == {
        "shared": 1,
        "personal": 2,
        "personal-only": 2,
    }
    assert all(cell["text_loss"] != cell["text_loss_before"] for cell in found.values())
    before = {cell["text_loss_before"] for cell in found.values()}
    assert len(before) == 1  # all are compared with the plain backbone

    def events() -> list[Any]:
        log = EventLog(out / "events.jsonl")
        return [(e["adapter"], e["user"]) for e in log if e["event"] == "forgetting"]

    done = events()
    assert len(done) == len({*done}) == 5
    assert Study(measuring, out, resume=True).run()["forgetting"]["LaMP_3"] == found
    assert events() == done
    page = (out / "report.html").read_text()
    assert "What adapters make the backbone forget" in page and "personal-only" in page
    # A personal adapter lies over the shared one, and is measured with it.
    checkpoints = Checkpoints(out)
    user = next(user for kind, user in done if kind == "personal")
    parts = [checkpoints.load("shared", "LaMP_3"), checkpoints.load("personal", "LaMP_3", user)]
    probe = GeneralProbe(load_backbone(backbone_folder("llama")), ForgettingConfig())
    both = stacked([(part, 1.0) for part in parts if part is not None])
    (event,) = (
        e
        for e in EventLog(out / "events.jsonl")
        if e["event"] == "forgetting" and (e["adapter"], e["user"]) == ("personal", user)
    )
    assert event["text_loss"] == probe.forgetting(both).figures()["text_loss"]


def test_a_run_folder_is_never_mixed_up(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"], arms=["generic"])
    Study(settings, tmp_path / "run").run()
    with pytest.raises(StorageError, match="--resume"):
        Study(settings, tmp_path / "run")
    other = settings.model_copy(update={"seed": 5})
    with pytest.raises(StorageError, match="another configuration"):
        Study(other, tmp_path / "run", resume=True)
    log = tmp_path / "run" / "events.jsonl"
    log.write_text("broken\n" + log.read_text())
    with pytest.raises(StorageError, match="line 1"):
        Study(settings, tmp_path / "run", resume=True)


def test_mistakes_name_what_to_do(data: Path, backbone_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown arm 'magic'"):
        config(data, backbone_folder("llama"), arms=["magic"])
    with pytest.raises(ConfigError, match="unknown task"):
        Study(config(data, backbone_folder("llama"), tasks=["LaMP_9"]), tmp_path / "a")
    with pytest.raises(PfiError, match="holdout"):
        Study(config(data, backbone_folder("llama"), split="holdout"), tmp_path / "b").run()


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_users_with_one_record_or_none_and_questions_without_gold(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_demo(data, seed=2, train_users=3, users=3)
    questions = data / "LaMP_3" / "test_questions.json"

    def shorten(items: list[dict[str, Any]]) -> None:
        users = list(dict.fromkeys(item["user_id"] for item in items))
        for item in items:
            if item["user_id"] == users[0]:
                item["profile"] = []
            elif item["user_id"] == users[1]:
                item["profile"] = item["profile"][:1]

    edit(questions, shorten)
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"])
    metrics = Study(settings, tmp_path / "run").run()
    lengths = [u["history"] for u in metrics["arms"]["personal"]["LaMP_3"]["users"].values()]
    assert sorted(lengths)[:2] == [0, 1]

    (data / "LaMP_3" / "test_outputs.json").unlink()
    metrics = Study(settings, tmp_path / "blind").run()
    assert metrics["arms"]["personal"] == {}
    _, answers = read_outputs(tmp_path / "blind" / "predictions" / "personal" / "LaMP_3.json")
    assert len(answers) == 12


def test_answers_never_use_records_of_the_future(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records dated after the questions change neither prompts nor personal adapters."""
    from pfi.evaluate.study import group_run as module

    data = tmp_path / "data"
    write_demo(data, seed=3, train_users=3, users=2)
    seen: list[list[Any]] = []
    original = module.answers

    def record(engine: Any, task: Any, asked: list[Any]) -> list[str]:
        seen.append([request.prompt for request in asked])
        return original(engine, task, asked)

    monkeypatch.setattr(module, "answers", record)
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3"])
    before = comparable(Study(settings, tmp_path / "before").run())
    prompts, seen[:] = list(seen), []

    def add_future(items: list[dict[str, Any]]) -> None:
        for item in items:
            future = {**item["profile"][0], "id": f"f{item['user_id']}", "date": "2025-06-01"}
            item["profile"] = [*item["profile"], future]

    edit(data / "LaMP_3" / "test_questions.json", add_future)
    after = comparable(Study(settings, tmp_path / "after").run())
    assert seen == prompts
    for metrics in (before, after):
        for tasks in metrics["arms"].values():
            for user in tasks["LaMP_3"]["users"].values():
                del user["history"]
    assert after == before
