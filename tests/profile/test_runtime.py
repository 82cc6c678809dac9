"""What answers on a device: prompts that fit, turns, a summary, adapters by weight, engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pfi.errors import ConfigError
from pfi.inference.engine import Sampling, text_of
from pfi.inference.generation import generate
from pfi.inference.torch.engine import TorchEngine
from pfi.memory.summary import summarise
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.answer.runtime import Runtime, generic
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

TASK = get_task("LaMP_4")
CHAT = get_task("instruction")
Make = Callable[..., Home]


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(backbone_folder("llama"))


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    with TorchEngine(backbone) as made:
        yield made


@pytest.fixture
def make(tmp_path: Path, backbone: Backbone) -> Make:
    """Makes a home with six records."""

    def made(name: str = "p", records: int = 6, **settings: Any) -> Home:
        config = HomeConfig(backbone=backbone.name, embedder="none", **settings)
        home = create_home(name, root=tmp_path, config=config)
        with home.open_vault() as vault:
            vault.add(
                Record(f"r{n}", TASK.name, {"text": f"quick fox {n}"}, f"dog {n}")
                for n in range(records)
            )
        return home

    return made


def some_adapter(backbone: Backbone, seed: int) -> Adapter:
    """A random one that changes answers."""
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 1)
    slot = bank.new(seed, rank=2, alpha=4.0)
    noise = torch.Generator().manual_seed(seed)
    bank.weights[slot].normal_(0, 0.5, generator=noise)
    return bank.adapter(slot)


def install(home: Home, backbone: Backbone, seed: int, **info: Any) -> str:
    store = home.shared_adapters if "shared" not in info else home.personal_adapters
    about = AdapterInfo(task=TASK.name, backbone=backbone.name, **info)
    version = store.add(some_adapter(backbone, seed), about).version
    store.use(version)
    return version


def test_the_least_useful_records_make_room_first(make: Make, engine: TorchEngine) -> None:
    home = make(records=6)
    home.config.retrieve, home.config.record_tokens = 6, 400
    runtime = Runtime(home, engine)
    whole = runtime.prepare("quick fox 3", TASK)
    question, most = TASK.prompt({"text": "quick fox 3"}), engine.prompter.max_length
    assert (len(whole.records), whole.dropped) == (6, 0)
    counts = []
    for length in range(len(whole.ids), len(engine.prompter.prompt_ids(question)) - 1, -4):
        tight = runtime.prepare("quick fox 3", TASK, room=most - length)
        counts.append(len(tight.records))
        assert tight.dropped == 6 - counts[-1] and tight.records == whole.records[: counts[-1]]
        assert tight.prompt.endswith(question) and len(tight.ids) <= length
    assert counts == sorted(counts, reverse=True) and {6, 0} < {*counts}
    long = runtime.prepare("quick fox " * most, TASK)
    assert (long.records, long.dropped, len(long.ids)) == ((), 6, most - TASK.max_new_tokens)


def test_turns_come_before_the_question_and_old_ones_go_first(
    make: Make, engine: TorchEngine
) -> None:
    runtime = Runtime(make(), engine)
    turns = [
        ("user", "first first"),
        ("assistant", "second"),
        ("user", "third"),
        ("assistant", "x"),
    ]
    asked = runtime.prepare("and now", CHAT, k=0, history=turns)
    said = engine.prompter.text(asked.ids)
    assert said.index("first") < said.index("third") < said.index("now")
    room = engine.prompter.max_length - len(asked.ids) + 1
    said = engine.prompter.text(runtime.prepare("and now", CHAT, k=0, history=turns, room=room).ids)
    assert "first" not in said and "third" in said and "now" in said


def test_records_go_before_turns_do(make: Make, engine: TorchEngine) -> None:
    home = make()
    with home.open_vault() as vault:
        vault.add(
            Record(f"c{n}", CHAT.name, {"instruction": f"fox {n}"}, "lazy dog") for n in range(3)
        )
    runtime = Runtime(home, engine)
    turns = [("user", "the early question"), ("assistant", "the early answer")]
    whole = runtime.prepare("fox", CHAT, k=2, history=turns)
    bare = runtime.prepare("fox", CHAT, k=0, history=turns)
    assert len(whole.records) == 2
    most = engine.prompter.max_length
    for length in range(len(whole.ids), len(bare.ids) - 1, -2):
        tight = runtime.prepare("fox", CHAT, k=2, history=turns, room=most - length)
        assert "early question" in engine.prompter.text(tight.ids)
    assert tight.dropped == 2 and tight.ids == bare.ids


def test_a_summary_is_of_the_records_of_now(make: Make, engine: TorchEngine) -> None:
    home = make(summary_tokens=32)
    runtime = Runtime(home, engine)
    with home.open_vault() as vault:
        records = list(vault.history(TASK.name))
    expected = summarise(TASK, records, engine.prompter.trim, 32)
    assert expected
    assert runtime.prepare("tea", TASK).prompt.startswith(expected)
    with home.open_vault() as vault:
        vault.delete([record.id for record in records])
    assert runtime.prepare("tea", TASK).prompt == TASK.prompt({"text": "tea"})
    assert expected not in Runtime(make("q"), engine).prepare("tea", TASK).prompt


def test_answers_are_those_of_the_merged_model(
    make: Make, engine: TorchEngine, backbone: Backbone
) -> None:
    home = make()
    install(home, backbone, 1)
    install(home, backbone, 2, shared="0001")
    runtime = Runtime(home, engine)
    shared, personal = home.shared_adapters.load("0001"), home.personal_adapters.load("0001")
    seen = set()
    for weight in (1.0, 0.0):
        asked = runtime.prepare("quick fox", TASK)
        adapters = [shared, personal] if weight else [shared]
        merged = backbone.with_adapters(adapters)
        [text] = generate(merged, [asked.prompt], TASK.max_new_tokens)
        assert runtime.answer(asked).text == TASK.parse(text)
        seen.add(runtime.answer(asked).text)
        home.personal_adapters.use_none(TASK.name)
    seen.add(runtime.answer(runtime.generic([("user", asked.prompt)])).text)
    assert len(seen) == 3


def test_adapters_are_told_apart_by_profile_version_and_weight(
    make: Make, engine: TorchEngine, backbone: Backbone
) -> None:
    homes = [make(name) for name in ("a", "b")]
    keys = set()
    for seed, home in enumerate(homes):
        install(home, backbone, seed)
        install(home, backbone, seed + 5, shared="0001")
        asked = [Runtime(home, engine)._weighted("0001", "0001", w) for w in (1.0, 0.5, 0.0)]
        keys |= {ref.key for ref in asked if ref}
    assert len(keys) == 6
    assert Runtime(homes[0], engine)._weighted("0001", None, 0.0) is None


def test_generic_knows_nobody(make: Make, engine: TorchEngine, backbone: Backbone) -> None:
    home = make(summary_tokens=32)
    install(home, backbone, 1)
    asked = Runtime(home, engine).generic([("user", "quick fox 1")])
    assert asked.adapter is None and asked.records == () and asked.owner == ""
    assert asked.ids == tuple(engine.prompter.prompt_ids("quick fox 1"))
    for turns in ([], [("user", "  ")]):
        with pytest.raises(ConfigError, match="empty"):
            generic(engine, turns)


def test_threads_share_a_runtime(make: Make, engine: TorchEngine) -> None:
    runtime = Runtime(make(), engine)

    def one(n: int) -> tuple[str, ...]:
        asked = runtime.prepare(f"quick fox {n % 6}", TASK, k=1)
        return asked.records[0].id, runtime.answer(asked).text

    alone = [one(n) for n in range(6)]
    assert [id_ for id_, _ in alone] == [f"r{n}" for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(24))) == alone * 4
    runtime.close()


def test_sampling_counts_for_text_and_not_for_labels(make: Make, engine: TorchEngine) -> None:
    runtime = Runtime(make(), engine)
    asked = runtime.prepare("quick fox", TASK)
    short = list(runtime.stream(asked, Sampling(max_tokens=2)))
    assert short[-1].finish == "length" and sum(piece.tokens for piece in short) == 2
    label = get_task("LaMP_3")
    found = runtime.stream(runtime.prepare("good", label), Sampling(temperature=2.0, max_tokens=1))
    assert text_of(found) == answer_alone(engine, label, "good")


def answer_alone(engine: TorchEngine, task: Any, text: str) -> str:
    scored = [
        engine.score(
            engine.prompter.prompt_ids(task.prompt({"text": text})),
            [engine.prompter.target_ids(label)],
        )[0]
        for label in task.labels
    ]
    return str(task.choose(scored))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("torch", "f32")),
        ({"engine": "llama.cpp"}, ("llama.cpp", "q8_0")),
        ({"engine": "torch", "bits": "bf16"}, ("torch", "bf16")),
    ],
)
def test_the_settings_choose_the_engine(
    settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    choice = EngineChoice.of(HomeConfig(**settings))
    assert (choice.name, choice.bits) == expected


def test_bits_that_an_engine_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="q8_0"):
        EngineChoice.of(HomeConfig(engine="torch", bits="q8_0"))
    with pytest.raises(ConfigError, match="bf16"):
        EngineChoice.of(HomeConfig(bits="bf16"), "llama.cpp")


def test_a_context_of_the_profile_is_kept_to(make: Make, tmp_path: Path) -> None:
    home = make(context=64)
    with make_engine(EngineChoice.of(home.config), tmp_path) as engine:  # type: ignore[attr-defined]
        assert engine.prompter.max_length == 64
        asked = Runtime(home, engine).prepare("quick fox " * 50, TASK)
        assert len(asked.ids) + TASK.max_new_tokens <= 64


def test_an_engine_of_its_own_is_closed_and_one_that_is_given_is_not(
    make: Make, engine: TorchEngine
) -> None:
    runtime = Runtime(make())
    own = runtime.engine
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        own.score([1], [[2]])
    assert runtime.engine is not own
    runtime.close()
    given = Runtime(make("q"), engine)
    given.close()
    assert given.answer(given.prepare("tea", TASK)).text is not None


def test_what_was_erased_leaves_the_prefix_cache(make: Make, engine: TorchEngine) -> None:
    home = make()
    runtime = Runtime(home, engine)

    def cached() -> int:
        stream = runtime.stream(runtime.prepare("quick fox 3", TASK, k=2))
        text_of(stream)
        return stream.cached

    cached()
    assert cached() > 0
    with home.open_vault() as vault:
        vault.delete(["r0"])  # none that is retrieved, so that the prompt stays
    assert cached() == 0
