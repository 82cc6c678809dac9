"""Training in the bank: equal to one adapter alone and to peft, and what happens on faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from pfi.errors import ConfigError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.models.bank.packing import Row, target_losses
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import Job, TrainResult
from pfi.train.loop import BankTrainer
from pfi.train.optim import SlotAdamW
from pfi.train.peft_reference import PeftTrainer
from pfi.train.trainers import get_trainer

Folder = Callable[[str], Path]
WORDS = ["brown", "lazy", "film", "book", "title", "fox", "dog", "jumps", "over", "good"]
CONFIG = TrainConfig(rank=4, alpha=8, epochs=5, batch_size=2, learning_rate=2e-3)


def examples(count: int, user: int) -> list[Example]:
    """Examples of different lengths; those of a user begin alike."""
    return [
        Example(
            f"a quick {WORDS[user]} fox" + " dog" * (i * user % 5) + f" {WORDS[i % 10]}",
            WORDS[(i * 3 + user) % 10] + (" bad" if i % 2 else ""),
            {},
            str(i),
            weight=(1.0, 0.25, 2.0)[i % 3],
        )
        for i in range(count)
    ]


def jobs_of(backbone: Backbone, config: TrainConfig = CONFIG) -> list[Job]:
    """Five users with 4 to 8 examples; three go on from adapters of other ranks."""
    jobs = [Job(f"u{user}", examples(3 + user, user), seed=user) for user in range(1, 6)]
    bank = AdapterBank(backbone, config, 3)
    for i, rank in ((0, 1), (2, 3), (4, 2)):
        slot = bank.new(10 + i, rank=rank, alpha=rank + 3)
        jobs[i] = Job(jobs[i].id, jobs[i].examples, jobs[i].seed, start=bank.adapter(slot))
    return jobs


def outcome(
    trainer: PeftTrainer | BankTrainer, backbone: Backbone, jobs: Sequence[Job], config: TrainConfig
) -> dict[str, TrainResult]:
    found = {}
    for job, result in trainer.train_many(backbone, jobs, config):
        assert result is not None
        found[job.id] = result
    return found


def gap(one: Adapter, other: Adapter) -> float:
    """The largest difference of two adapters' factors."""
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[k] - other.weights[k]).abs().max()) for k in one.weights)


