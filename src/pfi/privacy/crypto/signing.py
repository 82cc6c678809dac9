"""Signatures of a device: Ed25519 (RFC 8032) over canonical JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pfi.privacy.ledger.entries import canonical

SIGNATURE = "signature"


def sign(key: Ed25519PrivateKey, obj: Mapping[str, Any]) -> str:
    """The signature of a JSON object: 128 hex digits.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return key.sign(_bytes(obj)).hex()


def verify(public: bytes, obj: Mapping[str, Any], signature: str) -> bool:
    """Whether the signature is that of the key (32 raw bytes) over the JSON object."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(signature), _bytes(obj))
    except (InvalidSignature, ValueError):
        return False
    return True


def with_signature(key: Ed25519PrivateKey, purpose: str, obj: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a last value `signature`, which holds for this purpose only.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return {**obj, SIGNATURE: sign(key, {"purpose": purpose, "content": dict(obj)})}


def without_signature(public: bytes, purpose: str, obj: Any) -> dict[str, Any] | None:
    """What `with_signature` was given, or None where it is not that, of this key and purpose."""
    if not isinstance(obj, dict) or not isinstance(obj.get(SIGNATURE), str):
        return None
    content = {name: value for name, value in obj.items() if name != SIGNATURE}
    right = verify(public, {"purpose": purpose, "content": content}, obj[SIGNATURE])
    return content if right else None


def _bytes(obj: Mapping[str, Any]) -> bytes:
    # Other things that the key signs, a roster for one, cannot be taken for such values.
    return b"pfi-signed-json-1\n" + canonical(obj).encode("ascii")
