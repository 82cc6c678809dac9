"""The gate on one device: how much of the personal adapter and of memory its answers use.

Choices are tried on a task's newest real records, with an adapter that has not learnt from them
(``pfi.gate.trials``); ``pfi.gate.choices`` says which gain is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from pfi._util.settings import checked
from pfi.errors import DataError
from pfi.gate.choices import GateConfig, mixing_weights
from pfi.gate.fit import LEAST_TRIED, choose_for
from pfi.gate.prior import PRIOR, Tried, prior_with
from pfi.gate.trials import Asker, Trial, divide, record_trials
from pfi.inference.answering import Part, combined
from pfi.inference.engine import AdapterRef
from pfi.inference.torch.engine import TorchEngine
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import precision_name
from pfi.profile.answer import memory
from pfi.profile.answer.gate_file import Fitted, read_gate, write_gate
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import search_config
from pfi.profile.home import Home
from pfi.profile.learn.training import (
    Division,
    mix_config,
    train_candidate,
    train_config,
    training_base,
)
from pfi.records import History
from pfi.tasks import Task
from pfi.train.examples import without_held_back
from pfi.train.precision import as_trained


def gate_config(home: Home, settings: Mapping[str, Any] | None = None) -> GateConfig:
    """The settings: the given ones, then the profile's, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    return checked(GateConfig, {**home.config.gate, **(settings or {})}, "gate settings")


# Fitting ------------------------------------------------------------------------------


def can_fit(home: Home, task: Task) -> bool:
    """Whether there are enough records, or other users' experience, to choose by.

    Raises:
        ConfigError: the profile's gate settings make no sense.
    """
    if shipped_prior(home, Runtime(home).versions(task)[1]) is not None:
        return True
    with home.open_vault() as vault:
        real = vault.history(task.name, origin="real")
    return len(divide(gate_config(home), real)[1]) >= LEAST_TRIED


