"""A refresh's decisions by hand: no vault, no training, losses that are written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pfi.errors import StorageError
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.learn import candidates, refresh
from pfi.profile.learn.candidates import (
    MOST,
    HeldBack,
    Material,
    RefreshConfig,
    Trial,
    Trials,
    hold_back,
)
from pfi.profile.learn.drift import Check, Drift, drifted, gains, unharmed, unseen
from pfi.profile.learn.pairs import Pair
from pfi.profile.learn.training import Candidate, Division
from pfi.records import History, Record
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.examples import MixConfig

START = datetime(2024, 1, 1, tzinfo=UTC)


def record(name: str, hour: int = 0) -> Record:
    return Record(name, "mood", {"text": name}, "good", START + timedelta(hours=hour))


def material(
    own: int, said: int = 0, *, old: int = 0, focus: int | None = None, batches: int = 1
) -> Material:
    """Old records o0.., new own ones m0.., and of feedback f0.., two a batch b0.. in turn."""
    names = [*(f"o{n}" for n in range(old)), *(f"m{n}" for n in range(own))]
    names += [f"f{n}" for n in range(said)]
    records = History("u", [record(name, hour) for hour, name in enumerate(names)])
    examples = {
        name: Example(prompt=name, target="good", fields={"text": name}, record_id=name)
        for name in names
    }
    new = names[old:]
    batch = {f"f{n}": f"b{n // 2 % batches}" for n in range(said)}
    shown = new if focus is None else new[-focus:]
    return Material(records, examples, frozenset(new), frozenset(shown), batch)


# The tests ----------------------------------------------------------------------------


def test_two_windows_are_two_tests_and_one_window_is_one() -> None:
    """Eight of eight above four: 1 of 495 orders; with a second window twice that."""
    before = [0.1, 0.2, 0.3, 0.4]
    high = [1.0 + n for n in range(8)]
    assert drifted(high, before) == (pytest.approx(1 / math.comb(12, 4)), 8)
    found = drifted([0.05, *high], before)  # the last nine are a window of their own
    assert found == (pytest.approx(2 / math.comb(12, 4)), 8)
    assert drifted([0.01 * n for n in range(40)], [1.0, 2.0])[0] == 1.0  # type: ignore[index]
    only_last = [*(0.01 * n for n in range(20)), *high, 0.35]
    assert drifted(only_last, before)[1] == 9  # type: ignore[index]


def test_no_more_than_the_latest_32_are_looked_at() -> None:
    before = [0.1, 0.2, 0.3]
    recent = [9.0 + n for n in range(50)]
    assert drifted(recent, before)[0] == pytest.approx(2 / math.comb(35, 3))  # type: ignore[index]
    low = [0.001 * n for n in range(32)]
    assert drifted([5.0, *low], before) == drifted(low, before)


def test_a_paired_test_of_three_by_hand() -> None:
    """Gains 1, 2, 3: t = 2 / (1 / sqrt 3) with 2 degrees; the signed ranks give 1/8."""
    check = gains([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], least=3, alpha=0.05)
    t = 2 * math.sqrt(3)
    expected = 0.5 - t / (2 * math.sqrt(2 + t * t))
    assert check.decides == pytest.approx(expected) and check.passed
    assert (check.of, check.records, check.before, check.after) == ("recent", 3, 4.0, 2.0)
    assert not gains([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], least=4, alpha=0.05).passed
    assert not gains([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], least=3, alpha=check.decides).passed


def test_a_paired_test_within_two_sources_by_hand() -> None:
    """Gains 1, 3 and 5, 7: squares 4 about two means, 2 degrees; t = 4 / sqrt(1/2)."""
    check = gains([1.0, 3, 5, 7], [0.0] * 4, ["a", "a", "b", "b"], least=4, alpha=0.05)
    t = 4 / math.sqrt(0.5)
    assert check.decides == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))


def test_gains_that_are_all_alike_and_gains_of_one_a_source() -> None:
    assert gains([1.0] * 4, [0.5] * 4, least=4, alpha=0.05).decides == 0.0
    # One a source: no spread to measure, so the signed ranks of four decide, 1 of 16.
    check = gains([1.0, 2, 3, 4], [0.0] * 4, [0, 1, 2, 3], least=4, alpha=0.05)
    assert check.decides == pytest.approx(1 / 16) and not check.passed
    # Records that gained nothing are no evidence for either.
    check = gains([1.0, 2, 3, 0], [0.0] * 4, [0, 1, 2, 3], least=4, alpha=0.05)
    assert check.decides == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "passed"),
    [
        ([2.0, 2.0], [2.5, 2.5], 0.25, True),  # a quarter of what is above one
        ([2.0, 2.0], [2.5, 2.625], 0.25, False),
        ([0.5, 0.5], [0.75, 0.75], 0.25, True),  # a quarter
        ([0.5, 0.5], [0.75, 0.875], 0.25, False),
        ([1.0], [0.5], 0.0, True),
        ([1.0], [1.0], 0.0, True),
        ([], [], 0.0, True),
    ],
)
def test_how_much_a_loss_may_rise(
    before: list[float], after: list[float], tolerance: float, passed: bool
) -> None:
    check = unharmed("own", before, after, tolerance)
    assert check.passed == passed and check.records == len(before)
    assert check.decides == pytest.approx(check.after - check.before)


def test_labels_that_were_never_learnt() -> None:
    assert unseen(["a", "b"], [], ["a", "a", "x"]) == 2 and refresh.UNSEEN == 2


# What is held back --------------------------------------------------------------------


def test_every_other_one_of_the_newest_is_held_back() -> None:
    """Of 30: a third is ten, so the 1st, 3rd, ... 19th newest."""
    config = RefreshConfig(held_back=1 / 3)
    held = hold_back(material(30), config)
    assert held.recent == held.own == tuple(f"m{29 - 2 * n}" for n in range(10))
    assert held.all == {*held.recent}
    # Of ten: least + 1 of them, five, as that is half and not more.
    assert hold_back(material(10), config).recent == ("m9", "m7", "m5", "m3", "m1")
    assert hold_back(material(6), config).recent == ("m5", "m3", "m1")
    assert len(hold_back(material(300), config).recent) == MOST


def test_each_source_is_held_back_by_itself_and_own_ones_are_added_to() -> None:
    config = RefreshConfig(held_back=0.5)
    held = hold_back(material(4, 8, old=20), config)
    assert held.recent == ("m3", "m1", "f7", "f5", "f3", "f1")
    # Two own ones are fewer than four, so of all own ones the newest eight are measured too.
    assert held.own == ("m3", "m1", "m2", "m0", "o19", "o18", "o17", "o16")
    assert held.all == {*held.recent, *held.own}
    # Never more than half of them; nothing is added without feedback; nor where there are enough.
    assert hold_back(material(4, 8, old=2), config).own == ("m3", "m1", "m2")
    assert hold_back(material(4, 0, old=20), config).own == ("m3", "m1")
    assert hold_back(material(8, 8, old=20), config).own == ("m7", "m5", "m3", "m1")


def test_only_what_is_in_focus_is_recent() -> None:
    config = RefreshConfig(held_back=0.5)
    assert hold_back(material(20, focus=8), config).recent == ("m19", "m17", "m15", "m13")


def test_batches_are_named_latest_first() -> None:
    assert material(2, 3, batches=2).new_batches == ("b1", "b0")
    assert material(2, 7, batches=3).new_batches == ("b0", "b2", "b1")
    one = material(2, 3)
    assert replace(one, new=frozenset({"m0"})).new_batches == ()
    assert one.newest(own=True) == ["m1", "m0"] and one.newest(own=False) == ["f2", "f1", "f0"]
    assert replace(one, focus=frozenset({"m0"})).newest(own=True) == ["m0"]
    assert replace(one, focus=frozenset()).newest(own=True, focus=False) == ["m1", "m0"]


# Trials -------------------------------------------------------------------------------


class Learner:
    """Training whose result is written down: by what was left out, the losses of each source."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: dict[str, dict[str, float]]):
        self.losses, self.divisions, self.epochs = losses, [], []  # type: ignore[var-annotated]
        monkeypatch.setattr(candidates, "train_candidate", self.train)
        monkeypatch.setattr(candidates, "example_losses", self.measure)

    def train(self, *given: Any, **how: Any) -> Candidate:
        _, _, _, data, config, _ = given
        self.divisions.append([record.id for record in data.real])
        self.epochs.append(config.epochs)
        batches = sorted({record.id[0] for record in data.real})
        return Candidate("+".join(batches), [1.0], 0.1)  # type: ignore[arg-type]

    def measure(self, base: Any, examples: Sequence[Example], adapter: Any) -> list[float]:
        # No two alike: equal gains are a case of their own.
        return [
            self.losses[adapter][e.record_id[0]] + 0.001 * int(e.record_id[1:]) for e in examples
        ]


