"""Refreshing: drift is found and learnt, bad feedback is not, and a stopped run changes nothing.

A learner that counts labels by word stands in for a backbone: what it should learn is known.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from pfi.cli.feedback import _report as report
from pfi.errors import BackboneError, ConfigError, StorageError
from pfi.profile.adapters.store import AdapterInfo, AdapterStore
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn import candidates, feedback, refresh
from pfi.profile.learn.drift import Check, drifted, gains, unharmed, unseen
from pfi.profile.learn.refresh import RefreshConfig, Refreshed
from pfi.profile.learn.training import Candidate
from pfi.profile.open import create_home, open_home
from pfi.records import Record
from pfi.tasks import Example, Task
from pfi.train.config import ForgettingConfig
from pfi.train.forgetting import Forgetting, General

TASK = Task(
    name="mood",
    title="Mood",
    kind="choice",
    question="{text}",
    inputs=["text"],
    output="label",
    labels=["good", "bad", "odd"],
    item="{text} is {label}",
    item_trim="text",
    query=["text"],
    document=["text"],
    metrics=["accuracy"],
)
WORDS = ["rain", "tea", "snow", "wind"]
START = datetime(2024, 1, 1, tzinfo=UTC)


# A learner that counts ----------------------------------------------------------------


@dataclass
class Counts:
    """An adapter: how often each word had each label; later examples count for more."""

    counts: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_bytes(self) -> dict[str, bytes]:
        counts = json.dumps(self.counts).encode()
        return {"adapter_config.json": counts, "adapter_model.safetensors": b""}

    def scaled(self, weight: float) -> Counts:
        counts = {w: {x: weight * n for x, n in own.items()} for w, own in self.counts.items()}
        return Counts(counts)

    def probability(self, word: str, label: str) -> float:
        found = self.counts.get(word, {})
        return (found.get(label, 0) + 0.1) / (sum(found.values()) + 0.3)


@dataclass
class Model:
    """A backbone: the last adapter answers."""

    adapter: Counts = field(default_factory=Counts)

    def with_adapters(self, adapters: Sequence[Counts]) -> Model:
        return Model(adapters[-1]) if adapters else self

    def trim(self, text: str, tokens: int) -> str:
        return text


def word(text: str) -> str:
    return text.split()[0]


def learn(
    home: Home, task: Task, base: Model, data: Any, config: Any, mixed: Any, **how: Any
) -> Candidate:
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    start, seen = how["start"], {word(record.input["text"]) for record in data.real}
    for name, labels in start.counts.items() if start else ():
        total = sum(labels.values())
        for label, count in labels.items():
            fades = min(1.0, 0.5 / total) if name in seen else 1.0
            counts[name][label] = fades * count
    for record in data.real:
        counts[word(record.input["text"])][record.output] += 1
    learnt = Counts({name: dict(labels) for name, labels in counts.items()})
    return Candidate(learnt, [1.0], 0.1)  # type: ignore[arg-type]


def losses(model: Model, examples: Sequence[Example], adapter: Counts | None = None) -> list[float]:
    model = model.with_adapters([adapter] if adapter else [])
    found = [model.adapter.probability(word(e.prompt), e.target) for e in examples]
    pairs = zip(found, examples, strict=True)  # no two losses of real records are equal
    return [-math.log(p) + 1e-4 * (crc32(e.prompt.encode()) % 97) for p, e in pairs]


def base(home: Home, config: Any, shared: str | None, backbone: Model | None, **how: Any) -> Model:
    assert backbone is not None
    return backbone.with_adapters([home.shared_adapters.load(shared)] if shared else [])  # type: ignore[list-item]


def answers(
    model: Model, task: Task, examples: Sequence[Example], adapter: Counts | None = None
) -> dict[str, float]:
    model = model.with_adapters([adapter] if adapter else [])
    found = [
        max(TASK.labels, key=lambda x: model.adapter.probability(word(e.prompt), x))
        for e in examples
    ]
    return task.score(found, [e.target for e in examples])


def load(store: AdapterStore, version: str) -> Counts:
    return Counts(json.loads(store.files(version)["adapter_config.json"]))


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner that counts, wherever a refresh trains or measures."""
    monkeypatch.setattr(candidates, "train_candidate", learn)
    for module in (candidates, refresh):
        monkeypatch.setattr(module, "example_losses", losses)
    monkeypatch.setattr(refresh, "answer_scores", answers)
    monkeypatch.setattr(refresh, "training_base", base)
    monkeypatch.setattr(AdapterStore, "load", load)
    monkeypatch.setattr(refresh, "_index", lambda home, on_stage: False)


