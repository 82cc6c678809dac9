"""A fleet of simulated clients: slots of a bank, their data streamed from disk.

The cohort is cut into chunks in its own order, so that the result does not depend on the number
of processes; each process keeps one backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pfi._util.seeds import generator
from pfi._util.workers import WorkerPool
from pfi.errors import ConfigError
from pfi.federate.aggregate.exact import as_adapter
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.message import Failure, Message, read_values
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.terms import STAGES
from pfi.federate.strategy import LinearStrategy, Strategy
from pfi.federate.users import Population
from pfi.federate.work import State
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone

Chunk = list[tuple[str, bytes]]
Replies = dict[str, bytes | Failure]
_FIX = "go on with --resume, with fewer workers if memory ran out"


class _Answer:
    """Answers chunks of a cohort.

    Clients that are sent the same get one ``Message``, also from chunk to chunk: it is read, and
    its base put under the adapters, once.
    """

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self._messages: dict[bytes, Message] = {}

    def __call__(self, chunk: Chunk) -> Replies:
        return dict(self.one_by_one(chunk))

    def one_by_one(self, chunk: Chunk) -> Iterator[tuple[str, bytes | Failure]]:
        """The replies in order, each as soon as it may come."""
        sent = {data for _, data in chunk}
        known = {data: message for data, message in self._messages.items() if data in sent}
        self._messages = {data: known.get(data) or Message.decode(data) for data in sent}
        return self.clients.answers({name: self._messages[data] for name, data in chunk})


def _make_answer(
    backbone: Backbone | str, population: Population, config: FederateConfig, folder: Path
) -> _Answer:
    """What answers for a population in one process; a backbone given by name is loaded."""
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    working_set = config.simulate.working_set
    return _Answer(Clients(backbone, population, config, Memories(folder), working_set))


class SimulatedFleet:
    """Clients of this machine; see ``Fleet``.

    Args:
        backbone: the frozen model; with several workers each loads it again by its name.
        population: the clients' data; picklable if there are several workers.
        config: of the federation.
        folder: where clients keep what they have from round to round.

    Raises:
        ConfigError: there are no clients.
    """

    def __init__(
        self, backbone: Backbone, population: Population, config: FederateConfig, folder: Path
    ) -> None:
        self.config, self._names = config, list(population.clients())
        if not self._names:
            raise ConfigError("there are no clients", fix="give data of some users")
        self._answer = _make_answer(backbone, population, config, folder)
        self._clients = self._answer.clients
        #: Keys for secure aggregation, where it is on.
        self.parties: Parties | None = None
        if config.secure is not None and isinstance(self.strategy, LinearStrategy):
            self.parties = Parties.simulated(config.secure, self._names, self.strategy.size)
            self._clients.parties = self.parties
        self._pool: WorkerPool[Chunk, Replies] | None = None
        if (workers := config.simulate.workers) > 1:
            # Replies are large: a process gets its next clients when their turn has come.
            make = partial(_make_answer, backbone.name, population, config, folder)
            self._pool = WorkerPool(make, workers, ahead=1, fix=_FIX, where=str(folder.parent))

    @property
    def strategy(self) -> Strategy:
        """The strategy over this backbone's layers, as clients use it."""
        return self._clients.strategy

    def adapter(self, state: State) -> Adapter:
        """What a client that never took part answers with, as a plain adapter."""
        return as_adapter(self.strategy.model(state), self._clients.engine.bank.settings)

    def clients(self) -> Sequence[str]:
        """See ``Fleet``."""
        return self._names

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """See ``Fleet``; the failures that are played come first, then replies in order."""
        failed = _faults(self.config, round, messages)
        yield from failed.items()
        asked = [item for item in messages.items() if item[0] not in failed]
        size = self.config.simulate.working_set
        chunks = [asked[start : start + size] for start in range(0, len(asked), size)]
        if self._pool is None:
            for chunk in chunks:
                yield from self._answer.one_by_one(chunk)
        else:
            for replies in self._pool.map(chunks):
                yield from replies.items()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()


def _faults(
    config: FederateConfig, round: int, messages: Mapping[str, bytes]
) -> dict[str, bytes | Failure]:
    """The clients that are to fail when they are asked this.

    Drawn by round, kind of work and client alone, so that a run that goes on plays what the whole
    one plays.  The stages of a secure sum are part of the training that they follow: a client
    that is to fail does so at one of them, drawn as well.
    """
    rates = config.simulate
    if not rates.dropout + rates.late:
        return {}
    steps: dict[bytes, tuple[str, int]] = {}
    failed: dict[str, bytes | Failure] = {}
    for name, data in messages.items():
        if data not in steps:
            steps[data] = _step(data)
        kind, step = steps[data]
        rng = generator(config.seed, "faults", round, kind, name)
        drawn, last = rng.random(), rng.integers(len(STAGES) + 1)
        if config.secure is not None and kind == "train" and step < last:
            continue
        if drawn < rates.dropout:
            failed[name] = Failure("it dropped out")
        elif drawn < rates.dropout + rates.late:
            failed[name] = Failure("its reply came too late")
    return failed


def _step(data: bytes) -> tuple[str, int]:
    """The kind of work that a message asks for, and which step of it, from 0."""
    values = read_values(data)
    if values.get("kind") == "secure":
        return "train", 1 + STAGES.index(str(values.get("stage")))
    return str(values.get("kind")), 0
