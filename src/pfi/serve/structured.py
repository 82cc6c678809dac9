"""JSON schemas as grammars: what is taken, in which bounds, and what is refused by name.

A schema is narrowed where that keeps every answer valid and helps a small model to come to an
end: JSON is written in one line, objects that name their properties get no others unless the
schema says so, and whole numbers without bounds stay those that every reader of JSON holds
exactly (RFC 7493, 2.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pfi.inference.constraints import JSON_STYLE
from pfi.serve.errors import ApiError

#: Bounds of one schema: characters as JSON, and levels.
MOST_CHARACTERS, MOST_LEVELS = 1 << 16, 40
_MOST_PATTERN = 1000
_EXACT = 2**53 - 1
#: Formats that are held to; others are annotations (JSON Schema 2020-12, 7.2.1).
_FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "uuid"),
        *("email", "hostname", "ipv4", "ipv6", "uri", "unknown"),
    }
)
#: Keywords whose values are schemas by name, lists of schemas, and schemas.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")


def json_rule(schema: Mapping[str, Any], param: str) -> str:
    """A schema as the right-hand side of a rule in llguidance's Lark.

    Args:
        schema: the JSON schema.
        param: the request's field that has it, for errors.

    Raises:
        ApiError: 400, it is too large, too deep, or no schema.
    """
    text = json.dumps(schema)
    if len(text) > MOST_CHARACTERS:
        what = f"{param}: the schema has {len(text)} characters, and {MOST_CHARACTERS} are taken"
        raise invalid_schema(param, what)
    narrowed = _narrowed(schema, param, 0, False)
    if not isinstance(narrowed, dict):
        narrowed = {} if narrowed else {"type": "string", "enum": []}
    return f"%json {json.dumps({**narrowed, 'x-guidance': JSON_STYLE})}"


def response_grammar(form: Mapping[str, Any] | None, param: str) -> str | None:
    """The rule of what a ``response_format`` asks for; None where any text will do.

    Args:
        form: ``{"type": "text" | "json_object" | "json_schema", ...}``.
        param: its name in the request.

    Raises:
        ApiError: 400, there is no such form, or its schema is refused.
    """
    if form is None:
        return None
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        # LM Studio, Together and older llama.cpp put a schema here.
        return json_rule(form.get("schema") or {"type": "object"}, param)
    if kind == "json_schema":
        inner = form.get("json_schema", form)
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if schema is None:
            where = f"{param}.json_schema.schema"
            what = f"Missing required parameter: '{where}'."
            raise ApiError(400, what, param=where, code="missing_required_parameter")
        if not isinstance(schema, dict):
            raise invalid_schema(param, f"{param}: the schema must be an object")
        return json_rule(schema, param)
    what = f"{param}.type: use text, json_object or json_schema"
    raise ApiError(400, what, param=f"{param}.type", code="invalid_value")


def invalid_schema(param: str, what: str) -> ApiError:
    """A schema that is refused."""
    return ApiError(400, what, param=param, code="invalid_json_schema")


def _narrowed(schema: Any, param: str, level: int, open_ended: bool) -> Any:
    """A schema without what only annotates, and closed where that is safe.

    Args:
        schema: or a part of it.
        param: for errors.
        level: how deep the part lies.
        open_ended: whether other schemas count for the same value, so that it must not be closed.
    """
    if level > MOST_LEVELS:
        what = f"{param}: the schema has more than {MOST_LEVELS} levels"
        raise invalid_schema(param, what)
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise invalid_schema(param, f"{param}: a schema is an object, true or false")
    made = {name: value for name, value in schema.items() if name != "x-guidance"}
    for name in _BY_NAME:
        if isinstance(made.get(name), dict):
            made[name] = {
                key: _narrowed(value, param, level + 1, False) for key, value in made[name].items()
            }
    for name in _LISTS:
        if isinstance(made.get(name), list):
            both = open_ended or name == "allOf" or "properties" in made
            made[name] = [_narrowed(value, param, level + 1, both) for value in made[name]]
    for name in _ONE:
        if isinstance(made.get(name), dict):
            made[name] = _narrowed(made[name], param, level + 1, False)
    if isinstance(made.get("format"), str) and made["format"] not in _FORMATS:
        del made["format"]
    if len(str(made.get("pattern", ""))) > _MOST_PATTERN:
        what = f"{param}: a pattern has more than {_MOST_PATTERN} characters"
        raise invalid_schema(param, what)
    if made.get("unevaluatedProperties") is False and "additionalProperties" not in made:
        del made["unevaluatedProperties"]
        made["additionalProperties"] = False
    _close(made, open_ended)
    return made


def _close(made: dict[str, Any], open_ended: bool) -> None:
    """Leave out what a schema allows without naming it."""
    combined = open_ended or any(name in made for name in (*_LISTS[:3], "$ref"))
    named = made.get("properties")
    if (
        isinstance(named, dict)
        and not combined
        and not {"additionalProperties", "patternProperties", "minProperties"} & made.keys()
        and set(made.get("required") or []) <= named.keys()
    ):
        made["additionalProperties"] = False
    bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const"}
    if made.get("type") == "integer" and not combined and not bounds & made.keys():
        made["minimum"], made["maximum"] = -_EXACT, _EXACT
