"""The head of a GGUF file: its metadata and where its tensors lie, with every number checked.

Format: the specification of the ggml project (ggml-org/ggml), versions 2 and 3. Nothing in a
file is believed before it was compared with the file's size, so a damaged or hostile one costs an
error and no memory.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pfi.errors import BackboneError

FIX = "get the file anew, or use another backbone"
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
#: ggml's tensor types by number: name, values a block, bytes a block.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
}
# Names of ``general.file_type``, as people say them.
_FILE_TYPES = {
    **{0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k"},
    **{11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s"},
    **{17: "q5_k_m", 18: "q6_k", 25: "iq4_nl", 30: "iq4_xs", 32: "bf16"},
}
# Values of metadata by their type's number; 8 is a string, 9 an array.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_ALIGNMENTS = [1 << power for power in range(3, 17)]
_ALIGNMENTS = [1 << power for power in range(3, 17)]
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LONGEST_NAME, _LONGEST_STRING = 1 << 16, 1 << 24
_LARGEST_HEAD = 1 << 30  # bytes
# The fewest bytes that one entry takes: a key of one letter and a byte; a tensor of one dimension.
_LEAST_FIELD, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        name: GGUF's.
        shape: as PyTorch has it, rows first.
        kind: number of its type, see ``TENSOR_TYPES``.
        offset: of its first byte in the file.
        size: in bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """What stands in a GGUF file before its weights.

    Attributes:
        path: of the file.
        fields: metadata by key; arrays are lists.
        tensors: by name.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """The family's name in llama.cpp."""
        return self.text("general.architecture")

    @property
    def bits(self) -> str:
        """What the weights are held as, in llama.cpp's words; by their types if it is not said."""
        stated = _FILE_TYPES.get(self.fields.get("general.file_type", -1))
        if stated is not None:
            return stated
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = TENSOR_TYPES[tensor.kind][0].lower()
            sizes[name] = sizes.get(name, 0) + tensor.size
        return max(sizes, key=lambda name: sizes[name])

    def of_model(self, key: str, default: Any = None) -> Any:
        """A field of the architecture, such as ``block_count``."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int | None = None, *, most: int = 1 << 31) -> int:
        """A positive number of the architecture.

        Raises:
            BackboneError: it is missing, no whole number, or out of range.
        """
        value = self.of_model(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            shown = "is missing" if value is None else f"is {str(value)[:40]}"
            self.refuse(f"{self.architecture}.{key} {shown}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number of the architecture, such as ``rope.freq_base``.

        Raises:
            BackboneError: it is missing or out of range.
        """
        value = self.of_model(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            self.refuse(f"{self.architecture}.{key} is missing or no positive number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the metadata.

        Raises:
            BackboneError: it is missing or no string.
        """
        value = self.fields.get(key, default)
        if not isinstance(value, str) or not value:
            self.refuse(f"{key} is missing" if value is None else f"{key} is no text")
        return value

    def refuse(self, what: str, fix: str = FIX) -> NoReturn:
        """Raise the ``BackboneError`` that says what is wrong with the file."""
        refuse(self.path, what, fix)


def refuse(path: Path, what: str, fix: str = FIX) -> NoReturn:
    """Raise the ``BackboneError`` that says what is wrong with a GGUF file."""
    raise BackboneError(f"this GGUF file cannot be used: {what}", where=str(path), fix=fix)


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that is meant: the path itself, or the only one in a folder of no other model.

    Raises:
        BackboneError: there is no such file, or the folder holds several.
    """
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not os.path.lexists(path):
            raise BackboneError("there is no such GGUF file", where=str(path), fix=FIX)
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        what = f"the folder holds {len(files)} GGUF files"
        raise BackboneError(what, where=str(path), fix=f"name one, such as {files[0].name}")
    return files[0] if files else None


def is_gguf(source: str) -> bool:
    """Whether what a backbone is read from is a GGUF file; see ``find_gguf``."""
    return source.lower().endswith(".gguf") and not Path(source).is_dir()


def open_regular(path: Path) -> BinaryIO:
    """A file for reading, if it is one: no pipe, device or folder is waited for.

    Raises:
        BackboneError: it is none, or cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        what = f"the GGUF file cannot be opened: {error.strerror}"
        raise BackboneError(what, where=str(path), fix="give a model's file") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        refuse(path, "it is no regular file", "give a model's file")
    return os.fdopen(number, "rb")


def read_header(path: Path) -> Header:
    """Read and check a GGUF file's head; the weights are not read.

    Raises:
        BackboneError: it is no whole GGUF file of a version and types that are known, or one of
            several parts.
    """
    with open_regular(path) as file:
        state = os.fstat(file.fileno())
        return _read(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(1)  # what loads a backbone reads it several times
def _read(path: Path, *state: int) -> Header:
    with open_regular(path) as file:
        return _Reader(path, file).header()


class _Reader:
    """Reads a head from its beginning to its end; nothing is read twice."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self._data = bytearray()
        self._at = 0  # of the next byte, in the file and in _data alike

    def header(self) -> Header:
        tensors, fields = self._counts()
        header = Header(self.path, self._fields(fields), {})
        if re.search(r"-\d{5}-of-\d{5}$", self.path.stem) or header.fields.get("split.count", 0):
            refuse(
                self.path,
                "it is one of several parts",
                "merge them with llama.cpp's `llama-gguf-split --merge`",
            )
        alignment = header.fields.get("general.alignment", 32)
        if alignment not in _ALIGNMENTS:
            refuse(self.path, f"general.alignment is {str(alignment)[:40]}")
        listed = [self._tensor(at) for at in range(tensors)]
        begin = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in listed:
            if name in header.tensors:
                refuse(self.path, f"tensor {name} is there twice")
            header.tensors[name] = self._placed(name, shape, kind, offset, begin, alignment)
        end = begin
        for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                refuse(self.path, f"tensor {tensor.name} overlaps another")
            end = tensor.offset + tensor.size
        return header

    def _counts(self) -> tuple[int, int]:
        """How many tensors and fields follow."""
        head = self._take(min(8, self.size))
        if head[:4] != _MAGIC:
            refuse(self.path, "it does not begin as a GGUF file does")
        if len(head) < 8:
            self._short()
        version = int.from_bytes(head[4:], "little")
        if version not in _VERSIONS:
            if int.from_bytes(head[4:], "big") in _VERSIONS:
                refuse(self.path, "it is written for big-endian machines", "get the usual one")
            fix = "convert it anew with a llama.cpp of today" if version == 1 else FIX
            refuse(self.path, f"its version is {version}, not 2 or 3", fix)
        tensors, fields = struct.unpack("<QQ", self._take(16))
        left = self.size - self._at
        if fields > left // _LEAST_FIELD or tensors > left // _LEAST_TENSOR:
            refuse(self.path, f"{tensors} tensors and {fields} fields do not fit into it")
        return tensors, fields

    def _fields(self, count: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for at in range(count):
            key = self._string(f"name of field {at}", _LONGEST_NAME)
            if key in fields:
                refuse(self.path, f"field {key[:80]} is there twice")
            fields[key] = self._value(key, self._number("I"))
        return fields

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string(key, _LONGEST_STRING)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            refuse(self.path, f"field {key[:80]} has the unknown type {kind}")
        value = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            if count > (self.size - self._at) // 8:
                self._short()
            return [self._string(key, _LONGEST_STRING) for _ in range(count)]
        if kind not in _SCALARS:
            refuse(self.path, f"field {key[:80]} is an array of the unknown type {kind}")
        form = _SCALARS[kind]
        width = struct.calcsize(f"<{form}")
        if count > (self.size - self._at) // width:
            self._short()
        values = list(struct.unpack(f"<{count}{form}", self._take(count * width)))
        return [bool(value) for value in values] if kind == _BOOL else values

    def _tensor(self, at: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"name of tensor {at}", _LONGEST_NAME)
        dimensions = self._number("I")
        if not 1 <= dimensions <= 4:
            refuse(self.path, f"tensor {name[:80]} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _placed(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int, alignment: int
    ) -> Tensor:
        """A tensor in the file, if it lies there whole."""
        shown = f"tensor {name[:80]}"
        if kind not in TENSOR_TYPES:
            refuse(self.path, f"{shown} has the type {kind}, which is not known")
        label, block, width = TENSOR_TYPES[kind]
        if 0 in shape or shape[-1] % block:
            refuse(self.path, f"{shown} of shape {shape} cannot be {label}")
        size = math.prod(shape) // block * width
        if offset % alignment:
            refuse(self.path, f"{shown} is not aligned")
        if begin + offset + size > self.size:
            refuse(self.path, f"{shown} ends beyond the end of the file")
        return Tensor(name, shape, kind, begin + offset, size)

    def _string(self, what: str, most: int) -> str:
        length = self._number("Q")
        if length > most:
            refuse(self.path, f"{what[:80]} is {length} bytes long")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            refuse(self.path, f"{what[:80]} is no UTF-8")

    def _number(self, form: str) -> Any:
        width = struct.calcsize(f"<{form}")
        end = self._at + width
        if end > len(self._data):
            self._fill(end)
        (value,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at = end
        return value

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            self._fill(end)
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken

    def _fill(self, end: int) -> None:
        """Have the file's first ``end`` bytes in memory."""
        if end > self.size:
            self._short()
        if end > _LARGEST_HEAD:
            refuse(self.path, f"its head is larger than {_LARGEST_HEAD >> 20} MiB")
        self._data += self._file.read(max(end - len(self._data), _CHUNK))
        if end > len(self._data):
            self._short()

    def _short(self) -> NoReturn:
        refuse(self.path, "it ends too early")
