"""The engine over the bank: many requests at once answer as each would alone, adapter merged."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import World, joined, make_adapter, read, sharpen, until, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfi.errors import BackboneError, ConfigError
from pfi.inference.engine import AdapterRef, Engine, Request, Sampling
from pfi.inference.torch.batch import BatchRows
from pfi.inference.torch.engine import TorchEngine
from pfi.inference.torch.unbatched import LoneRows
from pfi.models import attention as padding
from pfi.models import attention as row_attention
from pfi.models.adapters import Adapter, AdapterConfig, stacked
from pfi.models.backbone import load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.models.scoring import score_labels

Folder = Callable[[str], Path]
TEXTS = [
    "a quick brown fox",
    "the lazy dog jumps over a film title " * 3,
    "1",
    "good film, bad book " * 2,
    "the lazy dog jumps over a film title the lazy dog jumps over 3 books",
    "fine book 3",
    "a quick brown fox jumps " * 9,
]
_worlds: dict[str, World] = {}


@pytest.fixture
def world(backbone_folder: Folder) -> Callable[[str], World]:
    def build(family: str) -> World:
        if family not in _worlds:
            backbone = sharpen(load_backbone(backbone_folder(family)))
            _worlds[family] = World(backbone, [make_adapter(backbone, i) for i in range(20)])
        _worlds[family].loads.clear()
        return _worlds[family]

    return build


@pytest.fixture
def llama(world: Callable[[str], World]) -> World:
    return world("llama")


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = {*threading.enumerate()}  # other files' tests may have left some
    yield
    until(lambda: not [t for t in {*threading.enumerate()} - before if t.name.startswith("pfi-")])


def engine(world: World, **options: Any) -> TorchEngine:
    return TorchEngine(world.backbone, **{"rank": 2, **options})


def prompt_of(world: World, text: str = TEXTS[1]) -> list[int]:
    return world.backbone.prompt_ids(text)


def request(
    world: World, text: str, adapter: int | None = None, owner: str = "", **sampling: Any
) -> Request:
    chosen = Sampling(**{"max_tokens": 12, **sampling})
    return Request(world.backbone.prompt_ids(text), world.ref(adapter), chosen, owner)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "t5"])
def test_mixed_rows_answer_as_each_alone_with_its_adapter_merged(
    world: Callable[[str], World], family: str
) -> None:
    here = world(family)
    asked = [(i, i % 4 if i % 5 else None, 3 + 5 * (i % 3)) for i in range(14)]
    with engine(here, max_rows=6, prefill_chunk=16) as made:
        kind = LoneRows if family == "t5" else BatchRows
        assert isinstance(made._scheduler.rows, kind)
        streams = [
            made.generate(request(here, TEXTS[i % len(TEXTS)], adapter, max_tokens=new))
            for i, adapter, new in asked
        ]
        found = [read(stream) for stream in streams]
        stats = made.stats()
    texts = set()
    for (i, adapter, new), (text, finish, count) in zip(asked, found, strict=True):
        prompt = here.backbone.prompt_ids(TEXTS[i % len(TEXTS)])
        assert (text, finish) == here.expected(prompt, adapter, new)
        assert count == len(here.tokens(prompt, adapter, new))
        texts.add(text)
    assert len(texts) > 8, "the adapters or prompts make no difference"
    assert stats.requests == 14 and stats.running == stats.waiting == 0
    assert stats.new_tokens == sum(count for *_, count in found)
    assert sorted(set(here.loads)) == sorted({a for _, a, _ in asked if a is not None})
    if family != "t5":
        assert stats.steps < stats.new_tokens / 2, "rows were not batched"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_rows_that_are_much_longer_are_computed_apart(
    world: Callable[[str], World], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(family)
    cuts: list[Any] = []
    plain = row_attention.cut
    monkeypatch.setattr(row_attention, "_APART", 0)

    def noted(lengths: Sequence[int]) -> Any:
        cuts.append(plain(lengths))
        return cuts[-1]

    monkeypatch.setattr(row_attention, "cut", noted)
    texts = [TEXTS[0], "a lazy dog " * 40, TEXTS[2], TEXTS[1], "good film 2 " * 25]
    with engine(here) as made:
        streams = [made.generate(request(here, text, i)) for i, text in enumerate(texts)]
        for i, stream in enumerate(streams):
            prompt = here.backbone.prompt_ids(texts[i])
            assert read(stream)[:2] == here.expected(prompt, i, 12)
    assert any(found and len(found[1]) > 1 for found in cuts)


@settings(
    max_examples=14,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_arrivals_cancellations_and_sizes_leave_every_answer_as_it_is(
    llama: World, data: st.DataObject
) -> None:
    number = st.integers(0, 5)
    asked = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, len(TEXTS) - 1),
                st.none() | number,
                st.integers(1, 14),
                st.sampled_from(["", "ann", "bob"]),
                st.none() | st.integers(0, 6),  # cancelled after so many pieces
            ),
            min_size=1,
            max_size=12,
        )
    )
    options = {
        "max_rows": data.draw(st.integers(1, 5)),
        "prefill_chunk": data.draw(st.sampled_from([1, 3, 16, 512])),
        "capacity": data.draw(st.integers(1, 4)),
        "cache_bytes": data.draw(st.sampled_from([0, 40_000, 1 << 20])),
        "row_bytes": data.draw(st.sampled_from([1, 1 << 18, 1 << 30])),
    }
    order = random.Random(data.draw(st.integers(0, 99)))
    with engine(llama, **options) as made:
        under_way: list[tuple[Any, Any, list[Any]]] = []
        waiting, done = list(asked), []
        while waiting or under_way:
            if waiting and order.random() < 0.5:
                job = waiting.pop(0)
                at, adapter, new, owner, _ = job
                made_of = request(llama, TEXTS[at], adapter, owner, max_tokens=new)
                stream = made.generate(made_of)
                under_way.append((job, (stream, iter(stream)), []))
            elif under_way:
                entry = order.choice(under_way)
                job, (stream, pieces), got = entry
                if len(got) == job[4]:
                    stream.cancel()
                got.append(next(pieces))
                if got[-1].finish:
                    under_way.remove(entry)
                    done.append((job, got))
        until(lambda: made.stats().running == 0)
        assert made.stats().prefix_bytes <= options["cache_bytes"]
    for (at, adapter, new, _, _), got in done:
        text, finish = llama.expected(llama.backbone.prompt_ids(TEXTS[at]), adapter, new)
        if got[-1].finish == "cancelled":
            assert text.startswith(joined(got))
        else:
            assert (joined(got), got[-1].finish) == (text, finish)


def test_two_hundred_requests_of_twenty_users_from_many_threads_do_not_cross(llama: World) -> None:
    order = random.Random(1)
    jobs = [(i % 20, order.randrange(len(TEXTS)), order.randint(1, 9)) for i in range(200)]
    order.shuffle(jobs)
    found: dict[int, tuple[str, Any, int]] = {}
    with engine(llama, max_rows=16, capacity=7) as made:

        def ask(numbers: range) -> None:
            for number in numbers:
                user, at, new = jobs[number]
                asked = request(llama, TEXTS[at], user, f"user {user}", max_tokens=new)
                found[number] = read(made.generate(asked))

        threads = [threading.Thread(target=ask, args=(range(i, 200, 20),)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = made.stats()
    for number, (user, at, new) in enumerate(jobs):
        prompt = llama.backbone.prompt_ids(TEXTS[at])
        assert found[number][:2] == llama.expected(prompt, user, new)
    assert stats.requests == 200 and stats.adapters <= 7 and stats.cached_tokens > 0
    alike = {llama.expected(llama.backbone.prompt_ids(TEXTS[0]), u, 9)[0] for u in range(20)}
    assert len(alike) > 10, "a crossing would not be seen"


def test_cancelling_frees_the_row_and_others_go_on(llama: World) -> None:
    prompt = llama.backbone.prompt_ids(TEXTS[0])
    with engine(llama, max_rows=1) as made:
        long = made.generate(request(llama, TEXTS[1], 1, max_tokens=500))
        pieces = iter(long)
        next(pieces)
        after = made.generate(request(llama, TEXTS[0], 2))
        assert made.stats().waiting + made.stats().running == 2
        never = made.generate(request(llama, TEXTS[0], 3))
        never.cancel()
        assert [piece.finish for piece in never] == ["cancelled"]
        long.cancel()
        assert list(pieces)[-1].finish == "cancelled"
        assert read(after)[:2] == llama.expected(prompt, 2, 12)


@pytest.mark.parametrize("how", ["close", "drop", "drop unread", "cancel"])
def test_a_reader_who_leaves_frees_the_row_before_the_next_token(llama: World, how: str) -> None:
    number = next(i for i in range(20) if len(llama.tokens(prompt_of(llama), i, 40)) == 40)
    permits = threading.Semaphore(3)  # each lets the engine do one step
    with engine(llama) as made:
        step = made._scheduler.step
        made._scheduler.step = lambda: permits.acquire() and step()  # type: ignore[method-assign]
        stream = made.generate(request(llama, TEXTS[1], number, max_tokens=40))
        pieces: Any = iter(stream)
        until(lambda: permits.release() or made.stats().new_tokens > 0)  # type: ignore[func-returns-value]
        if how != "drop unread":
            next(pieces)
        while permits.acquire(blocking=False):
            pass
        if how == "close":
            pieces.close()
        elif how == "cancel":
            stream.cancel()
        else:
            del stream, pieces
            gc.collect()
        permits.release(1000)
        until(lambda: made.stats().running == 0)
        assert made.stats().new_tokens < 20


def test_waiting_requests_come_in_their_order_past_one_whose_adapter_is_read(llama: World) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def slow() -> Adapter:
        gate.wait()
        return llama.adapters[1]

    with engine(llama, max_rows=2) as made:
        rows = made._scheduler.rows
        join = rows.join
        rows.join = lambda row, held: (begun.append(row.limit), join(row, held))  # type: ignore
        prompt = llama.backbone.prompt_ids(TEXTS[0])
        late = made.generate(Request(prompt, AdapterRef("slow", slow), Sampling(max_tokens=5)))
        streams = [made.generate(request(llama, TEXTS[0], max_tokens=i)) for i in range(10, 16)]
        assert [read(stream)[:2] for stream in streams] == [
            llama.expected(prompt, None, i) for i in range(10, 16)
        ]
        assert begun == list(range(10, 16))
        gate.set()
        assert read(late)[:2] == llama.expected(prompt, 1, 5)


def test_one_that_waits_for_a_slot_is_passed_by_nobody(llama: World) -> None:
    begun: list[int] = []
    with engine(llama, max_rows=4, capacity=1) as made:
        rows = made._scheduler.rows
        join = rows.join
        rows.join = lambda row, held: (begun.append(row.limit), join(row, held))  # type: ignore
        asked = [(0, 300), (1, 8), (0, 9)]
        streams = []
        for adapter, new in asked:
            streams.append(made.generate(request(llama, TEXTS[0], adapter, max_tokens=new)))
            # Else the later ones may pass it by.
            until(partial(made._scheduler.slots.ready, llama.ref(adapter), begin=False))
        for (adapter, new), stream in list(zip(asked, streams, strict=True))[1:]:
            prompt = prompt_of(llama, TEXTS[0])
            assert read(stream)[:2] == llama.expected(prompt, adapter, new)
        assert begun == [300, 8, 9]


def test_a_long_prompt_is_read_between_the_steps_of_others(llama: World) -> None:
    with engine(llama, max_rows=4, prefill_chunk=8) as made:
        talking = made.generate(request(llama, TEXTS[0], max_tokens=400))
        pieces = iter(talking)
        next(pieces)
        long = made.generate(request(llama, "a lazy dog " * 150, max_tokens=3))
        prompt = llama.backbone.prompt_ids("a lazy dog " * 150)
        assert len(prompt) > 300
        assert read(long)[:2] == llama.expected(prompt, None, 3)
        talking.cancel()
        decoded = sum(piece.tokens for piece in pieces)
        assert decoded >= len(prompt) // 8 - 2, "the other one was held up"


def test_a_failing_adapter_hurts_only_its_own_request(llama: World) -> None:
    def broken() -> Adapter:
        raise BackboneError("the adapter is damaged")

    wide = Adapter(llama.adapters[0].settings, dict(llama.adapters[0].weights))
    name = next(iter(wide.weights))
    wide.weights[name] = torch.zeros(2, 7)
    spoilt = Adapter(
        llama.adapters[1].settings,
        {k: torch.full_like(v, 1e38) for k, v in llama.adapters[1].weights.items()},
    )
    prompt = llama.backbone.prompt_ids(TEXTS[1])
    with engine(llama, max_rows=3) as made:
        good = [made.generate(request(llama, TEXTS[1], i, max_tokens=30)) for i in range(2)]
        refs = [AdapterRef("a", broken), AdapterRef("b", lambda: wide)]
        refs.append(AdapterRef("c", lambda: spoilt))
        bad = [made.generate(Request(prompt, ref)) for ref in refs]
        for stream, said in zip(bad, ["damaged", "does not fit", "no numbers"], strict=True):
            with pytest.raises(BackboneError, match=said):
                read(stream)
        with pytest.raises(BackboneError, match="damaged"):
            made.score(prompt, [[5]], refs[0])
        good += [made.generate(request(llama, TEXTS[1], i, max_tokens=30)) for i in range(2)]
        for i, stream in enumerate(good):
            assert read(stream)[:2] == llama.expected(prompt, i % 2, 30)
        # The same key may work the next time.
        again = made.generate(Request(prompt, AdapterRef("a", lambda: llama.adapters[2])))
        assert (
            read(again)[0] == whole(llama.backbone.prompter.text(llama.tokens(prompt, 2, 40)))
            or len(llama.tokens(prompt, 2, 40)) == 40
        )
        until(lambda: made.stats().running == 0)


def test_a_pass_that_fails_ends_those_in_it_and_the_engine_goes_on(
    llama: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(llama) as made:
        rows = made._scheduler.rows

        def fail() -> Any:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(rows, "passes", fail)
        with pytest.raises(torch.OutOfMemoryError):
            read(made.generate(request(llama, TEXTS[0], 1)))
        monkeypatch.undo()
        prompt = llama.backbone.prompt_ids(TEXTS[0])
        assert read(made.generate(request(llama, TEXTS[0], 1)))[:2] == llama.expected(prompt, 1, 12)


def test_the_least_recently_used_adapter_goes_and_one_in_use_stays(llama: World) -> None:
    with engine(llama, capacity=2) as made:
        for number in (0, 1, 0, 2, 0):  # 2 takes the place of 1
            read(made.generate(request(llama, TEXTS[0], number)))
        assert llama.loads == [0, 1, 2]
        read(made.generate(request(llama, TEXTS[0], 1)))
        assert llama.loads == [0, 1, 2, 1] and made.stats().adapters == 2
        held = made.generate(request(llama, TEXTS[1], 0, max_tokens=300))
        pieces = iter(held)
        got = [next(pieces)]
        for number in (3, 4, 5):
            read(made.generate(request(llama, TEXTS[0], number)))
        assert llama.loads == [0, 1, 2, 1, 3, 4, 5]
        held.cancel()
        got += pieces
        expected, _ = llama.expected(llama.backbone.prompt_ids(TEXTS[1]), 0, 40)
        assert joined(got)[: len(expected)] == expected[: len(joined(got))]


def test_larger_adapters_make_the_bank_anew_while_others_decode(llama: World) -> None:
    pair = stacked([(llama.adapters[0], 1.0), (llama.adapters[1], 0.5)])
    both = llama.backbone.with_adapters([llama.adapters[0], llama.adapters[1].scaled(0.5)])
    prompt = llama.backbone.prompt_ids(TEXTS[3])
    alone = World(both, [])
    with engine(llama, max_rank=4) as made:
        first = made.generate(request(llama, TEXTS[1], 2, max_tokens=30))
        second = made.generate(request(llama, TEXTS[0], 3, max_tokens=30))
        stacks = made.generate(
            Request(prompt, AdapterRef("both", lambda: pair), Sampling(max_tokens=20))
        )
        assert read(stacks)[:2] == alone.expected(prompt, None, 20)
        assert read(first)[:2] == llama.expected(llama.backbone.prompt_ids(TEXTS[1]), 2, 30)
        assert read(second)[:2] == llama.expected(llama.backbone.prompt_ids(TEXTS[0]), 3, 30)
        assert made._scheduler.slots.bank.rank == 4
        large = stacked([(llama.adapters[i], 1.0) for i in range(3)])
        with pytest.raises(ConfigError, match="rank 6"):
            read(made.generate(Request(prompt, AdapterRef("large", lambda: large))))


def test_known_beginnings_are_used_for_the_same_owner_and_adapter_only(llama: World) -> None:
    story = "the lazy dog jumps over a film title " * 4
    with engine(llama) as made:

        def ask(text: str, adapter: int | None, owner: str) -> int:
            stream = made.generate(request(llama, text, adapter, owner))
            prompt = llama.backbone.prompt_ids(text)
            assert read(stream)[:2] == llama.expected(prompt, adapter, 12)
            return stream.cached

        whole_prompt = len(llama.backbone.prompt_ids(story))
        assert ask(story + "1", 1, "ann") == 0
        assert whole_prompt - 3 < ask(story + "good", 1, "ann") <= whole_prompt
        assert ask(story + "1", 1, "ann") == len(llama.backbone.prompt_ids(story + "1")) - 1
        assert ask(story + "1", 1, "bob") == 0  # another owner
        assert ask(story + "1", 2, "ann") == 0  # another adapter
        assert ask(story + "1", None, "ann") == 0
        assert ask(story + "1", 1, "") == ask(story + "1", 1, "") == 0  # nobody's
        assert made.stats().cached_tokens > 0
        made.forget("ann")
        assert ask(story + "1", 1, "ann") == 0
        assert ask(story + "1", 1, "bob") > 0
        made.forget("ann")
        made.forget("bob")
        until(lambda: made.stats().prefix_bytes == 0)


def test_a_conversation_reads_only_its_last_turn(llama: World) -> None:
    prompt = llama.backbone.prompt_ids(TEXTS[1])
    with engine(llama) as made:
        stream = made.generate(request(llama, TEXTS[1], 4, "ann"))
        read(stream)
        longer = [*prompt, *llama.tokens(prompt, 4, 12)[:10], 7, 8, 9]
        again = made.generate(Request(longer, llama.ref(4), Sampling(max_tokens=8), "ann"))
        assert read(again)[:2] == llama.expected(longer, 4, 8)
        assert again.cached == len(prompt) + 10


def test_what_is_kept_of_beginnings_is_bounded(llama: World) -> None:
    limit = 60_000
    with engine(llama, cache_bytes=limit) as made:
        for number in range(12):
            read(made.generate(request(llama, f"{number} {TEXTS[1]}", 1, f"user {number % 5}")))
            assert made.stats().prefix_bytes <= limit
        assert made.stats().prefix_bytes > limit / 2


def test_draws_follow_from_the_rows_own_seed_alone(llama: World) -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "max_tokens": 16}
    with engine(llama) as made:
        alone = [read(made.generate(request(llama, TEXTS[0], 1, seed=i, **hot))) for i in range(3)]
        crowd = [
            made.generate(request(llama, TEXTS[i % 7], i % 5, temperature=0.7, seed=9))
            for i in range(6)
        ]
        together = [made.generate(request(llama, TEXTS[0], 1, seed=i, **hot)) for i in range(3)]
        assert [read(stream) for stream in together] == alone
        assert len({text for text, *_ in alone}) > 1
        free = [made.generate(request(llama, TEXTS[0], 1, **hot)) for _ in range(4)]
        assert len({read(stream)[0] for stream in free}) > 1
        cold = made.generate(request(llama, TEXTS[0], 1))
        assert read(cold)[:2] == llama.expected(llama.backbone.prompt_ids(TEXTS[0]), 1, 12)
        del crowd


def test_logprobs_are_those_of_a_plain_pass(llama: World) -> None:
    prompt = llama.backbone.prompt_ids(TEXTS[4])
    with engine(llama) as made:
        pieces = list(made.generate(request(llama, TEXTS[4], 2, temperature=0.0)))
    tokens = llama.tokens(prompt, 2, 12)
    model: Any = llama.merged(2).model
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits
    plain = logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(tokens)), tokens]
    found = [logprob for piece in pieces for logprob in piece.logprobs]
    assert found == pytest.approx(plain.tolist(), abs=1e-4)


def test_stop_texts_end_an_answer_and_are_no_part_of_it(llama: World) -> None:
    prompt = llama.backbone.prompt_ids(TEXTS[1])
    text, _ = llama.expected(prompt, 3, 40)
    assert len(text) > 8
    stop = text[4:7]  # several tokens: the tiny model's are single bytes above all
    with engine(llama) as made:
        asked = request(llama, TEXTS[1], 3, max_tokens=40, stop=(stop, "never to be found"))
        found, finish, count = read(made.generate(asked))
    assert (found, finish) == (text[: text.index(stop)], "stop") and count < 40


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_scores_are_those_of_scoring_with_a_bank(
    world: Callable[[str], World], family: str
) -> None:
    here = world(family)
    labels = ["1", "good", "a lazy dog"]
    bank = AdapterBank(here.backbone, AdapterConfig(rank=2), 4)
    slots = [bank.add(here.adapters[i]) for i in range(4)]
    expected = score_labels(bank.backbone, TEXTS[:4], labels, slots=slots)
    plain = score_labels(here.backbone, TEXTS[:1], labels)
    targets = [here.backbone.target_ids(label) for label in labels]
    found: dict[int, list[float]] = {}
    with engine(here, max_rows=1) as made:
        busy = made.generate(request(here, TEXTS[1], 5, max_tokens=300))
        pieces = iter(busy)
        next(pieces)

        def ask(i: int) -> None:
            prompt = here.backbone.prompt_ids(TEXTS[i])
            found[i] = made.score(prompt, targets, here.ref(i))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made.score(here.backbone.prompt_ids(TEXTS[0]), targets) == pytest.approx(
            plain[0], abs=1e-4
        )
        busy.cancel()
        assert list(pieces)[-1].finish in ("cancelled", "stop")
    for i in range(4):
        assert found[i] == pytest.approx(expected[i], abs=1e-4)
    assert abs(found[0][0] - found[1][0]) > 1e-3


def test_the_context_bounds_answers_and_prompts(llama: World) -> None:
    backbone = llama.backbone
    assert backbone.max_length == 768
    prompt = [5 + i % 200 for i in range(760)]
    with engine(llama, prefill_chunk=128) as made:
        _, finish, count = read(made.generate(Request(prompt, sampling=Sampling(max_tokens=50))))
        assert finish == "stop" or (count == 8 and finish == "length")
        for wrong, sampling in [
            ([5] * 768, {}),
            ([], {}),
            ([10_000], {}),
            ([-1], {}),
            ([5], {"max_tokens": 0}),
            ([5], {"temperature": -1.0}),
            ([5], {"temperature": float("nan")}),
            ([5], {"top_p": 0.0}),
            ([5], {"stop": ("",)}),
        ]:
            with pytest.raises(ConfigError):
                made.generate(Request(wrong, sampling=Sampling(**sampling)))  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            made.score([5] * 760, [[5] * 9])
        assert made.score([5] * 760, []) == []
    wrong_sizes: list[dict[str, Any]] = [
        {"capacity": 0},
        {"max_rows": 0},
        {"prefill_chunk": -1},
        {"rank": 300},
    ]
    for options in wrong_sizes:
        with pytest.raises(ConfigError):
            TorchEngine(backbone, **options)


def test_padding_never_lies_beyond_the_last_position(world: Callable[[str], World]) -> None:
    here = world("gpt2")  # its positions are learnt
    long = [5 + i % 200 for i in range(765)]
    gate, held = threading.Event(), threading.Event()
    with engine(here) as made:
        read(made.generate(Request(long, sampling=Sampling(max_tokens=1), owner="ann")))
        made._scheduler._drop_cancelled = lambda: held.set() or gate.wait()  # type: ignore
        made.forget("nobody")
        held.wait()
        pair = [[*long, 7, 8], [9, 10, 11, 12]]
        streams = [
            made.generate(Request(prompt, sampling=Sampling(max_tokens=1), owner="ann"))
            for prompt in pair
        ]
        gate.set()  # both come into the same pass
        for prompt, stream in zip(pair, streams, strict=True):
            assert read(stream)[:2] == here.expected(prompt, None, 1)
        assert streams[0].cached == 765


def test_a_model_of_unknown_kind_answers_one_at_a_time(
    world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world("gpt2")
    prompt = here.backbone.prompt_ids(TEXTS[3])
    expected = here.expected(prompt, 1, 12)
    monkeypatch.setattr(padding, "_FAMILIES", set())
    with engine(here) as made:
        assert isinstance(made._scheduler.rows, LoneRows)
        streams = [made.generate(request(here, TEXTS[3], 1)) for _ in range(2)]
        assert [read(stream)[:2] for stream in streams] == [expected] * 2


def test_closing_ends_everything(llama: World) -> None:
    made = engine(llama, max_rows=1)
    streams = [made.generate(request(llama, TEXTS[1], 1, max_tokens=600)) for _ in range(3)]
    next(iter(streams[0]))
    made.close()
    for stream in streams[1:]:
        assert list(stream)[-1].finish == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        made.generate(request(llama, TEXTS[1]))
    with pytest.raises(RuntimeError, match="closed"):
        made.score([5], [[5]])
    made.close()


def test_half_precision_answers_are_close(llama: World) -> None:
    targets = [llama.backbone.target_ids("good")]
    prompt = llama.backbone.prompt_ids(TEXTS[0])
    with engine(llama) as exact, engine(llama, precision="bfloat16") as half:
        first, second = (made.score(prompt, targets, llama.ref(1))[0] for made in (exact, half))
        assert first != second and first == pytest.approx(second, rel=0.05)
        streams = [half.generate(request(llama, text, 1)) for text in TEXTS[:4]]
        assert all(read(stream)[1] for stream in streams)


def test_it_is_an_engine(llama: World) -> None:
    with engine(llama) as made:
        checked: Engine = made
        assert checked.name == "torch" and checked.prompter is llama.backbone.prompter
