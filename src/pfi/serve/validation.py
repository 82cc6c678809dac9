"""Request bodies: read as JSON whatever their content type says, and refused in plain words.

What was sent is not repeated in a refusal: it is private text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from pfi.serve.errors import ApiError

_JSON = b"application/json"
#: Codes of the OpenAI API by the kind of pydantic's error.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "greater_than_equal": "below_min_value",
    "greater_than": "below_min_value",
    "less_than_equal": "above_max_value",
    "less_than": "above_max_value",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
}
_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


class JsonRoute(APIRoute):
    """A route whose body is JSON: `curl -d` sends it as a form, others without a type."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            if request.method == "POST":
                headers = [one for one in request.scope["headers"] if one[0] != b"content-type"]
                request.scope["headers"] = [*headers, (b"content-type", _JSON)]
                request = Request(request.scope, request.receive)
            return await handle(request)

        return read


def from_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """What pydantic found wrong with a body, in the words of the OpenAI API.

    Args:
        errors: as `RequestValidationError.errors` has them.
        body: what was sent.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        return ApiError(400, "The body is no JSON: it cannot be parsed.", code="invalid_json")
    # Of the alternatives of a union the one that was gone into deepest is what was meant.
    kept = [(_place(error["loc"], body), error) for error in errors]
    place, error = max(kept, key=lambda one: len(one[0]))
    same = [other for at, other in kept if at == place]
    # An alternative whose type was right is what was meant, too.
    error = next((other for other in same if other["type"] not in _KINDS), error)
    if not place:
        if body is None or error["type"] == "missing":
            return ApiError(400, "The body is empty; send a JSON object.", code="invalid_json")
        return ApiError(400, _own(error) or "The body must be a JSON object.", code="invalid_json")
    param, kind = spelt(place), str(error["type"])
    if kind == "missing":
        what = f"Missing required parameter: '{param}'."
    elif kind == "extra_forbidden":
        what = f"Unknown parameter: '{param}'."
    elif kind in _KINDS:
        names = dict.fromkeys(_KINDS[one["type"]] for one in same if one["type"] in _KINDS)
        what = f"{param}: must be {' or '.join(names)}"
        return ApiError(400, what, param=param, code="invalid_type")
    else:
        what = f"{param}: {_own(error) or _lower(str(error['msg']))}"
    code = _CODES.get(kind, "invalid_value")
    if code.endswith("_value") and code != "invalid_value":
        code = f"{'integer' if isinstance(error.get('input'), int) else 'decimal'}_{code}"
    return ApiError(400, what, param=param, code=code)


def spelt(place: Sequence[str | int]) -> str:
    """A place in a body as the OpenAI API spells it: ``messages[0].content``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _place(location: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """The parts of a location that are in the body; pydantic names types among them."""
    place: list[str | int] = []
    at = body
    parts = [part for part in location if part != "body"]
    for number, part in enumerate(parts):
        if isinstance(part, int):
            inside = isinstance(at, list) and part < len(at)
        else:
            inside = isinstance(at, dict) and part in at
            if isinstance(at, dict) and not inside and number == len(parts) - 1:
                place.append(part)  # what is missing
        if inside:
            place.append(part)
            at = at[part]
    return tuple(place)


def _own(error: Mapping[str, Any]) -> str:
    """The message of a check of our own; empty for pydantic's."""
    cause = (error.get("ctx") or {}).get("error")
    return str(cause) if isinstance(cause, ValueError) else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
