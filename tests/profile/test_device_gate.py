"""The gate of a device: what it chooses, when that counts, and that answers use just that."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfi.errors import ConfigError, DataError, StorageError
from pfi.gate.choices import NOTHING, Choice, GateConfig, choices, plain_choices
from pfi.gate.fit import LEAST_TRIED
from pfi.gate.prior import Prior, Tried, WithPrior, choose, read_prior, weak_prior
from pfi.gate.trials import Asker, confidences, divide, question_trials
from pfi.inference.answering import combined
from pfi.inference.engine import AdapterRef, text_of
from pfi.inference.torch.engine import TorchEngine
from pfi.memory.embedders import HashEmbedder
from pfi.memory.index import Memory
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.gate_file import (
    Fitted,
    describe,
    forget,
    gate_status,
    read_gate,
    write_gate,
)
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn import gate as module
from pfi.profile.learn import training
from pfi.profile.learn.gate import can_fit, fit_gate, gate_config, home_trials
from pfi.profile.open import create_home
from pfi.records import History, Question, Record
from pfi.tasks import get_task

TASK = get_task("LaMP_3")
START = datetime(2024, 1, 1, tzinfo=UTC)
train = partial(training.train, holdout=0.0)  # a gate tries by itself what helps
QUICK: dict[str, Any] = {"epochs": 8, "batch_size": 4, "rank": 4, "learning_rate": 0.02}
PLAIN = {"weights": [0, 0.5, 1], "ks": [0, 2], "per_question": False, "caution": 1}
WORDS = ["fox", "dog", "book", "film", "title", "score", "brown", "lazy"]


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    loaded = load_backbone(backbone_folder("llama"))
    # A random output layer is so small that no adapter beneath it makes an answer sure.
    loaded.model.get_output_embeddings().weight.data *= 20
    return loaded


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    with TorchEngine(backbone) as made:
        yield made


def review(n: int, label: str = "5") -> Record:
    """A review by one who likes everything."""
    text = f"{WORDS[n % 8]} {WORDS[(n // 8) % 8]} {n}"
    return Record(f"r{n}", "LaMP_3", {"text": text}, label, START + timedelta(days=n))


@pytest.fixture
def make(tmp_path: Path, backbone: Backbone) -> Callable[..., Home]:
    """``make(records)`` is a home with these records."""

    def build(entries: list[Record], name: str = "one", **config: Any) -> Home:
        # A random model has no general answers to forget.
        settings = {"embedder": "none", "train": QUICK, "forgetting": {"passages": 0}, **config}
        home = create_home(
            name, root=tmp_path, config=HomeConfig(backbone=str(backbone.name), **settings)
        )
        with home.open_vault() as vault:
            vault.add(entries)
        return home

    return build


def entry(home: Home, choice: Choice, **values: Any) -> Fitted:
    """A choice as if it had been fitted with what is in use."""
    task = values.pop("task", TASK)
    personal, shared = Runtime(home).versions(task)
    known = {"sure": 1.0, "gain": 0.1, "tried": 8, "users": 0, "settings": GateConfig()}
    known |= {"backbone": home.config.backbone, "personal": personal, "shared": shared}
    made = Fitted(task=task.name, choice=choice, date=START, **{**known, **values})
    write_gate(home, {**read_gate(home), task.name: made})
    return made


# What is chosen -----------------------------------------------------------------------


def test_an_adapter_that_helps_is_used_and_nonsense_is_not(
    make: Callable[..., Home], backbone: Backbone
) -> None:
    records = [review(n) for n in range(28)]
    home = make(records)
    trained = train(home, TASK, backbone=backbone)
    fitted = fit_gate(home, TASK, PLAIN, backbone=backbone)
    assert fitted.choice.weight > 0
    assert fitted.gain > 0.5  # a blind answer is 2 away
    assert (fitted.tried, fitted.personal, fitted.users) == (8, "0001", 0)
    assert read_gate(home) == {"LaMP_3": fitted}
    assert list(home.personal_adapters.versions()) == ["0001"]

    # Many users are like this one; the older records of another hold random scores.
    rng = random.Random(1)
    nonsense = [review(n, rng.choice("12345") if n < 20 else "5") for n in range(28)]
    other = make(nonsense, "other")
    shared = home.personal_adapters.load(trained.version.version)
    info = AdapterInfo(task="LaMP_3", backbone=home.config.backbone)
    other.shared_adapters.use(other.shared_adapters.add(shared, info).version)
    train(other, TASK, {"epochs": 16}, backbone=backbone)
    harmful = fit_gate(other, TASK, PLAIN, backbone=backbone)
    assert harmful.choice.weight == 0
    assert (harmful.personal, harmful.shared) == ("0001", "0001")


def test_the_trial_adapter_learns_from_the_older_records_as_the_one_in_use_did(
    make: Callable[..., Home], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make([review(n) for n in range(14)])
    made = [
        replace(review(n), id=f"s{n}", origin="synthetic", time=START - timedelta(days=n))
        for n in range(2)
    ]
    with home.open_vault() as vault:
        vault.add(made)
    seen: list[tuple[Any, Any]] = []
    real_train = module.train_candidate

    def spy(home: Home, task: Any, base: Any, data: Any, config: Any, *rest: Any, **k: Any) -> Any:
        seen.append((data, config))
        return real_train(home, task, base, data, config, *rest, **k)

    monkeypatch.setattr(module, "train_candidate", spy)
    quick = {"epochs": 1, "rank": 2}
    train(home, TASK, {**quick, "learning_rate": 0.004}, backbone=backbone)
    home.config.train = {"epochs": 5}
    fit_gate(home, TASK, PLAIN, backbone=backbone)
    train(home, TASK, quick, real_only=True, backbone=backbone)
    fit_gate(home, TASK, PLAIN, backbone=backbone)
    (first, config), (second, _) = seen
    assert (config.epochs, config.rank, config.learning_rate) == (1, 2, 0.004)
    assert [r.id for r in first.real] == [r.id for r in second.real] == [f"r{n}" for n in range(10)]
    assert [r.id for r in first.synthetic] == ["s1", "s0"]
    assert second.synthetic == ()


def test_the_trial_adapter_has_the_weight_of_the_one_in_use(
    make: Callable[..., Home], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that forgot too much at its full weight is in use at half of it, see `pfi train`."""
    home = make([review(n) for n in range(14)])
    made = train(home, TASK, {"epochs": 1, "rank": 2}, backbone=backbone)
    lighter = home.personal_adapters.load(made.version.version).scaled(0.5)
    info = AdapterInfo(**made.version.model_dump(include={*AdapterInfo.model_fields}))
    info = info.model_copy(update={"config": {**info.config, "weight": 0.5}})
    home.personal_adapters.use(home.personal_adapters.add(lighter, info).version)
    tried: list[Adapter | None] = []

    def spy(self: Any, plain: Backbone, personal: str) -> Adapter:
        tried.append(real(self, plain, personal))
        return tried[-1]

    real = module._Fit._train
    monkeypatch.setattr(module._Fit, "_train", spy)
    fit_gate(home, TASK, PLAIN, backbone=backbone)
    assert tried[0].settings["lora_alpha"] == lighter.settings["lora_alpha"] == 8


