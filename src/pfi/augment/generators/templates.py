"""Prompt templates: text files beside this module, whose ``{names}`` are filled with text.

Text of people goes in between tags, and can close none: a record stays data whatever it says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pfi.augment.drafts import Subject
from pfi.augment.teachers.teacher import Message
from pfi.records import History, Record
from pfi.tasks import Example, Task

#: Tokens of a field that a message shows; the rest of a longer text is cut off.
FIELD_TOKENS = 256
#: Ends a text that was cut off.
CUT = " […]"
_SECTION = re.compile(r"^== (\w+) ==\n", re.MULTILINE)
_TAGS = ("records", "record", "input", "output", "question", "summary")


@dataclass(frozen=True)
class Template:
    """A system message, a user message and what else the file holds.

    Attributes:
        id: name and short hash of all of its text; changes whenever a word does.
    """

    id: str
    system: str
    sections: Mapping[str, str]

    def messages(self, **values: str) -> tuple[Message, Message]:
        """The conversation, with the values in their places.

        Raises:
            KeyError: the template has a name that no value is given for.
        """
        user = fill(self.sections["user"], values)
        return Message("system", fill(self.system, values)), Message("user", user)

    def lines(self, section: str) -> list[str]:
        """The lines of a section that is a list."""
        return self.sections[section].splitlines()


@cache
def load_template(name: str) -> Template:
    """The template of that name; ``system.txt`` is a part of each."""
    folder = resources.files("pfi.augment.generators")
    system, own = ((folder / f"{part}.txt").read_text("utf-8") for part in ("system", name))
    short = hashlib.sha256(f"{system}\0{own}".encode()).hexdigest()[:6]
    parts = _SECTION.split(own)[1:]
    sections = {key: text.strip() for key, text in zip(parts[::2], parts[1::2], strict=True)}
    return Template(f"{name}-{short}", system.strip(), sections)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with values in place of names; braces in the values are left alone.

    Raises:
        KeyError: a name has no value.
    """
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


# Records in messages --------------------------------------------------------------------


def describe(task: Task) -> str:
    """What the task is and what its records are made of."""
    lines = [f"The task: {task.title}. A record has these fields:"]
    lines += [f"- {name} (input)" for name in task.inputs]
    if task.output:
        labels = f", one of: {', '.join(task.labels)}" if task.labels else ""
        lines.append(f"- {task.output} (output: what the person wrote or chose{labels})")
    asked = fill(task.question, {name: f"[{name}]" for name in _names(task.question)})
    lines.append(f"Later the small model is asked: {asked}")
    return "\n".join(lines)


def tag(task: Task, name: str, text: str) -> str:
    """A text between tags of that name, which nothing in the text can close."""
    name = _tag_name(name)
    return f"<{name}>{disarm(task, text)}</{name}>"


def disarm(task: Task, text: str) -> str:
    """The text with ``‹`` in place of the ``<`` of anything that looks like one of our tags."""
    fields = [*task.inputs, task.output, *_names(task.question)]
    names = "|".join(re.escape(_tag_name(name)) for name in (*_TAGS, *filter(None, fields)))
    return re.sub(rf"<(?=[\s/]*(?:{names})\b)", "‹", text, flags=re.IGNORECASE)


def show_records(subject: Subject, records: Sequence[Record]) -> str:
    """Records with their fields and output, one after the other."""
    return "\n".join(_block("record", show_record(subject, record)) for record in records)


def show_record(subject: Subject, record: Record) -> str:
    """The fields and the output of one record."""
    values = subject.task.values(record)
    names = [*subject.task.inputs, *([subject.task.output] if subject.task.output else [])]
    return _fields(subject, {name: values.get(name, "") for name in names})


def show_pairs(subject: Subject, records: Sequence[Record]) -> str:
    """Records as what would be asked and what the user gave for it.

    A record that asks nothing by itself is shown as it is.
    """
    blocks = []
    for record in records:
        rng = subject.rng("pair", record.id)
        found = subject.task.examples(History(subject.user, [record]), rng)
        if found:
            output = tag(subject.task, "output", _cut(subject, found[0].target))
            blocks.append(_block("record", f"{show_question(subject, found[0])}\n{output}"))
        else:
            blocks.append(_block("record", show_record(subject, record)))
    return "\n".join(blocks)


def show_question(subject: Subject, question: Example) -> str:
    """The input fields of a question."""
    fields = question.fields
    if subject.task.practice == "direct":
        fields = {name: fields.get(name, "") for name in subject.task.inputs}
    return _block("input", _fields(subject, fields))


def _fields(subject: Subject, values: Mapping[str, str]) -> str:
    shown = {name: _cut(subject, text) for name, text in values.items() if text}
    return "\n".join(tag(subject.task, name, text) for name, text in shown.items())


def _block(name: str, content: str) -> str:
    return f"<{name}>\n{content}\n</{name}>"


def _cut(subject: Subject, text: str) -> str:
    if len(text.encode()) <= FIELD_TOKENS:  # a token is a byte at least
        return text
    short = subject.trim(text, FIELD_TOKENS)
    return text if short == text else short.rstrip() + CUT


def _names(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def _tag_name(name: str) -> str:
    return re.sub(r"\W", "_", name)
