"""Forms: asking for JSON in words, and reading it out of what a teacher wrote.

Servers that take a schema may ignore it and small models wrap JSON in prose, so that the words
always go along and the answer is read leniently but held against the form strictly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from pfi.augment.teachers.teacher import Message, Unusable

_DECODER = json.JSONDecoder()


def merged(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with what the system says at the head of the first user message."""
    said = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    first = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    if first is None:
        return (Message("user", "\n\n".join(said)), *rest)
    rest[first] = Message("user", "\n\n".join([*said, rest[first].content]))
    return tuple(rest)


def read_answer(text: str, form: type[BaseModel] | None) -> str:
    """What a teacher's text comes to: itself, or the first JSON object of the form in it.

    Raises:
        Unusable: it is empty, or holds no whole object of the form.
    """
    text = text.encode("utf-8", "replace").decode().strip()  # halves of a surrogate pair
    if not text:
        raise Unusable("the answer is empty")
    return text if form is None else _read_form(text, form)


def _read_form(text: str, form: type[BaseModel]) -> str:
    wrong = "the answer holds no JSON object"
    begin = text.find("{")
    while begin >= 0:
        try:
            _, end = _DECODER.raw_decode(text, begin)
            return form.model_validate_json(text[begin:end]).model_dump_json(by_alias=True)
        except json.JSONDecodeError as error:
            if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
                # What stands inside of an object that is cut off must not pass for the answer.
                raise Unusable("the answer's JSON is cut off") from None
            end = begin + 1
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the object"
            wrong = f"the answer's JSON has the wrong form: {place}: {problem['msg']}"
        except RecursionError:
            raise Unusable("the answer's JSON is nested too deep") from None
        begin = text.find("{", end)
    raise Unusable(wrong)
