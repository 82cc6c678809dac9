"""A client's factors as they are sent: only the ranks that it trained, with what the server
checks before it takes them.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from pfi.errors import FederationError
from pfi.federate.aggregate.bounds import numbers_refusal, weight_refusal
from pfi.federate.aggregate.mean import Combined
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.work import Aggregate, State


def send_factors(layout: Layout, row: Row, rank: int, examples: int) -> Message:
    """A trained row, cut to its first ranks, as a message to the server."""
    values = {"examples": examples, "rank": rank, "scale": layout.scale}
    return Message({"row": layout.resized(row, layout.with_rank(rank))}, values)


def read_factors(message: Message, layout: Layout) -> tuple[Layout, Row, float]:
    """A client's factors in the layout of their rank, and its number of examples.

    Raises:
        FederationError: the message is malformed, its numbers make no sense, or the client
            multiplies its products by another scale (alpha / rank) than the server.
    """
    rank, scale, examples = (message.number(name) for name in ("rank", "scale", "examples"))
    if rank != int(rank) or not 1 <= rank <= layout.rank:
        raise FederationError(f"an update has the rank {rank}, not one of 1 to {layout.rank}")
    if not np.isclose(scale, layout.scale, rtol=1e-6, atol=0.0):
        what = f"an update has the scale {scale}, not {layout.scale}"
        raise FederationError(what, fix="use the same alpha and rank on all devices")
    if weight_refusal(examples) is not None:
        raise FederationError(f"an update states {examples:g} examples")
    own = layout.with_rank(int(rank))
    row = message.array("row", np.float32, (own.width,))
    if (why := numbers_refusal(row)) is not None:
        raise FederationError(why)
    return own, row, float(examples)


class FactorAggregate(Aggregate):
    """Takes clients' factors; what is done with them is in ``take`` and ``next_state``.

    Args:
        layout: of the rows that clients train.
        state: the server's, before this round.

    Attributes:
        ranks: of the clients that were taken.
    """

    def __init__(self, layout: Layout, state: State) -> None:
        self.layout, self.state = layout, state
        self.ranks: dict[str, int] = {}

    @abstractmethod
    def take(self, layout: Layout, row: Row, examples: float) -> None:
        """Add factors of any rank to the sums."""

    @abstractmethod
    def next_state(self) -> State:
        """The next state; at least one client was taken."""

    def add(self, client: str, message: Message) -> None:
        """See ``Aggregate``."""
        if client in self.ranks:
            raise FederationError(f"the client {client} sent a second update in a round")
        layout, row, examples = read_factors(message, self.layout)
        self.take(layout, row, examples)
        self.ranks[client] = layout.rank

    def result(self) -> tuple[State, Combined | None]:
        """See ``Aggregate``; without a single update the state stays."""
        return (self.next_state() if self.ranks else self.state), None