def trials(of: Material, **more: Any) -> Trials:
    config = more.pop("config", RefreshConfig(held_back=0.5))
    held = more.pop("held", None) or hold_back(of, config)
    current = {record.id: 1.0 + 0.01 * n for n, record in enumerate(of.records)}
    task: Any = SimpleNamespace(prompt=lambda fields: fields["text"])
    values: dict[str, Any] = {
        "home": None, "task": task, "material": of, "held": held, "base": None,
        "current": current, "start": "version in use", "changed": False, "settings": config,
        "config": TrainConfig(), "mixed": MixConfig(),
    }  # fmt: skip
    return Trials(**{**values, **more})


def test_a_candidate_without_feedback_has_to_gain_and_to_spare_own_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Learner(monkeypatch, {"m": {"m": 0.5}})
    accepted, tried = trials(material(12)).run()
    assert accepted is tried[0] and len(tried) == 1
    assert [(check.of, check.passed) for check in accepted.checks] == [
        ("recent", True),
        ("own", True),
    ]
    assert accepted.left_out == frozenset() and not accepted.harmed
    Learner(monkeypatch, {"m": {"m": 1.5}})
    accepted, tried = trials(material(12)).run()
    assert accepted is None and [check.passed for check in tried[0].checks] == [False, False]


def test_feedback_may_not_be_paid_for_with_own_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """With feedback own records gain, but less than they do without: that is harm."""
    of = material(12, 12)
    Learner(monkeypatch, {"f+m": {"m": 0.9, "f": 0.1}, "m": {"m": 0.5, "f": 0.9}})
    them = trials(of)
    accepted, tried = them.run()
    assert {c.of: c.passed for c in tried[0].checks} == {
        "recent": True,
        "own": True,
        "feedback": True,
        "harm": False,
    }
    assert tried[0].harmed and them.culprits(tried) == {"b0"}
    assert accepted is tried[1] and accepted.left_out == {"b0"}
    # Of the one without it no feedback is asked, and it is not compared to itself.
    assert {check.of for check in accepted.checks} == {"recent", "own"}
    # As much harm as is tolerated is none.
    Learner(monkeypatch, {"f+m": {"m": 0.54, "f": 0.1}, "m": {"m": 0.5, "f": 0.9}})
    accepted, tried = trials(of).run()
    assert accepted is tried[0] and them.culprits(tried) == frozenset()


