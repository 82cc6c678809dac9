"""Devices behind Flower's SuperLink as a `Fleet`, for the round loop inside a ServerApp."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from pfi.errors import FederationError
from pfi.federate.deploy.records import pack, unpack
from pfi.federate.message import Failure

_BATCH = 16  # messages sent, and replies held, at a time
_LONGEST = 3600.0  # seconds that a reply is waited for if nobody says
_GRACE = 5.0  # seconds for which the SuperLink keeps a message longer than it is waited for


class FlowerFleet:
    """Nodes by the names that the operator registered.

    Args:
        grid: Flower's way to the nodes.
        names: all that may be asked; those that are connected when asked for if None.
        poll: seconds between two questions for replies.
    """

    def __init__(
        self, grid: Grid, names: Sequence[str] | None = None, *, poll: float = 0.5
    ) -> None:
        self._grid, self._poll = grid, poll
        self._names = None if names is None else sorted(names)

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
        end = time.monotonic() + seconds
        while len(connected := self.connected()) < count:
            if time.monotonic() > end:
                what = f"{len(connected)} of {count} clients are connected after {seconds:g} s"
                fix = "start more agents, or ask for fewer clients"
                raise FederationError(what, fix=fix)
            time.sleep(self._poll)
        return connected

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """See `Fleet`; without a limit an hour is waited, since an agent may hang."""
        seconds = _LONGEST if seconds is None else seconds
        end = time.monotonic() + seconds
        nodes = self._nodes()
        waiting: dict[str, str] = {}  # clients by the number of the message that they got
        asked = iter(messages.items())
        while batch := list(islice(asked, _BATCH)):
            known = [(client, data) for client, data in batch if client in nodes]
            for client, _ in batch:
                if client not in nodes:
                    yield client, Failure("it is not connected")
            flower = [
                Message(
                    pack(data, id=_id(self._run(), round, client, data)),
                    dst_node_id=nodes[client],
                    message_type="query",
                    ttl=seconds + _GRACE,
                    group_id=str(round),
                )
                for client, data in known
            ]
            numbers = list(self._grid.push_messages(flower)) if flower else []
            for (client, _), number in zip(known, numbers, strict=True):
                if number:
                    waiting[number] = client
                else:
                    yield client, Failure("the SuperLink did not take its message")
        while waiting:
            replied = False
            for few in _batches(list(waiting)):
                for reply in self._grid.pull_messages(few):
                    client = waiting.pop(reply.metadata.reply_to_message_id, "")
                    if client:
                        replied = True
                        yield client, _content(reply)
            if not waiting:
                return
            if time.monotonic() > end:
                break
            if not replied:
                time.sleep(self._poll)
        for client in waiting.values():
            yield client, Failure(f"it was late: no reply in {seconds:g} s")

    def _run(self) -> int:
        return self._grid.run.run_id

    def _nodes(self) -> dict[str, int]:
        nodes: Iterable[NodeInfo] = self._grid.get_nodes()  # type: ignore[attr-defined]
        return {node.name or f"node-{node.node_id}": node.node_id for node in nodes}


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
