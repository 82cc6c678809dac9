"""Flower ClientApp that hands messages to the device's resident agent and brings its replies.

Flower starts it anew for every message, so it imports neither torch nor transformers.  It is for
devices that run Flower's own SuperNode; `pfi federate agent` needs none.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pfi.errors import FederationError
from pfi.federate.deploy.agent.wire import forward
from pfi.federate.deploy.records import largest_reply, pack, pack_failure, unpack

VARIABLE = "PFI_AGENT"  # where the agent's socket is, if the node's settings do not say
app = ClientApp()


def answer(message: Message, path: Path, seconds: float | None = None) -> RecordDict:
    """What the agent at `path` says to a message; why it says nothing, if so."""
    try:
        id_, data = unpack(message)
        reply = forward(path, data, seconds, id=id_)
        largest = largest_reply(message)
        if largest is not None and len(reply) > largest:
            return pack_failure(f"its reply has {len(reply)} bytes, at most {largest} are taken")
        return pack(reply, id=id_)
    except FederationError as error:
        return pack_failure(error.what)  # without paths of this device


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer one message."""
    path = context.node_config.get("agent") or os.environ.get(VARIABLE)
    if not path:
        why = "the node does not know its agent: start it with --node-config 'agent=\"<socket>\"'"
        return Message(pack_failure(why), reply_to=message)
    return Message(answer(message, Path(str(path))), reply_to=message)
