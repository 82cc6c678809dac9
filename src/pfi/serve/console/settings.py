"""The settings that are safe to change in a browser, tokens of apps, and erasing everything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response

from pfi.augment.config import TeacherConfig
from pfi.errors import ConfigError
from pfi.serve.console.data import erased
from pfi.serve.console.view import ConsoleRoute, Signed, Visit, said, toast

router = APIRouter(route_class=ConsoleRoute)


@router.get("/settings")
def page(visit: Signed) -> Response:
    """The settings as they are."""
    from pfi.profile.answer.conversation import read_system
    from pfi.profile.learn.augmenting import augment_config
    from pfi.tasks import tasks

    return visit.page(
        "settings.html",
        system=read_system(visit.home),
        config=visit.home.config,
        names=names_of(visit),
        augment=augment_config(visit.home, {}),
        other=configured(visit),
        tasks=tasks(),
        tokens=_tokens(visit),
        fresh="",
        where=str(visit.request.base_url).rstrip("/"),
        sizes=visit.home.sizes(),
    )


def names_of(visit: Visit) -> list[str]:
    """The names that no teacher elsewhere shall read."""
    from pfi.profile.home import NAMES

    with visit.home.open_vault() as vault:
        return [*(vault.setting(NAMES) or [])]


@router.post("/settings")
def save(
    visit: Signed,
    task: Annotated[str, Form()] = "",
    retrieve: Annotated[int, Form()] = 2,
    answers: Annotated[int, Form()] = 50,
    refresh_after: Annotated[str, Form()] = "",
    names: Annotated[str, Form()] = "",
    system: Annotated[str, Form()] = "",
    max_tokens: Annotated[int, Form()] = 512,
    temperature: Annotated[str, Form()] = "",
    top_p: Annotated[str, Form()] = "",
) -> Response:
    """Change how questions are answered.

    Raises:
        ConfigError: a value makes no sense; nothing is changed.
    """
    from pfi._util.settings import checked
    from pfi.profile.answer.conversation import write_system
    from pfi.profile.answer.sampling import SamplingConfig
    from pfi.profile.home import NAMES

    given = {"temperature": temperature.strip(), "top_p": top_p.strip()}
    others = {name: v for name, v in visit.home.config.sampling.items() if name not in given}
    sampling = {**others, **{name: text for name, text in given.items() if text}}
    known = checked(SamplingConfig, sampling, "sampling").model_dump(exclude_none=True)

    values = {
        "task": visit.task(task).name if task else None,
        "retrieve": retrieve,
        "answers": answers,
        "refresh_after": _whole(refresh_after, "refresh after"),
        "max_tokens": max_tokens,
        "sampling": known,
    }
    _change(visit, values)
    listed = dict.fromkeys(name.strip() for name in re.split(r"[,\n]", names))
    with visit.home.open_vault() as vault:
        vault.set_setting(NAMES, [name for name in listed if name] or None)
    write_system(visit.home, system)
    return said("Saved.")


@router.post("/settings/teacher")
def teacher(
    visit: Signed,
    kind: Annotated[str, Form()],
    policy: Annotated[str, Form()] = "redact",
    budget_tokens: Annotated[str, Form()] = "",
    model: Annotated[str | None, Form()] = None,
    base_url: Annotated[str | None, Form()] = None,
) -> Response:
    """Change whether the configured teacher is used, under which policy, and the budget.

    Where a teacher is and which key it gets is said in ``config.yaml``, by who runs the server.

    Raises:
        ConfigError: a value makes no sense, or is not the console's to say; nothing is changed.
    """
    from pfi._util.settings import checked
    from pfi.augment.config import AugmentConfig
    from pfi.profile.learn.augmenting import joined

    stored = dict(visit.home.config.augment.get("teacher") or {})
    other = configured(visit)
    fix = "write the teacher's kind, model and base_url into the profile's config.yaml"
    if kind not in ("embedded", other):
        raise ConfigError(f"no teacher of kind {kind!r} is configured", fix=fix)
    for name, value in (("model", model), ("base_url", base_url)):
        if value is not None and value.strip() not in ("", str(stored.get(name, ""))):
            raise ConfigError(f"the teacher's {name} is not set in the console", fix=fix)
    given: dict[str, object] = {"kind": kind}
    if other == "openai":  # so that it can be chosen again
        given["base_url"] = stored.get("base_url") or TeacherConfig().base_url
    tokens = _whole(budget_tokens, "budget")
    new = {"teacher": given, "policy": policy, "budget_tokens": tokens}
    values = joined(visit.home.config.augment, new)
    checked(AugmentConfig, values, "augmentation settings")
    _change(visit, {"augment": values})
    return said("Saved.")


def configured(visit: Visit) -> str | None:
    """The kind of the teacher in ``config.yaml`` beside the embedded one; None without one."""
    stored = visit.home.config.augment.get("teacher") or {}
    kind = str(stored.get("kind", "embedded"))
    if kind != "embedded":
        return kind
    return "openai" if stored.get("base_url") else "local" if stored.get("model") else None


def _change(visit: Visit, values: Mapping[str, object]) -> None:
    """Write settings, all or none, over what the file says now; the open profile takes them over.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi._util.settings import checked
    from pfi.profile.config import HomeConfig
    from pfi.profile.open import open_home

    written = open_home(visit.profile, root=visit.home.path.parent)
    checked(HomeConfig, {**written.config.model_dump(), **values}, "settings")
    for config in (written.config, visit.home.config):
        for name, value in values.items():
            setattr(config, name, value)
    written.save_config()


