"""What the engine is made of: text as it comes, rows' keys and values, prefixes, slots."""

from __future__ import annotations

import argparse
import importlib
import random
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import World, make_adapter, sharpen, until, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import BackboneError, ConfigError
from pfi.inference.detokenizer import Written
from pfi.inference.engine import AdapterRef, Request, Sampling, most_tokens
from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.kv_cache import RowStore
from pfi.inference.torch.prefix_cache import LEAST, PrefixCache
from pfi.models import attention as row_attention
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.models.families import cache_argument

Folder = Callable[[str], Path]

# Text ------------------------------------------------------------------------------------


def byte_text(tokens: Sequence[int]) -> str:
    """Tokens are bytes."""
    return bytes(tokens).decode("utf-8", errors="replace")


def piece_text(tokens: Sequence[int]) -> str:
    """Tokens are words with a space before them, which a text's beginning loses."""
    return "".join(f" {'ab'[t % 2] * (t % 5 + 1)}" for t in tokens).removeprefix(" ")


def write(text: Callable[[Sequence[int]], str], tokens: Sequence[int], *stop: str) -> list[str]:
    written = Written(text, stop)
    found = []
    for token in tokens:
        found.append(written.add(token))
        if written.stopped:
            return found
    return [*found, written.end()]


@given(st.lists(st.integers(0, 255), max_size=60) | st.text(max_size=40).map(str.encode).map(list))
def test_pieces_make_up_the_text_in_whole_characters(tokens: list[int]) -> None:
    pieces = write(byte_text, tokens)
    assert "".join(pieces) == whole(byte_text(tokens))
    words = write(piece_text, tokens)
    assert "".join(words) == piece_text(tokens)


def test_a_character_comes_when_its_last_token_does() -> None:
    tokens = list("aé€😀z".encode())
    expected = ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]
    assert write(byte_text, tokens) == expected
    assert write(byte_text, tokens[:-2]) == [*expected[:9], ""]


