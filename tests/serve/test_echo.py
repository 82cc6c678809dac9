"""`echo` with `logprobs`: what a prompt's own tokens are worth to the model, in both engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serve_world import World, make_homes, replace_config, serving

from pfi.inference.engine import Engine
from pfi.serve import ServeConfig
from pfi.serve.echo import Span, span_of

LETTERS = {1: b"He", 2: b"llo", 3: b"\nHe", 4: b"\xc3", 5: b"\xa9!", 6: b""}
MOST = 120


@pytest.mark.parametrize(
    ("ids", "text", "span"),
    [
        ([1, 2, 1, 2], "Hello", Span(2, 4)),  # the last place
        ([2, 3, 2, 2], "Hello", Span(1, 3, before=1)),  # begins within a token
        ([1, 2, 5], "Hel", Span(0, 2, behind=2)),
        ([1, 4, 5, 1], "é", Span(1, 3, behind=1)),  # a character of two tokens
        ([1, 6, 2, 6], "Hello", Span(0, 3)),  # control tokens stand for nothing
        ([1, 2], "hello", None),
        ([1, 2], "", None),
    ],
)
def test_a_prompt_is_where_its_bytes_are(ids: list[int], text: str, span: Span | None) -> None:
    assert span_of(ids, LETTERS.__getitem__, text) == span


@pytest.fixture(scope="module", params=["torch", "llama.cpp"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    from pfi.profile.answer.engines import EngineChoice, make_engine
    from pfi.profile.config import HomeConfig

    choice = EngineChoice.of(HomeConfig(), request.param)
    engine: Any = make_engine(choice, tmp_path_factory.mktemp("models"), rows=2)
    config = replace_config(ServeConfig(), most_answer_tokens=MOST)  # type: ignore[call-arg]
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann"])
    with serving(homes, engine, config) as world:
        yield world


def asked(world: World, prompt: Any, **more: Any) -> Any:
    ask = {"model": "generic", "echo": True, "logprobs": 2, "max_tokens": 4, **more}
    return world.client("ann", timeout=60).completions.create(prompt=prompt, **ask)


def test_the_prompts_tokens_are_scored_as_the_engine_scores_them(world: World) -> None:
    engine: Engine = world.engine
    text = "Tea is good for café people."
    choice = asked(world, text).choices[0]
    found = choice.logprobs
    assert choice.text.startswith(text) and "".join(found.tokens[:-4]).startswith(text[:12])
    ids = engine.prompter.chat_ids([("user", text)], 1 << 30)
    own = engine.prompter.token_ids(text)
    first = next(at for at in range(len(ids)) if list(ids[at : at + len(own)]) == own)
    assert len(found.tokens) == len(own) + 4
    levels = found.token_logprobs
    for n in (1, 3, len(own)):  # the chain rule: the engine's own sum of the first n
        (expected,) = engine.score(ids[:first], [own[:n]])
        assert sum(levels[:n]) == pytest.approx(expected, abs=0.02)
    for token, level, top in zip(found.tokens, levels, found.top_logprobs, strict=True):
        assert len(top) <= 2 and level <= max(top.values()) + 1e-6
        assert token not in top or top[token] == pytest.approx(level, abs=1e-6)


def test_what_is_echoed_changes_no_answer(world: World) -> None:
    plain = asked(world, "Tea", echo=False)
    with_echo = asked(world, "Tea")
    assert with_echo.choices[0].text == "Tea" + plain.choices[0].text
    assert with_echo.usage.prompt_tokens == plain.usage.prompt_tokens
    assert with_echo.usage.completion_tokens == plain.usage.completion_tokens
    tokens = with_echo.choices[0].logprobs.token_logprobs
    assert tokens[-4:] == pytest.approx(plain.choices[0].logprobs.token_logprobs, abs=1e-3)


def test_no_answer_at_all_may_be_asked_for(world: World) -> None:
    """What evaluation harnesses do: only the prompt counts."""
    reply = asked(world, ["Tea is good.", "Tea is bad."], max_tokens=0, logprobs=1)
    assert [choice.text for choice in reply.choices] == ["Tea is good.", "Tea is bad."]
    assert [choice.finish_reason for choice in reply.choices] == ["length"] * 2
    assert reply.usage.completion_tokens == 0 and reply.usage.prompt_tokens > 0
    for choice in reply.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        starts = [0]
        for token in choice.logprobs.tokens[:-1]:
            starts.append(starts[-1] + len(token))
        assert choice.logprobs.text_offset == starts
        assert all(level <= 0 for level in choice.logprobs.token_logprobs)
    assert asked(world, "Tea", max_tokens=0, echo=False).choices[0].text == ""


def test_streams_and_choices_have_the_same(world: World) -> None:
    ask: dict[str, Any] = {"n": 2, "temperature": 1.0, "seed": 5}
    whole = asked(world, "Tea and cake", **ask).choices
    tokens: dict[int, list[str]] = {0: [], 1: []}
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in asked(world, "Tea and cake", stream=True, **ask):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.tokens
                offsets[choice.index] += choice.logprobs.text_offset
    assert [tokens[choice.index] for choice in whole] == [c.logprobs.tokens for c in whole]
    assert [offsets[c.index][:5] for c in whole] == [c.logprobs.text_offset[:5] for c in whole]
    assert all(values == sorted(values) for values in offsets.values())


def test_a_personal_model_reads_its_records_before_the_prompt(world: World) -> None:
    more: dict[str, Any] = {"max_tokens": 0, "extra_body": {"pfi": {"records": 2}}}
    reply = asked(world, "secret of ann number 1", model="ann", **more)
    found = reply.choices[0].logprobs
    assert "".join(found.tokens) == "secret of ann number 1"
    assert reply.pfi[0]["retrieved"] == 2


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"prompt": "tea " * 400}, "context_length_exceeded", f"at most {MOST} tokens"),
        ({"model": "ann/LaMP_2M", "max_tokens": 4}, "unsupported_parameter", "labels"),
    ],
)
def test_what_has_no_scores_is_refused(
    world: World, changes: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        asked(world, **{"prompt": "Tea", **changes})
    assert caught.value.code == code
