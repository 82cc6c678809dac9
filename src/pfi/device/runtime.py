"""Answering: the backbone with the task's adapters, helped by retrieved records.

One `Runtime` serves one device; it keeps the backbone loaded between questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from pfi.data.records import Record
from pfi.device.home import Home, search_config
from pfi.errors import BackboneError, ConfigError
from pfi.tasks import Task, get_task

if TYPE_CHECKING:
    from pfi.learn import Adapter
    from pfi.memory import Memory, MemoryStore
    from pfi.models import Backbone

FALLBACK_TASK = "instruction"
# Fewer tokens than this hold no record worth reading.
_LEAST_TOKENS = 24
# More than any label is long.
_LABEL_TOKENS = 16
# Merged models that are kept: the shared adapter's alone, where the gate asks how sure it is,
# beside the one at the last weight.
_KEPT = 2


@dataclass(frozen=True)
class Prepared:
    """A question made ready, and what its answer rests on.

    Attributes:
        task: the task it is asked as.
        prompt: what the model reads, retrieved records included.
        records: the retrieved records, best first.
        personal: version of the personal adapter, or None.
        shared: version of the shared adapter, or None.
        weight: of the personal adapter, in [0, 1]; 0 without one.
        gate: what the gate said, in a few words.
    """

    task: Task
    prompt: str
    records: tuple[Record, ...]
    personal: str | None
    shared: str | None
    weight: float = 0.0
    gate: str = ""


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
        on_index: told how far the memory has come with new records, where there are some.
    """

    home: Home
    backbone: Backbone | None = None
    on_index: Callable[[int, int], None] | None = None
    # By weight of the personal adapter, for one task and its versions.
    _merged: tuple[tuple[str, str | None, str | None], dict[float, Backbone]] | None = None
    _store: MemoryStore | None = None
    _state: str = ""  # of the vault that the memories know
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

    def model(self, task: Task, weight: float = 1.0) -> Backbone:
        """The backbone with the task's adapters merged in, the shared one first.

        Args:
            task: whose adapters.
            weight: of the personal one; with 0 only the shared one is merged in.
        """
        personal, shared = self.versions(task)
        key = (task.name, personal, shared)
        weight = weight if personal else 0.0
        if self._merged is None or self._merged[0] != key:
            self._merged = key, {}  # lets go of the last ones before the next is made
        models = self._merged[1]
        if weight not in models:
            while len(models) >= _KEPT:
                del models[next(iter(models))]
            adapters: list[Adapter] = []
            if shared is not None:
                adapters.append(self.home.shared_adapters.load(shared))
            if personal is not None and weight:
                adapters.append(self.home.personal_adapters.load(personal).scaled(weight))
            models[weight] = self._plain.with_adapters(adapters)
        models[weight] = models.pop(weight)  # the last used one goes last
        return models[weight]

    def memory(self, task: Task) -> Memory:
        """The index over the device's real records of a task, as they are now.

        Raises:
            ConfigError: the profile's search settings make no sense.
            StorageError: the vault or the memory cannot be used.
        """
        from pfi.device.memory import open_memory, sync_memory

        if self._store is None:
            self._store = open_memory(self.home, on_progress=self.on_index)
        state = sync_memory(self.home, self._store, on_progress=self.on_index)
        if state != self._state:
            self._memories.clear()
            self._state = state
        if task.name not in self._memories:
            with self.home.open_vault() as vault:
                history = vault.history(task.name, origin="real")
            config = search_config(self.home)
            self._memories[task.name] = self._store.memory(task, history, config)
        return self._memories[task.name]

    def close(self) -> None:
        """Close the memory's file; it is opened again when needed."""
        if self._store is not None:
            self._store.close()
            self._store, self._state = None, ""

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
            k: how many records to retrieve; as the gate says, or the profile, when None.
            fields: the other input fields, of a task whose question has several.
            before: retrieve only records older than this.

        Raises:
            ConfigError: an input field is missing, or there is no text.
            StorageError: a file of the device is damaged.
        """
        values = question_fields(task, text, fields or {})
        personal, shared = self.versions(task)
        prompt = task.prompt(values)
        query = task.query_text(values)
        weight, wanted, said = self._gated(task, prompt, query, before)
        k = wanted if k is None else k
        records = self.memory(task).search(query, k, before=before) if k else []
        if records:
            budget = self.home.config.record_tokens
            prompt, records = with_records(self._plain, task, prompt, records, budget)
        return Prepared(task, prompt, tuple(records), personal, shared, weight, said)

    def _gated(
        self, task: Task, prompt: str, query: str, before: datetime | None
    ) -> tuple[float, int, str]:
        """The personal adapter's weight, the number of records, and what the gate said."""
        from pfi.device.gate import describe, read_gate

        personal, shared = self.versions(task)
        whole = (1.0 if personal else 0.0), self.home.config.records
        fitted = read_gate(self.home).get(task.name)
        if fitted is None:
            return *whole, "not fitted, so the profile's settings count"
        if not fitted.counts(self.home, personal, shared):
            return *whole, f"fitted with {fitted.made_with}, so the profile's settings count"
        from pfi.memory.trials import confidences, likeness

        choice, said = fitted.choice, describe(fitted.choice)
        if choice.if_unsure:
            found = float(confidences(task, self.model(task, 0.0), [prompt], None)[0])
            level = f"{found:.2f}, and {fitted.sure:.2f} is enough"
            if found >= fitted.sure:
                return 0.0, 0, f"the answer without them is sure ({level})"
            said = f"{said} ({level})"
        if choice.by_likeness:
            alike = likeness(self.memory(task), query, before=before)
            said = f"{said}; likeness {alike:.2f}"
            return choice.weight_at(alike), choice.k, said
        return choice.weight, choice.k, said

    def answer(self, prepared: Prepared) -> Answer:
        """Answer in one piece."""
        from pfi.models import answer

        task = prepared.task
        texts = answer(self.model(task, prepared.weight), task, [prepared.prompt])
        return Answer(task.parse(texts[0]), prepared)

    def stream(self, prepared: Prepared) -> Iterator[str]:
        """The answer piece by piece; a label comes in one."""
        from pfi.models import stream

        task = prepared.task
        if task.kind == "text":
            model = self.model(task, prepared.weight)
            yield from stream(model, prepared.prompt, task.max_new_tokens)
        else:
            yield self.answer(prepared).text


def ask(home: Home, text: str, task: Task | None = None, k: int | None = None) -> Answer:
    """Answer one question on a device; see `Runtime` for several.

    Args:
        home: the device.
        text: the question, or the task's main input field.
        task: what it is asked as; see `pick_task` when None.
        k: how many records to retrieve; as the gate says, or the profile, when None.
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


def with_records(
    backbone: Backbone, task: Task, prompt: str, records: list[Record], budget: int
) -> tuple[str, list[Record]]:
    """The prompt with as many of the records as fit, and these; ``budget`` tokens at most.

    A prompt that is too long by itself goes without them.
    """
    answer = task.max_new_tokens if task.kind == "text" else _LABEL_TOKENS
    limit = backbone.max_length - answer
    budget = min(budget, limit - len(backbone.prompt_ids(prompt)))
    while records and budget >= _LEAST_TOKENS:
        filled = task.retrieval_prompt(prompt, records, backbone.trim, budget)
        # prompt_ids cuts at its limit, so ask for more than could be too long.
        if len(backbone.prompt_ids(filled, 2 * backbone.max_length)) <= limit:
            return filled, records
        records = records[:-1]
    return prompt, []


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