def test_feedback_that_is_not_learnt_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    Learner(monkeypatch, {"f+m": {"m": 0.5, "f": 1.5}, "m": {"m": 0.5, "f": 0.9}})
    them = trials(material(12, 12))
    accepted, tried = them.run()
    assert accepted is tried[1] and not tried[0].harmed and them.culprits(tried) == frozenset()
    assert {c.of: c.passed for c in tried[0].checks}["feedback"] is False


def test_where_only_feedback_is_there_harm_is_measured_against_the_model_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = material(0, 12, old=8)
    Learner(monkeypatch, {"f": {"f": 0.1, "o": 1.5}, "f+o": {"f": 0.1, "o": 1.5}})
    (trial,) = trials(of, config=RefreshConfig(held_back=0.5, replay=0)).run()[1]
    assert [(c.of, c.passed) for c in trial.checks if c.of in ("own", "harm")] == [("harm", False)]


def test_the_one_batch_that_harms_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    of = material(12, 12, batches=2)
    learner = Learner(monkeypatch, {})

    def train(home: Any, task: Any, base: Any, data: Any, *rest: Any, **how: Any) -> Candidate:
        bad = any(of.batch.get(record.id) == "b1" for record in data.real)
        return Candidate("bad" if bad else "good", [1.0], 0.1)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates, "train_candidate", train)
    learner.losses = {"bad": {"m": 1.5, "f": 0.1}, "good": {"m": 0.5, "f": 0.1}}
    them = trials(of)
    accepted, tried = them.run()
    assert them._choices() == [frozenset(), {"b1"}, {"b0"}, {"b0", "b1"}]
    assert accepted is not None and accepted.left_out == {"b1"}
    assert them.culprits(tried) == {"b1"} and them.culprits([]) == frozenset()
    # Of more than three batches none is looked at alone.
    assert len(trials(material(8, 12, batches=3))._choices()) == 5
    assert len(trials(material(8, 12, batches=4))._choices()) == 2
    assert len(trials(material(8, 12))._choices()) == 2 and len(trials(material(8))._choices()) == 1


