"""Sharing and the primitives of secure aggregation, against RFC vectors and plain fractions."""

from __future__ import annotations

import hashlib
import hmac
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import FederationError
from pfi.federate.secure import crypto, field

# Shamir ----------------------------------------------------------------------------------


def _probably_prime(number: int) -> bool:
    """Miller-Rabin with forty bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        if not any((x := x * x % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_smallest_prime_above_all_secrets() -> None:
    assert _probably_prime(field.PRIME)
    assert not any(map(_probably_prime, range(2**256 + 1, field.PRIME, 2)))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_shares_restore_the_secret_and_one_fewer_does_not(
    data: st.DataObject,
) -> None:
    secret = data.draw(st.binary(min_size=32, max_size=32))
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, count))
    points = data.draw(st.permutations(range(1, 60)))[:count]
    shares = dict(zip(points, field.split(secret, points, threshold), strict=True))
    assert all(len(share) == field.SHARE_BYTES for share in shares.values())
    some = data.draw(st.permutations(points))[:threshold]
    assert field.combine([shares[p] for p in some], field.weights(some)) == secret
    fewer = some[:-1]
    try:
        found = field.combine([shares[p] for p in fewer], field.weights(fewer))
    except FederationError:
        return
    assert found != secret


@given(
    st.lists(st.integers(0, 2**200), min_size=1, max_size=7),
    st.lists(st.integers(1, 1000), min_size=7, max_size=7, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_weights_agree_with_lagrange_in_plain_fractions(
    coefficients: list[int], points: list[int]
) -> None:
    values = [sum(c * x**n for n, c in enumerate(coefficients)) for x in points]
    total = Fraction(0)
    for x, value in zip(points, values, strict=True):
        term = Fraction(value)
        for other in points:
            if other != x:
                term *= Fraction(-other, x - other)
        total += term
    assert total == coefficients[0]
    shares = [(value % field.PRIME).to_bytes(33, "big") for value in values]
    found = field.combine(shares, field.weights(points))
    assert found == coefficients[0].to_bytes(32, "big")


def test_one_share_fewer_leaves_every_secret_possible() -> None:
    points = [1, 2, 3]
    shares = field.split(b"a" * 32, points, 3)
    w = field.weights(points)
    for other in (b"b" * 32, bytes(32)):
        # The third share that would make it this secret exists and is of the field.
        rest = sum(field.read(s) * x for s, x in zip(shares[:2], w[:2], strict=True))
        third = (int.from_bytes(other, "big") - rest) * pow(w[2], -1, field.PRIME) % field.PRIME
        assert field.combine([*shares[:2], third.to_bytes(33, "big")], w) == other


@pytest.mark.parametrize("points", [[1, 1], [0, 1], [1, 1 + field.PRIME], [field.PRIME, 1]])
def test_points_that_are_zero_or_the_same_modulo_the_prime(points: list[int]) -> None:
    for use in (lambda: field.split(bytes(32), points, 2), lambda: field.weights(points)):
        with pytest.raises(FederationError, match="shares at zero or twice"):
            use()


def test_shares_are_fresh_each_time() -> None:
    assert field.split(bytes(32), [1, 2], 2) != field.split(bytes(32), [1, 2], 2)


@pytest.mark.parametrize(("secret", "threshold"), [(b"short", 2), (bytes(32), 4), (bytes(32), 0)])
def test_a_secret_that_cannot_be_shared(secret: bytes, threshold: int) -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        field.split(secret, [1, 2, 3], threshold)


# Primitives ------------------------------------------------------------------------------


def _chacha_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """One block of RFC 8439, section 2.3, in plain integers."""
    words = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    rest = key + counter.to_bytes(4, "little") + nonce
    words += [int.from_bytes(rest[at : at + 4], "little") for at in range(0, 48, 4)]
    now = list(words)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            now[x] = (now[x] + now[y]) % 2**32
            mixed = now[z] ^ now[x]
            now[z] = (mixed << turn | mixed >> (32 - turn)) % 2**32

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for first in range(4):
            quarter(first, 4 + (first + 1) % 4, 8 + (first + 2) % 4, 12 + (first + 3) % 4)
    return b"".join(
        ((x + y) % 2**32).to_bytes(4, "little") for x, y in zip(now, words, strict=True)
    )


def test_our_own_chacha20_gives_the_block_of_the_rfc() -> None:
    block = _chacha_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"))
    assert block[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4"
    assert block[-16:].hex() == "b5129cd1de164eb9cbd083e8a2503c4e"


def test_a_mask_is_the_keystream_of_rfc_8439() -> None:
    # RFC 8439, appendix A.1, vectors 1 and 2: zero key and nonce, blocks 0 and 1.
    total = np.zeros(32, "<u4")
    crypto.add_mask(total, bytes(32))
    first = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    second = "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    assert total.tobytes()[:32].hex() == first
    assert total.tobytes()[64:96].hex() == second


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_masks_are_added_and_taken_off_across_pieces(dtype: str) -> None:
    key = hashlib.sha256(b"key").digest()
    size = crypto._PIECE // np.dtype(dtype).itemsize + 37
    start = np.arange(size).astype(dtype)
    total = start.copy()
    crypto.add_mask(total, key)
    mask = (total - start).tobytes()
    for block in (0, 1, crypto._PIECE // 64 - 1, crypto._PIECE // 64):
        assert (
            mask[64 * block : 64 * (block + 1)]
            == _chacha_block(key, block, bytes(12))[: len(mask) - 64 * block]
        )
    crypto.add_mask(total, key, negative=True)
    assert (total == start).all()


def _x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder in plain integers."""
    p = 2**255 - 19
    k = bytearray(scalar)
    k[0], k[31] = k[0] & 248, k[31] & 127 | 64
    bits, x1 = int.from_bytes(k, "little"), int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, x1, 1
    for turn in range(254, -1, -1):
        bit = bits >> turn & 1
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        e = a * a - b * b
        x3, z3 = (d * a + c * b) ** 2 % p, x1 * (d * a - c * b) ** 2 % p
        x2, z2 = a * a * b * b % p, e * (a * a + 121665 * e) % p
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def test_agreement_is_x25519_then_hkdf() -> None:
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    secret = _x25519(a.private_bytes_raw(), crypto.public_of(b))
    assert crypto.public_of(a) == _x25519(a.private_bytes_raw(), (9).to_bytes(32, "little"))
    found = crypto.agree(a, crypto.public_of(b), b"salt", b"info")
    assert found == crypto.derive(secret, b"salt", b"info")


