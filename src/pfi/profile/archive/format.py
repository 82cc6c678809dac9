"""What an archive of a profile is: a tar file within an age file (age-encryption.org/v1).

The first member says which format it is, the last one lists the SHA-256 of all others and is
signed by the device.  Names other than those below are refused, paths out of the folder among them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import ConfigError, DataError

FORMAT = 1
PURPOSE = "pfi archive"
HEAD, MANIFEST = "archive.json", "manifest.json"
CONFIG, GATE, VAULT, TEACHER, LEDGER = (
    "config.yaml",
    "gate.json",
    "vault.db",
    "teacher.db",
    "ledger.jsonl",
)
_KIND = r"adapters/(personal|shared)"
_NAMES = re.compile(
    rf"{HEAD}|{MANIFEST}|{CONFIG}|{GATE}|{VAULT}|{TEACHER}|{LEDGER}"
    rf"|erasures/\w[\w-]*\.json|{_KIND}/active\.json|{_KIND}/\d{{4,}}/\w[\w.-]*",
    re.ASCII,
)
_AGE = b"age-encryption.org/v1\n"
_BLOCK = 1 << 16
#: Bytes of what is read into memory: settings, lists and statements, ...
_MOST_JSON = 16 << 20
#: ... and a file of an adapter.
_MOST_READ = 1 << 30
#: Bytes of a line of the ledger.
_MOST_LINE = 64 << 20
#: Bytes of what tar says of a member beside its header.
_MOST_EXTENDED = 1 << 14
_FIX = "take another copy of the archive"


class Head(BaseModel):
    """What `archive.json` holds.

    Attributes:
        format: of the archive.
        what: that it is one.
        created: when, ISO 8601 in UTC.
        version: of the pfi that wrote it.
        name: of the profile.
        profile: its random id.
        public: what its signatures are checked with, as hex.
        database: the key of the SQLite files in this archive alone, as hex.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    what: str = PURPOSE
    created: str
    version: str
    name: str
    profile: str = Field(pattern=r"^[0-9a-f]{32}$")
    public: str = Field(pattern=r"^[0-9a-f]{64}$")
    database: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)


# Writing ----------------------------------------------------------------------------


class TarReader(io.RawIOBase):
    """A tar file that is made while it is read, so that it is nowhere as a whole.

    Args:
        members: name and content of each, or the file that holds it.

    Attributes:
        sums: SHA-256 and size of what was read so far, by name.
        error: what making a member raised; readers in other languages may not pass it on.
    """

    def __init__(self, members: Iterator[tuple[str, bytes | Path]]) -> None:
        self.sums: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None
        self._pieces = self._all(members)
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        """Up to so many bytes; none at the end."""
        try:
            while not self._left:
                self._left = next(self._pieces)
        except StopIteration:
            return b""
        except Exception as error:
            self.error = error
            raise
        size = len(self._left) if size < 0 else size
        found, self._left = self._left[:size], self._left[size:]
        return found

    def _all(self, members: Iterator[tuple[str, bytes | Path]]) -> Iterator[bytes]:
        for name, content in members:
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            info = tarfile.TarInfo(name)
            info.size, info.mode = size, 0o600
            yield info.tobuf(tarfile.PAX_FORMAT)
            found, read = hashlib.sha256(), 0
            for piece in [content] if isinstance(content, bytes) else _pieces(content):
                found.update(piece)
                read += len(piece)
                if piece:
                    yield piece
            if read != size:
                raise DataError("the file changed while it was read", path=str(content))
            self.sums[name] = {"sha256": found.hexdigest(), "bytes": size}
            if rest := -size % tarfile.BLOCKSIZE:
                yield bytes(rest)
        yield bytes(2 * tarfile.BLOCKSIZE)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_BLOCK):
            yield piece


def encrypt(members: TarReader, out: IO[bytes], to: list[str], passphrase: str | None) -> None:
    """Write the archive: for recipients piece by piece, for a passphrase from memory.

    Args:
        members: what goes in.
        out: where it goes.
        to: age's X25519 recipients, `age1...`; none: the passphrase.
        passphrase: where there are no recipients.

    Raises:
        ConfigError: a recipient is none.
    """
    import pyrage

    try:
        if to:
            pyrage.encrypt_io(members, out, recipients(to))
            return
        parts = []
        while piece := members.read():
            parts.append(piece)
        out.write(pyrage.passphrase.encrypt(b"".join(parts), passphrase))
    except pyrage.EncryptError:
        if members.error:
            raise members.error from None
        raise


