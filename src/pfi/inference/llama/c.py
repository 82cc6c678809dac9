"""llama.cpp's C interface (``llama.h``), as the ``xllamacpp`` wheel carries it.

The wheel's own Python classes load adapters at start only and answer through an HTTP server; its
library exports all of ``llama.h``, which does neither.
"""

from __future__ import annotations

import ctypes as c
import os
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pfi._util.threads import ThreadChooser, physical_cores, wait_passively
from pfi.errors import BackboneError

INSTALL = "install it with `pip install 'pfi[llama]'`"
#: Of ggml's tensor types, those that we name.
F32, F16 = 0, 1
# Larger than any of llama.h's structures: they are passed on by value, and what is behind their
# end is not looked at.
_WORDS = 256
# What a fresh llama_context_params begins with, by 32-bit word: fields of other versions are
# elsewhere, and writing to them would be writing to something else.
_CONTEXT = (512, 2048, 512, 1, 0, 0, 1, 4, 4, 0, -1, -1, -1, -1, 0, 0)
_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ, _OUTPUTS, _OUTPUTS_PER_SEQ = 0, 1, 2, 3, 5, 6
_THREADS, _THREADS_BATCH, _FLASH, _TYPE_K, _TYPE_V = 7, 8, 13, 26, 27
# Of ggml_threadpool_params, by 32-bit word behind 512 bytes of a processor mask.
_POOL_THREADS, _POOL_POLL, _POLL = 128, 130, 50
_LONG = 16  # tokens of a pass that is bound by products of matrices, not by reading weights
_VIEWS = 1024
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class Words(c.Structure):
    """A structure of llama.h as 32-bit words, with room to spare."""

    _fields_ = [("words", c.c_int32 * _WORDS)]