@pytest.mark.parametrize(
    "changes", [{}, {"layers": "last:1"}, {"held_back": 0.3, "epochs": 16, "learning_rate": 1.2e-2}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_slot_equals_the_adapter_alone_and_peft(
    backbone_folder: Folder, family: str, changes: dict[str, object]
) -> None:
    """Mixed ranks, lengths and amounts, over 10 to 20 steps and more; some stop early."""
    backbone = load_backbone(backbone_folder(family))
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    config = CONFIG.model_copy(update=changes)
    # AdamW divides by its own noise: at a larger rate rounding shows more.
    tolerance = 1e-5 if config.learning_rate == CONFIG.learning_rate else 5e-5
    jobs = jobs_of(backbone, config)
    peft = outcome(PeftTrainer(), backbone, jobs, config)
    many = outcome(BankTrainer(working_set=3, tokens=150), backbone, jobs, config)
    for job in jobs:
        alone = outcome(BankTrainer(working_set=1), backbone, [job], config)[job.id]
        expected, found = peft[job.id], many[job.id]
        assert found.steps == alone.steps == expected.steps
        assert found.stopped == alone.stopped == expected.stopped
        assert found.losses == pytest.approx(expected.losses, abs=1e-4)
        assert gap(found.adapter, alone.adapter) < tolerance
        assert gap(found.adapter, expected.adapter) < tolerance
        assert found.adapter.settings["r"] == expected.adapter.settings["r"]
    assert len({result.steps for result in many.values()}) > 1
    if "held_back" in changes:
        assert any(result.stopped for result in many.values())
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_frozen_layers_run_at_every_step_where_their_states_are_too_many_to_cache(
    backbone_folder: Folder, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder(family))
    config = CONFIG.model_copy(update={"layers": "last:1", "held_back": 0.3})
    jobs = jobs_of(backbone, config)
    cached = outcome(BankTrainer(), backbone, jobs, config)
    # Some jobs are within the limit and some beyond it.
    monkeypatch.setattr("pfi.train.loop._CACHE", 9000)
    found = outcome(BankTrainer(), backbone, jobs, config)
    for job in jobs:
        assert found[job.id].losses == pytest.approx(cached[job.id].losses, abs=1e-4)
        assert gap(found[job.id].adapter, cached[job.id].adapter) < 1e-5


def test_training_changes_an_adapter_by_more_than_the_tolerance(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    job = Job("u", examples(4, 1), seed=1)
    few = outcome(BankTrainer(), backbone, [job], CONFIG.model_copy(update={"epochs": 0.5}))["u"]
    many = outcome(BankTrainer(), backbone, [job], CONFIG)["u"]
    assert gap(few.adapter, many.adapter) > 1e-3


def test_dropout_is_the_same_whatever_the_batch(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    jobs, config = jobs_of(backbone), CONFIG.model_copy(update={"dropout": 0.3})
    together = outcome(BankTrainer(working_set=4), backbone, jobs, config)
    apart = outcome(BankTrainer(working_set=1, tokens=16), backbone, jobs, config)
    without = outcome(BankTrainer(), backbone, jobs, CONFIG)
    for job in jobs:
        assert gap(together[job.id].adapter, without[job.id].adapter) > 1e-4
        if job.id != "u2":
            continue
        assert gap(together[job.id].adapter, apart[job.id].adapter) < 1e-5


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_bfloat16_learns_about_the_same(backbone_folder: Folder, family: str) -> None:
    backbone = load_backbone(backbone_folder(family))
    jobs = jobs_of(backbone)
    config = CONFIG.model_copy(update={"precision": "bfloat16", "learning_rate": 1e-2})
    found = outcome(BankTrainer(), backbone, jobs, config)
    expected = outcome(PeftTrainer(), backbone, jobs, config)
    for job in jobs:
        assert found[job.id].losses[-1] == pytest.approx(expected[job.id].losses[-1], rel=0.1)
        assert found[job.id].adapter.weights.popitem()[1].dtype == torch.float32


def test_users_without_examples_are_given_back_and_jobs_are_drawn_late(
    backbone_folder: Folder,
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    drawn: list[int] = []

    def source() -> object:
        for user in range(6):
            drawn.append(user)
            yield Job(f"u{user}", lambda user=user: examples(2 if user % 2 else 0, user), user)

    ended = []
    for job, result in BankTrainer(working_set=2).train_many(backbone, source(), CONFIG):
        ended.append((job.id, result is not None))
        if len(ended) == 1:
            assert len(drawn) <= 3
    assert sorted(ended) == [(f"u{user}", bool(user % 2)) for user in range(6)]


def test_a_slot_whose_loss_is_not_finite_stops_and_leaves_the_others(
    backbone_folder: Folder,
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    jobs = jobs_of(backbone)
    broken = AdapterBank(backbone, CONFIG, 1)
    adapter = broken.adapter(broken.new(1))
    next(v for k, v in adapter.weights.items() if "mlp" in k).fill_(3e38)
    for trainer in (BankTrainer(working_set=6), PeftTrainer()):
        found = outcome(trainer, backbone, [*jobs, Job("nan", examples(4, 3), 0, adapter)], CONFIG)
        expected = outcome(trainer, backbone, jobs, CONFIG)
        assert found["nan"].stopped == "the loss was nan in step 1"
        assert found["nan"].losses == []
        for job in jobs:
            assert found[job.id].stopped is None
            assert gap(found[job.id].adapter, expected[job.id].adapter) < 1e-6


def test_out_of_memory_halves_the_batch_and_goes_on(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    jobs = jobs_of(backbone)
    expected = outcome(BankTrainer(tokens=400), backbone, jobs, CONFIG)
    failures = []

    def scarce(limit: int) -> None:
        def losses(backbone: Backbone, rows: Sequence[Row]) -> torch.Tensor:
            size = len(rows) * max(len(row) for row in rows)
            if size > limit:
                failures.append(size)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
            return target_losses(backbone, rows)

        monkeypatch.setattr("pfi.train.loop.target_losses", losses)

    scarce(60)
    found = outcome(BankTrainer(tokens=400), backbone, jobs, CONFIG)
    assert 0 < len(failures) < 20
    for job in jobs:
        assert gap(found[job.id].adapter, expected[job.id].adapter) < 1e-5
    scarce(2)
    with pytest.raises(RuntimeError, match="can't allocate"):
        outcome(BankTrainer(tokens=400), backbone, jobs, CONFIG)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from test_bank_trainer import CONFIG, BankTrainer, Job, examples, load_backbone
    jobs = [Job(f"u{{u}}", examples(3 + u, u), seed=u) for u in range(1, 7)]
    config = CONFIG.model_copy(update={{"held_back": 0.2, "patience": 9}})
    count = 0
    def on_step(job, step, steps, loss):
        global count
        count += 1
        if count == 31:
            os.kill(os.getpid(), signal.SIGKILL)
    trainer = BankTrainer(working_set=3, save_seconds=0)
    backbone = load_backbone({folder!r})
    for job, result in trainer.train_many(
        backbone, jobs, config, on_step=on_step, state=Path({state!r})
    ):
        result.adapter.save(Path({out!r}) / job.id)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    folder, state, out = backbone_folder("llama"), tmp_path / "state", tmp_path / "out"
    script = textwrap.dedent(KILLED).format(
        tests=str(Path(__file__).parent), folder=str(folder), state=str(state), out=str(out)
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (state / "state.json").exists()
    jobs = [Job(f"u{user}", examples(3 + user, user), seed=user) for user in range(1, 7)]
    config = CONFIG.model_copy(update={"held_back": 0.2, "patience": 9})
    backbone = load_backbone(folder)
    expected = outcome(BankTrainer(working_set=3), backbone, jobs, config)
    steps = 0

    def on_step(job: str, step: int, planned: int, loss: float) -> None:
        nonlocal steps
        steps += 1

    trainer = BankTrainer(working_set=3)
    for job, result in trainer.train_many(backbone, jobs, config, on_step=on_step, state=state):
        assert result is not None
        assert result.losses == expected[job.id].losses
        result.adapter.save(out / job.id)
    assert sum(result.steps for result in expected.values()) - 31 <= steps
    assert steps < sum(result.steps for result in expected.values()) - 20
    for job in jobs:
        assert gap(Adapter.load(out / job.id), expected[job.id].adapter) == 0
    assert not state.exists()


def test_a_state_of_other_jobs_is_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    jobs = [Job(f"u{user}", examples(4, user), seed=user) for user in range(3)]
    trainer = BankTrainer(working_set=2, save_seconds=0)
    run = trainer.train_many(backbone, jobs, CONFIG, state=tmp_path / "s")
    next(run)
    run.close()
    others = [Job(f"x{user}", examples(4, user), seed=user) for user in range(3)]
    with pytest.raises(StorageError, match="other jobs"):
        list(trainer.train_many(backbone, others, CONFIG, state=tmp_path / "s"))
    (tmp_path / "s" / "state.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        list(trainer.train_many(backbone, jobs, CONFIG, state=tmp_path / "s"))


def test_frozen_slots_take_no_step(backbone_folder: Folder) -> None:
    bank = AdapterBank(load_backbone(backbone_folder("llama")), CONFIG, 2)
    slots = [bank.new(1), bank.new(2)]
    bank.freeze(slots[0])
    before = bank.weights.clone()
    SlotAdamW(bank, 0.0).step(slots, torch.ones(2, bank.width), [1e-3, 1e-3])
    assert torch.equal(bank.weights[slots[0]], before[slots[0]])
    assert not torch.equal(bank.weights[slots[1]], before[slots[1]])
    bank.freeze(slots[0], False)
    SlotAdamW(bank, 0.0).step(slots[:1], torch.ones(1, bank.width), [1e-3])
    assert not torch.equal(bank.weights[slots[0]], before[slots[0]])


def test_mistakes_in_settings_have_one_clear_line(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    wrong = CONFIG.model_copy(update={"layers": "last:9"})
    with pytest.raises(ConfigError, match="has 2 blocks, not 9"):
        outcome(BankTrainer(), backbone, jobs_of(backbone), wrong)
    assert isinstance(get_trainer(), BankTrainer)
