"""Refreshing one task's model: memory at once, the personal adapter where it pays and helps.

A new version is in use only if it beats the one in use on held-back recent records; all that a
refresh does to the home happens at its very end, so that a run that is stopped changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pfi._util.settings import checked
from pfi.errors import StorageError
from pfi.models.adapters import Adapter
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.adapters.store import Manifest
from pfi.profile.answer.runtime import Runtime
from pfi.profile.erase.erased import refuse_erased
from pfi.profile.home import Home
from pfi.profile.learn.candidates import HeldBack, Material, RefreshConfig, Trial, Trials, hold_back
from pfi.profile.learn.drift import UNSEEN, WINDOWS, Check, Drift, drifted, unseen
from pfi.profile.learn.forgetting import at_lower_weight, lower_weights, open_probe, too_much
from pfi.profile.learn.measuring import answer_scores, example_losses
from pfi.profile.learn.pairs import preferences
from pfi.profile.learn.training import (
    adapter_info,
    mix_config,
    train_config,
    training_base,
)
from pfi.records import History, Record
from pfi.tasks import Task

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.train.forgetting import Forgetting

Outcome = Literal["no need", "due", "rejected", "accepted"]
_START = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        task: the name of the task.
        outcome: `no need` to train; `due`, of a dry run; `rejected` or `accepted`.
        drift: why it trained, or did not.
        why: what decided, in a sentence.
        checks: of the candidate that was accepted, or of the one that learnt from everything.
        version: the new version in use, if accepted.
        stored: the version that is stored and not in use, as it makes the model forget too much.
        forgetting: what either makes the model forget; None where that was not measured.
        weight: of its update, below 1 where it forgot too much at its full weight.
        doubtful: batches of feedback that make it worse, and are learnt from no more.
        indexed: whether memory was brought up to date.
    """

    task: str
    outcome: Outcome
    drift: Drift
    why: str
    checks: tuple[Check, ...] = ()
    version: Manifest | None = None
    doubtful: tuple[str, ...] = ()
    indexed: bool = False
    stored: Manifest | None = None
    forgetting: Forgetting | None = None
    weight: float = 1.0


def refresh_config(home: Home, settings: Mapping[str, Any] | None = None) -> RefreshConfig:
    """The settings: the given ones, then the profile's, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    values = {**home.config.refresh, **(settings or {})}
    return checked(RefreshConfig, values, "refresh settings")


def due(home: Home) -> list[str]:
    """The names of the tasks whose refresh is due by the profile's `refresh_after`."""
    after = home.config.refresh_after
    if after is None:
        return []
    with home.open_vault() as vault:
        found = []
        for task in vault.tasks():
            times = [vault.feedback.last_refresh(task) or _START]
            if version := home.personal_adapters.active(task):
                manifest = home.personal_adapters.manifest(version)
                times.append(manifest.read or manifest.created)
            if len(vault.added_since(task, max(times))) >= after:
                found.append(task)
    return found