def _whole(text: str, name: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal() or len(text.strip()) > 12:
        raise ConfigError(f"{text[:40]!r} is no whole number", where=name)
    return int(text)


# Apps -------------------------------------------------------------------------------


def _tokens(visit: Visit) -> list[object]:
    from pfi.serve.auth import tokens_of

    return [*tokens_of(visit.home)]


@router.post("/settings/tokens")
def new_token(
    visit: Signed,
    label: Annotated[str, Form()] = "",
    memory: Annotated[bool, Form()] = False,
    days: Annotated[int | None, Form(ge=1, le=36500)] = None,
) -> Response:
    """Make a token for an app; it is shown once.

    Those that open the console are made on the command line alone.  What is made in a session
    that a token began ends with that token.
    """
    from pfi.serve.auth import new_token as make

    _, text = make(
        visit.home,
        label.strip() or "made in the console",
        scopes=("answer", "memory") if memory else ("answer",),
        expires=None if days is None else datetime.now(UTC) + timedelta(days=days),
        parent=visit.token or None,
    )
    return visit.page("_tokens.html", tokens=_tokens(visit), fresh=text)


@router.post("/settings/tokens/revoke")
def revoke(visit: Signed, token: Annotated[str, Form()]) -> Response:
    """Make a token useless."""
    from pfi.serve.auth import revoke_token

    revoke_token(visit.home, token)
    response = visit.page("_tokens.html", tokens=_tokens(visit), fresh="")
    response.headers.update(toast("This token opens nothing any more."))
    return response


# Erasing everything -----------------------------------------------------------------


@router.post("/settings/erase")
def erase(visit: Signed, name: Annotated[str, Form()] = "") -> Response:
    """Erase all that the profile has learnt and holds; its name has to be typed.

    Raises:
        ConfigError: the name is another one, or a job is running.
    """
    from pfi.profile.erase.erasure import erase_everything

    if name != visit.profile:
        raise ConfigError(f"type {visit.profile} to erase everything", fix="nothing was erased")
    if visit.console.jobs.running(visit.profile):
        raise ConfigError("a job is running", fix="stop it first")
    return erased(visit, erase_everything(visit.home).statement)
