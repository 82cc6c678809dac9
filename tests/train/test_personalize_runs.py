"""Many users: refusals, the run folder, bounded memory, LaMP files and the command."""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from test_personalize import CONFIG, people
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.datasets.demo import write_demo
from pfi.errors import ConfigError, DataError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.backbone import load_backbone
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import Job, TrainResult, train_one
from pfi.train.many_users.lamp import LampJobs
from pfi.train.many_users.results import adapter_folder, results
from pfi.train.many_users.run import personalize
from pfi.train.trainers import TRAINERS, get_trainer

Folder = Callable[[str], Path]


class Fake:
    """An engine that holds a working set of jobs and makes a small adapter of nothing."""

    together = True

    def train_many(self, backbone, jobs, config, *, on_step=None, state=None):  # type: ignore[no-untyped-def]
        held: deque[tuple[Job, object]] = deque()
        for job in jobs:
            held.append((job, job.load()))
            if len(held) == 16:
                yield self.end(*held.popleft())
        while held:
            yield self.end(*held.popleft())

    @staticmethod
    def end(job: Job, made: object) -> tuple[Job, TrainResult]:
        adapter = Adapter({"r": 1}, {"a": torch.zeros(4)})
        return job, TrainResult(adapter, [1.0, 0.5], 0.001, None, len(made))  # type: ignore[arg-type]


