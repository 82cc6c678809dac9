"""Training the personal adapter of one task from the vault's records.

The new version is stored and made active at the very end: a run that is stopped changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pfi.data.records import History
from pfi.device.adapters import AdapterInfo, Manifest
from pfi.device.home import Home, one_line
from pfi.errors import ConfigError, DataError
from pfi.tasks import Example, Task

if TYPE_CHECKING:
    from pfi.learn import TrainConfig
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
    """

    version: Manifest
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    measured: int = 0


def train(
    home: Home,
    task: Task,
    settings: Mapping[str, Any] | None = None,
    *,
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
        holdout: the newest share of the records, in [0, 1), that is measured on and not
            trained on.
        seed: of the examples' choices and of the training.
        backbone: the profile's one, where it is loaded already.
        engine: what trains, `bank` or `peft`.
        on_step: told the step, the number of steps and the loss.
        on_stage: told what begins, in a few words.

    Raises:
        ConfigError: a setting makes no sense.
        DataError: there are too few records.
        StorageError: an adapter or the vault cannot be read or written.
    """
    from pfi.learn import get_trainer, train_one
    from pfi.memory import Retrieval
    from pfi.models import load_backbone

    config = train_config(home, settings or {})
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}", fix="give a share from 0 up to but not 1")
    history, held_back = _split(home, task, holdout)

    on_stage("loading the backbone")
    plain = backbone or load_backbone(home.config.backbone)
    # Half of the prompts carry retrieved records, since questions are asked with some.
    retrieval = Retrieval(home.config.records, home.config.record_tokens, 0.5, plain.trim)
    examples = retrieval.examples(task, history, random.Random(seed))
    if not examples:
        raise DataError(
            f"none of the {len(history)} records of task {task.name} gives a training example",
            fix="choose another task with --task",
        )
    measured = task.examples(held_back, random.Random(seed))[-MAX_MEASURED:]
    shared = home.shared_adapters.active(task.name)
    base = plain.with_adapters([home.shared_adapters.load(shared)] if shared else [])
    if measured:
        on_stage("measuring before training")
    before = measure(base, task, measured)
    on_stage("training")
    result = train_one(get_trainer(engine), base, examples, config, seed=seed, on_step=on_step)
    if measured:
        on_stage("measuring after training")
    after = measure(base.with_adapters([result.adapter]), task, measured) if measured else {}

    tenth = max(1, len(result.losses) // 10)
    info = AdapterInfo(
        task=task.name,
        backbone=home.config.backbone,
        records=len(history),
        config={**config.model_dump(), "seed": seed},
        parent=home.personal_adapters.active(task.name),
        shared=shared,
        seconds=round(result.seconds, 3),
        first_loss=_mean(result.losses[:tenth]),
        last_loss=_mean(result.losses[-tenth:]),
        metrics=after,
    )
    version = home.personal_adapters.add(result.adapter, info)
    home.personal_adapters.use(version.version)
    return Trained(version, before, after, len(measured))


def train_config(home: Home, settings: Mapping[str, Any]) -> TrainConfig:
    """The training settings: the given ones, then the profile's, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.learn import TrainConfig

    try:
        return TrainConfig.model_validate({**home.config.train, **settings})
    except ValidationError as error:
        raise ConfigError(one_line(error), where="training settings") from error


def _split(home: Home, task: Task, holdout: float) -> tuple[History, History]:
    """What to train on and what to hold back.

    Only real records are held back, and a synthetic record is trained on beside them only if
    it is known to be older than all of them.
    """
    with home.open_vault() as vault:
        everything = vault.history(task.name)
    if not everything:
        raise DataError(
            f"there are no records of task {task.name}",
            fix="import some with `pfi import`, or choose another task with --task",
        )
    if not holdout:
        return everything, History(everything.user_id)
    real = History(everything.user_id, (r for r in everything if r.origin == "real"))
    older, newer = real.split(float(holdout))
    if not newer:
        raise DataError(
            f"a holdout of {holdout} leaves none of {len(real)} records to measure on",
            fix="raise --holdout, import more records, or leave it out",
        )
    if not newer.dated:
        return older, newer
    kept = {record.id for record in older}
    past = everything.before(newer[0].time)
    return (
        History(past.user_id, (r for r in past if r.origin == "synthetic" or r.id in kept)),
        newer,
    )


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
