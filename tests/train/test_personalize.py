"""Many users: each gets the adapter they would get alone, whatever stops the run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from pfi.errors import PfiError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.backbone import load_backbone
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import Job, train_one
from pfi.train.loop import BankTrainer
from pfi.train.many_users.results import adapter_folder, result_path, results
from pfi.train.many_users.run import personalize
from pfi.train.trainers import TRAINERS, get_trainer

Folder = Callable[[str], Path]
CONFIG = TrainConfig(rank=2, alpha=4, epochs=3, batch_size=2, learning_rate=1e-2)
COUNT, EMPTY, FAULTY = 8, 2, 5
WORDS = [
    "quick", "brown", "fox", "lazy", "dog", "film", "book", "score", "title", "good", "bad", "fine",
]  # fmt: skip


def examples(number: int, marker: Path | None = None) -> list[Example]:
    """What a user learns from; the faulty one has an accident while the marker exists."""
    if number == FAULTY and marker is not None and marker.exists():
        how = marker.read_text()
        marker.unlink()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("an accident")
    if number == EMPTY:
        return []
    amount = 2 + 3 * (number % 3)
    words = [WORDS[(number + i) % len(WORDS)] for i in range(amount)]
    return [Example(f"a {word} {number}", words[0], {}, str(i)) for i, word in enumerate(words)]


def people(count: int, marker: Path | None = None) -> Iterator[Job]:
    for number in range(count):
        yield Job(f"user {number}", partial(examples, number, marker), seed=number)


@pytest.fixture(scope="module")
def alone(backbone_folder: Folder) -> dict[str, Adapter]:
    """Every user's adapter, trained alone by the reference engine."""
    backbone = load_backbone(backbone_folder("llama"))
    return {
        f"user {i}": train_one(get_trainer("peft"), backbone, examples(i), CONFIG, seed=i).adapter
        for i in range(COUNT)
        if i != EMPTY
    }


