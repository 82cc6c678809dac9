"""The ledger: the append-only list of everything that left a device.

Each line is one entry as JSON and holds the hash of the line before (a hash chain), so that a
changed, removed or inserted entry is found.  `leave` is the only way out of a device.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pfi.errors import StorageError
from pfi.files import sync_folder

T = TypeVar("T")
FIRST = "0" * 64  # what the first entry has for `previous`
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that left a device.

    Attributes:
        n: number of the entry, from 1.
        time: when, ISO 8601 in UTC.
        device: whose device it left.
        to: the host that it was sent to.
        kind: what it is, e.g. ``teacher call``.
        policy: the protection it was under, e.g. ``redact``.
        bytes: size of the payload.
        sha256: of the payload (text as UTF-8).
        payload: the text that left, whole; None for binary payloads.
        previous: `hash` of the entry before; zeros for the first.
        hash: sha256 of the canonical JSON of all the other values.
    """

    n: int
    time: str
    device: str
    to: str
    kind: str
    policy: str
    bytes: int
    sha256: str
    payload: str | None
    previous: str
    hash: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


class Ledger:
    """The ledger in the file `path`, which the first entry makes.

    Any number of threads and processes may append to one file.  Each entry is on the disk
    before `append` returns.  A chain finds changes; it cannot find that the newest entries were
    cut off, or that somebody wrote the whole file anew.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(
        self,
        *,
        device: str,
        to: str,
        kind: str,
        policy: str,
        payload: str | bytes | Mapping[str, Any],
    ) -> Entry:
        """Write one entry and wait until it is on the disk.

        A last line torn by a crash is dropped: what it announced was never sent.

        Raises:
            StorageError: the ledger cannot be written, or its last entry is damaged.
        """
        if isinstance(payload, Mapping):
            payload = canonical(payload)
        data, text = (payload, None) if isinstance(payload, bytes) else (_utf8(payload), payload)
        about: dict[str, Any] = {"device": device, "to": to, "kind": kind, "policy": policy}
        about |= {"payload": text, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        try:
            with self._locked() as file:
                end, last = self._last(file)
                entry = {
                    **about,
                    "n": last.n + 1 if last else 1,
                    "time": datetime.now(UTC).isoformat(timespec="microseconds"),
                    "previous": last.hash if last else FIRST,
                }
                entry["hash"] = _hash(entry)
                self._write(file, end, f"{canonical(entry)}\n".encode())
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was sent: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        return Entry(**entry)

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first, one in memory at a time; see `verify` for the chain.

        Raises:
            StorageError: a line is no entry, or the file cannot be read.
        """
        for number, line in self._lines():
            yield self._parse(line, number)

    def verify(self) -> int:
        """Check every entry and the chain; the number of entries.

        Raises:
            StorageError: names the first line that is not as it was written.
        """
        count, previous = 0, FIRST
        for number, line in self._lines():
            entry = self._parse(line, number)
            wrong = _fault(entry, line)
            if not wrong and (entry.n, entry.previous) != (count + 1, previous):
                wrong = "does not follow the entry before it (one was changed, removed or added)"
            if wrong:
                raise self._damaged(number, wrong)
            count, previous = entry.n, entry.hash
        return count

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):  # else: being written, or torn by a crash
                        yield number, line[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            what = f"the ledger cannot be read: {error.strerror}"
            raise StorageError(what, where=str(self.path)) from error

    def _parse(self, line: bytes, number: int | None) -> Entry:
        try:
            values = json.loads(line)
            entry = Entry(**values)
        except (ValueError, TypeError) as error:
            raise self._damaged(number, "is not an entry") from error
        kinds: dict[str, Any] = {"n": int, "bytes": int, "payload": (str, type(None))}
        if any(not isinstance(values[f.name], kinds.get(f.name, str)) for f in fields(Entry)):
            raise self._damaged(number, "has a value of the wrong kind")
        return entry

    def _damaged(self, number: int | None, what: str) -> StorageError:
        line = f"line {number}" if number else "the last line"
        return StorageError(
            f"the ledger is damaged: {line} {what}",
            where=str(self.path),
            fix="keep the file as evidence under another name; the next entry starts a new one",
        )

    def _last(self, file: int) -> tuple[int, Entry | None]:
        """Where the next entry goes, and the entry before it; reads only the last line."""
        position = os.lseek(file, 0, os.SEEK_END)
        tail = b""
        while position and tail.count(b"\n") < 2:
            step = min(position, max(_BLOCK, len(tail)))  # doubling: long lines stay linear
            position -= step
            os.lseek(file, position, os.SEEK_SET)
            tail = _read(file, step) + tail
        if b"\n" not in tail:  # nothing, or only a torn first line
            return 0, None
        stop = tail.rindex(b"\n")
        line = tail[tail.rfind(b"\n", 0, stop) + 1 : stop]
        entry = self._parse(line, None)
        if wrong := _fault(entry, line):
            raise self._damaged(None, wrong)
        return position + stop + 1, entry

    def _write(self, file: int, end: int, data: bytes) -> None:
        try:
            os.ftruncate(file, end)
            os.lseek(file, end, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
            if end == 0:
                sync_folder(self.path.parent)
        except OSError:
            os.ftruncate(file, end)  # e.g. the disk is full; nothing was sent
            raise

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, for this thread of this process alone."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        file = os.open(self.path, flags, 0o600)
        try:
            with _lock(file):
                yield file
        finally:
            os.close(file)


def leave(
    ledger: Ledger,
    *,
    device: str,
    to: str,
    kind: str,
    policy: str,
    payload: str | bytes | Mapping[str, Any],
    send: Callable[[], T],
) -> T:
    """Let something leave a device: write the ledger, then call `send` and return its result.

    The entry is on the disk before `send` starts, so that nothing can leave without one.  An
    entry whose sending failed stays: the payload may have left in part.

    Args:
        device: whose device it leaves.
        to: the host that gets it.
        kind: what it is, e.g. ``teacher call``.
        policy: the protection it is under, e.g. ``redact``.
        payload: what `send` sends; a mapping is noted as JSON, bytes by hash and size only.

    Raises:
        StorageError: the ledger cannot be written; nothing was sent.
    """
    ledger.append(device=device, to=to, kind=kind, policy=policy, payload=payload)
    return send()


def canonical(value: Mapping[str, Any]) -> str:
    """The one spelling of a JSON object that hashes are taken of: ASCII, sorted, compact.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(entry: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


def _fault(entry: Entry, line: bytes) -> str | None:
    """What is wrong with an entry and its line by themselves."""
    values = entry.to_dict()
    if _hash(values) != entry.hash or canonical(values).encode() != line:
        return "was changed after it was written"
    if entry.payload is not None:
        data = _utf8(entry.payload)
        if (len(data), hashlib.sha256(data).hexdigest()) != (entry.bytes, entry.sha256):
            return "holds another payload than it says"
    return None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate must not stop the ledger


def _read(file: int, count: int) -> bytes:
    parts = []
    while count and (part := os.read(file, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


@contextmanager
def _lock(file: int) -> Iterator[None]:
    """Hold the file's exclusive lock; waits for it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        def at(mode: int) -> None:
            # Far behind the end, as locked bytes cannot be read by others.
            os.lseek(file, 1 << 40, os.SEEK_SET)
            msvcrt.locking(file, mode, 1)  # type: ignore[attr-defined]

        while True:
            try:
                at(msvcrt.LK_NBLCK)  # type: ignore[attr-defined]
                break
            except OSError:
                time.sleep(0.01)
        try:
            yield
        finally:
            at(msvcrt.LK_UNLCK)  # type: ignore[attr-defined]
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Not left to close(): a process forked meanwhile would keep the lock.
        fcntl.flock(file, fcntl.LOCK_UN)
