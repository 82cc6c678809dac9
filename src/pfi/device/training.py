"""Training the personal adapter of one task from the vault's real and synthetic records.

The new version is stored and made active at the very end: a run that is stopped changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pfi.data.records import History, Record
from pfi.device.adapters import AdapterInfo, Manifest
from pfi.device.home import Home, checked
from pfi.errors import ConfigError, DataError
from pfi.tasks import Example, Task

if TYPE_CHECKING:
    from pfi.learn import TrainConfig
    from pfi.memory.mixing import MixConfig
    from pfi.models import Backbone

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
    from pfi.learn import get_trainer, train_one
    from pfi.memory import Retrieval
    from pfi.memory.mixing import mixed_examples
    from pfi.models import load_backbone

    config, mixed = train_config(home, settings or {}), mix_config(home, mix or {})
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}", fix="give a share from 0 up to but not 1")
    data = divide(home, task, holdout, real_only=real_only)
    if config.held_back and data.synthetic and mixed.order == "mixed":
        # The newest share of synthetic and real records together would be the real ones.
        what = "the setting held_back would hold back real records only, none of the synthetic"
        fix = "add --set mix.order=synthetic-first, or --real-only"
        raise ConfigError(what, where=f"task {task.name}", fix=fix)

    on_stage("loading the backbone")
    plain = backbone or load_backbone(home.config.backbone)
    # Half of the prompts carry retrieved records, since questions are asked with some.
    retrieval = Retrieval(home.config.records, home.config.record_tokens, 0.5, plain.trim)
    made, own = mixed_examples(
        retrieval, task, data.real, data.synthetic, mixed, random.Random(seed)
    )
    if not made and not own:
        count = len(data.real) + len(data.synthetic)
        raise DataError(
            f"none of the {count} records of task {task.name} gives a training example",
            fix="choose another task with --task",
        )
    measured = task.examples(data.held_back, random.Random(seed))[-MAX_MEASURED:]
    shared = home.shared_adapters.active(task.name)
    base = plain.with_adapters([home.shared_adapters.load(shared)] if shared else [])
    if measured:
        on_stage("measuring before training")
    before = measure(base, task, measured)
    trainer, start, examples, seconds = get_trainer(engine), None, [*made, *own], 0.0
    if mixed.order == "synthetic-first" and made and own:
        on_stage("training on synthetic records")
        first = train_one(trainer, base, made, config, seed=seed, on_step=on_step)
        start, examples, seconds = first.adapter, own, first.seconds
    on_stage("training")
    result = train_one(trainer, base, examples, config, seed=seed, start=start, on_step=on_step)
    seconds += result.seconds
    if measured:
        on_stage("measuring after training")
    after = measure(base.with_adapters([result.adapter]), task, measured) if measured else {}

    used = len({example.record_id for example in made})
    tenth = max(1, len(result.losses) // 10)
    info = AdapterInfo(
        task=task.name,
        backbone=home.config.backbone,
        records=len(data.real),
        config={**config.model_dump(), "seed": seed, **_told(mixed, used)},
        parent=home.personal_adapters.active(task.name),
        shared=shared,
        seconds=round(seconds, 3),
        first_loss=_mean(result.losses[:tenth]),
        last_loss=_mean(result.losses[-tenth:]),
        metrics=after,
    )
    version = home.personal_adapters.add(result.adapter, info)
    home.personal_adapters.use(version.version)
    return Trained(version, before, after, len(measured), used, data.left_out)


def train_config(home: Home, settings: Mapping[str, Any]) -> TrainConfig:
    """The training settings: the given ones, then the profile's, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.learn import TrainConfig

    return checked(TrainConfig, {**home.config.train, **settings}, "training settings")


def mix_config(home: Home, settings: Mapping[str, Any]) -> MixConfig:
    """How synthetic records are mixed in: the given settings, then the profile's, the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.memory.mixing import MixConfig

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
    kept = {record.id for record in older}
    everything = {record.id for record in real}

    def innocent(record: Record) -> bool:
        if record.made is None:
            first = newer[0].time
            return first is not None and record.time is not None and record.time < first
        sources = {record.made.source} & everything  # it may also be one of a pool
        return kept.issuperset({*record.made.seeds, *sources})

    safe = tuple(record for record in synthetic if innocent(record))
    return Division(older, safe, newer, len(synthetic) - len(safe))


def _told(mix: MixConfig, used: int) -> dict[str, Any]:
    """What a manifest says of synthetic records."""
    return {"synthetic": used, "mix": mix.model_dump()} if used else {}


def measure(backbone: Backbone, task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """Mean loss (nats a target token) and the task's metrics; empty without examples."""
    import torch

    from pfi.learn.training import as_piece
    from pfi.models import answer
    from pfi.models.packing import Row, target_losses

    if not examples:
        return {}
    losses = []
    with torch.inference_mode():
        for example in examples:
            piece = as_piece(backbone, example, backbone.max_length)
            losses.append(target_losses(backbone, [Row([piece])]).mean().item())
    predictions = answer(backbone, task, [example.prompt for example in examples])
    scores = task.score(predictions, [example.target for example in examples])
    return {"loss": _mean(losses), **scores}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