def test_without_a_personal_adapter_only_the_number_of_records_is_chosen(
    make: Callable[..., Home], backbone: Backbone
) -> None:
    home = make([review(n) for n in range(16)])
    count = len(choices(GateConfig()))
    prior = Prior(*(np.full(count, x) for x in (0.5, 0.01, 0.01)), sure=0.4, users=9)
    file = home.path / "prior.json"
    file.write_text(json.dumps({"split": "dev", "prior": prior.to_dict()}))
    shared = one_adapter(home, backbone)
    info = AdapterInfo(task="LaMP_3", backbone=home.config.backbone)
    home.shared_adapters.use(home.shared_adapters.add(WithPrior(shared, file), info).version)
    fitted = fit_gate(home, TASK, backbone=backbone)
    assert fitted.choice.k > 0 and fitted.choice.weight == 0 and not fitted.choice.by_likeness
    assert (fitted.personal, fitted.shared, fitted.users) == (None, "0001", 9)
    assert fitted.sure == 0.4


def one_adapter(home: Home, backbone: Backbone) -> Adapter:
    """Some adapter, trained and put out of use."""
    version = train(home, TASK, {"epochs": 1}, backbone=backbone).version.version
    home.personal_adapters.use_none(TASK.name)
    return home.personal_adapters.load(version)


