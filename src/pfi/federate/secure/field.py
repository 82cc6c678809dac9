"""Shamir's secret sharing over a prime field: any `threshold` shares restore a 32-byte secret.

Fewer say nothing about it (Shamir 1979).  Plain integers: for cohorts of up to some sixty they are
as fast as numpy limbs or faster (benchmarks/results/secure.md).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pfi.federate.secure import checks

#: The smallest prime above 2**256, so that every 32-byte secret is an element of the field.
PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, points: Sequence[int], threshold: int) -> list[bytes]:
    """One share of ``secret`` for each point.

    Args:
        secret: 32 bytes.
        points: where the polynomial is evaluated; distinct and not 0 modulo the prime.
        threshold: how many shares restore the secret.

    Returns:
        a share of 33 bytes for each point, big-endian.
    """
    checks.points(points, PRIME)
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError(f"{len(secret)} bytes cannot be shared {threshold} of {len(points)}")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """What shares at these points are multiplied with to give the secret: Lagrange at zero."""
    checks.points(points, PRIME)
    factors = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return factors


def combine(shares: Sequence[bytes], weights: Sequence[int]) -> bytes:
    """The secret of shares, given the weights of their points.

    Raises:
        FederationError: a share is no element of the field, or the shares belong to no secret.
    """
    total = 0
    for share, weight in zip(shares, weights, strict=True):
        total += read(share) * weight
    secret = total % PRIME
    checks.secret(secret, 2 ** (8 * SECRET_BYTES))
    return secret.to_bytes(SHARE_BYTES, "big")[-SECRET_BYTES:]


def read(share: bytes) -> int:
    """A share as a number.

    Raises:
        FederationError: it is no element of the field.
    """
    value = int.from_bytes(share, "big")
    checks.element(value, PRIME)
    return value
