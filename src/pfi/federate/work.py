"""What strategies, rounds and clients exchange: requests to an engine, updates as they leave the
client and as the server reads them, models, state.

A client's work is a generator that asks an engine for what needs the model (training, losses) and
ends with its update.  An engine serves many clients' requests in one pass of a bank, or one's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Combined, Vector
from pfi.federate.compress import RESIDUAL, CompressConfig, compress, decompress
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Array, Message, Value
from pfi.federate.privacy.dp_fedavg import PrivacyConfig
from pfi.federate.privacy.private_mean import clipped

#: What the server has learnt, by name; a checkpoint holds it whole.
State = dict[str, Array]
#: What a client keeps at home from round to round, by name; it never leaves the device.
Memory = dict[str, Array]
#: Names of a message's arrays that are the update begin with it.
_UPDATE = "update."


@dataclass(frozen=True)
class Train:
    """Ask for a row to be trained on the client's own examples.

    Attributes:
        row: ``(width,)`` factors to begin with.
        mask: ``(width,)`` which numbers are trained; all when None.
        pull: ``(width,)`` what the row is pulled to, as in FedProx (1812.06127).
        mu: of ``mu / 2 * ||row - pull||²``, added to the loss.
        correction: ``(width,)`` added to every gradient before it is clipped.
        purpose: of this training, so that two of one round differ in their order of examples.
    """

    row: Row
    mask: NDArray[np.bool_] | None = None
    pull: Row | None = None
    mu: float = 0.0
    correction: Row | None = None
    purpose: str = "shared"


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        row: ``(width,)``, a copy of one's own.
        examples: how many it was trained on.
        steps: optimiser steps taken.
        loss: their mean loss.
    """

    row: Row
    examples: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Losses:
    """Ask for the mean loss of rows on the client's own examples; answered by a list of floats.

    Attributes:
        rows: each ``(width,)``.
        batch: only on the examples of this step of the local plan; on all when None.
    """

    rows: Sequence[Row]
    batch: int | None = None


@dataclass(frozen=True)
class Client:
    """What a client's work may know of itself.

    Attributes:
        id: its name.
        round: the number of the round.
        examples: how many it has.
        steps: of its local plan.
        rank: the largest rank that it can train; the layout's where it has no limit.
        seed: of its random choices in this round.
    """

    id: str
    round: int
    examples: int
    steps: int
    rank: int
    seed: int


@dataclass(frozen=True)
class Update:
    """What a client of a linear strategy sends.

    Attributes:
        vector: the difference to what was broadcast.
        weight: its number of examples.
        values: what else the strategy needs, in clear.
        part: of the state that the vector is of, where that differs from round to round; what
            compression has not sent yet waits for the same part.
    """

    vector: Vector
    weight: float
    values: dict[str, Value] = field(default_factory=dict)
    part: str = ""


def bound_of(message: Message, privacy: PrivacyConfig) -> float:
    """The largest L2 norm of a client's update: the server's bound, within the client's own.

    The server may tell a smaller one, or one that follows the updates up to a limit; whatever it
    tells, or leaves out, the client's own settings hold.  Infinite where neither has one.

    Raises:
        FederationError: the server's bound is none.
    """
    private = privacy.mechanism != "none"
    stated = message.number("clip") if "clip" in message.values else math.inf
    if stated <= 0:
        raise FederationError(f"the server states a bound of {stated:g} on updates")
    if not private:
        return stated
    return min(stated, privacy.limit) if math.isfinite(stated) else privacy.clip


def bounded(update: Update, bound: float) -> Vector:
    """An update within a bound on its L2 norm.

    Raises:
        FederationError: the update is not finite.
    """
    if not np.isfinite(update.vector).all():
        raise FederationError("an update is not finite", fix="lower local.learning_rate")
    if bound == math.inf:
        return update.vector.astype(np.float32, copy=False)
    return clipped(update.vector, bound)[0].astype(np.float32)


def pack(
    update: Update,
    message: Message,
    config: CompressConfig,
    memory: Memory,
    client: Client,
    privacy: PrivacyConfig | None = None,
) -> Message:
    """What a client sends of its update; with privacy all clients state the same weight."""
    privacy = privacy or PrivacyConfig()
    bound = bound_of(message, privacy)
    rng = generator(client.seed, "compress")
    residual = RESIDUAL + update.part
    waiting = {RESIDUAL: memory[residual]} if residual in memory else {}
    arrays = compress(bounded(update, bound), config, waiting, rng)
    if RESIDUAL in waiting:
        memory[residual] = waiting[RESIDUAL]
    if config.active and bound < math.inf:
        arrays = _shortened(arrays, len(update.vector), bound)
    named = {_UPDATE + name: array for name, array in arrays.items()}
    weight = update.weight if privacy.mechanism == "none" else 1.0
    return Message(named, {**update.values, "weight": weight})


def _shortened(arrays: dict[str, Array], size: int, bound: float) -> dict[str, Array]:
    """A compressed update within a bound: rounding, and what waited, can make it longer."""
    norm = float(np.linalg.norm(decompress(arrays, size).astype(np.float64)))
    if norm <= bound:
        return arrays
    name = "scales" if "scales" in arrays else "vector"  # in which all numbers are linear
    return {**arrays, name: arrays[name] * np.float32(bound / norm * (1 - 1e-6))}


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


Request = Train | Losses
Work = Generator[Request, Any, Update | Message]


@dataclass(frozen=True)
class Model:
    """What a client answers with.

    Attributes:
        row: ``(width,)`` in ``layout``.
        layout: the rank may be another than that of training.
        base: by layer what is added to the backbone's weights, ``(outputs, inputs)``; or None.
    """

    row: Row
    layout: Layout
    base: Sequence[NDArray[np.float32]] | None = None

    def products(self) -> list[NDArray[np.float64]]:
        """Every layer's whole update, the base's included, ``(outputs, inputs)``."""
        products = self.layout.products(self.row)
        if self.base is None:
            return products
        return [product + base for product, base in zip(products, self.base, strict=True)]


class Aggregate(ABC):
    """Takes the updates of a round one by one and makes the server's next state."""

    @abstractmethod
    def add(self, client: str, message: Message) -> None:
        """Take a client's update.

        Raises:
            FederationError: it is refused; the round goes on without it.
        """

    @abstractmethod
    def result(self) -> tuple[State, Combined | None]:
        """The next state, and how it was combined where the strategy is linear."""


def remembered(memory: Memory, name: str, dtype: Any, shape: tuple[int, ...]) -> Array | None:
    """What a client kept by that name; None if it kept nothing.

    Raises:
        FederationError: it is of another type or shape, as after a change of settings.
    """
    array = memory.get(name)
    if array is not None and (array.dtype != np.dtype(dtype) or array.shape != shape):
        what = f"what a client kept as {name!r} is {array.dtype} {array.shape}"
        raise FederationError(f"{what}, not {np.dtype(dtype)} {shape}", fix="begin a new run")
    return array
