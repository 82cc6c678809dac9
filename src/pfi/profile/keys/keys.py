"""The keys of one profile, all derived (HKDF-SHA256, RFC 5869) from one random master key.

`keys.json` in the home holds the master key wrapped (AES-256-GCM) by a secret that is kept
elsewhere, see `unlock`.  Its other values are bound into the wrapping.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi._util.files import locked, write_atomic
from pfi.errors import StorageError
from pfi.privacy.crypto.sealing import SealError, seal, unseal
from pfi.privacy.ledger.entries import canonical
from pfi.profile.keys.unlock import (
    Argon,
    Held,
    Lock,
    ask,
    drop_secret,
    key_file,
    key_file_slots,
    load_secret,
    make_secret,
    remember,
)

KEYS = "keys.json"
LOCK = "keys.lock"  # held by whoever makes or changes a profile's keys
FORMAT = 1
_RESTORE = "restore keys.json from a backup; without it nothing of the profile can be read"


@dataclass(frozen=True)
class Keys:
    """The unlocked keys of one profile.

    Attributes:
        profile: random id of the profile, 32 hex digits; bound into all that is sealed.
        master: 32 bytes that all keys are derived from.
    """

    profile: str
    master: bytes = field(repr=False)

    def database(self, name: str) -> bytes:
        """The 32-byte key of a SQLite file: `vault`, `memory` or `teacher`."""
        return self._derived(f"database {name}")

    @cached_property
    def files(self) -> bytes:
        """The 32-byte key of sealed files and texts."""
        return self._derived("files")

    @cached_property
    def signing(self) -> Ed25519PrivateKey:
        """What the profile signs with."""
        return Ed25519PrivateKey.from_private_bytes(self._derived("signing"))

    @cached_property
    def public(self) -> bytes:
        """What its signatures are checked with, 32 bytes; no secret."""
        return self.signing.public_key().public_bytes_raw()

    def _derived(self, purpose: str) -> bytes:
        salt, info = bytes.fromhex(self.profile), f"pfi {FORMAT} {purpose}".encode()
        return HKDF(SHA256(), length=32, salt=salt, info=info).derive(self.master)


class KeysFile(BaseModel):
    """What `keys.json` holds.

    Attributes:
        format: of this file.
        profile: random id of the profile.
        public: what its signatures are checked with, as hex.
        held: what keeps the secret that unwraps the master key.
        slot: the secret's own name, so that a change never overwrites another one.
        argon: how a passphrase becomes that secret; None for the other kinds.
        wrapped: the master key, sealed under the secret, as hex.
        sha256: of all of the above, to tell damage from a wrong passphrase.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    profile: str = Field(pattern=r"^[0-9a-f]{32}$")
    public: str = Field(pattern=r"^[0-9a-f]{64}$")
    held: Held
    slot: str = Field(pattern=r"^[0-9a-f]{8}$")
    argon: Argon | None = None
    wrapped: str = Field(default="", pattern=r"^([0-9a-f]{2})*$")
    sha256: str = ""

    @property
    def secret(self) -> tuple[Held, str]:
        """Which secret it is."""
        return self.held, self.slot

    @property
    def bound(self) -> str:
        """What the wrapping binds: all but itself."""
        return "keys " + canonical(self.model_dump(exclude={"wrapped", "sha256"}))

    @property
    def checksum(self) -> str:
        """What `sha256` has to be."""
        return hashlib.sha256(f"{self.bound} {self.wrapped}".encode()).hexdigest()


def make_keys(path: Path, lock: Lock = "auto", passphrase: str | None = None) -> Keys:
    """Make a profile's keys and `keys.json`; the secret is kept before the file is there.

    Args:
        path: the home.
        lock: what keeps the secret; `auto`: see `unlock.choose`.
        passphrase: for kind `passphrase`; None asks for it.

    Raises:
        ConfigError: the passphrase is too short, or nobody can be asked for one.
        StorageError: there is no OS keyring, or a file cannot be written.
    """
    keys = Keys(secrets.token_hex(16), secrets.token_bytes(32))
    _wrap(path, keys, lock, passphrase)
    return keys


def unlock(path: Path, passphrase: str | None = None) -> Keys:
    """The keys of the profile in the home `path`.

    Raises:
        ConfigError: a passphrase is needed and nobody can be asked for it.
        StorageError: the secret is wrong or missing, or `keys.json` is missing or was changed.
    """
    file, held = path / KEYS, read_keys_file(path)
    if held.held == "passphrase" and passphrase is None:
        passphrase = ask(held.profile, path.name)
    secret = load_secret(path, held.profile, held.held, held.slot, held.argon, passphrase)
    try:
        keys = Keys(held.profile, unseal(secret, bytes.fromhex(held.wrapped), held.bound))
    except SealError as error:
        wrong = {
            "passphrase": ("the passphrase is wrong", "try again; nothing was changed"),
            "file": ("the key file is not the one it was made with", "put back the right one"),
            "keyring": ("the key in the OS keyring is another one", "restore the keyring's entry"),
        }
        what, fix = wrong[held.held]
        remember(held.profile, None)
        raise StorageError(f"cannot be unlocked: {what}", where=str(file), fix=fix) from error
    if keys.public.hex() != held.public:
        raise StorageError("holds another profile's public key", where=str(file), fix=_RESTORE)
    if held.held == "passphrase":
        remember(held.profile, passphrase)
    return keys


