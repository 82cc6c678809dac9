"""Studies of many users: memory bounded by the working set, and several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_study import QUICK, comparable, config
from word_prompter import WordPrompter

from pfi._util.events import read_events
from pfi.datasets.demo import write_demo
from pfi.datasets.lamp import open_users, read_users
from pfi.errors import BackboneError, DataError, PfiError
from pfi.evaluate.study import group_run, study, task_setup
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.inference.engine import Request
from pfi.tasks import get_task
from pfi.train.job import Job

Folder = Callable[[str], Path]
TEXT = "a long review of a book that was read twice " * 90


def write_many(folder: Path, users: int) -> Path:
    """A LaMP folder of users with one question and two records of 4 KB."""
    (folder / "LaMP_3").mkdir(parents=True)
    golds = []
    with (folder / "LaMP_3" / "dev_questions.json").open("w") as file:
        for i in range(users):
            profile = [{"id": f"{i}.{n}", "text": f"{n} {TEXT}", "score": "4"} for n in range(2)]
            asked = {"id": f"q{i}", "user_id": f"u{i}", "input": f"review {i}", "profile": profile}
            file.write(("[" if i == 0 else ",\n") + json.dumps(asked))
            golds.append({"id": f"q{i}", "output": str(1 + i % 5)})
        file.write("]")
    outputs = folder / "LaMP_3" / "dev_outputs.json"
    outputs.write_text(json.dumps({"task": "LaMP_3", "golds": golds}))
    return folder


@dataclass
class NoBackbone:
    """Stands for a backbone in studies without models."""

    thinking: bool = False

    prompter = WordPrompter()

    def with_adapters(self, adapters: Sequence[Any]) -> NoBackbone:
        assert not adapters
        return self


class NoTrainer:
    """Makes the examples of every job, and no adapter."""

    together = False
    examples = 0

    def train_many(self, backbone: Any, jobs: Sequence[Job], *_: Any, **__: Any) -> Iterator[Any]:
        for job in jobs:
            NoTrainer.examples += len(job.load())
            yield job, None


class Alive:
    """Counts the objects of a class that live at the same time."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.now = self.most = self.all = 0
        counter = self

        class Counted(getattr(module, name)):  # type: ignore[misc]
            def __init__(self, *args: Any, **more: Any) -> None:
                super().__init__(*args, **more)
                counter.now, counter.all = counter.now + 1, counter.all + 1
                counter.most = max(counter.most, counter.now)
                weakref.finalize(self, counter.gone)

        patch.setattr(module, name, Counted)

    def gone(self) -> None:
        self.now -= 1


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(engine: Any, task: Any, asked: Sequence[Request]) -> list[str]:
        return [task.labels[len(request.prompt) % len(task.labels)] for request in asked]

    monkeypatch.setattr(group_run, "answers", answers)
    monkeypatch.setattr(task_setup.TaskSetup, "engine", None)
    monkeypatch.setattr(task_setup, "get_trainer", lambda name, working_set: NoTrainer())
    monkeypatch.setattr(study, "load_backbone", lambda name: NoBackbone())


def run_many(data: Path, out: Path) -> dict[str, Any]:
    settings = StudyConfig.model_validate(
        {
            "data": data,
            "arms": ["generic", "generic+rag", "personal-only"],
            "bootstrap": 20,
            "retrieval_share": 0.0,
        }
    )
    return Study(settings, out).run()