class Batch(c.Structure):
    """``llama_batch``, with room to spare."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
        ("spare", c.c_int32 * _WORDS),
    ]


_P, _I, _B, _F = c.c_void_p, c.c_int32, c.c_bool, c.c_float
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_P, _P]),
    "llama_model_default_params": (Words, []),
    "llama_context_default_params": (Words, []),
    "llama_model_load_from_file": (_P, [c.c_char_p, Words]),
    "llama_model_free": (None, [_P]),
    "llama_model_size": (c.c_uint64, [_P]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_model_n_ctx_train": (_I, [_P]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_tokenize": (_I, [_P, c.c_char_p, _I, c.POINTER(_I), _I, _B, _B]),
    "llama_detokenize": (_I, [_P, c.POINTER(_I), _I, c.c_char_p, _I, _B, _B]),
    "llama_init_from_model": (_P, [_P, Words]),
    "llama_free": (None, [_P]),
    "llama_n_ctx": (c.c_uint32, [_P]),
    "llama_n_ctx_seq": (c.c_uint32, [_P]),
    "llama_n_batch": (c.c_uint32, [_P]),
    "llama_n_seq_max": (c.c_uint32, [_P]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_seq_rm": (_B, [_P, _I, _I, _I]),
    "llama_memory_seq_cp": (None, [_P, _I, _I, _I, _I]),
    "llama_memory_seq_pos_max": (_I, [_P, _I]),
    "llama_batch_init": (Batch, [_I, _I, _I]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (_I, [_P, Batch]),
    "llama_get_logits_ith": (_P, [_P, _I]),
    "llama_adapter_lora_init": (_P, [_P, c.c_char_p]),
    "llama_adapter_lora_free": (None, [_P]),
    "llama_set_adapters_lora": (_I, [_P, c.POINTER(_P), c.c_size_t, c.POINTER(_F)]),
    "llama_set_abort_callback": (None, [_P, _P, _P]),
    "llama_set_n_threads": (None, [_P, _I, _I]),
    "llama_attach_threadpool": (None, [_P, _P, _P]),
    "ggml_threadpool_params_default": (Words, [_I]),
    "ggml_threadpool_new": (_P, [c.POINTER(Words)]),
    "ggml_threadpool_free": (None, [_P]),
    "ggml_quantize_chunk": (c.c_size_t, [_I, _P, _P, c.c_int64, c.c_int64, c.c_int64, _P]),
}

_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_said = threading.local()


@_LOG
def _log(level: int, text: bytes, _: object) -> None:
    """Keeps what llama.cpp says is wrong, for the error that we raise; nothing is printed."""
    if level == _ERROR:
        lines = _said.__dict__.setdefault("lines", [])
        lines.append(text.decode("utf-8", "replace").strip())
        del lines[:-3]


def last_error() -> str:
    """What llama.cpp last said is wrong in this thread, and forget it."""
    lines = _said.__dict__.pop("lines", [])
    return lines[-1] if lines else "llama.cpp does not say why"


def available() -> bool:
    """Whether the engine is installed."""
    from importlib.util import find_spec

    return find_spec("xllamacpp") is not None


@cache
def library() -> Any:
    """The library with its functions' types set.

    Raises:
        BackboneError: it is not installed, or is a version with another interface.
    """
    wait_passively()  # has no effect where OpenMP is loaded already, as with PyTorch
    try:
        import xllamacpp.xllamacpp as wheel  # type: ignore[import-untyped]
    except ImportError as error:
        raise BackboneError("the llama.cpp engine is not installed", fix=INSTALL) from error
    other = "this version of xllamacpp has another C interface"
    try:
        lib = c.CDLL(wheel.__file__)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (AttributeError, OSError) as error:
        raise BackboneError(f"{other}: {error}", fix=INSTALL) from error
    fresh = lib.llama_context_default_params().words
    types = [fresh[_TYPE_K], fresh[_TYPE_V]]
    if tuple(fresh[: len(_CONTEXT)]) != _CONTEXT or types != [F16, F16]:
        raise BackboneError(other, fix=INSTALL)
    lib.llama_log_set(c.cast(_log, c.c_void_p), None)
    lib.llama_backend_init()
    return lib


def quantised(values: Any, kind: int) -> Any:
    """Rows of float32 ``(rows, columns)`` in one of ggml's types, as ``(rows, bytes a row)``.

    Raises:
        BackboneError: the engine is not installed.
    """
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values = np.ascontiguousarray(values, dtype=np.float32)
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if columns % block:
        raise ValueError(f"rows of {columns} values are no blocks of {block}")
    found = np.empty((rows, columns // block * size), dtype=np.uint8)
    written = library().ggml_quantize_chunk(
        kind, values.ctypes.data, found.ctypes.data, 0, rows, columns, None
    )
    assert written == found.nbytes
    return found


class Model:
    """A GGUF file's weights, mapped into memory.

    Raises:
        BackboneError: the file cannot be read, or the engine is not installed.
    """

    def __init__(self, path: Path) -> None:
        lib = library()
        self.path = path
        self.handle = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self.handle:
            raise BackboneError(f"the model cannot be loaded: {last_error()}", where=str(path))
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.tokens: int = lib.llama_vocab_n_tokens(self.vocab)
        self.bytes: int = lib.llama_model_size(self.handle)

    def tokenize(self, text: str) -> list[int]:
        """A text's tokens by the file's own tokenizer; control tokens in it are read as such."""
        data = text.encode()
        room = len(data) + 8
        found = (c.c_int32 * room)()
        count = library().llama_tokenize(self.vocab, data, len(data), found, room, False, True)
        return list(found[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of tokens by the file's own tokenizer, control tokens left out."""
        room = 64 * (len(ids) + 1)
        found = c.create_string_buffer(room)
        given = (c.c_int32 * len(ids))(*ids)
        count = library().llama_detokenize(self.vocab, given, len(ids), found, room, False, False)
        return found.raw[:count].decode("utf-8", "replace")

    def adapter(self, path: str) -> int:
        """Load an adapter; its handle, freed with the model at the latest.

        Raises:
            BackboneError: it does not fit the model.
        """
        handle = library().llama_adapter_lora_init(self.handle, path.encode())
        if not handle:
            raise BackboneError(f"the adapter cannot be loaded: {last_error()}")
        return int(handle)

    def free_adapter(self, handle: int) -> None:
        """Let go of an adapter that no context uses."""
        library().llama_adapter_lora_free(handle)

    def close(self) -> None:
        """Free the weights; contexts over them must be closed before."""
        if self.handle:
            library().llama_model_free(self.handle)
        self.handle = None


