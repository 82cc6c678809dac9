"""The operator's newest roster goes to devices in the round: none is carried by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pfi.errors import FederationError, StorageError
from pfi.federate.deploy.agent.runtime import ROSTER_KIND, SERIAL
from pfi.federate.deploy.keys.keys import read
from pfi.federate.deploy.keys.nodes import ROSTER
from pfi.federate.deploy.server.fleet import FlowerFleet
from pfi.federate.message import Failure, Message, read_values
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.roster import Roster


class RosterFleet:
    """A fleet that gives every client the newest roster before it asks it to train.

    The operator signed it, so that neither the server nor who carries it can add to it; a device
    takes a newer one than it has and no older one.

    Args:
        fleet: who is asked.
        folder: the operator's, where `pfi federate keys` writes rosters, also during a run.
        operator: the key that signs them, 32 bytes.
        parties: what the server knows for secure sums; gets the newest roster, too.
    """

    def __init__(self, fleet: FlowerFleet, folder: Path, operator: bytes, parties: Parties) -> None:
        self._fleet, self._path, self._operator = fleet, folder / ROSTER, operator
        self._parties = parties
        self._text = b""
        self._has: dict[str, int] = {}  # serials by client

    def clients(self) -> Sequence[str]:
        """See `Fleet`."""
        return self._fleet.clients()

    def available(self, clients: Sequence[str], least: int, again: int = 0) -> Sequence[str]:
        """See `Reachable`."""
        return self._fleet.available(clients, least, again)

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """See `Fleet`; a client that does not take the roster fails in this round."""
        left = dict(messages)
        if messages and read_values(next(iter(messages.values()))).get("kind") == "train":
            for client, failure in self._hand_out(round, list(messages), seconds):
                del left[client]
                yield client, failure
        if left:
            yield from self._fleet.ask(round, left, seconds)

    def _hand_out(
        self, round: int, clients: Sequence[str], seconds: float | None
    ) -> Iterator[tuple[str, Failure]]:
        serial = self._newest()
        lacking = [client for client in clients if self._has.get(client, -1) < serial]
        message = Message(
            values={"kind": ROSTER_KIND, "roster": self._text.decode("ascii")}
        ).encode()
        for client, reply in self._fleet.ask(round, dict.fromkeys(lacking, message), seconds):
            try:
                if isinstance(reply, Failure):
                    raise FederationError(reply.why)
                self._has[client] = int(Message.decode(reply).number(SERIAL))
                if self._has[client] < serial:
                    raise FederationError(f"it keeps roster {self._has[client]}")
            except FederationError as error:
                yield client, Failure(f"it did not take roster {serial}: {error.what}")

    def _newest(self) -> int:
        """Read the roster again, as the operator may have changed it; gives its serial.

        Raises:
            StorageError: it cannot be read, or the operator did not sign it.
        """
        text = read(self._path)
        if text != self._text:
            known = self._parties.roster
            try:
                newest = Roster.read(text, self._operator, known.federation, known.serial)
            except FederationError as error:
                fix = "make it anew with `pfi federate keys add` or `remove`"
                raise StorageError(error.what, where=str(self._path), fix=fix) from error
            self._parties.roster, self._text = newest, text
        return self._parties.roster.serial
