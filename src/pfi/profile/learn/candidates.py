"""The trials of a refresh: candidates trained with and without some feedback, and their checks.

What is checked is the newest: own records, and feedback, each apart, so that feedback cannot
vouch for itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfi._util.settings import checked
from pfi.models.adapters import Adapter
from pfi.profile.home import Home
from pfi.profile.learn.drift import Check, gains, unharmed
from pfi.profile.learn.measuring import example_losses
from pfi.profile.learn.pairs import Pair
from pfi.profile.learn.training import Candidate, Division, train_candidate
from pfi.records import History, Record
from pfi.tasks import Example, Task
from pfi.train.config import TrainConfig
from pfi.train.examples import MixConfig, without_held_back

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

#: Held-back records of one source that are measured; more would take longer than training.
MOST = 32


class RefreshConfig(BaseModel):
    """When a refresh trains, on what, and what its result must show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="level of the drift test and of the test of the gain"
    )
    least: int = Field(
        4, ge=3, description="fewest held-back records; as many again must be there to learn from"
    )
    enough: int = Field(
        8, ge=1, description="new records that are reason enough where no loss is known from before"
    )
    growth: float | None = Field(
        0.5, gt=0, description="new records, as a share of those learnt, that are reason enough"
    )
    held_back: float = Field(
        0.33, gt=0, le=0.5, description="share of the new records, the newest, that is held back"
    )
    replay: float = Field(
        0.5,
        ge=0,
        description="older records that are trained on again, for each new one; none after a "
        "change, which they would contradict",
    )
    steps: int = Field(48, ge=1, description="fewest steps, however few the records are")
    tolerance: float = Field(
        0.05, ge=0, description="a rise of the loss, in nats a token, that is nothing to act on"
    )
    min_preferences: int = Field(8, ge=1, description="pairs from which on preferences are learnt")
    train: dict[str, Any] = Field(
        default={}, description="training settings other than the profile's"
    )
    preferences: dict[str, Any] = Field(
        default={}, description="settings of the training on preferences other than those"
    )


@dataclass(frozen=True)
class Material:
    """All that a refresh can learn from and measure on.

    Attributes:
        records: the real records that give a training example, oldest first.
        examples: those examples, by record id.
        new: ids of the records that the version in use has not learnt from.
        focus: those of them that the change shows in; the others are like the older ones.
        batch: the batch of each record that comes from feedback which is not trusted yet, by id.
        synthetic: synthetic records, used where no version is gone on from.
        pairs: preferences.
    """

    records: History
    examples: Mapping[str, Example]
    new: frozenset[str]
    focus: frozenset[str]
    batch: Mapping[str, str]
    synthetic: tuple[Record, ...] = ()
    pairs: tuple[Pair, ...] = ()

    @cached_property
    def new_batches(self) -> tuple[str, ...]:
        """The batches that may be learnt from for the first time, the latest first."""
        found = [
            self.batch[r.id] for r in reversed(self.records) if r.id in self.new & {*self.batch}
        ]
        return tuple(dict.fromkeys(found))

    def newest(self, *, own: bool, focus: bool = True) -> list[str]:
        """The ids of one source's records, newest first: those in focus, or all."""
        return [
            record.id
            for record in reversed(self.records)
            if (record.id not in self.batch) is own and (not focus or record.id in self.focus)
        ]


@dataclass(frozen=True)
class HeldBack:
    """The ids of the records that candidates are measured on and do not learn from.

    Attributes:
        recent: new ones of both sources.
        own: the user's own ones: those of them, and more where they are few beside feedback.
    """

    recent: tuple[str, ...]
    own: tuple[str, ...]

    @cached_property
    def all(self) -> frozenset[str]:
        return frozenset({*self.recent, *self.own})


