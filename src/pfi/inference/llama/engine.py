"""llama.cpp as an engine: a GGUF file of the backbone, adapters beside it, in this process.

Requests with the same adapter are decoded in one batch; those with others take turns, since
llama.cpp has one adapter at a time.
"""

from __future__ import annotations

import atexit
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfi._util.memory import free_memory
from pfi._util.threads import LoadMeter, ThreadChooser, asked, most_threads
from pfi.errors import ConfigError
from pfi.inference.capacity import Footprint, cache_token_bytes, fit_rows
from pfi.inference.detokenizer import Written
from pfi.inference.engine import (
    AdapterRef,
    EngineClosedError,
    EngineStats,
    Finish,
    Piece,
    Request,
    Scoring,
    Stream,
    check_targets,
    most_tokens,
    thought_tokens,
)
from pfi.inference.llama.adapters import LlamaAdapters
from pfi.inference.llama.c import Context, Model
from pfi.inference.llama.sampling import Draw
from pfi.inference.llama.sequences import (
    CHUNK,
    Group,
    Slot,
    Slots,
    add_chunk,
    next_chunk,
    score,
)
from pfi.inference.streams import Channel, QueuedStream
from pfi.models.prompter import Prompter

# Steps before requests with another adapter have their turn; a change costs as much as some steps.
_TURN = 16


@dataclass(eq=False)
class _Job:
    """A request on its way."""

    request: Request
    channel: Channel
    most: int
    written: Written
    draw: Draw
    handle: int | None = None  # llama.cpp's, of the adapter
    slot: Slot | None = None
    new: int = 0
    coming: list[int] = field(default_factory=list)  # tokens that are not in the slot yet

    @property
    def key(self) -> str:
        return _key(self.request.adapter)

    @property
    def group(self) -> Group:
        return self.request.owner, self.key

    @property
    def reading(self) -> bool:
        """Whether its prompt is being read; else it is decoded a token at a time."""
        return not self.new


@dataclass(eq=False)
class _Scores:
    """Targets to score."""

    prompt: Sequence[int]
    targets: Sequence[Sequence[int]]
    adapter: AdapterRef | None
    owner: str
    found: Future[list[float]] = field(default_factory=Future)