def test_hkdf_agrees_with_hmac() -> None:
    # RFC 5869: extract, then one block of expand.
    secret, salt, info = b"s" * 32, b"salt", b"info"
    pseudo = hmac.digest(salt, secret, "sha256")
    assert crypto.derive(secret, salt, info) == hmac.digest(pseudo, info + b"\x01", "sha256")


def test_two_sides_agree_and_a_key_of_small_order_gives_nothing() -> None:
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    key = crypto.agree(a, crypto.public_of(b), b"salt", b"info")
    assert key == crypto.agree(b, crypto.public_of(a), b"salt", b"info")
    assert key != crypto.agree(a, crypto.public_of(b), b"other", b"info")
    assert key != crypto.agree(a, crypto.public_of(b), b"salt", b"other")
    for small in (bytes(32), (1).to_bytes(32, "little")):
        assert crypto.agree(a, small, b"salt", b"info") is None


def test_sealed_text_opens_with_the_same_key_and_bound_data_only() -> None:
    sealed = crypto.seal(b"k" * 32, b"text", b"bound")
    assert crypto.unseal(b"k" * 32, sealed, b"bound") == b"text"
    assert crypto.unseal(b"l" * 32, sealed, b"bound") is None
    assert crypto.unseal(b"k" * 32, sealed, b"other") is None
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert crypto.unseal(b"k" * 32, bytes(changed), b"bound") is None


def test_hashes_of_lists_of_parts_differ() -> None:
    assert crypto.hash_of(b"ab", b"c") != crypto.hash_of(b"a", b"bc")
    assert crypto.hash_of(b"a") != crypto.hash_of(b"a", b"")
