"""Adapters by version: folders `0001`, `0002`, ... in peft format with a manifest each.

One version per task is active; `active.json` remembers which were before it.  In a home the files
are sealed, and manifests and `active.json` are signed; an older `active.json` is refused.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi._util.files import locked, sha256_file, sync_folder
from pfi.errors import BackboneError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.peft_format import check_settings
from pfi.profile.adapters.files import (
    ENDING,
    RESTORE,
    AdapterInfo,
    Manifest,
    Seals,
    check_sum,
    digest,
    read_file,
    read_signed,
    refuse_nonfinite,
    refuse_unsafe,
    write_signed,
    write_version,
)

MANIFEST = "manifest.json"
ACTIVE = "active.json"
NEEDED = ("adapter_config.json", "adapter_model.safetensors")
_VERSION = re.compile(r"\d{4,}")
_LOCK = "lock"
_NEW, _GONE = ".new-", ".gone-"
_CHOOSE = "run `pfi adapters reset`, then choose a version with `pfi adapters use`"


class _Active(BaseModel):
    """What `active.json` holds.

    Attributes:
        tasks: per task the versions that were made active, the present one last; None is none.
        last: the highest version that there ever was: no number is used twice.
        count: how often the file was written.
    """

    model_config = ConfigDict(extra="forbid")
    tasks: dict[str, list[str | None]] = Field(default_factory=dict)
    last: int = 0
    count: int = 0


#: Inode, times and size: another after each replacement of a file.
_Stamp = tuple[int, int, int, int]


class Savable(Protocol):
    """What a store can keep: an adapter as the files of peft's format, by name."""

    def to_bytes(self) -> Mapping[str, bytes]: ...


