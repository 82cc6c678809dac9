"""A device's link to the server: takes messages from Flower's SuperLink, brings back replies.

It speaks the SuperNode's protocol (HTTPS, node authentication), but data is all it takes: what a
SuperNode does on top, fetching an app from the server and running it, is left out.  So a server
cannot run code on a device.
"""

from __future__ import annotations

import argparse
import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pfi.errors import FederationError, PfiError
from pfi.federate.deploy.agent.client_app import answer
from pfi.federate.deploy.agent.wire import LARGEST
from pfi.federate.deploy.keys.nodes import parse_node_key
from pfi.federate.deploy.requests import RequestSigner

Answer = Callable[[Message], RecordDict]
T = TypeVar("T")
REFUSED = 3  # exit code: trying again is of no use
_BEAT = 20.0  # seconds
_LONGEST_PAUSE = 60.0
_PATIENCE = 60.0  # a node that was cut off counts as connected for two beats, and is not let in
_LARGEST_KEY = 1 << 16  # bytes
_GONE = (401, 404)  # the server forgot this node
_log = logging.getLogger(__name__)


class _NotAdmitted(FederationError):
    """The server knows no such key, or takes this node for connected already."""


class Link:
    """One node's connection to a SuperLink; use as a context manager, or call `close`.

    Args:
        server: host and port.
        ca: the PEM of the CA that signed the server's certificate.
        key: the node's, whose public half the operator registered.
        poll: seconds between two questions for messages.
        patience: seconds in which it asks to be admitted again before it gives up.
    """

    def __init__(
        self,
        server: str,
        ca: bytes,
        key: ec.EllipticCurvePrivateKey,
        *,
        poll: float = 1.0,
        patience: float = _PATIENCE,
    ) -> None:
        self.server, self._poll, self._patience = server, poll, patience
        self._public = public_key_to_bytes(key.public_key())
        signing = NodeAuthHttpInterceptor(key, key.public_key())
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        whole = RequestSigner(key)
        try:
            self._client = FleetHttpClient.from_server_address(
                server,
                insecure=False,
                root_certificates=ca,
                interceptors=[version, signing, whole],
            )
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise FederationError("the CA's file holds no certificate", where=server) from error
        self._node = Node()  # its number is 0 while this link is not connected
        self._stop = threading.Event()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> int:
        """Tell the server that this node is there; gives the node's number.

        Raises:
            FederationError: the server's certificate is not of our CA or host, or the server
                does not know the key.
            httpx.TransportError: it cannot be reached.
        """
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=_BEAT)
        try:
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        except httpx.TransportError as error:
            if (why := _certificate_fault(error)) is not None:
                what = f"the server's certificate is refused: {why}"
                fix = "compare the CA's file and the server's name with the operator"
                raise FederationError(what, where=self.server, fix=fix) from error
            raise
        except httpx.HTTPStatusError as error:
            if error.response.status_code >= 500:
                raise
            refusal = FlowerError.from_json(error.response.text)
            what = f"the server refuses this device ({refusal.message if refusal else error})"
            fix = "have the operator register its public.json with `pfi federate keys add`"
            raise _NotAdmitted(what, where=self.server, fix=fix) from error
        return self._node.node_id

    def serve(self, answer: Answer) -> None:
        """Answer messages until `stop` is called; keeps trying while the server is away.

        Raises:
            FederationError: the server is not ours, or refuses this device.
        """
        threading.Thread(target=self._beat, daemon=True).start()
        pause, waited = 1.0, 0.0
        while not self._stop.is_set():
            try:
                if not self._node.node_id:
                    self.connect()
                    _log.warning("connected to %s", self.server)
                worked = self.work(answer)
                pause, waited = 1.0, 0.0
            except _NotAdmitted as error:
                if waited >= self._patience:
                    raise
                _log.warning("%s; asking again", error)
                self._stop.wait(5)
                waited += 5
            except (httpx.HTTPError, RuntimeError, ValueError, ObjectPushError) as error:
                if isinstance(error, httpx.HTTPStatusError) and (
                    error.response.status_code in _GONE
                ):
                    self._node = Node()  # a server that was started anew gives new numbers
                _log.warning("%s: %s; trying again in %.0f s", self.server, error, pause)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if not worked:
                    self._stop.wait(self._poll)

    def stop(self) -> None:
        """Let `serve` return; any thread may call this."""
        self._stop.set()

    def close(self) -> None:
        """Say goodbye, if the server is there."""
        self._stop.set()
        node, self._node = self._node, Node()
        if node.node_id:
            try:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
            except (httpx.HTTPError, RuntimeError):
                _log.info("%s did not hear the goodbye", self.server)
        self._client._client.close()

    def work(self, answer: Answer) -> bool:
        """Take one message, if there is one, and bring its reply; says whether there was one.

        Raises:
            httpx.HTTPError: the server is away, or the run is over.
        """
        response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return False
        header = message_from_proto(response.messages_list[0])
        message = self._fetch(header, response.message_object_trees[0])
        start = time.monotonic()
        reply = Message(answer(message), reply_to=message)
        self._patiently(lambda: self._send(reply, time.monotonic() - start))
        return True

    def _fetch(self, header: Message, tree: ObjectTree) -> Message:
        run, number = header.metadata.run_id, header.metadata.message_id
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        taken = 0

        def bounded(object_id: str) -> bytes:
            nonlocal taken
            content = pull(object_id)
            taken += len(content)
            if taken > LARGEST:
                raise RuntimeError("a message is too large")
            return content

        contents = pull_objects([part.object_id for part in iterate_object_tree(tree)], bounded)
        received = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run, message_object_id=number
        )
        self._client.ConfirmMessageReceived(received)
        message = inflate_object_from_contents(number, contents)
        if not isinstance(message, Message):
            raise RuntimeError("what came is no message")
        message.metadata.__dict__["_message_id"] = number
        return message

    def _send(self, reply: Message, seconds: float) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        header = message_to_proto(remove_content_from_message(reply))
        with no_object_id_recompute():
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[header],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            run = reply.metadata.run_id
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run, response.session_id
            )
            push_objects(
                get_all_nested_objects(reply),
                push,
                object_ids_to_push=set(response.objects_to_push),
            )

    def _patiently(self, send: Callable[[], T]) -> T:
        """Send what cost work again while the server is away."""
        pause = 1.0
        while True:
            try:
                return send()
            except httpx.TransportError as error:
                _log.warning("%s: %s; sending again in %.0f s", self.server, error, pause)
                if self._stop.wait(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT / 2):
            if not self._node.node_id:
                continue
            beat = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_BEAT)
            try:
                self._client.SendNodeHeartbeat(beat)
            except (httpx.HTTPError, RuntimeError, ValueError):
                continue  # `serve` meets the same trouble and says so


def _certificate_fault(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def main() -> None:
    """The link as a process of its own, which an agent starts: it ends when the agent does.

    The node's key comes through standard input.
    """
    parser = argparse.ArgumentParser(description="Link a device's agent to a server.")
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--agent", type=Path, required=True)
    parser.add_argument("--poll", type=float, default=1.0)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s link: %(message)s")
    try:
        key = parse_node_key(sys.stdin.buffer.read(_LARGEST_KEY), "standard input")
        with Link(options.server, options.ca.read_bytes(), key, poll=options.poll) as link:
            watch = threading.Thread(target=_watch, args=(link, options.parent), daemon=True)
            watch.start()
            link.serve(lambda message: answer(message, options.agent))
    except PfiError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        pass


def _watch(link: Link, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    link.stop()
    time.sleep(5)  # for a goodbye
    os._exit(0)


if __name__ == "__main__":
    main()
