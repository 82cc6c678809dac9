"""What every page shares: who asks, templates, words for numbers and dates, and errors as toasts.

All text of users goes through Jinja2 with escaping on; a page never holds a script of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException

from pfi.errors import ConfigError, PfiError, StorageError
from pfi.profile.home import Home
from pfi.serve.console.jobs import Jobs
from pfi.serve.console.sessions import Session, Sessions
from pfi.serve.errors import ApiError
from pfi.serve.limits import Limits
from pfi.serve.service import Service
from pfi.tasks import Task

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
ROOT = "/console"
#: Requests of all consoles that are worked on at once: threads are left for the API.
_AT_ONCE = 24
#: And of one profile.
_AT_ONCE_EACH = 8
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
    """What the console of one server keeps beside the service.

    Attributes:
        service: the opened profiles.
        sessions: who is signed in.
        jobs: what runs in the background.
        limits: of its own, by profile: the API's are not used up by pages.
        answers: threads that read answers.
        busy: requests that are worked on, by profile.
        importing: profiles that files are being read for.
    """

    service: Service
    sessions: Sessions
    jobs: Jobs
    limits: Limits
    answers: ThreadPoolExecutor
    busy: Counter[str] = field(default_factory=Counter)
    importing: set[str] = field(default_factory=set)

    @contextmanager
    def place(self, profile: str) -> Iterator[None]:
        """One of the places for requests that are worked on; used by the event loop alone.

        Raises:
            ApiError: the profile holds its share, or all are taken.
        """
        if self.busy[profile] >= _AT_ONCE_EACH or self.busy.total() >= _AT_ONCE:
            raise ApiError(503, "The console is busy; try again.", headers={"Retry-After": "1"})
        self.busy[profile] += 1
        try:
            yield
        finally:
            self.busy[profile] -= 1


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is signed in.

    Attributes:
        request: as it came.
        console: of this server.
        profile: whose it is.
        token: id of the token of the session; "" for one that a sign-in code began.
    """

    request: Request
    console: Console
    profile: str
    token: str = ""

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
        # Two for each answer: one's own model and the generic one.
        threads = ThreadPoolExecutor(2 * state.config.running, "pfi-console")
        limits = Limits(state.config)
        state.console = Console(state.service, Sessions(), Jobs(), limits, threads)
    console: Console = state.console
    return console


def cookie_name(request: Request) -> str:
    """The session's cookie: browsers keep cookies by host, and another port is another server."""
    _, port = request.scope.get("server") or ("", 0)
    return f"pfi_console_{port}"


async def signed_in(request: Request) -> Visit:
    """Who asks.

    Raises:
        SignInNeeded: nobody, or somebody whose session is over.
    """
    console = console_of(request.app)
    cookie = request.cookies.get(cookie_name(request), "")
    session = console.sessions.find(cookie)
    if session is None or session.profile not in console.service.profiles:
        raise SignInNeeded
    if session.token:
        keeper = console.service.gatekeeper
        known = await asyncio.get_running_loop().run_in_executor(
            keeper.pool, keeper.still, session.profile, session.token, "admin"
        )
        if not known:
            console.sessions.end(cookie)
            raise SignInNeeded  # its token was revoked, or has ended
    console.limits.count(session.profile)
    return Visit(request, console, session.profile, session.token)


Signed = Annotated[Visit, Depends(signed_in)]


class ConsoleRoute(APIRoute):
    """Checks where a request comes from, and words errors for people in a browser."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with what comes before and after it."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            console = console_of(request.app)
            session = console.sessions.find(request.cookies.get(cookie_name(request), ""))
            try:
                if request.method not in ("GET", "HEAD"):
                    _refuse_foreign(request)
                if request.url.path.startswith(f"{ROOT}/static/"):
                    response = await handle(request)
                else:
                    with console.place(session.profile if session else ""):
                        response = await handle(request)
            except SignInNeeded:
                response = _to_sign_in(request)
            except ApiError as error:
                response = failure(request, error.message, error.status)
                response.headers.update(error.headers)
            except PfiError as error:
                away = isinstance(error, StorageError) and await _vault_away(console, session)
                status = 503 if away else 400
                response = failure(request, " ".join(str(error).split()), status)
            except RequestValidationError as error:
                where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
                response = failure(request, f"{where}: {error.errors()[0]['msg']}", 400)
            except (
                OverflowError,
                RecursionError,
                FormParserError,
            ):  # of numbers and texts that no page sends
                response = failure(request, "The request cannot be read.", 400)
            except HTTPException as error:
                response = failure(request, str(error.detail), error.status_code)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handled


async def _vault_away(console: Console, session: Session | None) -> bool:
    """Whether an error is the device's, not the request's: the vault cannot be read now."""
    keeper = console.service.gatekeeper
    loop = asyncio.get_running_loop()
    try:
        for profile in [session.profile] if session else console.service.profiles:
            await loop.run_in_executor(keeper.pool, keeper.has_tokens, profile)
    except PfiError:
        return True
    return False


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


def parsed(text: str, what: str) -> Any:
    """The JSON that a page sends.

    Args:
        text: of a form's field.
        what: what it is to the user.

    Raises:
        ConfigError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read", fix="reload the page") from error


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
