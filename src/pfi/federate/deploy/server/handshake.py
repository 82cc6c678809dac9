"""Before the first round: server and devices compare settings, backbone and task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pfi.errors import FederationError
from pfi.federate.agreement import KIND, TASK, disagreement, statement
from pfi.federate.config import FederateConfig
from pfi.federate.message import Failure, Fleet, Message

EVENT = "agreement"
_NAMED = 3
_FIX = (
    "give the server and `pfi federate keys add` the same file, and the devices their invitations"
)


@dataclass
class Agreement:
    """Who agrees with the server.

    Attributes:
        agreed: the devices that do.
        refused: what differs, by device.
        failed: why others did not say.
    """

    agreed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def event(self) -> dict[str, Any]:
        """For the run's log."""
        return {
            "event": EVENT,
            "agreed": len(self.agreed),
            "refused": self.refused,
            "failed": self.failed,
        }


def agree(
    fleet: Fleet,
    clients: Sequence[str],
    config: FederateConfig,
    backbone: str,
    seconds: float | None = None,
) -> Agreement:
    """Ask devices what they would work with.

    Args:
        fleet: who is asked.
        clients: those of it that are connected.
        config: the server's settings.
        backbone: fingerprint of the server's model.
        seconds: how long replies are waited for.
    """
    found, tasks = Agreement(), dict[str, str]()
    messages = dict.fromkeys(clients, statement(config, backbone).encode())
    for client, reply in fleet.ask(0, messages, seconds):
        if isinstance(reply, Failure):
            found.failed[client] = reply.why
            continue
        try:
            message = Message.decode(reply)
            if message.values.get("kind") != KIND:
                raise FederationError("it does not say what it works with")
            if why := disagreement(config, backbone, message):
                found.refused[client] = why
            else:
                tasks[client] = str(message.values.get(TASK, ""))[:64]
        except FederationError as error:
            found.failed[client] = error.what
    # The server knows no task: devices learn the one that most of them learn.
    usual = Counter(sorted(tasks.values())).most_common(1)
    for client, task in sorted(tasks.items()):
        if task == usual[0][0]:
            found.agreed.append(client)
        else:
            found.refused[client] = f"it learns {task!r}, and most learn {usual[0][0]!r}"
    return found


def require(agreement: Agreement, least: int) -> None:
    """See that the run can begin: it takes more than one device to keep it from that.

    Args:
        agreement: who agrees.
        least: fewest that a round needs.

    Raises:
        FederationError: fewer agree, or more say that they work otherwise; it names what differs.
    """
    agreed, refused = len(agreement.agreed), len(agreement.refused)
    if agreed >= max(1, least) and agreed >= refused:
        return
    why = [*sorted(agreement.refused.items()), *sorted(agreement.failed.items())]
    named = [f"{client}: {text}" for client, text in why[:_NAMED]]
    more = len(why) - len(named)
    listed = ". ".join(named) + (f". And {more} more" if more > 0 else "")
    what = f"{agreed} of {agreed + len(why)} devices agree with the server. {listed}"
    raise FederationError(what.rstrip(" ."), fix=_FIX)
