"""Answers that are JSON by a schema: in both engines, in bounds, and refused where they must be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serve_world import World, make_homes, prompter, serving

from pfi.errors import ConfigError
from pfi.inference.constraints import compile_grammar
from pfi.inference.engine import Engine, Request, Sampling, text_of
from pfi.serve.errors import ApiError
from pfi.serve.structured import MOST_CHARACTERS, MOST_LEVELS, json_rule, response_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}


@pytest.fixture(scope="module", params=["torch", "llama.cpp"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pfi.profile.answer.engines import EngineChoice, make_engine
    from pfi.profile.config import HomeConfig

    choice = EngineChoice.of(HomeConfig(), request.param)
    made: Any = make_engine(choice, tmp_path_factory.mktemp("models"), rows=2)
    yield made
    made.close()


def grammar_text(schema: dict[str, Any]) -> str:
    return f"%llguidance {{}}\nstart: {json_rule(schema, 'response_format')}\n"


def fits(schema: dict[str, Any], text: str) -> bool:
    """Whether a text is a whole answer by a schema's grammar."""
    matcher = compile_grammar(prompter(), grammar_text(schema)).begin()
    size = len(prompter().tokenizer)
    for token in prompter().token_ids(text):
        if not matcher.allowed(size)[token]:
            return False
        matcher.add(token)
    return bool(matcher.allowed(size)[prompter().end_id])


# Engines ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_answers_fit_the_schema_and_end_by_themselves(engine: Engine, temperature: float) -> None:
    grammar = compile_grammar(engine.prompter, grammar_text(PERSON))
    ids = engine.prompter.prompt_ids("Who are you?")
    for seed in range(2):
        sampling = Sampling(100, temperature, seed=seed, grammar=grammar)
        pieces = list(engine.generate(Request(ids, sampling=sampling, owner="ann")))
        found = json.loads("".join(piece.text for piece in pieces))
        assert set(found) == {"name", "age", "tags"} and pieces[-1].finish == "stop"
        assert len(found["name"]) <= 12 and 0 <= found["age"] <= 150
        assert set(found["tags"]) <= {"a", "b"} and len(found["tags"]) <= 2


def test_answers_side_by_side_are_held_each_to_its_own(engine: Engine) -> None:
    grammar = compile_grammar(engine.prompter, grammar_text({"enum": ["yes", "no"]}))
    ids = engine.prompter.prompt_ids("Well?")
    held = Request(ids, sampling=Sampling(20, grammar=grammar))
    free = Request(ids, sampling=Sampling(8))
    alone = text_of(engine.generate(free))
    one, other, both = map(text_of, engine.generate_all([held, free, held]))
    assert json.loads(one) in ("yes", "no") and one == both and other == alone


def test_a_cut_answer_says_so(engine: Engine) -> None:
    grammar = compile_grammar(engine.prompter, grammar_text({"type": "string", "minLength": 500}))
    ids = engine.prompter.prompt_ids("Well?")
    last = list(engine.generate(Request(ids, sampling=Sampling(5, grammar=grammar))))[-1]
    assert last.finish == "length"


def test_biases_and_the_likeliest_tokens(engine: Engine) -> None:
    ids = engine.prompter.prompt_ids("Well?")
    (piece, *_) = engine.generate(Request(ids, sampling=Sampling(1, top_logprobs=3)))
    ((first, level), second, _) = piece.top[0]
    assert piece.ids == (first,) and piece.logprobs[0] == pytest.approx(level, abs=1e-3)
    assert level >= second[1]
    sampling = Sampling(1, logit_bias=((first, -100.0),), top_logprobs=1)
    (piece, *_) = engine.generate(Request(ids, sampling=sampling))
    assert piece.ids == (second[0],)
    assert piece.top[0][0][0] == first, "log-probabilities are the model's own"


def test_what_is_too_complex_at_an_answers_time_ends_that_answer_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = compile_grammar(engine.prompter, grammar_text(PERSON))
    matcher = grammar.begin()

    def fails(size: int) -> Any:
        raise ConfigError("it is too complex")

    monkeypatch.setattr(matcher, "allowed", fails)
    monkeypatch.setattr(type(grammar), "begin", lambda self: matcher)
    ids = engine.prompter.prompt_ids("Well?")
    with pytest.raises(ConfigError, match="too complex"):
        text_of(engine.generate(Request(ids, sampling=Sampling(20, grammar=grammar))))
    assert text_of(engine.generate(Request(ids, sampling=Sampling(4))))


# Schemas ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object"}, '{"any": [1, null]}', "[1]"),
        (PERSON, '{"name": "Ann", "age": 3, "tags": []}', '{"name": "Ann"}'),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "[1, 2]", "[]"),
        ({"anyOf": [{"type": "null"}, {"const": 5}]}, "null", "6"),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, '"b"', '"c"'),
        ({"type": ["string", "null"]}, "null", "1"),
        ({"type": "string", "pattern": "^[a-c]{2}$"}, '"ab"', '"ad"'),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"tomorrow"'),
        ({"type": "string", "format": "made-up"}, '"any"', "1"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {
            "next": {"$ref": "#/$defs/n"}}}}}, '{"next": {"next": {}}}', '{"other": 1}'),
        ({"type": "object", "properties": {"a": {"type": "null"}},
          "additionalProperties": {"type": "integer"}}, '{"b": 1}', '{"b": "x"}'),
        ({"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
         '{"a": null, "b": null}', '{"a": null}'),
        ({"type": "object", "properties": {"a": {"type": "null"}},
          "unevaluatedProperties": False}, '{"a": null}', '{"b": 1}'),
        ({"type": "string", "x-guidance": {"whitespace_flexible": True}}, '"a"', ' "a"'),
    ],
)  # fmt: skip
def test_a_grammar_is_the_schemas(schema: dict[str, Any], good: str, bad: str) -> None:
    assert fits(schema, good) and not fits(schema, bad)


