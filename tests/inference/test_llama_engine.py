"""The engine over llama.cpp answers as PyTorch does, adapters swapped while it runs."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import World, joined, read, until, whole
from llama_world import make_engine, make_world, needs_llama

from pfi.errors import BackboneError, ConfigError
from pfi.inference.engine import AdapterRef, Engine, Request, Sampling, text_of
from pfi.inference.generation import generate
from pfi.inference.llama.c import Model
from pfi.inference.llama.engine import LlamaEngine
from pfi.inference.llama.gguf_cache import open_llama
from pfi.inference.llama.sequences import CHUNK
from pfi.models.adapters import Adapter, stacked
from pfi.models.backbone import load_backbone
from pfi.models.scoring import score_labels

pytestmark = needs_llama
Folder = Callable[[str], Path]
TEXTS = [
    "a quick brown fox",
    "the lazy dog jumps over a film title " * 3,
    "1",
    "good film, bad book " * 2,
    "the lazy dog jumps over a film title the lazy dog jumps over 3 books",
    "a quick brown fox jumps " * 9,
]
_made: dict[str, tuple[World, Path]] = {}


@pytest.fixture
def made(backbone_folder: Folder) -> Callable[[str], tuple[World, Path]]:
    def build(family: str) -> tuple[World, Path]:
        if family not in _made:
            _made[family] = make_world(backbone_folder(family), family)
        _made[family][0].loads.clear()
        return _made[family]

    return build


@pytest.fixture
def world(made: Callable[[str], tuple[World, Path]]) -> World:
    return made("llama")[0]


@pytest.fixture
def engine(made: Callable[[str], tuple[World, Path]]) -> Iterator[LlamaEngine]:
    with make_engine(*made("llama")) as running:
        yield running


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = {*threading.enumerate()}  # other files' tests may have left some
    yield
    until(lambda: not [t for t in {*threading.enumerate()} - before if t.name.startswith("pfi-")])


def request(
    world: World, text: str, adapter: int | None = None, owner: str = "", **sampling: Any
) -> Request:
    chosen = Sampling(**{"max_tokens": 12, **sampling})
    return Request(world.backbone.prompt_ids(text), world.ref(adapter), chosen, owner)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_greedy_answers_are_those_of_pytorch(
    made: Callable[[str], tuple[World, Path]], family: str
) -> None:
    world, path = made(family)
    asked = [(i, i % 4 if i % 5 else None, 3 + 5 * (i % 3)) for i in range(14)]
    with make_engine(world, path, slots=3) as running:
        streams = [
            running.generate(request(world, TEXTS[i % len(TEXTS)], adapter, max_tokens=new))
            for i, adapter, new in asked
        ]
        found = [read(stream) for stream in streams]
        stats = running.stats()
    texts = set()
    for (i, adapter, new), (text, finish, count) in zip(asked, found, strict=True):
        prompt = world.backbone.prompt_ids(TEXTS[i % len(TEXTS)])
        assert (text, finish) == world.expected(prompt, adapter, new)
        assert count == len(world.tokens(prompt, adapter, new))
        texts.add(text)
    assert len(texts) > 8, "the adapters or prompts make no difference"
    assert stats.requests == 14 and stats.running == stats.waiting == 0
    assert stats.new_tokens == sum(count for *_, count in found)
    assert sorted(world.loads) == sorted({a for _, a, _ in asked if a is not None})


def test_the_embedded_backbone_with_and_without_adapters(tmp_path: Path) -> None:
    from engine_world import make_adapter

    backbone = load_backbone("embedded")
    adapters = [make_adapter(backbone, 1, size=0.15), make_adapter(backbone, 2, size=0.15)]
    both = stacked([(adapters[0], 1.0), (adapters[1], 0.5)])
    labels = ["fiction", "a true story", "classic"]
    prompt = "Write a subject for this email: please fix the memory leak in the queue"
    ids, targets = backbone.prompt_ids(prompt), [backbone.target_ids(x) for x in labels]
    answers = set()
    with open_llama("embedded", tmp_path, "f32", threads=1, slots=1) as running:
        for key, adapter in {"": None, "one": adapters[0], "both": both}.items():
            beneath = {"": [], "one": adapters[:1], "both": [adapters[0], adapters[1].scaled(0.5)]}
            model = backbone.with_adapters(beneath[key])
            ref = AdapterRef(key, lambda adapter=adapter: adapter) if adapter else None
            text = text_of(running.generate(Request(ids, ref, Sampling(24))))
            assert text.strip() == generate(model, [prompt], 24)[0]
            answers.add(text)
            scores = running.score(ids, targets, ref)
            assert scores == pytest.approx(score_labels(model, [prompt], labels)[0], abs=1e-3)
    assert len(answers) == 3
    assert [file.suffix for file in tmp_path.iterdir() if file.name != ".lock"] == [".gguf"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_scores_are_those_of_pytorch(
    made: Callable[[str], tuple[World, Path]], family: str
) -> None:
    world, path = made(family)
    labels = ["1", "good", "a lazy dog, fine", "good film", "good film title", "1"]
    targets = [world.backbone.target_ids(label) for label in labels]
    with make_engine(world, path) as running:
        for text in (*TEXTS, "film " * 600):  # the last one is longer than a batch
            for number in (None, 2):
                expected = score_labels(world.merged(number), [text], labels)[0]
                ids = world.backbone.prompt_ids(text, 700)
                assert running.score(ids, targets, world.ref(number), "ann") == pytest.approx(
                    expected, abs=1e-3
                )
        before = running.stats().cached_tokens
        running.score(ids, targets, world.ref(2), "ann")
        assert running.stats().cached_tokens == before + (len(ids) - 1) // CHUNK * CHUNK
        assert running.score(ids, []) == []


def test_many_users_from_many_threads_do_not_cross(world: World, engine: LlamaEngine) -> None:
    order = random.Random(1)
    jobs = [(i % 6, order.randrange(len(TEXTS)), order.randint(1, 9)) for i in range(90)]
    order.shuffle(jobs)
    found: dict[int, Any] = {}

    def ask(numbers: range) -> None:
        for number in numbers:
            user, at, new = jobs[number]
            asked = request(world, TEXTS[at], user, f"user {user}", max_tokens=new)
            found[number] = read(engine.generate(asked))

    threads = [threading.Thread(target=ask, args=(range(i, 90, 9),)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (user, at, new) in enumerate(jobs):
        prompt = world.backbone.prompt_ids(TEXTS[at])
        assert found[number][:2] == world.expected(prompt, user, new)
    alike = {world.expected(world.backbone.prompt_ids(TEXTS[0]), u, 9)[0] for u in range(6)}
    assert len(alike) > 4, "a crossing would not be seen"


def test_known_beginnings_are_used_for_the_same_owner_and_adapter_only(
    world: World, made: Callable[[str], tuple[World, Path]]
) -> None:
    story = "the lazy dog jumps over a film title " * 12
    with make_engine(*made("llama"), slots=8) as running:

        def ask(text: str, adapter: int | None, owner: str) -> int:
            stream = running.generate(request(world, text, adapter, owner))
            prompt = world.backbone.prompt_ids(text)
            assert read(stream)[:2] == world.expected(prompt, adapter, 12)
            return stream.cached

        length = len(world.backbone.prompt_ids(story))
        assert ask(story + "1", 1, "ann") == 0
        assert CHUNK < length < 2 * CHUNK  # whole chunks are kept
        assert ask(story + "good", 1, "ann") == CHUNK
        assert ask(story + "good", 1, "ann") == CHUNK
        assert ask(story + "1", 1, "bob") == 0  # another owner
        assert ask(story + "1", 2, "ann") == 0  # another adapter
        assert ask(story + "1", None, "ann") == 0
        assert ask(story + "1", 1, "") == ask(story + "1", 1, "") == 0  # nobody's
        running.forget("ann")
        assert ask(story + "1", 1, "ann") == 0
        assert ask(story + "1", 1, "bob") > 0
        working = running.generate(request(world, story + "1", 1, "bob", max_tokens=300))
        reading = iter(working)
        next(reading)
        running.forget("bob")  # what is in work is dropped when it ends
        list(reading)
        assert ask(story + "1", 1, "bob") == 0
        for owner in ("ann", "bob", ""):
            running.forget(owner)
        until(lambda: running.stats().prefix_bytes == 0)


def test_cancelling_stops_decoding(world: World, made: Callable[[str], tuple[World, Path]]) -> None:
    prompt = world.backbone.prompt_ids(TEXTS[0])
    with make_engine(*made("llama"), slots=1) as running:
        long = running.generate(request(world, TEXTS[1], 1, max_tokens=600))
        pieces = iter(long)
        next(pieces)
        never = running.generate(request(world, TEXTS[0], 3))
        never.cancel()
        assert [piece.finish for piece in never] == ["cancelled"]
        after = running.generate(request(world, TEXTS[0], 2))
        long.cancel()
        assert list(pieces)[-1].finish == "cancelled"
        assert read(after)[:2] == world.expected(prompt, 2, 12)
        asked = running.generate(request(world, TEXTS[1], 1, max_tokens=600))
        reading: Any = iter(asked)
        next(reading)
        del asked, reading
        gc.collect()
        until(lambda: running.stats().running == 0)
        begun = running.stats().new_tokens
        time.sleep(0.02)
        assert running.stats().new_tokens == begun < 900


def test_a_failing_adapter_hurts_only_its_own_request(world: World, engine: LlamaEngine) -> None:
    def broken() -> Adapter:
        raise BackboneError("it is gone")

    good = engine.generate(request(world, TEXTS[0], 1, max_tokens=40))
    ids = world.backbone.prompt_ids(TEXTS[0])
    with pytest.raises(BackboneError, match="it is gone"):
        text_of(engine.generate(Request(ids, AdapterRef("broken", broken))))
    with pytest.raises(BackboneError, match="it is gone"):
        engine.score(ids, [[5]], AdapterRef("broken", broken))
    other = world.adapters[0]
    narrow = {k: v[:, :1] if "lora_A" in k else v for k, v in other.weights.items()}
    strange = Adapter(other.settings, narrow)  # its pairs fit each other, not the model
    with pytest.raises(BackboneError, match="cannot be loaded"):
        text_of(engine.generate(Request(ids, AdapterRef("strange", lambda: strange))))
    assert read(good)[0] == world.expected(ids, 1, 40)[0]


def test_scores_that_are_no_numbers_end_their_own_request(
    world: World, engine: LlamaEngine
) -> None:
    first = world.adapters[0]
    weights = {key: torch.full_like(value, 1e38) for key, value in first.weights.items()}
    broken = AdapterRef("nan", lambda: Adapter(first.settings, weights))
    ids = world.backbone.prompt_ids(TEXTS[0])
    with pytest.raises(BackboneError, match="no numbers"):
        text_of(engine.generate(Request(ids, broken)))
    with pytest.raises(BackboneError, match="no numbers"):
        engine.score(ids, [[5, 6]], broken)
    assert read(engine.generate(request(world, TEXTS[0])))[:2] == world.expected(ids, None, 12)


def test_a_slow_adapter_holds_nobody_up(world: World, engine: LlamaEngine) -> None:
    gate = threading.Event()

    def slow() -> Adapter:
        gate.wait()
        return world.adapters[1]

    prompt = world.backbone.prompt_ids(TEXTS[0])
    late = engine.generate(Request(prompt, AdapterRef("slow", slow), Sampling(max_tokens=5)))
    for number in (None, None):
        asked = request(world, TEXTS[0], number, max_tokens=9)
        assert read(engine.generate(asked))[:2] == world.expected(prompt, number, 9)
    gate.set()
    assert read(late)[:2] == world.expected(prompt, 1, 5)


def test_the_least_recently_used_adapter_goes(
    world: World, made: Callable[[str], tuple[World, Path]]
) -> None:
    prompt = world.backbone.prompt_ids(TEXTS[0])
    with make_engine(*made("llama"), slots=1, adapters=2) as running:
        for number in (0, 1, 0, 2, 1):
            stream = running.generate(request(world, TEXTS[0], number))
            assert read(stream)[:2] == world.expected(prompt, number, 12)
        assert world.loads == [0, 1, 2, 1]
        assert running.stats().adapters == 2 and running.stats().adapter_loads == 4


def test_an_adapter_that_goes_is_in_use_nowhere(
    world: World, made: Callable[[str], tuple[World, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed, free = [], Model.free_adapter
    with make_engine(*made("llama"), slots=2, adapters=3) as running:

        def unused(model: Model, handle: int) -> None:
            freed.append(running._context._adapter != handle)
            free(model, handle)

        monkeypatch.setattr(Model, "free_adapter", unused)
        long = running.generate(request(world, TEXTS[0], 0, max_tokens=600))
        for number in (1, 2):
            read(running.generate(request(world, TEXTS[0], number, max_tokens=1)))
        read(long)  # the first one taken, the last one used
        read(running.generate(request(world, TEXTS[0], 3)))
    assert freed == [True], "llama.cpp would read what is freed"


def test_adapters_lie_on_no_disk(
    world: World, engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[list[Path]] = []
    load = type(engine._model).adapter

    def watched(model: Any, path: str) -> int:
        seen.append([*tmp_path.rglob("*.gguf")])
        if "/pfi-" in path:
            assert Path(path).parent.stat().st_mode & 0o077 == 0
        return load(model, path)

    monkeypatch.setattr(type(engine._model), "adapter", watched)
    prompt = world.backbone.prompt_ids(TEXTS[0])
    assert read(engine.generate(request(world, TEXTS[0], 4)))[0] == world.expected(prompt, 4, 12)[0]
    monkeypatch.delattr("os.memfd_create")  # as on other systems
    assert read(engine.generate(request(world, TEXTS[0], 5)))[0] == world.expected(prompt, 5, 12)[0]
    assert [len(files) for files in seen] == [0, 1]
    assert not [*tmp_path.rglob("*")]


def test_draws_follow_from_the_seed(world: World, engine: LlamaEngine) -> None:
    def ask(seed: int | None, **more: Any) -> str:
        asked = request(world, TEXTS[0], temperature=1.5, seed=seed, max_tokens=20, **more)
        return read(engine.generate(asked))[0]

    assert ask(3) == ask(3) != ask(4)
    assert len({ask(None) for _ in range(4)}) > 1
    prompt = world.backbone.prompt_ids(TEXTS[0])
    assert ask(3, top_p=1e-6) == world.expected(prompt, None, 20)[0]


def test_draws_are_those_of_the_torch_engine(world: World, engine: LlamaEngine) -> None:
    from pfi.inference.torch.engine import TorchEngine

    with TorchEngine(world.backbone, rank=2) as other:
        for seed, top_p in ((1, 1.0), (2, 0.9), (3, 0.5)):
            asked = request(world, TEXTS[0], temperature=1.2, seed=seed, top_p=top_p, max_tokens=15)
            assert read(engine.generate(asked)) == read(other.generate(asked))


def test_logprobs_are_those_of_a_plain_pass(world: World, engine: LlamaEngine) -> None:
    prompt = world.backbone.prompt_ids(TEXTS[0])
    tokens = world.tokens(prompt, None, 9)
    with torch.inference_mode():
        logits = world.backbone.model(torch.tensor([[*prompt, *tokens]])).logits[0]
    logs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    expected = logs[range(len(tokens)), tokens].tolist()
    pieces = list(engine.generate(request(world, TEXTS[0], max_tokens=9)))
    assert [x for piece in pieces for x in piece.logprobs] == pytest.approx(expected, abs=1e-3)


def test_stop_texts_end_an_answer(world: World, engine: LlamaEngine) -> None:
    prompt = world.backbone.prompt_ids(TEXTS[0])
    text = world.expected(prompt, None, 30)[0]
    stop = text[8:11]
    stream = engine.generate(request(world, TEXTS[0], max_tokens=30, stop=(stop,)))
    pieces = list(stream)
    assert joined(pieces) == text[: text.index(stop)] and pieces[-1].finish == "stop"
    assert sum(piece.tokens for piece in pieces) < 30


def test_the_context_bounds_prompts_and_answers(
    world: World, made: Callable[[str], tuple[World, Path]]
) -> None:
    ids = (world.backbone.prompt_ids("fox " * 100))[:61]
    with make_engine(*made("llama"), length=64, slots=2) as running:
        assert running.prompter.max_length == 64
        text, finish, count = read(running.generate(Request(ids, None, Sampling(50))))
        assert (count, finish) == (3, "length")
        assert text == whole(world.backbone.prompter.text(world.tokens(ids, None, 3)))
        for bad in ([], [1] * 64, [10**6]):
            with pytest.raises(ConfigError):
                running.generate(Request(bad))
        with pytest.raises(ConfigError, match="no room"):
            running.score(ids, [[5] * 4])
        with pytest.raises(ConfigError):
            running.score(ids, [[]])


def test_closing_ends_everything(world: World, made: Callable[[str], tuple[World, Path]]) -> None:
    running = make_engine(*made("llama"), slots=1)
    streams = [running.generate(request(world, TEXTS[0], max_tokens=700)) for _ in range(2)]
    next(iter(streams[0]))
    waiting = running.generate(request(world, TEXTS[0], max_tokens=700))
    running.close()
    assert list(waiting)[-1].finish == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        running.generate(request(world, TEXTS[0]))
    running.close()


def test_a_failing_pass_ends_those_in_it_and_the_engine_goes_on(
    world: World, engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = engine._context.decode, []

    def failing(entries: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise BackboneError("llama.cpp cannot go on")
        return decode(entries)

    monkeypatch.setattr(engine._context, "decode", failing)
    with pytest.raises(BackboneError, match="cannot go on"):
        text_of(engine.generate(request(world, TEXTS[0], 1, "ann")))
    prompt = world.backbone.prompt_ids(TEXTS[0])
    again = engine.generate(request(world, TEXTS[0], 1, "ann"))
    assert read(again)[:2] == world.expected(prompt, 1, 12) and again.cached == 0


def test_it_is_an_engine(engine: LlamaEngine) -> None:
    def takes(engine: Engine) -> str:
        return engine.name

    assert takes(engine) == "llama.cpp"


def test_files_that_are_no_models_are_refused(world: World, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        make_engine(world, file)


def test_without_the_package_there_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    from pfi.inference.llama import c as llama_c

    llama_c.library.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    try:
        with pytest.raises(BackboneError, match=r"pfi\[llama\]"):
            open_llama("embedded", tmp_path)
    finally:
        llama_c.library.cache_clear()
