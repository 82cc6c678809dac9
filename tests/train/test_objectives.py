"""The training loop with an objective passed in: one's own, cross-entropy, DPO of many users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from test_bank_trainer import CONFIG, gap, jobs_of, outcome

from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.packing import Piece, Row
from pfi.train.gradients import gradients
from pfi.train.job import Job
from pfi.train.loop import BankRun, BankTrainer
from pfi.train.objectives import DPO, CrossEntropy, Part, Preference, piece_sums
from pfi.train.peft_reference import PeftTrainer
from pfi.train.preferences import PreferenceConfig, train_preferences

Folder = Callable[[str], Path]
WORDS = ["brown", "lazy", "film", "book", "title", "fox", "dog", "jumps", "over", "good"]


class MeanOfMeans:
    """Every example counts alike, however long its target; an example is a line of text."""

    pieces = 1
    needs_reference = False
    weighs_held_back = True

    def encode(self, backbone: Backbone, example: str, max_length: int) -> Sequence[Piece]:
        prompt, _, target = example.partition(" => ")
        ids = backbone.target_ids(target, max_length // 2)
        return [Piece([*backbone.prompt_ids(prompt, max_length - len(ids)), *ids], len(ids))]

    def parts(self, backbone: Backbone, pieces: Sequence[Piece]) -> list[Part]:
        return [Part([Row([piece])]) for piece in pieces]

    def losses(
        self, pieces: Sequence[Piece], token_losses: torch.Tensor, reference: torch.Tensor | None
    ) -> torch.Tensor:
        assert reference is None
        counts = torch.tensor([piece.targets for piece in pieces])
        return piece_sums(pieces, token_losses) / counts.to(token_losses)

    def divisor(self, pieces: Sequence[Piece]) -> float:
        return len(pieces)


def lines(user: int, count: int) -> list[str]:
    return [
        f"a quick {WORDS[user]} {WORDS[i % 10]} => " + " ".join(WORDS[user : user + 1 + i % 4])
        for i in range(count)
    ]


def pairs(user: int, count: int) -> list[Preference]:
    return [
        Preference(f"a quick {WORDS[i % 10]}", WORDS[user], "bad dog" + " over" * (i % 3))
        for i in range(count)
    ]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_own_objective_is_what_is_minimised(backbone_folder: Folder, family: str) -> None:
    backbone, examples = load_backbone(backbone_folder(family)), lines(1, 5)
    config = CONFIG.model_copy(update={"batch_size": 5})
    run = BankRun(backbone, iter(()), config, None, 1, 40, MeanOfMeans())
    active = run.enter(Job("u", examples))
    assert active is not None
    run.bank.weights[active.slot] += 0.02  # both factors have gradients now
    [loss], found = run.gradients([run.next_step(active)])
    each = gradients(run.bank, [active.slot] * 5, active.pieces)
    assert torch.allclose(found[0], each.mean(0), atol=1e-6 * float(each.abs().max()))
    result = outcome(BankTrainer(objective=MeanOfMeans()), backbone, [Job("u", examples)], config)
    assert result["u"].losses[-1] < result["u"].losses[0]
    assert result["u"].losses[0] != loss and result["u"].examples == 5


def test_jobs_with_an_own_objective_are_trained_together_as_alone(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    jobs = [Job(f"u{user}", lines(user, 3 + user), user) for user in range(1, 5)]
    config = CONFIG.model_copy(update={"held_back": 0.3, "layers": "last:1"})
    together = outcome(BankTrainer(3, 150, objective=MeanOfMeans()), backbone, jobs, config)
    for job in jobs:
        alone = outcome(BankTrainer(1, objective=MeanOfMeans()), backbone, [job], config)[job.id]
        assert together[job.id].losses == pytest.approx(alone.losses, abs=1e-5)
        assert gap(together[job.id].adapter, alone.adapter) < 1e-5


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_cross_entropy_through_the_loop_equals_peft(backbone_folder: Folder, family: str) -> None:
    backbone = load_backbone(backbone_folder(family))
    jobs, config = jobs_of(backbone), CONFIG.model_copy(update={"held_back": 0.2})
    found = outcome(BankTrainer(3, objective=CrossEntropy()), backbone, jobs, config)
    expected = outcome(PeftTrainer(), backbone, jobs, config)
    for job in jobs:
        assert found[job.id].losses == pytest.approx(expected[job.id].losses, abs=1e-4)
        assert found[job.id].stopped == expected[job.id].stopped
        assert found[job.id].examples == expected[job.id].examples
        assert gap(found[job.id].adapter, expected[job.id].adapter) < 1e-5


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_preferences_of_many_users_are_trained_together_and_resumed(
    backbone_folder: Folder, tmp_path: Path, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    config = PreferenceConfig(rank=4, alpha=8, epochs=6, batch_size=2, held_back=0.2, patience=9)
    jobs = [Job(f"u{user}", pairs(user, 3 + user), user) for user in range(1, 5)]

    def trainer() -> BankTrainer:
        return BankTrainer(3, save_seconds=0, objective=config.objective())

    steps = 0

    def fail(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(trainer().train_many(backbone, jobs, config, on_step=fail, state=tmp_path / "s"))
    resumed = list(trainer().train_many(backbone, jobs, config, state=tmp_path / "s"))
    whole = outcome(trainer(), backbone, jobs, config)
    assert len(resumed) == len(jobs)
    for job, result in resumed:
        assert result is not None and result.losses == whole[job.id].losses
        assert gap(result.adapter, whole[job.id].adapter) == 0
        assert result.examples == len(job.load()) - (1 if len(job.load()) < 6 else 2)
        alone = train_preferences(backbone, job.load(), config, seed=job.seed)
        assert result.losses == pytest.approx(alone.losses, abs=1e-5)
        assert gap(result.adapter, alone.adapter) < 2e-5


def test_a_pair_for_which_memory_runs_out_cannot_be_halved(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("t5"))

    def losses(backbone: Backbone, rows: Sequence[Row]) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("pfi.train.loop.target_losses", losses)
    jobs = [Job(f"u{user}", pairs(user, 4), user) for user in range(1, 3)]
    with pytest.raises(RuntimeError, match="can't allocate"):
        outcome(BankTrainer(objective=DPO()), backbone, jobs, CONFIG)