def fit_gate(
    home: Home,
    task: Task,
    settings: Mapping[str, Any] | None = None,
    *,
    backbone: Backbone | None = None,
    seed: int = 0,
    on_stage: Callable[[str], None] = lambda text: None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Fitted:
    """Choose how much of the personal adapter and of memory a task's answers use.

    An adapter is trained with the settings of the one in use, but on the older records only; it
    is not kept.  Without one in use only the number of records is chosen; without a sentence
    model no weight by likeness.  The prior is the one
    that came with the shared adapter.  Where none did, choices must convince on the user's own
    records: with fewer than ``LEAST_TRIED`` to try them on, which is with fewer than 12 records
    by the default settings, nothing is fitted and the profile's settings stay in force: the
    whole personal adapter and `records` records.

    Args:
        home: the device.
        task: whose answers.
        settings: values of `GateConfig` that go before the profile's and the defaults.
        backbone: the profile's one, where it is loaded already.
        seed: of the examples' choices and of the training; same seed, same result.
        on_stage: told what begins, in a few words.
        on_step: told the step, the number of steps and the loss, of the training.

    Raises:
        ConfigError: a setting makes no sense.
        DataError: there are too few records.
        BackboneError: the version in use was trained on another backbone.
        StorageError: an adapter, the vault or the gate's file cannot be read or written.
    """
    from pfi.models.backbone import load_backbone

    read_gate(home)  # a damaged file is told of before the work
    run = _Fit(home, task, gate_config(home, settings), seed, on_stage, on_step)
    on_stage("reading records")
    run.read()
    tried: Tried | None = None
    if run.trials:
        on_stage("loading the backbone")
        tried = run.try_choices(backbone or load_backbone(home.config.backbone))
    fitted = run.choose(tried)
    write_gate(home, {**read_gate(home), task.name: fitted})
    return fitted


@dataclass
class _Fit:
    """One fitting, up to what is written."""

    home: Home
    task: Task
    config: GateConfig
    seed: int
    on_stage: Callable[[str], None]
    on_step: Callable[[int, int, float], None] | None
    trials: list[Trial] = field(default_factory=list)

    def read(self) -> None:
        """Read what is in use and divide the records; make trials of the newest.

        Raises:
            DataError: there are too few.
        """
        home, name = self.home, self.task.name
        self.personal, self.shared = Runtime(home).versions(self.task)
        self.prior = shipped_prior(home, self.shared)
        if self.personal is None:
            self.config = self.config.model_copy(update={"weights": [0.0]})
        with home.open_vault() as vault:
            real = vault.history(name, origin="real")
            synthetic = tuple(vault.history(name, origin="synthetic"))
        older, newest = divide(self.config, real)
        self.user = real.user_id
        self.data = Division(older, without_held_back(synthetic, older, newest), newest)
        self.trials = home_trials(home, self.task, real, newest, self.config, self.seed)
        if len(self.trials) < LEAST_TRIED and self.prior is None:
            raise DataError(
                f"of {len(real)} records of task {name} choices could be tried on "
                f"{len(self.trials)}; {LEAST_TRIED} are needed",
                fix="import more records; until then the profile's settings stay in force",
            )

    def try_choices(self, plain: Backbone) -> Tried:
        """What the choices gain on the trials."""
        store, shared = self.home.shared_adapters, self.shared
        beneath: list[Part] = []
        if shared is not None:
            beneath.append((f"shared {shared}", partial(store.load, shared), 1.0))
        adapter: Adapter | None = None
        if self.personal is not None:
            adapter = self._train(plain, self.personal)

        def weighted(user: str, weight: float) -> AdapterRef | None:
            own: list[Part] = [] if adapter is None else [("older", lambda: adapter, weight)]
            return combined([*beneath, *own])

        self.on_stage("trying choices")
        retrieval = retrieval_of(self.home.config, plain.prompter)
        plain = as_trained(plain, train_config(self.home, {}), "bank")
        sizes = {"capacity": len(mixing_weights(self.config)) + 1}
        with TorchEngine(plain, **sizes, precision=precision_name(plain)) as engine:
            asker = Asker(engine, self.task, retrieval, weighted)
            return asker.try_choices(self.trials, self.config)[self.user]

    def _train(self, plain: Backbone, personal: str) -> Adapter:
        """An adapter that has learnt from the older records as the one in use has from all."""
        home = self.home
        told = home.personal_adapters.manifest(personal).config
        config = train_config(home, {})
        config = train_config(home, {k: told[k] for k in type(config).model_fields if k in told})
        data = self.data if told.get("synthetic") else replace(self.data, synthetic=())
        base = training_base(home, config, self.shared, plain)
        made = train_candidate(
            home,
            self.task,
            base,
            data,
            config,
            mix_config(home, told.get("mix", {})),
            seed=self.seed,
            on_step=self.on_step,
            on_stage=self.on_stage,
        )
        return made.adapter.scaled(told.get("weight", 1.0))

    def choose(self, tried: Tried | None) -> Fitted:
        """The choice whose gain is believed most."""
        config = self.config
        confidence = np.zeros(0) if tried is None else tried.confidence
        prior = prior_with(self.task, config, self.prior, confidence)
        measures = self.personal is not None and memory.home_embedder(self.home) is not None
        chosen = choose_for(config, prior, tried, by_likeness=measures)
        return Fitted(
            task=self.task.name,
            choice=chosen.choice,
            sure=prior.sure,
            gain=chosen.gain,
            tried=len(self.trials),
            users=prior.users,
            backbone=self.home.config.backbone,
            personal=self.personal,
            shared=self.shared,
            settings=config,
            date=datetime.now(UTC).replace(microsecond=0),
        )


def shipped_prior(home: Home, shared: str | None) -> bytes | None:
    """The prior that came with a shared adapter, as a study wrote it, or None.

    Raises:
        StorageError: the adapter's folder was changed.
    """
    if shared is None or PRIOR not in home.shared_adapters.manifest(shared).sha256:
        return None
    return home.shared_adapters.files(shared)[PRIOR]


def home_trials(
    home: Home, task: Task, real: History, newest: History, config: GateConfig, seed: int
) -> list[Trial]:
    """Trials made from a device's newest records.

    Raises:
        ConfigError: the search settings make no sense.
        StorageError: the vault or the memory cannot be used.
    """
    if not newest:
        return []
    search, most = search_config(home.config), max(config.ks)
    with memory.open_memory(home) as store:
        return record_trials(
            task, real, newest, lambda known: store.memory(task, known, search), most, seed
        )