# A person -----------------------------------------------------------------------------


def taste(name: str, flipped: bool = False) -> str:
    return TASK.labels[(WORDS.index(name) + flipped) % 2]


def word_of(n: int) -> str:
    return random.Random(n // 4).sample(WORDS, 4)[n % 4]


def record(n: int, label: str | None = None, *, flipped: bool = False) -> Record:
    name = word_of(n)
    time = START + timedelta(hours=n)
    label = label or taste(name, flipped)
    return Record(f"r{n}", TASK.name, {"text": f"{name} on day {n}"}, label, time)


def add(home: Home, records: Iterable[Record]) -> None:
    with home.open_vault() as vault:
        vault.add(records)


def say(
    home: Home, count: int, label: Callable[[str, int], str], batch: str = "said", start: int = 1000
) -> None:
    """Give feedback on new questions: what the answers should have been."""
    for n in range(start, start + count):
        name = word_of(n)
        wanted = label(name, n)
        feedback.give(
            home, TASK, {"text": f"{name} again {n}"}, answer="", correction=wanted, batch=batch
        )


def run(home: Home, settings: dict[str, Any] | None = None, **how: Any) -> Refreshed:
    settings = {"min_preferences": 99, **(settings or {})}
    return refresh.refresh(home, TASK, settings, backbone=Model(), **how)  # type: ignore[arg-type]


def loss_of(home: Home, records: Sequence[Record]) -> float:
    """The mean loss of the version in use on some records."""
    version = home.personal_adapters.active(TASK.name)
    model = Model(load(home.personal_adapters, version) if version else Counts())
    examples = TASK.examples(list(records), random.Random(0))  # type: ignore[arg-type]
    return sum(losses(model, examples)) / len(examples)


def trust_of(home: Home, batch: str = "said") -> str:
    return next(b.trust for b in feedback.batches(home) if b.name == batch)


@pytest.fixture
def empty(tmp_path: Path) -> Home:
    config = HomeConfig(backbone="none", forgetting={"passages": 0})
    return create_home(root=tmp_path, config=config)


@pytest.fixture
def home(empty: Home) -> Home:
    """A person with 24 records, whose version in use was made by a refresh."""
    add(empty, (record(n) for n in range(24)))
    assert run(empty).outcome == "accepted"
    assert empty.personal_adapters.active(TASK.name) == "0001"
    return empty


# Drift --------------------------------------------------------------------------------


def test_first_version_tells_what_it_learnt_and_what_not(home: Home) -> None:
    manifest = home.personal_adapters.manifest("0001")
    assert manifest.records == 24 - 8 and len(manifest.held_back) == 8
    assert len(manifest.held_back_losses) == 8 and manifest.read is not None
    assert manifest.metrics["accuracy"] == 1.0 and manifest.metrics["accuracy_before"] < 1
    assert manifest.metrics["loss"] < 0.2 < manifest.metrics["loss_before"]


def test_no_drift_no_training(home: Home) -> None:
    add(home, (record(n) for n in range(24, 34)))
    done = run(home, {"growth": None})
    assert (done.outcome, done.drift.found, done.drift.new) == ("no need", False, 18)
    assert done.drift.p is not None and done.drift.p > 0.05
    assert home.personal_adapters.versions() == ["0001"]


def test_drift_is_found_and_learnt_within_ten_records(home: Home) -> None:
    add(home, (record(n) for n in range(24, 36)))  # no drift, so they stay new
    add(home, (record(n, flipped=True) for n in range(36, 46)))
    after = [record(n, flipped=True) for n in range(46, 62)]
    before = loss_of(home, after)
    done = run(home)
    assert (done.outcome, done.drift.window) == ("accepted", 10)
    assert home.personal_adapters.active(TASK.name) == done.version.version == "0002"  # type: ignore[union-attr]
    assert loss_of(home, after) < 0.8 < 2 < before
    assert home.personal_adapters.rollback(TASK.name) == "0001"


def test_four_records_after_a_change_are_too_few_but_nothing_is_lost(home: Home) -> None:
    add(home, (record(n) for n in range(24, 28)))
    add(home, (record(n, flipped=True) for n in range(28, 30)))
    assert run(home).outcome in ("no need", "rejected")
    add(home, (record(n, flipped=True) for n in range(30, 38)))
    assert run(home).outcome == "accepted"


def test_labels_never_seen_count_as_drift(home: Home) -> None:
    add(home, (record(n, "odd" if n > 29 else None) for n in range(24, 32)))
    done = run(home, {"alpha": 1e-9})
    assert (
        done.drift.found
        and done.drift.p is None
        and "never been learnt" in done.why + (done.drift.why)
    )
    assert not refresh.unseen(TASK.labels, ["good"], ["other", "good"])


def test_many_new_records_are_reason_enough_unless_told_otherwise(home: Home) -> None:
    add(home, (record(n) for n in range(24, 44)))
    assert run(home, {"growth": None}, dry_run=True).outcome == "no need"
    done = run(home, dry_run=True)
    assert (done.outcome, done.drift.p is not None) == ("due", True)
    assert home.personal_adapters.versions() == ["0001"]


def test_too_few_records_are_not_learnt_from_even_by_force(empty: Home) -> None:
    dates = [START + timedelta(days=n) for n in range(7)]
    add(
        empty, (Record(f"r{n}", TASK.name, {"text": f"tea {n}"}, "bad", dates[n]) for n in range(7))
    )
    done = run(empty, force=True)
    assert done.outcome == "no need" and "too few" in done.why
    assert run(empty, {"least": 3}).outcome == "no need"  # 7 are fewer than `enough`
    assert run(empty, {"least": 3}, force=True).outcome == "accepted"


def test_version_of_train_was_not_measured_so_new_records_decide(home: Home) -> None:
    store = home.personal_adapters
    info = AdapterInfo(task=TASK.name, backbone="none", records=24, read=datetime.now(UTC))
    store.use(store.add(load(store, "0001"), info).version)
    add(home, (record(n) for n in range(24, 31)))
    assert run(home).outcome == "no need"
    add(home, [record(31)])
    done = run(home, dry_run=True)
    assert done.outcome == "due" and "not measured" in done.why


def test_same_seed_same_result(home: Home, tmp_path: Path) -> None:
    import shutil

    add(home, (record(n, flipped=True) for n in range(24, 40)))
    shutil.copytree(home.path, tmp_path / "copies" / home.profile)
    shutil.copytree(home.path.parent / ".keys", tmp_path / "copies" / ".keys")
    other = open_home(home.profile, root=tmp_path / "copies")
    first, second = run(home), run(other)
    assert first.checks == second.checks and first.drift == second.drift
    assert first.version.sha256 == second.version.sha256  # type: ignore[union-attr]


# Feedback -----------------------------------------------------------------------------


def test_honest_feedback_alone_is_learnt(home: Home) -> None:
    # Of a word that the person said nothing of before.
    for n in range(10):
        fields = {"text": f"fog at {n}"}
        feedback.give(home, TASK, fields, answer="good", correction="bad", batch="said")
    done = run(home)
    assert done.outcome == "accepted" and not done.doubtful
    assert {check.of for check in done.checks} == {"recent", "own", "feedback", "harm"}
    assert load(home.personal_adapters, "0002").probability("fog", "bad") > 0.8


@pytest.mark.parametrize("kind", ["consistent", "random"])
def test_poisoned_batch_is_rejected_marked_and_left_out(home: Home, kind: str) -> None:
    rng = random.Random(0)
    wrong = {
        "consistent": lambda w, n: taste(w, True),
        "random": lambda w, n: rng.choice(TASK.labels),
    }
    say(home, 16, wrong[kind])
    mine = [record(n) for n in range(100, 116)]
    before = loss_of(home, mine)
    done = run(home, force=True)
    assert (done.outcome, done.version, done.doubtful) == ("rejected", None, ("said",))
    assert "own records" in done.why
    assert home.personal_adapters.active(TASK.name) == "0001"
    assert loss_of(home, mine) == before
    assert trust_of(home) == "doubtful"
    with home.open_vault() as vault:
        assert len(vault.history(TASK.name)) == 24  # what training and memory read
        assert vault.count() == 24 + 16  # nothing is lost
    assert run(home, dry_run=True).drift.new == 8  # the own ones that were held back


@pytest.mark.parametrize("removed", [("own",), ("harm",), ("own", "harm")])
def test_without_the_checks_of_own_records_poison_gets_through(
    home: Home, removed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(of: str, *rest: Any) -> Any:
        return unharmed(of, *rest) if of not in removed else Check(of, 0, 0, 0, 0, True)

    monkeypatch.setattr(candidates, "unharmed", blind)
    say(home, 16, lambda w, n: taste(w, True))
    mine = [record(n) for n in range(100, 116)]
    before = loss_of(home, mine)
    accepted = run(home, force=True).outcome == "accepted"
    assert accepted == (len(removed) == 2)
    assert (loss_of(home, mine) > before + 0.3) == accepted


def test_poison_in_the_first_version_is_seen_though_everything_gets_better(empty: Home) -> None:
    add(empty, (record(n) for n in range(16)))
    say(empty, 24, lambda w, n: taste(w, True))
    done = run(empty)
    assert (done.outcome, done.doubtful) == ("accepted", ("said",))
    assert loss_of(empty, [record(n) for n in range(100, 116)]) < 0.3


def test_poison_of_one_word_only_is_rejected(home: Home) -> None:
    say(home, 16, lambda w, n: taste(w, w == "tea"))
    done = run(home, force=True)
    for c in done.checks:
        print("DBG", c)
    assert (done.outcome, done.doubtful) == ("rejected", ("said",))


def test_poison_beside_a_real_change_is_left_out_and_the_change_is_learnt(home: Home) -> None:
    add(home, (record(n, "odd") for n in range(24, 40)))
    say(home, 16, lambda w, n: taste(w, True), batch="bad")
    done = run(home)
    assert (done.outcome, done.doubtful) == ("accepted", ("bad",))
    assert loss_of(home, [record(n, "odd") for n in range(40, 48)]) < 1.7 < 3
    assert trust_of(home, "bad") == "doubtful"


def test_one_poisoned_batch_of_two_is_named(home: Home) -> None:
    say(home, 12, lambda w, n: "odd" if w in ("rain", "snow") else taste(w), batch="bad")
    for n in range(12):
        feedback.give(
            home, TASK, {"text": f"fog {n}"}, answer="good", correction="odd", batch="fine"
        )
    done = run(home, force=True)
    assert done.doubtful == ("bad",)
    assert trust_of(home, "fine") == ""


def test_trusted_batch_counts_as_own_and_is_learnt(home: Home) -> None:
    say(home, 16, lambda w, n: taste(w, True))
    assert run(home, force=True).doubtful == ("said",)
    feedback.trust(home, "said")
    done = run(home)
    assert done.outcome == "accepted" and not done.doubtful
    assert loss_of(home, [record(n, flipped=True) for n in range(50, 60)]) < 0.6


def test_feedback_is_not_blamed_for_what_training_does_without_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*args: Any, **how: Any) -> Candidate:
        made = learn(*args, **{**how, "start": None})
        kept = {k: v for k, v in made.adapter.counts.items() if k == "fog"}  # type: ignore[attr-defined]
        return Candidate(Counts(kept), [1.0], 0.1)  # type: ignore[arg-type]

    for n in range(10):
        fields = {"text": f"fog at {n}"}
        feedback.give(home, TASK, fields, answer="good", correction="bad", batch="said")
    monkeypatch.setattr(candidates, "train_candidate", forgetful)
    done = run(home)
    assert (done.outcome, done.doubtful, trust_of(home)) == ("rejected", (), "")


def test_records_learnt_by_heart_are_no_measure(empty: Home) -> None:
    """A version of `pfi train` has learnt all own records; the next must forget some of them."""
    add(empty, (record(n, TASK.labels[n % 3]) for n in range(24)))  # chance: nothing to learn
    by_heart = {f"{WORDS[n % 4]}": {"good": 1.0} for n in range(24)}
    store = empty.personal_adapters
    info = AdapterInfo(task=TASK.name, backbone="none", records=24, read=datetime.now(UTC))
    store.use(store.add(Counts(by_heart), info).version)
    for n in range(12):
        fields = {"text": f"fog at {n}"}
        feedback.give(empty, TASK, fields, answer="good", correction="bad", batch="said")
    run_ = refresh._Run(empty, TASK, RefreshConfig(min_preferences=99), 0)
    run_.load(Model(), "bank", lambda text: None)  # type: ignore[arg-type]
    found = run_.trials(run_.drift(), "bank", None, lambda text: None)
    assert not {*found.held.own} & found.material.new
    accepted, _ = found.run()
    assert accepted is not None
    assert {check.of for check in accepted.checks} == {"recent", "feedback", "harm"}
    assert run(empty).outcome == "accepted"


def test_candidate_that_is_no_better_is_not_used(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def useless(*args: Any, **how: Any) -> Candidate:
        return Candidate(how["start"], [1.0], 0.1)

    monkeypatch.setattr(candidates, "train_candidate", useless)
    add(home, (record(n, flipped=True) for n in range(24, 40)))
    done = run(home)
    assert (done.outcome, done.doubtful) == ("rejected", ())
    assert "does not beat" in done.why and home.personal_adapters.versions() == ["0001"]


def test_held_back_records_are_not_learnt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def watched(*args: Any, **how: Any) -> Candidate:
        data = args[3]
        seen.append({r.id for r in data.real} & {r.id for r in data.held_back})
        texts = {r.input["text"] for r in data.held_back}
        seen.append({r.input["text"] for r in data.real} & texts)
        return learn(*args, **how)

    monkeypatch.setattr(candidates, "train_candidate", watched)
    add(home, (record(n, flipped=True) for n in range(24, 36)))
    # The same question again: the one that is held back would be known.
    add(home, [Record("same", TASK.name, {"text": "wind on day 35"}, "good", START)])
    say(home, 8, lambda w, n: taste(w, True))
    run(home)
    assert seen and not any(seen)


def test_preferences_are_learnt_when_there_are_enough(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pfi.train.preferences as module
    from pfi.train.job import TrainResult

    seen: list[Any] = []

    def prefer(base: Any, pairs: Any, config: Any, **how: Any) -> TrainResult:
        seen.append((pairs, config, how["start"]))
        return TrainResult(Counts({"rain": {"odd": 99.0}}), [0.1], 0.1)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_preferences", prefer)
    for n in range(24):
        fields = {"text": f"fog at {n}"}
        feedback.give(home, TASK, fields, answer="good", correction="bad", batch="said")
    done = run(home, {"min_preferences": 25})
    assert done.outcome == "accepted" and not seen
    home.personal_adapters.rollback(TASK.name)
    done = run(home, {"min_preferences": 8, "train": {"batch_size": 3, "rank": 3}})
    pairs, config, start = seen[0]
    held = {f"fog at {n}" for n in range(23, 7, -2)}
    assert {pair.prompt for pair in pairs} == {f"fog at {n}" for n in range(24)} - held
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("bad", "good")}
    # The rank is that of the adapter which is gone on from.
    assert (config.batch_size, config.rank) == (3, 8) and start.probability("fog", "bad") > 0.8
    # What preferences made of it is no good, so the candidate without them is used.
    assert done.outcome == "accepted" and done.version.config["pairs"] == 0  # type: ignore[union-attr]
    assert load(home.personal_adapters, done.version.version).probability("fog", "bad") > 0.8  # type: ignore[union-attr]


# Stopped runs -------------------------------------------------------------------------


def state(home: Home) -> tuple[Any, ...]:
    with home.open_vault() as vault:
        entries, count = vault.feedback.entries(), vault.count()
    return home.personal_adapters.active(TASK.name), entries, count


@pytest.mark.parametrize("place", ["train_candidate", "example_losses"])
def test_error_in_the_middle_changes_nothing(
    home: Home, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(home, (record(n, flipped=True) for n in range(24, 40)))
    say(home, 8, lambda w, n: taste(w, True))
    before = state(home)

    def fail(*args: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(candidates, place, fail)
        with pytest.raises(KeyboardInterrupt):
            run(home)
    assert state(home) == before
    assert home.personal_adapters.versions() == ["0001"]
    assert run(home).outcome == "accepted"


def _die(path: Path, place: str) -> None:
    def kill(*args: Any, **how: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "train":
        candidates.train_candidate = kill
    else:
        setattr(AdapterStore, place, kill)
    run(open_home(root=path))


@pytest.mark.parametrize("place", ["train", "_publish", "use"])
def test_killed_run_changes_nothing(home: Home, place: str) -> None:
    add(home, (record(n, flipped=True) for n in range(24, 40)))
    for n in range(8):
        fields = {"text": f"fog at {n}"}
        feedback.give(home, TASK, fields, answer="good", correction="bad", batch="said")
    before = state(home)
    process = multiprocessing.get_context("fork").Process(
        target=_die, args=(home.path.parent, place)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert state(home) == before
    done = run(home)
    assert done.outcome == "accepted" and home.personal_adapters.active(TASK.name) > "0001"  # type: ignore[operator]


def test_another_version_that_came_into_use_meanwhile_stays(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args: Any, **how: Any) -> Candidate:
        home.personal_adapters.use_none(TASK.name)
        return learn(*args, **how)

    monkeypatch.setattr(candidates, "train_candidate", meanwhile)
    add(home, (record(n, flipped=True) for n in range(24, 40)))
    with pytest.raises(StorageError, match="another version"):
        run(home)
    assert home.personal_adapters.active(TASK.name) is None


def test_other_backbone_and_bad_settings_are_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="least"):
        run(home, {"least": 1})
    home.config.backbone = "other"
    with pytest.raises(BackboneError, match="was trained on backbone"):
        run(home)


# When it is due -----------------------------------------------------------------------


def test_due_counts_new_records_since_the_last_try(home: Home) -> None:
    assert refresh.due(home) == []
    home.config.refresh_after = 6
    add(home, (record(n) for n in range(24, 29)))
    assert refresh.due(home) == []
    add(home, [record(29)])
    assert refresh.due(home) == [TASK.name]
    run(home, dry_run=True)
    assert refresh.due(home) == [TASK.name]
    assert run(home, {"growth": None}).outcome == "no need"
    assert refresh.due(home) == []
    home.config.refresh_after = None
    assert refresh.due(home) == []


# Statistics ---------------------------------------------------------------------------


def test_drift_test_against_counting_all_orders() -> None:
    from itertools import combinations

    before, recent = [0.1, 0.2, 0.5, 0.3], [0.6, 0.4, 0.9]
    values = sorted([*before, *recent])
    rank = {value: i for i, value in enumerate(values)}
    observed = sum(rank[value] for value in recent)
    sums = [sum(chosen) for chosen in combinations(range(7), 3)]
    expected = sum(s >= observed for s in sums) / len(sums)
    assert drifted(recent, before) == (pytest.approx(expected), 3)
    assert drifted([1.0, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]) == (pytest.approx(1 / 70), 4)
    assert drifted([], before) is None and drifted(recent, []) is None


def test_drift_test_finds_what_is_recent_and_keeps_its_level() -> None:
    rng = random.Random(1)
    before = [rng.expovariate(1) for _ in range(16)]
    recent = [rng.expovariate(1) for _ in range(24)] + [5 + rng.random() for _ in range(8)]
    found = drifted(recent, before)
    assert found is not None and found[0] < 0.001 and found[1] == 8
    draws = 400
    false = sum(
        drifted([rng.expovariate(1) for _ in range(40)], [rng.expovariate(1) for _ in range(12)])[0]  # type: ignore[index]
        < 0.05
        for _ in range(draws)
    )
    assert false / draws < 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_gain_is_a_paired_test_and_needs_records() -> None:
    from scipy.stats import ttest_rel

    before, after = [2.0, 3.0, 1.0, 2.5], [1.0, 2.2, 0.1, 1.4]
    check = gains(before, after, least=4, alpha=0.05)
    expected = ttest_rel(before, after, alternative="greater").pvalue
    assert check.passed and check.decides == pytest.approx(expected)
    assert not gains(before[:3], after[:3], least=4, alpha=0.05).passed
    assert not gains(before, [1.0, 2.2, 0.1, 4.4], least=4, alpha=0.05).passed
    assert not gains(before, before, least=4, alpha=0.05).passed
    assert not gains([], [], least=4, alpha=0.05).passed


def test_huge_gains_among_small_ones_count() -> None:
    before, after = [20.0, 0.11, 0.12, 0.13, 9.0], [0.1, 0.1, 0.1, 0.1, 0.1]
    check = gains(before, after, least=4, alpha=0.05)
    assert check.passed and check.decides == pytest.approx(1 / 32)  # of all signs of five
    assert not gains(before, [0.1, 0.1, 0.1, 0.14, 30.0], least=4, alpha=0.05).passed


def test_what_differs_between_sources_is_no_doubt_of_the_gain() -> None:
    before, after = [3.0, 3.1, 3.2, 1.0, 1.1, 1.2], [0.1, 0.1, 0.1, 0.9, 1.0, 1.1]
    assert not gains(before, after, least=4, alpha=0.01).passed
    assert gains(before, after, [1, 1, 1, 0, 0, 0], least=4, alpha=0.01).passed
    assert not gains(before, after, [*range(6)], least=4, alpha=0.01).passed


def test_worthless_candidates_seldom_pass() -> None:
    rng, draws = random.Random(2), 1000
    passed = 0
    for _ in range(draws):
        before = [rng.expovariate(1) for _ in range(6)]
        passed += gains(before, [b + rng.gauss(0, 1) for b in before], least=4, alpha=0.05).passed
    assert 0.01 < passed / draws < 0.1


def test_harm_to_one_record_of_four_is_enough() -> None:
    assert not unharmed("own", [0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 3.0], 0.1).passed
    assert unharmed("own", [0.1, 0.2], [0.15, 0.25], 0.1).passed


def test_unseen_labels() -> None:
    assert unseen(["a", "b", "c"], ["a"], ["b", "a", "x", "c", "b"]) == 3
    assert Counter(TASK.labels)["odd"] == 1


# Forgetting ---------------------------------------------------------------------------


@dataclass
class Probe:
    """Stands in for a probe: general text suffers in proportion to what was counted."""

    each: float
    config: ForgettingConfig = field(default_factory=lambda: ForgettingConfig(bound=0.2))

    def forgetting(self, adapter: Counts) -> Forgetting:
        total = sum(sum(labels.values()) for labels in adapter.counts.values())
        return Forgetting(General(3.0), General(3.0 + self.each * total), self.config.bound)


def suffer(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    monkeypatch.setattr(refresh, "open_probe", lambda *given: Probe(each))


def test_a_candidate_that_forgets_too_much_is_used_at_a_lower_weight(
    empty: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(empty, (record(n) for n in range(24)))
    suffer(monkeypatch, 0.02)  # of 16 records: 0.32, and half of it
    done = run(empty)
    assert done.outcome == "accepted" and done.weight == 0.5 and done.version is not None
    assert done.forgetting is not None and done.forgetting.rise == pytest.approx(0.16)
    assert "used at weight 0.5" in done.why and "used at weight 0.5" in done.version.verdict
    assert done.version.config["weight"] == 0.5
    assert done.version.general["text_loss"] == 3.16
    assert empty.personal_adapters.active(TASK.name) == "0001"
    # A version that goes on from it is at half the weight too, and may come to be at less.
    add(empty, (record(n) for n in range(24, 48)))
    suffer(monkeypatch, 0.0)
    again = run(empty, {}, force=True)
    assert again.version is not None and again.version.config["weight"] == 0.5


def test_one_beyond_the_bound_is_stored_and_not_used(
    empty: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(empty, (record(n) for n in range(24)))
    suffer(monkeypatch, 1.0)
    done = run(empty)
    assert done.outcome == "rejected" and done.version is None and done.stored is not None
    assert "forgets too much" in done.why and "forgets too much" in done.stored.verdict
    assert empty.personal_adapters.active(TASK.name) is None
    assert empty.personal_adapters.versions() == ["0001"]
    empty.personal_adapters.use("0001")
    assert empty.personal_adapters.active(TASK.name) == "0001"


def test_a_refresh_says_what_is_forgotten_and_how_to_use_it_anyway(
    empty: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(empty, (record(n) for n in range(24)))
    suffer(monkeypatch, 1.0)
    report(run(empty), "default")
    told = capsys.readouterr()
    assert "Adapter 0001 for mood was not taken into use" in told.out
    assert "pfi adapters use 0001" in told.err and "General text: loss 3.00" in told.err


# Guards -----------------------------------------------------------------------------


def test_a_clock_set_back_makes_no_record_new_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the vault was read, whatever the clock said when it was."""

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2020, 1, 1, tzinfo=tz)

    for place in ("training", "refresh"):
        monkeypatch.setattr(f"pfi.profile.learn.{place}.datetime", Behind)
    monkeypatch.setattr("pfi.profile.vault.vault.datetime", Behind)
    monkeypatch.setattr("pfi.profile.vault.tables.datetime", Behind)
    with home.open_vault() as vault:
        seen = vault.time()
        assert seen.year > 2020 and not vault.added_since(TASK.name, seen)
    add(home, [record(500), record(501)])
    with home.open_vault() as vault:
        assert vault.added_since(TASK.name, seen) == {record(500).id, record(501).id}
        assert not vault.added_since(TASK.name, vault.time())


def test_what_was_erased_during_a_refresh_is_not_stored(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*args: Any) -> None:
        asked.append(args[1])
        raise StorageError("records were erased meanwhile")

    monkeypatch.setattr(refresh, "refuse_erased", refuse)
    add(home, (record(n) for n in range(24, 36)))
    add(home, (record(n, flipped=True) for n in range(36, 46)))
    with pytest.raises(StorageError, match="erased meanwhile"):
        run(home)
    assert asked == [TASK.name] and home.personal_adapters.versions() == ["0001"]


def test_a_rise_within_the_tolerance_is_no_drift(home: Home) -> None:
    add(home, (record(n) for n in range(24, 36)))
    add(home, (record(n, flipped=True) for n in range(36, 46)))
    done = run(home, {"growth": None, "tolerance": 1000.0})
    assert not done.drift.found and done.drift.p is not None and done.drift.p < 0.05


def test_a_version_counts_the_records_that_it_and_those_before_it_learnt(home: Home) -> None:
    before = home.personal_adapters.manifest("0001").records
    add(home, (record(n) for n in range(24, 48)))
    done = run(home, {"growth": 0.1}, force=True)
    if done.version is not None:
        learnt = done.version.records
        held = len(done.version.held_back)
        assert learnt + held == before + 24 + len(home.personal_adapters.manifest("0001").held_back)
