"""How an adapter store's files lie on the disk: sealed and signed in a home, or plain.

A manifest says what is known of a version: its making, and the files that it consists of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pfi._util.files import write_atomic, write_json
from pfi.errors import StorageError
from pfi.models.peft_format import WEIGHTS_FILE
from pfi.privacy.crypto.sealing import SealError, seal, unseal_file
from pfi.privacy.crypto.signing import SIGNATURE, with_signature, without_signature
from pfi.profile.keys.keys import Keys
from pfi.profile.vault.vault import Vault


class AdapterInfo(BaseModel):
    """What is known of an adapter's making.

    Attributes:
        task: the task it was trained for.
        backbone: the name of the backbone that it fits.
        backbone_files: fingerprint of that backbone's files where it is an installed model.
        records: how many records it was trained on, with those of the versions that it goes on
            from since the user last changed.
        parent: the version that was active before it.
        shared: the version of the shared adapter that it sits on, if any.
        seconds: how long training took.
        first_loss, last_loss: mean loss over the first and the last steps.
        metrics: values on held-back records, by name.
        read: when the records that it learnt from were read; None in old manifests.
        held_back: fingerprints of the real records that were there and it did not learn from.
        held_back_losses: its loss on the examples that it was measured on, nats a target token.
        verdict: why a training took it into use, or did not; empty where nothing was measured.
        general: what it makes the model forget, by name; see ``pfi.train.forgetting``.
    """

    model_config = ConfigDict(extra="forbid")

    task: str
    backbone: str
    backbone_files: str | None = None
    records: int = 0
    config: dict[str, Any] = {}
    parent: str | None = None
    shared: str | None = None
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    metrics: dict[str, float] = {}
    read: datetime | None = None
    held_back: list[str] = []
    held_back_losses: list[float] = []
    verdict: str = ""
    general: dict[str, float] = {}


class Manifest(AdapterInfo):
    """The `manifest.json` of one version.

    Attributes:
        version: its number.
        created: when, in UTC.
        sha256: of the files of peft's format, by name.
        sealed: of those files as they lie on the disk; empty where they are not sealed.
    """

    version: str
    created: datetime
    sha256: dict[str, str]
    sealed: dict[str, str] = {}


ENDING = ".sealed"
#: Formats that can run code when they are read.
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
RESTORE = "restore the folder from a backup, or choose another version with `pfi adapters use`"
OTHER = "was changed, or is of another device, store or version: its signature is wrong"


class Owner(Protocol):
    """Whose a store is: a `Home`."""

    @property
    def keys(self) -> Keys: ...

    def open_vault_as_it_is(self) -> Vault: ...


@dataclass(frozen=True)
class Seals:
    """What seals and signs the files of one store.

    Attributes:
        owner: has the keys, asked for at their first use, and the vault, whose settings know how
            often the store has changed.
        kind: `personal` or `shared`.
    """

    owner: Owner
    kind: str

    @property
    def keys(self) -> Keys:
        """Of the profile."""
        return self.owner.keys

    @property
    def count(self) -> int:
        """How often the store has changed, as far as the vault was told; it only grows."""
        with self.owner.open_vault_as_it_is() as vault:
            return int(vault.setting(self._name) or 0)

    def tell(self, count: int) -> None:
        """Tell the vault how often the store has changed."""
        with (
            self.owner.open_vault_as_it_is() as vault,
            vault.change_setting(self._name) as setting,
        ):
            setting.value = max(int(setting.value or 0), count)

    @property
    def _name(self) -> str:
        return f"adapters.{self.kind}"

    def context(self, version: str, backbone: str, name: str) -> str:
        """What one file is sealed as."""
        return f"{self.keys.profile}|{self.kind}/{version}|{backbone}|{name}"

    def purpose(self, name: str) -> str:
        """What a JSON file of the store is signed as."""
        return f"{self.keys.profile}|{self.kind}|{name}"


def write_version(
    folder: Path, files: Mapping[str, bytes], version: str, backbone: str, seals: Seals | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Write a version's files, sealed where there are seals.

    Returns:
        The sha256 of the files and, where they are sealed, of the sealed ones, by name.

    Raises:
        StorageError: a name reaches out of the folder, or says that the file can run code.
        OSError: the folder cannot be written.
    """
    sums, sealed = {}, {}
    for name, data in files.items():
        refuse_unsafe(folder / name)
        if PurePosixPath(name).name != name:
            raise StorageError("an adapter's file lies in its folder", where=str(folder / name))
        sums[name] = digest(data)
        if seals:
            data = seal(seals.keys.files, data, seals.context(version, backbone, name))
            sealed[name] = digest(data)
        write_atomic(folder / (name + ENDING if seals else name), data)
    return sums, sealed


def read_file(folder: Path, name: str, version: str, backbone: str, seals: Seals | None) -> bytes:
    """A version's file as it was before it was sealed.

    Raises:
        StorageError: it is missing or cannot be read, or does not open.
    """
    path = folder / (name + ENDING if seals else name)
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise StorageError("the file is missing", where=str(path), fix=RESTORE)
    try:
        if seals is None:
            return path.read_bytes()
        return unseal_file(seals.keys.files, path, seals.context(version, backbone, name))
    except SealError as error:
        raise SealError(error.what, where=str(path), fix=RESTORE) from error
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(path)) from error


def check_sum(path: Path, found: str, wanted: str | None) -> None:
    """Compare the sha256 of a file with what the manifest says.

    Raises:
        StorageError: it is another.
    """
    if found != wanted:
        what = "the file is not the one that was stored (sha256 differs)"
        raise StorageError(what, where=str(path), fix=RESTORE)


def write_signed(path: Path, values: Mapping[str, Any], seals: Seals | None) -> None:
    """Write a JSON file, with its signature where there are seals."""
    if seals:
        values = with_signature(seals.keys.signing, seals.purpose(path.name), values)
    write_json(path, values)


def read_signed(path: Path, seals: Seals | None, what: str, fix: str) -> dict[str, Any]:
    """The values of such a file.

    Args:
        path: the file.
        seals: of the store.
        what: what the file is to the user.
        fix: what to do where it cannot be used.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it is damaged, or the signature is missing or wrong.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"{what} is damaged", where=str(path), fix=fix) from error
    if seals is None:
        return found
    if SIGNATURE not in found:
        raise StorageError(f"{what} is not signed", where=str(path), fix=fix)
    content = without_signature(seals.keys.public, seals.purpose(path.name), found)
    if content is None:
        raise StorageError(f"{what} {OTHER}", where=str(path), fix=fix)
    return content


def refuse_unsafe(path: Path) -> None:
    """Refuse a file, or all of a folder, whose name says that it can run code.

    Raises:
        StorageError: names the file.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix.lower() in UNSAFE:
            raise StorageError(
                "files of this kind can run code when read and are refused",
                where=os.fspath(file),
                fix="keep adapters as safetensors",
            )


def refuse_nonfinite(files: Mapping[str, bytes], where: str) -> None:
    """Refuse an adapter that could answer nothing: a value of a factor is not finite.

    Files that cannot be read at all are refused when they are (`Adapter.from_bytes`).

    Raises:
        StorageError: names the factor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        factors = load(files[WEIGHTS_FILE])
    except (KeyError, SafetensorError):
        return
    for name, factor in factors.items():
        if factor.dtype.is_floating_point and not bool(factor.isfinite().all()):
            what = f"the adapter is damaged: {name:.200} is not finite"
            raise StorageError(what, where=where, fix="take it from where it came, or train anew")


def digest(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
