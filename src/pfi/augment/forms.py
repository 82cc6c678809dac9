"""Forms of the teacher's JSON answers, made for each task, and what is read from them.

Two forms: ``{"records": [{...}, ...]}`` with a task's fields and output, and ``{"answer": ...}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from pfi.tasks import Task

#: What a record holds: the input fields and the output.
Fields = tuple[dict[str, str], str]

# Servers that constrain answers want every key named and no other; a reader need not mind.
_CONFIG = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


def records_form(task: Task) -> type[BaseModel]:
    """The form of new records: all of the task's input fields, and its output if it has one.

    Its JSON schema allows only the task's labels as output, but reading takes any text, so that
    one wrong label does not cost the records beside it; the filters drop it.
    """
    return _records_form(tuple(task.inputs), task.output, tuple(task.labels))


def answer_form(task: Task) -> type[BaseModel]:
    """The form of one answer; where the task has labels, it must be one of them."""
    return _answer_form(tuple(task.labels))


def read_records(task: Task, text: str) -> list[Fields]:
    """The records in a reply, surrounding space removed.

    Raises:
        ValueError: the text is not JSON of the form.
    """
    records: Any = _read(records_form(task), text)
    made = []
    for record in records.records:
        values = {name: value.strip() for name, value in record.model_dump(by_alias=True).items()}
        output = values.pop(task.output, "") if task.output else ""
        made.append((values, output))
    return made


def read_answer(task: Task, text: str) -> str:
    """The answer in a reply, surrounding space removed.

    Raises:
        ValueError: the text is not JSON of the form, or the answer is no label or empty.
    """
    form: Any = _read(answer_form(task), text)
    return str(form.answer)


def write_records(task: Task, records: Sequence[Fields]) -> str:
    """JSON of ``records_form``, for teachers that make it from values."""
    output = [task.output] if task.output else []
    made = [{**inputs, **dict.fromkeys(output, answer)} for inputs, answer in records]
    return json.dumps({"records": made}, ensure_ascii=False)


def write_answer(answer: str) -> str:
    """JSON of ``answer_form``."""
    return json.dumps({"answer": answer}, ensure_ascii=False)


def sketch(task: Task, form: type[BaseModel]) -> str:
    """The form as a person would write it down, for prompts; it spells out only few labels."""
    value = " or ".join(map(_json, task.labels)) if 0 < len(task.labels) <= 6 else '"..."'
    if form is answer_form(task):
        return f'{{"answer": {value}}}'
    parts = [f'{_json(name)}: "..."' for name in task.inputs]
    if task.output:
        parts.append(f"{_json(task.output)}: {value}")
    return f'{{"records": [{{{", ".join(parts)}}}, ...]}}'


def as_label(value: object, labels: Sequence[str]) -> object:
    """The label that a value stands for (``4`` and ``" Comedy"`` do), or the value itself."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    text = str(value).strip()
    same = {label.casefold(): label for label in reversed(labels)}
    if text.casefold() in same:
        return same[text.casefold()]
    if isinstance(value, float) and value.is_integer():  # False for infinities
        return same.get(str(int(value)), text)
    return text


# The fields' own names are aliases: as attributes they could hide those of the model.


@lru_cache(maxsize=256)
def _records_form(inputs: tuple[str, ...], output: str, labels: tuple[str, ...]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        f"input_{i}": (_text(), Field(alias=name)) for i, name in enumerate(inputs)
    }
    if output:
        fields["output"] = (_label(labels) if labels else _text(), Field(alias=output))
    record: Any = create_model("NewRecord", __config__=_CONFIG, **fields)
    return create_model("NewRecords", __config__=_CONFIG, records=(list[record], ...))


@lru_cache(maxsize=256)
def _answer_form(labels: tuple[str, ...]) -> type[BaseModel]:
    def check(answer: str) -> str:
        if not answer or (labels and answer not in labels):
            raise ValueError(f"not one of {list(labels)}" if labels else "empty")
        return answer

    kind: Any = Annotated[_label(labels) if labels else _text(), AfterValidator(check)]
    return create_model("Answer", __config__=_CONFIG, answer=(kind, ...))


def _label(labels: Sequence[str]) -> Any:
    schema = {"type": "string", "enum": list(labels)}
    return Annotated[
        str, BeforeValidator(lambda value: as_label(value, labels)), WithJsonSchema(schema)
    ]


def _text() -> Any:
    return Annotated[str, AfterValidator(str.strip)]


def _read(form: type[BaseModel], text: str) -> BaseModel:
    try:
        return form.model_validate_json(text)
    except ValidationError as error:  # its own text quotes the whole input
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        at = f" at {where}" if where else ""
        raise ValueError(f"not JSON of the form{at}: {first['msg']}") from error


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