class AdapterStore:
    """The versions in one folder, which is made when the first one is added.

    Args:
        folder: where they lie.
        seals: what seals and signs them; None keeps them in plain peft format.
    """

    def __init__(self, folder: Path, seals: Seals | None = None) -> None:
        self.folder, self.seals = folder, seals
        # What `active.json` held when it was last checked: opening the vault takes its time.
        self._seen: tuple[_Stamp, _Active] | None = None

    # Versions -----------------------------------------------------------------------

    def add(self, adapter: Savable, info: AdapterInfo) -> Manifest:
        """Store an adapter as the next version; it is not made active.

        Raises:
            StorageError: the folder cannot be written, a file of the adapter is unsafe, or its
                factors are not finite.
        """
        files = adapter.to_bytes()
        for name in files:
            refuse_unsafe(self.folder / name)
        refuse_nonfinite(files, str(self.folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                state = self._read()
                state.last = 1 + max([state.last, *map(int, self.versions())])
                self._write(state)
                created = datetime.now(UTC).replace(microsecond=0)
                return self._publish(files, info, f"{state.last:04d}", created)
        except OSError as error:
            raise StorageError(f"cannot be written: {error}", where=str(self.folder)) from error

    def restore(self, files: Mapping[str, bytes], manifest: Manifest) -> None:
        """Put in a version as it was in another home; it is sealed and signed anew.

        Raises:
            StorageError: there is such a version, a file is unsafe or not the manifest's, or the
                factors are not finite.
        """
        if not _VERSION.fullmatch(manifest.version) or manifest.version in self.versions():
            what = f"{manifest.version!r} is no new version"
            raise StorageError(what, where=str(self.folder))
        if {name: digest(data) for name, data in files.items()} != manifest.sha256:
            what = f"the files of version {manifest.version} are not those of its manifest"
            raise StorageError(what, where=str(self.folder))
        refuse_nonfinite(files, f"version {manifest.version}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            state = self._read()
            state.last = max(state.last, int(manifest.version))
            self._write(state)
            info = AdapterInfo(**manifest.model_dump(include={*AdapterInfo.model_fields}))
            self._publish(files, info, manifest.version, manifest.created)

    def _publish(
        self, files: Mapping[str, bytes], info: AdapterInfo, version: str, created: datetime
    ) -> Manifest:
        """Within the lock: write a version beside its place, then put it there."""
        temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.folder))
        try:
            sums, sealed = write_version(temporary, files, version, info.backbone, self.seals)
            manifest = Manifest(
                **info.model_dump(), version=version, created=created, sha256=sums, sealed=sealed
            )
            self._write_manifest(temporary, manifest)
            temporary.rename(self.folder / version)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(self.folder)
        return manifest

    def _write_manifest(self, folder: Path, manifest: Manifest) -> None:
        write_signed(folder / MANIFEST, manifest.model_dump(mode="json"), self.seals)

    def versions(self) -> Sequence[str]:
        """The versions' names, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (entry.name for entry in self.folder.iterdir() if entry.is_dir())
        return sorted((name for name in names if _VERSION.fullmatch(name)), key=int)

    def list(self) -> Sequence[Manifest]:
        """The manifests, oldest first.

        Raises:
            StorageError: a manifest is missing, damaged or not signed by this profile; it is
                named.
        """
        return [self.manifest(version) for version in self.versions()]

    def sound(self) -> Sequence[Manifest]:
        """The manifests but those that are missing, damaged or not signed by this profile."""
        found = []
        for version in self.versions():
            with suppress(StorageError):
                found.append(self.manifest(version))
        return found

    def manifest(self, version: str) -> Manifest:
        """One version's manifest.

        Raises:
            StorageError: there is no such version, or its manifest is missing, damaged or not
                signed by this profile.
        """
        if version not in self.versions():
            raise StorageError(
                f"there is no adapter version {version!r}",
                where=str(self.folder),
                fix="`pfi adapters list` shows the versions",
            )
        file = self.folder / version / MANIFEST
        try:
            values = read_signed(file, self.seals, "the manifest", RESTORE)
            found = Manifest.model_validate(values)
        except (FileNotFoundError, ValidationError) as error:
            what = "the manifest is missing or damaged"
            raise StorageError(what, where=str(file), fix=RESTORE) from error
        if found.version != version:
            what = f"the manifest is of version {found.version}"
            raise StorageError(what, where=str(file), fix=RESTORE)
        return found

    def verify(self, version: str) -> Manifest:
        """Check a version's files against its manifest, which is returned.

        Raises:
            StorageError: a file is missing, changed or of a format that can run code.
        """
        manifest, _ = self._files(version)
        for name, wanted in manifest.sealed.items():
            file = self.folder / version / (name + ENDING)
            check_sum(file, sha256_file(file), wanted)
        return manifest

    def files(self, version: str) -> dict[str, bytes]:
        """One version in peft's format, by file name, verified first.

        Raises:
            StorageError: see `verify`.
        """
        return self._files(version)[1]

    def _files(self, version: str) -> tuple[Manifest, dict[str, bytes]]:
        manifest = self.manifest(version)
        folder, found = self.folder / version, {}
        refuse_unsafe(folder)
        for name in NEEDED:
            if name not in manifest.sha256:
                what = "the manifest does not list this file"
                raise StorageError(what, where=str(folder / name), fix=RESTORE)
        for name in manifest.sha256:
            found[name] = read_file(folder, name, version, manifest.backbone, self.seals)
            check_sum(folder / name, digest(found[name]), manifest.sha256[name])
        return manifest, found

    def load(self, version: str) -> Adapter:
        """One version's adapter, verified first.

        Raises:
            StorageError: see `verify`.
            BackboneError: the adapter is damaged, or of a kind that is refused.
        """
        files = self.files(version)
        try:
            adapter = Adapter.from_bytes(files, str(self.folder / version))
            check_settings(adapter.settings)
        except BackboneError as error:  # stored before such adapters were refused
            option = " --shared" if self.seals and self.seals.kind == "shared" else ""
            fix = f"install or train another one, or run `pfi adapters reset{option}`"
            raise BackboneError(error.what, where=str(self.folder / version), fix=fix) from error
        return adapter

    def forget_held_back(self, fingerprints: Collection[str]) -> int:
        """Take fingerprints of erased records out of the manifests; how many manifests had some.

        Damaged manifests are passed over.
        """
        changed = 0
        for manifest in self.sound():
            left = [name for name in manifest.held_back if name not in fingerprints]
            if left != manifest.held_back:
                manifest = manifest.model_copy(update={"held_back": left})
                self._write_manifest(self.folder / manifest.version, manifest)
                changed += 1
        return changed

    def drop(self, versions: Collection[str], backbone: str) -> None:
        """Remove versions for good; may be done again after a kill.

        A task that used one falls back to the newest one of its that is left and fits.

        Args:
            versions: their names; those that are gone are passed over.
            backbone: the profile's.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not self.folder.is_dir():
            return
        with self._locked():
            try:
                state = self._read()
            except StorageError:  # somebody changed it: nothing is in use from here on
                state = _Active(count=self.seals.count if self.seals else 0)
            if any(v in versions for trail in state.tasks.values() for v in trail):
                fits = [
                    m for m in self.sound() if m.backbone == backbone and m.version not in versions
                ]
                for task, trail in state.tasks.items():
                    lost = bool(trail) and trail[-1] in versions
                    trail[:] = [v for v in trail if v not in versions]
                    newest = [None, *(m.version for m in fits if m.task == task)][-1]
                    if lost and (trail[-1] if trail else None) != newest:
                        trail.append(newest)
            state.last = max([state.last, *map(int, self.versions())])
            self._write(state)
            for version in versions:
                if _VERSION.fullmatch(version) and (self.folder / version).is_dir():
                    # Renamed first: half a version is none.
                    name = f"{_GONE}{version}-{secrets.token_hex(4)}"
                    (self.folder / version).rename(self.folder / name)
            for left_over in (*self.folder.glob(f"{_GONE}*"), *self.folder.glob(f"{_NEW}*")):
                shutil.rmtree(left_over)  # of what was killed as well
            sync_folder(self.folder)

    # Which one is active ------------------------------------------------------------

    def active(self, task: str) -> str | None:
        """The version in use for a task, or None."""
        return (self._read().tasks.get(task) or [None])[-1]

    def all_active(self) -> dict[str, str]:
        """The version in use by task, for every task that has one."""
        trails = self._read().tasks.items()
        return {task: trail[-1] for task, trail in trails if trail and trail[-1] is not None}

    def trails(self) -> Mapping[str, Sequence[str | None]]:
        """Per task the versions that were made active, the present one last; None is none."""
        return self._read().tasks

    def use(self, version: str) -> Manifest:
        """Make a version the active one of its task, after verifying it.

        Raises:
            StorageError: see `verify`.
        """
        manifest = self.verify(version)
        refuse_nonfinite(self.files(version), str(self.folder / version))
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
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            state = self._read()
            trail = state.tasks.get(task, [])
            if not trail:
                what = f"no adapter was active for task {task}"
                raise StorageError(what, where=str(self.folder), fix="there is nothing to undo")
            before = trail[-2] if len(trail) > 1 else None
            if before is not None:
                self.verify(before)
                refuse_nonfinite(self.files(before), str(self.folder / before))
            state.tasks[task] = trail[:-1]
            self._write(state)
        return before

    def reset(self, tasks: Mapping[str, Sequence[str | None]] | None = None) -> None:
        """Write `active.json` anew, whatever it holds, with these trails or none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            count = self.seals.count if self.seals else 0
            last = max(map(int, self.versions()), default=0)
            trails = {task: [*trail] for task, trail in (tasks or {}).items()}
            self._write(_Active(tasks=trails, last=last, count=count))

    def _push(self, task: str, version: str | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            state = self._read()
            trail = state.tasks.setdefault(task, [])
            if (trail[-1] if trail else None) != version:
                trail.append(version)
                self._write(state)

    def _read(self) -> _Active:
        file = self.folder / ACTIVE
        stamp = _stamp(file)
        if self._seen is not None and stamp == self._seen[0]:
            return self._seen[1].model_copy(deep=True)
        state = self._checked(file)
        self._seen = (stamp, state.model_copy(deep=True)) if stamp else None
        return state

    def _checked(self, file: Path) -> _Active:
        # Asked first: the file is written before the vault is told.
        known = self.seals.count if self.seals else 0
        what = "the list of versions in use"
        try:
            state = _Active.model_validate(read_signed(file, self.seals, what, _CHOOSE))
        except FileNotFoundError as error:
            if known:
                raise StorageError(f"{what} is missing", where=str(file), fix=_CHOOSE) from error
            return _Active()
        except ValidationError as error:
            raise StorageError(f"{what} is damaged", where=str(file), fix=_CHOOSE) from error
        if state.count < known:
            what += f" is an older one: number {state.count}, the last one was {known}"
            raise StorageError(what, where=str(file), fix=_CHOOSE)
        if self.seals and state.count > known:  # a kill came before the vault was told
            self.seals.tell(state.count)
        return state

    def _write(self, state: _Active) -> None:
        """Within the lock: write the file, then tell the vault of it."""
        state.count += 1
        self._seen = None
        write_signed(self.folder / ACTIVE, state.model_dump(), self.seals)
        if self.seals:
            self.seals.tell(state.count)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / _LOCK)

    # Stores of an older pfi ---------------------------------------------------------

    def migrate(self) -> int:
        """Seal and sign a plain store where it lies; how many versions that were.

        May be done again after a kill.  A store that was sealed once is left as it is, so that
        nobody can bring in plain files of their own.

        Raises:
            StorageError: a manifest or file is damaged, or the folder cannot be written.
        """
        if self.seals is None or self.seals.count or not self.folder.is_dir():
            return 0
        plain, done = AdapterStore(self.folder), 0
        for version in self.versions():
            folder = self.folder / version
            try:
                self.manifest(version)  # a kill came between this one and the last
            except StorageError:
                manifest, files = plain._files(version)
                _, sealed = write_version(folder, files, version, manifest.backbone, self.seals)
                self._write_manifest(folder, manifest.model_copy(update={"sealed": sealed}))
                done += 1
            for file in folder.iterdir():
                if file.name != MANIFEST and not file.name.endswith(ENDING):
                    file.unlink()
        try:
            state = self._read()
        except StorageError:
            state = plain._read()
        state.last = max([state.last, *map(int, self.versions())])
        self._write(state)
        return done


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
