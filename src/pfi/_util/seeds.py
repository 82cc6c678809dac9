"""Seeds for units of work, the same whenever and wherever they are done."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_of(seed: int, *parts: object) -> int:
    """A seed below 2**32 for one unit of work."""
    text = json.dumps([seed, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A generator of random numbers for one unit of work."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, *parts)))
