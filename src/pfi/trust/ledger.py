"""The ledger: the append-only list of everything that left a device.

Each line is one entry as JSON and holds the hash of the line before (a hash chain), so that a
changed, removed or inserted entry is found.  `leave` is the only way out of a device.  The text
of an entry can be erased; that it was sent, its size and its hash stay.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pfi.errors import StorageError
from pfi.files import lock, sync_folder
from pfi.trust.entries import (
    CHANGED,
    FIRST,
    Entry,
    canonical,
    digest,
    fault,
    fingerprint,
    line_of,
    next_entry,
    utf8,
)

T = TypeVar("T")
ERASURE = "erasure"  # the kind of an entry that names others whose text was erased
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Verified:
    """How many entries a ledger has, and of how many of them the text was erased."""

    entries: int
    erased: int


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
        shows: Iterable[str] | None = None,
    ) -> Entry:
        """Write one entry and wait until it is on the disk.

        A last line torn by a crash is dropped: what it announced was never sent.

        Args:
            device, to, kind, policy, payload: see `leave`.
            shows: ids of the records that the payload tells of; None if that is not known.

        Raises:
            StorageError: the ledger cannot be written, or its last entry is damaged.
        """
        about = _about(payload, device=device, to=to, kind=kind, policy=policy)
        if shows is not None:
            about["shows"] = tuple(sorted({fingerprint(id_) for id_ in shows}))
        try:
            with self._locked() as file:
                end, last = self._last(file)
                entry = next_entry(about, last)
                self._write(file, end, line_of(entry))
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was sent: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        return entry

    def erase(self, wanted: Callable[[Entry], bool], *, device: str) -> int:
        """Erase the text of the entries that are `wanted`, and note their numbers in a new entry.

        Both happen at once, by a rename.  All else stays as it was written: the chain holds, and
        `check` finds any other change.

        Args:
            wanted: asked for each entry that has text.
            device: whose ledger it is.

        Returns:
            Of how many entries the text was erased.

        Raises:
            StorageError: the ledger is damaged, or cannot be written.
        """
        if not self.path.exists():
            return 0
        try:
            with self._locked() as file:
                for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                    left.unlink()  # of an erasure that was killed
                end, last = self._last(file)
                os.ftruncate(file, end)  # a line torn by a crash may hold such text
                lines: dict[int, bytes] = {}
                seals: dict[str, str | None] = {}
                for number, line in self._lines():
                    entry = self._parse(line, number)
                    if entry.payload is None or entry.kind == ERASURE or not wanted(entry):
                        continue
                    lines[number] = line_of(replace(entry, payload=None))
                    # An old hash covers the text as well; what is left needs another one.
                    seals[str(entry.n)] = digest(lines[number][:-1]) if entry.old else None
                if lines:
                    about = _about(
                        {"entries": seals},
                        device=device,
                        to="nobody",
                        kind=ERASURE,
                        policy="local",
                    )
                    self._rewrite(lines, line_of(next_entry(about, last)))
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was erased: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        return len(lines)

    def _rewrite(self, lines: Mapping[int, bytes], end: bytes) -> None:
        """Replace the file by itself with other `lines` at some numbers, and one more."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                for number, line in self._lines():
                    file.write(lines.get(number, line + b"\n"))
                file.write(end)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first, one in memory at a time; see `verify` for the chain.

        Raises:
            StorageError: a line is no entry, or the file cannot be read.
        """
        for number, line in self._lines():
            yield self._parse(line, number)

    def verify(self) -> int:
        """Check every entry and the chain; the number of entries.  See `check`."""
        return self.check().entries

    def check(self) -> Verified:
        """Check every entry and the chain.

        An entry without its text is as it was written only if a later entry says that the text
        was erased.

        Raises:
            StorageError: names the first line that is not as it was written.
        """
        count, erased, previous = 0, 0, FIRST
        bare: dict[int, str | None] = {}  # without their text, until that is explained
        for number, line in self._lines():
            entry = self._parse(line, number)
            wrong = fault(entry, line, blank=True)
            if not wrong and (entry.n, entry.previous) != (count + 1, previous):
                wrong = "does not follow the entry before it (one was changed, removed or added)"
            if wrong:
                raise self._damaged(number, wrong)
            if entry.erased:
                bare[number] = None if entry.sealed else digest(line)
            if entry.kind == ERASURE:
                for name, seal in self._seals(entry, number).items():
                    if name in bare and bare[name] == seal:
                        del bare[name]
                        erased += 1
            count, previous = entry.n, entry.hash
        if bare:
            raise self._damaged(min(bare), CHANGED)
        return Verified(count, erased)

    def _seals(self, entry: Entry, number: int) -> dict[int, str | None]:
        """What an erasure noted of each entry whose text it erased, by number."""
        try:
            return {
                int(name): seal for name, seal in json.loads(entry.payload or "")["entries"].items()
            }
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._damaged(number, "is not an erasure") from error

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
        kinds["shows"] = (list, type(None))
        if any(
            not isinstance(getattr(entry, f.name), kinds.get(f.name, str)) for f in fields(Entry)
        ):
            raise self._damaged(number, "has a value of the wrong kind")
        return entry if entry.shows is None else replace(entry, shows=tuple(entry.shows))

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
        if wrong := fault(entry, line):
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
        while True:
            file = os.open(self.path, flags, 0o600)
            try:
                with lock(file):
                    # An erasure may have put another file in its place while we waited.
                    if self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat()):
                        yield file
                        return
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
    shows: Iterable[str] | None = None,
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
        shows: ids of the records that the payload tells of, so that it can be erased with them;
            None if that is not known.

    Raises:
        StorageError: the ledger cannot be written; nothing was sent.
    """
    ledger.append(device=device, to=to, kind=kind, policy=policy, payload=payload, shows=shows)
    return send()


def _about(payload: str | bytes | Mapping[str, Any], **rest: str) -> dict[str, Any]:
    """The values of an entry that are known beforehand."""
    if isinstance(payload, Mapping):
        payload = canonical(payload)
    data, text = (payload, None) if isinstance(payload, bytes) else (utf8(payload), payload)
    return {**rest, "payload": text, "bytes": len(data), "sha256": digest(data)}


def _read(file: int, count: int) -> bytes:
    parts = []
    while count and (part := os.read(file, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