@pytest.mark.parametrize("with_model", [True, False])
def test_a_weight_by_likeness_needs_a_sentence_model(
    make: Callable[..., Home],
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    with_model: bool,
) -> None:
    embedder = HashEmbedder() if with_model else None
    monkeypatch.setattr("pfi.profile.answer.memory.home_embedder", lambda home: embedder)
    home = make([review(n) for n in range(14)])
    train(home, TASK, {"epochs": 1}, backbone=backbone)
    config = GateConfig()
    gains = [[0.5 * (1 + c.by_likeness) if c != NOTHING else 0.0 for c in plain_choices(config)]]
    tried = Tried(np.array(gains * 4), np.zeros(4))
    monkeypatch.setattr(module._Fit, "try_choices", lambda self, plain: tried)
    fitted = fit_gate(home, TASK, backbone=backbone)
    assert fitted.choice != NOTHING and fitted.choice.by_likeness is with_model


def test_with_few_records_nothing_is_fitted_and_the_profile_counts(
    make: Callable[..., Home], backbone: Backbone, engine: TorchEngine
) -> None:
    home = make([review(n) for n in range(11)], records=1)
    assert not can_fit(home, TASK)
    with pytest.raises(DataError, match=r"on 3; 4 are needed.*profile's settings"):
        fit_gate(home, TASK, backbone=backbone)
    assert not home.gate_file.exists()
    train(home, TASK, {"epochs": 1}, backbone=backbone)
    asked = Runtime(home, engine).prepare("a book", TASK)
    assert (asked.weight, len(asked.records)) == (1.0, 1)
    assert "not fitted" in asked.gate
    with home.open_vault() as vault:
        vault.add([review(11)])
    assert can_fit(home, TASK)
    assert fit_gate(home, TASK, PLAIN, backbone=backbone).tried == LEAST_TRIED


def test_other_users_decide_for_one_with_few_records(
    make: Callable[..., Home], backbone: Backbone
) -> None:
    home = make([review(n) for n in range(3)])
    known = GateConfig(**PLAIN)
    liked = choices(known).index(Choice(0.5, 2))
    mean = np.where(np.arange(len(choices(known))) == liked, 0.4, 0.0)
    prior = Prior(mean, np.full_like(mean, 0.01), np.full_like(mean, 0.1), 0.7, 40)
    file = home.path / "prior.json"
    values = {"split": "dev", "gate": known.model_dump(), "prior": prior.to_dict()}
    file.write_text(json.dumps(values))
    shared = one_adapter(home, backbone)
    info = AdapterInfo(task="LaMP_3", backbone=home.config.backbone)
    home.shared_adapters.use(home.shared_adapters.add(WithPrior(shared, file), info).version)
    train(home, TASK, {"epochs": 1}, backbone=backbone)
    assert can_fit(home, TASK)
    fitted = fit_gate(home, TASK, {"caution": 2}, backbone=backbone)  # of more than it knows
    assert fitted.choice == Choice(0.5, 2)
    assert (fitted.tried, fitted.users) == (0, 40)
    assert fitted.gain == pytest.approx(0.4 - 2 * math.sqrt(0.01))
    # What the folder holds is checked as the weights are.
    (home.shared_adapters.folder / "0001" / "gate.json.sealed").write_text("{}")
    with pytest.raises(StorageError, match="not a sealed file"):
        fit_gate(home, TASK, backbone=backbone)


def test_a_prior_of_other_choices_or_none_is_refused(tmp_path: Path) -> None:
    prior = Prior(*(np.ones(5) for _ in range(3)))
    for text in ("", "[]", "{}", json.dumps({"split": "dev", "prior": prior.to_dict()})):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(StorageError, match="no prior"):
            read_prior(tmp_path / "p.json")
    with pytest.raises(StorageError, match="no prior"):
        read_prior(tmp_path / "missing.json")


@pytest.mark.parametrize(("task", "figures"), [("LaMP_2N", (19, 12, 8)), ("LaMP_4", (25, 14, 8))])
def test_what_the_weak_prior_needs_to_be_convinced(task: str, figures: tuple[int, ...]) -> None:
    config = GateConfig(weights=[0, 1], ks=[0], per_question=False, caution=1, signal="metric")
    prior = weak_prior(get_task(task), config)
    for count, percent in zip((2, 4, 8), figures, strict=True):
        for gain, chosen in ((percent / 100 - 0.01, 0), (percent / 100 + 0.01, 1)):
            own = Tried(np.tile([0.0, gain], (count, 1)), np.zeros(count))
            assert choose(prior, own, config.caution)[0] == chosen
    assert choose(prior, None, config.caution)[0] == 0


