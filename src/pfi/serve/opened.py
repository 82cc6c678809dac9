"""What a request's token opens: the models of each of its profiles, and for how long."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request

from pfi.errors import PfiError
from pfi.serve.auth import Caller
from pfi.serve.errors import no_model
from pfi.serve.gatekeeper import Gatekeeper
from pfi.serve.service import EMBEDDINGS, Model, Service

#: How often it is asked whether a token still opens the answer that is being given.
CHECK_SECONDS = 1.0
#: An answer whose token cannot be checked for so long, since the vault cannot be read, ends.
UNCHECKED_SECONDS = 10.0


def pick_model(request: Request, name: str) -> tuple[Caller, Model]:
    """The model of that id, and who asks it; what is nobody's is asked in the first profile.

    Raises:
        ApiError: 404, there is none that the token opens.
    """
    service: Service = request.app.state.service
    for caller in callers_of(request):
        model = service.model(caller.profile, name)
        if model is not None:
            return caller, model
    raise no_model(name)


def model_names(request: Request) -> list[str]:
    """The ids of the models that a request's token opens, those of nobody last."""
    service: Service = request.app.state.service
    models = [model for one in callers_of(request) for model in service.models(one.profile)]
    own = [model.id for model in models if model.profile is not None]
    shared = dict.fromkeys(model.id for model in models if model.profile is None)
    return [*own, *shared] + [EMBEDDINGS] * (service.embedder() is not None)


def check_model(request: Request, name: str) -> None:
    """See that there is a model of that id, the sentence model included.

    Raises:
        ApiError: 404, there is none that the token opens.
    """
    if name != EMBEDDINGS or request.app.state.service.embedder() is None:
        pick_model(request, name)


def callers_of(request: Request) -> tuple[Caller, ...]:
    """Who asks, in each profile that the token opens."""
    callers: tuple[Caller, ...] = request.state.callers
    return callers


async def until_revoked(keeper: Gatekeeper, caller: Caller) -> None:
    """Return when a token opens its profile no more: it was revoked, has ended, or who knows.

    Args:
        keeper: tells.
        caller: whose token was right before.
    """
    loop, checked = asyncio.get_running_loop(), time.monotonic()
    while time.monotonic() - checked < UNCHECKED_SECONDS:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            still = await loop.run_in_executor(
                keeper.pool, keeper.still, caller.profile, caller.token, "answer"
            )
        except PfiError:
            continue  # a lock that passes is no reason to end what was begun rightly
        if not still:
            return
        checked = time.monotonic()
