"""Encrypting a home that an older pfi made in plain files.

Each file is written anew, synced and renamed into its place, and a mark is there until all are
done: after a kill at any point the next opening goes on.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from pfi._util.files import locked, sync_folder, write_atomic
from pfi._util.sqlite import connect, copy_to_attached, is_plain, key_text, sqlite3, user_errors
from pfi.errors import StorageError
from pfi.profile.home import Home
from pfi.profile.keys.keys import KEYS, LOCK, make_keys
from pfi.profile.keys.unlock import Lock

UNFINISHED = "encrypting"  # there while plain files may be left
BUSY_SECONDS = 5.0
_SUFFIXES = ("", "-journal", "-wal", "-shm")


def is_encrypted(home: Home) -> bool:
    """Whether nothing plain is left of what an older pfi wrote."""
    return (home.path / KEYS).exists() and not (home.path / UNFINISHED).exists()


def encrypt_home(home: Home, lock: Lock = "auto", passphrase: str | None = None) -> None:
    """Make the keys of a home that has none, and encrypt what it holds.

    Args:
        home: the device.
        lock: what keeps the secret of the keys.
        passphrase: for kind `passphrase`; None asks for it.

    Raises:
        ConfigError: see `make_keys`.
        StorageError: a file is damaged or in use, or the keys are lost; nothing else is, and
            the next call goes on.
    """
    mark = home.path / UNFINISHED
    with locked(home.path / LOCK):
        if not (home.path / KEYS).exists():
            _check_never_encrypted(home)
            write_atomic(mark, "")
            make_keys(home.path, lock, passphrase)
        if not mark.exists():
            return  # somebody else did it while we waited
        for name, file in (("vault", home.vault_file), ("teacher store", home.teacher_file)):
            encrypt_file(name, file, home.keys.database(name.split()[0]))
        for suffix in _SUFFIXES:  # only a copy: it is built again when it is missing
            Path(f"{home.memory_file}{suffix}").unlink(missing_ok=True)
        for left in home.path.glob(".*.tmp"):  # of writes that were killed
            left.unlink(missing_ok=True)
        home.open_ledger().seal_texts(device=home.profile)
        if home.vault_file.exists():  # which knows how far the stores are
            _seal_adapters(home)
        mark.unlink()
        sync_folder(home.path)


def _seal_adapters(home: Home) -> None:
    for store in (home.personal_adapters, home.shared_adapters):
        try:
            store.migrate()
        except StorageError as error:
            fix = "restore it from a backup, or remove the folder of that version, and try again"
            raise StorageError(error.what, where=error.where, fix=fix) from error


def encrypt_file(name: str, path: Path, key: bytes) -> None:
    """Encrypt a SQLite file where it lies; one that is encrypted or missing is left as it is.

    Args:
        name: what it is to the user.
        path: the file.
        key: 32 bytes.

    Raises:
        StorageError: it is damaged or in use; it is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    for suffix in _SUFFIXES:  # of a run that was killed
        Path(f"{new}{suffix}").unlink(missing_ok=True)
    if not path.exists() or not is_plain(path):
        return
    with user_errors(name, path, "start anew"):
        db = connect(path, busy_seconds=BUSY_SECONDS)
        with closing(db):
            # Takes the log into the file and removes it; fails while others use the file.
            if db.execute("PRAGMA journal_mode = DELETE").fetchone()[0] != "delete":
                raise sqlite3.OperationalError("the database is locked")
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # until it is closed
            connect(new, key=key).close()
            db.execute("ATTACH ? AS new KEY ?", (str(new), key_text(key)))
            db.execute("BEGIN EXCLUSIVE")
            copy_to_attached(db)
            wanted = _counts(db, "main")
            db.execute("COMMIT")
            db.execute("DETACH new")
            with closing(connect(new, key=key)) as copy:
                copy.execute("PRAGMA journal_mode = WAL")  # as ours are; it stays with the file
                (found,) = copy.execute("PRAGMA integrity_check").fetchone()
                if found != "ok" or _counts(copy, "main") != wanted:
                    raise sqlite3.DatabaseError(f"its encrypted copy is not the same: {found}")
            new.replace(path)  # nobody wrote to the old one since it was read: it is still locked
    sync_folder(path.parent)


def _counts(db: sqlite3.Connection, schema: str) -> dict[str, int]:
    """The number of rows by table."""
    names = db.execute(f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'").fetchall()
    query = f'SELECT count(*) FROM {schema}."{{}}"'
    return {name: db.execute(query.format(name)).fetchone()[0] for (name,) in names}


def _check_never_encrypted(home: Home) -> None:
    """Refuse a home whose keys are lost: new ones would open nothing of it."""
    for file in (home.vault_file, home.teacher_file):
        if file.exists() and file.stat().st_size and not is_plain(file):
            raise StorageError(
                "the keys of this profile are missing, and its files are encrypted with them",
                where=str(home.path / KEYS),
                fix="restore keys.json from a backup; without it they cannot be read",
            )
