"""Compression of updates: the largest numbers with error feedback (1809.07599), unbiased rounding
to few bits (QSGD, 1610.02132, with the largest number of a block as its norm), or float16.

Rounding is unbiased given what is rounded, so its error is not remembered; what the choice of the
largest leaves out is, and is added to the client's next update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Vector
from pfi.federate.message import Array

#: Where a client keeps what it has not sent yet.
RESIDUAL = "compress.residual"
_FEWEST_BLOCK, _MOST_BLOCK = 8, 1 << 16


class CompressConfig(BaseModel):
    """How an update is made smaller on its way to the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: float = Field(
        1.0, gt=0, le=1, description="share of an update's numbers that are sent, the largest"
    )
    feedback: bool = Field(
        True, description="keep what the largest leave out, and add it to the next update"
    )
    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16, 32] = Field(
        32, description="of a number: 32 as it is, 16 half precision, fewer unbiased rounding"
    )
    block: int = Field(
        256, ge=_FEWEST_BLOCK, le=_MOST_BLOCK, description="numbers that share a scale"
    )

    @property
    def active(self) -> bool:
        """Whether anything is made smaller."""
        return self.top_k < 1 or self.bits < 32

    @property
    def remembers(self) -> bool:
        """Whether a client keeps something from round to round."""
        return self.top_k < 1 and self.feedback