class Context:
    """Sequences of tokens with their keys and values over a model.  One thread uses it at a time.

    Args:
        model: whose.
        sequences: how many.
        length: most tokens of each.
        threads: that compute; ``(decoding, reading)``: chosen before each pass, for a few tokens
            and for the many of a prompt.
        batch: most tokens of one ``decode``; more are no faster on a CPU, and hold others up.
        exact: attention in 32 bits instead of 16: twice the memory, and results as PyTorch's.

    Raises:
        BackboneError: there is not enough memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        sequences: int,
        length: int,
        threads: int | tuple[ThreadChooser, ThreadChooser],
        batch: int = 128,
        exact: bool = False,
    ) -> None:
        lib = library()
        self.model, self.sequences, self.length = model, sequences, length
        settings = lib.llama_context_default_params()
        words = settings.words
        words[_N_CTX], words[_N_SEQ] = length * sequences, sequences
        words[_N_BATCH] = words[_N_UBATCH] = batch
        words[_OUTPUTS] = words[_OUTPUTS_PER_SEQ] = batch
        self._choosers = None if isinstance(threads, int) else threads
        self.threads = threads if isinstance(threads, int) else threads[0].next()
        words[_THREADS] = words[_THREADS_BATCH] = self.threads
        if exact:
            words[_TYPE_K] = words[_TYPE_V] = F32
            words[_FLASH] = 0  # its sums are of 16 bits
        self.handle = lib.llama_init_from_model(model.handle, settings)
        if not self.handle:
            raise BackboneError(f"llama.cpp cannot start: {last_error()}", where=str(model.path))
        assert lib.llama_n_seq_max(self.handle) == sequences
        assert lib.llama_n_ctx_seq(self.handle) >= length
        self.batch = min(batch, lib.llama_n_batch(self.handle))
        self._memory = lib.llama_get_memory(self.handle)
        self._batch = lib.llama_batch_init(self.batch, 0, 1)
        self._adapter: int | None = None
        self._lib, self._views = lib, dict[int, Any]()
        most = threads if isinstance(threads, int) else physical_cores()
        self._pool = _sleeping_pool(lib, most)
        if self._pool:
            lib.llama_attach_threadpool(self.handle, self._pool, None)

    def use(self, adapter: int | None) -> None:
        """The adapter of what is decoded from now on."""
        if adapter == self._adapter:
            return
        handles = (c.c_void_p * 1)(adapter)
        scales = (c.c_float * 1)(1.0)
        count = 0 if adapter is None else 1
        if library().llama_set_adapters_lora(self.handle, handles, count, scales):
            raise BackboneError(f"the adapter cannot be used: {last_error()}")
        self._adapter = adapter

    def cut(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from this place on."""
        library().llama_memory_seq_rm(self._memory, sequence, length, -1)

    def copy(self, source: int, target: int) -> None:
        """Give a sequence all the tokens of another, in the place of its own."""
        self.cut(target, 0)
        library().llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> list[Any]:
        """Add tokens to their sequences.

        Args:
            entries: token, place, sequence, and whether its logits are wanted; ``batch`` at most.

        Returns:
            Logits ``(vocabulary,)`` float32 for the wanted ones, in their order. They are views
            that the next call overwrites.

        Raises:
            BackboneError: llama.cpp fails.
        """
        lib, batch = self._lib, self._batch
        wanted = []
        for at, (token, place, sequence, logits) in enumerate(entries):
            batch.token[at], batch.pos[at], batch.logits[at] = token, place, logits
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            if logits:
                wanted.append(at)
        batch.n_tokens = len(entries)
        chooser = None
        if self._choosers is not None:
            chooser = self._choosers[len(entries) > _LONG]
            self._use_threads(chooser.next())
        begin = time.perf_counter()
        code = lib.llama_decode(self.handle, batch)
        if chooser is not None and entries:
            chooser.note(self.threads, len(entries), time.perf_counter() - begin)
        if code:
            raise BackboneError(f"llama.cpp cannot go on (code {code}): {last_error()}")
        return [self._view(lib.llama_get_logits_ith(self.handle, at)) for at in wanted]

    def _use_threads(self, count: int) -> None:
        if count != self.threads:
            self._lib.llama_set_n_threads(self.handle, count, count)
            self.threads = count

    def _view(self, address: int) -> Any:
        """The logits at an address, which are the same few ones again and again."""
        import numpy as np

        if address not in self._views:
            if len(self._views) > _VIEWS:
                self._views.clear()
            found = (c.c_float * self.model.tokens).from_address(address)
            self._views[address] = np.ctypeslib.as_array(found)
        return self._views[address]

    def close(self) -> None:
        """Free the keys and values."""
        if self.handle:
            library().llama_batch_free(self._batch)
            library().llama_free(self.handle)
            if self._pool:
                library().ggml_threadpool_free(self._pool)
        self.handle = None


def _sleeping_pool(lib: Any, threads: int) -> int | None:
    """Threads of ggml's own that sleep between passes instead of polling, for ``threads`` or fewer.

    Where llama.cpp is built with OpenMP, its threads compute, and sleep as ``wait_passively`` says.
    None where the structure is not laid out as we know it.
    """
    settings = lib.ggml_threadpool_params_default(threads)
    if (settings.words[_POOL_THREADS], settings.words[_POOL_POLL]) != (threads, _POLL):
        return None
    settings.words[_POOL_POLL] = 0
    return lib.ggml_threadpool_new(c.byref(settings)) or None
