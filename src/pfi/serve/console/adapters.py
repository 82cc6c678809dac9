"""Adapters by version: what they learnt, how they score on held-back records, which is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response

from pfi.profile.adapters.store import Manifest
from pfi.serve.console.view import ConsoleRoute, Signed, number, toast

router = APIRouter(route_class=ConsoleRoute)


@router.get("/adapters")
def page(visit: Signed) -> Response:
    """Every version by task, the newest first, and what can be started."""
    from pfi.profile.answer.gate_file import describe, read_gate

    home = visit.home
    personal, shared = home.personal_adapters, home.shared_adapters
    with home.open_vault() as vault:
        counts = vault.tasks()
    by_task: dict[str, list[Manifest]] = {name: [] for name in counts}
    for manifest in reversed(personal.list()):
        by_task.setdefault(manifest.task, []).append(manifest)
    gate = {name: describe(one.choice) for name, one in read_gate(home).items()}
    return visit.page(
        "adapters.html",
        by_task=by_task,
        counts=counts,
        active=personal.all_active(),
        shared=shared.all_active(),
        shared_list=list(reversed(shared.list())),
        gate=gate,
        scores=scores,
        chosen=home.config.task,
    )


def scores(manifest: Manifest) -> Sequence[tuple[str, str, str]]:
    """Held-back scores: name, value, and the value before where it is known."""
    return [
        (
            name,
            number(value),
            number(manifest.metrics[f"{name}_before"])
            if f"{name}_before" in manifest.metrics
            else "",
        )
        for name, value in manifest.metrics.items()
        if not name.endswith("_before")
    ]


@router.post("/adapters/use")
def use(visit: Signed, version: Annotated[str, Form()]) -> Response:
    """Take a version into use."""
    manifest = visit.home.personal_adapters.use(version)
    return _again(f"{manifest.task} is answered with adapter {version} now.")


@router.post("/adapters/none")
def none(visit: Signed, task: Annotated[str, Form()]) -> Response:
    """Answer a task without a personal adapter."""
    visit.home.personal_adapters.use_none(visit.task(task).name)
    return _again(f"{task} is answered without a personal adapter now.")


@router.post("/adapters/rollback")
def rollback(visit: Signed, task: Annotated[str, Form()]) -> Response:
    """Go back to what was in use before."""
    before = visit.home.personal_adapters.rollback(visit.task(task).name)
    with_what = f"with adapter {before}" if before else "without a personal adapter"
    return _again(f"{task} is answered {with_what} again.")


def _again(line: str) -> Response:
    return Response(status_code=204, headers=toast(line, **{"HX-Refresh": "true"}))
