"""Prompts that begin alike: llama.cpp reads what they share once, and answers as if it had not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_world import World, read
from llama_world import make_engine, make_world, needs_llama

from pfi.inference.engine import Request, Sampling
from pfi.inference.llama.sequences import CHUNK

pytestmark = needs_llama
HEAD = "the lazy dog jumps over a film title " * 30
_made: list[tuple[World, Path]] = []


@pytest.fixture
def made(backbone_folder: Callable[[str], Path]) -> tuple[World, Path]:
    if not _made:
        _made.append(make_world(backbone_folder("llama"), "llama", adapters=2))
    return _made[0]


def request(world: World, text: str, adapter: int | None = None, owner: str = "ann") -> Request:
    prompt = world.backbone.prompt_ids(text)
    return Request(prompt, world.ref(adapter), Sampling(max_tokens=10), owner)


def test_prompts_asked_at_once_read_their_beginning_once(made: tuple[World, Path]) -> None:
    world, path = made
    endings = ["1", "good", "bad book", "a quick brown fox"]
    requests = [request(world, HEAD + ending, 1) for ending in endings]
    head = len(world.backbone.prompt_ids(HEAD))
    with make_engine(world, path, slots=4) as engine:
        streams = engine.generate_all(requests)
        for stream, asked in zip(streams, requests, strict=True):
            assert read(stream)[:2] == world.expected(asked.prompt, 1, 10)
        cached = sorted(stream.cached for stream in streams)
        assert cached[0] == 0 and head - CHUNK - 8 <= cached[1] == cached[3]
        steps = engine.stats().steps
        later = engine.generate(request(world, HEAD + "fine", 1))  # all four have ended
        assert read(later)[:2] == world.expected(request(world, HEAD + "fine").prompt, 1, 10)
        assert later.cached == cached[1] and engine.stats().steps > steps


def test_a_beginning_is_copied_from_one_that_is_answering(made: tuple[World, Path]) -> None:
    world, path = made
    with make_engine(world, path, slots=2) as engine:
        long = engine.generate(
            Request(world.backbone.prompt_ids(HEAD + "1"), None, Sampling(max_tokens=200), "ann")
        )
        pieces = iter(long)
        first = next(pieces)
        second = engine.generate(request(world, HEAD + "good"))
        assert read(second)[:2] == world.expected(request(world, HEAD + "good").prompt, None, 10)
        assert second.cached > 2 * CHUNK
        text = first.text + "".join(piece.text for piece in pieces)
        expected = world.expected(world.backbone.prompt_ids(HEAD + "1"), None, 200)[0]
        assert text.startswith(expected) or expected.startswith(text)


@pytest.mark.parametrize(
    ("adapters", "owners"),
    [((1, 1), ("ann", "bob")), ((0, 1), ("ann", "ann")), ((1, 1), ("", ""))],
    ids=["other owners", "other adapters", "nobody's"],
)
def test_nothing_is_copied_across(
    made: tuple[World, Path], adapters: tuple[int, int], owners: tuple[str, str]
) -> None:
    world, path = made
    asked = [
        request(world, HEAD + "1", adapter, owner)
        for adapter, owner in zip(adapters, owners, strict=True)
    ]
    with make_engine(world, path, slots=4) as engine:
        for stream, one, adapter in zip(engine.generate_all(asked), asked, adapters, strict=True):
            assert read(stream)[:2] == world.expected(one.prompt, adapter, 10)
            assert stream.cached == 0
        if owners[0]:
            engine.forget(owners[0])
        again = engine.generate(asked[0])
        assert read(again)[:2] == world.expected(asked[0].prompt, adapters[0], 10)
        assert again.cached == 0
