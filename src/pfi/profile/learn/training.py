"""Training the personal adapter of one task from the vault's real and synthetic records.

The newest records are held back, and the new version is taken into use only if it is better on
them.  It is stored at the very end: a run that is stopped changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pfi._util.settings import checked
from pfi.errors import ConfigError, DataError
from pfi.models.adapters import Adapter
from pfi.models.catalogue import backbone_fingerprint
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.adapters.store import AdapterInfo, Manifest
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.erase.erased import refuse_erased
from pfi.profile.home import Home
from pfi.profile.learn.forgetting import at_lower_weight, lower_weights, open_probe, too_much
from pfi.profile.learn.measuring import (
    ANSWERED,
    LEAST,
    Measured,
    Verdict,
    judge,
    measure,
    measured_piece,
)
from pfi.records import History, Record
from pfi.tasks import Example, Task
from pfi.train.config import TrainConfig
from pfi.train.examples import MixConfig, without_held_back

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.profile.plan.expect import Expected
    from pfi.train.forgetting import Forgetting, GeneralProbe

#: The latest held-back examples that are measured; more would take longer than training.
MAX_MEASURED = 64
#: What is held back unless told otherwise: a share of the real records, at most so many; none
#: where the fewest that can be judged by would be more than a third.
HOLDOUT, MAX_HOLDOUT = 0.15, 64
#: Records below which a training is told what would help more.
FEW = 20


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        version: the manifest of the new version.
        before, after: loss (nats a token) and metrics on the held-back records, of what was in
            use and of the new adapter; empty when none were held back.
        measured: how many held-back examples that is over.
        synthetic: how many synthetic records it learnt from beside the version's real ones.
        left_out: synthetic records that it did not learn from, since they may know something of
            the held-back ones.
        used: whether the new version is in use now.
        verdict: what decided; None when nothing was held back.
        against: the version that `before` is of; None for the model without a personal adapter.
        passed_over: the version in use, where it is not `against` as it has learnt from records
            that are held back now.
        seconds: of everything.
        forgetting: what it makes the model forget; None where that was not measured.
        weight: of its update, below 1 where it forgot too much at its full weight.
        note: that it is used at a lower weight, or not used, and why; empty otherwise.
    """

    version: Manifest
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    synthetic: int = 0
    left_out: int = 0
    used: bool = True
    verdict: Verdict | None = None
    against: str | None = None
    passed_over: str | None = None
    seconds: float = 0.0
    forgetting: Forgetting | None = None
    weight: float = 1.0
    note: str = ""


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


#: The examples that synthetic and real records give, see `mixed_examples`.
Examples = tuple[list[Example], list[Example]]


