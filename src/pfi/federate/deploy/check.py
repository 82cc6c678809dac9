"""A check of a fleet without a model: messages go to every device and come back unchanged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.message import Failure, Fleet, Message

KIND = "check"


def echo(data: bytes) -> bytes:
    """The device's side: a well-formed message as it came.

    Raises:
        FederationError: it is malformed, or no check.
    """
    message = Message.decode(data)
    if message.values.get("kind") != KIND:
        raise FederationError("this agent answers checks only", fix="start it with a profile")
    return message.encode()


def run_check(
    fleet: Fleet,
    *,
    rounds: int,
    size: int,
    seconds: float | None,
    on_round: Callable[[dict[str, Any]], None],
) -> None:
    """Send all clients `size` random values in each round, and compare what comes back.

    Args:
        fleet: who is asked.
        rounds: how many.
        size: values in a message.
        seconds: how long a reply is waited for; None: as long as the fleet usually does.
        on_round: gets each round's event.
    """
    for number in range(1, rounds + 1):
        values = generator(0, "check", number).standard_normal(size, np.float32)
        data = Message({"values": values}, {"kind": KIND, "round": number}).encode()
        clients, start = fleet.clients(), time.monotonic()
        took: dict[str, float] = {}
        failures: dict[str, str] = {}
        bytes_up = 0
        for client, reply in fleet.ask(number - 1, dict.fromkeys(clients, data), seconds):
            if isinstance(reply, Failure):
                failures[client] = reply.why
                continue
            bytes_up += len(reply)
            took[client] = round(time.monotonic() - start, 3)
            if reply != data:
                failures[client] = "its reply is not what it got"
        on_round(
            {
                "event": "round",
                "number": number - 1,
                "asked": len(clients),
                "clients": len(clients) - len(failures),
                "failed": failures,
                "refused": {},
                "bytes_down": len(data) * len(clients),
                "bytes_up": bytes_up,
                "seconds": round(time.monotonic() - start, 3),
                "replies": took,
                "losses": {},
                "kept": True,
            }
        )
