"""Messages between server and clients, named arrays and plain values as safetensors bytes; and the
fleet of clients that they go to, simulated ones or real devices, which the rounds cannot tell.

Nothing in a message is ever executed, and its size is what is counted as sent.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pfi.errors import FederationError

Array = np.ndarray[Any, Any]
Value = bool | int | float | str
_LARGEST_HEADER = 1 << 22
#: safetensors' names of numpy's types.
_KINDS = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """What crosses between server and client.

    Attributes:
        arrays: by name.
        values: plain numbers and texts by name.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The message as it is sent."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        # The format's own writer copies every array twice; large updates are worth a join.
        header: dict[str, Any] = {
            "__metadata__": {"values": json.dumps(dict(self.values), sort_keys=True)}
        }
        # Wide numbers first, so that each array lies at a multiple of its number's size.
        order = sorted(self.arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        parts: list[Any] = [b"", b""]
        end = 0
        for name, array in order:
            kind = _KINDS[array.dtype.str.lstrip("<|=")]
            shape, begin, end = list(array.shape), end, end + array.nbytes
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        parts[:2] = len(text).to_bytes(8, "little"), text
        return b"".join(parts)

    @property
    def size(self) -> int:
        """Bytes as sent."""
        return len(self._encoded)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the message as it is sent, 64 hex digits."""
        return hashlib.sha256(self._encoded).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Read a message.

        Raises:
            FederationError: it is malformed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        values = read_values(data)
        try:
            return cls(load(data), values)
        except (ValueError, LookupError, TypeError, SafetensorError) as error:
            raise FederationError(f"a message is malformed: {error}") from error

    def array(self, name: str, dtype: Any, shape: tuple[int, ...] | None = None) -> Array:
        """An array that has to be there, of this type and shape.

        Raises:
            FederationError: it is missing or of another type or shape.
        """
        array = self.arrays.get(name)
        if array is None:
            raise FederationError(f"a message lacks the array {name!r}")
        if array.dtype != np.dtype(dtype) or (shape is not None and array.shape != shape):
            what = f"the array {name!r} of a message is {array.dtype} {array.shape}"
            raise FederationError(f"{what}, not {np.dtype(dtype)} {shape or ''}".rstrip())
        return array

    def number(self, name: str) -> float:
        """A finite number that has to be there.

        Raises:
            FederationError: it is missing or no finite number.
        """
        value = self.values.get(name)
        # Compared as it is: JSON has whole numbers that no float and no numpy function takes.
        if isinstance(value, bool | str) or value is None or not abs(value) <= sys.float_info.max:
            raise FederationError(f"a message lacks the number {name!r}")
        return value


def read_values(data: bytes) -> dict[str, Value]:
    """The values of a message as it was sent, without reading its arrays.

    Raises:
        FederationError: it is malformed.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(_LARGEST_HEADER, len(data) - 8):
            raise ValueError("its header has no sensible length")
        values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["values"])
        plain = isinstance(values, dict) and all(
            isinstance(value, bool | int | float | str) for value in values.values()
        )
        if not plain:
            raise ValueError("its values are not plain numbers and texts")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise FederationError(f"a message is malformed: {error}") from error
    return values


@dataclass(frozen=True)
class Failure:
    """A client that gave no reply, and why: it dropped out, was late, or met an error."""

    why: str


@runtime_checkable
class Reachable(Protocol):
    """A fleet of which some are away at times, as devices are."""

    def available(self, clients: Sequence[str], least: int, again: int = 0) -> Sequence[str]:
        """Those of these clients that can be reached now, in their order.

        Args:
            clients: that may be asked.
            least: so many are waited for.
            again: how often the same round was asked in vain; it is waited longer each time.

        Raises:
            FederationError: they did not come.
        """
        ...


class Fleet(Protocol):
    """The clients of a federation."""

    def clients(self) -> Sequence[str]:
        """All that may be asked, in an order that stays."""
        ...

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send each client its message.

        Args:
            round: its number.
            messages: by client.
            seconds: how long is waited; later replies are failures.

        Yields:
            each client's reply as it comes.
        """
        ...