def train(
    home: Home,
    task: Task,
    settings: Mapping[str, Any] | None = None,
    *,
    mix: Mapping[str, Any] | None = None,
    real_only: bool = False,
    holdout: float | None = None,
    seed: int = 0,
    backbone: Backbone | None = None,
    engine: str = "bank",
    on_step: Callable[[int, int, float], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_expected: Callable[[Expected], None] = lambda expected: None,
) -> Trained:
    """Train a personal adapter, and take it into use if it is better on the held-back records.

    What it must beat is the version in use, if that has learnt from none of these records, else
    the model without a personal adapter; `judge` says what better is.  One that is not better is
    stored all the same, with the reason in its manifest.  The adapter that was measured is the
    one that is used: it has not learnt from the held-back records.  Where nothing is held back,
    the new version is in use unchecked.

    One that makes the model forget too much is used at a lower weight, if it is better at that
    one too, else not at all; see `ForgettingConfig`.

    Args:
        home: the device.
        task: whose records to learn from.
        settings: values of `TrainConfig` that go before the profile's and the defaults.
        mix: values of `MixConfig` that go before the profile's and the defaults.
        real_only: leave out synthetic records.
        holdout: the newest share of the real records, in [0, 1), that is measured on and not
            trained on; see `usual_holdout` when None.
        seed: of the examples' choices and of the training.
        backbone: the profile's one, where it is loaded already.
        engine: what trains, `bank` or `peft`.
        on_step: told the step, the number of steps and the loss, of each training.
        on_stage: told what begins, in a few words.
        on_expected: told before the training what it will take, where that can be predicted.

    Raises:
        ConfigError: a setting makes no sense.
        DataError: there are too few records.
        StorageError: an adapter or the vault cannot be read or written.
    """
    from pfi.models.bank.bank import precision_name

    begun = time.monotonic()
    config, mixed = train_config(home, settings or {}), mix_config(home, mix or {})
    if holdout is not None and not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}", fix="give a share from 0 up to but not 1")
    read = datetime.now(UTC)
    with home.open_vault() as vault:
        seen = vault.time()  # later records are new, also where the clock was set back
    data = divide(home, task, holdout, real_only=real_only)
    if config.held_back and data.synthetic and mixed.order == "mixed":
        # The newest share of synthetic and real records together would be the real ones.
        what = "the setting held_back would hold back real records only, none of the synthetic"
        fix = "add --set mix.order=synthetic-first, or --real-only"
        raise ConfigError(what, where=f"task {task.name}", fix=fix)

    shared = home.shared_adapters.active(task.name)
    base = training_base(home, config, shared, backbone, engine=engine, on_stage=on_stage)
    examples = training_examples(home, task, base, data, mixed, seed)
    measured = task.examples(data.held_back, random.Random(seed))[-MAX_MEASURED:]
    free = not {"layers", "targets"} & {*home.config.train, *(settings or {})}
    expected = _expect(base, task, examples, measured, config, free=free)
    config = config.model_copy(update={"precision": precision_name(base)})
    if expected is not None:
        config = config.model_copy(update={"layers": expected.layers} if free else {})
        on_expected(expected)
    before = after = verdict = None
    against = passed_over = None
    if measured:
        on_stage("measuring before training")
        against, passed_over = _in_use(home, task, measured)
        present = home.personal_adapters.load(against) if against else None
        before = measure(base, task, measured, present)
    made = train_candidate(
        home, task, base, data, config, mixed,
        seed=seed, engine=engine, examples=examples, on_step=on_step, on_stage=on_stage,
    )  # fmt: skip
    if before is not None:
        on_stage("measuring after training")
        after = measure(base, task, measured, made.adapter)
        verdict = judge(task, measured, before, after)

    reached = _Reached(made, after, verdict)
    probe = open_probe(home, base, on_stage)
    if probe is not None:
        reached = _within_bound(probe, base, task, measured, before, reached)
    made, after, verdict = reached.made, reached.after, reached.verdict

    info = adapter_info(home, task, made, data, config, seed=seed, mixed=mixed)
    info = info.model_copy(
        update={
            "config": info.config | ({} if reached.weight == 1 else {"weight": reached.weight}),
            "metrics": after.metrics if after else {},
            "read": seen,
            "held_back": [fingerprint(record.id) for record in data.held_back],
            "held_back_losses": [*after.losses] if after else [],
            "verdict": reached.reason,
            "general": reached.forgetting.figures() if reached.forgetting else {},
        }
    )
    refuse_erased(home, task.name, read)
    version = home.personal_adapters.add(made.adapter, info)
    if reached.used:
        home.personal_adapters.use(version.version)
    return Trained(
        version,
        before.metrics if before else {},
        after.metrics if after else {},
        len(measured),
        made.synthetic,
        data.left_out,
        reached.used,
        verdict,
        against,
        passed_over,
        time.monotonic() - begun,
        reached.forgetting,
        reached.weight,
        reached.note,
    )


@dataclass(frozen=True)
class _Reached:
    """A trained adapter and what was measured of it; see `Trained`."""

    made: Candidate
    after: Measured | None
    verdict: Verdict | None
    forgetting: Forgetting | None = None
    weight: float = 1.0
    note: str = ""

    @property
    def used(self) -> bool:
        better = self.verdict is None or self.verdict.better
        return better and not (self.forgetting is not None and self.forgetting.exceeded)

    @property
    def reason(self) -> str:
        return "; ".join(filter(None, [self.verdict.reason if self.verdict else "", self.note]))


def _within_bound(
    probe: GeneralProbe,
    base: Backbone,
    task: Task,
    measured: Sequence[Example],
    before: Measured | None,
    reached: _Reached,
) -> _Reached:
    """The adapter with what it forgets; at a lower weight where that is too much, if it can be."""
    full = probe.forgetting(reached.made.adapter)
    reached = replace(reached, forgetting=full)
    if not full.exceeded or (reached.verdict is not None and not reached.verdict.better):
        return reached
    for adapter, weight, found in lower_weights(probe, reached.made.adapter):
        after = verdict = None
        if before is not None:
            after = measure(base, task, measured, adapter)
            verdict = judge(task, measured, before, after)
            if not verdict.better:
                continue
        made = replace(reached.made, adapter=adapter)
        return _Reached(made, after, verdict, found, weight, at_lower_weight(full, weight))
    return replace(reached, note=too_much(full))


