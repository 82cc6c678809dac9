"""Moving a profile: all of it in one encrypted file, and a new profile made from such a file.

In the archive everything is as pfi or peft would write it without keys, but for the SQLite files,
which have a key of their own; so no plain file is ever on a disk.  A restored profile has new keys.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pfi._util.files import locked, sync_folder, write_atomic
from pfi._util.settings import one_line
from pfi._util.sqlite import connect, copy_to_attached, key_text, sqlite3, user_errors
from pfi._util.version import __version__
from pfi.errors import DataError, PfiError, StorageError
from pfi.privacy.crypto.signing import with_signature
from pfi.profile import ledger_head
from pfi.profile.adapters.files import Manifest
from pfi.profile.adapters.store import AdapterStore
from pfi.profile.archive import format as form
from pfi.profile.archive.format import Head, Reading, TarReader
from pfi.profile.config import HomeConfig
from pfi.profile.erase import statement
from pfi.profile.home import TOKENS, Home, home_path
from pfi.profile.keys.keys import KEYS, drop_keys, make_keys
from pfi.profile.keys.unlock import Lock
from pfi.profile.open import open_home
from pfi.profile.vault.vault import Vault

_WRITING, _READING = ".export-", ".restore-"
_LOCK = ".restore.lock"
_MOVED = ".archived"  # the ending of SQLite files that still have the archive's key


@dataclass(frozen=True)
class Archived:
    """What an archive holds.

    Attributes:
        name: of the profile that it was made from.
        public: the first digits of the key that signed it.
        created: when it was made.
        bytes: its size.
        records: how many records.
        adapters: how many versions of adapters.
    """

    name: str
    public: str
    created: str
    bytes: int
    records: int
    adapters: int


# Writing ----------------------------------------------------------------------------


def write_archive(
    home: Home, path: Path, *, to: list[str] | None = None, passphrase: str | None = None
) -> Archived:
    """Put a whole profile into one encrypted file; the file is there whole or not at all.

    The memory, which is built again, the keys, and memberships in federations stay behind.

    Args:
        home: the device.
        path: the file, which must not be there.
        to: age's X25519 recipients; each can open it.
        passphrase: opens it, where there are no recipients.  The archive is in memory then.

    Raises:
        ConfigError: a recipient is none.
        StorageError: the file exists or cannot be written, or a file of the profile is damaged.
    """
    form.recipients(to or [])
    if path.exists():
        raise StorageError("the file exists", where=str(path), fix="choose another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with locked(home.path / "export.lock"):
        for left in home.path.glob(f"{_WRITING}*"):
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
        work = home.path / f"{_WRITING}{secrets.token_hex(6)}"
        try:
            work.mkdir(mode=0o700)
            writer = _Writer(home, work)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                form.encrypt(writer.tar, file, to or [], passphrase)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            temporary.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            what = f"the archive cannot be written: {error.strerror or error}"
            raise StorageError(what, where=str(path)) from error
        finally:
            temporary.unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)
    head = writer.head
    return Archived(
        head.name, head.public[:16], head.created, size, writer.records, writer.adapters
    )


class _Writer:
    """What goes into an archive, made while it is written.

    Attributes:
        head: the first member.
        tar: all of them.
        records, adapters: how many were written.
    """

    def __init__(self, home: Home, work: Path) -> None:
        self.home, self.work = home, work
        self.records = self.adapters = 0
        self.head = Head(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            name=home.profile,
            profile=home.keys.profile,
            public=home.keys.public.hex(),
            database=secrets.token_hex(32),
        )
        self.tar = TarReader(self._members())

    def _members(self) -> Iterator[tuple[str, bytes | Path]]:
        home = self.home
        yield form.HEAD, self.head.model_dump_json().encode()
        with home.open_vault() as vault:  # finishes what was being erased
            self.records = vault.count()
        yield form.CONFIG, yaml.safe_dump(home.config.model_dump(), allow_unicode=True).encode()
        if home.gate_file.exists():
            yield form.GATE, home.gate_file.read_bytes()
        for file, name in ((home.vault_file, "vault"), (home.teacher_file, "teacher")):
            if file.exists():
                copy = self.work / file.name
                database = bytes.fromhex(self.head.database)
                copy_database(name, file, home.keys.database(name), copy, database)
                yield file.name, copy
                copy.unlink()
        if home.ledger_file.exists():
            yield form.LEDGER, b"".join(home.open_ledger().plain_lines())
        for file in sorted((home.path / statement.FOLDER).glob("*.json")):
            yield f"{statement.FOLDER}/{file.name}", file.read_bytes()
        for kind, store in _stores(home).items():
            yield from self._store(f"adapters/{kind}", store)
        content = {"files": self.tar.sums}
        signed = with_signature(home.keys.signing, form.PURPOSE, content)
        yield form.MANIFEST, json.dumps(signed).encode()

    def _store(self, folder: str, store: AdapterStore) -> Iterator[tuple[str, bytes]]:
        for version in store.versions():
            manifest = store.manifest(version).model_copy(update={"sealed": {}})
            yield f"{folder}/{version}/manifest.json", manifest.model_dump_json().encode()
            for name, data in store.files(version).items():
                yield f"{folder}/{version}/{name}", data
            self.adapters += 1
        yield f"{folder}/active.json", json.dumps(dict(store.trails())).encode()


def copy_database(name: str, source: Path, key: bytes, target: Path, new: bytes) -> None:
    """Copy a SQLite file as it is at one moment, encrypted with another key.

    Raises:
        StorageError: it is damaged, cannot be opened, or cannot be written.
    """
    errors = user_errors(name, source, "restore another archive", key)
    with errors, closing(connect(source, key=key)) as db:
        connect(target, key=new).close()
        db.execute("ATTACH ? AS new KEY ?", (str(target), key_text(new)))
        db.execute("BEGIN")
        copy_to_attached(db)
        db.execute("COMMIT")
        (found,) = db.execute("PRAGMA new.integrity_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"its copy is damaged: {found}")
        db.execute("DETACH new")


def _stores(home: Home) -> dict[str, AdapterStore]:
    return {"personal": home.personal_adapters, "shared": home.shared_adapters}


# Reading ----------------------------------------------------------------------------


def read_archive(
    path: Path,
    profile: str | None = None,
    *,
    root: Path | None = None,
    identities: list[Any] | None = None,
    passphrase: str | None = None,
    lock: Lock = "auto",
    lock_passphrase: str | None = None,
) -> tuple[Home, Archived]:
    """Make a new profile of an archive; it is there whole and checked, or not at all.

    Args:
        path: the archive.
        profile: the new profile's name; None for the name that it had.
        root: the folder of all homes; None for the usual one.
        identities: open an archive for recipients, see `archive_format.read_identities`.
        passphrase: opens another.
        lock: what keeps the new profile's keys.
        lock_passphrase: for kind `passphrase`; None asks for it.

    Raises:
        ConfigError: the profile's name is not allowed.
        DataError: the archive is damaged, of a newer pfi, not for this key, or no archive.
        StorageError: there is such a profile, or the folder cannot be written.
    """
    asked = home_path(profile or "x", root)  # raises if it is no name
    base = asked.parent
    if profile:
        _refuse_existing(asked)
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(base / _LOCK):
        for left in base.glob(f"{_READING}*"):
            _remove(left)  # of a run that was killed
        place = base / f"{_READING}{secrets.token_hex(6)}"
        try:
            place.mkdir(mode=0o700)
            reading = Reading(path, identities or [], passphrase)
            home = Home(profile or "restored", place, HomeConfig())
            home.__dict__["keys"] = make_keys(place, lock, lock_passphrase)
            try:
                archived = _fill(home, reading)
            except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
                what = "the archive is damaged: a part of it is no JSON, or nested too deeply"
                raise DataError(what, path=path) from error
            _refuse_existing(target := home_path(profile or archived.name, root))
            sync_folder(place)
            place.rename(target)
            sync_folder(base)
        except OSError as error:
            what = f"the profile cannot be made: {error.strerror or error}"
            raise StorageError(what, where=str(base)) from error
        finally:
            _remove(place)
    return open_home(target.name, root=root), archived


def _fill(home: Home, reading: Reading) -> Archived:
    """Put all of an archive into a home that has keys, and check it."""
    where = str(reading.path)
    config: HomeConfig | None = None
    files: dict[str, dict[str, bytes]] = {}
    trails: dict[str, Any] = {}
    for name, member in reading.members():
        if name in (form.VAULT, form.TEACHER):
            member.copy(home.path / f"{name}{_MOVED}")
            _take_database(home, reading, name)
        elif name == form.CONFIG:
            config = _config(member.read(), where)
        elif name == form.LEDGER:
            home.open_ledger().restore(member.lines(), device=home.profile)
        elif name.startswith("adapters/"):
            _, kind, version, *rest = name.split("/")
            if not rest:
                trails[kind] = member.read()
            else:
                if files.keys() - {f"{kind}/{version}"}:  # which would be kept in memory
                    raise DataError("the archive is damaged: files are missing", path=where)
                files.setdefault(f"{kind}/{version}", {})[rest[0]] = member.read()
                _take_version(home, files, f"{kind}/{version}", where)
        else:  # the gate's choices and statements, which are as they were
            data = member.read()
            json.loads(data)
            target = home.path / name
            target.parent.mkdir(exist_ok=True)
            write_atomic(target, data, private=True)
    assert reading.head is not None
    if config is None or files or not home.vault_file.exists():
        raise DataError("the archive is damaged: files are missing", path=where)
    return _check(home, reading, config, trails)


class _Plain(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can make more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _config(data: bytes, where: str) -> HomeConfig:
    try:
        config = HomeConfig.model_validate(yaml.load(data, _Plain) or {})
        teacher = config.augment.get("teacher")
        if isinstance(teacher, dict):
            # Which of this machine's variables is sent as a key is not for an archive to say.
            teacher.pop("api_key_env", None)
        return config
    except RecursionError as error:
        raise DataError("the archive's settings make no sense: too deep", path=where) from error
    except (yaml.YAMLError, ValidationError) as error:
        what = f"the archive's settings make no sense: {one_line(error)}"
        raise DataError(what, path=where) from error


def _take_database(home: Home, reading: Reading, name: str) -> None:
    """Encrypt a SQLite file of the archive with the home's key."""
    assert reading.head is not None
    moved, target = home.path / f"{name}{_MOVED}", home.path / name
    kind = name.partition(".")[0]
    key = home.keys.database(kind)
    if not moved.stat().st_size:
        raise DataError(f"the archive is damaged: {name} is empty", path=reading.path)
    try:
        copy_database(kind, moved, bytes.fromhex(reading.head.database), target, key)
        with closing(connect(target, key=key)) as db:
            db.execute("PRAGMA journal_mode = WAL")  # as ours are; it stays with the file
        if name == form.VAULT:
            with Vault(target, key=key) as vault:
                for store in _stores(home):  # which count their changes from the start again
                    vault.set_setting(f"adapters.{store}", None)
                vault.set_setting(TOKENS, None)  # made for the device that it came from
                vault.set_setting(ledger_head.SETTING, None)  # of lines that were read before
    except StorageError as error:
        newer = error.fix == "update pfi"
        what = error.what if newer else f"the archive is damaged: {error.what}"
        raise DataError(what, path=reading.path, fix=error.fix if newer else None) from error
    moved.unlink()


