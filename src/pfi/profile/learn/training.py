"""Training the personal adapter of one task from the vault's real and synthetic records.

The new version is stored and made active at the very end: a run that is stopped changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pfi._util.settings import checked
from pfi.errors import ConfigError, DataError
from pfi.memory.prompts import Retrieval
from pfi.models.adapters import Adapter
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.adapters.store import AdapterInfo, Manifest
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.erase.erased import refuse_erased
from pfi.profile.home import Home
from pfi.records import History, Record
from pfi.tasks import Example, Task
from pfi.train.config import TrainConfig
from pfi.train.examples import MixConfig, without_held_back

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

#: The latest held-back examples that are measured; more would take longer than training.
MAX_MEASURED = 64


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        version: the manifest of the new version, which is active.
        before, after: loss (nats a token) and metrics on the held-back records, without and
            with the new adapter; empty when none were held back.
        measured: how many held-back examples that is over.
        synthetic: how many synthetic records it learnt from beside the version's real ones.
        left_out: synthetic records that it did not learn from, since they may know something of
            the held-back ones.
    """

    version: Manifest
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    synthetic: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Division:
    """What to train on, real and synthetic, and what to hold back.

    Attributes:
        real: the real records to train on, oldest first.
        synthetic: the synthetic records to train on, in the order in which they were stored.
        held_back: the newest real records.
        left_out: how many synthetic records may know something of those.
    """

    real: History
    synthetic: tuple[Record, ...]
    held_back: History
    left_out: int = 0


@dataclass(frozen=True)
class Candidate:
    """A trained adapter that is not stored.

    Attributes:
        adapter: its factors.
        losses: mean target-token cross-entropy of every step, in nats.
        seconds: how long training took.
        synthetic: how many synthetic records it learnt from.
    """

    adapter: Adapter
    losses: list[float]
    seconds: float
    synthetic: int = 0


