"""Chat: one's own model beside the generic one, what each answer rests on, and feedback.

Answers come as lines of JSON over one response; closing it stops both models.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pfi.errors import ConfigError, PfiError
from pfi.inference.engine import Stream
from pfi.profile.answer.conversation import with_system
from pfi.profile.answer.runtime import Prepared
from pfi.profile.vault.feedback import Rating
from pfi.serve.console.progress import refresh_if_due
from pfi.serve.console.view import ConsoleRoute, Signed, Visit, environment, parsed, said
from pfi.tasks import Task

router = APIRouter(route_class=ConsoleRoute)
#: Answers from before that a new page shows.
_EARLIER = 3
_FIELD = "field-"
_MOST_TURNS = 400


@router.get("/chat")
def page(visit: Signed, task: str = "") -> Response:
    """The chat, with the last answers."""
    from pfi.profile.answer.conversation import read_system
    from pfi.profile.learn.feedback import task_of
    from pfi.tasks import tasks

    home, chosen = visit.home, visit.task(task)
    with home.open_vault() as vault:
        counts, shown = vault.tasks(), vault.feedback.answers()[:_EARLIER]
    known = tasks()
    earlier = [(task_of(home, one.task), one) for one in reversed(shown) if one.task in known]
    return visit.page(
        "chat.html",
        task=chosen,
        fields=fields_of(chosen),
        mine=[known[name] for name in counts if name in known],
        others=[one for name, one in known.items() if name not in counts],
        counts=counts,
        adapter=home.personal_adapters.active(chosen.name),
        earlier=earlier,
        system=read_system(home),
    )


@router.get("/chat/fields")
def fields(visit: Signed, task: str) -> Response:
    """The input fields of a task's question."""
    chosen = visit.task(task)
    return visit.page("_fields.html", task=chosen, fields=fields_of(chosen))


def fields_of(task: Task) -> list[str]:
    """The names of a question's input fields."""
    names = dict.fromkeys(re.findall(r"\{(\w+)\}", task.question))
    return [name for name in names if name != "labels"]


# Answers ----------------------------------------------------------------------------


@router.post("/chat/ask")
async def ask(
    request: Request,
    visit: Signed,
    task: Annotated[str, Form()],
    compare: Annotated[bool, Form()] = False,
    turns: Annotated[str, Form()] = "[]",
    system: Annotated[str, Form()] = "",
    named: Annotated[bool, Form()] = True,
    more: Annotated[str, Form()] = "",
) -> Response:
    """Answer a question, piece by piece; the input fields are `field-NAME`.

    Args:
        task: what it is asked as.
        compare: also ask the backbone alone.
        turns: those before the question, a JSON list of pairs of role and text.
        system: what the model is told before them.
        named: whether the user chose the task.
        more: one's own model's answer that was cut, to go on with.

    Raises:
        ConfigError: a field is missing or the task unknown.
        ApiError: too many of the profile's questions are being answered.
    """
    form = await request.form()
    values = {
        key.removeprefix(_FIELD): str(value)
        for key, value in form.items()
        if key.startswith(_FIELD)
    }
    chosen = await asyncio.to_thread(visit.task, task)
    history = with_system(system, _turns(turns)) if chosen.kind == "text" else []
    talk = _Talk(visit, chosen, _checked(chosen, values), history, named, more)
    compare = compare and not more
    columns = {"mine": talk.mine, **({"generic": talk.generic} if compare else {})}
    held = ExitStack()
    held.enter_context(visit.console.limits.running(visit.profile))
    return _Streamed(
        held,
        _lines(talk, columns),
        media_type="application/x-ndjson",
        headers={"X-Accel-Buffering": "no"},
    )