def test_schemas_are_narrowed_where_answers_stay_valid() -> None:
    named = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert fits(named, '{"a": null}') and not fits(named, '{"a": null, "more": 1}')
    assert fits({**named, "additionalProperties": True}, '{"a": null, "more": 1}')
    assert fits({"type": "integer"}, str(2**53 - 1)) and not fits({"type": "integer"}, "9" * 30)
    a, b = ({"properties": {name: {"type": "null"}}, "required": [name]} for name in "ab")
    both = {"type": "object", "anyOf": [a, b], "properties": {"a": {"type": "null"}}}
    assert fits(both, '{"a": null, "b": null}'), "alternatives of one object are not closed apart"


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(MOST_LEVELS + 5):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"enum": ["x" * MOST_CHARACTERS]}, "characters"),
        (DEEP, "levels"),
        ({"type": "string", "pattern": "a" * 2000}, "pattern"),
        ({"type": "blah"}, "Invalid type"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "not present"),
        ({"$ref": "file:///etc/passwd"}, "not present"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "nsatisfiable"),
        ({"properties": {"a": 5}}, "object, true or false"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_at_once(schema: dict[str, Any], said: str) -> None:
    compile_grammar(prompter(), grammar_text({"type": "null"}))  # the tokenizer is made once
    begun = time.thread_time()
    with pytest.raises((ApiError, ConfigError)) as caught:
        compile_grammar(prompter(), grammar_text(schema))
    fix = getattr(caught.value, "fix", "") or ""
    assert said in f"{caught.value} {fix}"
    assert time.thread_time() - begun < 2, "of this thread alone; it takes 0.3 s"


@pytest.mark.parametrize(
    "pattern",
    ["^(a|b)*a(a|b){900}$", "^(a+)+$", "(x{1,200}y{1,200}){1,200}", "(.*a){20}b",
     "(\\\\w{1,50} ){1,50}\\\\d", "((a{1,30}){1,30}){1,30}"],
)  # fmt: skip
def test_patterns_that_would_blow_up_elsewhere_cost_little_a_token(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    matcher = compile_grammar(prompter(), grammar_text(schema)).begin()
    size, slowest = len(prompter().tokenizer), 0.0
    for _ in range(60):
        begun = time.thread_time()
        allowed = matcher.allowed(size)
        slowest = max(slowest, time.thread_time() - begun)
        if matcher.ended:
            break
        matcher.add(int(allowed.nonzero()[0][-1]))
    assert slowest < 0.5


def test_a_pattern_that_grows_beyond_its_bounds_ends_in_an_error() -> None:
    schema = {"type": "string", "pattern": "^((((a{100}){100}){100}){100})$"}
    begun = time.thread_time()
    with pytest.raises(ConfigError, match="simpler"):
        matcher = compile_grammar(prompter(), grammar_text(schema)).begin()
        for _ in range(200):  # at the latest in one of the answer's tokens
            allowed = matcher.allowed(len(prompter().tokenizer))
            matcher.add(int(allowed.nonzero()[0][-1]))
    assert time.thread_time() - begun < 10


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}},
         "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format"),
        ({"type": "yaml"}, "response_format.type"),
        ({}, "response_format.type"),
    ],
)  # fmt: skip
def test_forms_that_are_none_are_refused(form: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        response_grammar(form, "response_format")
    assert (caught.value.status, caught.value.param) == (400, param)


# Over the API -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(make_homes(tmp_path_factory.mktemp("homes"), ["ann"]), None) as world:
        yield world


def test_the_official_client_parses_what_it_asked_for(world: World) -> None:
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=20)
        age: int = Field(ge=0, le=150)
        fond_of: list[str] | None = Field(default=None, max_length=2)

    client = world.client("ann", timeout=60)
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "Who is Ann?"}]}
    for model in ("ann", "generic"):
        reply = client.chat.completions.parse(model=model, response_format=Person, **ask)
        assert isinstance(reply.choices[0].message.parsed, Person)
    with client.chat.completions.stream(model="ann", response_format=Person, **ask) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)
    form: Any = {"type": "json_object"}
    reply = client.chat.completions.create(model="ann", response_format=form, max_tokens=30, **ask)
    text = reply.choices[0].message.content
    assert text.startswith("{")
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_is_refused_names_itself(world: World) -> None:
    import openai

    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "blah"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type") as caught:
        world.client("ann").chat.completions.create(
            model="ann", messages=[{"role": "user", "content": "x"}], response_format=form
        )
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_json_schema")
    with pytest.raises(openai.BadRequestError, match="labels"):
        world.client("ann").chat.completions.create(
            model="ann/LaMP_3",
            messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_object"},
        )


def test_the_chosen_token_is_among_the_likeliest(world: World) -> None:
    reply = world.client("ann", timeout=60).chat.completions.create(
        model="generic",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=5,
    )
    for token in reply.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 5
        assert token.token == token.top_logprobs[0].token
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token
    assert "".join(t.token for t in reply.choices[0].logprobs.content).strip() == (
        reply.choices[0].message.content.strip()
    )
