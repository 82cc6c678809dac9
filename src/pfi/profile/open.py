"""Making and opening a home: here its parts are put together.

A home's recovery and the migration of an older pfi's home are given to it from here, so that
nothing below needs to know of erasing.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import RootModel, ValidationError

from pfi._util.files import locked
from pfi._util.settings import one_line
from pfi._util.threads import prefer
from pfi.errors import ConfigError, StorageError
from pfi.profile.config import CONFIG, DEFAULT_PROFILE, HomeConfig
from pfi.profile.erase.erasure import finish_erasures
from pfi.profile.home import ERASING, NAMES, Home, home_path
from pfi.profile.keys.encrypt_home import encrypt_home, is_encrypted
from pfi.profile.keys.keys import KEYS, LOCK, make_keys
from pfi.profile.keys.unlock import Lock
from pfi.profile.vault.vault import Vault


class _Named(RootModel[list[str]]):
    """What `config.yaml` may hold beside its settings: names, which go into the vault."""


def create_home(
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
        lock: what keeps the secret of its keys, see `pfi.profile.keys.unlock`.
        passphrase: for kind `passphrase`; None asks for it.

    Raises:
        ConfigError: the profile's name is not allowed, or the passphrase.
        StorageError: the home exists, its folder cannot be written, or there is no keyring.
    """
    refuse_existing(profile, root)
    path = home_path(profile, root)
    home = Home(profile, path, config or HomeConfig(), _recover)
    prefer(home.config.threads)
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


def refuse_existing(profile: str = DEFAULT_PROFILE, root: Path | None = None) -> None:
    """Look whether a new profile may have this name.

    Raises:
        ConfigError: the name is not allowed.
        StorageError: there is a profile of this name.
    """
    path = home_path(profile, root)
    if (path / CONFIG).exists():
        raise StorageError(
            f"profile {profile!r} exists",
            where=str(path),
            fix="use it as it is, or choose another name with --profile",
        )


def open_home(profile: str = DEFAULT_PROFILE, *, root: Path | None = None) -> Home:
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
        home = Home(profile, path, HomeConfig.model_validate(values), _recover)
    except FileNotFoundError as error:
        command = "pfi init" + ("" if profile == DEFAULT_PROFILE else f" --profile {profile}")
        what = f"there is no profile {profile!r}"
        raise StorageError(what, where=str(path), fix=f"run `{command}` first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot be read: {error}", where=str(file)) from error
    except (yaml.YAMLError, ValidationError) as error:
        reason = one_line(error)
        raise ConfigError(reason, where=str(file), fix="correct or remove the line") from error
    prefer(home.config.threads)
    if not is_encrypted(home):
        encrypt_home(home)
    if named.root:  # an older pfi's, or written there by hand
        with home.open_vault_as_it_is() as vault, vault.change_setting(NAMES) as setting:
            setting.value = list(dict.fromkeys([*(setting.value or []), *named.root]))
        home.save_config()
    return home


def _recover(home: Home) -> None:
    """Finish erasures that a kill interrupted, if there are some."""
    if any(home.path.glob(f"{ERASING}*.json")):
        finish_erasures(home, strict=False)