@pytest.fixture
def fake(backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """``personalize`` with the fake engine."""
    monkeypatch.setitem(TRAINERS, "fake", Fake)
    backbone = load_backbone(backbone_folder("llama"))

    def run(users: object, out: Path, **options: object) -> object:
        given = {"backbone": backbone, "config": CONFIG, "engine": "fake", **options}
        return personalize(users, out, **given)  # type: ignore[arg-type]

    return run


def test_what_makes_no_sense_is_refused(
    fake: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, source = list(people(3)), partial(people, 3)
    wrong: list[tuple[object, dict[str, object], str]] = [
        (jobs, {"workers": 0}, "at least 1"),
        (jobs, {"working_set": 0}, "at least 1"),
        (jobs, {"engine": "magic"}, "unknown engine"),
        (source, {"workers": 2}, "workers load the backbone themselves.*name or folder"),
        (jobs, {"workers": 2, "backbone": "embedded"}, "cannot be divided.*LampJobs"),
        (lambda: jobs, {"workers": 2, "backbone": "embedded"}, "cannot be sent to workers"),
        (source, {"workers": 2, "ray": True}, "Ray decides"),
    ]
    for users, options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            fake(users, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'pfi\[ray\]'"):
        fake(source, tmp_path / "ray", ray=True, backbone="embedded")
    with pytest.raises(DataError, match="two users have this id"):
        fake([jobs[0], jobs[1], jobs[0]], tmp_path / "twice")


def test_a_folder_that_is_in_use_or_of_another_run_is_refused(
    fake: Callable[..., object], tmp_path: Path
) -> None:
    import fcntl

    fake(people(3), tmp_path)
    with pytest.raises(StorageError, match=r"already holds a run.*--resume"):
        fake(people(3), tmp_path)
    other = CONFIG.model_copy(update={"epochs": 4})
    with pytest.raises(StorageError, match="another configuration: training"):
        fake(people(3), tmp_path, config=other, resume=True)
    fake(people(4), tmp_path, resume=True, working_set=2)
    assert len(list(results(tmp_path))) == 4
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another run is writing here"):
            fake(people(4), tmp_path, resume=True)


class Stale(Fake):
    """An engine whose state is always from before its first user ended."""

    given: ClassVar[list[list[str]]] = []

    def train_many(self, backbone, jobs, config, *, on_step=None, state=None):  # type: ignore[no-untyped-def]
        state.mkdir(exist_ok=True)
        (state / "state.json").write_text("{}")
        self.given.append([])
        for job in jobs:
            self.given[-1].append(job.id)
            if len(self.given) == 1 and len(self.given[-1]) == 3:
                raise ValueError("an accident")
            yield self.end(job, job.load())


def test_users_who_ended_after_the_state_was_saved_are_not_recorded_twice(
    fake: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAINERS, "fake", Stale)
    with pytest.raises(ValueError, match="an accident"):
        fake(people(5), tmp_path)
    fake(people(5), tmp_path, resume=True)
    everybody = [job.id for job in people(5)]
    assert Stale.given == [everybody[:3], everybody], "a state's jobs are given from the first on"
    lines = (tmp_path / "results" / "part-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == everybody


def test_no_two_users_share_a_folder_and_none_leaves_it() -> None:
    users = [
        "a",
        "A",
        "a/b",
        "a_b",
        "..",
        "",
        "é",
        "e\u0301",
        "a" * 300,
        "a" * 301,
        "con:",
        "\udc80",
    ]
    folders = [adapter_folder(user) for user in users]
    assert len({folder.lower() for folder in folders}) == len(users)
    for folder in folders:
        room, shelf, name = folder.split("/")
        assert room == "adapters" and len(shelf) == 2 and 0 < len(name) < 100
        assert name.isascii() and not name.startswith(".")
    assert adapter_folder("12345").endswith("/12345")


# Memory -------------------------------------------------------------------------------


class Live(list):  # type: ignore[type-arg]
    """Examples that are counted while they exist."""

    now = most = 0

    def __init__(self, items: list[Example]) -> None:
        super().__init__(items)
        Live.now += 1
        Live.most = max(Live.most, Live.now)

    def __del__(self) -> None:
        Live.now -= 1


def crowd(count: int) -> Iterator[Job]:
    for number in range(count):
        yield Job(str(number), partial(Live, [Example("a", "b", {}, "0")]), number)


def test_only_a_working_set_of_jobs_is_held(fake: Callable[..., object], tmp_path: Path) -> None:
    Live.now = Live.most = 0
    fake(crowd(2000), tmp_path)
    gc.collect()
    assert len(list(results(tmp_path))) == 2000
    assert 16 <= Live.most <= 18
    assert Live.now == 0


def resident() -> float:
    """This process's resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_for_100_000_users(
    fake: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 100_000
    seen: list[float] = []

    def watch(done: int, planned: int | None) -> None:
        if done % 1000 == 0 or done > count:
            seen.append(resident())

    started = time.perf_counter()
    fake(partial(crowd, count), tmp_path, on_progress=watch)
    seconds = time.perf_counter() - started
    assert len(list((tmp_path / "adapters").iterdir())) == 256
    # A part's memory is that of the ids; nothing of 100,000 users' examples and adapters.
    grown = max(seen) - seen[1]
    fake(partial(crowd, count + 1), tmp_path, on_progress=watch, resume=True)
    again = max(seen) - seen[1]
    with capsys.disabled():
        print(f"\n{count} users: {seconds:.0f} s, +{grown:.1f} MiB, resumed +{again:.1f} MiB")
    assert grown < 32
    assert again < 64
    assert sum(1 for _ in results(tmp_path)) == count + 1


# LaMP files and the command -----------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=2, users=8)
    return folder


def test_lamp_users_learn_from_what_is_older_than_their_questions(
    data: Path, backbone_folder: Folder
) -> None:
    source = LampJobs(data, "LaMP_3", backbone=str(backbone_folder("llama")), share=1.0)
    jobs = list(source())
    assert len(jobs) == len(source) == 4
    assert [job.seed for job in jobs] != [job.seed for job in LampJobs(data, "LaMP_3", seed=1)()]
    for user, job in zip(source.users, jobs, strict=True):
        first = min(question.time for question in user.questions if question.time)
        older = {record.id for record in user.history.before(first)}
        made = job.load()
        assert job.id == user.id and {example.record_id for example in made} == older
        assert any("is the score for" in example.prompt for example in made)
    copy = pickle.loads(pickle.dumps(source))
    assert [job.load() for job in copy()] == [job.load() for job in jobs]
    assert len(LampJobs(data, "LaMP_3", limit=2)) == 2


def test_the_command_trains_everybody_and_goes_on(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", backbone_folder("llama")
    flags = ["personalize", "--data", str(data), "--task", "LaMP_3", "--out", str(out)]
    flags += ["--backbone", str(folder), "--set", "epochs=0.2", "--set", "rank=2"]
    runner = CliRunner()
    result = runner.invoke(app, flags)
    assert result.exit_code == 0, result.output
    assert f"4 of 4 users have an adapter in {out / 'adapters'}" in result.stdout
    assert "pfi study" in result.stderr
    backbone = load_backbone(folder)
    for job in LampJobs(data, "LaMP_3", backbone=str(folder))():
        adapter = Adapter.load(out / adapter_folder(job.id))
        expected = train_one(
            get_trainer("peft"),
            backbone,
            job.load(),
            TrainConfig(epochs=0.2, rank=2),
            seed=job.seed,
        ).adapter
        for name, weight in expected.weights.items():
            assert torch.allclose(adapter.weights[name], weight, atol=1e-5)
    assert "--resume" in runner.invoke(app, flags).stderr
    assert runner.invoke(app, [*flags, "--resume"]).exit_code == 0
    refused = runner.invoke(app, [*flags, "--resume", "--users", "2"])
    assert refused.exit_code == 2 and "another configuration: users" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "epochs=0"], "--set epochs"),
        (["--set", "magic=1"], "--set magic"),
        (["--task", "LaMP_9"], "unknown task"),
        (["--shared", "nowhere"], "no adapter"),
        (["--data", "nowhere"], "no split"),
    ],
)
def test_mistakes_on_the_command_line_have_one_clear_line(
    data: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    given = ["--data", str(data), "--task", "LaMP_3", "--out", str(tmp_path / "out"), *flags]
    result = CliRunner().invoke(app, ["personalize", *given])
    assert result.exit_code == 2, result.output
    assert says in result.stderr and len(result.stderr.splitlines()) == 1
