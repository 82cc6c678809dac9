"""What strategies share whose factors are cut to each client's rank before they are sent.

The server learns a client's rank from its first update; until then it sends all ranks, and the
client cuts them.  A device's rank is taken not to grow within a federation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from pfi.errors import FederationError
from pfi.federate.aggregate.factors import send_factors
from pfi.federate.layout import Row
from pfi.federate.message import Array, Message
from pfi.federate.strategy import Strategy
from pfi.federate.work import Client, Memory, Model, State, Train, Trained, Work


class CutStrategy(Strategy):
    """The first ranks of ``row`` are what a client of a smaller rank is sent.

    Its state is ``row``, and ``ranks``: the known ranks of clients, as JSON.
    """

    _known: tuple[State, dict[str, int]] = ({}, {})

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """The factors up to the client's rank."""
        if self._known[0] is not state:
            self._known = state, known_ranks(state)
        rank = self._known[1].get(client, self.layout.rank)

        def make() -> Message:
            row = self.layout.resized(state["row"], self.layout.with_rank(rank))
            return Message({"row": row}, {"rank": rank})

        return self.once(state, make, str(rank))

    def sent_rank(self, message: Message) -> int:
        """The rank of the factors in a message.

        Raises:
            FederationError: it is no number from 1 to the layout's rank.
        """
        rank = message.number("rank")
        if rank != int(rank) or not 1 <= rank <= self.layout.rank:
            raise FederationError(f"a message has factors of rank {rank}")
        return int(rank)

    def received(self, message: Message, name: str = "row") -> Row:
        """A row of a message, filled up with zeros."""
        cut = self.layout.with_rank(self.sent_rank(message))
        return cut.resized(message.array(name, np.float32, (cut.width,)), self.layout)

    def model(self, state: State) -> Model:
        """All ranks of the factors."""
        return Model(state["row"], self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the factors within the client's rank, and send as many ranks as it keeps."""
        rank = min(client.rank, self.sent_rank(message))
        cut = self.layout.with_rank(rank)
        row = cut.resized(self.layout.resized(self.received(message), cut), self.layout)
        correction = self.correction(row, rank)
        trained: Trained = yield Train(
            row, pull=row, mu=self.config.local.prox, correction=correction
        )
        new_rank = self.kept_rank(row, trained.row, rank)
        return send_factors(self.layout, trained.row, new_rank, trained.examples)

    def correction(self, row: Row, rank: int) -> Row | None:
        """What is added to the gradients of a client's training."""
        return None

    def kept_rank(self, start: Row, trained: Row, rank: int) -> int:
        """The rank that a client goes on with."""
        return rank


def known_ranks(state: State) -> dict[str, int]:
    """The ranks of clients that the server knows."""
    return json.loads(state["ranks"].tobytes()) if "ranks" in state else {}


def with_ranks(state: State, ranks: Mapping[str, int]) -> dict[str, Array]:
    """The array of known ranks after a round."""
    text = json.dumps({**known_ranks(state), **ranks}, sort_keys=True)
    return {"ranks": np.frombuffer(text.encode(), np.uint8)}