def refresh(
    home: Home,
    task: Task,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    backbone: Backbone | None = None,
    engine: str = "bank",
    on_step: Callable[[int, int, float], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Refreshed:
    """Bring memory up to date, and the personal adapter if that pays and proves to help.

    Args:
        home: the device.
        task: whose model.
        settings: values of `RefreshConfig` that go before the profile's and the defaults.
        force: train even if nothing says that it pays; the result must prove itself as ever.
        dry_run: only say whether it would train.
        seed: of the examples' choices and of the training; same seed, same result.
        backbone: the profile's one, where it is loaded already.
        engine: what trains, `bank` or `peft`.
        on_step: told the step, the number of steps and the loss, of each training.
        on_stage: told what begins, in a few words.

    Raises:
        ConfigError: a setting makes no sense.
        BackboneError: the version in use was trained on another backbone.
        StorageError: an adapter or the vault cannot be read or written, or another version came
            into use meanwhile.
    """
    config = refresh_config(home, settings)
    indexed = False if dry_run else _index(home, on_stage)
    run = _Run(home, task, config, seed)
    too_few = run.too_few()
    if too_few is None:
        run.load(backbone, engine, on_stage)
        on_stage("looking for drift")
    drift = too_few or run.drift()
    if too_few or not (drift.found or force) or dry_run:
        outcome: Outcome = (
            "due" if dry_run and (drift.found or force) and not too_few else "no need"
        )
        if not dry_run:
            run.note()
        return Refreshed(task.name, outcome, drift, drift.why, indexed=indexed)
    trials = run.trials(drift, engine, on_step, on_stage)
    accepted, tried = trials.run()
    checks = tried[0].checks if tried else ()
    if accepted is None:
        doubtful = tuple(sorted(trials.culprits(tried)))
        run.reject(doubtful)
        why = _why_not(checks)
        return Refreshed(task.name, "rejected", drift, why, checks, None, doubtful, indexed)
    # Feedback that was left out without having done harm is judged again the next time.
    doubtful = tuple(sorted(accepted.left_out)) if tried[0].harmed else ()
    kept = run.within_bound(accepted, trials, on_stage)
    on_stage("comparing answers")
    version = run.store(kept, trials, doubtful)
    why = "it beats the one before on recent records that neither has learnt from"
    if kept.note:
        why += f"; {kept.note}"
    done = Refreshed(
        task.name, "accepted", drift, why, kept.trial.checks, version, doubtful, indexed
    )
    if not kept.used:
        done = replace(done, outcome="rejected", version=None, stored=version)
    return replace(done, forgetting=kept.forgetting, weight=kept.weight)


def _index(home: Home, on_stage: Callable[[str], None]) -> bool:
    from pfi.profile.answer.memory import open_memory

    on_stage("updating memory")
    open_memory(home).close()
    return True


def _why_not(checks: Sequence[Check]) -> str:
    said = {
        "harm": "what it learnt from your feedback makes it worse on your own records",
        "own": "the candidate is worse on your own records than the model in use",
        "feedback": "the candidate is worse on your feedback's records than the model in use",
    }
    failed = {check.of for check in checks if not check.passed}
    for of, why in said.items():
        if of in failed:
            return why
    return "the candidate does not beat the model in use on recent records"


@dataclass(frozen=True)
class _Kept:
    """A candidate that passed its checks, and what it makes the model forget; see `Refreshed`."""

    trial: Trial
    forgetting: Forgetting | None = None
    weight: float = 1.0
    note: str = ""

    @property
    def used(self) -> bool:
        return self.forgetting is None or not self.forgetting.exceeded


class _Run:
    """One refresh: what it read, and what it does to the home at its end."""

    def __init__(self, home: Home, task: Task, config: RefreshConfig, seed: int) -> None:
        self.home, self.task, self.config, self.seed = home, task, config, seed
        self.read = datetime.now(UTC)  # by the clock, as erasures are noted
        store = home.personal_adapters
        self.active, self.shared = Runtime(home).versions(task)
        self.manifest = store.manifest(self.active) if self.active else None
        # A version sits on the shared adapter that it was trained on.
        self.goes_on = self.active is not None and self.shared == home.shared_adapters.active(
            task.name
        )
        self.added, self.material = self._read()
        self.held = HeldBack((), ())
        self.present: Adapter | None = None
        self.start: Adapter | None = None
        self.current: dict[str, float] = {}

    def _read(self) -> tuple[frozenset[str], Material]:
        """What was added since the version in use was made, and all that there is."""
        name = self.task.name
        since = (self.manifest.read or self.manifest.created) if self.manifest else _START
        with self.home.open_vault() as vault:
            #: Records that are added later are new, also where the clock was set back.
            self.seen = vault.time()
            real = vault.history(name, origin="real")
            synthetic = tuple(vault.history(name, origin="synthetic"))
            added = frozenset(vault.added_since(name, since))
            out = vault.excluded.ids()
            entries = [e for e in vault.feedback.entries(name) if e.record not in out]
        found = {e.record_id: e for e in self.task.examples(real, random.Random(self.seed))}
        records = History(real.user_id, (r for r in real if r.id in found))
        kept_back = {*self.manifest.held_back} if self.manifest else set()
        new = {r.id for r in records if r.id in added or fingerprint(r.id) in kept_back}
        batch = {e.record: e.batch for e in entries if e.record and not e.trust}
        batch = {r.id: batch[r.id] for r in records if r.id in batch}
        pairs = tuple(preferences(entries))
        everything = frozenset(new)
        return added, Material(records, found, everything, everything, batch, synthetic, pairs)

    # Whether it pays ------------------------------------------------------------------

    def too_few(self) -> Drift | None:
        """Why there is nothing to decide yet, or None."""
        new, needed = len(self.material.new), 2 * self.config.least
        if new >= needed:
            return None
        return Drift(False, f"{new} new records are too few to learn from and to check on", new)

    def load(self, backbone: Backbone | None, engine: str, on_stage: Callable[[str], None]) -> None:
        """Put the models together: over one copy of the weights, unless shared adapters differ."""
        home, config = self.home, train_config(self.home, self.config.train)
        shared = home.shared_adapters.active(self.task.name)

        def base(version: str | None) -> Backbone:
            return training_base(home, config, version, backbone, engine=engine, on_stage=on_stage)

        self.base = base(shared)
        self.beneath = self.base if self.shared == shared else base(self.shared)
        if self.active is not None:
            self.present = home.personal_adapters.load(self.active)
            self.start = self.present if self.goes_on else None

    def _measure(self, wanted: Collection[str]) -> None:
        """Know the losses of the model in use on these records, by id."""
        ids = [r.id for r in self.material.records if r.id in wanted and r.id not in self.current]
        examples = [self.material.examples[i] for i in ids]
        self.current |= zip(ids, example_losses(self.beneath, examples, self.present), strict=True)

    def _recent(self) -> list[Record]:
        return [r for r in self.material.records if r.id in self.added][-max(WINDOWS) :]

    def drift(self) -> Drift:
        """Whether training pays; see `drifted`."""
        config, new = self.config, len(self.material.new)
        manifest, recent = self.manifest, self._recent()
        if manifest is None or len(manifest.held_back_losses) < config.least:
            why = (
                "no adapter is in use"
                if manifest is None
                else ("the version in use was not measured when it was made")
            )
            return Drift(new >= config.enough, f"{why} and there are {new} new records", new)
        if self.task.labels:
            learnt = {r.output for r in self.material.records if r.id not in self.material.new}
            count = unseen(self.task.labels, learnt, [record.output for record in recent])
            if count >= UNSEEN:
                return Drift(True, f"{count} recent answers have never been learnt", new)
        self._measure({record.id for record in recent})
        losses = [self.current[record.id] for record in recent]
        p, window = drifted(losses, manifest.held_back_losses) or (None, None)
        before = sum(manifest.held_back_losses) / len(manifest.held_back_losses)
        now = sum(losses) / len(losses) if losses else None
        rise = sum(losses[-window:]) / window - before if window else 0.0
        if p is not None and p < config.alpha and rise > config.tolerance:
            why = f"recent records surprise the version in use (p = {p:.3f})"
            return Drift(True, why, new, p, before, now, window)
        if config.growth is not None and new >= config.growth * max(manifest.records, 1):
            why = f"{new} records are new and the version in use has learnt {manifest.records}"
            return Drift(True, why, new, p, before, now)
        return Drift(
            False, "recent records are no surprise to the version in use", new, p, before, now
        )

    # Candidates -----------------------------------------------------------------------

    def trials(
        self,
        drift: Drift,
        engine: str,
        on_step: Callable[[int, int, float], None] | None,
        on_stage: Callable[[str], None],
    ) -> Trials:
        """What trains candidates and checks them."""
        if drift.window is not None:
            new = [record.id for record in self.material.records if record.id in self.material.new]
            size = max(drift.window, 2 * self.config.least)
            self.material = replace(self.material, focus=frozenset(new[-size:]))
        self.held = hold_back(self.material, self.config)
        self._measure(self.held.all)
        shape: dict[str, Any] = {}
        if self.goes_on and self.manifest:
            names = ("rank", "alpha", "targets", "layers")
            shape = {n: self.manifest.config[n] for n in names if n in self.manifest.config}
        return Trials(
            self.home,
            self.task,
            self.material,
            self.held,
            self.base,
            self.current,
            self.start,
            # Feedback may be about something else, or lie: then older records are still right.
            drift.window is not None and not self.material.new_batches,
            self.config,
            train_config(self.home, {**self.config.train, **shape}),
            mix_config(self.home, {}),
            self.seed,
            engine,
            on_step,
            on_stage,
        )

    # Ends -----------------------------------------------------------------------------

    def note(self) -> None:
        """Note that a refresh was tried, so that an automatic one waits for more records."""
        with self.home.open_vault() as vault:
            vault.feedback.note_refresh(self.task.name, self.seen)

    def reject(self, doubtful: Sequence[str]) -> None:
        """Keep the version in use; mark the feedback that is to blame."""
        with self.home.open_vault() as vault:
            vault.feedback.mark(doubtful, "doubtful")
        self.note()

    def within_bound(self, trial: Trial, trials: Trials, on_stage: Callable[[str], None]) -> _Kept:
        """A candidate with what it forgets; at a lower weight where that is too much."""
        probe = open_probe(self.home, self.base, on_stage)
        if probe is None:
            return _Kept(trial)
        full = probe.forgetting(trial.candidate.adapter)
        if not full.exceeded:
            return _Kept(trial, full)
        for adapter, weight, found in lower_weights(probe, trial.candidate.adapter):
            lighter = trials.with_adapter(trial, adapter)
            if lighter.passed:
                return _Kept(lighter, found, weight, at_lower_weight(full, weight))
        return _Kept(trial, full, note=too_much(full))

    def store(self, kept: _Kept, trials: Trials, doubtful: Sequence[str]) -> Manifest:
        """Store a candidate, and take it into use unless it forgets too much."""
        home, batch, trial = self.home, self.material.batch, kept.trial
        recent = [i for i in self.held.recent if batch.get(i) not in trial.left_out]
        examples = [self.material.examples[i] for i in recent]
        after = [trial.losses[i] for i in recent]
        before = [self.current[i] for i in recent]
        new = answer_scores(self.base, self.task, examples, trial.candidate.adapter)
        metrics = {"loss": sum(after) / len(after), **new}
        present = answer_scores(self.beneath, self.task, examples, self.present)
        old = {"loss": sum(before) / len(before), **present}
        metrics |= {f"{name}_before": value for name, value in old.items()}
        info = adapter_info(
            home,
            self.task,
            trial.candidate,
            trial.data,
            trials.config,
            seed=self.seed,
            mixed=trials.mixed,
        )
        learnt = {record.id for record in trial.data.real}
        everything = {record.id for record in self.material.records}
        weight = kept.weight
        if self.goes_on and self.manifest:
            # After a change the records before it are as good as learnt.
            left = {i for i in self.material.new if batch.get(i) in trial.left_out}
            earlier = 0 if trials.changed else self.manifest.records
            weight *= self.manifest.config.get("weight", 1.0)
            fresh = frozenset(left | self.material.focus)
        else:
            earlier, fresh = 0, frozenset(everything)
        told = {"refresh": self.config.model_dump(), "pairs": trial.pairs}
        told |= {} if weight == 1 else {"weight": weight}
        info = info.model_copy(
            update={
                "records": earlier + len(learnt & fresh),
                "config": {**info.config, **told},
                "metrics": metrics,
                "read": self.seen,
                "held_back": sorted(fingerprint(i) for i in fresh - learnt),
                "held_back_losses": after,
                "verdict": "; ".join(
                    filter(None, ["it beats the one before on recent records", kept.note])
                ),
                "general": kept.forgetting.figures() if kept.forgetting else {},
            }
        )
        refuse_erased(home, self.task.name, self.read)
        version = home.personal_adapters.add(trial.candidate.adapter, info)
        if home.personal_adapters.active(self.task.name) != self.active:
            what = "another version came into use during the refresh"
            fix = "run `pfi refresh` again"
            raise StorageError(what, where=f"task {self.task.name}", fix=fix)
        if kept.used:
            home.personal_adapters.use(version.version)
        # What is marked counts as not learnt by this version, so a kill in between does no harm.
        self.reject(doubtful)
        return version
