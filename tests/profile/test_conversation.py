"""Conversations on a device: turns, the system prompt, answers that are cut, what is off topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfi.errors import ConfigError
from pfi.inference.engine import Sampling, text_of
from pfi.inference.torch.engine import TorchEngine
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.models.generation_config import GenerationSettings
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.conversation import Conversation, read_system, write_system
from pfi.profile.answer.floors import FLOORS
from pfi.profile.answer.runtime import Runtime
from pfi.profile.answer.sampling import conversation_sampling
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

CHAT, TITLE, STARS = get_task("instruction"), get_task("note_title"), get_task("LaMP_3")
ALIKE, STRANGE = "the lazy dog of town 3", "capital France Napoleon"


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(backbone_folder("llama"))


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    with TorchEngine(backbone) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path, backbone: Backbone) -> Home:
    """With twelve records of three tasks each, and a personal and a shared adapter of all."""
    made = create_home(
        "p", root=tmp_path, lock="file", config=HomeConfig(backbone=backbone.name, embedder="none")
    )
    with made.open_vault() as vault:
        for task, field in ((CHAT, "instruction"), (TITLE, "text"), (STARS, "text")):
            vault.add(
                Record(f"{task.name}-{n}", task.name, {field: f"the lazy dog of town {n}"}, "4")
                for n in range(12)
            )
    for seed, task in enumerate((CHAT, TITLE, STARS)):
        for store in (made.shared_adapters, made.personal_adapters):
            info = AdapterInfo(task=task.name, backbone=backbone.name)
            if store is made.personal_adapters:
                info = info.model_copy(update={"shared": made.shared_adapters.active(task.name)})
            store.use(store.add(some_adapter(backbone, seed), info).version)
    return made


def some_adapter(backbone: Backbone, seed: int) -> Adapter:
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 1)
    slot = bank.new(seed, rank=2, alpha=4.0)
    bank.weights[slot].normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return bank.adapter(slot)


# What is off topic ------------------------------------------------------------------


def test_a_free_question_unlike_the_records_goes_to_the_backbone(
    home: Home, engine: TorchEngine
) -> None:
    runtime = Runtime(home, engine)
    strange = runtime.prepare(STRANGE, CHAT)
    plain = runtime.generic([("user", STRANGE)])
    assert (strange.adapter, strange.records, strange.weight) == (None, (), 0.0)
    assert strange.ids == plain.ids and strange.shared is None
    assert "not like your records" in strange.gate and "floor" in strange.gate
    greedy = Sampling(max_tokens=8)
    assert text_of(runtime.stream(strange, greedy)) == text_of(runtime.stream(plain, greedy))
    like = runtime.prepare(ALIKE, CHAT)
    assert like.weight == 1.0 and like.adapter is not None and len(like.records) == 2
    assert like.shared is not None and "like your records" in like.gate


def test_a_task_that_was_not_named_gives_way_and_a_named_one_does_not(
    home: Home, engine: TorchEngine
) -> None:
    runtime = Runtime(home, engine)
    guessed = runtime.prepare(STRANGE, TITLE, named=False)
    assert guessed.task.name == "instruction" and guessed.prompt == guessed.asked == STRANGE
    assert guessed.ids == runtime.generic([("user", STRANGE)]).ids and guessed.adapter is None
    named = runtime.prepare(STRANGE, TITLE)
    assert named.task == TITLE and named.weight == 1.0 and named.likeness is None
    assert runtime.prepare(ALIKE, TITLE, named=False).task == TITLE
    labels = runtime.prepare(STRANGE, STARS, named=False)
    assert labels.task == STARS and labels.weight == 1.0 and labels.adapter is not None
    asked_for = runtime.prepare(STRANGE, TITLE, named=False, k=1)
    assert len(asked_for.records) == 1 and asked_for.task == TITLE and asked_for.weight == 0


def test_the_floor_holds_with_a_fitted_gate(
    home: Home, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(home, engine)
    monkeypatch.setattr(Runtime, "_gated", lambda *_: (0.5, 1, "chosen"))
    assert runtime.prepare(STRANGE, CHAT).weight == 0
    like = runtime.prepare(ALIKE, CHAT)
    assert (like.weight, len(like.records)) == (0.5, 1) and like.gate.startswith("chosen")


def test_a_floor_is_fitted_once_and_kept_without_text(
    home: Home, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runtime(home, engine).prepare(ALIKE, CHAT)
    with home.open_vault() as vault:
        kept = vault.setting(FLOORS)
    assert {*kept} == {"instruction"} and "lazy" not in str(kept)
    import pfi.profile.answer.floors as floors

    def fails(*_: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(floors, "fit_floor", fails)
    Runtime(home, engine).prepare(ALIKE, CHAT)
    with home.open_vault() as vault:
        vault.delete([f"instruction-{n}" for n in range(3)])
    with pytest.raises(AssertionError, match="fitted again"):
        Runtime(home, engine).prepare(ALIKE, CHAT)


# Turns ------------------------------------------------------------------------------


def answer(talk: Conversation, line: str) -> str:
    return "".join(talk.answer(talk.prepare(line), line))


def test_turns_and_the_system_prompt_are_read_before_the_next(
    home: Home, engine: TorchEngine
) -> None:
    talk = Conversation(Runtime(home, engine), CHAT, system="Answer as a fox", max_tokens=4)
    first = answer(talk, STRANGE)
    assert talk.turns[0] == ("user", STRANGE) and talk.turns[1] == ("assistant", first.strip())
    read = engine.prompter.text(talk.prepare(ALIKE).ids)
    places = [read.index(part) for part in ("Answer as a fox", "France", first.strip(), "lazy")]
    assert places == sorted(places)
    talk.begin()
    read = engine.prompter.text(talk.prepare(ALIKE).ids)
    assert "fox" in read and "France" not in read


def test_questions_of_a_task_with_a_prompt_stand_alone(home: Home, engine: TorchEngine) -> None:
    talk = Conversation(Runtime(home, engine), TITLE, system="As a fox", max_tokens=4)
    answer(talk, ALIKE)
    assert talk.prepare(ALIKE).ids == talk.runtime.prepare(ALIKE, TITLE).ids
    strange = engine.prompter.text(talk.prepare(STRANGE).ids)  # which sees what was said before
    assert "As a fox" in strange and TITLE.prompt({"text": ALIKE}) in strange
    talk.task = STARS
    answer(talk, ALIKE)
    assert talk.last is not None and talk.last.answer in STARS.labels
    assert talk.prepare(ALIKE).ids == talk.runtime.prepare(ALIKE, STARS).ids


def test_the_oldest_turns_make_room_and_are_counted(home: Home, engine: TorchEngine) -> None:
    runtime = Runtime(home, engine)
    turns = [(role, f"{role} {n}") for n in range(60) for role in ("user", "assistant")]
    asked = runtime.prepare(STRANGE, CHAT, history=[("system", "the fox"), *turns])
    read = engine.prompter.text(asked.ids)
    kept = len(turns) - asked.dropped_turns
    assert 0 < kept < len(turns) and asked.dropped_turns % 2 == 0  # questions with their answers
    assert (
        "the fox" in read and "assistant 59" in read and f"user {(len(turns) - kept) // 2}" in read
    )
    assert f"user {(len(turns) - kept) // 2 - 1}" not in read
    assert len(asked.ids) + runtime.room() <= engine.prompter.max_length
    assert runtime.prepare(STRANGE, CHAT, history=turns[:2]).dropped_turns == 0


def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(
    home: Home, engine: TorchEngine
) -> None:
    runtime = Runtime(home, engine)
    talk = Conversation(runtime, CHAT, max_tokens=12)
    for line in (STRANGE, "Napoleon", "a quick fox", "France", "jumps over"):
        talk.begin()
        first = answer(talk, line)
        if first and talk.last is not None and talk.last.cut:  # a random model may end at once
            break
    assert first and talk.last is not None and talk.last.cut == 12
    prepared = talk.last.prepared
    rest = "".join(talk.more())
    assert talk.last.tokens == 24 and talk.last.raw == first + rest
    assert talk.turns == [("user", line), ("assistant", (first + rest).strip())]
    # What is read for the rest is the prompt and the answer so far.
    more = runtime.more(prepared, first)
    assert more.ids == (*prepared.ids, *engine.prompter.token_ids(first))
    assert rest == text_of(runtime.stream(more, Sampling(max_tokens=12)))
    full = replace(prepared, ids=tuple([5] * engine.prompter.max_length))
    with pytest.raises(ConfigError, match="fill the context"):
        runtime.more(full, "x")
    talk.begin()
    with pytest.raises(ConfigError, match="was not cut"):
        talk.more()


def test_a_stopped_answer_is_a_turn(home: Home, engine: TorchEngine) -> None:
    talk = Conversation(Runtime(home, engine), CHAT, max_tokens=40)
    pieces = talk.answer(talk.prepare(STRANGE), STRANGE)
    begun = next(pieces) + next(pieces)
    talk.stop()
    assert talk.last is not None and talk.last.cut == 0
    assert talk.turns == [("user", STRANGE), ("assistant", talk.last.answer)]
    assert begun.strip() == talk.last.answer


# Settings ---------------------------------------------------------------------------


def test_the_system_prompt_is_in_the_vault_and_not_in_the_settings_file(home: Home) -> None:
    assert read_system(home) == ""
    write_system(home, " I am Maria Lopes. ")
    assert read_system(home) == "I am Maria Lopes."
    home.save_config()
    assert "Maria" not in (home.path / "config.yaml").read_text()
    write_system(home, "")
    assert read_system(home) == ""


def test_what_is_said_goes_before_the_settings_and_these_before_the_models_own(
    home: Home, engine: TorchEngine
) -> None:
    own = GenerationSettings(sample=True, temperature=0.6, top_p=0.9)
    prompter = replace(engine.prompter, generation=own)
    found = conversation_sampling(home.config, prompter)
    assert (found.temperature, found.top_p, found.max_tokens) == (0.6, 0.9, 512)
    home.config.sampling = {"temperature": 0.2, "seed": 3}
    home.config.max_tokens = 100
    found = conversation_sampling(home.config, prompter, {"top_p": 0.5, "seed": None})
    assert (found.temperature, found.top_p, found.seed) == (0.2, 0.5, 3)
    assert found.max_tokens == 100
    greedy = replace(prompter, generation=replace(own, sample=False))
    home.config.sampling = {}
    assert conversation_sampling(home.config, greedy).temperature == 0
    home.config.sampling = {"temperature": "hot"}
    with pytest.raises(ConfigError, match="temperature"):
        conversation_sampling(home.config, prompter)


def test_tasks_that_are_scored_stay_greedy_at_their_length(home: Home, engine: TorchEngine) -> None:
    home.config.sampling = {"temperature": 1.0}
    runtime = Runtime(home, engine)
    assert runtime.sampling(TITLE) == Sampling(max_tokens=TITLE.max_new_tokens)
    assert runtime.sampling(TITLE, {"temperature": 0.5}).temperature == 0.5
    assert runtime.sampling(CHAT).temperature == 1.0
    assert runtime.longest(CHAT) == 512 and runtime.longest(TITLE) == TITLE.max_new_tokens


def test_a_whole_answer_says_where_it_was_cut(home: Home, engine: TorchEngine) -> None:
    runtime = Runtime(home, engine)
    asked = runtime.prepare(STRANGE, CHAT)
    assert runtime.answer(asked, 3).cut == 3
    stars = runtime.answer(runtime.prepare(ALIKE, STARS))
    assert stars.cut == 0 and stars.text in STARS.labels
