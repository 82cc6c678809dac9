"""A model hub and a package index on this machine, which go wrong on purpose.

    with HubServer({"owner/model": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

What happens to the next requests for a file is scripted by `hub.faults`, in order.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: What can be scripted for a request of a file: HTTP statuses, and the following.
FAULTS = {"ok", "cut", "whole", "redirect", "wrong", "longer", "slow"}


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]


@dataclass
class HubServer:
    """The server; a context manager.

    Attributes:
        repos: files by name, of each repository.
        gated: repositories whose files need the token `good`.
        packages: wheels of the package index by name, of each package.
        faults: what happens to each request for a file, in order; `ok` when they are used up.
            `cut` ends the connection half way, `whole` ignores the range, `redirect` sends to
            another host name, `wrong` changes a byte, `longer` sends more than there is, `slow`
            pauses between pieces.
        listing: what the hub says of a repository, instead of the truth.
        pause: seconds of `slow`.
        asked: the requests, in order.
    """

    repos: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    gated: frozenset[str] = frozenset()
    packages: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    listing: Any = None
    pause: float = 0.02
    html: bool = False
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files_asked(self) -> list[tuple[str, str]]:
        """The names and ranges of the files that were asked for."""
        return [
            (one.path.rpartition("/")[2], one.headers.get("range", ""))
            for one in self.asked
            if "/resolve/" in one.path or "/files/" in one.path
        ]


def listing(files: Mapping[str, bytes], lfs: int = 64) -> dict[str, Any]:
    """What a hub says of a revision; files of at least `lfs` bytes are of LFS."""
    siblings = []
    for name, data in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if len(data) >= lfs:
            sha256 = hashlib.sha256(data).hexdigest()
            entry |= {"blobId": "f" * 40, "lfs": {"sha256": sha256, "size": len(data)}}
        siblings.append(entry)
    return {"sha": COMMIT, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(path, headers))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.hub.repos:
                return self._status(401 if repo in self.hub.gated else 404)
            assert parse_qs(url.query) == {"blobs": ["true"]}
            return self._json(self.hub.listing or listing(self.hub.repos[repo]))
        if parts[0] == "simple":
            return self._index(parts[1])
        if parts[0] == "files":
            return self._file(self.hub.packages[parts[1]][parts[2]])
        repo = "/".join(parts[:2])
        if parts[2:4] != ["resolve", COMMIT] or repo not in self.hub.repos:
            return self._status(404)
        if repo in self.hub.gated and headers.get("authorization") != "Bearer good":
            return self._status(401)
        return self._file(self.hub.repos[repo][parts[4]])

    def _index(self, package: str) -> None:
        files = self.hub.packages.get(package)
        if files is None:
            return self._status(404)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        if self.hub.html:
            links = "".join(
                f'<a href="../../files/{package}/{name}#sha256={sums[name]}">{name}</a>'
                for name in files
            )
            return self._answer(200, links.encode(), "text/html")
        listed = [
            {
                "filename": name,
                "url": f"../../files/{package}/{name}",
                "hashes": {"sha256": sums[name]},
                "size": len(data),
            }
            for name, data in files.items()
        ]
        return self._json({"files": listed}, "application/vnd.pypi.simple.v1+json")

    def _file(self, data: bytes) -> None:
        fault = self.hub.faults.pop(0) if self.hub.faults else "ok"
        if fault.isdigit():
            return self._status(int(fault))
        assert fault in FAULTS, fault
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.hub.port}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault == "longer":
            data = data + b"more"
        wanted = self.headers.get("Range")
        begin = 0
        if wanted and fault != "whole":
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                return self._status(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        part = data[begin:]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return None
        step = max(1, len(part) // 50) if fault == "slow" else len(part)
        try:
            for at in range(0, len(part), step):
                self.wfile.write(part[at : at + step])
                if fault == "slow":
                    self.wfile.flush()
                    time.sleep(self.hub.pause)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        return None

    def _status(self, status: int) -> None:
        self._answer(status, b"{}", "application/json")

    def _json(self, value: Any, kind: str = "application/json") -> None:
        self._answer(200, json.dumps(value).encode(), kind)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
