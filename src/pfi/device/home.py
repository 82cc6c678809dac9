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
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi.device.adapters import AdapterStore
from pfi.device.vault import Vault
from pfi.errors import ConfigError, StorageError
from pfi.files import write_atomic

if TYPE_CHECKING:
    from pfi.memory.config import SearchConfig

DEFAULT_PROFILE = "default"
CONFIG = "config.yaml"
ERASING = "erasing-"  # how the names of the files begin that say what is being erased
Settings = TypeVar("Settings", bound=BaseModel)
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class HomeConfig(BaseModel):
    """What `config.yaml` holds."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    backbone: str = Field(default="embedded", min_length=1, description="name, folder or hub id")
    task: str | None = Field(default=None, description="the task of questions that name none")
    records: int = Field(default=2, ge=0, le=32, description="retrieved records in a prompt")
    record_tokens: int = Field(
        default=512, ge=8, description="tokens for all retrieved records together"
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
    names: list[str] = Field(
        default=[], description="people whose names no teacher elsewhere shall read"
    )


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
    ) -> Home:
        """Make a new home, readable by its owner only.

        Raises:
            ConfigError: the profile's name is not allowed.
            StorageError: the home exists, or its folder cannot be written.
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
        home.open_vault().close()
        home.save_config()  # last: a home that was not finished counts as missing
        return home

    @classmethod
    def open(cls, profile: str = DEFAULT_PROFILE, *, root: Path | None = None) -> Home:
        """The home of a profile made before.

        Raises:
            ConfigError: the name is not allowed, or `config.yaml` makes no sense.
            StorageError: there is no such home.
        """
        path = home_path(profile, root)
        file = path / CONFIG
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            return cls(profile, path, HomeConfig.model_validate(values or {}))
        except FileNotFoundError as error:
            command = "pfi init" + ("" if profile == DEFAULT_PROFILE else f" --profile {profile}")
            what = f"there is no profile {profile!r}"
            raise StorageError(what, where=str(path), fix=f"run `{command}` first") from error
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot be read: {error}", where=str(file)) from error
        except (yaml.YAMLError, ValidationError) as error:
            reason = one_line(error)
            raise ConfigError(reason, where=str(file), fix="correct or remove the line") from error

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
        return Vault(self.vault_file)

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
    def gate_file(self) -> Path:
        """What the gate chose, by task; missing until it did."""
        return self.path / "gate.json"

    @cached_property
    def shared_adapters(self) -> AdapterStore:
        """The adapters learnt from many users."""
        return AdapterStore(self.path / "adapters" / "shared")

    @cached_property
    def personal_adapters(self) -> AdapterStore:
        """The adapters learnt here, which never leave."""
        return AdapterStore(self.path / "adapters" / "personal")

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
