"""Files sealed with AES-256-GCM (NIST SP 800-38D), each bound to the place that it was made for.

A file that was changed, cut short or put in another's place does not open.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pfi.errors import StorageError

MAGIC, VERSION = b"PFIS", 1
_NONCE, _TAG = 12, 16
_HEAD = len(MAGIC) + 1
OVERHEAD = _HEAD + _NONCE + _TAG  # bytes that sealing adds


class SealError(StorageError):
    """A sealed file that does not open: of another key or place, damaged, or no such file."""


def seal(key: bytes, data: bytes, context: str) -> bytes:
    """Encrypt ``data`` so that it opens only with ``key`` and as ``context``.

    Args:
        key: 32 bytes.
        data: at most 2 GiB.
        context: what the data is and whose; not kept in the result.
    """
    head, nonce = MAGIC + bytes([VERSION]), os.urandom(_NONCE)
    return head + nonce + AESGCM(key).encrypt(nonce, data, _bound(head, context))


def unseal(key: bytes, data: bytes, context: str) -> bytes:
    """What `seal` was given.

    Raises:
        SealError: the key or the context is another, or the data is damaged or not sealed.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise SealError("is not a sealed file")
    if len(data) < OVERHEAD:
        raise SealError("the sealed file is cut short")
    head, nonce = data[:_HEAD], data[_HEAD : _HEAD + _NONCE]
    if head[-1] != VERSION:
        what = f"the file is sealed in format {head[-1]}, and this pfi knows format {VERSION} only"
        raise SealError(what, fix="update pfi, or restore the file from a backup")
    try:
        return AESGCM(key).decrypt(nonce, data[_HEAD + _NONCE :], _bound(head, context))
    except InvalidTag as error:
        what = "does not open: it was changed, is another's, or was sealed with another key"
        raise SealError(what, fix="restore it from a backup") from error


def unseal_file(key: bytes, path: Path, context: str) -> bytes:
    """What was sealed in a file.

    Raises:
        SealError: see `unseal`; the file is named.
        StorageError: the file cannot be read.
    """
    try:
        return unseal(key, path.read_bytes(), context)
    except SealError as error:
        raise SealError(error.what, where=str(path), fix=error.fix) from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(path)) from error


def is_sealed(data: bytes) -> bool:
    """Whether the data begins as sealed data does."""
    return data.startswith(MAGIC)


def _bound(head: bytes, context: str) -> bytes:
    return head + b"|" + context.encode("utf-8")
