"""Devices behind Flower's SuperLink as a `Fleet`, for the round loop inside a ServerApp."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from pfi.errors import FederationError
from pfi.federate.deploy.records import pack, unpack
from pfi.federate.deploy.server.limits import SLACK, group_of
from pfi.federate.deploy.server.now import Now
from pfi.federate.deploy.server.patience import LONGEST, Patience, Waiting
from pfi.federate.message import Failure, read_values

_BATCH = 16  # messages sent, and replies held, at a time
_GRACE = 5.0  # seconds for which the SuperLink keeps a message longer than it is waited for
_TIMES = 2  # a reply may be so many times as large as what is sent, or what is learnt
_LONGEST_PAUSE = 60.0


class FlowerFleet:
    """Nodes by the names that the operator registered.

    Args:
        grid: Flower's way to the nodes.
        names: all that may be asked; those that are connected when asked for if None.
        poll: seconds between two questions for replies.
        folder: of the run; what is waited for is written there.
        wait: seconds in which enough clients have to connect again.
        patience: how long replies are waited for where nobody says.

    Attributes:
        largest: bytes that a reply is expected to have at most, whatever was sent.
    """

    def __init__(
        self,
        grid: Grid,
        names: Sequence[str] | None = None,
        *,
        poll: float = 0.5,
        folder: Path | None = None,
        wait: float = LONGEST,
        patience: Patience | None = None,
    ) -> None:
        self._grid, self._poll, self._wait = grid, poll, wait
        self._names = None if names is None else sorted(names)
        self._now, self._patience = Now(folder), patience or Patience()
        self.largest = 0

    def clients(self) -> Sequence[str]:
        """See `Fleet`."""
        return self.connected() if self._names is None else self._names

    def connected(self) -> list[str]:
        """Those of them that are connected now."""
        nodes = self._nodes()
        return sorted(nodes) if self._names is None else [n for n in self._names if n in nodes]

    def wait_for(self, count: int, seconds: float) -> Sequence[str]:
        """The clients, once at least `count` are connected.

        Raises:
            FederationError: they are fewer after `seconds`.
        """
        return self._wait_for(None, count, seconds)

    def available(self, clients: Sequence[str], least: int, again: int = 0) -> Sequence[str]:
        """See `Reachable`.

        Raises:
            FederationError: fewer than `least` are connected for too long.
        """
        if again:
            time.sleep(min(2.0**again * self._poll, _LONGEST_PAUSE))
        return self._wait_for(clients, least, self._wait)

    def _wait_for(
        self, clients: Collection[str] | None, count: int, seconds: float
    ) -> Sequence[str]:
        started = time.monotonic()
        among = None if clients is None else set(clients)
        try:
            while True:
                connected = [n for n in self.connected() if among is None or n in among]
                if len(connected) >= count:
                    return connected
                elapsed = time.monotonic() - started
                if elapsed > seconds:
                    what = f"{len(connected)} of {count} clients are connected after {seconds:g} s"
                    fix = "start more agents, ask for fewer clients, or go on later with --resume"
                    raise FederationError(what, fix=fix)
                missing = [f"{count - len(connected)} more"]
                self._now.show(
                    "connecting", asked=count, waiting=missing, elapsed=elapsed, limit=seconds
                )
                time.sleep(self._poll)
        finally:
            self._now.clear()

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """See `Fleet`; without a limit, replies are waited for as long as they usually take."""
        if not messages:
            return
        kind = _kind(next(iter(messages.values())))
        wait = self._patience.start(kind, len(messages), seconds)
        try:
            yield from self._ask(round, messages, wait, kind)
        finally:
            self._now.clear()

    def _ask(
        self, round: int, messages: Mapping[str, bytes], wait: Waiting, kind: str
    ) -> Iterator[tuple[str, bytes | Failure]]:
        nodes = self._nodes()
        waiting: dict[str, str] = {}  # clients by the number of the message that they got
        asked = iter(messages.items())
        while batch := list(islice(asked, _BATCH)):
            known = [(client, data) for client, data in batch if client in nodes]
            for client, _ in batch:
                if client not in nodes:
                    yield client, Failure("it is not connected")
            flower = [
                self._question(round, client, data, nodes[client], wait.limit)
                for client, data in known
            ]
            numbers = list(self._grid.push_messages(flower)) if flower else []
            for (client, _), number in zip(known, numbers, strict=True):
                if number:
                    waiting[number] = client
                else:
                    yield client, Failure("the SuperLink did not take its message")
        while waiting:
            self._now.show(
                kind,
                round=round,
                asked=len(messages),
                waiting=waiting.values(),
                elapsed=wait.elapsed,
                limit=wait.limit,
            )
            replied = False
            for few in _batches(list(waiting)):
                for reply in self._grid.pull_messages(few):
                    client = waiting.pop(reply.metadata.reply_to_message_id, "")
                    if client:
                        replied = True
                        content = _content(reply)
                        if not isinstance(content, Failure):  # a failure may come at once
                            wait.reply()
                        yield client, content
            if not waiting:
                return
            if wait.over:
                break
            if not replied:
                time.sleep(self._poll)
        for client in waiting.values():
            yield client, Failure(f"it was late: no reply in {wait.limit:.3g} s")

    def _question(self, round: int, client: str, data: bytes, node: int, seconds: float) -> Message:
        largest = SLACK + _TIMES * max(len(data), self.largest)
        return Message(
            pack(data, id=_id(self._run(), round, client, data), largest=largest),
            dst_node_id=node,
            message_type="query",
            ttl=seconds + _GRACE,
            group_id=group_of(round, largest),
        )

    def _run(self) -> int:
        return self._grid.run.run_id

    def _nodes(self) -> dict[str, int]:
        nodes: Iterable[NodeInfo] = self._grid.get_nodes()  # type: ignore[attr-defined]
        return {node.name or f"node-{node.node_id}": node.node_id for node in nodes}


def _kind(data: bytes) -> str:
    """What a message asks for, in a word or two."""
    try:
        values = read_values(data)
    except FederationError:
        return "message"
    return " ".join(str(values[name])[:32] for name in ("kind", "stage") if name in values)


def _content(reply: Message) -> bytes | Failure:
    try:
        return unpack(reply)[1]
    except FederationError as error:
        return Failure(error.what)


def _id(run: int, round: int, client: str, data: bytes) -> str:
    """The same for the same question, so that a device does its work once."""
    return hashlib.sha256(f"{run}|{round}|{client}|".encode() + data).hexdigest()


def _batches(numbers: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(numbers), _BATCH):
        yield numbers[start : start + _BATCH]