class _Streamed(StreamingResponse):
    """A streamed answer; whatever ends it, what is held for it is let go of."""

    def __init__(self, held: ExitStack, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def _checked(task: Task, values: Mapping[str, str]) -> dict[str, str]:
    names = fields_of(task)
    for name in names:
        if not values.get(name, "").strip():
            raise ConfigError("the question is empty" if len(names) == 1 else f"{name} is empty")
    return {name: values[name] for name in names}


def _turns(text: str) -> list[tuple[str, str]]:
    """Earlier turns of the conversation, as the page kept them."""
    listed = parsed(text, "the earlier turns")
    try:
        found = [(str(role), str(said)) for role, said in listed]
    except (ValueError, TypeError) as error:
        raise ConfigError("the earlier turns cannot be read", fix="reload the page") from error
    kept = [turn for turn in found if turn[0] in ("user", "assistant") and turn[1].strip()]
    return kept[-_MOST_TURNS:]


@dataclass
class _Talk:
    """One question to both models."""

    visit: Visit
    task: Task
    fields: dict[str, str]
    turns: list[tuple[str, str]]
    named: bool = True
    more: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asked: Prepared | None = None

    def mine(self) -> Prepared:
        """The question as one's own model reads it."""
        service, profile = self.visit.console.service, self.visit.profile
        with self._lock:  # both columns ask for it
            if self._asked is None:
                first, *_ = self.fields
                others = {name: text for name, text in self.fields.items() if name != first}
                self._asked = service.prepare(
                    profile,
                    self.fields[first],
                    task=self.task.name,
                    fields=others,
                    history=self.turns,
                    named=self.named,
                    alone=True,
                )
        return service.more(profile, self._asked, self.more) if self.more else self._asked

    def generic(self) -> Prepared:
        """The question as the backbone alone reads it, asked as one's own model is."""
        service, profile = self.visit.console.service, self.visit.profile
        task, text = self.task, self.task.prompt(self.fields)
        with suppress(PfiError):  # one's own model's error is told in its column
            mine = self.mine()
            task, text = mine.task, mine.asked
        turns = self.turns if task.free_form else []
        return replace(service.prepare_generic(profile, [*turns, ("user", text)]), task=task)

    def stream(self, prepared: Prepared) -> Stream:
        """The answer on its way."""
        service, profile = self.visit.console.service, self.visit.profile
        return service.stream(profile, prepared, service.sampling(profile, prepared.task))

    def fields_of(self, prepared: Prepared) -> dict[str, str]:
        """The question's input fields, of the task that it was asked as in the end."""
        if prepared.task.name == self.task.name:
            return self.fields
        return dict.fromkeys(fields_of(prepared.task), prepared.asked)

    def keep(self, prepared: Prepared, answer: str) -> None:
        """Note one's own model's answer for `pfi feedback --last`; never the end of a talk."""
        from pfi.profile.learn.feedback import remember

        with suppress(PfiError):
            remember(self.visit.home, prepared.task, self.fields_of(prepared), answer)

    def foot(self, column: str, prepared: Prepared, answers: Mapping[str, str]) -> str:
        """What is under an answer."""
        return (
            environment()
            .get_template("_foot.html")
            .render(
                column=column,
                why=prepared,
                task=prepared.task,
                input=json.dumps(self.fields_of(prepared), ensure_ascii=False),
                answer=answers[column],
                mine=answers.get("mine", ""),
            )
        )


@dataclass(frozen=True)
class _Whole:
    """An answer that has ended; ``cut``: after how many tokens it was cut, 0 where it was not."""

    prepared: Prepared
    raw: str
    cut: int

    @property
    def answer(self) -> str:
        return self.prepared.task.parse(self.raw)

    def shown(self) -> dict[str, Any]:
        """What the page needs of it."""
        return {
            "whole": self.answer,
            "raw": self.raw,
            "cut": self.cut,
            "asked": self.prepared.asked,
            "dropped": self.prepared.dropped_turns,
        }


async def _lines(
    talk: _Talk, columns: Mapping[str, Callable[[], Prepared]]
) -> AsyncIterator[bytes]:
    """Both answers as lines of JSON, as they come; the models stop when nobody reads on."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    stop = threading.Event()
    streams: list[Stream] = []

    def tell(column: str, value: Any) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, (column, value))

    def work(column: str, make: Callable[[], Prepared]) -> None:
        try:
            prepared = make()
            if stop.is_set():
                return
            stream = talk.stream(prepared)
            streams.append(stream)
            if stop.is_set():
                stream.cancel()
            text, count, cut = talk.more, 0, False
            for piece in stream:
                text, count, cut = text + piece.text, count + piece.tokens, piece.finish == "length"
                if piece.text:
                    tell(column, piece.text)
            tell(column, _Whole(prepared, text, count if cut else 0))
        except PfiError as error:
            tell(column, error)
        except Exception as error:
            tell(column, error)
            raise
        finally:
            tell(column, None)

    pool = talk.visit.console.answers
    threads = [loop.run_in_executor(pool, work, column, make) for column, make in columns.items()]
    done: dict[str, _Whole] = {}
    answers: dict[str, str] = {}
    waiting = len(threads)
    try:
        while waiting:
            column, value = await lines.get()
            if value is None:
                waiting -= 1
            elif isinstance(value, str):
                yield _line(column=column, text=value)
            elif isinstance(value, PfiError):
                yield _line(column=column, error=" ".join(str(value).split()))
            elif isinstance(value, Exception):
                yield _line(column=column, error=f"pfi had an error ({type(value).__name__}).")
            else:
                done[column], answers[column] = value, value.answer
                yield _line(column=column, **value.shown())
        if "mine" in answers:
            await asyncio.to_thread(talk.keep, done["mine"].prepared, answers["mine"])
        for column, whole in done.items():
            yield _line(column=column, foot=talk.foot(column, whole.prepared, answers))
        yield _line(done=True)
    finally:
        stop.set()
        for stream in streams:
            stream.cancel()
        for thread in threads:
            thread.add_done_callback(lambda one: one.cancelled() or one.exception())


def _line(**values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


# Feedback ---------------------------------------------------------------------------


@router.post("/chat/feedback")
def feedback(
    visit: Signed,
    task: Annotated[str, Form()],
    input: Annotated[str, Form()],
    answer: Annotated[str, Form()] = "",
    rating: Annotated[str, Form()] = "",
    correction: Annotated[str, Form()] = "",
    better_than: Annotated[str, Form()] = "",
) -> Response:
    """Say of an answer what it is or should have been.

    Raises:
        ConfigError: nothing is said, or it contradicts itself.
    """
    from pfi.profile.learn.feedback import give

    asked = parsed(input, "the question")
    try:
        fields = {str(name): str(text) for name, text in asked.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError("the question cannot be read", fix="ask it again") from error
    if rating not in ("", "good", "bad"):
        raise ConfigError(f"{rating!r} is no rating", fix="say good or bad")
    chosen: Rating | None = "good" if rating == "good" else "bad" if rating == "bad" else None
    entry = give(
        visit.home,
        visit.task(task),
        fields,
        answer=answer,
        correction=correction or None,
        rating=chosen,
        better_than=better_than or None,
    )
    refresh_if_due(visit)
    learns = "a refresh learns from it"
    words = {
        "good": f"Noted as good; {learns}.",
        "bad": f"Noted as bad; {learns}.",
        "": f"Noted; {learns}.",
    }
    if entry.trust == "doubtful":
        return said(f"Noted, in batch {entry.batch}, which is doubtful and not learnt from.")
    return said(words[rating])
