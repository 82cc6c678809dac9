"""Teachers: what the models that augment data have in common.

A call is a conversation whose answer is text or JSON of a given form.  Teachers that follow no
instructions, such as the embedded one, work from the material that the messages were written
from; it never leaves the device.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel

from pfi.errors import PfiError
from pfi.records import Record
from pfi.tasks import Example, Task

_ASK = "Answer with one JSON object of this JSON schema and with nothing else:\n"


class TeacherError(PfiError):
    """A teacher that cannot be reached, refuses, or is not set up; no call will succeed."""


class Unusable(Exception):
    """One call that was answered with nothing that can be used; others may succeed.

    Attributes:
        usage: what the answer cost all the same.
        passing: the server was in trouble; the same call may succeed later.
    """

    def __init__(self, reason: str, usage: Usage | None = None, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.usage = usage or Usage()
        self.passing = passing


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Material:
    """What a call's messages were written from.

    Attributes:
        purpose: ``answer`` a question as the user would, ``write`` new records, ``vary`` one
            record, or ``summarise`` the user.
        task: the task of all records.
        records: the user's records that the messages show.
        source: the record to vary.
        question: the question to answer.
        count: how many records to write.
        basis: ids of further records that something in the messages was made from.
    """

    purpose: Literal["answer", "write", "vary", "summarise"]
    task: Task
    records: tuple[Record, ...] = ()
    source: Record | None = None
    question: Example | None = None
    count: int = 1
    basis: tuple[str, ...] = ()

    @property
    def shows(self) -> tuple[str, ...]:
        """Ids of all the records that the messages tell something of."""
        source = () if self.source is None else (self.source.id,)
        return (*(record.id for record in self.records), *source, *self.basis)


@dataclass(frozen=True)
class Call:
    """One call of a teacher.

    Attributes:
        user: whose records it is about.
        messages: the conversation.
        material: what the messages were written from.
        form: the form of a JSON answer; plain text when None.
        max_tokens: longest answer.
        temperature: of the sampling; 0 is greedy.
        seed: of the sampling; calls that differ in it only are different votes.
    """

    user: str
    messages: tuple[Message, ...]
    material: Material | None = None
    form: type[BaseModel] | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer."""
        return None if self.form is None else self.form.model_json_schema()

    @property
    def worded(self) -> tuple[Message, ...]:
        """The messages; where there is a form, the system message asks for JSON of its schema.

        Servers that take a schema may ignore it, so the words always go along.
        """
        if self.form is None:
            return self.messages
        ask = _ASK + json.dumps(self.schema, ensure_ascii=False)
        first, *rest = self.messages
        if first.role == "system":
            return (Message("system", f"{first.content}\n\n{ask}"), *rest)
        return (Message("system", ask), *self.messages)

    def key(self, teacher: str) -> str:
        """sha256 over all that decides the answer of the teacher of that name."""
        messages = [[message.role, message.content] for message in self.messages]
        content = [teacher, messages, self.schema, self.max_tokens, self.temperature, self.seed]
        text = json.dumps(content, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Usage:
    """What calls cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
        )


@dataclass(frozen=True)
class Reply:
    """A teacher's answer; where the call has a form, ``text`` is JSON of that form."""

    text: str
    usage: Usage = field(default_factory=Usage)


class Teacher(Protocol):
    """A model that answers calls.

    Attributes:
        name: what tells it from all others: kind, model and version or host.
        host: who receives what it is sent; None where it is this process.
        batch: calls it takes at a time.
        concurrency: how many times ``answer`` may run at the same time, in threads.
    """

    name: str
    host: str | None
    batch: int
    concurrency: int

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """Answer up to ``batch`` calls, in order.

        Raises:
            TeacherError: no call will succeed: the teacher is away, or refuses the user.
        """
        ...

    def price(self, usage: Usage) -> Usage:
        """The usage with what it costs in US dollars."""
        ...


def is_here(host: str | None) -> bool:
    """Whether a teacher's host is this machine: a loopback address, or no host at all."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