def _take_version(home: Home, files: dict[str, dict[str, bytes]], place: str, where: str) -> None:
    """Store a version of an adapter once all of its files are there."""
    found = files[place]
    try:
        manifest = Manifest.model_validate_json(found["manifest.json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"the archive is damaged: {place} has no manifest", path=where) from error
    if len(found) <= len(manifest.sha256):
        return
    kind = place.partition("/")[0]
    rest = {name: data for name, data in found.items() if name != "manifest.json"}
    try:
        _stores(home)[kind].restore(rest, manifest)
    except StorageError as error:
        raise DataError(f"the archive is damaged: {place}: {error.what}", path=where) from error
    del files[place]


def _check(home: Home, reading: Reading, config: HomeConfig, trails: dict[str, Any]) -> Archived:
    """Finish a home whose files are all there, and open everything once."""
    assert reading.head is not None
    head, adapters = reading.head, 0
    try:
        with Vault(home.vault_file, key=home.keys.database("vault")) as vault:
            records = vault.count()
        if home.teacher_file.exists():
            home.open_teacher_store().close()
        home.open_ledger().check()
        for kind, store in _stores(home).items():
            known = {*store.versions(), None}
            found = json.loads(trails.get(kind, b"{}"))
            store.reset({task: [v for v in trail if v in known] for task, trail in found.items()})
            for version in store.versions():
                store.verify(version)
                adapters += 1
    except (PfiError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"the archive is damaged: {error}", path=str(reading.path)) from error
    home.memory_folder.mkdir(exist_ok=True)
    Home(home.profile, home.path, config).save_config()
    size = reading.path.stat().st_size
    return Archived(head.name, head.public[:16], head.created, size, records, adapters)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        fix = "choose another name with --profile"
        raise StorageError(f"profile {path.name!r} exists", where=str(path), fix=fix)


def _remove(place: Path) -> None:
    """Remove a home that was not finished, and its keys."""
    if place.exists():
        if (place / KEYS).exists():
            with suppress(StorageError):
                drop_keys(place)
        shutil.rmtree(place, ignore_errors=True)