class LlamaEngine:
    """See ``engine.Engine``.

    Args:
        prompter: of the backbone.
        config: its transformers configuration.
        path: its GGUF file.
        slots: requests that run at once; as many beginnings of prompts are kept. When None 4,
            or fewer where memory is short.
        length: longest prompt with its answer, whose memory every slot takes; when None as long
            as the backbone accepts, but 4096, or less where memory is short.
        threads: that compute; when None as ``PFI_THREADS`` or the profile says, else by trial, at
            most as many as cores are free, again now and then.
        adapters: held at once; one more than slots at least.
        exact: attention in 32 bits, as PyTorch has it.

    Raises:
        BackboneError: llama.cpp is not installed, or cannot load the file.
        ConfigError: it does not fit the memory that is free.
    """

    name = "llama.cpp"

    def __init__(
        self,
        prompter: Prompter,
        config: Any,
        path: Path,
        *,
        slots: int | None = None,
        length: int | None = None,
        threads: int | None = None,
        adapters: int = 8,
        exact: bool = False,
    ) -> None:
        meter = LoadMeter()
        self._token_bytes = cache_token_bytes(config, 4 if exact else 2)
        slots, length = fit_rows(
            weights=path.stat().st_size if path.is_file() else 0,  # `Model` says what is wrong
            token_bytes=self._token_bytes,
            free=free_memory()[0],
            longest=prompter.max_length,
            rows=slots,
            length=length,
        )
        self.prompter = replace(prompter, max_length=length)
        self._model = Model(path)
        threads = threads or asked() or (1 if most_threads() == 1 else None)
        self._context = Context(
            self._model,
            sequences=slots,
            length=length,
            threads=threads or (ThreadChooser(meter.free), ThreadChooser(meter.free)),
            batch=max(128, slots + CHUNK),  # so that a chunk always fits beside those that decode
            exact=exact,
        )
        self._slots = Slots(self._context)
        self._adapters = LlamaAdapters(self._context, config, max(adapters, slots + 1), self._wake)
        self._counts = Counter[str]()
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._scores: deque[_Scores] = deque()
        self._forgotten: deque[str] = deque()
        self._running: list[_Job] = []
        self._closed = self._news = False
        self._turn, self._left = "", 0  # whose adapter is in use, and for how many steps more
        self._thread = threading.Thread(target=self._work, name="pfi-llama.cpp", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread in the middle of a pass would crash at the exit

    # For any thread -------------------------------------------------------------------

    def generate(self, request: Request) -> Stream:
        return self.generate_all([request])[0]

    def generate_all(self, requests: Sequence[Request]) -> list[Stream]:
        jobs = [self._job(request) for request in requests]
        self._put(self._waiting.extend, jobs)
        return [QueuedStream(job.channel) for job in jobs]

    def _job(self, request: Request) -> _Job:
        thoughts = thought_tokens(self.prompter)
        most = most_tokens(request, self.prompter.max_length, thoughts=thoughts)
        self._check([request.prompt])
        sampling, channel = request.sampling, Channel(self._wake)
        written = Written.of(self.prompter, request.prompt, sampling.stop)
        draw = Draw(sampling.resolved(self.prompter.generation), request.prompt)
        return _Job(request, channel, most, written, draw)

    def score(
        self,
        prompt: Sequence[int],
        targets: Sequence[Sequence[int]],
        adapter: AdapterRef | None = None,
        owner: str = "",
    ) -> list[float]:
        return self.score_all([Scoring(prompt, targets, adapter, owner)])[0]

    def score_all(self, asked: Sequence[Scoring]) -> list[list[float]]:
        wanted = [_Scores(one.prompt, one.targets, one.adapter, one.owner) for one in asked]
        for one in wanted:
            if one.targets:
                check_targets(one.prompt, one.targets, self.prompter.max_length)
                self._check([one.prompt, *one.targets])
            else:
                one.found.set_result([])
        self._put(self._scores.extend, [one for one in wanted if one.targets])
        return [one.found.result() for one in wanted]

    def forget(self, owner: str) -> None:
        self._put(self._forgotten.append, owner)

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(
                **self._counts,
                running=len(self._running),
                waiting=len(self._waiting) + len(self._scores),
                adapters=len(self._adapters),
                adapter_loads=self._adapters.loads,
                prefix_bytes=self._slots.held * self._token_bytes,
            )

    def footprint(self) -> Footprint:
        rows, length = len(self._slots.all), self.prompter.max_length
        cache = rows * length * self._token_bytes
        return Footprint(self._model.bytes, cache, rows, length, self._context.threads)

    def close(self) -> None:
        """End what runs and let go of the model; streams under way end as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> LlamaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, parts: Sequence[Sequence[int]]) -> None:
        for ids in parts:
            if min(ids) < 0 or max(ids) >= self._model.tokens:
                what = f"tokens are numbers from 0 to {self._model.tokens - 1}"
                raise ConfigError(what, where="prompt", fix="use this engine's own prompter")

    def _put(self, put: Callable[[Any], None], what: Any) -> None:
        with self._changed:
            if self._closed:
                raise EngineClosedError()
            put(what)
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify()

    def _count(self, **more: int) -> None:
        with self._changed:
            for name, count in more.items():
                self._counts[name] += count

    # The thread that owns the model ---------------------------------------------------

    def _work(self) -> None:
        error: Exception | None = None
        try:
            while self._wait():
                while self._forgotten:
                    self._slots.forget(self._forgotten.popleft())
                self._drop_cancelled()
                self._score_ready()
                self._admit()
                if self._running:
                    self._step()
        except Exception as bug:  # nobody may wait for ever
            error = bug
        self._end(error)

    def _wait(self) -> bool:
        """Wait for something to do; whether there is, and the engine is not closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._news or self._running)
            self._news = False
            return not self._closed

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            self._closed = True
        for job in (*self._running, *self._waiting):
            if error is None:
                job.channel.put(Piece("", 0, (), "cancelled"))
            else:
                job.channel.fail(error)
        for wanted in self._scores:
            wanted.found.set_exception(error or EngineClosedError())
        self._running.clear()
        self._waiting.clear()
        self._scores.clear()
        self._adapters.close()
        self._context.close()
        self._model.close()

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._running if job.channel.cancelled]:
            self._finish(job, Piece("", 0, finish="cancelled"))
        with self._changed:
            gone = [job for job in self._waiting if job.channel.cancelled]
            for job in gone:
                self._waiting.remove(job)
        for job in gone:
            job.channel.put(Piece("", 0, (), "cancelled"))

    def _admit(self) -> None:
        """Give waiting requests a sequence, in their order; adapters that are read are waited for
        by their own requests only.
        """
        for job in list(self._waiting):
            if not self._slots.free:
                break
            request = job.request
            if not self._adapters.ready(request.adapter) or self._head_is_being_read(job):
                continue
            with self._changed:
                self._waiting.remove(job)
            try:
                job.handle = self._adapters.take(request.adapter)
            except Exception as error:
                job.channel.fail(error)
                continue
            prompt = list(request.prompt)
            job.slot = self._slots.take(job.group, prompt)
            cached = job.channel.cached = len(job.slot.tokens)
            job.coming = prompt[cached:]
            with self._changed:
                self._running.append(job)
            self._count(requests=1, prompt_tokens=len(prompt), cached_tokens=cached)
        if self._adapters.reading:
            wanted = [job.request.adapter for job in list(self._waiting)]
            wanted += [scores.adapter for scores in list(self._scores)]
            self._adapters.forget(set(map(_key, wanted)))

    def _head_is_being_read(self, job: _Job) -> bool:
        """Whether to wait for a prompt that is being read and begins as this one does."""
        reading = [
            (one.slot, one.request.prompt) for one in self._running if one.slot and one.reading
        ]
        return self._slots.worth_waiting(job.group, job.request.prompt, reading)

    def _step(self) -> None:
        """One pass over requests with the same adapter."""
        keys = list(dict.fromkeys(job.key for job in self._running))
        if self._turn not in keys or self._left <= 0:
            at = keys.index(self._turn) + 1 if self._turn in keys else 0
            self._turn, self._left = keys[at % len(keys)], _TURN
        self._left -= 1
        # Those that want one token go first: others' long prompts do not hold them up.
        jobs = [job for job in self._running if job.key == self._turn]
        jobs.sort(key=lambda job: len(job.coming))
        try:
            self._context.use(jobs[0].handle)
            asked: list[_Job] = []
            entries: list[tuple[int, int, int, bool]] = []
            for job in jobs:
                room = self._context.batch - len(entries)
                slot = job.slot
                assert slot is not None
                size = next_chunk(slot, job.coming, room) if job.reading else min(1, room)
                now, job.coming = job.coming[:size], job.coming[size:]
                begin = len(slot.tokens)
                entries += [
                    (token, begin + i, slot.at, not job.coming and i == len(now) - 1)
                    for i, token in enumerate(now)
                ]
                if job.reading:
                    add_chunk(slot, now)
                else:
                    slot.tokens += now
                if now and not job.coming:
                    asked.append(job)
            all_logits = self._context.decode(entries)
            self._count(steps=bool(asked))
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
            return
        for job, logits in zip(asked, all_logits, strict=True):
            try:
                self._take_token(job, logits)
            except Exception as error:
                self._fail(job, error)

    def _take_token(self, job: _Job, logits: Any) -> None:
        token, logprob, top = job.draw.take(logits, free=job.written.in_thought)
        if token in self.prompter.end_ids:
            self._finish(job, Piece(job.written.end(), 0, finish="stop"))
            return
        job.new += 1
        self._count(new_tokens=1)
        text = job.written.add(token)
        finish: Finish | None = None
        if job.written.stopped or job.draw.ended:
            finish = "stop"
        elif job.new == job.most or job.new - job.written.hidden >= job.request.sampling.max_tokens:
            finish = "length"
        if finish is None:
            job.coming = [token]
            job.channel.put(Piece(text, 1, (logprob,), None, (token,), (top,)))
        else:
            text += job.written.end()
            self._finish(job, Piece(text, 1, (logprob,), finish, (token,), (top,)))

    def _finish(self, job: _Job, last: Piece) -> None:
        self._release(job)
        job.channel.put(last)

    def _fail(self, job: _Job, error: Exception) -> None:
        assert job.slot is not None
        self._slots.cut(job.slot, 0)
        self._release(job)
        job.channel.fail(error)

    def _release(self, job: _Job) -> None:
        assert job.slot is not None
        job.slot.busy = False
        self._adapters.give(job.request.adapter)
        with self._changed:
            self._running.remove(job)

    def _score_ready(self) -> None:
        """Score what waits for nothing any more."""
        for wanted in list(self._scores):
            if not self._slots.free:
                return
            if self._adapters.ready(wanted.adapter):
                self._scores.remove(wanted)
                self._score(wanted)

    def _score(self, wanted: _Scores) -> None:
        try:
            handle = self._adapters.take(wanted.adapter)
        except Exception as error:
            wanted.found.set_exception(error)
            return
        prompt = list(wanted.prompt)
        slot = self._slots.take((wanted.owner, _key(wanted.adapter)), prompt)
        self._count(requests=1, prompt_tokens=len(prompt), cached_tokens=len(slot.tokens))
        try:
            self._context.use(handle)
            found = score(self._slots, slot, prompt, wanted.targets)
        except Exception as error:
            self._slots.cut(slot, 0)
            wanted.found.set_exception(error)
        else:
            wanted.found.set_result(found)
        finally:
            slot.busy = False
            self._adapters.give(wanted.adapter)


def _key(adapter: AdapterRef | None) -> str:
    return "" if adapter is None else adapter.key
