"""What a device's agent does with a message: train or measure on the vault's records.

The same `Clients` as in simulation, with one client.  The ledger is written before a reply leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pfi.errors import FederationError, StorageError
from pfi.federate.agreement import KIND as AGREE
from pfi.federate.agreement import statement
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.keys.invitation import Invitation, keep_roster
from pfi.federate.deploy.keys.keys import read
from pfi.federate.deploy.keys.nodes import DEVICE_KEY, ROSTER, load_device_key
from pfi.federate.deploy.keys.sealed import KeySeal
from pfi.federate.measures import Measures
from pfi.federate.message import Failure, Message
from pfi.federate.secure.history import Rounds
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.roster import Identity, Roster
from pfi.federate.strategy import LinearStrategy
from pfi.federate.users import local_examples
from pfi.models.backbone import load_backbone
from pfi.privacy.ledger.entries import FINISH, MEASURE, READY, SECURE, UPDATE
from pfi.privacy.ledger.ledger import send_logged
from pfi.profile.home import Home
from pfi.tasks import Example, Task

MEMORIES = "kept"  # where a client keeps what it has from round to round
JOINED = "rounds.json"  # of secure aggregation
ROSTER_KIND, SERIAL = "roster", "serial"  # of the message that brings a roster, and its reply
MEASURED = "measured.json"  # what it measured for the server


class DeviceRuntime:
    """Answers messages with one home's records.

    Args:
        home: the device.
        task: whose records it learns from.
        invitation: of the federation, with its settings.
        config: those settings, read.
    """

    def __init__(
        self, home: Home, task: Task, invitation: Invitation, config: FederateConfig
    ) -> None:
        self.home, self.task, self.invitation, self.config = home, task, invitation, config

    def load(self) -> None:
        """Load the model and the keys now, not with the first message.

        Raises:
            BackboneError: there is no such model.
            FederationError, StorageError: a key or the roster cannot be used.
        """
        _ = self._clients

    def __call__(self, data: bytes) -> bytes:
        """The reply to a message; the ledger has it before it leaves.

        Raises:
            FederationError: the message makes no sense, or there is nothing to learn from.
            StorageError: the vault or the ledger cannot be used.
        """
        name, message = self.invitation.client, Message.decode(data)
        reply = self._reply(name, message)
        return send_logged(
            self.home.open_ledger(),
            device=self.home.profile,
            to=self.invitation.server.rpartition(":")[0],
            kind=self._kind(message),
            policy=self._policy(message),
            payload=reply,
            send=lambda: reply,
        )

    def _reply(self, name: str, message: Message) -> bytes:
        """What is said to a message; the server says with each by which settings it asks."""
        kind = message.values.get("kind")
        if kind == AGREE:
            backbone = self._clients.engine.layout.backbone
            return statement(self.config, backbone, self.task.name).encode()
        if kind == ROSTER_KIND:
            return self._take_roster(message)
        reply = self._clients.answer({name: message})[name]
        if isinstance(reply, Failure):
            raise FederationError(reply.why)
        return reply

    def _take_roster(self, message: Message) -> bytes:
        """Take a newer roster into use; says which one the device has then."""
        parties = self._clients.parties
        if parties is None:
            raise FederationError("it takes part in no secure sums, and has no use for a roster")
        text = str(message.values.get("roster", "")).encode()
        operator, federation = bytes.fromhex(self.invitation.operator), self.invitation.federation
        roster = Roster.read(text, operator, federation)
        if roster.serial >= parties.roster.serial:
            self._check_listed(roster)
            keep_roster(self.home.path / FOLDER, text, self.invitation)
            parties.roster = roster
        return Message(values={"kind": ROSTER_KIND, SERIAL: parties.roster.serial}).encode()

    def _check_listed(self, roster: Roster) -> None:
        name = self.invitation.client
        public = load_device_key(
            self.home.path / FOLDER / DEVICE_KEY, KeySeal.of(self.home.keys)
        ).public_key()
        if roster.get(name) != public.public_bytes_raw():
            fix = "have the operator register its public.json, and get a newer roster.json"
            raise StorageError("the roster lacks this device's key", where=ROSTER, fix=fix)

    def _kind(self, message: Message) -> str:
        """What the reply to a message is to the ledger; one stage of a secure sum is an update."""
        asked, stage = message.values.get("kind"), message.values.get("stage")
        if asked in (AGREE, ROSTER_KIND):
            return str(asked)
        if asked == "evaluate":
            return MEASURE
        if asked == "finish":
            return FINISH
        if asked == "secure" and stage != "masked":
            return f"{SECURE} {stage}"
        return READY if asked == "train" and self.config.secure is not None else UPDATE

    def _policy(self, message: Message) -> str:
        """How the reply is protected: a masked update is; a loss, or being ready, is not."""
        summed = self.config.secure is not None and message.values.get("kind") == "secure"
        return "secure sum" if summed else "clear"

    def clients(self) -> Sequence[str]:
        """Of a population of one."""
        return [self.invitation.client]

    def examples(self, client: str) -> Sequence[Example]:
        """What the vault's real records teach."""
        with self.home.open_vault() as vault:
            history = vault.history(self.task.name, origin="real")
        return local_examples(self.task, history, self.config.seed)

    def rank(self, client: str) -> int | None:
        """No limit of its own."""
        return None

    @cached_property
    def _clients(self) -> Clients:
        backbone, folder = load_backbone(self.home.config.backbone), self.home.path / FOLDER
        keys = self.home.keys
        context = f"{keys.profile}|{FOLDER}"
        memories = Memories(folder / MEMORIES, key=keys.files, context=context)
        # Records come and are erased while an agent runs.
        clients = Clients(
            backbone,
            self,
            self.config,
            memories,
            working_set=1,
            cached_tokens=0,
            measures=Measures(folder / MEASURED, most=self.config.rounds + 1),
            device=True,
        )
        if self.config.secure is not None and isinstance(clients.strategy, LinearStrategy):
            clients.parties = self._parties(folder, clients.strategy.size)
        return clients

    def _parties(self, folder: Path, width: int) -> Parties:
        """The device's key, the policy that it pins, and the roster that the operator signed."""
        name, federation = self.invitation.client, self.invitation.federation
        operator = bytes.fromhex(self.invitation.operator)
        # The server sends a newer one, or the first one; the operator's signature is what counts.
        roster = Roster({}, federation)
        if (folder / ROSTER).exists():
            roster = Roster.read(read(folder / ROSTER), operator, federation)
            self._check_listed(roster)
        key = load_device_key(folder / DEVICE_KEY, KeySeal.of(self.home.keys))
        identity = Identity(name, key)
        assert self.config.secure is not None
        policy = self.config.secure.pin(federation, width)
        return Parties(policy, roster, {name: identity}, {name: Rounds(folder / JOINED)})