def test_the_weak_prior_of_a_scale_is_that_of_a_longer_scale_made_shorter() -> None:
    config = GateConfig(weights=[0, 1], ks=[0], per_question=False)
    short = TASK.model_copy(update={"labels": ["1", "2", "3"]})
    far, near = weak_prior(TASK, config), weak_prior(short, config, np.array([0.2, 0.9, 0.4]))
    assert np.sqrt(far.between / near.between) == pytest.approx([2, 2])
    assert np.sqrt(far.within / near.within) == pytest.approx([2, 2])
    assert near.sure == 0.4 and near.users == 0


# Time ---------------------------------------------------------------------------------


def story(n: int, text: str, time: int | None = None) -> Record:
    when = START + timedelta(days=n if time is None else time)
    return Record(f"r{n}", "LaMP_3", {"text": text}, "3", when)


@pytest.mark.parametrize("dated", [True, False])
def test_a_newer_record_changes_no_trial(
    make: Callable[..., Home], backbone: Backbone, dated: bool
) -> None:
    texts = ["rain over town", "tea at noon", *[f"word{n}" for n in range(9)], "rain and tea"]
    records = [story(n, text) for n, text in enumerate(texts)]
    later = [story(20, "rain " * 4), story(21, "rain again")]
    changed = [story(20, "tea " * 4), story(21, "tea again")]
    config = GateConfig(**{**PLAIN, "held_back": 0.5}, least=1)
    found = []
    for name, newer in (("a", later), ("b", changed)):
        entries = [*records, *newer]
        if not dated:
            entries = [replace(record, time=None) for record in entries]
        home = make(entries, name)
        real = History("u", entries)
        _, newest = divide(config, real)
        assert [r.id for r in newest][-3:] == ["r11", "r20", "r21"]
        trials = home_trials(home, TASK, real, newest, config, 0)
        fill = retrieval_of(home.config, backbone.prompter).fill
        shown = [fill(TASK, trial.prompt, trial.records).prompt for trial in trials]
        assert len(shown) == len(newest)
        assert all(r.id not in ("r20", "r21") for trial in trials[:-2] for r in trial.records)
        found.append((shown[:-2], [t.likeness for t in trials[:-2]]))
        # In one memory of all records, the later ones' words would count.
        query = TASK.query_text(newest[-3].input)
        whole = Memory(TASK, real).search(query, 1, before=newest[-3].time, exclude=["r11"])
        found[-1] += ([r.id for r in whole],)
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]


def test_records_of_the_same_time_are_not_shown_to_each_other(make: Callable[..., Home]) -> None:
    records = [story(n, f"tea {n}", time=min(n, 6)) for n in range(9)]
    home = make(records)
    real = History("u", records)
    config = GateConfig(**{**PLAIN, "held_back": 0.33})
    _, newest = divide(config, real)
    assert [r.id for r in newest] == ["r6", "r7", "r8"]
    for trial in home_trials(home, TASK, real, newest, config, 0):
        assert {r.id for r in trial.records} <= {f"r{n}" for n in range(6)}


# When it counts -----------------------------------------------------------------------


def test_a_choice_counts_only_for_what_it_was_fitted_with(
    make: Callable[..., Home], backbone: Backbone, engine: TorchEngine
) -> None:
    home = make([review(n) for n in range(6)])
    quick = {"epochs": 1}
    train(home, TASK, quick, backbone=backbone)
    entry(home, Choice(0.5, 1))
    runtime = Runtime(home, engine)
    asked = runtime.prepare("a book", TASK)
    assert (asked.weight, len(asked.records)) == (0.5, 1)
    assert asked.gate == "personal adapter at weight 0.5, 1 record"
    assert [counts for _, counts in gate_status(home)] == [True]

    train(home, TASK, quick, backbone=backbone)
    asked = runtime.prepare("a book", TASK)
    assert (asked.personal, asked.weight, len(asked.records)) == ("0002", 1.0, 2)
    assert "fitted with personal adapter 0001" in asked.gate and "profile" in asked.gate
    assert [counts for _, counts in gate_status(home)] == [False]
    home.personal_adapters.use_none(TASK.name)
    assert runtime.prepare("a book", TASK).weight == 0
    home.personal_adapters.use("0001")
    assert runtime.prepare("a book", TASK).weight == 0.5
    assert forget(home, "LaMP_4") == []
    assert forget(home, "LaMP_3") == ["LaMP_3"]
    assert runtime.prepare("a book", TASK).weight == 1.0


