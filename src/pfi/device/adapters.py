"""Adapters by version: folders `0001`, `0002`, ... in peft format with a manifest each.

One version per task is active; `active.json` remembers which were before it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi.errors import StorageError
from pfi.files import sha256_file, sync_folder, write_json

if TYPE_CHECKING:
    from pfi.learn import Adapter

MANIFEST = "manifest.json"
ACTIVE = "active.json"
NEEDED = ("adapter_config.json", "adapter_model.safetensors")
_VERSION = re.compile(r"\d{4,}")
# Formats that can run code when they are read.
_UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_RESTORE = "restore the folder from a backup, or choose another version with `pfi adapters use`"


class AdapterInfo(BaseModel):
    """What is known of an adapter's making.

    Attributes:
        task: the task it was trained for.
        backbone: the name of the backbone that it fits.
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
    """

    model_config = ConfigDict(extra="forbid")

    task: str
    backbone: str
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


class Manifest(AdapterInfo):
    """The `manifest.json` of one version; `sha256` is by file name, `created` in UTC."""

    version: str
    created: datetime
    sha256: dict[str, str]


class _Active(BaseModel):
    """Per task the versions that were made active, the present one last; None is none."""

    model_config = ConfigDict(extra="forbid")
    tasks: dict[str, list[str | None]] = Field(default_factory=dict)


class Savable(Protocol):
    """What a store can keep: an adapter that writes itself in peft format, file by file safely."""

    def save(self, folder: Path) -> None: ...


class AdapterStore:
    """The versions in one folder, which is made when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # Versions -----------------------------------------------------------------------

    def add(self, adapter: Savable, info: AdapterInfo) -> Manifest:
        """Store an adapter as the next version; it is not made active.

        Raises:
            StorageError: the folder cannot be written, or the adapter saved itself unsafely.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        except OSError as error:
            raise StorageError(f"cannot be written: {error}", where=str(self.folder)) from error
        try:
            adapter.save(temporary)
            _refuse_unsafe(temporary)
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            sums = {file.relative_to(temporary).as_posix(): sha256_file(file) for file in files}
            return self._publish(temporary, info, sums)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, info: AdapterInfo, sums: Mapping[str, str]) -> Manifest:
        number = max((int(version) for version in self.versions()), default=0) + 1
        while True:
            manifest = Manifest(
                **info.model_dump(),
                version=f"{number:04d}",
                created=datetime.now(UTC).replace(microsecond=0),
                sha256=dict(sums),
            )
            write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
            try:
                temporary.rename(self.folder / manifest.version)
            except OSError:
                # Another process took this number while we wrote.
                if not (self.folder / manifest.version).exists():
                    raise
                number += 1
                continue
            sync_folder(self.folder)
            return manifest

    def versions(self) -> Sequence[str]:
        """The versions' names, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (entry.name for entry in self.folder.iterdir() if entry.is_dir())
        return sorted((name for name in names if _VERSION.fullmatch(name)), key=int)

    def list(self) -> Sequence[Manifest]:
        """The manifests, oldest first.

        Raises:
            StorageError: a manifest is missing or damaged; it is named.
        """
        return [self.manifest(version) for version in self.versions()]

    def manifest(self, version: str) -> Manifest:
        """One version's manifest.

        Raises:
            StorageError: there is no such version, or its manifest is missing or damaged.
        """
        if version not in self.versions():
            raise StorageError(
                f"there is no adapter version {version!r}",
                where=str(self.folder),
                fix="`pfi adapters list` shows the versions",
            )
        file = self.folder / version / MANIFEST
        try:
            found = Manifest.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            what = "the manifest is missing or damaged"
            raise StorageError(what, where=str(file), fix=_RESTORE) from error
        if found.version != version:
            what = f"the manifest is of version {found.version}"
            raise StorageError(what, where=str(file), fix=_RESTORE)
        return found

    def verify(self, version: str) -> Manifest:
        """Check a version's files against its manifest, which is returned.

        Raises:
            StorageError: a file is missing, changed or of a format that can run code.
        """
        manifest = self.manifest(version)
        folder = self.folder / version
        _refuse_unsafe(folder)
        for name in NEEDED:
            if name not in manifest.sha256:
                what = "the manifest does not list this file"
                raise StorageError(what, where=str(folder / name), fix=_RESTORE)
        for name, expected in manifest.sha256.items():
            file = folder / name
            if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
                raise StorageError("the file is missing", where=str(file), fix=_RESTORE)
            if sha256_file(file) != expected:
                what = "the file is not the one that was stored (sha256 differs)"
                raise StorageError(what, where=str(file), fix=_RESTORE)
        return manifest

    def load(self, version: str) -> Adapter:
        """One version's adapter, verified first.

        Raises:
            StorageError: see `verify`.
        """
        from pfi.learn import Adapter

        self.verify(version)
        return Adapter.load(self.folder / version)

    # Which one is active ------------------------------------------------------------

    def active(self, task: str) -> str | None:
        """The version in use for a task, or None."""
        return (self._read().tasks.get(task) or [None])[-1]

    def all_active(self) -> dict[str, str]:
        """The version in use by task, for every task that has one."""
        trails = self._read().tasks.items()
        return {task: trail[-1] for task, trail in trails if trail and trail[-1] is not None}

    def use(self, version: str) -> Manifest:
        """Make a version the active one of its task, after verifying it.

        Raises:
            StorageError: see `verify`.
        """
        manifest = self.verify(version)
        self._push(manifest.task, version)
        return manifest

    def use_none(self, task: str) -> None:
        """Answer a task without an adapter from here on; `rollback` undoes it."""
        self._push(task, None)

    def rollback(self, task: str) -> str | None:
        """Go back to what was active before for a task; returns that version or None.

        Raises:
            StorageError: nothing was active before, or that version is damaged.
        """
        state = self._read()
        trail = state.tasks.get(task, [])
        if not trail:
            what = f"no adapter was active for task {task}"
            raise StorageError(what, where=str(self.folder), fix="there is nothing to undo")
        before = trail[-2] if len(trail) > 1 else None
        if before is not None:
            self.verify(before)
        state.tasks[task] = trail[:-1]
        self._write(state)
        return before

    def _push(self, task: str, version: str | None) -> None:
        state = self._read()
        trail = state.tasks.setdefault(task, [])
        if (trail[-1] if trail else None) != version:
            trail.append(version)
            self._write(state)

    def _read(self) -> _Active:
        file = self.folder / ACTIVE
        try:
            return _Active.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return _Active()
        except (OSError, ValueError) as error:
            fix = "remove the file and choose a version with `pfi adapters use`"
            raise StorageError("the file is damaged", where=str(file), fix=fix) from error

    def _write(self, state: _Active) -> None:
        write_json(self.folder / ACTIVE, state.model_dump())


def _refuse_unsafe(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _UNSAFE:
            raise StorageError(
                "files of this kind can run code when read and are refused",
                where=str(file),
                fix="keep adapters as safetensors",
            )