def recipients(to: list[str]) -> list[Any]:
    """age's recipients.

    Raises:
        ConfigError: one is none.
    """
    import pyrage

    found = []
    for text in to:
        try:
            found.append(pyrage.x25519.Recipient.from_str(text.strip()))
        except pyrage.RecipientError as error:
            what = f"{text!r} is no recipient of age"
            raise ConfigError(what, where="--to", fix="give a public key, age1...") from error
    return found


def read_identities(path: Path) -> list[Any]:
    """The X25519 identities in a file as `age-keygen` writes it.

    Raises:
        DataError: there is none.
    """
    import pyrage

    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error
    found = []
    for line in filter(None, map(str.strip, lines)):
        if not line.startswith("#"):
            with suppress(pyrage.IdentityError):
                found.append(pyrage.x25519.Identity.from_str(line))
    if not found:
        fix = "give the file that `age-keygen` wrote"
        raise DataError("holds no identity of age", path=path, fix=fix)
    return found


# Reading ----------------------------------------------------------------------------


def wants_passphrase(path: Path) -> bool:
    """Whether an archive was made for a passphrase.

    Raises:
        DataError: it is no age file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_AGE) + 100)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    if not head.startswith(_AGE):
        raise DataError("this is no archive of pfi", path=path, fix="see `pfi export archive`")
    return head[len(_AGE) :].startswith(b"-> scrypt ")


@dataclass
class Reading:
    """An archive that is being read: its members in order, then whether all was right.

    Attributes:
        path: the file.
        head: what its first member says, once that is read.
        sums: SHA-256 and size of what was read so far, by name.
    """

    path: Path
    identities: list[Any] = field(default_factory=list, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    head: Head | None = None
    sums: dict[str, dict[str, Any]] = field(default_factory=dict)
    _failed: Exception | None = None

    def members(self) -> Iterator[tuple[str, _Member]]:
        """Name and content of each member but the first and the last; each is to be read whole.

        Raises:
            DataError: the archive is damaged, of a newer pfi, not for this key, or no archive.
        """
        listed = None
        for name, member in self._decrypted():
            if (name == HEAD) is not (self.head is None) or listed is not None:
                raise self._damaged("its parts are not in order")
            if name == HEAD:
                self.head = self._read_head(member.read())
            elif name == MANIFEST:
                listed = member.read()
                continue
            else:
                yield name, member
            self.sums[name] = member.sum
        self._check(listed)

    def _read_head(self, data: bytes) -> Head:
        try:
            values = json.loads(data)
            if values["what"] != PURPOSE:
                raise ValueError("another file")
            if int(values["format"]) > FORMAT:
                what = f"the archive has format {values['format']}, this pfi reads up to {FORMAT}"
                raise DataError(what, path=self.path, fix="update pfi")
            return Head.model_validate(values)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged("it does not say what it is") from error

    def _check(self, listed: bytes | None) -> None:
        """Compare what was read with the signed list of it."""
        from pfi.privacy.crypto.signing import without_signature

        if self.head is None:
            raise DataError("this is no archive of pfi", path=self.path)
        if listed is None:
            raise self._damaged("its end is missing")
        try:
            found = without_signature(bytes.fromhex(self.head.public), PURPOSE, json.loads(listed))
        except (ValueError, TypeError, AttributeError, RecursionError):
            found = None
        if found is None:
            raise self._damaged("its list of files was changed: the signature is wrong")
        if found.get("files") != self.sums:
            raise self._damaged("a file in it is not the one that was put in")

    def _decrypted(self) -> Iterator[tuple[str, _Member]]:
        """Every member of the tar file, while another thread decrypts it."""
        into, out = os.pipe()
        worker = threading.Thread(target=self._decrypt, args=(out,), daemon=True)
        worker.start()
        try:
            with os.fdopen(into, "rb") as stream:
                yield from self._tar(stream)
                while stream.read(_BLOCK):  # the padding; age checks its end as well
                    pass
        except tarfile.TarError as error:
            worker.join()
            raise self._why() or self._damaged(f"it is no tar file: {error}") from error
        worker.join()
        if why := self._why():
            raise why

    def _tar(self, stream: IO[bytes]) -> Iterator[tuple[str, _Member]]:
        seen: set[str] = set()
        whole = self.path.stat().st_size  # nothing in it is compressed
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Plain) as tar:
            for info in tar:
                # Sparse members count as regular files, and may say that they are of any size.
                plain = info.isreg() and not info.issparse() and info.size <= whole
                if not plain or not _NAMES.fullmatch(info.name) or info.name in seen:
                    raise self._damaged(f"{info.name[:100]!r} is no part of an archive")
                seen.add(info.name)
                content = tar.extractfile(info)
                assert content is not None
                most = _MOST_JSON if info.name.endswith((".json", ".yaml")) else _MOST_READ
                member = _Member(content, info.size, most, self._torn)
                yield info.name, member
                while member.piece():  # what the caller had no use for
                    pass

    def _decrypt(self, out: int) -> None:
        """Write the tar file into a pipe; what fails is kept for the reader."""
        import pyrage

        pipe = os.fdopen(out, "wb")
        try:
            if self.passphrase is not None:
                pipe.write(pyrage.passphrase.decrypt(self.path.read_bytes(), self.passphrase))
            else:
                with self.path.open("rb") as file:
                    pyrage.decrypt_io(file, pipe, self.identities)
        except (pyrage.DecryptError, OSError) as error:
            self._failed = error  # before the reader sees the end
        finally:
            with suppress(OSError):
                pipe.close()

    def _why(self) -> DataError | None:
        """What decrypting failed of."""
        if self._failed is None or "Broken pipe" in str(self._failed):
            return None
        text = str(self._failed)
        if text == "Decryption failed":
            return DataError("the passphrase is wrong", path=self.path, fix="try again")
        if text == "No matching keys found":
            what = "the archive was not made for this identity"
            return DataError(what, path=self.path, fix="give the one of its recipient")
        return self._damaged("it was cut short or changed")

    def _torn(self) -> DataError:
        return self._why() or self._damaged("it was cut short")

    def _damaged(self, what: str) -> DataError:
        return DataError(f"the archive is damaged: {what}", path=self.path, fix=_FIX)


class _Plain(tarfile.TarInfo):
    """A member of which tar says little beside its header: all of that is read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > _MOST_EXTENDED:
            raise tarfile.ReadError(f"{self.name[:100]!r} is no regular file")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