@given(
    st.text("ab€", max_size=30),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_first_stop_text_ends_it_wherever_tokens_part_it(text: str, stops: list[str]) -> None:
    tokens = list(text.encode())
    pieces = write(byte_text, tokens, *stops)
    # The one that is whole first; of several that end together the one that begins first.
    ends = [(text.index(s) + len(s), text.index(s)) for s in stops if s in text]
    begin = min(ends)[1] if ends else len(text)
    assert "".join(pieces) == text[:begin]


def test_what_could_begin_a_stop_text_is_held_back() -> None:
    assert write(byte_text, b"a\n\nUs\n\nUser:x", "\n\nUser:")[:4] == ["a", "", "", ""]
    assert "".join(write(byte_text, b"a\n\nUs", "\n\nUser:")) == "a\n\nUs"


def test_little_is_decoded_again() -> None:
    longest = 0

    def text(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return byte_text(tokens)

    pieces = write(text, list(("wörter €" * 80).encode()))
    assert "".join(pieces) == "wörter €" * 80 and longest < 50


# Keys and values -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_pass_over_any_rows_equals_plain_passes_row_by_row(
    backbone_folder: Folder, family: str
) -> None:
    backbone = sharpen(load_backbone(backbone_folder(family)))
    model: Any = backbone.model
    draw = random.Random(3)
    rows: dict[int, list[int]] = {}
    with torch.inference_mode():
        store = RowStore(model, 6, 768)
        for step in range(28):
            if step % 9 == 8 and len(rows) > 2:  # rows come, go and change places
                places = sorted(rows)
                gone, last = places[0], places[-1]
                store.move(last, gone, len(rows[last]))
                rows[gone] = rows.pop(last)
                store.swap(gone, places[1], max(len(rows[gone]), len(rows[places[1]])))
                rows[gone], rows[places[1]] = rows[places[1]], rows[gone]
            free = [i for i in range(6) if i not in rows]
            if free:
                rows[draw.choice(free)] = []
            places = draw.sample(sorted(rows), draw.randint(1, len(rows)))
            tokens = draw.choice([1, 1, 5])
            begins = [len(rows[place]) for place in places]
            new = [[draw.randrange(5, 300) for _ in range(tokens)] for _ in places]
            positions = store.aim(places, begins, tokens)
            states = model.base_model(
                input_ids=torch.tensor(new),
                attention_mask=store.hiding(positions, store.dtype),
                position_ids=positions,
                use_cache=True,
                **cache_argument(model.base_model, store.cache),
            )[0]
            for place, more, state in zip(places, new, states, strict=True):
                rows[place] += more
                plain = model.base_model(input_ids=torch.tensor([rows[place]]), use_cache=False)[0]
                torch.testing.assert_close(state[-1], plain[0, -1], atol=2e-4, rtol=1e-3)
        assert 0 < store.room < 768 and store.bytes == store.room * 6 * store.token_bytes
        place = max(rows, key=lambda at: len(rows[at]))
        held = store.read(place, 0, 4)
        assert held.shape[2] == 4 and held.numel() * held.element_size() == 4 * store.token_bytes
        store.release()
        assert store.bytes == 0


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
def test_rows_are_cut_where_it_is_cheapest(lengths: list[int]) -> None:
    found = row_attention.cut(lengths)
    extra = row_attention._APART

    def cost(short: int) -> int:
        return len(lengths) * short + sum(n + extra for n in lengths if n > short)

    best = min(cost(short) for short in lengths)
    if found is None:
        assert best > 0.9 * cost(max(lengths))
    else:
        short, apart = found
        assert cost(short) == best
        assert sorted(apart) == [(i, n) for i, n in enumerate(lengths) if n > short]


# Prefixes --------------------------------------------------------------------------------


def held(tokens: Sequence[int]) -> torch.Tensor:
    """What stands for the keys and values of these tokens."""
    return torch.tensor(tokens, dtype=torch.float32).reshape(1, 1, -1, 1, 1).expand(1, 2, -1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_prefixes_are_found_of_the_same_group_only_and_stay_within_bounds(
    data: st.DataObject,
) -> None:
    limit = data.draw(st.sampled_from([0, 700, 2000, 1 << 30]))
    cache = PrefixCache(limit)
    put: dict[Any, list[list[int]]] = {}
    groups = st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from(["", "x"]))
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=30)
    for _ in range(data.draw(st.integers(1, 25))):
        group, tokens = data.draw(groups), data.draw(prompts)
        found = cache.find(group, tokens)
        common = max(
            (
                next(
                    (i for i, (a, b) in enumerate(zip(old, tokens, strict=False)) if a != b),
                    len(min(old, tokens, key=len)),
                )
                for old in put.get(group, [])
            ),
            default=0,
        )
        if found is None:
            assert common < LEAST or limit < 1 << 30
        else:
            assert LEAST <= found.shape[2] <= common
            assert found.shape[2] == common or limit < 1 << 30
            assert found[0, 0, :, 0, 0].tolist() == tokens[: found.shape[2]]
        cache.put(group, tokens, held(tokens).clone())
        put.setdefault(group, []).append(tokens)
        assert cache.bytes <= limit
        if data.draw(st.integers(0, 9)) == 0:
            cache.forget("ann")
            put = {g: old for g, old in put.items() if g[0] != "ann"}
    cache.forget("ann")
    cache.forget("bob")
    assert cache.bytes == len(cache) == 0


def test_the_least_recently_used_prefix_goes_first() -> None:
    tokens = [[i] * 20 for i in range(4)]
    cache = PrefixCache(3 * (held(tokens[0]).numel() * 4 + 20 * 8))
    for i in range(3):
        cache.put(("ann", ""), tokens[i], held(tokens[i]).clone())
    assert cache.find(("ann", ""), tokens[0]) is not None
    cache.put(("ann", ""), tokens[3], held(tokens[3]).clone())
    found = [cache.find(("ann", ""), row) is not None for row in tokens]
    assert found == [True, False, True, True]
    longer = [*tokens[0], 7]
    cache.put(("ann", ""), longer, held(longer).clone())  # in place of its beginning
    assert len(cache) <= 3 and cache.known(("ann", ""), tokens[0])


