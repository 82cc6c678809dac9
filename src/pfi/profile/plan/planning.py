"""A plan for a profile: its backbone and records measured on this machine, and its settings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfi.profile.home import Home
from pfi.profile.learn.training import train_config
from pfi.profile.plan.machine import Machine, measure_machine
from pfi.profile.plan.planner import Limits, Plan, plan
from pfi.profile.plan.predict import Model, Work
from pfi.profile.plan.shapes import ModelShape, read_shape
from pfi.records import History
from pfi.tasks import Example, Task
from pfi.train.config import TrainConfig

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

_SAMPLED = 64  # records whose tokens are counted


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from."""

    machine: Machine
    model: Model
    plan: Plan


def plan_for(
    home: Home,
    task: Task,
    limits: Limits,
    *,
    quick: bool = False,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Planned:
    """Measure this machine, and the profile's backbone on it, and plan.

    Args:
        home: the device.
        task: whose records would be trained on.
        limits: what may be used.
        quick: leave out the real run of the backbone.
        on_stage: told what begins, in a few words.

    Raises:
        BackboneError: the backbone is not on this machine.
        ConfigError: nothing fits the limits, or a training setting makes no sense.
    """
    shape = read_shape(home.config.backbone)
    config = train_config(home, {})
    on_stage("measuring this machine")
    machine = measure_machine(home.path)
    with home.open_vault() as vault:
        history = vault.history(task.name)
    count = len(task.examples(history, random.Random(0)))
    model = Model(shape, _assumed(config, count), rank=config.rank)
    if not quick and _can_load(machine, shape, limits):
        from pfi.models.backbone import load_backbone
        from pfi.profile.plan.trial import try_backbone

        on_stage("trying the backbone")
        backbone = load_backbone(home.config.backbone)
        shared = home.shared_adapters.active(task.name) is not None
        examples = _examples(home, task, backbone, history)
        work = _work(backbone, examples, count, config, shared) if examples else model.work
        measured = try_backbone(backbone, machine, shape, config, examples or _made_up())
        model = Model(shape, work, measured, config.rank)
    return Planned(machine, model, plan(machine, model, limits))


def apply_plan(home: Home, made: Plan) -> dict[str, object]:
    """Write a plan into the profile's settings; those that changed, with their new values."""
    settings = made.settings()
    train = {**home.config.train, **settings.pop("train")}
    if train["layers"] == "all":
        train.pop("layers")  # the default
    changed: dict[str, object] = {}
    for name, value in {**settings, "train": train}.items():
        if getattr(home.config, name) != value:
            setattr(home.config, name, value)
            changed[name] = value
    home.save_config()
    return changed


def _can_load(machine: Machine, shape: ModelShape, limits: Limits) -> bool:
    """Whether the backbone can be tried in float32 without more memory than there may be."""
    needed = shape.size("f32") + shape.file
    allowed = min(machine.memory_free, limits.memory or machine.memory_free)
    return machine.base + 1.25 * needed < allowed


def _examples(home: Home, task: Task, backbone: Backbone, history: History) -> list[Example]:
    """The examples of the latest records as training has them: half with retrieved records."""
    from pfi.profile.answer.retrieval import retrieval_of
    from pfi.train.examples import record_examples

    latest = History(history.user_id, list(history)[-_SAMPLED:])
    retrieval = retrieval_of(home.config, backbone.prompter)
    return record_examples(retrieval, task, latest, random.Random(0))


def _made_up() -> list[Example]:
    """Examples for a profile without records; what they say does not matter."""
    words = [f"word{at}" for at in range(30)]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(8)]
    return [Example(text, " ".join(draw.choices(words, k=16)), {}, "") for text in texts]


def _assumed(config: TrainConfig, count: int) -> Work:
    """Examples of a usual length: so many, or those of a profile that will have records."""
    usual = Work()
    each = usual.tokens // usual.examples
    return Work(
        examples=count or usual.examples,
        tokens=each * (count or usual.examples),
        epochs=config.epochs,
        batch_size=config.batch_size,
        assumed=not count,
    )


def _work(
    backbone: Backbone, examples: list[Example], count: int, config: TrainConfig, shared: bool
) -> Work:
    """What training would read, from a sample of the examples."""
    from pfi.train.job import as_piece

    pieces = [as_piece(backbone, example, config.max_length) for example in examples]
    lengths = [len(piece) for piece in pieces]
    targets = sum(piece.targets for piece in pieces) / len(pieces)
    return Work(
        examples=count,
        tokens=round(sum(lengths) / len(lengths) * count),
        longest=max(lengths),
        targets=round(targets * min(config.batch_size, count)),
        epochs=config.epochs,
        batch_size=config.batch_size,
        shared=shared,
    )
