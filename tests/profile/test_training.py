"""`pfi train`: what is held back, what decides, what is stored, and what it says beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.cli.train import _Timing
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.home import Home
from pfi.profile.learn import measuring, training
from pfi.profile.learn.forgetting import forgetting_config
from pfi.profile.learn.measuring import Measured, example_losses, judge, paired_interval
from pfi.profile.learn.training import divide, train, training_base, usual_holdout
from pfi.profile.open import open_home
from pfi.profile.plan import expect as expecting
from pfi.profile.plan.expect import Speed, expect
from pfi.records import Record
from pfi.tasks import Example, get_task
from pfi.train.config import ForgettingConfig, TrainConfig
from pfi.train.forgetting import Forgetting, General
from pfi.train.job import as_piece, train_one
from pfi.train.loop import BankTrainer
from pfi.train.precision import in_precision

Folder = Callable[[str], Path]
TASK = get_task("LaMP_4")
QUICK = {"epochs": 1, "rank": 2}
START = datetime(2024, 1, 1, tzinfo=UTC)


def pfi(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def record(n: int) -> Record:
    text = {"text": f"story number {n} about rain"}
    return Record(f"r{n}", TASK.name, text, f"Title {n}", START + timedelta(days=n))


@pytest.fixture
def home(backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A profile with 24 records."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    pfi("init", "--backbone", str(backbone_folder("llama")), "--key", "file")
    opened = open_home()
    opened.config.embedder = "none"
    opened.save_config()
    with opened.open_vault() as vault:
        vault.add(record(n) for n in range(24))
    return opened


def scripted(monkeypatch: pytest.MonkeyPatch, *runs: Measured) -> list[Any]:
    """Measurements come from here, in turn; the adapters that were measured are noted."""
    left, asked = list(runs), []

    def measure(base: Backbone, task: Any, examples: Any, adapter: Any = None) -> Measured:
        asked.append(adapter)
        found = left.pop(0)
        n = len(examples)
        return replace(found, losses=found.losses[:n], answers=found.answers[:n])

    monkeypatch.setattr(training, "measure", measure)
    return asked


def measured(loss: float, answer: str = "Title 1") -> Measured:
    losses = [loss + 0.01 * n * n for n in range(64)]
    return Measured(losses, [answer] * 64, {"loss": loss, "rouge_1": 0.5, "rouge_l": 0.5})


# What is held back ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "held"), [(0, 0), (11, 0), (12, 4), (26, 4), (40, 6), (200, 30), (9999, 64)]
)
def test_the_usual_share_has_bounds(records: int, held: int) -> None:
    assert usual_holdout(records) == held


def test_the_newest_are_held_back_unless_told_otherwise(home: Home) -> None:
    assert [r.id for r in divide(home, TASK, None).held_back] == ["r20", "r21", "r22", "r23"]
    assert [r.id for r in divide(home, TASK, 0.125).held_back] == ["r21", "r22", "r23"]
    whole = divide(home, TASK, 0.0)
    assert not whole.held_back and len(whole.real) == 24


# What decides -----------------------------------------------------------------------


def examples(count: int) -> list[Example]:
    return [Example(f"q{n}", "the old mill", {}, f"r{n}") for n in range(count)]


def outcome(losses: list[float], answers: list[str]) -> Measured:
    return Measured(losses, answers, {})


def verdict(changes: list[float], before: str = "old mill", after: str = "old mill") -> Any:
    """Losses that change by so much, and answers before and after."""
    first = [3.0 + 0.1 * n for n in range(len(changes))]
    second = [loss + change for loss, change in zip(first, changes, strict=True)]
    count = len(changes)
    return judge(
        TASK, examples(count), outcome(first, [before] * count), outcome(second, [after] * count)
    )


def test_likelihood_decides_and_chance_does_not() -> None:
    better = verdict([-0.3, -0.2, -0.4, -0.25, -0.1, -0.3])
    assert better.better and better.improved == better.records == 6
    assert better.gain == pytest.approx(0.2583, abs=1e-3)
    assert better.interval[0] > 0 and better.interval[1] < 0.4
    worse = verdict([0.3, 0.2, 0.4, 0.25, 0.1, 0.3])
    assert not worse.better and "no likelier" in worse.reason
    chance = verdict([-0.5, 0.4, -0.6, 0.5, -0.1, 0.1])
    assert not chance.better and "chance" in chance.reason and chance.gain > 0
    assert chance.interval[0] < 0 < chance.interval[1]


def test_a_metric_that_falls_clearly_is_a_reason_too() -> None:
    gains = [-0.3, -0.2, -0.4, -0.25, -0.1, -0.3]
    fallen = verdict(gains, before="the old mill", after="MediconCaprixCaprix")
    assert not fallen.better and fallen.gain > 0
    assert "rouge_1 fell clearly" in fallen.reason and fallen.change[1] < 0
    assert verdict(gains, before="a mill", after="the old mill").better
    # The answers of two of six may differ by chance.
    first = outcome([3.0 + 0.1 * n for n in range(6)], ["the old mill"] * 6)
    second = outcome(
        [a + b for a, b in zip(first.losses, gains, strict=True)],
        ["x", "the old mill", "the old mill", "the old mill", "the old mill", "the old mill"],
    )
    assert judge(TASK, examples(6), first, second).better


def test_a_metric_of_errors_counts_the_other_way_round() -> None:
    task = get_task("LaMP_3")
    made = [Example(f"q{n}", "5", {}, f"r{n}") for n in range(6)]
    losses = [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]
    first = outcome(losses, ["5"] * 6)
    second = outcome([loss - 0.3 - 0.01 * n for n, loss in enumerate(losses)], ["1"] * 6)
    told = judge(replace_metrics(task, ["mae"]), made, first, second)
    assert (
        not told.better
        and "mae fell" not in told.reason
        and "mae got clearly worse" in (told.reason)
    )


def replace_metrics(task: Any, metrics: list[str]) -> Any:
    return task.model_copy(update={"metrics": metrics})


def test_with_fewer_than_four_records_the_mean_decides() -> None:
    few = verdict([-0.3, 0.1, -0.2])
    assert few.better and few.interval is None
    assert not verdict([0.3, -0.1, 0.2]).better


def test_only_the_latest_are_answered(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "ANSWERED", 2)
    backbone, asked = load_backbone(backbone_folder("llama")), examples(5)
    found = measuring.measure(backbone, TASK, asked)
    assert (len(found.losses), len(found.answers)) == (5, 2)
    assert judge(TASK, asked, found, found).records == 5


def test_intervals_are_the_same_each_time() -> None:
    values = [0.1, 0.5, -0.2, 0.3]
    assert paired_interval(values) == paired_interval(values)
    low, high = paired_interval(values)
    assert low < sum(values) / 4 < high
    assert paired_interval([0.2, 0.2]) == pytest.approx((0.2, 0.2))


# What becomes of it -----------------------------------------------------------------


def test_an_adapter_that_is_no_better_is_stored_and_not_used(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, measured(3.0), measured(3.4))
    done = pfi("train", "--epochs", "1", "--rank", "2")
    assert "Adapter 0001 for LaMP_4 was not taken into use, no adapter is in use" in done.stdout
    assert "`pfi adapters use 0001`" in done.stdout
    assert "It is not better: the true answers became no likelier" in done.stderr
    assert "pfi augment" in done.stderr and "loss" in done.stderr
    assert home.personal_adapters.active(TASK.name) is None
    manifest = home.personal_adapters.manifest("0001")
    assert "no likelier" in manifest.verdict and manifest.records == 20
    assert len(manifest.held_back) == len(manifest.held_back_losses) == 4
    assert "no likelier" in pfi("adapters", "list").stdout
    pfi("adapters", "use", "0001")
    assert home.personal_adapters.active(TASK.name) == "0001"


def test_one_that_is_better_is_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, measured(3.0), measured(2.5))
    done = pfi("train", "--epochs", "1", "--rank", "2")
    assert "Adapter 0001 for LaMP_4 is active: 20 records" in done.stdout
    assert "3.0000 -> 2.5000" in done.stderr and "with no personal adapter" in done.stderr
    assert "fell on 4 of 4" in done.stderr and "It is better" in done.stderr
    assert home.personal_adapters.active(TASK.name) == "0001"


def test_it_must_beat_the_version_in_use_where_that_can_be_measured(
    home: Home, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    scripted(monkeypatch, measured(3.0), measured(2.5))
    first = train(home, TASK, QUICK, backbone=backbone)
    assert first.used and first.against is None
    asked = scripted(monkeypatch, measured(2.5), measured(2.6))
    second = train(home, TASK, QUICK, backbone=backbone)
    assert (second.used, second.against, second.passed_over) == (False, "0001", None)
    assert asked[0].weights.keys() == home.personal_adapters.load("0001").weights.keys()
    assert home.personal_adapters.active(TASK.name) == "0001"
    # One that has learnt from the records is no measure on them.
    train(home, TASK, QUICK, holdout=0.0, backbone=backbone)
    asked = scripted(monkeypatch, measured(3.0), measured(2.6))
    third = train(home, TASK, QUICK, backbone=backbone)
    assert (third.used, third.against, third.passed_over) == (True, None, "0003")
    assert asked[0] is None


def test_without_held_back_records_it_is_used_unchecked(home: Home) -> None:
    done = pfi("train", "--epochs", "1", "--rank", "2", "--holdout", "0")
    assert "is active: 24 records" in done.stdout
    assert "nothing says whether it helps" in done.stderr
    manifest = home.personal_adapters.manifest("0001")
    assert manifest.verdict == "" and manifest.held_back == []


def test_few_records_are_trained_on_and_told_of(home: Home) -> None:
    pfi("init", "--profile", "few", "--backbone", home.config.backbone, "--key", "file")
    with open_home("few").open_vault() as vault:
        vault.add(record(n) for n in range(8))
    done = pfi("train", "--epochs", "1", "--rank", "2", "--profile", "few")
    assert "is active: 8 records" in done.stdout and "8 records are few" in done.stderr
    assert "pfi augment --profile few --task LaMP_4" in done.stderr


def test_held_back_records_are_not_learnt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = training.train_candidate

    def spy(*arguments: Any, **named: Any) -> Any:
        seen.extend(e.record_id for part in named["examples"] for e in part)
        return real(*arguments, **named)

    monkeypatch.setattr(training, "train_candidate", spy)
    done = train(home, TASK, QUICK)
    assert set(seen) == {f"r{n}" for n in range(20)}
    assert done.version.held_back == [fingerprint(f"r{n}") for n in range(20, 24)]


# Memory -----------------------------------------------------------------------------


def adapter_of(backbone: Backbone, config: TrainConfig) -> Any:
    made = [Example(f"Title of a story {n}", f"Rain {n}", {}, f"r{n}") for n in range(6)]
    return train_one(BankTrainer(1), backbone, made, config, seed=3).adapter


def test_an_adapter_is_measured_as_if_it_were_merged(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    config = TrainConfig(rank=2, epochs=4, learning_rate=3e-2, layers="last:1")
    adapter, asked = adapter_of(backbone, config), examples(5)
    merged = example_losses(backbone.with_adapters([adapter]), asked)
    found = example_losses(backbone, asked, adapter)
    assert found == pytest.approx(merged, abs=1e-4)
    assert found != pytest.approx(example_losses(backbone, asked), abs=1e-3)


def test_training_in_bfloat16_holds_one_copy_of_the_weights(
    home: Home, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(rank=2, epochs=2, precision="bfloat16")
    whole = load_backbone(backbone_folder("llama"))
    base = training_base(home, config, None, whole)
    assert base.model.dtype == torch.bfloat16
    bank = AdapterBank(base, config, 1, precision="bfloat16")
    held = {p.data_ptr() for p in base.model.parameters()}
    assert {p.data_ptr() for p in bank.backbone.model.parameters()} == held
    # The adapter is that of the float32 backbone trained in bfloat16.
    expected, found = adapter_of(whole, config), adapter_of(base, config)
    for name, factor in expected.weights.items():
        assert torch.allclose(factor, found.weights[name], atol=1e-3), name
    # Measuring makes no other copy either.
    made: list[AdapterBank] = []

    class Noted(AdapterBank):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr("pfi.models.bank.bank.AdapterBank", Noted)
    monkeypatch.setattr("pfi.inference.torch.engine.AdapterBank", Noted)
    measuring.measure(base, TASK, examples(2), found)
    assert len(made) >= 2
    for one in made:
        assert {p.data_ptr() for p in one.backbone.model.parameters()} == held
    assert training_base(home, config, None, whole, engine="peft").model.dtype == torch.float32


# What it takes ----------------------------------------------------------------------


def test_what_a_training_takes_grows_with_it(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    pieces = [as_piece(backbone, example, 64) for example in examples(40)]
    monkeypatch.setattr(expecting, "matrix_speed", lambda *_: Speed(1e9, 1e9))
    config = TrainConfig()
    one, more = (expect(backbone, pieces[:n], config) for n in (10, 40))
    assert one is not None and more is not None
    assert more.seconds > 4 * one.seconds and more.tokens > 4 * one.tokens
    assert (one.layers, one.precision, one.examples) == ("all", "float32", 10)
    last = expect(backbone, pieces, TrainConfig(layers="last:1"))
    assert last is not None and (last.blocks, last.layers) == (1, "last:1")
    assert (
        expect(backbone, pieces, config, measured=pieces, answered=9, new_tokens=8).seconds
        > more.seconds
    )  # type: ignore[union-attr]


def test_fewer_blocks_are_adapted_where_all_take_too_long(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    pieces = [as_piece(backbone, example, 64) for example in examples(40)]
    count = backbone.model.config.num_hidden_layers
    monkeypatch.setattr(expecting, "matrix_speed", lambda *_: Speed(1.0, 1e12))
    assert expect(backbone, pieces, TrainConfig(), choose=True).layers == "all"  # type: ignore[union-attr]
    monkeypatch.setattr(expecting, "matrix_speed", lambda *_: Speed(1e12, 1.0))
    slow = expect(backbone, pieces, TrainConfig(), choose=True)
    assert slow is not None and slow.blocks == -(-count // 4) < count
    assert expect(backbone, pieces, TrainConfig()).layers == "all"  # type: ignore[union-attr]


def test_blocks_that_were_asked_for_are_adapted(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.train.precision.SMALL", 0)
    monkeypatch.setattr("pfi.train.precision.multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(expecting, "matrix_speed", lambda *_: Speed(1e12, 1.0))
    told: list[Any] = []
    chosen = train(home, TASK, QUICK, on_expected=told.append).version.config
    assert chosen["layers"] == told[0].layers == "last:1" and chosen["precision"] == "bfloat16"
    asked = {**QUICK, "layers": "all", "precision": "float32"}
    kept = train(home, TASK, asked).version.config
    assert (kept["layers"], kept["precision"]) == ("all", "float32")
    home.config.train = {"layers": "all"}
    assert train(home, TASK, QUICK).version.config["layers"] == "all"


def test_what_it_takes_is_said_before_and_the_first_steps_correct_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = pfi("train", "--epochs", "1", "--rank", "2").stderr
    assert "Training takes about" in said and "of memory: 20 examples" in said
    assert said.index("Training takes about") < said.index("latest held-back examples")

    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 101.0])
    monkeypatch.setattr("pfi.cli.train.time.monotonic", lambda: next(clock))
    lines: list[str] = []
    timing = _Timing(lines.append)
    timing.expected(expecting.Expected(50.0, 1, 1, 1, "all", 2, 2, "float32"))
    for step in range(1, 8):
        timing.step(step, 26)
    assert len(lines) == 2 and "about 7 min more" in lines[1]


def test_precision_is_chosen_by_model_and_machine(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.train import precision

    backbone = load_backbone(backbone_folder("llama"))
    auto, whole = TrainConfig(), TrainConfig(precision="float32")
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: True)
    assert precision.precision_of(auto, backbone) == "float32"  # small
    monkeypatch.setattr(precision, "SMALL", 1)
    assert precision.precision_of(auto, backbone) == "bfloat16"
    assert precision.precision_of(whole, backbone) == "float32"
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: False)
    assert precision.precision_of(auto, backbone) == "float32"
    assert precision.multiplies_bfloat16("mps") is False
    assert in_precision(backbone, "float32") is backbone


# Forgetting -------------------------------------------------------------------------

TRAIN = ("train", "--epochs", "1", "--rank", "2")


@dataclass
class Probe:
    """Stands in for a probe: general text suffers by so much at full weight, and in proportion."""

    rise: float
    alpha: float = 16.0
    config: ForgettingConfig = field(default_factory=lambda: ForgettingConfig(bound=0.2))

    def forgetting(self, adapter: Adapter) -> Forgetting:
        rise = self.rise * adapter.settings["lora_alpha"] / self.alpha
        return Forgetting(General(3.0, 1.0, 1.0), General(3.0 + rise, 1.1, 0.9), self.config.bound)


@pytest.fixture
def suffering(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def use(rise: float) -> None:
        monkeypatch.setattr(training, "open_probe", lambda *given: Probe(rise))

    return use


def test_what_it_forgets_is_told_and_kept(home: Home) -> None:
    home.config.forgetting = {"passages": 4, "questions": 3}
    home.save_config()
    done = pfi(*TRAIN)
    assert "General text: loss 5." in done.stderr and "% of tokens as the model" in done.stderr
    general = home.personal_adapters.manifest("0001").general
    assert general.keys() == {
        *("text_loss", "answer_loss", "agreement", "text_loss_before", "answer_loss_before")
    }
    assert any(home.models_folder.glob("general-*.json"))
    home.config.forgetting = {"passages": 0}
    home.save_config()
    assert "General text" not in pfi(*TRAIN).stderr
    assert home.personal_adapters.manifest("0002").general == {}


def test_one_within_the_bound_is_used_as_it_is(
    home: Home,
    suffering: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffering(0.15)
    scripted(monkeypatch, measured(3.0), measured(2.5))
    done = pfi(*TRAIN)
    assert "is active" in done.stdout and "loss 3.00 -> 3.15" in done.stderr
    assert home.personal_adapters.load("0001").settings["lora_alpha"] == 16


def test_one_beyond_the_bound_is_used_at_the_highest_weight_within(
    home: Home,
    suffering: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffering(0.6)  # 0.3 at half the weight, 0.15 at a quarter
    asked = scripted(monkeypatch, measured(3.0), measured(2.5), measured(2.7))
    done = pfi(*TRAIN)
    assert "is active" in done.stdout and "loss 3.00 -> 3.15" in done.stderr
    assert "used at weight 0.25, as at full weight" in done.stderr and "0.60" in done.stderr
    manifest = home.personal_adapters.manifest("0001")
    assert manifest.config["weight"] == 0.25 and manifest.metrics["loss"] == 2.7
    assert "likelier" in manifest.verdict and "used at weight 0.25" in manifest.verdict
    assert manifest.general["text_loss"] == 3.15
    stored = home.personal_adapters.load("0001")
    assert stored.settings["lora_alpha"] == 4 == asked[2].settings["lora_alpha"]


def test_a_weight_at_which_it_is_no_better_is_no_remedy(
    home: Home,
    suffering: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffering(0.3)
    scripted(monkeypatch, measured(3.0), measured(2.5), measured(3.1), measured(2.9))
    pfi(*TRAIN)
    assert home.personal_adapters.manifest("0001").config["weight"] == 0.25


def test_one_beyond_it_at_every_weight_is_used_only_when_asked_for(
    home: Home,
    suffering: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffering(2.0)
    scripted(monkeypatch, measured(3.0), measured(2.5))
    done = pfi(*TRAIN)
    assert "was not taken into use" in done.stdout and "pfi adapters use 0001" in done.stdout
    assert "rises by 2.00 nats a token" in done.stderr and "bound is 0.2" in done.stderr
    assert "--set general=0.2" in done.stderr
    assert home.personal_adapters.active(TASK.name) is None
    manifest = home.personal_adapters.manifest("0001")
    assert "likelier" in manifest.verdict and "forgets too much" in manifest.verdict
    assert manifest.general["text_loss"] == 5.0 and "weight" not in manifest.config
    pfi("adapters", "use", "0001")
    assert home.personal_adapters.active(TASK.name) == "0001"


def test_without_held_back_records_the_bound_holds_too(
    home: Home,
    suffering: Callable[[float], None],
) -> None:
    suffering(0.3)
    pfi(*TRAIN, "--holdout", "0")
    assert home.personal_adapters.manifest("0001").config["weight"] == 0.5
    suffering(5.0)
    pfi(*TRAIN, "--holdout", "0")
    assert home.personal_adapters.active(TASK.name) == "0001"
    assert home.personal_adapters.manifest("0002").verdict.startswith("it forgets too much")


def test_one_that_is_no_better_is_not_tried_at_other_weights(
    home: Home,
    suffering: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffering(0.6)
    scripted(monkeypatch, measured(3.0), measured(3.4))
    done = pfi(*TRAIN)
    assert "It is not better" in done.stderr and "forgets too much" not in done.stdout
    assert "forgets" not in home.personal_adapters.manifest("0001").verdict


def test_settings_are_the_profiles(home: Home) -> None:
    values: dict[str, Any] = {"bound": None, "questions": 7}
    home.config.forgetting = values
    found = forgetting_config(home)
    assert found.bound is None and found.questions == 7 and found.passages == 64
    home.config.forgetting = {"bond": 1}
    home.save_config()
    assert "forgetting settings" in pfi(*TRAIN, code=2).stderr
