"""Repositories of Bluesky (AT Protocol) as CAR files, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import libipld


def cid_of(data: bytes) -> bytes:
    return b"\x01\x71\x12\x20" + hashlib.sha256(data).digest()


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def repository(
    records: Mapping[str, Any], did: str = "did:plc:sam", stray: Sequence[Any] = ()
) -> bytes:
    """A CAR file of a repository of AT Protocol.

    Args:
        records: by `collection/key`; all are in one node of the tree.
        did: whose it is.
        stray: records that the tree does not name.
    """
    contents = {name: libipld.encode_dag_cbor(value) for name, value in records.items()}
    entries, before = [], b""
    for name in sorted(contents):
        key = name.encode()
        shared = next(
            (n for n, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
            min(len(key), len(before)),
        )
        entries.append(
            {"p": shared, "k": _Bytes(key[shared:]), "v": cid_of(contents[name]), "t": None}
        )
        before = key
    node = encoded({"l": None, "e": entries})
    commit = encoded({"did": did, "rev": "3k2a", "version": 3, "prev": None, "data": cid_of(node)})
    blocks = [commit, node, *contents.values()]
    blocks += [libipld.encode_dag_cbor(value) for value in stray]
    header = encoded({"roots": [cid_of(commit)], "version": 1})
    out = varint(len(header)) + header
    for block in blocks:
        out += varint(36 + len(block)) + cid_of(block) + block
    return out


class _Bytes(bytes):
    """Bytes that are no CID."""


def encoded(value: Any) -> bytes:
    """DAG-CBOR in which plain bytes are CIDs and `_Bytes` are bytes."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key), key))
        return head(5, len(keys)) + b"".join(encoded(key) + encoded(value[key]) for key in keys)
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encoded, value))
    if isinstance(value, _Bytes):
        return head(2, len(value)) + value
    if isinstance(value, bytes):
        return b"\xd8\x2a" + head(2, len(value) + 1) + b"\x00" + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return b"\xf6" if value is None else head(0, value)


def head(kind: int, value: int) -> bytes:
    if value < 24:
        return bytes([kind << 5 | value])
    return bytes([kind << 5 | 25]) + value.to_bytes(2, "big")
