"""The terms of a round: what all its clients and the server must agree on to the letter.

Their digest is in every signature and every derived key, so nothing of one round fits another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.federate.message import Message
from pfi.federate.secure import checks
from pfi.federate.secure.crypto import hash_of, verify
from pfi.federate.secure.policy import Policy
from pfi.federate.secure.roster import Identity, Roster

#: In this order; a client that misses one has dropped out.
STAGES = ("keys", "shares", "masked", "survivors", "unmask")


@dataclass(frozen=True)
class Terms:
    """The terms of a round.

    Attributes:
        policy: the clients' own.
        round: its number, never used before in the federation.
        names: the cohort in the order of names; a client's place in it is its number.
        roster: the long-term keys.
        broadcast: hex digest of what the clients were sent to begin with.
    """

    policy: Policy
    round: int
    names: tuple[str, ...]
    roster: Roster
    broadcast: str

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all of it."""
        cohort = json.dumps([[name, self.roster[name].hex()] for name in self.names])
        parts = (self.policy.text(), str(self.round), self.broadcast, cohort)
        return hash_of(b"pfi secure aggregation 1", *(part.encode() for part in parts))

    @property
    def needed(self) -> int:
        """How many must stay to the end."""
        return self.policy.needed(len(self.names))

    def claim(self, what: str, number: int, content: bytes) -> bytes:
        """What a client signs."""
        return hash_of(self.digest, what.encode(), number.to_bytes(4, "big"), content)

    def sign(self, identity: Identity, what: str, content: bytes) -> bytes:
        """A client's signature."""
        number = self.names.index(identity.name)
        return identity.private.sign(self.claim(what, number, content))

    def check_signature(self, number: int, what: str, content: bytes, signature: bytes) -> None:
        """Refuse a signature that is not the client's own over this content in this round.

        Raises:
            FederationError: it is not.
        """
        name = self.names[number]
        valid = verify(self.roster[name], signature, self.claim(what, number, content))
        checks.signed(valid, name, what)

    def bound(self, what: str, sender: int, receiver: int) -> bytes:
        """Data that a derived key or sealed text is bound to."""
        return hash_of(
            self.digest, what.encode(), sender.to_bytes(4, "big"), receiver.to_bytes(4, "big")
        )

    def seed_key(self, number: int) -> bytes:
        """Data that a client's own mask is bound to."""
        return self.bound("own mask", number, number)

    def read_members(self, message: Message, before: Sequence[int] | None = None) -> list[int]:
        """The numbers of the clients who are left.

        Raises:
            FederationError: they are not in order, too few, or were not there before.
        """
        numbers = message.array("members", np.int32)
        checks.members(numbers, len(self.names))
        members: list[int] = numbers.tolist()
        checks.enough(len(members), self.needed)
        if before is not None:
            checks.left(members, before)
        return members


def as_bytes(rows: NDArray[Any]) -> list[bytes]:
    """The rows of an array of bytes."""
    return [row.tobytes() for row in rows]


def as_rows(parts: Sequence[bytes]) -> NDArray[np.uint8]:
    """Bytes of the same length as the rows of an array."""
    return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), -1)


def request(stage: str, round: int, **arrays: NDArray[Any]) -> Message:
    """A message of a stage."""
    return Message(arrays, {"stage": stage, "round": round})