def test_what_a_candidate_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held back is not in it, nor the same question; older ones are played again."""
    of = material(8, 4, old=20)
    same = {**of.examples, "m0": replace(of.examples["m0"], prompt="m7")}
    of = replace(of, examples=same)
    them = trials(of, config=RefreshConfig(held_back=0.5, replay=0.5))
    division = them._division(frozenset())
    learnt = {record.id for record in division.real}
    assert {"m6", "m4", "m2", "f2", "f0"} <= learnt and not learnt & them.held.all
    assert "m0" not in learnt  # asks what m7 asks
    assert len([name for name in learnt if name[0] == "o"]) == 6  # half of 12 in focus
    assert not [name for name in learnt if name[0] not in "omf"]
    assert [record.id for record in division.held_back] == [
        record.id for record in of.records if record.id in them.held.all
    ]
    without = {record.id for record in them._division(frozenset({"b0"})).real}
    assert without == {name for name in learnt if name[0] != "f"}
    # After a change nothing older is played; without a version to go on from everything is.
    assert not any(r.id[0] == "o" for r in trials(of, changed=True)._division(frozenset()).real)
    anew = {record.id for record in trials(of, start=None)._division(frozenset()).real}
    assert len([name for name in anew if name[0] == "o"]) == 20
    # Of few records `least` counts as their number; more than there are cannot be played.
    few = trials(material(2, old=1), config=RefreshConfig(replay=9.0))
    assert [record.id for record in few._division(frozenset()).real] == ["o0", "m0"]


def test_few_records_are_learnt_for_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(monkeypatch, {"m": {"m": 0.5}})
    config = TrainConfig(batch_size=4, epochs=2)
    for steps, epochs in ((48, 48 * 4 / 6), (2, 2)):
        them = trials(material(12), config=RefreshConfig(held_back=0.5, steps=steps))
        them.config = config
        them.run()
        assert learner.epochs[-1] == pytest.approx(epochs)
    assert len(learner.divisions[-1]) == 6
    nothing = trials(material(12), held=HeldBack(tuple(f"m{n}" for n in range(12)), ()))
    assert nothing.run() == (None, [])


def test_a_trial_is_trained_once_and_checked_again_with_another_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = Learner(monkeypatch, {"m": {"m": 0.5}, "half": {"m": 1.2}})
    them = trials(material(12))
    accepted, _ = them.run()
    them.run()
    assert len(learner.divisions) == 1 and accepted is not None
    lighter = them.with_adapter(accepted, "half")  # type: ignore[arg-type]
    assert not lighter.passed and lighter.candidate.adapter == "half"  # type: ignore[comparison-overlap]
    assert not Trial(frozenset(), accepted.candidate, accepted.data, {}).passed  # unchecked


def test_preferences_of_what_is_held_back_or_left_out_are_not_learnt() -> None:
    pairs = tuple(
        Pair({"text": text}, "a", "b", frozenset(batches))
        for text, batches in (("x", {"b0"}), ("f3", {"b0"}), ("y", {"b1"}), ("z", {"b0", "b1"}))
    )
    them = trials(replace(material(4, 4), pairs=pairs))
    assert [pair.fields["text"] for pair in them._pairs(frozenset())] == ["x", "y", "z"]
    assert [pair.fields["text"] for pair in them._pairs(frozenset({"b0"}))] == ["y"]


# Whether it trains --------------------------------------------------------------------


def waiting(of: Material, before: Sequence[float], **config: Any) -> Any:
    """A refresh that has read what there is and trained nothing."""
    run = object.__new__(refresh._Run)
    run.material, run.config = of, RefreshConfig(**config)
    run.manifest = SimpleNamespace(held_back_losses=list(before), records=10)  # type: ignore[assignment]
    run.task = SimpleNamespace(labels=[], name="mood")  # type: ignore[assignment]
    run.added, run.current = of.new, {}
    run.beneath = run.present = None  # type: ignore[assignment]
    return run


@pytest.fixture
def surprise(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is added to a loss of one for each record that is measured."""
    added = [0.0]

    def losses(base: Any, examples: Sequence[Example], adapter: Any) -> list[float]:
        return [1.0 + added[0] + 0.001 * n for n, _ in enumerate(examples)]

    monkeypatch.setattr(refresh, "example_losses", losses)
    return added


