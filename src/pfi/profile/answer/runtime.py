"""Answering: the backbone with the task's adapters, helped by retrieved records.

One `Runtime` serves one device; the engine that decodes may serve others beside it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.errors import BackboneError, ConfigError
from pfi.gate.trials import confidences
from pfi.inference.answering import Part, answers, combined, sampling_of
from pfi.inference.engine import AdapterRef, Engine, OnePiece, Request, Sampling, Stream
from pfi.memory.index import Memory
from pfi.memory.matching import matching
from pfi.memory.off_topic import Likeness, likeness
from pfi.memory.prompts import Retrieval, answer_room
from pfi.memory.store import MemoryStore
from pfi.memory.summary import summarise
from pfi.models.catalogue import backbone_fingerprint
from pfi.models.prompter import Turn
from pfi.profile.answer.floors import task_floor
from pfi.profile.answer.memory import open_memory, sync_memory, task_memory
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.answer.sampling import conversation_sampling
from pfi.profile.home import Home
from pfi.records import Record
from pfi.tasks import Task, get_task

FALLBACK_TASK = "instruction"
#: The task of what is written as the user would write it.
WRITE_TASK = "write"


@dataclass(frozen=True)
class Prepared:
    """A question made ready, and what its answer rests on.

    Attributes:
        task: the task it is asked as.
        prompt: what the model reads, retrieved records included.
        ids: the same with the turns before it, as tokens.
        adapter: what answers over the backbone; None for nothing.
        records: the retrieved records, best first.
        dropped: how many retrieved records there was no room for.
        personal: version of the personal adapter, or None.
        shared: version of the shared adapter, or None.
        weight: of the personal adapter, in [0, 1]; 0 without one.
        gate: what the gate said, in a few words.
        owner: whose device it is asked on.
        asked: the prompt without records, as the turns of a conversation keep it.
        dropped_turns: how many earlier turns there was no room for.
        likeness: how like the user's records it is; None where that does not count.
    """

    task: Task
    prompt: str
    ids: tuple[int, ...]
    adapter: AdapterRef | None = None
    records: tuple[Record, ...] = ()
    dropped: int = 0
    personal: str | None = None
    shared: str | None = None
    weight: float = 0.0
    gate: str = ""
    owner: str = ""
    asked: str = ""
    dropped_turns: int = 0
    likeness: Likeness | None = None

    def request(self, sampling: Sampling | None = None) -> Request:
        """What an engine is asked; greedy, at the task's length, unless told otherwise."""
        return Request(self.ids, self.adapter, sampling or sampling_of(self.task), self.owner)


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        text: as it is scored.
        why: what it rests on.
        cut: after how many tokens it was cut; 0 where it ended by itself.
    """

    text: str
    why: Prepared
    cut: int = 0


@dataclass
class Runtime:
    """What answers on one device; threads may share it.

    Attributes:
        home: the device.
        given: the engine, which others may use too; one of its own, as the profile says, when
            None.
        on_index: told how far the memory has come with new records, where there are some.
    """

    home: Home
    given: Engine | None = None
    on_index: Callable[[int, int], None] | None = None
    _own: Engine | None = None
    _store: MemoryStore | None = None
    _state: str = ""  # of the vault that the memories know
    _memories: dict[str, Memory] = field(default_factory=dict)
    _summaries: dict[str, str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def engine(self) -> Engine:
        """What answers; loaded on first use.

        Raises:
            BackboneError: the profile's backbone cannot be loaded.
            ConfigError: its engine is not installed, or cannot run this backbone.
        """
        if self.given is not None:
            return self.given
        with self._lock:
            if self._own is None:
                from pfi.profile.answer.engines import EngineChoice, make_engine

                choice = EngineChoice.of(self.home.config)
                self._own = make_engine(choice, self.home.models_folder)
            return self._own

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
        files = manifest.backbone_files and backbone_fingerprint(manifest.backbone)
        if files and files != manifest.backbone_files:
            raise BackboneError(
                f"adapter {personal} was trained on other files of model {manifest.backbone}",
                where=f"task {task.name}",
                fix=f"run `pfi train --task {task.name}`, or install the files it was trained on",
            )
        return personal, manifest.shared

    def _weighted(
        self, personal: str | None, shared: str | None, weight: float
    ) -> AdapterRef | None:
        """Both adapters as one; with a weight of 0 only the shared one."""
        parts: list[Part] = []
        # A version's number is never given twice, so that it names its weights.
        if shared is not None:
            store = self.home.shared_adapters
            parts.append((f"{self._owner}|shared {shared}", partial(store.load, shared), 1.0))
        if personal is not None:
            store = self.home.personal_adapters
            parts.append((f"{self._owner}|{personal}", partial(store.load, personal), weight))
        return combined(parts)

    @property
    def _owner(self) -> str:
        return self.home.keys.profile

    def memory(self, task: Task) -> Memory:
        """The index over the device's real records of a task, as they are now.

        Raises:
            ConfigError: the profile's search settings make no sense.
            StorageError: the vault or the memory cannot be used.
        """
        with self._lock, self.home.vault_session():
            if self._store is None:
                self._store = open_memory(self.home, on_progress=self.on_index)
            state = sync_memory(self.home, self._store, on_progress=self.on_index)
            if state != self._state:
                self._memories.clear()
                self._summaries.clear()
                if self._state and (engine := self.given or self._own):
                    engine.forget(self._owner)  # prompts may have held what was erased
                self._state = state
            if task.name not in self._memories:
                self._memories[task.name] = task_memory(self.home, self._store, task)
            return self._memories[task.name]

    def summary(self, task: Task) -> str:
        """What is typical of the device's records of a task; empty unless the profile asks for it.

        Raises:
            StorageError: the vault or the memory cannot be used.
        """
        tokens = self.home.config.summary_tokens
        if not tokens:
            return ""
        with self._lock, self.home.vault_session():
            self.memory(task)  # forgets the summaries of records that have changed
            if task.name not in self._summaries:
                with self.home.open_vault() as vault:
                    history = vault.history(task.name, origin="real")
                trim = self.engine.prompter.trim
                self._summaries[task.name] = summarise(task, list(history), trim, tokens)
            return self._summaries[task.name]

    def close(self) -> None:
        """Close the memory's file and an engine of its own; they are opened again when needed."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store, self._state = None, ""
            if self._own is not None:
                self._own.close()
                self._own = None

    # Questions ----------------------------------------------------------------------

    def prepare(
        self,
        text: str,
        task: Task,
        *,
        k: int | None = None,
        fields: Mapping[str, str] | None = None,
        before: datetime | None = None,
        history: Sequence[Turn] = (),
        room: int | None = None,
        named: bool = True,
        alone: bool = False,
    ) -> Prepared:
        """Make a question ready.

        What does not fit the backbone's context is left out: the least useful of the retrieved
        records first, then the oldest turns, then the end of the question.

        A free question that is not like the user's records (``pfi.memory.off_topic``), and that
        none of them matches, goes to the backbone as it is; so does one of a ``text`` task that
        the user did not name, which is then asked as a plain instruction.  Other such questions
        are shown the records that match (``pfi.memory.matching``), and no others.

        Args:
            text: the task's main input field.
            task: what it is asked as.
            k: how many records to retrieve; as the gate says, or the profile, when None.
            fields: the other input fields, of a task whose question has several.
            before: retrieve only records older than this.
            history: the turns of the conversation before the question, oldest first.
            room: tokens that are kept free for the answer; as the task says when None, and up to
                a quarter of the context for a free question.
            named: whether the user named the task; else it is a guess.
            alone: a question of a task with a prompt of its own is asked without the turns.

        Raises:
            ConfigError: an input field is missing, or there is no text.
            StorageError: a file of the device is damaged.
        """
        values = question_fields(task, text, fields or {})
        prompt = task.prompt(values)
        query = task.query_text(values)
        with self.home.vault_session():
            personal, shared = self.versions(task)
            like, matches = None, None
            if task.kind == "text" and (task.free_form or not (named or fields)):
                like = self._likeness(task, query, personal, shared, k)
                if task.free_form or k is None:  # else they are examples
                    matches = self._matches(task, query, k, before)
            if like is not None and like.off_topic and not matches:
                if not (task.free_form or k):  # records that are asked for need their task
                    task, prompt = get_task(FALLBACK_TASK), text
                shared, summary = None, ""
                weight, wanted, said = 0.0, 0, _off_topic(like)
            else:
                weight, wanted, said = self._gated(task, (personal, shared), prompt, query, before)
                summary = "" if before else self.summary(task)
                if like is not None:
                    said = f"{said}; {_on_topic(like)}"
            k = wanted if k is None else k
            if matches is not None:
                records = matches.best(query, k, before)
            else:
                records = self.memory(task).search(query, k, before=before) if k else []
        if alone and not task.free_form:
            history = ()
        if room is None and task.free_form:
            room = self.room()
        turns: Sequence[Turn] = ()
        if history:
            limit = self._retrieval.limit(task, room)
            turns = self.engine.prompter.fitting([*history, ("user", prompt)], limit)[:-1]
        filled = self._retrieval.fill(
            task,
            prompt,
            records,
            summary=summary,
            history=turns,
            room=room,
        )
        return Prepared(
            task,
            filled.prompt,
            filled.ids,
            self._weighted(personal, shared, weight),
            filled.records,
            len(records) - len(filled.records),
            personal,
            shared,
            weight,
            said,
            self._owner,
            prompt,
            len(history) - len(turns),
            like,
        )

    def room(self, tokens: int | None = None) -> int:
        """Tokens of the context that are kept free for a free answer of at most so many.

        Args:
            tokens: the longest answer; as the profile says when None.
        """
        most = self.home.config.max_tokens if tokens is None else tokens
        return max(1, min(most, self.engine.prompter.max_length // 4))

    def _likeness(
        self, task: Task, query: str, personal: str | None, shared: str | None, k: int | None
    ) -> Likeness | None:
        """How like the records a question is; None where nothing depends on it."""
        wanted = self.home.config.retrieve if k is None else k
        if personal is None and shared is None and not wanted:
            return None
        memory = self.memory(task)
        floor = task_floor(self.home, task, memory)
        return None if floor is None else likeness(memory, floor, query)

    def _matches(
        self, task: Task, query: str, k: int | None, before: datetime | None
    ) -> _Matches | None:
        """The records that have to do with a question; None where that is not asked.

        It is not asked where the user wants no records, or the latest ones.
        """
        if k == 0 or self.home.config.search.get("how") == "recent":
            return None
        memory = self.memory(task)
        return _Matches(memory, matching(memory, query) & memory.allowed(before=before))

    @property
    def _retrieval(self) -> Retrieval:
        return retrieval_of(self.home.config, self.engine.prompter)

    def _gated(
        self,
        task: Task,
        versions: tuple[str | None, str | None],
        prompt: str,
        query: str,
        before: datetime | None,
    ) -> tuple[float, int, str]:
        """The personal adapter's weight, the number of records, and what the gate said."""
        from pfi.profile.answer.gate_file import describe, read_gate

        personal, shared = versions
        whole = (1.0 if personal else 0.0), self.home.config.retrieve
        fitted = read_gate(self.home).get(task.name)
        if fitted is None:
            return *whole, "not fitted, so the profile's settings count"
        if not fitted.counts(self.home, personal, shared):
            return *whole, f"fitted with {fitted.made_with}, so the profile's settings count"
        choice, said = fitted.choice, describe(fitted.choice)
        if choice.if_unsure:
            found = self._confidence(task, prompt, self._weighted(None, shared, 0.0))
            level = f"{found:.2f}, and {fitted.sure:.2f} is enough"
            if found >= fitted.sure:
                return 0.0, 0, f"the answer without them is sure ({level})"
            said = f"{said} ({level})"
        if choice.by_likeness:
            alike = self.memory(task).likeness(query, before=before)
            said = f"{said}; likeness {alike:.2f}"
            return choice.weight_at(alike), choice.k, said
        return choice.weight, choice.k, said

    def _confidence(self, task: Task, prompt: str, adapter: AdapterRef | None) -> float:
        """How sure the model is of its answer, in [0, 1]."""
        ids = self._retrieval.fill(task, prompt).ids
        plain = Prepared(task, prompt, ids, adapter, owner=self._owner)
        return float(confidences(self.engine, task, [plain.request()])[0])

    def answer(self, prepared: Prepared, max_tokens: int | None = None) -> Answer:
        """Answer in one piece, greedily.

        Args:
            prepared: the question.
            max_tokens: longest answer; as the task says when None, and as the profile does for a
                free question.
        """
        if prepared.task.kind != "text":
            return Answer(answers(self.engine, prepared.task, [prepared.request()])[0], prepared)
        most = max_tokens or self.longest(prepared.task)
        sampling = replace(sampling_of(prepared.task), max_tokens=most)
        text, count, finish = "", 0, ""
        for piece in self.engine.generate(prepared.request(sampling)):
            text, count, finish = text + piece.text, count + piece.tokens, piece.finish or finish
        return Answer(prepared.task.parse(text), prepared, count if finish == "length" else 0)

    def longest(self, task: Task) -> int:
        """The longest answer in tokens: as the profile says to a free question, else the task."""
        return self.home.config.max_tokens if task.free_form else task.max_new_tokens

    def sampling(self, task: Task, given: Mapping[str, Any] | None = None) -> Sampling:
        """How an answer of a conversation is decoded, see `conversation_sampling`.

        Tasks with a prompt of their own are decoded as they are scored, at most so long.

        Args:
            task: what the question is asked as.
            given: values of ``Sampling`` that go before the settings; None counts as not given.

        Raises:
            ConfigError: the profile's sampling settings make no sense.
        """
        if task.free_form:
            return conversation_sampling(self.home.config, self.engine.prompter, given)
        known = {name: value for name, value in (given or {}).items() if value is not None}
        return replace(sampling_of(task), **known)

    def more(self, prepared: Prepared, answer: str) -> Prepared:
        """A question whose answer was cut, made ready to go on with it.

        Args:
            prepared: the question, as it was first made ready.
            answer: what was answered so far, unstripped.

        Raises:
            ConfigError: there is nothing to go on with, or no room for more.
        """
        prompter = self.engine.prompter
        if prepared.task.kind != "text" or prompter.seq2seq or not answer:
            raise ConfigError("there is no answer to go on with", fix="ask a question")
        ids = (*prepared.ids, *prompter.token_ids(answer))
        if len(ids) >= prompter.max_length:
            what = f"question and answer fill the context of {prompter.max_length} tokens"
            raise ConfigError(what, fix="begin a new conversation")
        return replace(prepared, ids=ids)

    def stream(self, prepared: Prepared, sampling: Sampling | None = None) -> Stream:
        """The answer piece by piece; a label comes in one, the best whatever the sampling."""
        if prepared.task.kind == "text":
            return self.engine.generate(prepared.request(sampling))
        (label,) = answers(self.engine, prepared.task, [prepared.request()])
        return OnePiece(label, len(self.engine.prompter.token_ids(label)))

    def generic(self, history: Sequence[Turn], *, room: int | None = None) -> Prepared:
        """A conversation for the backbone alone: no adapter, no records.

        Args:
            history: its turns, the question last.
            room: tokens that are kept free for the answer; as for a plain instruction when None.

        Raises:
            ConfigError: there is no question.
        """
        return generic(self.engine, history, room=room)


def generic(engine: Engine, history: Sequence[Turn], *, room: int | None = None) -> Prepared:
    """See ``Runtime.generic``; for an engine without a device."""
    task, prompter = get_task(FALLBACK_TASK), engine.prompter
    if not history or not history[-1][1].strip():
        raise ConfigError("the question is empty", fix="give some text")
    limit = prompter.max_length - (answer_room(task, prompter) if room is None else room)
    text = history[-1][1]
    return Prepared(task, text, tuple(prompter.chat_ids(history, limit)), asked=text)


def ask(home: Home, text: str, task: Task | None = None, k: int | None = None) -> Answer:
    """Answer one question on a device; see `Runtime` for several.

    Args:
        home: the device.
        text: the question, or the task's main input field.
        task: what it is asked as; see `pick_task` when None.
        k: how many records to retrieve; as the gate says, or the profile, when None.
    """
    with home.vault_session(), closing(Runtime(home)) as runtime:
        chosen = task or pick_task(home)
        return runtime.answer(runtime.prepare(text, chosen, k=k, named=task is not None))


def pick_task(home: Home, name: str | None = None) -> Task:
    """The named task; else the profile's, the one with most records, or plain instruction.

    Raises:
        ConfigError: there is no such task.
    """
    if name or home.config.task:
        return get_task(name or home.config.task or "")
    with home.open_vault() as vault:
        return get_task(next(iter(vault.tasks()), FALLBACK_TASK))


def pick_conversation(home: Home, name: str | None = None) -> Task:
    """What lines of a conversation are asked as: `write` where it was learnt, else `pick_task`.

    Raises:
        ConfigError: there is no such task.
    """
    if not (name or home.config.task) and home.personal_adapters.active(WRITE_TASK):
        return get_task(WRITE_TASK)
    return pick_task(home, name)


@dataclass(frozen=True)
class _Matches:
    """Those of a memory's records that have to do with a question; false where there are none.

    Attributes:
        memory: holds the records.
        places: which of its positions they have, ``(n,)``.
    """

    memory: Memory
    places: NDArray[np.bool_]

    def __bool__(self) -> bool:
        return bool(self.places.any())

    def best(self, query: str, k: int, before: datetime | None) -> list[Record]:
        """Up to ``k`` of them, the best first; no others are read."""
        if not (k and self):
            return []
        return self.memory.search(query, k, before=before, within=self.places)


def _on_topic(like: Likeness) -> str:
    if like.off_topic:
        return "records of yours have to do with it"
    return f"like your records ({like.value:.2f}, floor {like.floor:.2f})"


def _off_topic(like: Likeness) -> str:
    level = f"likeness {like.value:.2f}, floor {like.floor:.2f}"
    return f"not like your records ({level}), so the backbone answers it as it is"


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
