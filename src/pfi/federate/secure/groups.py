"""A cohort in groups, each with a secure sum of its own, and how their stages are driven.

So a robust rule can act on means: the server sees one a group and no client's update; a rule that
bears b bad groups bears b bad clients at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.message import Failure, Message
from pfi.federate.secure.server import SecureServer
from pfi.federate.secure.terms import STAGES

#: Sends messages by client and yields the replies as they come; a failure or an error for who
#: dropped out.
Ask = Callable[[Mapping[str, Message]], Iterable[tuple[str, Message | Failure | FederationError]]]


def groups(clients: Sequence[str], size: int, seed: int) -> list[list[str]]:
    """Divide clients by chance into as many groups as possible, none smaller than ``size``.

    Sizes differ by one at most; the same clients in any order and the same seed give the same.

    Raises:
        FederationError: there are fewer clients than one group needs, or one is listed twice.
    """
    names = sorted(set(clients))
    if len(names) != len(clients):
        raise FederationError("a client is listed twice", where="secure aggregation")
    if len(names) < size:
        raise FederationError(
            f"{len(names)} clients are fewer than the {size} of one group",
            where="secure aggregation",
            fix="ask more clients",
        )
    count = len(names) // size
    order = generator(seed, "groups").permutation(len(names))
    return [sorted(names[place] for place in order[first::count]) for first in range(count)]


def run_groups(
    servers: Sequence[SecureServer], ask: Ask
) -> tuple[list[FederationError | None], dict[str, str]]:
    """Drive the sums of groups; each stage is asked of all groups together.

    Args:
        servers: fresh, with no client in two of them.
        ask: what it does not yield has dropped out.

    Returns:
        for each server None where it has its sum now, else why the group ended without one; and
        why replies were refused or did not come, by client.
    """
    of = {name: server for server in servers for name in server.terms.names}
    failed: dict[int, FederationError] = {}
    whys: dict[str, str] = {}
    for stage in STAGES:
        going = [n for n in range(len(servers)) if n not in failed]
        messages: dict[str, Message] = {}
        for number in going:
            messages |= servers[number].requests(stage)
        for client, reply in ask(messages):
            try:
                if isinstance(reply, FederationError):
                    raise reply
                if isinstance(reply, Failure):
                    raise FederationError(reply.why)
                if client not in messages:
                    raise FederationError("it was not asked")
                of[client].receive(stage, client, reply)
            except FederationError as error:
                whys.setdefault(client, error.what)
        for number in going:
            try:
                servers[number].close(stage)
            except FederationError as error:
                listed = [f"{n}: {whys[n]}" for n in servers[number].terms.names if n in whys]
                failed[number] = FederationError(
                    error.what,
                    where=f"secure sum, stage {stage}",
                    fix="; ".join(listed[:5]) or None,
                )
    return [failed.get(number) for number in range(len(servers))], whys


def run(server: SecureServer, ask: Ask) -> dict[str, str]:
    """Drive one sum.

    Returns:
        why replies were refused or did not come, by client.

    Raises:
        FederationError: too few were left at a stage.
    """
    (error,), whys = run_groups([server], ask)
    if error is not None:
        raise error
    return whys
