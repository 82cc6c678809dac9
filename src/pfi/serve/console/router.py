"""The console's routes put together; `pfi.serve.app` includes this router."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from pfi.serve.console import adapters, chat, data, ledger, progress, settings, upload
from pfi.serve.console.view import (
    HERE,
    ROOT,
    ConsoleRoute,
    console_of,
    cookie_name,
    environment,
    signed_in,
)

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {file.name: file for file in (HERE / "static").iterdir() if file.suffix in _KINDS}

#: The modules with routes for those who are signed in.
PAGES = (chat, data, upload, adapters, ledger, progress, settings)

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)
for pages in PAGES:
    router.include_router(pages.router, prefix=ROOT)


@router.get("/")
async def start() -> Response:
    """The way in."""
    return RedirectResponse(f"{ROOT}/chat", 303)


@router.get(ROOT)
async def first() -> Response:
    """The first page."""
    return RedirectResponse(f"{ROOT}/chat", 303)


@router.get(f"{ROOT}/static/{{name}}")
async def static(name: str) -> Response:
    """A style, script or picture that ships with pfi."""
    if name not in _FILES:
        raise HTTPException(404, "There is no such file.")
    kind = _KINDS[_FILES[name].suffix]
    # Its address changes with its content, see `asset`.
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(_FILES[name], media_type=kind, headers=headers)


@router.get(f"{ROOT}/signin")
async def signin_page(request: Request) -> Response:
    """The page that asks for a token."""
    return _signin("")


@router.post(f"{ROOT}/signin")
def signin(
    request: Request,
    token: Annotated[str, Form()] = "",
    code: Annotated[str, Form()] = "",
) -> Response:
    """Sign in with an admin's token, or the code of the link that `pfi serve` shows."""
    console = console_of(request.app)
    profile, token_id = console.sessions.take_code(code.strip()) if code else None, ""
    if profile is None and (caller := console.service.gatekeeper.caller(token.strip())):
        if not caller.may("admin"):
            return _signin("This token is an app's: it opens the API and no console.", status=403)
        profile, token_id = caller.profile, caller.token
    if profile is None:
        return _signin(
            "This link was used before, or is too old." if code else "No profile has this token.",
            status=401,
        )
    console.sessions.end(request.cookies.get(cookie_name(request), ""))
    response = RedirectResponse(f"{ROOT}/chat", 303)
    response.set_cookie(
        cookie_name(request),
        console.sessions.new(profile, token_id),
        path=ROOT,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post(f"{ROOT}/signout", dependencies=[Depends(signed_in)])
async def signout(request: Request) -> Response:
    """Sign this browser out."""
    console_of(request.app).sessions.end(request.cookies.get(cookie_name(request), ""))
    response = RedirectResponse(f"{ROOT}/signin", 303)
    response.delete_cookie(cookie_name(request), path=ROOT)
    return response


def _signin(wrong: str, status: int = 200) -> HTMLResponse:
    template = environment().get_template("signin.html")
    return HTMLResponse(template.render(wrong=wrong, profile=None), status)


def sign_in_link(app: FastAPI, url: str, profile: str) -> str:
    """A link that signs one browser in to a profile, once, within minutes.

    What opens the profile is after the ``#``: a browser sends that to no server.

    Args:
        app: the server's application.
        url: where it listens, without a path.
        profile: the name of an opened profile.
    """
    return f"{url}{ROOT}/signin#code={console_of(app).sessions.new_code(profile)}"
