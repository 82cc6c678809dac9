"""A device's home: the folder `~/.pfi/<profile>/` that holds all that one user's model is.

`PFI_HOME` stands in for `~/.pfi`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from pfi.device.adapter_files import Seals
from pfi.device.adapters import AdapterStore
from pfi.device.encrypting import encrypt_home, is_encrypted
from pfi.device.keys import KEYS, LOCK, Keys, make_keys, unlock
from pfi.device.unlock import Lock
from pfi.device.vault import Vault
from pfi.errors import ConfigError, StorageError
from pfi.files import locked, write_atomic
from pfi.trust.ledger import Ledger

if TYPE_CHECKING:
    from pfi.augment.store import TeacherStore
    from pfi.memory import MemoryStore
    from pfi.memory.config import SearchConfig
    from pfi.memory.embedders import Embedder

DEFAULT_PROFILE = "default"
CONFIG = "config.yaml"
TOKENS = "tokens"  # setting in the vault: what opens the profile's models to programs
NAMES = "names"  # setting in the vault: people whose names no teacher elsewhere shall read
ERASING = "erasing-"  # how the names of the files begin that say what is being erased
Settings = TypeVar("Settings", bound=BaseModel)
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class HomeConfig(BaseModel):
    """What `config.yaml` holds, which is not encrypted: settings that tell nothing of a person.

    What does is in the vault, see `Vault.setting`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    backbone: str = Field(default="embedded", min_length=1, description="name, folder or hub id")
    engine: Literal["auto", "torch", "llama.cpp"] = Field(
        default="auto", description="what answers; `pfi plan --apply` chooses"
    )
    bits: Literal["auto", "f32", "bf16", "f16", "q8_0", "q4_k_m"] = Field(
        default="auto", description="how the engine holds the backbone's weights"
    )
    context: int | None = Field(
        default=None, ge=64, description="longest prompt and answer in tokens, not the backbone's"
    )
    task: str | None = Field(default=None, description="the task of questions that name none")
    records: int = Field(default=2, ge=0, le=32, description="retrieved records in a prompt")
    record_tokens: int = Field(
        default=512, ge=8, description="tokens for all retrieved records together"
    )
    summary_tokens: int = Field(
        default=0,
        ge=0,
        le=256,
        description="tokens of a summary of one's records before each prompt; 0: none",
    )
    search: dict[str, Any] = Field(
        default={}, description="settings of the search for them, where not as by default"
    )
    embedder: str = Field(
        default="auto",
        min_length=1,
        description="sentence model for search by meaning: minilm, a folder, none, or auto: "
        "minilm where it is installed",
    )
    train: dict[str, Any] = Field(
        default={}, description="training settings other than the defaults"
    )
    mix: dict[str, Any] = Field(
        default={}, description="how synthetic records are trained on, where not as by default"
    )
    augment: dict[str, Any] = Field(
        default={}, description="augmentation settings other than the defaults"
    )
    gate: dict[str, Any] = Field(default={}, description="gate settings other than the defaults")
    refresh: dict[str, Any] = Field(
        default={}, description="refresh settings other than the defaults"
    )
    refresh_after: int | None = Field(
        default=None, ge=1, description="new records after which `pfi refresh` runs by itself"
    )
    answers: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="last questions and answers that are kept for `pfi feedback --last`; 0: none",
    )


class _Named(RootModel[list[str]]):
    """What `config.yaml` may hold beside its settings: names, which go into the vault."""


