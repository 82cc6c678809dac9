"""The ledger: the append-only list of everything that left a device.

Each line is one entry as JSON and holds the hash of the line before (a hash chain), so that a
changed, removed or inserted entry is found.  `send_logged` is the only way out of a device.  The
text of an entry is sealed where the ledger has a key, and can be erased; that it was sent, its
size and its hash stay readable, so that the chain can be checked without the key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pfi.errors import StorageError
from pfi.privacy.crypto.sealing import SealError, seal, unseal
from pfi.privacy.ledger.anchor import Anchor, Head, departure
from pfi.privacy.ledger.entries import (
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
from pfi.privacy.ledger.file import LedgerFile

T = TypeVar("T")
ERASURE = "erasure"  # the kind of an entry that names others whose text was erased
SEALING = "sealing"  # the kind of an entry that names others whose text was sealed later
_NOTES = (ERASURE, SEALING)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check found.

    Attributes:
        entries: how many there are.
        erased: of how many of them the text was erased.
        unread: of how many the text is sealed and, without its key, was not compared with its
            hash.
    """

    entries: int
    erased: int
    unread: int = 0


class Ledger:
    """The ledger in the file `path`, which the first entry makes.

    Args:
        path: the file.
        key: 32 bytes that texts are sealed with; without it those that are sealed are not read,
            and new ones are written plainly.
        context: whose ledger it is; bound into what is sealed.
        anchor: keeps the newest entry's number and hash elsewhere.

    Any number of threads and processes may append to one file.  Each entry is on the disk
    before `append` returns.  A chain finds changes; that the newest entries were cut off, or
    that somebody wrote the whole file anew, is found where there is an anchor.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: bytes | None = None,
        context: str = "ledger",
        anchor: Anchor | None = None,
    ) -> None:
        self.path, self._key, self._context, self._anchor = Path(path), key, context, anchor
        self._file = LedgerFile(self.path)

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
            device, to, kind, policy, payload: see `send_logged`.
            shows: ids of the records that the payload tells of; None if that is not known.

        Raises:
            StorageError: the ledger cannot be written, its last entry is damaged, or it is not
                the one that its anchor knows.
        """
        # Asked before and told after the lock: the anchor has a lock of its own.
        head = self._anchor.read() if self._anchor else None
        about = _about(payload, device=device, to=to, kind=kind, policy=policy)
        if shows is not None:
            about["shows"] = tuple(sorted({fingerprint(id_) for id_ in shows}))
        try:
            with self._file.locked() as file:
                end, last = self._last(file)
                self._refuse_departure(head, last)
                entry = self._sealed(next_entry(about, last))
                self._file.write(file, end, line_of(entry))
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was sent: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        if self._anchor:
            self._anchor.tell(Head(entry.n, entry.hash))
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
            with self._file.locked() as file:
                _, last = self._last(file, cut=True)
                lines: dict[int, bytes] = {}
                seals: dict[str, str | None] = {}
                for number, line in self._file.lines():
                    entry = self._parse(line, number)
                    bare = entry.payload is None and entry.cipher is None
                    if bare or entry.kind in _NOTES or not wanted(entry):
                        continue
                    lines[number] = line_of(replace(entry, payload=None, cipher=None))
                    # An old hash covers the text as well; what is left needs another one.
                    seals[str(entry.n)] = None if entry.intact else digest(lines[number][:-1])
                if lines:
                    about = _note(ERASURE, seals, device)
                    self._file.rewrite(lines, line_of(next_entry(about, last)))
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was erased: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        return len(lines)

    def seal_texts(self, *, device: str) -> int:
        """Seal the texts that were written before the ledger had a key; how many there were.

        All at once, by a rename.  The hashes stay; where one covers the text as well, as earlier
        versions took it, a new entry notes what the line is now.

        Raises:
            StorageError: the ledger is damaged, or cannot be written.
        """
        if not self.path.exists():
            return 0
        try:
            with self._file.locked() as file:
                _, last = self._last(file, cut=True)
                lines: dict[int, bytes] = {}
                seals: dict[str, str | None] = {}
                for number, line in self._file.lines():
                    entry = self._parse(line, number)
                    if entry.payload is None or entry.cipher or entry.kind in _NOTES:
                        continue
                    lines[number] = line_of(self._sealed(entry))
                    if not entry.intact:
                        seals[str(entry.n)] = digest(lines[number][:-1])
                if lines:
                    about = _note(SEALING, seals, device)
                    self._file.rewrite(lines, line_of(next_entry(about, last)) if seals else b"")
        except OSError as error:
            what = f"the ledger cannot be written, so nothing was sealed: {error.strerror or error}"
            raise StorageError(what, where=str(self.path)) from error
        return len(lines)

    def plain_lines(self) -> Iterator[bytes]:
        """The lines of the file with their texts in clear, for `restore` elsewhere.

        Raises:
            StorageError: see `entries`.
        """
        for entry in self.entries():
            yield line_of(replace(entry, cipher=None))

    def restore(self, lines: Iterable[bytes], *, device: str) -> int:
        """Fill this ledger, which is empty, with `plain_lines` of another; how many they are.

        Raises:
            StorageError: it is not empty, a line is no entry, or it cannot be written.
        """
        written: list[bytes] = []
        seals: dict[str, str | None] = {}
        entry: Entry | None = None
        for number, line in enumerate(lines, 1):
            entry = self._parse(line, number)
            written.append(line_of(self._sealed(entry)))
            if entry.payload is not None and entry.kind not in _NOTES and not entry.intact:
                seals[str(entry.n)] = digest(written[-1][:-1])
        if not written:
            return 0
        count = len(written)
        if seals:
            written.append(line_of(next_entry(_note(SEALING, seals, device), entry)))
        with self._file.locked() as file:
            if self.path.stat().st_size:
                raise StorageError("the ledger is not empty", where=str(self.path))
            self._file.write(file, 0, b"".join(written))
        return count

    def _sealed(self, entry: Entry) -> Entry:
        """The entry with its text sealed, where there is a key and a text."""
        if self._key is None or entry.payload is None or entry.kind in _NOTES:
            return entry
        data = seal(self._key, utf8(entry.payload), self._bound(entry))
        return replace(entry, cipher=base64.b64encode(data).decode())

    def _bound(self, entry: Entry) -> str:
        # Not its number or hash: what was sealed for an entry opens in no other.
        return f"{self._context}|{entry.sha256}"

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first, one in memory at a time; see `verify` for the chain.

        Raises:
            StorageError: a line is no entry, or the file cannot be read.
        """
        for number, line in self._file.lines():
            yield self._parse(line, number)

    def verify(self) -> int:
        """Check every entry and the chain; the number of entries.  See `check`."""
        return self.check().entries

    def check(self) -> Verified:
        """Check every entry and the chain.

        An entry without its text is as it was written only if a later entry says that the text
        was erased.

        Raises:
            StorageError: names the first line that is not as it was written, or says that this is
                not the ledger that its anchor knows.
        """
        head = self._anchor.read() if self._anchor else None  # before others append
        found, last = self._check_chain()
        self._refuse_departure(head, last)
        if self._anchor and last is not None:
            self._anchor.tell(Head(last.n, last.hash))
        return found

    def accept(self) -> Verified:
        """Take the file as it is for the ledger from here on, whatever the anchor knows.

        Raises:
            StorageError: it is damaged in itself.
        """
        found, last = self._check_chain()
        if self._anchor:
            self._anchor.replace(None if last is None else Head(last.n, last.hash))
        return found

    def _check_chain(self) -> tuple[Verified, Entry | None]:
        """What the file alone can show, and its last entry."""
        entry: Entry | None = None
        count, erased, unread, previous = 0, 0, 0, FIRST
        bare: dict[int, str | None] = {}  # not as they were written, until that is explained
        for number, line in self._file.lines():
            entry = self._parse(line, number)
            wrong = fault(entry, line, blank=True)
            if not wrong and (entry.n, entry.previous) != (count + 1, previous):
                wrong = "does not follow the entry before it (one was changed, removed or added)"
            if wrong:
                raise self._damaged(number, wrong)
            sealed = entry.payload is None and entry.cipher is not None
            unread += sealed
            if entry.erased or (sealed and not entry.intact):
                bare[number] = None if entry.intact else digest(line)
            if entry.kind in _NOTES:
                for name, noted in self._seals(entry, number).items():
                    if name in bare and bare[name] == noted:
                        del bare[name]
                        erased += entry.kind == ERASURE
            count, previous = entry.n, entry.hash
        if bare:
            raise self._damaged(min(bare), CHANGED)
        return Verified(count, erased, unread), entry

    def _refuse_departure(self, head: Head | None, last: Entry | None) -> None:
        """Raises a StorageError where this is not the ledger that the anchor knows."""

        def entry_at(number: int) -> Entry | None:
            return next((entry for entry in self.entries() if entry.n == number), None)

        if wrong := departure(head, last, entry_at):
            fix = "restore the file; or keep a copy as evidence, and `pfi ledger verify --accept`"
            raise StorageError(f"the ledger {wrong}", where=str(self.path), fix=fix)

    def _seals(self, entry: Entry, number: int) -> dict[int, str | None]:
        """What a note says of each entry whose text was erased or sealed, by number."""
        try:
            return {
                int(name): seal for name, seal in json.loads(entry.payload or "")["entries"].items()
            }
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._damaged(number, "is not a note of what was erased or sealed") from error

    def _parse(self, line: bytes, number: int | None) -> Entry:
        try:
            values = json.loads(line)
            if isinstance(values["payload"], dict):
                values["cipher"] = values["payload"]["sealed"]
                values["payload"] = None
            entry = Entry(**values)
        except (ValueError, TypeError, LookupError) as error:
            raise self._damaged(number, "is not an entry") from error
        kinds: dict[str, Any] = {"n": int, "bytes": int, "payload": (str, type(None))}
        kinds |= {"shows": (list, type(None)), "cipher": (str, type(None))}
        if any(
            not isinstance(getattr(entry, f.name), kinds.get(f.name, str)) for f in fields(Entry)
        ):
            raise self._damaged(number, "has a value of the wrong kind")
        if entry.cipher is not None and self._key is not None:
            entry = replace(entry, payload=self._opened(entry, number))
        return entry if entry.shows is None else replace(entry, shows=tuple(entry.shows))

    def _opened(self, entry: Entry, number: int | None) -> str:
        """The text of an entry that is sealed."""
        assert self._key is not None and entry.cipher is not None
        try:
            data = base64.b64decode(entry.cipher, validate=True)
            return unseal(self._key, data, self._bound(entry)).decode("utf-8", "surrogatepass")
        except (SealError, ValueError) as error:
            what = "holds a text that does not open: it was changed, or is another profile's"
            raise self._damaged(number, what) from error

    def _damaged(self, number: int | None, what: str) -> StorageError:
        line = f"line {number}" if number else "the last line"
        return StorageError(
            f"the ledger is damaged: {line} {what}",
            where=str(self.path),
            fix="keep the file as evidence under another name; the next entry starts a new one",
        )

    def _last(self, file: int, *, cut: bool = False) -> tuple[int, Entry | None]:
        """Where the next entry goes, and the entry before it; reads only the last line.

        Args:
            file: the open file.
            cut: remove what processes that were killed left in it and beside it, which may be
                text that is to be erased or sealed.
        """
        end, line = self._file.last(file)
        if cut:
            self._file.remove_torn(file, end)
        if line is None:
            return end, None
        entry = self._parse(line, None)
        if wrong := fault(entry, line):
            raise self._damaged(None, wrong)
        return end, entry


def send_logged(
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
        kind: what it is, e.g. ``teacher`` or ``update``.
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


def _note(kind: str, seals: Mapping[str, str | None], device: str) -> dict[str, Any]:
    """What is known beforehand of an entry that tells what was done to others."""
    return _about({"entries": seals}, device=device, to="nobody", kind=kind, policy="local")
