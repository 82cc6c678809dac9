"""What every page shares: who asks, templates, words for numbers and dates, and errors as toasts.

All text of users goes through Jinja2 with escaping on; a page never holds a script of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from pfi.errors import PfiError
from pfi.profile.home import Home
from pfi.serve.auth import tokens_of
from pfi.serve.console.jobs import Jobs
from pfi.serve.console.sessions import Sessions
from pfi.serve.service import Service
from pfi.tasks import Task

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
ROOT = "/console"
COOKIE = "pfi_console"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Console:
    """What the console of one server keeps beside the service."""

    service: Service
    sessions: Sessions
    jobs: Jobs


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is signed in."""

    request: Request
    console: Console
    profile: str

    @property
    def home(self) -> Home:
        """The device of the profile that is signed in; never another one."""
        return self.console.service.home(self.profile)

    def page(self, template: str, **values: Any) -> HTMLResponse:
        """A template, whole or a part of a page, with what all of them know."""
        shown = {"visit": self, "profile": self.profile, "job": self.job(), **values}
        return HTMLResponse(environment().get_template(template).render(shown))

    def job(self) -> Any:
        """The profile's own job, running or the last one; None without one."""
        return self.console.jobs.last(self.profile)

    def task(self, name: str | None) -> Task:
        """The task of that name; the profile's own when none is given.

        Raises:
            ConfigError: there is no such task.
        """
        return self.console.service.task(self.profile, name or None)


class SignInNeeded(Exception):
    """Nobody is signed in."""


def console_of(app: FastAPI) -> Console:
    """The console of a server, made when it is first asked for."""
    from pfi.serve.console.jobs import Jobs
    from pfi.serve.console.sessions import Sessions

    state = app.state
    if not hasattr(state, "console"):
        state.console = Console(state.service, Sessions(), Jobs())
    return state.console


async def signed_in(request: Request) -> Visit:
    """Who asks.

    Raises:
        SignInNeeded: nobody, or somebody whose session is over.
    """
    console = console_of(request.app)
    session = console.sessions.find(request.cookies.get(COOKIE, ""))
    if session is None or session.profile not in console.service.profiles:
        raise SignInNeeded
    if session.token and console.sessions.is_due(session):
        known = await asyncio.to_thread(tokens_of, console.service.home(session.profile))
        if session.token not in [token.id for token in known]:
            console.sessions.end(request.cookies[COOKIE])
            raise SignInNeeded  # its token was revoked
    return Visit(request, console, session.profile)


Signed = Annotated[Visit, Depends(signed_in)]


class ConsoleRoute(APIRoute):
    """Checks where a request comes from, and words errors for people in a browser."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with what comes before and after it."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                if request.method not in ("GET", "HEAD"):
                    _refuse_foreign(request)
                response = await handle(request)
            except SignInNeeded:
                response = _to_sign_in(request)
            except PfiError as error:
                response = failure(request, " ".join(str(error).split()), 400)
            except HTTPException as error:
                response = failure(request, str(error.detail), error.status_code)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handled


def _refuse_foreign(request: Request) -> None:
    """Refuse what a page of another origin sends: the browser says so, or names the origin.

    Raises:
        HTTPException: it is from elsewhere, or nothing says that it is not.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    here = request.headers.get("host", "")
    same = origin is None or urlsplit(origin).netloc.lower() == here.lower()
    if not same or site not in (None, "same-origin") or (site is None and origin is None):
        raise HTTPException(403, "This came from another page and was refused.")


def _to_sign_in(request: Request) -> Response:
    place = f"{ROOT}/signin"
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": place})
    if request.method != "GET":
        return PlainTextResponse("Please sign in again.", 401)
    return RedirectResponse(place, 303)


def failure(request: Request, text: str, status: int) -> Response:
    """An error in one line: plain text for scripts, which show a toast, else a page."""
    if request.headers.get("hx-request") or request.headers.get("accept") == "application/x-ndjson":
        return PlainTextResponse(text, status)
    template = environment().get_template("error.html")
    return HTMLResponse(template.render(text=text, status=status, profile=None), status)


def toast(text: str, **headers: str) -> dict[str, str]:
    """Headers that make htmx show a line."""
    return {"HX-Trigger": json.dumps({"toast": {"text": text}}), **headers}


def said(text: str, **headers: str) -> Response:
    """Nothing but a line that is shown."""
    return Response(status_code=204, headers=toast(text, **headers))


# Words ------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    """The templates; everything that is put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "day": day,
        "moment": moment,
        "size": size,
        "short": short,
        "count": count,
        "number": number,
        "readable": readable,
        "json": as_json,
    }
    made.globals |= {"root": ROOT, "asset": asset, "tasks_titles": task_titles}
    return made


@cache
def asset(name: str) -> str:
    """The address of a static file, another one for other content, so that it may be kept."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()
    return f"{ROOT}/static/{name}?v={digest[:12]}"


def as_json(value: Mapping[str, str]) -> str:
    """Fields as JSON, for a hidden input; escaped like all text."""
    return json.dumps(dict(value), ensure_ascii=False)


def task_titles() -> Mapping[str, str]:
    """The title of every task, by name."""
    from pfi.tasks import tasks

    return {name: task.title for name, task in tasks().items()}


def day(time: datetime | None) -> str:
    """A day, e.g. ``3 May 2024``."""
    return f"{time.day} {time:%b %Y}" if time else "undated"


def moment(time: datetime | str | None) -> str:
    """A time to the minute, in UTC."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return f"{day(time)}, {time.astimezone(UTC):%H:%M} UTC" if time else "unknown"


def size(bytes_: int) -> str:
    """A number of bytes for people."""
    value = float(bytes_)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def short(text: str, width: int = 160) -> str:
    """A text on one line, cut to a width."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and the word for what is counted."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def number(value: float) -> str:
    """A score with as many digits as mean something."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def readable(payload: str) -> str:
    """JSON as indented JSON, other text as it is."""
    try:
        value = json.loads(payload)
    except ValueError:
        return payload
    return json.dumps(value, ensure_ascii=False, indent=2) if value is not None else payload
