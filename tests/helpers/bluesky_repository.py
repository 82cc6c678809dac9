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
    records: Mapping[str, Any],
    did: str = "did:plc:sam",
    *,
    stray: Sequence[Any] = (),
    before: Mapping[str, Any] | None = None,
) -> bytes:
    """A CAR file of a repository of AT Protocol.

    Args:
        records: by `collection/key`; the first half is in a node below the root of the tree.
        did: whose it is.
        stray: records that no tree names.
        before: the records of an older commit, which is in the file too.
    """
    blocks: list[bytes] = []
    commit = b""
    for state in [before, records] if before is not None else [records]:
        contents = {name: libipld.encode_dag_cbor(value) for name, value in state.items()}
        names = sorted(contents)
        half = len(names) // 2
        lower = _node(names[:half], contents, None)
        node = _node(names[half:], contents, cid_of(lower))
        commit = encoded(
            {"did": did, "rev": "3k2a", "version": 3, "prev": None, "data": cid_of(node)}
        )
        blocks += [lower, node, commit, *contents.values()]
    blocks += [libipld.encode_dag_cbor(value) for value in stray]
    header = encoded({"roots": [cid_of(commit)], "version": 1})
    out = varint(len(header)) + header
    for block in dict.fromkeys(blocks):
        out += varint(36 + len(block)) + cid_of(block) + block
    return out


def _node(names: Sequence[str], contents: Mapping[str, bytes], left: bytes | None) -> bytes:
    entries: list[dict[str, Any]] = []
    before = b""
    for name in names:
        key = name.encode()
        shared = next(
            (n for n, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
            min(len(key), len(before)),
        )
        rest = _Bytes(key[shared:])
        entries.append({"p": shared, "k": rest, "v": cid_of(contents[name]), "t": None})
        before = key
    return encoded({"l": left, "e": entries})


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
