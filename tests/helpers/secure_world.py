"""A cohort and a server in one process, every message going through its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.message import Failure, Fleet, Message
from pfi.federate.secure import STAGES, Identity, Policy, Roster, Rounds, SecureClient, SecureServer
from pfi.federate.secure.groups import Ask
from pfi.federate.secure.quantise import quantise

VICTIM = "device-00"
BROADCAST = "ab" * 32
POLICY = Policy(
    federation="test", length=5, bits=32, threshold=0.5, smallest=4, largest=40, heaviest=50
)


class World:
    """Devices with keys, and one round with a client each.

    Attributes:
        sent: what the server was sent, by stage and client.
    """

    def __init__(
        self,
        count: int,
        policy: Policy = POLICY,
        round: int = 1,
        seed: int = 0,
        identities: Mapping[str, Identity] | None = None,
    ) -> None:
        self.policy, self.round, self.broadcast = policy, round, BROADCAST
        self.names = [f"device-{number:02d}" for number in range(count)]
        self.identities = dict(identities or {n: Identity.generate(n) for n in self.names})
        self.roster = Roster({name: one.public for name, one in self.identities.items()})
        self.rounds = {name: Rounds() for name in self.names}
        rng = np.random.default_rng(seed)
        size = (count, policy.length)
        self.vectors: dict[str, NDArray[np.float32]] = dict(
            zip(self.names, rng.uniform(-1, 1, size).astype(np.float32), strict=True)
        )
        self.weights = dict(
            zip(self.names, rng.integers(1, min(50, policy.heaviest), count).tolist(), strict=True)
        )
        self.sent: dict[str, dict[str, Message]] = {stage: {} for stage in STAGES}
        self.start(round)

    def start(self, round: int, *, forget: bool = False) -> None:
        """A new round of the same devices, which may forget the rounds before."""
        self.round = round
        if forget:
            self.rounds = {name: Rounds() for name in self.names}
        self.clients = {name: self.client(name) for name in self.names}
        self.server = SecureServer(self.policy, self.roster, round, self.names, self.broadcast)

    def client(self, name: str) -> SecureClient:
        """A client of a device that has its update."""
        made = SecureClient(
            self.identities[name], self.roster, self.policy, self.broadcast, self.rounds[name]
        )
        made.contribute(self.vectors[name], self.weights[name])
        return made

    def ask(
        self, lost: Mapping[str, Sequence[str]] | None = None
    ) -> Callable[[Mapping[str, Message]], Iterator[tuple[str, Message | FederationError]]]:
        """What ``run`` needs; ``lost`` names who drops out, by stage."""

        def ask(
            messages: Mapping[str, Message],
        ) -> Iterator[tuple[str, Message | FederationError]]:
            for name, message in messages.items():
                stage = str(message.values["stage"])
                if lost and name in lost.get(stage, ()):
                    continue
                reply = self.handle(name, message)
                self.sent[stage][name] = reply
                yield name, reply

        return ask

    def handle(self, name: str, message: Message) -> Message:
        """One client's reply."""
        reply = self.clients[name].handle(Message.decode(message.encode()))
        return Message.decode(reply.encode())

    def step(self, stage: str, lost: Sequence[str] = ()) -> None:
        """One stage."""
        for name, reply in self.ask({stage: lost})(self.server.requests(stage)):
            assert isinstance(reply, Message)
            self.server.receive(stage, name, reply)
        self.server.close(stage)

    def until(self, stage: str) -> None:
        """All stages before this one."""
        for earlier in STAGES[: STAGES.index(stage)]:
            self.step(earlier)

    def expected(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The plain sum of whole numbers, without any modulus."""
        total = np.zeros(self.policy.length + 1, object)
        for name in names:
            weight = self.weights[name]
            scale = weight / self.policy.step
            total += np.array([round(float(v) * scale) for v in self.vectors[name]] + [weight])
        return total.astype(np.int64)

    def entries(self, name: str) -> NDArray[np.uint32]:
        """A client's own entries before they are masked."""
        return quantise(self.vectors[name], self.weights[name], self.policy, bound=math.inf)


def changed(message: Message, **changes: Any) -> Message:
    """A message with other values or arrays."""
    arrays, values = dict(message.arrays), dict(message.values)
    for name, content in changes.items():
        (arrays if isinstance(content, np.ndarray) else values)[name] = content
    return Message(arrays, values)


def asked(world: World, stage: str, client: str = VICTIM, **changes: Any) -> Message:
    """A client's answer to the honest server's request, changed."""
    world.until(stage)
    return world.handle(client, changed(world.server.requests(stage)[client], **changes))


def numbered(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def over_fleet(fleet: Fleet, round: int, seconds: float | None = None) -> Ask:
    """Ask the clients of a fleet.

    Args:
        fleet: whose devices answer with a ``SecureClient``.
        round: its number.
        seconds: how long each stage waits.
    """

    def ask(
        messages: Mapping[str, Message],
    ) -> Iterator[tuple[str, Message | FederationError]]:
        data = {client: message.encode() for client, message in messages.items()}
        for client, reply in fleet.ask(round, data, seconds):
            if isinstance(reply, Failure):
                yield client, FederationError(reply.why)
                continue
            try:
                yield client, Message.decode(reply)
            except FederationError as error:
                yield client, error

    return ask
