"""Sealed files open as what they were sealed as, and signatures hold for one key and purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import StorageError
from pfi.privacy.crypto.sealing import OVERHEAD, SealError, is_sealed, seal, unseal, unseal_file
from pfi.privacy.crypto.signing import sign, verify, with_signature, without_signature

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@settings(max_examples=30)
@given(data=st.binary(max_size=200), context=st.text(max_size=20))
def test_what_is_sealed_opens_again_and_shows_nothing(data: bytes, context: str) -> None:
    sealed = seal(KEY, data, context)
    assert unseal(KEY, sealed, context) == data
    assert len(sealed) == len(data) + OVERHEAD and is_sealed(sealed)
    assert len(data) < 4 or data not in sealed
    assert seal(KEY, data, context) != sealed  # a nonce of its own each time


def test_the_format_is_plain_aes_gcm() -> None:
    """Opened here by its description alone: magic, version, nonce, ciphertext."""
    sealed = seal(KEY, b"a secret", "p|personal/0001|tiny|a.bin")
    assert sealed[:5] == b"PFIS\x01"
    bound = b"PFIS\x01|p|personal/0001|tiny|a.bin"
    assert AESGCM(KEY).decrypt(sealed[5:17], sealed[17:], bound) == b"a secret"


@settings(max_examples=60)
@given(at=st.integers(0, OVERHEAD + 7), bit=st.integers(0, 7))
def test_any_changed_bit_is_found(at: int, bit: int) -> None:
    sealed = bytearray(seal(KEY, b"a secret", "here"))
    sealed[at] ^= 1 << bit
    with pytest.raises(SealError):
        unseal(KEY, bytes(sealed), "here")


def test_each_refusal_says_what_is_wrong(tmp_path: Path) -> None:
    sealed = seal(KEY, b"a secret", "here")
    cases = {
        "sealed with another key": (OTHER, sealed, "here"),
        "is another's": (KEY, sealed, "there"),
        "was changed": (KEY, sealed[:-1], "here"),
        "cut short": (KEY, sealed[:20], "here"),
        "not a sealed file": (KEY, b"PK" + sealed, "here"),
        "sealed in format 2": (KEY, b"PFIS\x02" + sealed[5:], "here"),
    }
    for says, (key, data, context) in cases.items():
        with pytest.raises(SealError, match=says):
            unseal(key, data, context)
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(SealError, match=rf"{tmp_path}.*{says}"):
            unseal_file(key, tmp_path / "f", context)
    with pytest.raises(StorageError, match="cannot be read"):
        unseal_file(KEY, tmp_path / "missing", "here")


def test_signatures_hold_for_the_same_values_and_key_only() -> None:
    key = Ed25519PrivateKey.from_private_bytes(KEY)
    public = key.public_key().public_bytes_raw()
    other = Ed25519PrivateKey.from_private_bytes(OTHER).public_key().public_bytes_raw()
    signature = sign(key, {"a": 1, "b": ["é", None]})
    assert verify(public, {"b": ["é", None], "a": 1}, signature)  # in any order
    assert not verify(public, {"a": 2, "b": ["é", None]}, signature)
    assert not verify(other, {"a": 1, "b": ["é", None]}, signature)
    assert not verify(public, {"a": 1, "b": ["é", None]}, "no hex")
    assert not verify(b"short", {"a": 1}, signature)
    # By its description: Ed25519 over a prefix and the compact, sorted JSON.
    key.public_key().verify(
        bytes.fromhex(signature), b'pfi-signed-json-1\n{"a":1,"b":["\\u00e9",null]}'
    )


def test_a_signature_is_for_one_purpose() -> None:
    key = Ed25519PrivateKey.from_private_bytes(KEY)
    public = key.public_key().public_bytes_raw()
    signed = with_signature(key, "manifest", {"a": 1})
    assert without_signature(public, "manifest", signed) == {"a": 1}
    assert without_signature(public, "statement", signed) is None
    assert without_signature(public, "manifest", {**signed, "a": 2}) is None
    for nothing in ({"a": 1}, {"a": 1, "signature": 3}, [], None, "text"):
        assert without_signature(public, "manifest", nothing) is None