@dataclass(frozen=True)
class Home:
    """An existing home; see `create` and `open`.

    Attributes:
        profile: the name of the device on this machine.
        path: its folder.
        config: its settings; `save_config` writes them.
    """

    profile: str
    path: Path
    config: HomeConfig

    @classmethod
    def create(
        cls,
        profile: str = DEFAULT_PROFILE,
        *,
        root: Path | None = None,
        config: HomeConfig | None = None,
        lock: Lock = "auto",
        passphrase: str | None = None,
    ) -> Home:
        """Make a new home, readable by its owner only; what it stores is encrypted.

        Args:
            profile: its name.
            root: the folder of all homes; None for the usual one.
            config: its settings.
            lock: what keeps the secret of its keys, see `pfi.device.unlock`.
            passphrase: for kind `passphrase`; None asks for it.

        Raises:
            ConfigError: the profile's name is not allowed, or the passphrase.
            StorageError: the home exists, its folder cannot be written, or there is no keyring.
        """
        path = home_path(profile, root)
        if (path / CONFIG).exists():
            raise StorageError(
                f"profile {profile!r} exists",
                where=str(path),
                fix="use it as it is, or choose another name with --profile",
            )
        home = cls(profile, path, config or HomeConfig())
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700)
            home.memory_folder.mkdir(exist_ok=True)
            for store in (home.shared_adapters, home.personal_adapters):
                store.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"the home cannot be made: {error.strerror}"
            raise StorageError(what, where=str(path), fix="set PFI_HOME to a folder you own") from (
                error
            )
        if home.vault_file.exists():  # what is left of a home still opens
            encrypt_home(home, lock, passphrase)
        else:
            with locked(path / LOCK):
                if not (path / KEYS).exists():
                    home.__dict__["keys"] = make_keys(path, lock, passphrase)
        Vault(home.vault_file, key=home.keys.database("vault")).close()
        home.save_config()  # last: a home that was not finished counts as missing
        return home

    @classmethod
    def open(cls, profile: str = DEFAULT_PROFILE, *, root: Path | None = None) -> Home:
        """The home of a profile made before; one that an older pfi made is encrypted first.

        Raises:
            ConfigError: the name is not allowed, or `config.yaml` makes no sense.
            StorageError: there is no such home.
        """
        path = home_path(profile, root)
        file = path / CONFIG
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            found = values.pop(NAMES, None) if isinstance(values, dict) else None
            named = _Named.model_validate(found or [])
            home = cls(profile, path, HomeConfig.model_validate(values))
        except FileNotFoundError as error:
            command = "pfi init" + ("" if profile == DEFAULT_PROFILE else f" --profile {profile}")
            what = f"there is no profile {profile!r}"
            raise StorageError(what, where=str(path), fix=f"run `{command}` first") from error
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot be read: {error}", where=str(file)) from error
        except (yaml.YAMLError, ValidationError) as error:
            reason = one_line(error)
            raise ConfigError(reason, where=str(file), fix="correct or remove the line") from error
        if not is_encrypted(home):
            encrypt_home(home)
        if named.root:  # an older pfi's, or written there by hand
            with home.open_vault_as_it_is() as vault, vault.change_setting(NAMES) as setting:
                setting.value = list(dict.fromkeys([*(setting.value or []), *named.root]))
            home.save_config()
        return home

    def save_config(self) -> None:
        """Write `config.yaml`."""
        values = self.config.model_dump()
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomic(self.path / CONFIG, text)

    def open_vault(self) -> Vault:
        """The device's records; close it after use (it is a context manager).

        An erasure that was interrupted is finished first.
        """
        if any(self.path.glob(f"{ERASING}*.json")):
            from pfi.device.erasure import finish_erasures

            finish_erasures(self, strict=False)
        return self.open_vault_as_it_is()

    def open_vault_as_it_is(self) -> Vault:
        """The device's records, even if an erasure was interrupted.

        Raises:
            StorageError: the vault is missing, or see `Vault`.
        """
        if not self.vault_file.exists() or not self.vault_file.stat().st_size:
            # An empty one in its place would hide the loss.
            raise StorageError(
                "the vault is missing or empty",
                where=str(self.vault_file),
                fix="restore it from a backup; `pfi restore` reads what `pfi export` wrote",
            )
        return Vault(self.vault_file, key=self.keys.database("vault"))

    def open_memory_store(self, embedder: Embedder | None = None) -> MemoryStore:
        """The memory's file as it is; `pfi.device.memory.open_memory` brings it up to date."""
        from pfi.memory import MemoryStore

        return MemoryStore(self.memory_file, embedder, key=self.keys.database("memory"))

    def open_teacher_store(self) -> TeacherStore:
        """Teachers' answers and what they cost; made when missing."""
        from pfi.augment.store import TeacherStore

        return TeacherStore(self.teacher_file, key=self.keys.database("teacher"))

    def open_ledger(self) -> Ledger:
        """The list of everything that left the device, with the texts."""
        return Ledger(self.ledger_file, key=self.keys.files, context=f"{self.keys.profile}|ledger")

    @cached_property
    def keys(self) -> Keys:
        """The keys of all that the home holds; unlocked at their first use.

        Raises:
            ConfigError, StorageError: see `pfi.device.keys.unlock`.
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


def search_config(home: Home) -> SearchConfig:
    """How a device's memory is searched: the profile's settings, else the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pfi.memory.config import SearchConfig

    return checked(SearchConfig, home.config.search, "search settings")


def nested_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` texts as settings within settings; values are read as YAML.

    Raises:
        ConfigError: a text has no `=`, its value is no YAML, or a key is a section and a value.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        *sections, last = key.strip().replace("-", "_").split(".")
        if not equals or not last:
            raise ConfigError(f"{pair!r} is not key=value", fix="write for example --set records=8")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{section} is given as a value and as a section", where=pair)
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair} is not well-formed: {one_line(error)}") from error
    return found


def checked(
    model: type[Settings], values: Mapping[str, Any], where: str, fix: str | None = None
) -> Settings:
    """Settings as ``model``, which has the defaults.

    Raises:
        ConfigError: one of them makes no sense; ``where`` says whose they are.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error), where=where, fix=fix) from error


def one_line(error: yaml.YAMLError | ValidationError) -> str:
    """What a YAML or pydantic error says, without its line breaks and links."""
    if isinstance(error, ValidationError):
        parts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return "; ".join(part.removeprefix(": ") for part in parts)
    return " ".join(str(error).split())
