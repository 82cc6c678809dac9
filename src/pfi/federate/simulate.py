"""A fleet of simulated clients: slots of a bank, their data streamed from disk.

The cohort is cut into chunks in its own order, so that the result does not depend on the number
of processes; each process keeps one backbone.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pfi._util.seeds import generator
from pfi._util.workers import cores, obey_parent, portable
from pfi.errors import ConfigError, PfiError
from pfi.federate.aggregate.exact import as_adapter
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.message import Failure, Message
from pfi.federate.secure.parties import Parties
from pfi.federate.strategy import LinearStrategy, Strategy
from pfi.federate.users import Population
from pfi.federate.work import State
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone

Chunk = list[tuple[str, bytes]]
Replies = dict[str, bytes | Failure]


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
        self._workers: list[_Process] = []
        self._clients = make_clients(backbone, population, config, folder)
        #: Keys for secure aggregation, where it is on.
        self.parties: Parties | None = None
        if config.secure is not None and isinstance(self.strategy, LinearStrategy):
            self.parties = Parties.simulated(config.secure, self._names, self.strategy.size)
            self._clients.parties = self.parties
        if config.simulate.workers > 1:
            given = (backbone.name, population, config, folder)
            self._workers = [_Process(given) for _ in range(config.simulate.workers)]
        #: The round, and how often its clients were asked: faults differ.
        self._asked = (-1, 0)
        self._decoded: dict[int, tuple[bytes, Message]] = {}

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
        """See ``Fleet``; replies come in the order of ``messages``."""
        chunks = self._chunks(round, messages)
        yield from self._in_processes(chunks) if self._workers else self._here(chunks)
        self._decoded.clear()

    def _chunks(self, round: int, messages: Mapping[str, bytes]) -> Iterator[Chunk | Replies]:
        """Work in chunks, and the failures that are played, in order."""
        self._asked = (round, self._asked[1] + 1 if self._asked[0] == round else 0)
        rng, rates = generator(self.config.seed, "faults", *self._asked), self.config.simulate
        failed: Replies = {}
        asked: Chunk = []
        for name, data in messages.items():
            drawn = rng.random()
            if drawn < rates.dropout:
                failed[name] = Failure("it dropped out")
            elif drawn < rates.dropout + rates.late:
                failed[name] = Failure("its reply came too late")
            else:
                asked.append((name, data))
        if failed:
            yield failed
        size = rates.working_set
        for start in range(0, len(asked), size):
            yield asked[start : start + size]

    def _here(self, chunks: Iterator[Chunk | Replies]) -> Iterator[tuple[str, bytes | Failure]]:
        for chunk in chunks:
            if isinstance(chunk, dict):
                yield from chunk.items()
                continue
            yield from self._clients.answers({name: self._decode(data) for name, data in chunk})

    def _decode(self, data: bytes) -> Message:
        """Clients that are sent the same bytes get one message, which is read once."""
        if id(data) not in self._decoded:
            self._decoded[id(data)] = (data, Message.decode(data))
        return self._decoded[id(data)][1]

    def _in_processes(
        self, chunks: Iterator[Chunk | Replies]
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Chunks by turns to the processes, replies in order.

        A process has one chunk at a time: with more, both ends could be writing, and wait for ever.
        """
        waiting: deque[_Process | Replies] = deque()
        number = 0
        while True:
            for chunk in islice(chunks, len(self._workers) - len(waiting)):
                if isinstance(chunk, dict):
                    waiting.append(chunk)
                    continue
                process = self._workers[number % len(self._workers)]
                process.send(chunk)
                waiting.append(process)
                number += 1
            if not waiting:
                return
            first = waiting.popleft()
            yield from (first if isinstance(first, dict) else first.receive()).items()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


def make_clients(
    backbone: Backbone, population: Population, config: FederateConfig, folder: Path
) -> Clients:
    """The clients of a population, as one process has them."""
    working_set = config.simulate.working_set
    return Clients(backbone, population, config, Memories(folder), working_set)


class _Process:
    """A process with a backbone of its own; a message that was sent once is not sent again."""

    def __init__(self, given: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of threads and CUDA would hang
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, given), daemon=True)
        self._process.start()
        other.close()
        self._sent: dict[int, bytes] = {}

    def send(self, chunk: Chunk) -> None:
        new = {id(data): data for _, data in chunk if id(data) not in self._sent}
        if new:
            # Held on to, so that no other message gets the same id.
            self._sent = {id(data): data for _, data in chunk}
        self._pipe.send((new, [(name, id(data)) for name, data in chunk]))

    def receive(self) -> Replies:
        try:
            found = self._pipe.recv()
        except EOFError as error:
            fix = "go on with --resume, with fewer workers if memory ran out"
            raise PfiError("a worker of the simulation was killed", fix=fix) from error
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, given: Any) -> None:
    """What a process runs: chunks in, replies out."""
    name, population, config, folder = given
    obey_parent()
    torch.set_num_threads(max(1, cores() // config.simulate.workers))
    clients = None
    held: dict[int, Message] = {}
    while True:
        try:
            new, chunk = pipe.recv()
        except EOFError:
            return
        try:
            if clients is None:
                clients = make_clients(load_backbone(name), population, config, folder)
            decoded = {key: Message.decode(data) for key, data in new.items()}
            if new:
                held = {**{key: held[key] for _, key in chunk if key in held}, **decoded}
            pipe.send(clients.answer({name: held[key] for name, key in chunk}))
        except Exception as error:
            pipe.send(portable(error))
