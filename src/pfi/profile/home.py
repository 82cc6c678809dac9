"""A device's home: the folder `~/.pfi/<profile>/` that holds all that one user's model is.

`PFI_HOME` stands in for `~/.pfi`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from pfi._util.files import write_atomic
from pfi.augment.cache import TeacherStore
from pfi.errors import ConfigError, StorageError
from pfi.memory.embedders import Embedder
from pfi.memory.store import MemoryStore
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.adapters.files import Seals
from pfi.profile.adapters.store import AdapterStore
from pfi.profile.config import CONFIG, HomeConfig
from pfi.profile.keys.keys import Keys, unlock
from pfi.profile.ledger_head import VaultAnchor
from pfi.profile.vault.vault import Session, SessionVault, Vault

TOKENS = "tokens"  # setting in the vault: what opens the profile's models to programs
NAMES = "names"  # setting in the vault: people whose names no teacher elsewhere shall read
ERASING = "erasing-"  # how the names of the files begin that say what is being erased
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _nothing(home: Home) -> None:
    """What there is to recover in a home that was made by hand."""


@dataclass(frozen=True)
class Home:
    """An existing home; see `pfi.profile.open`.

    Attributes:
        profile: the name of the device on this machine.
        path: its folder.
        config: its settings; `save_config` writes them.
        recover: finishes what a kill interrupted, before the vault is opened; `pfi.profile.open`
            gives it.
    """

    profile: str
    path: Path
    config: HomeConfig
    recover: Callable[[Home], None] = field(default=_nothing, repr=False, compare=False)
    _session: Session = field(default_factory=Session, init=False, repr=False, compare=False)

    def save_config(self) -> None:
        """Write `config.yaml`."""
        values = self.config.model_dump()
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomic(self.path / CONFIG, text)

    @contextmanager
    def vault_session(self) -> Iterator[None]:
        """Within it this thread opens the vault once, when it is first needed.

        For one question; others use the vault meanwhile, and it is closed at the end.  Sessions
        may be nested.
        """
        session = self._session
        session.depth += 1
        try:
            yield
        finally:
            session.depth -= 1
            if not session.depth and session.vault is not None:
                vault, session.vault = session.vault, None
                vault.end()

    def open_vault(self) -> Vault:
        """The device's records; close it after use (it is a context manager).

        An erasure that was interrupted is finished first.
        """
        self.recover(self)
        return self.open_vault_as_it_is()

    def open_vault_as_it_is(self) -> Vault:
        """The device's records, even if an erasure was interrupted.

        Raises:
            StorageError: the vault is missing, or see `Vault`.
        """
        session = self._session
        if session.vault is not None:
            return session.vault
        if not self.vault_file.exists() or not self.vault_file.stat().st_size:
            # An empty one in its place would hide the loss.
            raise StorageError(
                "the vault is missing or empty",
                where=str(self.vault_file),
                fix="restore it from a backup; `pfi restore` reads what `pfi export` wrote",
            )
        key = self.keys.database("vault")
        if session.depth:
            session.vault = SessionVault(self.vault_file, key=key)
            return session.vault
        return Vault(self.vault_file, key=key)

    def open_memory_store(self, embedder: Embedder | None = None) -> MemoryStore:
        """The memory's file as it is; `profile.answer.memory.open_memory` brings it up to date."""
        return MemoryStore(self.memory_file, embedder, key=self.keys.database("memory"))

    def open_teacher_store(self) -> TeacherStore:
        """Teachers' answers and what they cost; made when missing."""
        return TeacherStore(self.teacher_file, key=self.keys.database("teacher"))

    def open_ledger(self) -> Ledger:
        """The list of everything that left the device, with the texts."""
        context = f"{self.keys.profile}|ledger"
        anchor = VaultAnchor(self.open_vault_as_it_is)
        return Ledger(self.ledger_file, key=self.keys.files, context=context, anchor=anchor)

    @cached_property
    def keys(self) -> Keys:
        """The keys of all that the home holds; unlocked at their first use.

        Raises:
            ConfigError, StorageError: see `pfi.profile.keys.keys.unlock`.
        """
        return unlock(self.path)

    @property
    def vault_file(self) -> Path:
        """Where the records are."""
        return self.path / "vault.db"

    @property
    def ledger_file(self) -> Path:
        """The list of everything that left the device; missing until something did."""
        return self.path / "ledger.jsonl"

    @property
    def teacher_file(self) -> Path:
        """Where teachers' answers are kept, so that none is paid twice."""
        return self.path / "teacher.db"

    @property
    def memory_folder(self) -> Path:
        """Where the memory keeps its index."""
        return self.path / "memory"

    @property
    def memory_file(self) -> Path:
        """The memory's index, built anew from the vault when missing."""
        return self.memory_folder / "memory.db"

    @property
    def models_folder(self) -> Path:
        """Where files of backbones are kept, of all profiles: they hold nothing of a user."""
        return self.path.parent / ".models"

    @property
    def gate_file(self) -> Path:
        """What the gate chose, by task; missing until it did."""
        return self.path / "gate.json"

    @cached_property
    def shared_adapters(self) -> AdapterStore:
        """The adapters learnt from many users."""
        return AdapterStore(self.path / "adapters" / "shared", Seals(self, "shared"))

    @cached_property
    def personal_adapters(self) -> AdapterStore:
        """The adapters learnt here, which never leave."""
        return AdapterStore(self.path / "adapters" / "personal", Seals(self, "personal"))

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by part of the home."""
        parts = {
            "vault": list(self.path.glob("vault.db*")),
            "teacher": list(self.path.glob("teacher.db*")),
            "ledger": list(self.path.glob("ledger.jsonl*")),
        }
        for name in ("memory", "adapters"):
            parts[name] = [f for f in (self.path / name).rglob("*") if f.is_file()]
        return {name: sum(f.stat().st_size for f in files) for name, files in parts.items()}


def home_path(profile: str, root: Path | None = None) -> Path:
    """The folder of a profile, which need not exist.

    Raises:
        ConfigError: the name is not allowed.
    """
    if not _PROFILE.fullmatch(profile):
        raise ConfigError(
            f"{profile!r} is not a profile name",
            fix="use letters, digits, _ and -, at most 64, starting with a letter or digit",
        )
    return (root or Path(os.environ.get("PFI_HOME") or "~/.pfi").expanduser()) / profile
