"""One request for answers, from its prompt to the last byte of its response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pfi.errors import PfiError
from pfi.inference.engine import Sampling, Stream
from pfi.profile.answer.runtime import Prepared
from pfi.serve.answering import Answering, Numbered, gone
from pfi.serve.auth import Caller
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, from_pfi, no_model, unsupported
from pfi.serve.limits import Limits
from pfi.serve.metrics import Metrics
from pfi.serve.schemas import ChatRequest, CompletionRequest, Extension
from pfi.serve.service import GENERIC, Model, Service, Turns
from pfi.serve.wire import DONE, Said, Wording, event, usage, why

#: The client went away; nobody reads this status but the log.
GONE = 499


class Call:
    """A request for answers to one or several talks.

    Args:
        request: as it came.
        body: what it says.
        talks: a conversation for each prompt, its question last.
        wording: how the answer is written.
        logprobs: whether the tokens' log-probabilities are asked for.
    """

    def __init__(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        talks: Sequence[Turns],
        wording: Wording,
        *,
        logprobs: bool,
    ) -> None:
        state = request.app.state
        self._service: Service = state.service
        self._config: ServeConfig = state.config
        self._limits: Limits = state.limits
        self._metrics: Metrics = state.metrics
        self._workers = state.workers
        self._caller: Caller = request.state.caller
        self._request, self._body, self._talks = request, body, talks
        self._wording, self._logprobs = wording, logprobs
        self._begun = time.perf_counter()
        self._prepared: list[Prepared] = []
        self._said: list[Said] = []

    async def respond(self) -> Response:
        """The response, or what streams it.

        Raises:
            ApiError: the request is refused.
            PfiError: the device cannot answer it.
        """
        self._body.check()
        if (self._body.n or 1) > self._config.choices:
            what = f"n: at most {self._config.choices} choices are granted"
            raise ApiError(400, what, param="n", code="invalid_value")
        if len(self._talks) * (self._body.n or 1) > self._config.inputs:
            what = f"prompt: at most {self._config.inputs} answers are given at a time"
            raise ApiError(400, what, param="prompt", code="invalid_value")
        with ExitStack() as held:
            held.enter_context(self._limits.running(self._caller.token))
            held.enter_context(self._metrics.answering.track_inprogress())
            watch = asyncio.create_task(gone(self._request.receive))
            held.callback(watch.cancel)
            streams = await asyncio.get_running_loop().run_in_executor(
                self._workers.prepare, self._start
            )
            answering = Answering(streams, self._workers.read)
            # Also where the watch is ended with what is held: whatever happens, decoding ends.
            watch.add_done_callback(lambda _: answering.cancel())
            clock = asyncio.get_running_loop().call_later(
                self._config.answer_seconds, answering.cancel
            )
            held.callback(clock.cancel)
            held.callback(self._spend)
            batches = answering.batches()
            first = await anext(batches)  # an adapter that cannot be read is told by status
            self._metrics.first_token(time.perf_counter() - self._begun)
            if not self._body.stream:
                return await self._whole(first, batches, answering, watch)
            headers = self._limits.headers(self._caller.token)
            events = self._events(first, batches, answering)
            return Events(events, held.pop_all(), self._config.answer_seconds, headers)

    # Before -------------------------------------------------------------------------

    def _start(self) -> list[Stream]:
        """Make the prompts ready and queue every choice; runs in a thread of its own."""
        profile, body = self._caller.profile, self._body
        model = self._service.model(profile, body.model)
        if model is None:
            raise no_model(body.model)
        self._prepared = [self._prepare(model, talk) for talk in self._talks]
        self._said = [Said() for _ in self._prepared for _ in range(body.n or 1)]
        most = self._service.engine(profile).prompter.max_length
        streams: list[Stream] = []
        try:
            for prepared in self._prepared:
                sampling = self._sampling(model, prepared, most)
                for choice in range(body.n or 1):
                    seed = None if sampling.seed is None else sampling.seed + choice
                    chosen = replace(sampling, seed=seed)
                    streams.append(self._service.stream(profile, prepared, chosen))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _prepare(self, model: Model, talk: Turns) -> Prepared:
        profile, asked = self._caller.profile, self._body.pfi or Extension()
        role, text = talk[-1]
        if role != "user":
            raise unsupported("messages", "messages: the last one must be the user's")
        self._check_length(talk)
        if model.id == GENERIC:
            if asked.task or asked.records or asked.fields:
                raise unsupported("pfi", f"pfi: the model {GENERIC} has no tasks and no records")
            return self._service.prepare_generic(profile, talk)
        if model.task and asked.task not in (None, model.task):
            raise ApiError(400, f"pfi.task: the model's task is {model.task}", param="pfi")
        return self._service.prepare(
            profile,
            text,
            task=model.task or asked.task,
            k=asked.records,
            fields=asked.fields,
            history=talk[:-1],
            named=bool(model.task or asked.task),
        )

    def _check_length(self, talk: Turns) -> None:
        """Refuse what does not fit, rather than to answer a part of it."""
        prompter = self._service.engine(self._caller.profile).prompter
        most = min(prompter.max_length, self._config.context or prompter.max_length)
        count = sum(len(prompter.token_ids(text)) for _, text in talk)
        if count >= most:
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens; the messages have {count}.",
                param="messages" if isinstance(self._body, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )

    def _sampling(self, model: Model, prepared: Prepared, most: int) -> Sampling:
        body, profile = self._body, self._caller.profile
        chosen = self._service.sampling(profile, prepared.task, body.sampling)
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        if wanted is None:
            wanted = self._config.answer_tokens if model.id == GENERIC else chosen.max_tokens
        wanted = min(wanted, self._config.most_answer_tokens, max(1, most - len(prepared.ids)))
        return replace(chosen, max_tokens=wanted, stop=body.stops)

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
            raise _late(answering)
        choices = [
            self._wording.choice(number, said, self._logprobs)
            for number, said in enumerate(self._said)
        ]
        shown = [why(prepared) for prepared in self._prepared]
        more = {"usage": self._usage(answering.streams), "pfi": self._shown(shown)}
        headers = self._limits.headers(self._caller.token)
        return JSONResponse(self._wording.response(choices, **more), headers=headers)

    async def _events(
        self,
        first: list[Numbered],
        batches: AsyncIterator[list[Numbered]],
        answering: Answering,
    ) -> AsyncIterator[bytes]:
        options = self._body.stream_options
        counted = options is not None and bool(options.include_usage)
        empty: dict[str, Any] = {"usage": None} if counted else {}
        word = self._wording

        def chunk(choice: dict[str, Any], **more: Any) -> bytes:
            return event(word.chunk([choice], **empty, **more))

        extra = {"pfi": self._shown([why(prepared) for prepared in self._prepared])}
        opened = [word.opening(number) for number in range(len(self._said))]
        for opening in opened:
            if opening is not None:
                yield chunk(opening, **extra)
                extra = {}
        try:
            batch: list[Numbered] | None = first
            while batch is not None:
                lines = []
                for number, piece in batch:
                    said = self._said[number]
                    at = len(said.text)
                    new = said.add(piece)
                    if piece.text or (self._logprobs and new):
                        tokens = new if self._logprobs else None
                        lines.append(chunk(word.delta(number, piece.text, tokens, at), **extra))
                        extra = {}
                    if piece.finish in ("stop", "length"):
                        lines.append(chunk(word.closing(number, piece.finish), **extra))
                        extra = {}
                if lines:
                    yield b"".join(lines)
                batch = await anext(batches, None)
            if self._cut:
                raise _late(answering)
        except ApiError as error:
            yield event(error.body)
            return
        except PfiError as error:
            yield event(from_pfi(error).body)
            return
        if counted:
            yield event(word.chunk([], usage=self._usage(answering.streams)))
        yield DONE

    def _take(self, batch: list[Numbered]) -> None:
        for number, piece in batch:
            self._said[number].add(piece)

    @property
    def _cut(self) -> bool:
        return any(said.finish == "cancelled" for said in self._said)

    def _shown(self, shown: list[dict[str, Any]]) -> Any:
        return shown[0] if isinstance(self._body, ChatRequest) else shown

    def _usage(self, streams: Sequence[Stream]) -> dict[str, Any]:
        n = self._body.n or 1
        cached = sum(max(s.cached for s in streams[i : i + n]) for i in range(0, len(streams), n))
        prompt = sum(len(prepared.ids) for prepared in self._prepared)
        return usage(prompt, cached, sum(said.count for said in self._said))

    def _spend(self) -> None:
        prompt = sum(len(prepared.ids) for prepared in self._prepared)
        self._limits.spend(self._caller.token, prompt + sum(said.count for said in self._said))


def _late(answering: Answering) -> ApiError:
    what = "The answer took too long." if answering.cancelled else "The server is closing."
    return ApiError(503, what, code="unavailable")


class Events(Response):
    """Server-sent events; whatever ends them, what is held for them is let go of.

    Args:
        events: as bytes.
        held: closed at the end.
        seconds: how long all of it may take, a client that reads slowly included.
        headers: further ones.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        held: ExitStack,
        seconds: float,
        headers: dict[str, str],
    ) -> None:
        self._events, self._held, self._seconds = events, held, seconds
        self.status_code, self.background = 200, None
        self.init_headers({**headers, "cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            async with asyncio.timeout(self._seconds + 1):
                await send(start)
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
