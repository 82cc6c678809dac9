"""Answering: the backbone with the task's adapters, helped by retrieved records.

One `Runtime` serves one device; it keeps the backbone loaded between questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from pfi.data.records import Record
from pfi.device.home import Home
from pfi.errors import BackboneError, ConfigError
from pfi.tasks import Task, get_task

if TYPE_CHECKING:
    from pfi.learn import Adapter
    from pfi.memory import Memory
    from pfi.models import Backbone

FALLBACK_TASK = "instruction"
# Fewer tokens than this hold no record worth reading.
_LEAST_TOKENS = 24
# More than any label is long.
_LABEL_TOKENS = 16


@dataclass(frozen=True)
class Prepared:
    """A question made ready, and what its answer rests on.

    Attributes:
        task: the task it is asked as.
        prompt: what the model reads, retrieved records included.
        records: the retrieved records, best first.
        personal: version of the personal adapter, or None.
        shared: version of the shared adapter, or None.
    """

    task: Task
    prompt: str
    records: tuple[Record, ...]
    personal: str | None
    shared: str | None


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on."""

    text: str
    why: Prepared


@dataclass
class Runtime:
    """What answers on one device.

    Attributes:
        home: the device.
        backbone: the frozen one, loaded on first use when not given.
    """

    home: Home
    backbone: Backbone | None = None
    _merged: tuple[tuple[str, str | None, str | None], Backbone] | None = None
    _memories: dict[str, Memory] = field(default_factory=dict)

    @cached_property
    def _plain(self) -> Backbone:
        from pfi.models import load_backbone

        return self.backbone or load_backbone(self.home.config.backbone)

    def versions(self, task: Task) -> tuple[str | None, str | None]:
        """The personal and the shared adapter in use for a task, by version.

        A personal adapter brings the shared one that it was trained on.

        Raises:
            BackboneError: the personal adapter was trained on another backbone.
            StorageError: its manifest is damaged.
        """
        personal = self.home.personal_adapters.active(task.name)
        if personal is None:
            return None, self.home.shared_adapters.active(task.name)
        manifest = self.home.personal_adapters.manifest(personal)
        if manifest.backbone != self.home.config.backbone:
            raise BackboneError(
                f"adapter {personal} was trained on backbone {manifest.backbone!r}, "
                f"this profile uses {self.home.config.backbone!r}",
                where=f"task {task.name}",
                fix=f"run `pfi train --task {task.name}`, or `pfi adapters use none "
                f"--task {task.name}`",
            )
        return personal, manifest.shared

    def model(self, task: Task) -> Backbone:
        """The backbone with the task's adapters merged in, the shared one first."""
        personal, shared = self.versions(task)
        key = (task.name, personal, shared)
        if self._merged is None or self._merged[0] != key:
            self._merged = None  # lets go of the last one before the next is made
            adapters: list[Adapter] = []
            if shared is not None:
                adapters.append(self.home.shared_adapters.load(shared))
            if personal is not None:
                adapters.append(self.home.personal_adapters.load(personal))
            self._merged = key, self._plain.with_adapters(adapters)
        return self._merged[1]

    def memory(self, task: Task) -> Memory:
        """The index over the device's real records of a task."""
        from pfi.memory import Memory

        if task.name not in self._memories:
            with self.home.open_vault() as vault:
                self._memories[task.name] = Memory(task, vault.history(task.name, origin="real"))
        return self._memories[task.name]

    def prepare(
        self,
        text: str,
        task: Task,
        *,
        k: int | None = None,
        fields: Mapping[str, str] | None = None,
        before: datetime | None = None,
    ) -> Prepared:
        """Make a question ready.

        Args:
            text: the task's main input field.
            task: what it is asked as.
            k: how many records to retrieve; the profile's setting when None.
            fields: the other input fields, of a task whose question has several.
            before: retrieve only records older than this.

        Raises:
            ConfigError: an input field is missing, or there is no text.
        """
        values = question_fields(task, text, fields or {})
        personal, shared = self.versions(task)
        prompt = task.prompt(values)
        k = self.home.config.records if k is None else k
        records = self.memory(task).search(task.query_text(values), k, before=before) if k else []
        prompt, records = self._with_records(task, prompt, records)
        return Prepared(task, prompt, tuple(records), personal, shared)

    def _with_records(
        self, task: Task, prompt: str, records: list[Record]
    ) -> tuple[str, list[Record]]:
        """The prompt with as many of the records as fit; a prompt too long loses its end."""
        if not records:
            return prompt, []
        backbone = self._plain
        answer = task.max_new_tokens if task.kind == "text" else _LABEL_TOKENS
        limit = backbone.max_length - answer
        room = limit - len(backbone.prompt_ids(prompt))
        budget = min(self.home.config.record_tokens, room)
        while records and budget >= _LEAST_TOKENS:
            filled = task.retrieval_prompt(prompt, records, backbone.trim, budget)
            # prompt_ids cuts at its limit, so ask for more than could be too long.
            if len(backbone.prompt_ids(filled, 2 * backbone.max_length)) <= limit:
                return filled, records
            records = records[:-1]
        return prompt, []

    def answer(self, prepared: Prepared) -> Answer:
        """Answer in one piece."""
        from pfi.models import answer

        texts = answer(self.model(prepared.task), prepared.task, [prepared.prompt])
        return Answer(prepared.task.parse(texts[0]), prepared)

    def stream(self, prepared: Prepared) -> Iterator[str]:
        """The answer piece by piece; a label comes in one."""
        from pfi.models import stream

        task = prepared.task
        if task.kind == "text":
            yield from stream(self.model(task), prepared.prompt, task.max_new_tokens)
        else:
            yield self.answer(prepared).text


def ask(home: Home, text: str, task: Task | None = None, k: int | None = None) -> Answer:
    """Answer one question on a device; see `Runtime` for several.

    Args:
        home: the device.
        text: the question, or the task's main input field.
        task: what it is asked as; see `pick_task` when None.
        k: how many records to retrieve; the profile's setting when None.
    """
    runtime = Runtime(home)
    return runtime.answer(runtime.prepare(text, task or pick_task(home), k=k))


def pick_task(home: Home, name: str | None = None) -> Task:
    """The named task; else the profile's, the one with most records, or plain instruction.

    Raises:
        ConfigError: there is no such task.
    """
    if name or home.config.task:
        return get_task(name or home.config.task or "")
    with home.open_vault() as vault:
        return get_task(next(iter(vault.tasks()), FALLBACK_TASK))


def question_fields(task: Task, text: str, others: Mapping[str, str]) -> dict[str, str]:
    """The input fields of a question: `text` is the first one that `others` does not give.

    Raises:
        ConfigError: fields are missing or unknown, or there is no text.
    """
    names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", task.question)))
    names = [name for name in names if name != "labels"]
    if unknown := [name for name in others if name not in names]:
        fix = f"its fields are {', '.join(names)}"
        raise ConfigError(f"task {task.name} has no field {unknown[0]!r}", fix=fix)
    free = [name for name in names if name not in others]
    if len(free) > 1:
        flags = " ".join(f"--field {name}=TEXT" for name in free[1:])
        what = f"task {task.name} asks about several fields: {', '.join(names)}"
        raise ConfigError(what, fix=f"the text is {free[0]!r}; add {flags}")
    if not text.strip():
        raise ConfigError("the question is empty", fix="give some text")
    return {**dict.fromkeys(free, text), **others}