def test_drift_is_a_rise_beyond_chance_and_beyond_the_tolerance(surprise: list[float]) -> None:
    before = [0.99, 0.995, 0.985, 0.98]
    surprise[0] = 0.5
    found = waiting(material(8), before, growth=None).drift()
    assert found.found and (found.new, found.window) == (8, 8)
    assert found.before == pytest.approx(0.9875) and found.now == pytest.approx(1.5035)
    assert found.p == pytest.approx(1 / math.comb(12, 4))
    # The same by chance no more than that, but too little to act on.
    assert not waiting(material(8), before, growth=None, tolerance=0.6).drift().found
    surprise[0] = 0.0
    little = waiting(material(8), before, growth=None).drift()
    assert not little.found and little.p is not None and little.p < 0.05
    assert waiting(material(8), before, growth=None, tolerance=0.01).drift().found
    # A rise that chance explains.
    surprise[0] = 0.5
    assert not waiting(material(8), [9.0, 0.1, 0.2, 0.3], growth=None, tolerance=0).drift().found


def test_growth_is_a_share_of_what_was_learnt(surprise: list[float]) -> None:
    before = [2.0, 2.1, 2.2, 2.3]
    assert waiting(material(8), before, growth=0.8).drift().found
    assert not waiting(material(8), before, growth=0.81).drift().found
    few = waiting(material(8), before, growth=8.0)
    few.manifest.records = 0
    assert few.drift().found  # nothing learnt counts as one
    found = waiting(material(8), before, growth=0.8).drift()
    assert found.window is None and "8 records are new" in found.why


def test_without_losses_from_before_enough_records_are_reason_enough() -> None:
    for of, is_reason in ((material(7), False), (material(8), True)):
        for before in ([], [1.0, 1.0, 1.0]):
            found = waiting(of, before).drift()
            assert found.found == is_reason and "not measured" in found.why
        none = waiting(of, [])
        none.manifest = None
        assert none.drift().found == is_reason and "no adapter" in none.drift().why


def test_fewer_than_twice_the_least_are_too_few() -> None:
    assert waiting(material(8), []).too_few() is None
    few = waiting(material(7), []).too_few()
    assert few is not None and (few.found, few.new) == (False, 7)


# What is stored -----------------------------------------------------------------------


class Store:
    """Notes what happens to a home, in order."""

    def __init__(self, active: str | None = "0001") -> None:
        self.events: list[Any] = []
        self.now, self.personal_adapters = active, self

    def add(self, adapter: Any, info: AdapterInfo) -> Any:
        self.events.append(("add", info))
        return SimpleNamespace(version="0002", **info.model_dump())

    def active(self, task: str) -> str | None:
        return self.now

    def use(self, version: str) -> None:
        self.events.append(("use", version))


