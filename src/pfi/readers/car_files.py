"""CAR files (version 1): the blocks of content-addressed data, one at a time.

A header, then blocks, each with its length (LEB128), its CID and its bytes, as
https://ipld.io/specs/transport/car/carv1/ has it.  A block is given only if its checksum is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import libipld

from pfi.errors import DataError
from pfi.readers.exports import Member

__all__ = ["Block", "block_at", "blocks", "decoded", "roots"]

#: Bytes of one block with its CID, and of the header; repositories of AT Protocol keep to 1 MB.
BLOCK_LIMIT = 4 << 20
#: CIDs of version 1 with SHA-256: version, codec (DAG-CBOR or raw bytes), hash, its length.
_PREFIXES = (b"\x01\x71\x12\x20", b"\x01\x55\x12\x20")
_CID = 36
_REPAIR = "export it again"


class Block(NamedTuple):
    """A block: its CID and bytes, and where it begins in the file, for `block_at`."""

    cid: bytes
    content: bytes
    place: int


def roots(file: Member) -> list[bytes]:
    """The CIDs that the header names; empty if it is no CAR file."""
    try:
        with file.open() as stream:
            header = _header(stream)
    except (DataError, ValueError):
        return []
    return header


def blocks(file: Member) -> Iterator[Block]:
    """Yield each block.

    Raises:
        DataError: it is no CAR file, or is damaged from there on.
    """
    with file.open() as stream:
        try:
            _header(stream)
            while (block := _block(stream, stream.tell())) is not None:
                yield block
        except ValueError as error:
            what = f"the CAR file is damaged ({error})"
            raise DataError(what, path=file.place, fix=_REPAIR) from error


def block_at(stream: IO[bytes], place: int) -> Block | None:
    """The block that begins at a place; None if there is none."""
    stream.seek(place)
    try:
        return _block(stream, place)
    except ValueError:
        return None


def _block(stream: IO[bytes], place: int) -> Block | None:
    """The next block; None at the end.

    Raises:
        ValueError: it is damaged.
    """
    length = _length(stream)
    if length is None:
        return None
    data = _exactly(stream, length)
    cid, content = data[:_CID], data[_CID:]
    if not cid.startswith(_PREFIXES) or len(data) < _CID:
        raise ValueError("a block of another kind")
    if hashlib.sha256(content).digest() != cid[4:]:
        raise ValueError("the checksum differs")
    return Block(cid, content, place)


def decoded(content: bytes) -> Any:
    """The value of a block in DAG-CBOR, CIDs as bytes; None if it is none."""
    try:
        return libipld.decode_dag_cbor(content)
    except (ValueError, RecursionError):
        return None


def _header(stream: IO[bytes]) -> list[bytes]:
    """The roots.

    Raises:
        ValueError: it is no header.
    """
    length = _length(stream)
    if not length:
        raise ValueError("there is no header")
    value = decoded(_exactly(stream, length))
    if not isinstance(value, dict) or value.get("version") != 1:
        raise ValueError("it is no CAR file of version 1")
    named = value.get("roots")
    return [cid for cid in named if isinstance(cid, bytes)] if isinstance(named, list) else []


def _length(stream: IO[bytes]) -> int | None:
    """A length; None at the end.

    Raises:
        ValueError: it breaks off, or is too large.
    """
    value = 0
    for shift in range(0, 28, 7):
        byte = stream.read(1)
        if not byte:
            if shift:
                raise ValueError("it breaks off")
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            if value > BLOCK_LIMIT:
                break
            return value
    raise ValueError("a block is too large")


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ValueError("it breaks off")
    return data
