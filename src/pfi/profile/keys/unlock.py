"""What keeps the secret that unwraps a profile's master key, and how it is asked for.

- `keyring`: the operating system's keyring, where there is one.
- `passphrase`: in the user's head; Argon2id (RFC 9106) makes the secret from it.
- `file`: a key file in `.keys` beside the homes, readable by its owner only.  It protects a home
  that is copied, synced or lost without it; not against who reads all of the user's files.
"""

from __future__ import annotations

import getpass
import os
import secrets
import sys
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from pfi._util.files import write_atomic
from pfi.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

Held = Literal["keyring", "passphrase", "file"]
Lock = Literal["auto", "keyring", "passphrase", "file"]

SERVICE = "pfi"  # whose entries they are in the keyring
SHORTEST = 8  # characters of a passphrase
MEMORY_KIB, ITERATIONS = 64 * 1024, 5  # about 0.3 s on a laptop's core
_TYPED: dict[str, str] = {}  # passphrases of profiles that were typed, so that none is asked twice


class Argon(BaseModel):
    """Parameters of Argon2id; bounded, since they are used before anything is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    memory_kib: int = Field(ge=8, le=1 << 21)
    iterations: int = Field(ge=1, le=1000)
    lanes: int = Field(default=1, ge=1, le=16)


def choose(lock: Lock) -> Held:
    """What `auto` means here: `PFI_KEY`; else a passphrase if `PFI_PASSPHRASE` holds one, as who
    sets it wants it used; else the keyring where one works, else a file.

    Raises:
        ConfigError: `PFI_KEY` or `lock` is no kind.
    """
    if lock == "auto":
        lock = os.environ.get("PFI_KEY") or "auto"  # type: ignore[assignment]
    if lock not in get_args(Lock):
        raise ConfigError(
            f"{lock!r} is no way to hold a key", fix="use auto, keyring, passphrase or file"
        )
    if lock != "auto":
        return lock
    if os.environ.get("PFI_PASSPHRASE"):
        return "passphrase"
    return "keyring" if find_keyring() else "file"


def make_secret(
    path: Path, profile: str, lock: Lock, slot: str, passphrase: str | None
) -> tuple[Held, Argon | None, bytes]:
    """A new secret, kept where `lock` says, and what keeps it.

    Args:
        path: the home.
        profile: the random id of the profile.
        lock: the kind.
        slot: the secret's own name.
        passphrase: for kind `passphrase`; None asks for it.

    Raises:
        ConfigError: the passphrase is too short, or nobody can be asked for one.
        StorageError: it cannot be kept there.
    """
    held = choose(lock)
    if held == "passphrase":
        argon = Argon(salt=secrets.token_hex(16), memory_kib=MEMORY_KIB, iterations=ITERATIONS)
        text = passphrase if passphrase is not None else ask_new()
        if len(text) < SHORTEST:
            what = f"the passphrase is shorter than {SHORTEST} characters"
            raise ConfigError(what, fix="use several words")
        remember(profile, text)
        return held, argon, _stretched(text, argon)
    secret = secrets.token_bytes(32)
    if held == "file":
        _write_file(key_file(path, profile, slot), secret)
    elif not _kept_in_keyring(profile, slot, secret):
        if lock == "auto" and (os.environ.get("PFI_KEY") or "auto") == "auto":
            return make_secret(path, profile, "file", slot, None)
        raise StorageError(
            "this machine has no OS keyring that works",
            fix="unlock it, or let a passphrase or a file keep the key",
        )
    return held, None, secret


def load_secret(
    path: Path, profile: str, held: Held, slot: str, argon: Argon | None, passphrase: str | None
) -> bytes:
    """The secret of a profile, 32 bytes; a wrong passphrase gives another one.

    Raises:
        StorageError: the key file, the keyring or the entry in it is missing.
    """
    if held == "passphrase":
        assert argon is not None and passphrase is not None
        return _stretched(passphrase, argon)
    if held == "file":
        file = key_file(path, profile, slot)
        try:
            return _from_hex(file.read_text("ascii"))
        except FileNotFoundError as error:
            raise StorageError(
                "the key file of this profile is missing",
                where=str(file),
                fix="put it back from where the profile came from, or from a backup",
            ) from error
        except (OSError, ValueError) as error:
            what = "the key file cannot be read, or is damaged"
            raise StorageError(what, where=str(file), fix="restore it from a backup") from error
    keyring = find_keyring()
    if keyring is None:
        raise StorageError(
            "the OS keyring, which has the key of this profile, does not work here",
            where=str(path),
            fix="unlock or install it, or restore the profile from an archive",
        )
    try:
        text = keyring.get_password(SERVICE, f"{profile}-{slot}")
        if text is not None:
            return _from_hex(text)
    except Exception as error:  # backends raise what their system raises
        raise StorageError(
            f"the OS keyring does not answer: {error}", where=str(path), fix="unlock it, try again"
        ) from error
    raise StorageError(
        "the OS keyring has no key of this profile",
        where=str(path),
        fix="log in as the user who made it, or restore the profile from an archive",
    )


def drop_secret(path: Path, profile: str, held: Held, slot: str) -> None:
    """Remove a secret that nothing needs any more; one that is not there is no error."""
    with suppress(Exception):  # what is left opens nothing that is in use
        if held == "file":
            key_file(path, profile, slot).unlink(missing_ok=True)
        elif held == "keyring" and (keyring := find_keyring()):
            keyring.delete_password(SERVICE, f"{profile}-{slot}")


def key_file(path: Path, profile: str, slot: str) -> Path:
    """Where the secret of a profile is kept, outside its home."""
    return path.parent / ".keys" / f"{profile}-{slot}.key"


def key_file_slots(path: Path, profile: str) -> set[str]:
    """The names of all secrets of a profile that are in files."""
    files = key_file(path, profile, "").parent.glob(f"{profile}-*.key")
    return {file.stem.rpartition("-")[2] for file in files}


def find_keyring() -> KeyringBackend | None:
    """The OS keyring, or None where there is none that is safe to use."""
    import keyring
    from keyring.backends import chainer, fail, null

    try:
        found = keyring.get_keyring()
        # Below 1 are those that keep secrets in plain files.
        usable = found.priority >= 1 and not isinstance(found, fail.Keyring | null.Keyring)
        if isinstance(found, chainer.ChainerBackend):
            usable = usable and any(backend.priority >= 1 for backend in found.backends)
    except Exception:  # whatever the system raises, there is none
        return None
    return found if usable else None


# Passphrases ------------------------------------------------------------------------


def ask(profile: str, name: str) -> str:
    """A profile's passphrase: typed before, from `PFI_PASSPHRASE`, else typed now.

    Args:
        profile: the random id of the profile.
        name: what it is to the user.

    Raises:
        ConfigError: the variable is not set, and there is no terminal.
    """
    if text := _TYPED.get(profile) or os.environ.get("PFI_PASSPHRASE"):
        return text
    return _typed(f"Passphrase of profile {name}: ")


def ask_new(name: str = "PFI_PASSPHRASE") -> str:
    """A new passphrase: from the variable `name`, else typed twice.

    Raises:
        ConfigError: it is not set, and there is no terminal; or the two differ.
    """
    if text := os.environ.get(name):
        return text
    text = _typed("New passphrase: ", name)
    if text != _typed("The same again: ", name):
        raise ConfigError("the two passphrases differ", fix="try again")
    return text


def remember(profile: str, passphrase: str | None) -> None:
    """Keep a passphrase that opened a profile until this process ends; None forgets it."""
    if passphrase is None:
        _TYPED.pop(profile, None)
    else:
        _TYPED[profile] = passphrase


def _typed(prompt: str, name: str = "PFI_PASSPHRASE") -> str:
    if not sys.stdin or not sys.stdin.isatty():
        raise ConfigError("a passphrase is needed", fix=f"set {name}, or run this on a terminal")
    return getpass.getpass(prompt)


@lru_cache(maxsize=64)
def _stretched(passphrase: str, argon: Argon) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    text = unicodedata.normalize("NFC", passphrase)  # keyboards differ in how they write accents
    return Argon2id(
        salt=bytes.fromhex(argon.salt),
        length=32,
        iterations=argon.iterations,
        lanes=argon.lanes,
        memory_cost=argon.memory_kib,
    ).derive(text.encode("utf-8", "surrogatepass"))


# Files and the keyring --------------------------------------------------------------


def _write_file(file: Path, secret: bytes) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(file, secret.hex() + "\n", private=True)
    except OSError as error:
        what = f"the key file cannot be written: {error.strerror}"
        raise StorageError(what, where=str(file)) from error


def _kept_in_keyring(profile: str, slot: str, secret: bytes) -> bool:
    keyring = find_keyring()
    if keyring is None:
        return False
    name = f"{profile}-{slot}"
    try:
        keyring.set_password(SERVICE, name, secret.hex())
        return keyring.get_password(SERVICE, name) == secret.hex()
    except Exception:  # backends raise what their system raises: locked, refused, no bus
        return False


def _from_hex(text: str) -> bytes:
    secret = bytes.fromhex(text.strip())
    if len(secret) != 32:
        raise ValueError("not 32 bytes")
    return secret
