"""Adapters inside llama.cpp: loaded while it runs, the least recently used one goes.

llama.cpp reads an adapter from a file. It gets one that lies in memory only, since a personal
adapter is nobody else's business.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pfi.inference.engine import AdapterRef
from pfi.inference.llama.c import Context
from pfi.inference.llama.gguf import fill_adapter, finish
from pfi.models.adapters import Adapter
from pfi.models.gguf.families import family_of


class LlamaAdapters:
    """The adapters that a model holds, by key.  One thread uses it; they are read in another.

    Args:
        context: over the model.
        config: the backbone's transformers configuration.
        most: held at once; at least as many as are in use at once.
        wake: called from the reading thread when one has been read.

    Attributes:
        loads: adapters loaded so far.
    """

    def __init__(self, context: Context, config: Any, most: int, wake: Callable[[], None]) -> None:
        self.context, self.config, self.most, self.wake = context, config, most, wake
        self.loads = 0
        self._held: OrderedDict[str, int] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._coming: dict[str, Future[Adapter]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pfi-adapters")

    def __len__(self) -> int:
        return len(self._held)

    def ready(self, ref: AdapterRef | None) -> bool:
        """Whether ``take`` has what it needs; otherwise reading begins or goes on."""
        if ref is None or ref.key in self._held:
            return True
        if ref.key not in self._coming:
            self._coming[ref.key] = coming = self._reader.submit(ref.load)
            coming.add_done_callback(lambda _: self.wake())
        return self._coming[ref.key].done()

    def take(self, ref: AdapterRef | None) -> int | None:
        """llama.cpp's handle of a ready adapter, in use until ``give``; None for none.

        Raises:
            Exception: whatever reading raised.
            PfiError: the adapter does not fit the backbone.
        """
        if ref is None:
            return None
        if ref.key not in self._held:
            adapter = self._coming.pop(ref.key).result()
            while len(self._held) >= self.most:
                self._drop(next(key for key in self._held if not self._users[key]))
            with in_memory(adapter, self.config) as path:
                self._held[ref.key] = self.context.model.adapter(path)
            self.loads += 1
        self._held.move_to_end(ref.key)
        self._users[ref.key] += 1
        return self._held[ref.key]

    def give(self, ref: AdapterRef | None) -> None:
        """An adapter is used once less."""
        if ref is not None:
            self._users[ref.key] -= 1

    @property
    def reading(self) -> bool:
        """Whether there are adapters that were asked for and not taken yet."""
        return bool(self._coming)

    def forget(self, wanted: set[str]) -> None:
        """Let go of adapters that were read but are no longer wanted by anyone."""
        for key in [key for key, read in self._coming.items() if read.done()]:
            if key not in wanted:
                del self._coming[key]

    def close(self) -> None:
        """Read no more."""
        self._reader.shutdown(cancel_futures=True)

    def _drop(self, key: str) -> None:
        self.context.use(None)
        self.context.model.free_adapter(self._held.pop(key))
        del self._users[key]


@contextmanager
def in_memory(adapter: Adapter, config: Any) -> Iterator[str]:
    """The name of a GGUF file of an adapter that is on no disk while the block runs.

    Where the system has no such files, it lies in a folder of the user's alone and is removed at
    the end of the block.

    Raises:
        BackboneError: the adapter has no place in GGUF.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="pfi-") as folder:
            path = Path(folder) / "adapter.gguf"
            _write(adapter, config, path)
            yield str(path)
        return
    file = os.memfd_create("adapter")
    try:
        path = Path(f"/proc/self/fd/{file}")
        _write(adapter, config, path)
        yield str(path)
    finally:
        os.close(file)


def _write(adapter: Adapter, config: Any, path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, family_of(config, "the backbone").architecture)
    try:
        fill_adapter(writer, adapter.factors(), config)
        finish(writer)
    except BaseException:
        writer.close()
        raise
