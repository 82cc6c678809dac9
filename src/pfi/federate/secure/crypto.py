"""The primitives of secure aggregation, all from ``cryptography``.

X25519 (RFC 7748), Ed25519 (RFC 8032), HKDF-SHA256 (RFC 5869), ChaCha20 and Poly1305 (RFC 8439).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES = 32, 64, 16
#: A mask is made and added in pieces that stay in the processor's cache.
_PIECE = 1 << 17
_ZEROS = memoryview(bytes(_PIECE))


def hash_of(*parts: bytes) -> bytes:
    """SHA-256 of parts, each with its length, so that no two lists of parts are alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def verify(public: bytes, signature: bytes, payload: bytes) -> bool:
    """Whether the signature is that of the Ed25519 key over the payload."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, payload)
    except (InvalidSignature, ValueError):
        return False
    return True


def agree(private: X25519PrivateKey, public: bytes, salt: bytes, info: bytes) -> bytes | None:
    """The 32-byte key of two X25519 keys; None where the public one is of small order."""
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None
    return derive(secret, salt, info)


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """A 32-byte key made of a secret by HKDF-SHA256."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, info).derive(secret)


def public_of(private: X25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return private.public_key().public_bytes_raw()


def add_mask(total: NDArray[Any], key: bytes, *, negative: bool = False) -> None:
    """Add the mask of a key to unsigned integers in place, or subtract it.

    The mask is ChaCha20's keystream of a zero nonce: a key is for one mask only.
    """
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    piece = np.empty(_PIECE // total.itemsize, total.dtype)
    raw = piece.data.cast("B")
    add = np.subtract if negative else np.add
    for start in range(0, total.size, piece.size):
        part = total[start : start + piece.size]
        stream.update_into(_ZEROS[: part.nbytes], raw[: part.nbytes])
        add(part, piece[: part.size], out=part)


def seal(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """ChaCha20-Poly1305 of a zero nonce (a key is for one text only), bound to other data."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What was sealed; None where it was sealed otherwise or changed since."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, bound)
    except InvalidTag:
        return None
