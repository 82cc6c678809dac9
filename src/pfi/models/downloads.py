"""One file over HTTP: it goes on where it stopped, and appears whole and verified or not at all.

Ranges are those of RFC 9110; what came so far lies in a `.part` file whose name says of what.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pfi._util.files import sha256_file, sync_folder
from pfi.errors import BackboneError, StorageError

#: Told the bytes of a file that are there so far.
OnBytes = Callable[[int], None]

_TRIES = 5  # attempts in a row that bring nothing
_ASKED = 3  # attempts of a question
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds
_PIECE = 1 << 20
_MARGIN = 64 << 20  # bytes of disk that are left to others
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_AGAIN = "run the same command again, it goes on from there"


class Unreachable(BackboneError):
    """No connection to the server."""


class Refused(BackboneError):
    """The server does not give the file.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, url: str) -> None:
        self.status = status
        host = httpx.URL(url).host
        super().__init__(f"{host} answered {status}", where=url.partition("?")[0])


class _BrokenOff(Exception):
    """The connection ended early, or the server is busy: worth another try."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        name: what it is called here, without folders.
        url: where it is.
        size: bytes; None if the server has to be asked.
        sha256: 64 hex digits, where its owner tells them.
        blob: the object id that git gives it, 40 hex digits, where its owner tells that instead.
        headers: of the request, such as who asks; not sent on to another host.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def verifiable(self) -> bool:
        """Whether its content can be checked, not only its size."""
        return bool(self.sha256 or self.blob)

    def matches(self, path: Path) -> bool:
        """Whether a file here is this one, as far as can be told."""
        if self.size is not None and path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_file(path) == self.sha256
        return not self.blob or git_blob(path) == self.blob

    def part(self, folder: Path) -> Path:
        """Where what came so far lies; another version of the file has another."""
        told = self.sha256 or self.blob or f"{self.url} {self.size}"
        return folder / f".{self.name}.{hashlib.sha256(told.encode()).hexdigest()[:12]}.part"

    def present(self, folder: Path) -> int:
        """Bytes that are there already."""
        for path in (folder / self.name, self.part(folder)):
            if path.is_file():
                return path.stat().st_size
        return 0


def git_blob(path: Path) -> str:
    """The object id that git gives a file's content: 40 hex digits."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def open_client(*, cert: str | None = None, proxy: str | None = None) -> httpx.Client:
    """A client that follows redirects; proxies are as the environment says by default.

    Args:
        cert: file of the certificates that are trusted, not the usual ones.
        proxy: URL of the proxy.

    Raises:
        BackboneError: the file of certificates cannot be read.
    """
    import ssl

    try:
        verify = ssl.create_default_context(cafile=cert) if cert else True
    except OSError as error:
        raise BackboneError("the certificates cannot be read", where=cert) from error
    return httpx.Client(verify=verify, proxy=proxy, timeout=_TIMEOUT, follow_redirects=True)