def test_memory_does_not_grow_with_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_models: None
) -> None:
    peaks = {}
    run_many(write_many(tmp_path / "data-0", 20), tmp_path / "run-0")  # imports what it needs
    for users in (300, 1500):
        data = write_many(tmp_path / f"data-{users}", users)
        with monkeypatch.context() as patch:
            from pfi.datasets import lamp

            memories = Alive(patch, task_setup, "Memory")
            histories = Alive(patch, lamp, "History")
            NoTrainer.examples = 0
            tracemalloc.start()
            metrics = run_many(data, tmp_path / f"run-{users}")
            peaks[users] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        for cells in metrics["arms"].values():
            assert cells["LaMP_3"]["n_users"] == users
        assert NoTrainer.examples == 2 * users
        assert memories.all >= users and memories.most <= 16
        assert histories.all >= users and histories.most <= 2 * 16
    # What is kept of a user: ids, places in the file, answers and scores; no record.
    assert (peaks[1500] - peaks[300]) / 1200 < 5500, peaks


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_thousand_users(tmp_path: Path, no_models: None) -> None:
    data = write_many(tmp_path / "data", 100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = run_many(data, tmp_path / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(path.stat().st_size for path in (data / "LaMP_3").iterdir()) >> 20
    print(f"data {size} MiB; peak memory {before >> 10} -> {peak >> 10} MiB")
    assert metrics["arms"]["personal-only"]["LaMP_3"]["n_users"] == 100_000
    assert (peak - before) / 100_000 < 8  # KiB a user with three arms; 6.5 when it was written


# Users, read when they are needed -----------------------------------------------------------


def test_users_read_by_group_are_those_read_at_once(tmp_path: Path) -> None:
    write_demo(tmp_path, seed=4, train_users=2, users=7)
    task, folder = get_task("LaMP_3"), tmp_path / "LaMP_3"
    content = json.loads((folder / "test_questions.json").read_text())
    content.sort(key=lambda item: item["id"][::-1])  # users' questions come far apart
    content[0]["input"] += " \u00e9\u4e2d\U0001f600"  # characters and bytes differ
    text = "\ufeff" + json.dumps(content, ensure_ascii=False, indent=1)
    (folder / "test_questions.json").write_text(text, encoding="utf-8")
    whole = read_users(folder, task, "test")
    users = open_users(folder, task, "test")
    assert len(whole) == 7 and users.ids == [user.id for user in whole]
    assert [user for start in (0, 3, 6) for user in users[start : start + 3]] == whole
    assert users[2] == users[-5] == whole[2]
    some = open_users(folder, task, "test", limit=3, seed=1)
    assert list(some) == read_users(folder, task, "test", limit=3, seed=1)
    with pytest.raises(IndexError):
        users[7]
    (folder / "test_questions.json").write_text(text.replace("\ufeff", "\n\n"), encoding="utf-8")
    with pytest.raises(DataError, match="changed while it was in use"):
        list(users)


def test_a_damaged_profile_is_found_before_the_run_begins(tmp_path: Path) -> None:
    data = write_many(tmp_path / "data", 40)
    path = data / "LaMP_3" / "dev_questions.json"
    path.write_text(path.read_text().replace('"id": "39.1"', '"no": 1'))
    with pytest.raises(DataError, match=r"question q39, item no\. 2"):
        open_users(data, get_task("LaMP_3"), "dev")


# Working set and engines --------------------------------------------------------------------


@pytest.mark.parametrize("user", ["u", "..", ".", "a/b", "../../x", "%2E.", "\u4e2d" * 200, "a b"])
def test_any_user_id_has_a_folder_of_its_own(tmp_path: Path, user: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.path("personal", "LaMP_3", user)
    assert folder.resolve().parent == checkpoints.folder.resolve() / "personal" / "LaMP_3"
    assert len(os.fsencode(folder.name)) < 200 and folder.name not in ("", ".", "..")
    others = [checkpoints.path("personal", "LaMP_3", other) for other in ("v", "%2E", user + "y")]
    assert folder not in others


def test_both_engines_give_the_same_study(backbone_folder: Folder, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_demo(data, seed=1, train_users=2, users=3)
    questions = data / "LaMP_3" / "test_questions.json"
    items = json.loads(questions.read_text())
    for item in items:
        if item["user_id"] == items[0]["user_id"]:
            item["profile"] = []  # this user has no adapter
    questions.write_text(json.dumps(items))
    arms = ["shared", "personal", "personal-only"]
    found = {}
    for engine in ("bank", "peft"):
        settings = config(data, backbone_folder("llama"), engine=engine, arms=arms, working_set=2)
        Study(settings, tmp_path / engine).run()
        losses, answers = {}, {}
        for event in EventLog(tmp_path / engine / "events.jsonl"):
            if event["event"] == "trained":
                losses[event["task"], event["adapter"], event["user"]] = event["losses"]
            elif event["event"] == "answered":
                answers[event["arm"], event["task"], event["user"]] = event["answers"]
        found[engine] = losses, answers
    for key, losses in found["peft"][0].items():
        assert found["bank"][0][key] == pytest.approx(losses, abs=2e-4)
    assert found["bank"][0].keys() == found["peft"][0].keys()
    assert len(found["peft"][0]) == 2 + 2 * (2 + 3)
    assert found["bank"][1] == found["peft"][1]
    # Adapters that stand for different users must have been told apart.
    given = [a["answer"] for (arm, *_), e in found["bank"][1].items() for a in e if arm != "shared"]
    assert len(set(given)) > 2


@pytest.mark.parametrize("engine", ["bank", "peft"])
def test_an_adapter_whose_loss_is_not_finite_is_reported(
    backbone_folder: Folder, tmp_path: Path, engine: str
) -> None:
    write_demo(tmp_path / "data", seed=1, train_users=2, users=2)
    wild = QUICK.model_copy(update={"learning_rate": 1e30, "epochs": 3})
    settings = config(
        tmp_path / "data",
        backbone_folder("llama"),
        engine=engine,
        tasks=["LaMP_3"],
        arms=["shared", "personal"],
        personal=wild,
    )
    Study(settings, tmp_path / "run").run()
    events = [e for e in EventLog(tmp_path / "run" / "events.jsonl") if e["event"] == "trained"]
    assert "stopped" not in events[0], "the shared adapter is well"
    assert all(" nan in step " in event["stopped"] for event in events[1:])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "LaMP_3: the training of 2 personal adapters stopped early" in page


def test_the_training_of_an_adapter_saved_before_the_kill_is_still_logged(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    write_demo(tmp_path / "data", seed=1, train_users=2, users=2)
    settings = config(tmp_path / "data", backbone_folder("llama"), tasks=["LaMP_3"])
    out = tmp_path / "run"
    whole = comparable(Study(settings, out).run())
    lines = (out / "events.jsonl").read_text().splitlines(keepends=True)
    # As if the run had been killed with the adapters on disk and nothing logged after `started`.
    (out / "events.jsonl").write_text(lines[0])
    assert comparable(Study(settings, out, resume=True).run()) == whole
    before = [json.loads(line) for line in lines]
    for kind in ("trained", "answered"):
        found = [event for event in read_events(out / "events.jsonl") if event["event"] == kind]
        assert len(found) == sum(event["event"] == kind for event in before)
    losses = [e["losses"] for e in EventLog(out / "events.jsonl") if e["event"] == "trained"]
    assert losses == [e["losses"] for e in before if e["event"] == "trained"]


# Workers ------------------------------------------------------------------------------------


def test_workers_change_no_result_and_one_that_is_killed_loses_nothing(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    # More groups than two workers may begin before the first has ended.
    write_demo(tmp_path / "data", seed=1, train_users=2, users=10)
    arms = ["generic", "shared", "personal"]
    one = config(
        tmp_path / "data", backbone_folder("llama"), tasks=["LaMP_3"], arms=arms, working_set=1
    )
    whole = comparable(Study(one, tmp_path / "one").run())
    two = one.model_copy(update={"workers": 2})
    killed = []

    def kill(text: str, done: int, planned: int) -> None:
        if done > 0 and not killed:
            process = multiprocessing.active_children()[0]
            assert process.pid is not None
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    out = tmp_path / "two"
    with pytest.raises(PfiError, match=r"worker \d was killed.*SIGKILL.*--resume.*--workers"):
        Study(two, out, on_progress=kill).run()
    log = EventLog(out / "events.jsonl")
    assert log.answered("generic", "LaMP_3"), "the groups that had ended are logged"
    # Damage what another worker will read: it is told as it is.
    user = open_users(tmp_path / "data", get_task("LaMP_3"), "test").ids[-1]
    adapter = Checkpoints(out).path("personal", "LaMP_3", user)
    kept = [(path, path.read_bytes()) for path in adapter.glob("adapter*")]
    adapter.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{")
    with pytest.raises(BackboneError, match="the adapter is damaged"):
        Study(two, out, resume=True).run()
    for path in adapter.iterdir():
        path.unlink()
    for path, content in kept:
        path.write_bytes(content)
    # Another number of workers may go on; here this process is the only one.
    assert comparable(Study(one, out, resume=True).run()) == whole
    asked = {name: _answers(tmp_path / name) for name in ("one", "two")}
    assert asked["one"] == asked["two"]
    assert not list((out / "checkpoints").glob("state-*"))
    users = [e["user"] for e in EventLog(out / "events.jsonl") if e["event"] == "answered"]
    order = open_users(tmp_path / "data", get_task("LaMP_3"), "test").ids
    assert list(dict.fromkeys(users))[:2] == order[:2], "the log keeps the order of the groups"


def _answers(out: Path) -> dict[tuple[str, str], Any]:
    events = [event for event in EventLog(out / "events.jsonl") if event["event"] == "answered"]
    keys = [(event["arm"], event["user"]) for event in events]
    assert len(keys) == len(set(keys))
    return {key: event["answers"] for key, event in zip(keys, events, strict=True)}