@pytest.fixture(params=["peft", "bank"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # The bank saves its state after every round, so that a fault finds it half-way.
    monkeypatch.setitem(TRAINERS, "bank", partial(BankTrainer, save_seconds=0))  # type: ignore[arg-type]
    return request.param


def check(out: Path, alone: dict[str, Adapter]) -> None:
    """All users are there, each once, with the adapter that they get alone."""
    found = {result.id: result for result in results(out)}
    files = (out / "results").glob("*.jsonl")
    assert sum(len(path.read_text().splitlines()) for path in files) == len(found) == COUNT
    assert found[f"user {EMPTY}"].folder is None
    for user, expected in alone.items():
        folder = found[user].folder
        assert folder is not None and found[user].steps > 0 and found[user].stopped is None
        adapter = Adapter.load(out / folder)
        assert adapter.weights.keys() == expected.weights.keys()
        for name, weight in expected.weights.items():
            assert torch.allclose(adapter.weights[name], weight, atol=1e-5), (user, name)
    assert not (out / "state").exists()


def test_every_user_gets_the_adapter_they_would_get_alone(
    backbone_folder: Folder, alone: dict[str, Adapter], engine: str, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    summary = personalize(
        list(people(COUNT)),
        tmp_path,
        backbone=backbone_folder("llama"),
        config=CONFIG,
        engine=engine,
        working_set=3,
        on_progress=lambda done, planned: told.append((done, planned)),
    )
    check(tmp_path, alone)
    assert (summary.users, summary.trained, summary.without_examples) == (COUNT, COUNT - 1, 1)
    assert summary.stopped == {} and summary.seconds > 0
    assert summary.users_per_hour == pytest.approx(3600 * COUNT / summary.seconds)
    assert told == [(done, COUNT) for done in range(COUNT + 1)]
    last = next(result for result in results(tmp_path) if result.id == "user 7")
    assert last.first_loss is not None and last.last_loss is not None
    assert (last.examples, last.steps, last.last_loss < last.first_loss) == (5, 8, True)


def test_a_run_goes_on_after_an_error(
    backbone_folder: Folder, alone: dict[str, Adapter], engine: str, tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    marker.write_text("raise")
    run = partial(
        personalize,
        partial(people, COUNT, marker),
        out,
        backbone=backbone_folder("llama"),
        config=CONFIG,
        engine=engine,
        working_set=3,
    )
    with pytest.raises(ValueError, match="an accident"):
        run()
    done = {result.id for result in results(out)}
    assert 0 < len(done) < COUNT
    half_way = out / "state" / "part-0" / "state.json"
    assert half_way.exists() is (engine == "bank")
    if engine == "bank":
        assert any(member["step"] for member in json.loads(half_way.read_text())["members"])
    summary = run(resume=True)
    check(out, alone)
    assert summary.users == COUNT
    assert summary.users_per_hour == pytest.approx(3600 * (COUNT - len(done)) / summary.seconds)


def test_lines_older_than_a_second_runs_state_are_skipped_by_the_third(
    backbone_folder: Folder,
    alone: dict[str, Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A state counts jobs of its own run; what was done before that is not among them."""
    monkeypatch.setitem(TRAINERS, "bank", partial(BankTrainer, save_seconds=0))  # type: ignore[arg-type]
    out, marker = tmp_path / "out", tmp_path / "marker"
    run = partial(
        personalize,
        partial(people, COUNT, marker),
        out,
        backbone=backbone_folder("llama"),
        config=CONFIG,
    )
    marker.write_text("raise")
    with pytest.raises(ValueError):
        run(working_set=1)
    first = len(list(results(out)))
    marker.write_text("raise")
    with pytest.raises(ValueError):
        run(working_set=2, resume=True)  # another order: the state is dropped
    begun = json.loads((out / "state" / "part-0.json").read_text())
    assert first > 0 and begun["part-0.jsonl"] > 0
    run(working_set=2, resume=True)
    check(out, alone)


def whole_run(out: Path, backbone: Path, marker: Path) -> None:
    """A run in a process of its own, with a bank that saves after every round."""
    torch.set_num_threads(1)
    TRAINERS["bank"] = partial(BankTrainer, save_seconds=0)  # type: ignore[assignment]
    jobs = partial(people, COUNT, marker)
    personalize(jobs, out, backbone=backbone, config=CONFIG, working_set=3)


def test_a_run_goes_on_after_kill_9(
    backbone_folder: Folder, alone: dict[str, Adapter], tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    marker.write_text("kill")
    given = (out, backbone_folder("llama"), marker)
    process = multiprocessing.get_context("spawn").Process(target=whole_run, args=given)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (out / "state" / "part-0" / "state.json").exists()
    jobs = partial(people, COUNT, marker)
    folder = backbone_folder("llama")
    personalize(jobs, out, backbone=folder, config=CONFIG, working_set=3, resume=True)
    check(out, alone)


def test_a_killed_worker_is_reported_and_loses_nothing(
    backbone_folder: Folder, alone: dict[str, Adapter], tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "marker"
    marker.write_text("kill")
    run = partial(
        personalize,
        partial(people, COUNT, marker),
        out,
        backbone=backbone_folder("llama"),
        config=CONFIG,
        engine="peft",
    )
    with pytest.raises(PfiError, match=r"signal 9 \(SIGKILL\).*--resume"):
        run(workers=2)
    assert not multiprocessing.active_children()
    assert result_path(out, FAULTY % 2).read_text(), "what it had finished is there"
    run(workers=1, resume=True)
    check(out, alone)


@pytest.mark.slow
def test_two_workers_equal_one(
    backbone_folder: Folder, alone: dict[str, Adapter], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    marker.write_text("raise")
    told: list[int] = []
    run = partial(
        personalize,
        partial(people, COUNT, marker),
        tmp_path / "out",
        backbone=backbone_folder("llama"),
        config=CONFIG,
        workers=2,
        on_progress=lambda done, planned: told.append(done),
    )
    with pytest.raises(ValueError, match="an accident") as raised:
        run()
    assert "in examples" in raised.value.__notes__[0]
    assert not multiprocessing.active_children()
    run(resume=True)
    check(tmp_path / "out", alone)
    assert told[-1] == COUNT and told == sorted(told)
    assert all(result_path(tmp_path / "out", part).read_text() for part in (0, 1))


@pytest.mark.slow
def test_ray_equals_one_process(
    backbone_folder: Folder,
    alone: dict[str, Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")
    marker = tmp_path / "marker"
    marker.write_text("kill")  # Ray repeats the part whose process was killed
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run = partial(
            personalize,
            partial(people, COUNT, marker),
            backbone=backbone_folder("llama"),
            config=CONFIG,
            ray=True,
        )
        monkeypatch.chdir(tmp_path)  # other than the one that the tasks' processes begin in
        summary = run(Path("out"))
        check(tmp_path / "out", alone)
        assert summary.trained == COUNT - 1 and not marker.exists()
        assert result_path(tmp_path / "out", 7).exists(), "eight parts on two processors"
        marker.write_text("raise")
        with pytest.raises(ValueError, match="an accident"):
            run(tmp_path / "other")
        run(tmp_path / "other", resume=True)
        check(tmp_path / "other", alone)
    finally:
        ray.shutdown()


def test_a_torn_line_is_done_again_and_a_damaged_one_refused(
    backbone_folder: Folder, alone: dict[str, Adapter], tmp_path: Path
) -> None:
    run = partial(
        personalize,
        list(people(COUNT)),
        tmp_path,
        backbone=load_backbone(backbone_folder("llama")),
        config=CONFIG,
        engine="peft",
        resume=True,
    )
    run()
    path = result_path(tmp_path, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(list(results(tmp_path))) == COUNT - 1
    told: list[int] = []
    run(on_progress=lambda done, planned: told.append(done))
    assert told == [COUNT - 1, COUNT]
    check(tmp_path, alone)
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(StorageError, match=r"part-0\.jsonl, line 1: the line is damaged"):
        run()


def test_a_user_whose_loss_is_nan_is_reported_and_the_others_untouched(
    backbone_folder: Folder, alone: dict[str, Adapter], engine: str, tmp_path: Path
) -> None:
    good = alone["user 0"]
    bad = Adapter(good.settings, {k: v.clone() for k, v in good.weights.items()})
    # Finite, as factors that can be read are; its products are not.
    for factor in bad.weights.values():
        factor.fill_(1e38)
    jobs = [*people(3), Job("bad", examples(1), 0, bad), *list(people(COUNT))[3:]]
    backbone = load_backbone(backbone_folder("llama"))
    summary = personalize(
        jobs, tmp_path, backbone=backbone, config=CONFIG, engine=engine, working_set=4
    )
    assert summary.stopped == {"the loss was nan": 1}
    assert (summary.users, summary.trained) == (COUNT + 1, COUNT)  # one has no examples
    [line] = [result for result in results(tmp_path) if result.id == "bad"]
    assert line.stopped == "the loss was nan in step 1"
    kept = Adapter.load(tmp_path / adapter_folder("bad"))  # as it was before that step
    assert all(torch.equal(kept.weights[k], v) for k, v in bad.weights.items())
    for user, expected in alone.items():
        found = Adapter.load(tmp_path / adapter_folder(user))
        assert all(
            torch.allclose(found.weights[k], v, atol=1e-5) for k, v in expected.weights.items()
        )


def test_a_shared_adapter_lies_beneath_and_in_the_run(
    backbone_folder: Folder, alone: dict[str, Adapter], tmp_path: Path
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    shared = alone["user 1"]
    run = partial(
        personalize, list(people(1)), tmp_path, backbone=backbone, config=CONFIG, engine="peft"
    )
    run(shared=shared)
    base = backbone.with_adapters([shared])
    expected = train_one(get_trainer("peft"), base, examples(0), CONFIG, seed=0).adapter
    found = Adapter.load(tmp_path / adapter_folder("user 0"))
    for name, weight in expected.weights.items():
        assert torch.allclose(found.weights[name], weight, atol=1e-6)
        assert not torch.allclose(alone["user 0"].weights[name], weight, atol=1e-6)
    kept = Adapter.load(tmp_path / "shared").weights
    assert all(torch.equal(kept[name], weight) for name, weight in shared.weights.items())
    with pytest.raises(StorageError, match="another configuration: shared"):
        run(shared=alone["user 0"], resume=True)