def compress(
    vector: Vector,
    config: CompressConfig,
    memory: dict[str, Array],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """An update as arrays to send; ``decompress`` reads them.

    Args:
        vector: ``(size,)`` the update.
        config: how.
        memory: the client's; holds what it has not sent yet, changed in place.
        rng: of the rounding.

    Raises:
        FederationError: the update is not finite; nothing is remembered of it.
    """
    if not np.isfinite(vector).all():
        raise FederationError("an update is not finite", fix="lower local.learning_rate")
    if not config.active:
        return {"vector": vector.astype(np.float32)}
    wanted = vector.astype(np.float64)
    residual = memory.get(RESIDUAL) if config.remembers else None
    if residual is not None and residual.shape == vector.shape:  # of another federation otherwise
        wanted = wanted + residual
    count = max(1, int(np.ceil(config.top_k * vector.size)))
    places, arrays = None, {}
    chosen = wanted
    if count < vector.size:
        places = np.sort(np.argpartition(np.abs(wanted), -count)[-count:])
        chosen = wanted[places]
        gaps = np.diff(places, prepend=-1) - 1
        width = int(gaps.max()).bit_length()
        arrays["gaps"] = _pack(gaps, width)
    else:
        width = 0
    numbers, sent = _rounded(chosen.astype(np.float32), config, rng)
    if config.remembers:
        left = wanted.copy()
        # Unbiased rounding can be more noise than number, so that remembering its error would
        # let the residual grow without end (1901.09847 needs a contraction).
        passed = sent if config.bits >= 16 else chosen
        left[places if places is not None else slice(None)] -= passed
        memory[RESIDUAL] = left.astype(np.float32)
    how = np.array([count, config.bits, config.block, width], np.uint32)
    return {"how": how, **arrays, **numbers}


def decompress(arrays: Mapping[str, Array], size: int) -> Vector:
    """The update that was sent, ``(size,)``, with zeros for what was not.

    Raises:
        FederationError: it is malformed.
    """
    if "how" not in arrays:
        return _array(arrays, "vector", np.float32, size)
    count, bits, block, width = (int(n) for n in _array(arrays, "how", np.uint32, 4))
    sensible = (
        1 <= count <= size
        and bits in (*range(2, 9), 16, 32)
        and _FEWEST_BLOCK <= block <= _MOST_BLOCK
        and width <= 32
    )
    if not sensible:
        raise FederationError(f"an update says {count} numbers of {size}, {bits} bits, {width}")
    numbers = _numbers(arrays, count, bits, block)
    if count == size:
        return numbers
    gaps = _unpack(_array(arrays, "gaps", np.uint8, _packed(count, width)), count, width)
    # No place can be repeated, as a gap is counted from the number after the last one.
    places = np.cumsum(gaps.astype(np.uint64) + np.uint64(1)) - np.uint64(1)
    if places[-1] >= size:
        raise FederationError(f"an update has a number at {places[-1]}, beyond its {size}")
    vector = np.zeros(size, np.float32)
    vector[places] = numbers
    return vector


# Numbers --------------------------------------------------------------------------------


def _rounded(
    chosen: Vector, config: CompressConfig, rng: np.random.Generator
) -> tuple[dict[str, Array], Vector]:
    """Numbers as arrays, and what they are when read again."""
    if config.bits == 32:
        return {"vector": chosen}, chosen
    blocks = np.arange(0, chosen.size, config.block)
    scales = np.maximum.reduceat(np.abs(chosen), blocks)
    spread = np.repeat(scales, config.block)[: chosen.size].astype(np.float64)
    shares = np.divide(chosen, spread, out=np.zeros(chosen.size), where=spread > 0)
    if config.bits == 16:
        halves = shares.astype(np.float16)
        return {"scales": scales, "vector": halves}, _scaled(halves, scales, config.block)
    top = _levels(config.bits)
    exact = shares * top
    below = np.floor(exact)
    codes = below + (rng.random(chosen.size) < exact - below)
    packed = _pack((codes + top).astype(np.uint8), config.bits)
    return {"scales": scales, "codes": packed}, _scaled(codes / top, scales, config.block)


def _numbers(arrays: Mapping[str, Array], count: int, bits: int, block: int) -> Vector:
    """What ``_rounded`` wrote, checked."""
    if bits == 32:
        return _array(arrays, "vector", np.float32, count)
    scales = _array(arrays, "scales", np.float32, -(-count // block))
    if (scales < 0).any():
        raise FederationError("an update has a negative scale")
    if bits == 16:
        halves = _array(arrays, "vector", np.float16, count)
        if (np.abs(halves) > 1).any():
            raise FederationError("an update has numbers beyond their scale")
        return _scaled(halves, scales, block)
    codes = _unpack(_array(arrays, "codes", np.uint8, _packed(count, bits)), count, bits)
    top = _levels(bits)
    if (codes > 2 * top).any():
        raise FederationError("an update has numbers beyond their scale")
    return _scaled((codes.astype(np.float64) - top) / top, scales, block)


def _levels(bits: int) -> int:
    """Levels above zero, as many below: one code of ``2 ** bits`` stays unused."""
    return (1 << (bits - 1)) - 1


def _scaled(shares: NDArray[Any], scales: Vector, block: int) -> Vector:
    spread = np.repeat(scales, block)[: shares.size]
    return (shares * spread.astype(np.float64)).astype(np.float32)


def _array(arrays: Mapping[str, Array], name: str, dtype: Any, size: int) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != (size,):
        what = "is missing" if array is None else f"is {array.dtype} {array.shape}"
        raise FederationError(f"the array {name!r} of an update {what}, not {dtype} ({size},)")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise FederationError(f"the array {name!r} of an update is not finite")
    return array


# Bits -----------------------------------------------------------------------------------


def _packed(count: int, width: int) -> int:
    """Bytes of ``count`` numbers of ``width`` bits."""
    return -(-count * width // 8)


def _pack(numbers: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Whole numbers below ``2 ** width``, bit by bit, the lowest bit first."""
    bits = np.empty((numbers.size, width), np.uint8)
    for i in range(width):
        bits[:, i] = (numbers >> i) & 1
    return np.packbits(bits.reshape(-1), bitorder="little")


def _unpack(packed: NDArray[np.uint8], count: int, width: int) -> NDArray[np.uint32]:
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    numbers = np.zeros(count, np.uint32)
    for i in range(width):
        numbers |= bits[:, i].astype(np.uint32) << np.uint32(i)
    return numbers
