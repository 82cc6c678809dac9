"""Secure aggregation in the round: who has which keys, and a secure sum for each group."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from pfi.errors import FederationError
from pfi.federate.secure.client import SecureClient
from pfi.federate.secure.groups import groups
from pfi.federate.secure.history import Rounds
from pfi.federate.secure.policy import Policy, SecureConfig
from pfi.federate.secure.roster import Identity, Roster
from pfi.federate.secure.server import SecureServer


@dataclass
class Parties:
    """What all sides of secure aggregation know; a device has its own identity only.

    Attributes:
        policy: pinned by every client.
        roster: the long-term public keys.
        identities: private keys of the clients that are here: all in a simulation.
        rounds: which rounds each of them joined.
    """

    policy: Policy
    roster: Roster
    identities: Mapping[str, Identity] = field(default_factory=dict)
    rounds: MutableMapping[str, Rounds] = field(default_factory=dict)

    @classmethod
    def simulated(cls, config: SecureConfig, clients: Sequence[str], width: int) -> Parties:
        """Keys for all clients, of the system's randomness: they change no result."""
        identities = {name: Identity.generate(name) for name in clients}
        roster = Roster({name: identity.public for name, identity in identities.items()})
        rounds = {name: Rounds() for name in clients}
        return cls(config.pin("simulation", width), roster, identities, rounds)

    def client(self, name: str, broadcast: str) -> SecureClient:
        """A client of one round.

        Raises:
            FederationError: it has no key.
        """
        if name not in self.identities:
            raise FederationError(f"client {name} has no key for secure aggregation")
        return SecureClient(
            self.identities[name], self.roster, self.policy, broadcast, self.rounds[name]
        )


def secure_sums(
    parties: Parties, clients: Sequence[str], seed: int, round: int, broadcast: str
) -> list[SecureServer]:
    """A secure sum for each group of the clients that are ready; none if they are too few."""
    if len(clients) < parties.policy.smallest:
        return []
    # Never used twice, also when a round is done again after a restart of the server.
    number = time.time_ns() // 1_000_000
    divided = groups(clients, parties.policy.smallest, seed + round)
    return [SecureServer(parties.policy, parties.roster, number, g, broadcast) for g in divided]
