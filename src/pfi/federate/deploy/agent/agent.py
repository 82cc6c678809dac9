"""The resident agent of a device: owns model, vault and ledger, and answers over a Unix socket.

It has no way to the network: `link` or a Flower ClientApp brings it messages and takes replies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from pfi.errors import FederationError, PfiError, StorageError
from pfi.federate.deploy.agent.wire import LARGEST, address, read_ask, send_reply

Handler = Callable[[bytes], bytes]
SOCKET = "agent.sock"
LOCK = "agent.lock"
_KEPT = 4  # replies
_KEPT_BYTES = 1 << 28
_SILENCE = 30.0  # seconds in which a peer has to send or take something
_PEERS = 16  # that may wait their turn

_log = logging.getLogger(__name__)


class Agent:
    """Answers messages one at a time; use as a context manager, or call `close`.

    A message whose id was answered lately gives the same reply and no more work, so that a
    message sent twice trains once.

    Args:
        path: of the socket; its folder has to be the owner's alone.
        handler: makes the reply to a message.
        largest: bytes of a message.

    Raises:
        StorageError: another agent runs here, or others can reach the folder.
    """

    def __init__(self, path: Path, handler: Handler, *, largest: int = LARGEST) -> None:
        self.path, self._handler, self._largest = path, handler, largest
        self._replies: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()
        self._stop = threading.Event()
        if path.parent.stat().st_mode & 0o077:
            fix = f"run `chmod 700 {path.parent}`"
            raise StorageError("others can reach the folder", where=str(path.parent), fix=fix)
        # A file object: closing it a second time does not close what has its number by then.
        self._lock = os.fdopen(os.open(path.parent / LOCK, os.O_RDWR | os.O_CREAT, 0o600), "rb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)  # of an agent that was killed
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with address(path) as name:
                self._socket.bind(name)
            path.chmod(0o600)
            self._socket.listen(_PEERS)
            self._socket.settimeout(0.2)
        except BlockingIOError as error:
            self._lock.close()
            fix = "stop it first, or use it"
            raise StorageError("an agent is running", where=str(path), fix=fix) from error
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serve(self) -> None:
        """Answer until `stop` is called, from this thread."""
        while not self._stop.is_set():
            try:
                peer, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:  # closed, or out of files
                if not self._stop.wait(1):
                    _log.error("nobody can be let in: %s", error)
                continue
            with peer:
                peer.settimeout(_SILENCE)
                try:
                    send_reply(peer, self._reply(peer))
                except OSError as error:
                    # Its reply is kept, if there is one: a forwarder may die and ask again.
                    _log.warning("a forwarder went away: %s", error)

    def stop(self) -> None:
        """Let `serve` return after the message that it works on; any thread may call this."""
        self._stop.set()

    def close(self) -> None:
        """Remove the socket."""
        self._stop.set()
        self._socket.close()
        self.path.unlink(missing_ok=True)
        self._lock.close()

    def _reply(self, peer: socket.socket) -> bytes | FederationError:
        try:
            id_, data = read_ask(peer, self._largest)
        except FederationError as error:
            _log.warning("refused: %s", error)
            return error
        try:
            return self._answer(id_, data)
        except FederationError as error:
            _log.warning("refused: %s", error)
            return error
        except Exception as error:
            # Its text may tell of records, so it stays in this log.
            if isinstance(error, PfiError):
                _log.error("failed: %s", error)
            else:
                _log.exception("failed")
            return FederationError(f"the device failed ({type(error).__name__}); see its log")

    def _answer(self, id_: str, data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        known = self._replies.get(id_) if id_ else None
        if known is not None:
            if known[0] != digest:
                raise FederationError(f"the id {id_!r} was used for another message")
            return known[1]
        reply = self._handler(data)
        if id_:
            self._replies[id_] = (digest, reply)
            while len(self._replies) > 1 and (
                len(self._replies) > _KEPT
                or sum(len(data) for _, data in self._replies.values()) > _KEPT_BYTES
            ):
                self._replies.popitem(last=False)
        return reply