@pytest.fixture
def storing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stores a candidate; gives what happened and what was written of it."""
    info = AdapterInfo(task="mood", backbone="none")
    monkeypatch.setattr(refresh, "adapter_info", lambda *given, **more: info)
    monkeypatch.setattr(refresh, "answer_scores", lambda base, *given: {"accuracy": base})

    def store(of: Material, learnt: set[str], *, goes_on: bool = True, changed: bool = False,
              kept: dict[str, Any] | None = None, home: Store | None = None) -> Any:  # fmt: skip
        home = home or Store()
        read = START + timedelta(days=3)

        def refuse(home: Any, task: str, since: datetime) -> None:
            home.events.append(("erased?", task, since))

        monkeypatch.setattr(refresh, "refuse_erased", refuse)
        run = waiting(of, [])
        run.home, run.read, run.seen, run.seed = home, read, read + timedelta(hours=1), 0
        run.active, run.goes_on, run.base, run.beneath = "0001", goes_on, 0.9, 0.4
        run.manifest.config = {"weight": 0.5}
        run.held = HeldBack(("m1", "f1"), ("m1",))
        run.current = {"m1": 2.0, "f1": 4.0}
        run.reject = lambda doubtful: home.events.append(("reject", tuple(doubtful)))
        data = Division(
            History("u", [r for r in of.records if r.id in learnt]), (), History("u", [])
        )
        trial = Trial(frozenset(), Candidate("new", [1.0], 0.1), data, {"m1": 1.0, "f1": 2.0})  # type: ignore[arg-type]
        options = {"left_out": frozenset(), "used": True, "weight": 1.0, **(kept or {})}
        trial = replace(trial, left_out=options["left_out"])
        held: Any = SimpleNamespace(trial=trial, note="", forgetting=None, **options)
        about: Any = SimpleNamespace(config=None, mixed=None, changed=changed)
        run.store(held, about, ["b9"])
        (written,) = [event[1] for event in home.events if event[0] == "add"]
        return home.events, written

    return store


def test_erasures_since_the_reading_are_looked_for_before_anything_is_stored(storing: Any) -> None:
    events, _ = storing(material(4, 2), {"m0", "m2", "m3", "f0"})
    assert [event[0] for event in events] == ["erased?", "add", "use", "reject"]
    assert events[0][1:] == ("mood", START + timedelta(days=3)) and events[3][1] == ("b9",)


@pytest.mark.parametrize(
    ("options", "learnt", "expected"),
    [
        # Ten of earlier versions, and the three new ones; what was played again is no more.
        ({}, {"m0", "m2", "m3", "o1", "o2"}, 10 + 3),
        # After a change what was learnt before is as good as new.
        ({"changed": True}, {"m0", "m2", "m3"}, 3),
        # Anew, everything counts once.
        ({"goes_on": False}, {"m0", "m2", "m3", "o1", "o2"}, 5),
    ],
)
def test_a_version_counts_what_it_learnt_once(
    storing: Any, options: dict[str, bool], learnt: set[str], expected: int
) -> None:
    of = material(4, 2, old=4)
    _, info = storing(of, learnt, **options)
    assert info.records == expected
    fresh = of.new if options.get("goes_on", True) else {r.id for r in of.records}
    kept_back = sorted(refresh.fingerprint(name) for name in fresh - learnt)
    assert info.held_back == kept_back
    assert info.read == START + timedelta(days=3, hours=1)


def test_what_is_measured_of_a_version_is_of_what_it_was_checked_on(storing: Any) -> None:
    _, info = storing(material(4, 2), {"m0"})
    assert info.held_back_losses == [1.0, 2.0]
    assert info.metrics == {
        "loss": 1.5, "loss_before": 3.0, "accuracy": 0.9, "accuracy_before": 0.4
    }  # fmt: skip
    assert info.config["weight"] == 0.5  # what it goes on from had half its weight
    _, without = storing(material(4, 2), {"m0"}, kept={"left_out": frozenset({"b0"})})
    assert without.held_back_losses == [1.0]
    left = {refresh.fingerprint(name) for name in ("f0", "f1")}
    assert left <= {*without.held_back}  # learnt by a later version, if it is trusted then
    _, anew = storing(material(4, 2), {"m0"}, goes_on=False)
    assert "weight" not in anew.config


def test_what_forgets_too_much_is_stored_and_not_used(storing: Any) -> None:
    events, _ = storing(material(4, 2), {"m0"}, kept={"used": False})
    assert [event[0] for event in events] == ["erased?", "add", "reject"]
    with pytest.raises(StorageError, match="another version"):
        storing(material(4, 2), {"m0"}, home=Store("0009"))


def test_what_decided_is_said_and_harm_first() -> None:
    def failed(*kinds: str) -> str:
        return refresh._why_not([Check(of, 4, 1, 2, 1, of not in kinds) for of in
                                 ("recent", "own", "feedback", "harm")])  # fmt: skip

    assert "feedback makes it worse" in failed("own", "harm")
    assert "own records than the model" in failed("own", "feedback")
    assert "feedback's records" in failed("feedback", "recent")
    assert "does not beat" in failed("recent") and "does not beat" in failed()
    assert Drift(False, "", 1).window is None


# From beginning to end ----------------------------------------------------------------


class Run:
    """A refresh whose parts are written down."""

    def __init__(self, drift: Drift, tried: Sequence[Trial], accepted: Trial | None) -> None:
        self.found, self.tried, self.accepted = drift, list(tried), accepted
        self.events: list[Any] = []

    def too_few(self) -> Drift | None:
        return None

    def load(self, *given: Any) -> None:
        self.events.append("load")

    def drift(self) -> Drift:
        return self.found

    def note(self) -> None:
        self.events.append("note")

    def trials(self, *given: Any) -> Any:
        culprits = frozenset({"b1", "b0"}) if self.tried[0].harmed else frozenset()
        return SimpleNamespace(
            run=lambda: (self.accepted, self.tried), culprits=lambda tried: culprits
        )

    def reject(self, doubtful: Sequence[str]) -> None:
        self.events.append(("reject", tuple(doubtful)))

    def within_bound(self, accepted: Trial, *given: Any) -> Any:
        return SimpleNamespace(trial=accepted, note="", used=True, forgetting=None, weight=1.0)

    def store(self, kept: Any, trials: Any, doubtful: Sequence[str]) -> Any:
        self.events.append(("store", tuple(doubtful)))
        return SimpleNamespace(version="0002")


def trial(*harm: bool, left_out: frozenset[str] = frozenset(), gained: bool = True) -> Trial:
    checks = [Check("recent", 4, 2, 1, 0.01, gained)]
    checks += [Check("harm", 4, 1, 1, 0, not is_harm) for is_harm in harm]
    nothing: Any = None
    return Trial(left_out, nothing, nothing, {}, checks=tuple(checks))


YES, NO = Drift(True, "drift", 9), Drift(False, "none", 9)


def refreshed(monkeypatch: pytest.MonkeyPatch, run: Run, **how: Any) -> refresh.Refreshed:
    monkeypatch.setattr(refresh, "_Run", lambda *given: run)
    monkeypatch.setattr(refresh, "_index", lambda *given: True)
    home: Any = SimpleNamespace(config=SimpleNamespace(refresh={}))
    task: Any = SimpleNamespace(name="mood")
    return refresh.refresh(home, task, **how)


@pytest.mark.parametrize("harmed", [True, False])
def test_feedback_that_was_left_out_is_doubtful_only_if_it_did_harm(
    monkeypatch: pytest.MonkeyPatch, harmed: bool
) -> None:
    first = trial(harmed, gained=False)
    second = trial(left_out=frozenset({"b1", "b0"}))
    run = Run(YES, [first, second], second)
    done = refreshed(monkeypatch, run)
    marked = ("b0", "b1") if harmed else ()
    assert done.doubtful == marked and run.events == ["load", ("store", marked)]
    assert done.outcome == "accepted" and done.checks == second.checks and done.indexed
    run = Run(YES, [first], None)
    done = refreshed(monkeypatch, run)
    assert done.doubtful == marked and run.events == ["load", ("reject", marked)]
    assert done.outcome == "rejected" and done.checks == first.checks and done.version is None


@pytest.mark.parametrize(
    ("drift", "how", "outcome", "events"),
    [
        (NO, {}, "no need", ["load", "note"]),
        (NO, {"force": True}, "rejected", ["load", ("reject", ())]),
        (NO, {"dry_run": True}, "no need", ["load"]),
        (YES, {"dry_run": True}, "due", ["load"]),
        (NO, {"dry_run": True, "force": True}, "due", ["load"]),
    ],
)
def test_when_a_refresh_trains_and_what_it_writes(
    monkeypatch: pytest.MonkeyPatch,
    drift: Drift,
    how: dict[str, bool],
    outcome: str,
    events: list[Any],
) -> None:
    run = Run(drift, [trial(gained=False)], None)
    done = refreshed(monkeypatch, run, **how)
    assert (done.outcome, run.events) == (outcome, events)
    assert done.indexed == (not how.get("dry_run")) and done.drift is drift
    few = Run(drift, [], None)
    monkeypatch.setattr(few, "too_few", lambda: NO)
    done = refreshed(monkeypatch, few, **how)
    assert done.outcome == "no need" and few.events == ([] if how.get("dry_run") else ["note"])


def test_a_version_that_forgets_too_much_is_told_of_as_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(YES, [trial()], trial())
    exceeded: Any = SimpleNamespace(trial=trial(), note="it forgets", used=False,
                                    forgetting="much", weight=0.5)  # fmt: skip
    monkeypatch.setattr(run, "within_bound", lambda *given: exceeded)
    done = refreshed(monkeypatch, run)
    assert done.outcome == "rejected" and done.version is None
    assert done.stored is not None and done.stored.version == "0002"
    assert (done.forgetting, done.weight) == ("much", 0.5) and done.why.endswith("; it forgets")