def train(
    home: Home,
    task: Task,
    settings: Mapping[str, Any] | None = None,
    *,
    mix: Mapping[str, Any] | None = None,
    real_only: bool = False,
    holdout: float = 0.0,
    seed: int = 0,
    backbone: Backbone | None = None,
    engine: str = "bank",
    on_step: Callable[[int, int, float], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train a personal adapter and make it active.

    Args:
        home: the device.
        task: whose records to learn from.
        settings: values of `TrainConfig` that go before the profile's and the defaults.
        mix: values of `MixConfig` that go before the profile's and the defaults.
        real_only: leave out synthetic records.
        holdout: the newest share of the real records, in [0, 1), that is measured on and not
            trained on.
        seed: of the examples' choices and of the training.
        backbone: the profile's one, where it is loaded already.
        engine: what trains, `bank` or `peft`.
        on_step: told the step, the number of steps and the loss, of each training.
        on_stage: told what begins, in a few words.

    Raises:
        ConfigError: a setting makes no sense.
        DataError: there are too few records.
        StorageError: an adapter or the vault cannot be read or written.
    """
    from pfi.models.backbone import load_backbone

    config, mixed = train_config(home, settings or {}), mix_config(home, mix or {})
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}", fix="give a share from 0 up to but not 1")
    read = datetime.now(UTC)
    data = divide(home, task, holdout, real_only=real_only)
    if config.held_back and data.synthetic and mixed.order == "mixed":
        # The newest share of synthetic and real records together would be the real ones.
        what = "the setting held_back would hold back real records only, none of the synthetic"
        fix = "add --set mix.order=synthetic-first, or --real-only"
        raise ConfigError(what, where=f"task {task.name}", fix=fix)

    on_stage("loading the backbone")
    plain = backbone or load_backbone(home.config.backbone)
    measured = task.examples(data.held_back, random.Random(seed))[-MAX_MEASURED:]
    shared = home.shared_adapters.active(task.name)
    base = plain.with_adapters([home.shared_adapters.load(shared)] if shared else [])
    if measured:
        on_stage("measuring before training")
    before = measure(base, task, measured)
    made = train_candidate(
        home, task, base, data, config, mixed,
        seed=seed, engine=engine, on_step=on_step, on_stage=on_stage,
    )  # fmt: skip
    after: dict[str, float] = {}
    losses: list[float] = []
    if measured:
        on_stage("measuring after training")
        with_it = base.with_adapters([made.adapter])
        losses = example_losses(with_it, measured)
        after = {"loss": _mean(losses), **answer_scores(with_it, task, measured)}

    info = adapter_info(home, task, made, data, config, seed=seed, mixed=mixed)
    info = info.model_copy(
        update={
            "metrics": after,
            "read": read,
            "held_back": [fingerprint(record.id) for record in data.held_back],
            "held_back_losses": losses,
        }
    )
    refuse_erased(home, task.name, read)
    version = home.personal_adapters.add(made.adapter, info)
    home.personal_adapters.use(version.version)
    return Trained(version, before, after, len(measured), made.synthetic, data.left_out)


def train_candidate(
    home: Home,
    task: Task,
    base: Backbone,
    data: Division,
    config: TrainConfig,
    mixed: MixConfig,
    *,
    seed: int = 0,
    engine: str = "bank",
    start: Adapter | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Candidate:
    """Train a personal adapter without storing it.

    Args:
        home: the device.
        task: how records become examples.
        base: the backbone with the shared adapter merged in.
        data: what to train on; what it holds back is not looked at.
        config: how to train.
        mixed: how synthetic records are mixed in.
        seed: of the examples' choices and of the training.
        engine: what trains, `bank` or `peft`.
        start: the adapter to go on from; a new one when None.
        on_step, on_stage: see `train`.

    Raises:
        DataError: no record gives a training example.
    """
    from pfi.train.examples import mixed_examples
    from pfi.train.job import train_one
    from pfi.train.trainers import get_trainer

    retrieval = retrieval_of(home.config, base.prompter)
    made, own = mixed_examples(
        retrieval, task, data.real, data.synthetic, mixed, random.Random(seed)
    )
    if not made and not own:
        count = len(data.real) + len(data.synthetic)
        raise DataError(
            f"none of the {count} records of task {task.name} gives a training example",
            fix="choose another task with --task",
        )
    trainer, examples, seconds = get_trainer(engine), [*made, *own], 0.0
    if mixed.order == "synthetic-first" and made and own:
        on_stage("training on synthetic records")
        first = train_one(trainer, base, made, config, seed=seed, start=start, on_step=on_step)
        start, examples, seconds = first.adapter, own, first.seconds
    on_stage("training")
    result = train_one(trainer, base, examples, config, seed=seed, start=start, on_step=on_step)
    used = len({example.record_id for example in made})
    return Candidate(result.adapter, result.losses, seconds + result.seconds, used)


def adapter_info(
    home: Home,
    task: Task,
    made: Candidate,
    data: Division,
    config: TrainConfig,
    *,
    seed: int,
    mixed: MixConfig,
) -> AdapterInfo:
    """What a manifest says of a candidate's training."""
    tenth = max(1, len(made.losses) // 10)
    return AdapterInfo(
        task=task.name,
        backbone=home.config.backbone,
        records=len(data.real),
        config={**config.model_dump(), "seed": seed, **_told(mixed, made.synthetic)},
        parent=home.personal_adapters.active(task.name),
        shared=home.shared_adapters.active(task.name),
        seconds=round(made.seconds, 3),
        first_loss=_mean(made.losses[:tenth]),
        last_loss=_mean(made.losses[-tenth:]),
    )


def train_config(home: Home, settings: Mapping[str, Any]) -> TrainConfig:
    """The training settings: the given ones, then the profile's, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.train.config import TrainConfig

    return checked(TrainConfig, {**home.config.train, **settings}, "training settings")


def mix_config(home: Home, settings: Mapping[str, Any]) -> MixConfig:
    """How synthetic records are mixed in: the given settings, then the profile's, the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.train.examples import MixConfig

    return checked(MixConfig, {**home.config.mix, **settings}, "mix settings")


def divide(home: Home, task: Task, holdout: float, *, real_only: bool = False) -> Division:
    """What to train on and what to hold back.

    Only real records are held back.  Beside them a synthetic record is trained on only if it
    was made from nothing but records that are trained on; one of unknown making, only if it is
    known to be older than all that is held back.

    Raises:
        DataError: there are no records, or none to hold back.
    """
    with home.open_vault() as vault:
        real = vault.history(task.name, origin="real")
        synthetic = tuple(vault.history(task.name, origin="synthetic"))
    if real_only:
        synthetic = ()
    if not real and not synthetic:
        raise DataError(
            f"there are no records of task {task.name}",
            fix="import some with `pfi import`, or choose another task with --task",
        )
    if not holdout:
        return Division(real, synthetic, History(real.user_id))
    older, newer = real.split(float(holdout))
    if not newer:
        raise DataError(
            f"a holdout of {holdout} leaves none of {len(real)} records to measure on",
            fix="raise --holdout, import more records, or leave it out",
        )
    safe = without_held_back(synthetic, older, newer)
    return Division(older, safe, newer, len(synthetic) - len(safe))


def _told(mix: MixConfig, used: int) -> dict[str, Any]:
    """What a manifest says of synthetic records."""
    return {"synthetic": used, "mix": mix.model_dump()} if used else {}


def measure(backbone: Backbone, task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """Mean loss (nats a target token) and the task's metrics; empty without examples."""
    if not examples:
        return {}
    loss = _mean(example_losses(backbone, examples))
    return {"loss": loss, **answer_scores(backbone, task, examples)}


def example_losses(backbone: Backbone, examples: Sequence[Example]) -> list[float]:
    """Every example's loss, nats a target token."""
    from pfi.models.scoring import mean_losses
    from pfi.train.job import as_piece

    return mean_losses(backbone, [as_piece(backbone, e, backbone.max_length) for e in examples])


def answer_scores(backbone: Backbone, task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics of the answers to the examples."""
    from pfi.inference.answering import answers, sampling_of
    from pfi.inference.engine import Request
    from pfi.inference.torch.engine import TorchEngine

    retrieval, sampling = Retrieval(0, 0, backbone.prompter), sampling_of(task)
    asked = [retrieval.fill(task, example.prompt).ids for example in examples]
    with TorchEngine(backbone, capacity=1, rank=1) as engine:
        texts = answers(engine, task, [Request(ids, None, sampling) for ids in asked])
    return task.score(texts, [example.target for example in examples])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