def training_base(
    home: Home,
    config: TrainConfig,
    shared: str | None,
    backbone: Backbone | None = None,
    *,
    engine: str = "bank",
    on_stage: Callable[[str], None] = lambda text: None,
) -> Backbone:
    """The backbone with a shared adapter merged in, in the precision that is trained in.

    Only these weights are held, unless the caller holds the backbone that it gave.

    Args:
        home: the device.
        config: how it is trained.
        shared: the version of the shared adapter, or None.
        backbone: the profile's one, where it is loaded already.
        engine: what trains; `peft` needs float32 weights, and casts by itself.
        on_stage: told what begins, in a few words.
    """
    from pfi._util.heap import keep_few_kernels, release_freed
    from pfi.models.backbone import load_backbone
    from pfi.train.precision import as_trained

    keep_few_kernels()
    if backbone is None:
        on_stage("loading the backbone")
        backbone = load_backbone(home.config.backbone)
    backbone = backbone.with_adapters([home.shared_adapters.load(shared)] if shared else [])
    backbone = as_trained(backbone, config, engine)
    release_freed()
    return backbone


def _in_use(home: Home, task: Task, measured: Sequence[Example]) -> tuple[str | None, str | None]:
    """The version in use, if it can be measured on some records, and if it cannot.

    It can be where it sits on the same shared adapter and backbone and has not learnt from them.
    """
    store = home.personal_adapters
    active = store.active(task.name)
    if active is None:
        return None, None
    manifest = store.manifest(active)
    with home.open_vault() as vault:
        new = vault.added_since(task.name, manifest.read or manifest.created)
    unseen = {*manifest.held_back}
    fits = (
        manifest.backbone == home.config.backbone
        and manifest.shared == home.shared_adapters.active(task.name)
        and all(e.record_id in new or fingerprint(e.record_id) in unseen for e in measured)
    )
    return (active, None) if fits else (None, active)


def _expect(
    base: Backbone,
    task: Task,
    examples: Examples,
    measured: Sequence[Example],
    config: TrainConfig,
    *,
    free: bool,
) -> Expected | None:
    """What the training will take; with fewer blocks where that is ``free`` to choose."""
    from pfi.profile.plan.expect import expect
    from pfi.train.job import as_piece
    from pfi.train.precision import SMALL

    pieces = [as_piece(base, e, config.max_length) for part in examples for e in part]
    return expect(
        base,
        pieces,
        config,
        choose=free and base.model.num_parameters() >= SMALL,
        measured=[measured_piece(base, example) for example in measured],
        answered=min(len(measured), ANSWERED) if task.kind == "text" else 0,
        new_tokens=task.max_new_tokens,
    )


def training_examples(
    home: Home, task: Task, base: Backbone, data: Division, mixed: MixConfig, seed: int
) -> Examples:
    """The examples of the records that are trained on.

    Raises:
        DataError: there are none.
    """
    from pfi.train.examples import mixed_examples

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
    return made, own


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
    examples: Examples | None = None,
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
        examples: see `training_examples`, where they are made already.
        on_step, on_stage: see `train`.

    Raises:
        DataError: no record gives a training example.
    """
    from pfi.train.job import train_one
    from pfi.train.trainers import get_trainer

    made, own = examples or training_examples(home, task, base, data, mixed, seed)
    trainer, learnt, seconds = get_trainer(engine), [*made, *own], 0.0
    if mixed.order == "synthetic-first" and made and own:
        on_stage("training on synthetic records")
        first = train_one(trainer, base, made, config, seed=seed, start=start, on_step=on_step)
        start, learnt, seconds = first.adapter, own, first.seconds
    on_stage("training")
    result = train_one(trainer, base, learnt, config, seed=seed, start=start, on_step=on_step)
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
        backbone_files=backbone_fingerprint(home.config.backbone),
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


def usual_holdout(records: int) -> int:
    """How many of the newest real records are held back unless told otherwise.

    15 %, at least 4 and at most 64; none of fewer than 12, which would be left with too few.
    """
    if records < 3 * LEAST:
        return 0
    return min(max(LEAST, round(HOLDOUT * records)), MAX_HOLDOUT)


def divide(home: Home, task: Task, holdout: float | None, *, real_only: bool = False) -> Division:
    """What to train on and what to hold back: a share, or `usual_holdout` when None.

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
    wanted = usual_holdout(len(real)) if holdout is None else float(holdout)
    older, newer = real.split(wanted)
    if not newer and (holdout is None or not holdout):
        return Division(real, synthetic, History(real.user_id))
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
