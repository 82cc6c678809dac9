"""A personal adapter beside the shared one: FedDPA (2403.19211) and Ditto (2012.04221)."""

from __future__ import annotations

import numpy as np

from pfi._util.seeds import generator
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layout, Row
from pfi.federate.message import Message
from pfi.federate.strategy import LinearStrategy
from pfi.federate.work import Client, Memory, Model, State, Train, Trained, Update, Work, remembered


class FedDPA(LinearStrategy):
    """FedDPA: the first ranks of a row are the shared half, the others the personal one.

    The shared half is trained alone, the personal one on top of the shared one as received, so
    what is sent never depends on the personal half.  The sum of both answers; how much of the
    personal half, per question, is the gate's (`pfi.profile.learn.gate`).  A newcomer has no
    personal half.
    """

    name = "feddpa"
    computes = "the mean of the shared A and B, as average; the personal half stays at home"
    stateful = True

    def __init__(self, layout: Layout, config: FederateConfig) -> None:
        super().__init__(layout, config)
        self.personal = layout.with_rank(config.dual.rank)
        self.shared = layout.with_rank(layout.rank - config.dual.rank)

    @classmethod
    def rank(cls, config: FederateConfig) -> int:
        """Both halves."""
        return config.local.rank + config.dual.rank

    @property
    def size(self) -> int:
        """Numbers in an update: of the shared half."""
        return self.shared.width

    def start(self) -> State:
        """The shared half."""
        return {"row": self.shared.fresh(generator(self.config.seed, "start"))}

    def model(self, state: State) -> Model:
        """The shared half."""
        return Model(state["row"], self.shared)

    def received(self, message: Message, name: str = "row") -> Row:
        """The shared half as sent."""
        return message.array(name, np.float32, (self.shared.width,))

    def own_model(self, message: Message, memory: Memory) -> Model:
        """Both halves."""
        return Model(self._whole(self.received(message), self._kept(memory)), self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the shared half, and the personal one where that is done in every round."""
        row = self._whole(self.received(message), None)
        mask = self.layout.mask(ranks=slice(0, self.shared.rank))
        trained: Trained = yield Train(row, mask, pull=row, mu=self.config.local.prox)
        if self.config.dual.when == "T":
            yield from self.finish(message, memory, client)
        change = self.layout.resized(trained.row - row, self.shared)
        return Update(change, trained.examples)

    @property
    def finishes(self) -> bool:
        """FedDPA-F: clients train their personal half after the last round."""
        return self.config.dual.when == "F"

    def finish(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the personal half on top of the shared one as received; nothing is sent."""
        own = self._kept(memory)
        if own is None:
            own = self.personal.fresh(generator(self.config.seed, "personal", client.id))
        row = self._whole(self.received(message), own)
        mask = self.layout.mask(ranks=slice(self.shared.rank, None))
        trained: Trained = yield Train(row, mask, purpose="personal")
        memory["personal"] = self._personal_of(trained.row)
        return Message()

    def _kept(self, memory: Memory) -> Row | None:
        return remembered(memory, "personal", np.float32, (self.personal.width,))

    def _whole(self, shared: Row, personal: Row | None) -> Row:
        row = self.shared.resized(shared, self.layout)
        if personal is not None:
            for i in range(len(self.layout.layers)):
                self.layout.a(row, i)[self.shared.rank :] = self.personal.a(personal, i)
                self.layout.b(row, i)[self.shared.rank :] = self.personal.b(personal, i)
        return row

    def _personal_of(self, row: Row) -> Row:
        personal = np.zeros(self.personal.width, np.float32)
        for i in range(len(self.layout.layers)):
            self.personal.a(personal, i)[:] = self.layout.a(row, i)[self.shared.rank :]
            self.personal.b(personal, i)[:] = self.layout.b(row, i)[self.shared.rank :]
        return personal


class Ditto(LinearStrategy):
    """Ditto: besides the shared row a client trains one of its own, pulled to the shared one.

    The personal row begins as the shared one of a client's first round; a newcomer answers with
    the shared row.
    """

    name = "ditto"
    computes = "the mean of the A and the mean of the B, as average; the personal row stays at home"
    stateful = True

    def own_model(self, message: Message, memory: Memory) -> Model:
        """The personal row."""
        own = self._kept(memory)
        return Model(self.received(message) if own is None else own, self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the shared row, and the personal one pulled to it as received."""
        row, own = self.received(message), self._kept(memory)
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        personal: Trained = yield Train(
            row if own is None else own,
            pull=row,
            mu=self.config.ditto.strength,
            purpose="personal",
        )
        memory["personal"] = personal.row
        return Update(trained.row - row, trained.examples)

    def _kept(self, memory: Memory) -> Row | None:
        return remembered(memory, "personal", np.float32, (self.layout.width,))