class _Member:
    """One member of an archive, read once.

    Args:
        content: of it.
        size: in bytes, as its header says.
        most: bytes that may be read into memory.
        torn: makes the error of a content that ends early.
    """

    def __init__(
        self, content: IO[bytes], size: int, most: int, torn: Callable[[], DataError]
    ) -> None:
        self._content, self._size, self._most, self._torn = content, size, most, torn
        self._found, self._read = hashlib.sha256(), 0

    @property
    def sum(self) -> dict[str, Any]:
        """SHA-256 and size of what was read."""
        return {"sha256": self._found.hexdigest(), "bytes": self._read}

    def piece(self) -> bytes:
        """The next bytes; none at the end."""
        try:
            found = self._content.read(_BLOCK)
        except tarfile.TarError as error:
            raise self._torn() from error
        if not found and self._read != self._size:
            raise self._torn()
        self._found.update(found)
        self._read += len(found)
        return found

    def read(self) -> bytes:
        """All of it.

        Raises:
            DataError: it is larger than anything that pfi writes.
        """
        if self._size > self._most:
            raise DataError(f"the archive is damaged: a part of it has {self._size} bytes")
        parts = []
        while piece := self.piece():
            parts.append(piece)
        return b"".join(parts)

    def lines(self) -> Iterator[bytes]:
        """Its lines without their ends, each as it is needed.

        Raises:
            DataError: a line is longer than anything that pfi writes.
        """
        left = b""
        while piece := self.piece():
            *whole, left = (left + piece).split(b"\n")
            yield from whole
            if len(left) > _MOST_LINE:
                raise DataError("the archive is damaged: a line of the ledger has no end")
        if left:
            yield left

    def copy(self, path: Path) -> None:
        """Write it into a new file that only its owner can read."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            while piece := self.piece():
                file.write(piece)