def test_a_number_of_records_that_is_asked_for_goes_first(
    make: Callable[..., Home], backbone: Backbone, engine: TorchEngine
) -> None:
    home = make([review(n) for n in range(6)])
    train(home, TASK, {"epochs": 1}, backbone=backbone)
    runtime = Runtime(home, engine)
    for choice in (Choice(0.5, 4), Choice(0.5, 4, if_unsure=True)):
        entry(home, choice, sure=0.0)  # every answer is sure
        assert len(runtime.prepare("a book", TASK, k=1).records) == 1
        assert runtime.prepare("a book", TASK, k=0).records == ()
    asked = runtime.prepare("a book", TASK)
    assert (asked.weight, asked.records) == (0.0, ()) and "sure" in asked.gate


def test_a_damaged_file_is_told_of_before_the_work_and_can_be_forgotten(
    make: Callable[..., Home], backbone: Backbone, engine: TorchEngine
) -> None:
    home = make([review(n) for n in range(14)])
    home.gate_file.write_text('{"LaMP_3": {"choice"')
    stages: list[str] = []
    for use in (
        lambda: fit_gate(home, TASK, backbone=backbone, on_stage=stages.append),
        lambda: Runtime(home, engine).prepare("a", TASK),
        lambda: forget(home, "LaMP_3"),
    ):
        with pytest.raises(StorageError, match="pfi gate off"):
            use()
    assert stages == []
    assert forget(home) == [] and not home.gate_file.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": []}, "weights"),
        ({"weights": [1.5]}, "weights"),
        ({"ks": [-1]}, "ks"),
        ({"colour": "red"}, "colour"),
        ({"held_back": 1}, "held_back"),
    ],
)
def test_settings_that_make_no_sense(
    make: Callable[..., Home], settings: dict[str, Any], says: str
) -> None:
    home = make([], gate={"caution": 2})
    assert gate_config(home, {"most": 3}) == GateConfig(caution=2, most=3)
    with pytest.raises(ConfigError, match=says):
        gate_config(home, settings)


# Kills --------------------------------------------------------------------------------


def _die_while_writing(home: Home, backbone: Backbone) -> None:
    tried = Tried(np.tile([0.0] + [1.0] * 11, (4, 1)), np.zeros(4))
    module._Fit.try_choices = lambda self, plain: tried  # type: ignore[method-assign]
    Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
    fit_gate(home, TASK, backbone=backbone)


def test_a_fit_that_is_stopped_or_killed_leaves_the_old_choice(
    make: Callable[..., Home], backbone: Backbone
) -> None:
    home = make([review(n) for n in range(14)])
    train(home, TASK, {"epochs": 1}, backbone=backbone)
    old = entry(home, Choice(0.5, 1))

    def stop(stage: str) -> None:
        if stage == "trying choices":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_gate(home, TASK, backbone=backbone, on_stage=stop)
    assert read_gate(home) == {"LaMP_3": old}
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_while_writing, args=(home, backbone))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(home.path.glob(".gate.json.*.tmp"))) == 1  # it got as far as that
    assert read_gate(home) == {"LaMP_3": old}
    assert list(home.personal_adapters.versions()) == ["0001"]


# Answers ------------------------------------------------------------------------------