def hold_back(material: Material, config: RefreshConfig) -> HeldBack:
    """Every other one of each source's newest records in focus.

    With every other one, a change that is a few records old is both learnt and measured.
    Together there are `least` at least where twice as many are in focus.
    """
    # One more than the fewest: so many give the signed-rank test its say.
    share = max(config.held_back, min(0.5, (config.least + 1) / max(len(material.focus), 1)))
    chosen = {}
    for is_own in (True, False):
        found = material.newest(own=is_own)
        count = min(math.ceil(share * len(found)), MOST)
        chosen[is_own] = found[: 2 * count : 2]
    own = chosen[True]
    if len(own) < config.least and material.new_batches:
        everything = material.newest(own=True, focus=False)
        # Twice as many as are needed, but never so many that none is left to learn from.
        more = everything[: min(2 * config.least, len(everything) // 2)]
        own = list(dict.fromkeys([*own, *more]))
    return HeldBack((*chosen[True], *chosen[False]), tuple(own))


@dataclass
class Trial:
    """A candidate that learnt without some batches of feedback.

    Attributes:
        left_out: those batches.
        candidate: what came out.
        data: what it learnt from.
        losses: its losses on held-back records, by id.
        pairs: how many preferences it learnt.
        checks: what they say of it.
    """

    left_out: frozenset[str]
    candidate: Candidate
    data: Division
    losses: dict[str, float]
    pairs: int = 0
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def harmed(self) -> bool:
        """Whether the feedback that it learnt from makes own records worse."""
        return any(check.of == "harm" and not check.passed for check in self.checks)


@dataclass
class Trials:
    """Trains candidates and checks them against the current model.

    Attributes:
        home, task: whose they are.
        material: what there is to learn from.
        held: what is measured on.
        base: the backbone with the shared adapter.
        current: losses of the model in use on held-back records, by id.
        start: the adapter that candidates go on from, or None.
        changed: whether recent own records contradict the older ones.
        settings: of the refresh.
        config, mixed: of the training.
        seed, engine: of the training.
    """

    home: Home
    task: Task
    material: Material
    held: HeldBack
    base: Backbone
    current: Mapping[str, float]
    start: Adapter | None
    changed: bool
    settings: RefreshConfig
    config: TrainConfig
    mixed: MixConfig
    seed: int = 0
    engine: str = "bank"
    on_step: Callable[[int, int, float], None] | None = None
    on_stage: Callable[[str], None] = lambda text: None
    _trained: dict[frozenset[str], Trial | None] = field(default_factory=dict)

    def run(self) -> tuple[Trial | None, list[Trial]]:
        """Trials with all feedback, then with less, up to the first that passes.

        Returns:
            that one, or None, and all of them.
        """
        tried: list[Trial] = []
        for left_out in self._choices():
            for trial in self._both(left_out):
                tried.append(trial)
                if trial.passed:
                    return trial, tried
        return None, tried

    def culprits(self, tried: Sequence[Trial]) -> frozenset[str]:
        """The batches that harm own records, of the candidate that learnt from everything."""
        if not tried or not tried[0].harmed:
            return frozenset()
        for left_out in self._choices()[1:-1]:
            trial = self._supervised(left_out)
            if trial is not None and not self._checked(trial).harmed:
                return left_out
        return self._choices()[-1]

    def with_adapter(self, trial: Trial, adapter: Adapter) -> Trial:
        """The trial with another adapter in place of what came out, checked anew."""
        made = replace(trial.candidate, adapter=adapter)
        losses = self._measure(adapter)
        return self._checked(replace(trial, candidate=made, losses=losses))

    def _choices(self) -> list[frozenset[str]]:
        """What is left out: nothing, each of a few new batches, all of them."""
        batches = self.material.new_batches
        each = [frozenset({batch}) for batch in batches] if 1 < len(batches) <= 3 else []
        return [frozenset(), *each, *([frozenset(batches)] if batches else [])]

    def _both(self, left_out: frozenset[str]) -> Iterable[Trial]:
        """The candidate that learnt preferences as well, and the one that did not."""
        plain = self._supervised(left_out)
        if plain is None:
            return
        pairs = self._pairs(left_out)
        if len(pairs) >= self.settings.min_preferences:
            yield self._checked(self._preferring(plain, pairs))
        yield self._checked(plain)

    # Training -----------------------------------------------------------------------

    def _supervised(self, left_out: frozenset[str]) -> Trial | None:
        if left_out not in self._trained:
            self._trained[left_out] = self._train(left_out)
        return self._trained[left_out]

    def _train(self, left_out: frozenset[str]) -> Trial | None:
        data = self._division(left_out)
        if not data.real:
            return None
        examples = max(len(data.real) + len(data.synthetic), 1)
        epochs = self.settings.steps * self.config.batch_size / examples
        config = self.config.model_copy(update={"epochs": max(self.config.epochs, epochs)})
        made = train_candidate(
            self.home,
            self.task,
            self.base,
            data,
            config,
            self.mixed,
            seed=self.seed,
            engine=self.engine,
            start=self.start,
            on_step=self.on_step,
            on_stage=self.on_stage,
        )
        return Trial(left_out, made, data, self._measure(made.adapter))

    def _division(self, left_out: frozenset[str]) -> Division:
        """The records in focus and a sample of the others; all where nothing is gone on from."""
        material = self.material
        asked = {material.examples[i].prompt for i in self.held.all}
        usable = [
            record
            for record in material.records
            if material.batch.get(record.id) not in left_out
            and material.examples[record.id].prompt not in asked
        ]
        if self.start is not None:
            others = [record.id for record in usable if record.id not in material.focus]
            replay = 0.0 if self.changed else self.settings.replay
            wanted = math.ceil(replay * max(len(material.focus), self.settings.least))
            again = {*random.Random(self.seed).sample(others, min(len(others), wanted))}
            usable = [r for r in usable if r.id in material.focus or r.id in again]
        user = material.records.user_id
        held = History(user, (r for r in material.records if r.id in self.held.all))
        real = History(user, usable)
        synthetic = material.synthetic if self.start is None else ()
        return Division(real, without_held_back(synthetic, real, held), held)

    def _pairs(self, left_out: frozenset[str]) -> list[Pair]:
        asked = {self.material.examples[i].prompt for i in self.held.all}
        return [
            pair
            for pair in self.material.pairs
            if not pair.batches & left_out and self.task.prompt(pair.fields) not in asked
        ]

    def _preferring(self, trial: Trial, pairs: Sequence[Pair]) -> Trial:
        from pfi.train.preferences import Preference, PreferenceConfig, train_preferences

        shared = {"rank", "alpha", "dropout", "targets", "layers", "batch_size", "max_length"}
        values = self.config.model_dump(include={*shared, "precision"})
        values |= self.settings.preferences
        config = checked(PreferenceConfig, values, "refresh setting preferences")
        self.on_stage("training on preferences")
        preferred = [Preference(self.task.prompt(p.fields), p.chosen, p.rejected) for p in pairs]
        start = trial.candidate.adapter
        result = train_preferences(
            self.base, preferred, config, seed=self.seed, start=start, on_step=self.on_step
        )
        seconds = trial.candidate.seconds + result.seconds
        made = replace(trial.candidate, adapter=result.adapter, seconds=seconds)
        return Trial(trial.left_out, made, trial.data, self._measure(made.adapter), len(pairs))

    def _measure(self, adapter: Adapter) -> dict[str, float]:
        self.on_stage("measuring")
        ids = [record.id for record in self.material.records if record.id in self.held.all]
        examples = [self.material.examples[i] for i in ids]
        return dict(zip(ids, example_losses(self.base, examples, adapter), strict=True))

    # Checks -------------------------------------------------------------------------

    def _checked(self, trial: Trial) -> Trial:
        """The trial with what its checks say."""
        config, batch = self.settings, self.material.batch
        recent = [i for i in self.held.recent if batch.get(i) not in trial.left_out]
        after = [trial.losses[i] for i in recent]
        before = [self.current[i] for i in recent]
        sources = [i in batch for i in recent]
        checks = [gains(before, after, sources, least=config.least, alpha=config.alpha)]
        # Records that the model in use has learnt by heart are no measure of it.
        if own := [i for i in self.held.own if i in self.material.new]:
            checks.append(self._unharmed("own", own, self.current, trial))
        if said := [i for i in recent if i in batch]:
            checks.append(self._unharmed("feedback", said, self.current, trial))
        everything = frozenset(self.material.new_batches)
        if self.held.own and trial.left_out != everything:
            # A gain on feedback must not be paid for with own records: they would have gained
            # more, or lost less, without it.
            without = self._supervised(everything)
            losses = without.losses if without else self.current
            checks.append(self._unharmed("harm", self.held.own, losses, trial))
        return replace(trial, checks=tuple(checks))

    def _unharmed(
        self, of: str, ids: Sequence[str], before: Mapping[str, float], trial: Trial
    ) -> Check:
        after = [trial.losses[i] for i in ids]
        return unharmed(of, [before[i] for i in ids], after, self.settings.tolerance)
