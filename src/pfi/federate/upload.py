"""An update as it leaves the client: within the bound, compressed; and as the server reads it."""

from __future__ import annotations

import numpy as np

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Vector
from pfi.federate.compress import RESIDUAL, compress, decompress
from pfi.federate.config import FederateConfig
from pfi.federate.message import Message
from pfi.federate.privacy.private_mean import clipped
from pfi.federate.work import Client, Memory, Update

#: Names of a message's arrays that are the update begin with it.
_UPDATE = "update."


def bounded(update: Update, message: Message) -> Vector:
    """An update within the bound that the server's message tells, where it tells one.

    Raises:
        FederationError: the update is not finite.
    """
    if not np.isfinite(update.vector).all():
        raise FederationError("an update is not finite", fix="lower local.learning_rate")
    if "clip" not in message.values:
        return update.vector.astype(np.float32, copy=False)
    return clipped(update.vector, message.number("clip"))[0].astype(np.float32)


def pack(
    update: Update, message: Message, config: FederateConfig, memory: Memory, client: Client
) -> Message:
    """What a client sends of its update."""
    rng = generator(client.seed, "compress")
    residual = RESIDUAL + update.part
    waiting = {RESIDUAL: memory[residual]} if residual in memory else {}
    arrays = compress(bounded(update, message), config.compress, waiting, rng)
    if RESIDUAL in waiting:
        memory[residual] = waiting[RESIDUAL]
    named = {_UPDATE + name: array for name, array in arrays.items()}
    return Message(named, {**update.values, "weight": update.weight})


def unpack(message: Message, size: int) -> tuple[Vector, float]:
    """A client's update, and the weight that it states.

    Raises:
        FederationError: it is malformed.
    """
    arrays = {
        name.removeprefix(_UPDATE): array
        for name, array in message.arrays.items()
        if name.startswith(_UPDATE)
    }
    return decompress(arrays, size), message.number("weight")