def test_a_weight_is_what_peft_makes_of_a_scaled_alpha(
    make: Callable[..., Home], backbone: Backbone, engine: TorchEngine, tmp_path: Path
) -> None:
    import copy

    from peft import PeftModel

    home = make([review(n) for n in range(8)])
    train(home, TASK, backbone=backbone)
    runtime = Runtime(home, engine)
    ids, target = backbone.prompt_ids("a quick brown fox"), backbone.target_ids("lazy dog")
    whole = torch.tensor([[*ids, *target]])
    scores = {}
    for weight in (0.5, 1.0, 0.0):
        folder = tmp_path / f"w{weight}"
        home.personal_adapters.load("0001").save(folder)
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["lora_alpha"] *= weight
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval()
        with torch.inference_mode():
            likely = model(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        expected = float(sum(row[token] for row, token in zip(likely, target, strict=True)))
        entry(home, Choice(weight, 0))
        asked = runtime.prepare("a book", TASK)
        assert (asked.weight, asked.adapter is None) == (weight, weight == 0)
        scores[weight] = engine.score(ids, [target], asked.adapter)[0]
        assert scores[weight] == pytest.approx(expected, abs=1e-4)
    assert abs(scores[0.5] - scores[1.0]) > 0.01


@pytest.mark.parametrize("name", ["LaMP_3", "LaMP_4"])
def test_answers_are_those_that_were_tried(
    make: Callable[..., Home],
    backbone: Backbone,
    engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    embedder = HashEmbedder()
    monkeypatch.setattr("pfi.profile.answer.memory.home_embedder", lambda home: embedder)
    task = get_task(name).model_copy(update={"max_new_tokens": 8})
    records = [review(n) for n in range(16)]
    if name == "LaMP_4":
        records = [replace(r, task=name, output=f"title {r.output} {r.id}") for r in records]
    home = make(records)
    little = {"epochs": 1, "learning_rate": 1e-4}
    shared = train(home, task, little, backbone=backbone).version.version
    info = AdapterInfo(task=name, backbone=home.config.backbone)
    adapter = home.personal_adapters.load(shared)
    home.shared_adapters.use(home.shared_adapters.add(adapter, info).version)
    train(home, task, {"learning_rate": 0.05}, backbone=backbone)
    personal = home.personal_adapters.load("0002")

    runtime = Runtime(home, engine)

    def weighted(user: str, weight: float) -> AdapterRef | None:
        own = (f"{name} p", lambda: personal, weight)
        return combined([(f"{name} s", lambda: adapter, 1.0), own])

    retrieval = retrieval_of(home.config, backbone.prompter)
    asker = Asker(engine, task, retrieval, weighted)
    texts = [f"{WORDS[n]} {WORDS[n - 3]} good" for n in range(5)] + ["1 2 3 4 5", "fine , over"]
    questions = [
        Question(str(n), "u", name, task.prompt({"text": text}), {"text": text})
        for n, text in enumerate(texts)
    ]
    trials = question_trials(task, questions, lambda time: runtime.memory(task), 2)
    assert len({round(t.likeness * 4) for t in trials}) > 1
    known = confidences(engine, task, [asker.request(trial, NOTHING) for trial in trials])
    level = float(np.sort(known)[2:4].mean())  # of none of them, for rounding
    weights, different = set(), set()
    for choice in (
        NOTHING,
        Choice(0.0, 2),
        Choice(0.5, 2),
        Choice(1.0, 0),
        Choice(1.0, 2, by_likeness=True),
        Choice(1.0, 2, if_unsure=True),
        Choice(1.0, 0, by_likeness=True, if_unsure=True),
    ):
        entry(home, choice, task=task, sure=level)
        expected = asker.answers(trials, {"u": choice}, level)
        for text, trial, wanted, sure in zip(texts, trials, expected, known, strict=True):
            asked = runtime.prepare(text, task)
            left = choice.if_unsure and sure >= level
            use = NOTHING if left else choice
            weights.add(asked.weight)
            assert asked.weight == use.weight_at(trial.likeness), asked.gate
            filled = retrieval.fill(task, trial.prompt, trial.records[: use.k])
            assert (asked.prompt, asked.ids) == (filled.prompt, filled.ids)
            wanted = wanted.rstrip("\ufffd")  # a runtime gives whole characters only
            assert runtime.answer(asked).text == task.parse(wanted), (choice, text)
            assert text_of(runtime.stream(asked)).strip() == task.parse(wanted)
            different.add(wanted)
    assert len(different) > 1
    assert {0.0, 0.5, 1.0} <= weights and len(weights) > 2
    runtime.close()


def test_choices_in_words() -> None:
    assert describe(NOTHING) == "neither personal adapter nor records"
    assert describe(Choice(0.5, 1)) == "personal adapter at weight 0.5, 1 record"
    assert describe(Choice(0.0, 2, if_unsure=True)) == "2 records, where unsure"
    by = Choice(1.0, 0, by_likeness=True)
    assert describe(by) == "personal adapter by likeness, at most at weight 1"
