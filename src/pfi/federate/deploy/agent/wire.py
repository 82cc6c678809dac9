"""The way into a device's agent: messages with their length in front, over a Unix socket.

Standard library only, since what forwards to an agent is started anew for every message.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pfi.errors import FederationError

MAGIC = b"pfi1"
LARGEST = 1 << 30  # bytes of a message
ID_LENGTH = 128  # bytes
_ASK = struct.Struct("!4sHQ")  # magic, bytes of the id, bytes of the message
_REPLY = struct.Struct("!4sBQ")  # magic, status, bytes
_OK, _REFUSED = 0, 1
_PIECE = 1 << 20
_LONGEST_PATH = 100  # a socket's address holds little more


def forward(path: Path, data: bytes, seconds: float | None = None, *, id: str = "") -> bytes:
    """Hand a message to the agent that listens at `path`, and wait for its reply.

    Args:
        path: the agent's socket.
        data: the message.
        seconds: longest time between two signs of life; None waits for ever.
        id: of the message; one that was answered before gives the same reply.

    Raises:
        FederationError: there is no agent, it refused the message, or it was silent too long.
    """
    where = str(path)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(seconds)
            with address(path) as name:
                peer.connect(name)
            name_bytes = id.encode()
            peer.sendall(_ASK.pack(MAGIC, len(name_bytes), len(data)) + name_bytes)
            with suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(data)  # it may have answered, and gone, before it read all
            magic, status, length = _REPLY.unpack(receive(peer, _REPLY.size))
            if magic != MAGIC or status not in (_OK, _REFUSED) or length > LARGEST:
                raise FederationError("what answers is no agent of this version", where=where)
            reply = receive(peer, length)
    except TimeoutError as error:
        raise FederationError(f"the agent was silent for {seconds:g} s", where=where) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        fix = "start it with `pfi federate agent`"
        raise FederationError("no agent is running", where=where, fix=fix) from error
    except OSError as error:
        raise FederationError(f"the agent went away: {error}", where=where) from error
    if status == _REFUSED:
        raise FederationError(reply.decode("utf-8", "replace"))
    return reply


def read_ask(peer: socket.socket, largest: int) -> tuple[str, bytes]:
    """The id and the message of one who connected.

    Raises:
        FederationError: it is malformed or larger than `largest` bytes.
        OSError: the peer went away or is silent.
    """
    magic, id_length, length = _ASK.unpack(receive(peer, _ASK.size))
    if magic != MAGIC:
        raise FederationError("a frame does not begin as one of ours")
    if id_length > ID_LENGTH:
        raise FederationError(f"an id has {id_length} bytes, more than {ID_LENGTH}")
    if length > largest:
        raise FederationError(f"a message has {length} bytes, more than {largest}")
    try:
        id_ = receive(peer, id_length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FederationError("an id is not UTF-8") from error
    return id_, receive(peer, length)


def send_reply(peer: socket.socket, reply: bytes | FederationError) -> None:
    """Answer with bytes, or with why there are none.

    Raises:
        OSError: the peer went away.
    """
    if isinstance(reply, bytes):
        peer.sendall(_REPLY.pack(MAGIC, _OK, len(reply)))
        peer.sendall(reply)
    else:
        why = reply.what.encode()
        peer.sendall(_REPLY.pack(MAGIC, _REFUSED, len(why)) + why)


def receive(peer: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes, taken as they come: a false length costs no memory.

    Raises:
        ConnectionError: there are fewer.
        OSError: the peer is silent.
    """
    pieces: list[bytes] = []
    while count:
        piece = peer.recv(min(count, _PIECE))
        if not piece:
            raise ConnectionResetError("it closed the connection")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


@contextmanager
def address(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that is short enough for the system.

    Raises:
        FederationError: there is none.
        OSError: its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        fix = f"use a home whose path has at most {_LONGEST_PATH - 12} bytes"
        raise FederationError("the path is too long for a socket", where=str(path), fix=fix)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