def get_json(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Any:
    """What a server answers in JSON; tried again where it is busy.

    Raises:
        Refused: it answers otherwise.
        Unreachable: there is no connection.
    """
    for attempt in range(_ASKED):
        last = attempt == _ASKED - 1
        try:
            answer = client.get(url, headers=headers)
        except httpx.TransportError as error:
            if last:
                host = httpx.URL(url).host
                raise Unreachable(f"{host} cannot be reached: {error}") from error
        else:
            busy = answer.status_code == 429 or answer.status_code >= 500
            if answer.status_code == 200:
                try:
                    return answer.json()
                except ValueError as error:
                    raise Refused(200, url) from error
            if last or not busy:
                raise Refused(answer.status_code, url)
        time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def check_room(folder: Path, needed: int) -> None:
    """Look whether a disk has room for so many bytes more.

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN:
        raise StorageError(
            f"the disk has {free >> 20} MiB free, and {(needed + _MARGIN) >> 20} MiB are needed",
            where=str(folder),
            fix="free some, or set PFI_HOME to a folder on another disk",
        )


def download(
    client: httpx.Client, remote: RemoteFile, folder: Path, on_bytes: OnBytes = lambda count: None
) -> Path:
    """Fetch a file into a folder; it goes on where an earlier call was stopped.

    Args:
        client: see `open_client`.
        remote: the file.
        folder: where it shall be.
        on_bytes: told how many bytes are there.

    Raises:
        Refused: the server does not give it.
        Unreachable: there is no connection.
        BackboneError: the connection breaks off again and again, or what comes is not the file.
        StorageError: the disk is full.
    """
    target, part = folder / remote.name, remote.part(folder)
    if target.is_file():
        if remote.matches(target):
            on_bytes(target.stat().st_size)
            return target
        target.unlink()
    resumed = part.is_file()
    _fetch(client, remote, part, on_bytes)
    if not remote.matches(part) and resumed:  # what was there may have been damaged
        part.unlink()
        _fetch(client, remote, part, on_bytes)
    if not remote.matches(part):
        part.unlink()
        raise BackboneError(
            "what came is not the file that was expected (sha256 or size differs); it was removed",
            where=remote.url.partition("?")[0],
            fix="try again; if it stays so, do not use that server",
        )
    part.replace(target)
    sync_folder(folder)
    return target


def _fetch(client: httpx.Client, remote: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    """Bring the part to its full length."""
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        if remote.size is not None and before > remote.size:
            part.unlink()
            before = 0
        if before and before == remote.size:
            on_bytes(before)
            return
        try:
            _append(client, remote, part, before, on_bytes)
            return
        except (httpx.TransportError, _BrokenOff) as error:
            after = part.stat().st_size if part.is_file() else 0
            failures = 0 if after > before else failures + 1
            unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if unconnected and failures >= 2:
                host = httpx.URL(remote.url).host
                raise Unreachable(f"{host} cannot be reached: {error}") from error
            if failures >= _TRIES:
                sofar = f"{after} of {remote.size} bytes" if remote.size else f"{after} bytes"
                what = f"the connection broke off after {sofar}"
                where = remote.url.partition("?")[0]
                raise BackboneError(what, where=where, fix=_AGAIN) from error
            time.sleep(min(_PAUSE * 2**failures, _LONGEST_PAUSE))
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise BackboneError(f"leads nowhere: {error}", where=remote.url) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                what = f"cannot be written: {error.strerror}"
                raise StorageError(what, where=str(part)) from error
            fix = f"free some space, then {_AGAIN}"
            raise StorageError("the disk is full", where=str(part.parent), fix=fix) from error


def _append(
    client: httpx.Client, remote: RemoteFile, part: Path, begin: int, on_bytes: OnBytes
) -> None:
    """Ask for what is missing, once, and write it as it comes."""
    # Compressed, a range would be one of other bytes.
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with client.stream("GET", remote.url, headers=headers) as answer:
        if answer.status_code == 416:  # the part is no beginning of what is there now
            part.unlink()
            raise _BrokenOff("range")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _BrokenOff(str(answer.status_code))
        if answer.status_code not in (200, 206):
            raise Refused(answer.status_code, remote.url)
        if answer.status_code == 206:
            told = answer.headers.get("Content-Range", "")
            if not told.startswith(f"bytes {begin}-"):
                part.unlink()
                raise _BrokenOff(f"a range that was not asked for: {told}")
        else:
            begin = 0
        length = answer.headers.get("Content-Length", "")
        whole = begin + int(length) if length.isdigit() else None
        if remote.size is not None and whole not in (None, remote.size):
            what = f"the server has a file of {whole} bytes, and one of {remote.size} is expected"
            raise BackboneError(what, where=remote.url.partition("?")[0])
        count = begin
        with part.open("r+b" if begin else "wb") as file:
            file.truncate(begin)
            file.seek(begin)
            on_bytes(count)
            for piece in answer.iter_raw():
                count += len(piece)
                if remote.size is not None and count > remote.size:
                    break  # never more than was announced; `matches` refuses it
                file.write(piece)
                on_bytes(count)
            file.flush()
            os.fsync(file.fileno())
    if count < (whole if whole is not None else remote.size or 0):
        raise _BrokenOff("ended early")