def change_lock(
    path: Path, to: Lock, *, passphrase: str | None = None, new: str | None = None
) -> Keys:
    """Let something else keep a profile's secret: the master key is wrapped anew.

    The new secret is kept first, then `keys.json` is replaced, then the old secret is removed;
    a kill in between leaves a profile that opens.

    Args:
        path: the home.
        to: what keeps the secret from now on.
        passphrase: the present one, if there is one; None asks.
        new: the new one, for kind `passphrase`; None asks.

    Raises:
        ConfigError, StorageError: see `unlock` and `make_keys`; all is as it was.
    """
    with locked(path / LOCK):
        old = read_keys_file(path)
        keys = unlock(path, passphrase)
        _wrap(path, keys, to, new)
        _drop_unneeded(path, old)
    return keys


def drop_keys(path: Path) -> None:
    """Remove a profile's secret and `keys.json`: nobody can read what is encrypted any more.

    A copy of the home beside it that the same secret opens keeps the secret.

    Raises:
        StorageError: `keys.json` is damaged, or cannot be removed.
    """
    with locked(path / LOCK):
        held = read_keys_file(path)
        try:
            (path / KEYS).unlink()
        except OSError as error:
            what = f"the keys cannot be removed: {error.strerror}"
            raise StorageError(what, where=str(path / KEYS)) from error
        _drop_unneeded(path, held)


def _drop_unneeded(path: Path, old: KeysFile) -> None:
    """Remove the secrets of a profile that no home of this folder is opened with."""
    needed = set(_secrets_in_use(path, old.profile))
    # Those that a change left when it was killed go as well.
    files: list[tuple[Held, str]] = [("file", s) for s in key_file_slots(path, old.profile)]
    for held, slot in {old.secret, *files} - needed:
        drop_secret(path, old.profile, held, slot)


def read_keys_file(path: Path) -> KeysFile:
    """What `keys.json` says; that nobody changed it is known once it is unlocked.

    Raises:
        StorageError: it is missing, damaged or of a newer pfi.
    """
    file = path / KEYS
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise StorageError("the keys are missing", where=str(file), fix=_RESTORE) from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(file)) from error
    try:
        newer = _Format.model_validate_json(data).format
        if newer > FORMAT:
            what = f"the keys have format {newer}, this pfi reads up to {FORMAT}"
            raise StorageError(what, where=str(file), fix="update pfi")
        held = KeysFile.model_validate_json(data)
    except ValidationError as error:
        raise StorageError("is damaged: not as pfi wrote it", where=str(file), fix=_RESTORE) from (
            error
        )
    if held.sha256 != held.checksum or (held.argon is None) is (held.held == "passphrase"):
        what = "was changed after pfi wrote it"
        raise StorageError(what, where=str(file), fix=_RESTORE)
    return held


def describe_lock(path: Path) -> tuple[str, str]:
    """Where the secret of a profile's keys is, and what that protects against, in words.

    Raises:
        StorageError: see `read_keys_file`.
    """
    held = read_keys_file(path)
    if held.held == "passphrase":
        return (
            "opened by a passphrase that is stored nowhere",
            "whoever has the files needs the passphrase; if it is forgotten, all is lost",
        )
    if held.held == "keyring":
        return (
            "held in the keyring of the operating system",
            "the files are of no use elsewhere; programs that run as you can open them",
        )
    return (
        f"held in the file {key_file(path, held.profile, held.slot)}",
        "the profile's folder is of no use without that file; whoever can read both can open it",
    )


class _Format(BaseModel):
    format: int


def _wrap(path: Path, keys: Keys, lock: Lock, passphrase: str | None) -> None:
    """Keep a new secret and write `keys.json`."""
    slot = secrets.token_hex(4)
    held, argon, secret = make_secret(path, keys.profile, lock, slot, passphrase)
    values: dict[str, Any] = {"profile": keys.profile, "public": keys.public.hex(), "held": held}
    file = KeysFile(**values, slot=slot, argon=argon)
    file = file.model_copy(update={"wrapped": seal(secret, keys.master, file.bound).hex()})
    file = file.model_copy(update={"sha256": file.checksum})
    try:
        write_atomic(path / KEYS, json.dumps(file.model_dump(), indent=2) + "\n", private=True)
    except OSError as error:
        what = f"the keys cannot be written: {error.strerror}"
        raise StorageError(what, where=str(path / KEYS)) from error


def _secrets_in_use(path: Path, profile: str) -> Iterator[tuple[Held, str]]:
    """What a home and copies of it that lie beside it are opened with."""
    for file in path.parent.glob(f"*/{KEYS}"):
        with suppress(StorageError):
            copy = read_keys_file(file.parent)
            if copy.profile == profile:
                yield copy.secret
