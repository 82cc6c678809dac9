"""A device's private keys in its profile's home: sealed, so that a copied folder is no device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pfi.errors import StorageError
from pfi.federate.deploy.keys.keys import read, write_private
from pfi.privacy.crypto.sealing import SealError, is_sealed, seal, unseal

if TYPE_CHECKING:  # a link has no use for profiles
    from pfi.profile.keys.keys import Keys

_PLACE = "federate"  # bound into what is sealed


@dataclass(frozen=True)
class KeySeal:
    """What the private keys of a device are sealed with.

    Attributes:
        profile: id of the profile; bound into what is sealed.
        key: 32 bytes.
    """

    profile: str
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, keys: Keys) -> KeySeal:
        """That of a profile whose keys are unlocked."""
        return cls(keys.profile, keys.files)

    def _bound(self, path: Path) -> str:
        return f"{self.profile}|{_PLACE}/{path.name}"


def write_key(path: Path, data: bytes, under: KeySeal | None, *, replace: bool = False) -> None:
    """Write a private key, sealed unless there is no profile to seal it for.

    Raises:
        StorageError: it exists, or cannot be written.
    """
    if under is not None:
        data = seal(under.key, data, under._bound(path))
    write_private(path, data, replace=replace)


def read_key(path: Path, under: KeySeal | None) -> bytes:
    """A private key as it was before it was sealed; one that an older pfi left plain is sealed now.

    Raises:
        StorageError: it is missing, sealed for another profile, or others can read it.
    """
    data = read(path)
    if path.stat().st_mode & 0o077:
        fix = f"run `chmod 600 {path}`, and make new keys if others may have read it"
        raise StorageError("others can read the key", where=str(path), fix=fix)
    if not is_sealed(data):
        if under is not None:
            write_key(path, data, under, replace=True)
        return data
    if under is None:
        fix = "open it with its profile"
        raise StorageError("the key is sealed with a profile's key", where=str(path), fix=fix)
    try:
        return unseal(under.key, data, under._bound(path))
    except SealError as error:
        fix = "make new keys with `pfi federate keys device --renew`"
        raise StorageError(error.what, where=str(path), fix=fix) from error
