"""One request for answers, from its prompt to the last byte of its response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pfi.errors import ConfigError, PfiError
from pfi.inference.constraints import Grammar, compile_grammar, is_one_token, token_bytes
from pfi.inference.engine import Engine, Stream
from pfi.models.tool_calls import PLAIN, CallFormat, call_format
from pfi.profile.answer.runtime import Prepared
from pfi.serve.answering import Answering, Numbered, gone
from pfi.serve.answers import Said, Used, why
from pfi.serve.ask import Ask
from pfi.serve.auth import Caller
from pfi.serve.config import ServeConfig
from pfi.serve.echo import Nothing, scored_prompts
from pfi.serve.errors import ApiError, from_pfi, unsupported, wrong_key
from pfi.serve.limits import Limits
from pfi.serve.metrics import Metrics
from pfi.serve.opened import pick_model, until_revoked
from pfi.serve.prompting import Prompting
from pfi.serve.service import Model, Service
from pfi.serve.structured import invalid_schema
from pfi.serve.tools import CallReader, grammar_of
from pfi.serve.wire import TextWording, Wording

#: The client went away; nobody reads this status but the log.
GONE = 499


class Call:
    """A request for answers to one or several conversations.

    Args:
        request: as it came.
        ask: what it comes to.
        wording: how the answers are written.
    """

    def __init__(self, request: Request, ask: Ask, wording: Wording) -> None:
        state = request.app.state
        self._service: Service = state.service
        self._config: ServeConfig = state.config
        self._limits: Limits = state.limits
        self._metrics: Metrics = state.metrics
        self._workers = state.workers
        self._caller: Caller = request.state.caller  # until the model says which
        self._revoked = False
        self._request, self._ask, self._wording = request, ask, wording
        self._begun = time.perf_counter()
        self._model: Model
        self._prepared: list[Prepared] = []
        self._said: list[Said] = []
        self._scoring: list[Stream] = []
        self._forced = 0  # tokens of prompts that were scored

    async def respond(self) -> Response:
        """The response, or what streams it.

        Raises:
            ApiError: the request is refused.
            PfiError: the device cannot answer it.
        """
        ask, config = self._ask, self._config
        if ask.n > config.choices:
            what = f"n: at most {config.choices} choices are granted"
            raise ApiError(400, what, param="n", code="invalid_value")
        if len(ask.talks) * ask.n > config.inputs:
            what = f"prompt: at most {config.inputs} answers are given at a time"
            raise ApiError(400, what, param="prompt", code="invalid_value")
        self._caller, self._model = pick_model(self._request, ask.model)
        with ExitStack() as held:
            held.enter_context(self._limits.running(self._caller.token))
            held.enter_context(self._metrics.answering.track_inprogress())
            watch = asyncio.create_task(gone(self._request.receive))
            held.callback(watch.cancel)
            watch.add_done_callback(self._stop_scoring)
            streams = await asyncio.get_running_loop().run_in_executor(
                self._workers.prepare, self._start
            )
            answering = Answering(streams, self._workers.read)
            # Also where the watch is ended with what is held: whatever happens, decoding ends.
            watch.add_done_callback(lambda _: answering.cancel())
            known = asyncio.create_task(until_revoked(self._service.gatekeeper, self._caller))
            known.add_done_callback(partial(self._revoke, answering))
            held.callback(known.cancel)
            clock = asyncio.get_running_loop().call_later(config.answer_seconds, answering.cancel)
            held.callback(clock.cancel)
            held.callback(self._spend)
            batches = answering.batches()
            first = await anext(batches)  # an adapter that cannot be read is told by status
            self._metrics.first_token(time.perf_counter() - self._begun)
            if not ask.stream:
                return await self._whole(first, batches, answering, watch)
            headers = self._limits.headers(self._caller.token)
            events = self._events(first, batches, answering)
            media_type = self._wording.media_type
            return Events(events, held.pop_all(), config.answer_seconds, headers, media_type)

    # Before -------------------------------------------------------------------------

    def _start(self) -> list[Stream]:
        """Make the prompts ready and queue every choice; runs in a thread of its own."""
        profile, ask = self._caller.profile, self._ask
        engine = self._service.engine(profile)
        form = PLAIN if ask.tools is None and not _has_calls(ask) else call_format(engine.prompter)
        prompting = Prompting(self._service, self._config, self._caller, ask, self._model, form)
        self._prepared = [prompting.prepare(talk) for talk in ask.talks]
        grammar = self._grammar(engine, form)
        self._said = [self._empty(engine, form) for _ in self._prepared for _ in range(ask.n)]
        self._score_prompts(self._said[0].spell)
        if ask.max_tokens == 0:
            return [Nothing() for _ in self._said]
        streams: list[Stream] = []
        try:
            for prepared in self._prepared:
                sampling = replace(prompting.sampling(prepared), grammar=grammar)
                for choice in range(ask.n):
                    seed = None if sampling.seed is None else sampling.seed + choice
                    chosen = replace(sampling, seed=seed)
                    streams.append(self._service.stream(profile, prepared, chosen))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _score_prompts(self, spell: Callable[[int], bytes]) -> None:
        """Have the tokens of the prompts themselves scored, where that is asked for."""
        ask, wording = self._ask, self._wording
        if not ask.scored or not isinstance(wording, TextWording):
            return
        profile = self._caller.profile
        scored = scored_prompts(
            self._prepared,
            ask.scored,
            spell,
            lambda prepared, sampling: self._service.stream(profile, prepared, sampling),
            top=ask.logprobs or 0,
            most=self._config.most_answer_tokens,
            started=self._scoring,
        )
        self._forced = sum(map(len, scored))
        wording.scored = [tokens for tokens in scored for _ in range(ask.n)]

    def _stop_scoring(self, _: object) -> None:
        for stream in self._scoring:
            stream.cancel()

    def _grammar(self, engine: Engine, form: CallFormat) -> Grammar | None:
        """What answers are held to.

        Raises:
            ApiError: 400, a schema cannot be kept to.
        """
        ask = self._ask
        if ask.tools is None and ask.answer is None:
            return None
        param = "tools" if ask.answer is None else ask.format_param
        if any(prepared.task.kind != "text" for prepared in self._prepared):
            raise unsupported(param, f"{param}: the model's task answers with one of its labels")
        one_token = ask.tools is not None and is_one_token(engine.prompter, form.trigger)
        text = grammar_of(ask.tools, form, ask.answer, one_token=one_token)
        assert text is not None
        try:
            return compile_grammar(engine.prompter, text)
        except ConfigError as error:
            fix = f". {error.fix}" if error.fix else ""
            raise invalid_schema(param, f"{param}: {error.what}{fix}") from error

    def _empty(self, engine: Engine, form: CallFormat) -> Said:
        spell = lru_cache(maxsize=None)(partial(token_bytes, engine.prompter))
        if self._ask.tools is None:
            return Said(spell)
        names = frozenset(tool["function"]["name"] for tool in self._ask.tools.tools)
        return Said(spell, CallReader(form, names))

    # After --------------------------------------------------------------------------

    async def _whole(
        self,
        first: list[Numbered],
        batches: AsyncIterator[list[Numbered]],
        answering: Answering,
        watch: asyncio.Task[None],
    ) -> Response:
        self._take(first)
        async for batch in batches:
            self._take(batch)
        if watch.done():
            return Response(status_code=GONE)
        if self._cut:
            raise self._cut_short(answering)
        written = self._wording.whole(self._said, self._used(answering.streams), self._why)
        return JSONResponse(written, headers=self._limits.headers(self._caller.token))

    async def _events(
        self,
        first: list[Numbered],
        batches: AsyncIterator[list[Numbered]],
        answering: Answering,
    ) -> AsyncIterator[bytes]:
        word = self._wording
        for opening in word.opening(len(self._said), self._why):
            yield opening
        try:
            batch: list[Numbered] | None = first
            while batch is not None:
                lines: list[bytes] = []
                for number, piece in batch:
                    said = self._said[number]
                    lines += word.delta(number, said, self._add(said, piece))
                if lines:
                    yield b"".join(lines)
                batch = await anext(batches, None)
            if self._cut:
                raise self._cut_short(answering)
        except ApiError as error:
            yield word.failure(error)
            return
        except PfiError as error:
            yield word.failure(from_pfi(error))
            return
        for ending in word.ending(self._said, self._used(answering.streams)):
            yield ending

    def _take(self, batch: list[Numbered]) -> None:
        for number, piece in batch:
            self._add(self._said[number], piece)

    def _add(self, said: Said, piece: Any) -> Any:
        if self._ask.logprobs is None:  # then nobody wants to know what they are
            piece = replace(piece, ids=(), logprobs=(), top=())
        return said.add(piece)

    def _revoke(self, answering: Answering, known: asyncio.Task[None]) -> None:
        """The token opens the profile no more; nothing where the answer was there before."""
        if not known.cancelled():
            self._revoked = True
            answering.cancel()

    def _cut_short(self, answering: Answering) -> ApiError:
        """Why the answer does not go on."""
        if self._revoked:
            return wrong_key("The API key was revoked, or has ended, before the answer was whole.")
        what = "The answer took too long." if answering.cancelled else "The server is closing."
        return ApiError(503, what, code="unavailable")

    @property
    def _cut(self) -> bool:
        return any(said.cancelled for said in self._said)

    @property
    def _why(self) -> list[dict[str, Any]]:
        shown = self._caller.may("memory")
        return [why(prepared, shown=shown) for prepared in self._prepared]

    def _used(self, streams: Sequence[Stream]) -> Used:
        n = self._ask.n
        cached = sum(max(s.cached for s in streams[i : i + n]) for i in range(0, len(streams), n))
        prompt = sum(len(prepared.ids) for prepared in self._prepared)
        return Used(prompt, cached, sum(said.count for said in self._said))

    def _spend(self) -> None:
        prompt = sum(len(prepared.ids) for prepared in self._prepared)
        new = sum(said.count for said in self._said)
        self._limits.spend(self._caller.token, prompt + self._forced + new)


def _has_calls(ask: Ask) -> bool:
    return any(one.calls or one.role == "tool" for talk in ask.talks for one in talk)


class Events(Response):
    """Server-sent events; whatever ends them, what is held for them is let go of.

    Args:
        events: as bytes.
        held: closed at the end.
        seconds: how long all of it may take, a client that reads slowly included.
        headers: further ones.
        media_type: of the events.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        held: ExitStack,
        seconds: float,
        headers: dict[str, str],
        media_type: str = "text/event-stream",
    ) -> None:
        self._events, self._held, self._seconds = events, held, seconds
        self.status_code, self.background, self.media_type = 200, None, media_type
        self.init_headers({**headers, "cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            async with asyncio.timeout(self._seconds + 1):
                await send(start)
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