# Slots -----------------------------------------------------------------------------------


def test_slots_keep_what_is_in_use_and_tell_when_all_are(backbone_folder: Folder) -> None:
    backbone = sharpen(load_backbone(backbone_folder("llama")))
    world = World(backbone, [make_adapter(backbone, i) for i in range(5)])

    def make(rank: int, layers: Collection[str] | None = None) -> AdapterBank:
        return AdapterBank(backbone, AdapterConfig(rank=rank), 2, layers=layers)

    woken: list[int] = []

    def wake() -> None:
        woken.append(1)

    with ThreadPoolExecutor(1) as reader:
        slots = AdapterSlots(
            make(2, []), make, lambda adapter: adapter.plain(backbone.model), reader, wake
        )

        def take(number: int) -> int | None:
            until(lambda: slots.ready(world.ref(number)))
            return slots.take(world.ref(number))

        assert slots.take(None) == -1
        assert not slots.ready(world.ref(0), begin=False) and not world.loads
        first, second = take(0), take(1)
        assert first is not None and second is not None and first != second
        assert take(2) is None, "both are in use"
        assert take(0) == first
        slots.give(first)
        assert take(2) is None, "it is used once more"
        slots.give(first)
        stamp = slots.stamp(first)
        assert take(2) == first and slots.stamp(first) != stamp
        assert "adapter 0" not in slots and "adapter 1" in slots
        assert world.loads == [0, 1, 2] and slots.loads == 3
        assert len(woken) >= 3

        def broken() -> Adapter:
            raise BackboneError("damaged")

        bad = AdapterRef("bad", broken)
        until(lambda: slots.ready(bad))
        with pytest.raises(BackboneError):
            slots.take(bad)  # though no slot is free
        before = slots.bank.adapter(second)
        slots.give(first)
        odd = make_adapter(backbone, 8)
        odd.weights[next(iter(odd.weights))] = torch.zeros(2, 7)
        wrong = AdapterRef("wrong", lambda: odd)
        until(lambda: slots.ready(wrong))
        with pytest.raises(BackboneError):
            slots.take(wrong)  # after it made room for it
        large = AdapterRef("large", lambda: make_adapter(backbone, 9, rank=5))
        until(lambda: slots.ready(large))
        assert slots.take(large) == first and slots.bank.rank == 5
        after = slots.bank.adapter(second)
        assert all(torch.equal(v, before.weights[k]) for k, v in after.weights.items())


def test_requests_are_checked_without_a_model() -> None:
    assert most_tokens(Request([5] * 10, sampling=Sampling(max_tokens=8)), 32) == 8
    assert most_tokens(Request([5] * 30, sampling=Sampling(max_tokens=8)), 32) == 2
    assert most_tokens(Request([5] * 30, sampling=Sampling(max_tokens=8)), 32, seq2seq=True) == 8
    with pytest.raises(ConfigError, match="32"):
        most_tokens(Request([5] * 32), 32)


def test_the_batching_benchmark_measures_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    batching = importlib.import_module("batching")
    settings = {
        "users": [1, 2], "prompt": 8, "new": 3, "rounds": 1, "threads": 1, "seed": 0,
        "precision": "float32",
    }  # fmt: skip
    rows = batching.measure("tiny", argparse.Namespace(**settings))
    assert [(row["users"], row["method"]) for row in rows] == [
        (users, method) for users in (1, 2) for method in batching.METHODS
    ]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    page = batching.page({"date": "today", "settings": {**settings, "machine": ""}, "rows": rows})
    assert page.count("| tiny |") == 6
