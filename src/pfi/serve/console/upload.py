"""Import by drag and drop: files go to a private temporary folder, a connector reads them there.

The folder is removed when the import ends, and by the next start if the process was killed.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from pfi.errors import ConfigError, DataError, PfiError
from pfi.profile.home import Home
from pfi.readers.report import ImportReport
from pfi.serve.console.progress import refresh_if_due
from pfi.serve.console.view import ConsoleRoute, Signed

router = APIRouter(route_class=ConsoleRoute)
_MOST_FILES = 20_000
_PREFIX = "pfi-import-"
_OPTION = "option-"
#: What of a repository is not taken over: it can name programs that git would run.
_ACTIVE = re.compile(r"(config(\.worktree)?|hooks/.*|info/attributes|modules/.*|worktrees/.*)$")
#: What of a repository leads to another one, which may be anybody's on this machine.
_LEADS = re.compile(r"(commondir|gitdir|objects/info/(http-)?alternates)$")


@router.get("/data/options")
def options(visit: Signed, kind: str = "") -> Response:
    """The options of a connector, as input fields."""
    from pfi.sources.connectors import get_connector

    connector = get_connector(kind) if kind else None
    return visit.page("_options.html", connector=connector)


@router.post("/data/import")
async def import_files(request: Request, visit: Signed) -> Response:
    """Read the uploaded files into the vault.

    Raises:
        ConfigError: it is not clear what they are, or an option makes no sense.
        DataError: they cannot be read.
    """
    async with request.form(max_files=_MOST_FILES) as form:
        files = [f for f in form.getlist("files") if isinstance(f, UploadFile) and f.filename]
        values = {
            key.removeprefix(_OPTION): str(value)
            for key, value in form.items()
            if key.startswith(_OPTION) and str(value).strip()
        }
        kind = str(form.get("kind") or "")
        result = await asyncio.to_thread(_import, visit.home, files, kind, values)
    await asyncio.to_thread(refresh_if_due, visit)
    return visit.page("_imported.html", **result)


def _import(
    home: Home, files: Sequence[UploadFile], kind: str, values: Mapping[str, str]
) -> dict[str, object]:
    from pfi.profile.vault.imports import import_records, parse_options
    from pfi.readers.report import ImportReport
    from pfi.sources.connectors import get_connector

    names = [_safe(file.filename or "") for file in files]
    if not names:
        raise ConfigError("no file was chosen", fix="drop one here, or choose it")
    active = _of_git(names)
    pairs = [f"{name}={value}" for name, value in values.items()]
    added = there = 0
    report, kinds = ImportReport(), []
    with private_folder() as folder:
        for name, file in zip(names, files, strict=True):
            if name not in active:
                _store(folder / name, file)
        try:
            for path, found in _sources(folder, kind, report).items():
                settings = parse_options(pairs, get_connector(found).options)
                done = import_records(home, found, path, settings)
                added, there = added + done.added, there + done.already_there
                report.merge(done.report)
                kinds.append(found)
        except PfiError as error:
            # The folder is not there any more when this is read.
            raise DataError(_without(folder, str(error))) from error
        lines = [
            f"{number} because {reason} (first: {_without(folder, report.examples[reason])})"
            for reason, number in report.skipped.most_common()
        ]
    kinds = list(dict.fromkeys(kinds))
    return {"added": added, "there": there, "report": lines, "kinds": ", ".join(kinds)}


def _of_git(names: Sequence[str]) -> set[str]:
    """The files of uploaded repositories that are left behind.

    Raises:
        DataError: one leads to another repository: a `.git` file, alternates and the like.
    """
    lowered = {name: name.casefold() for name in names}
    # A bare repository's folder is one with a file `HEAD`.
    roots = {low.removesuffix("head") for low in lowered.values() if low.split("/")[-1] == "head"}
    trees = {root.removesuffix(".git/") for root in roots if root.endswith(".git/")}
    active = set()
    for name, low in lowered.items():
        parts = low.split("/")
        if parts[-1] == ".git":
            if not any(low != f"{tree}.git" and low.startswith(tree) for tree in trees):
                raise _leads(name)
            active.add(name)  # of a submodule, whose commits are not of this repository
        inside = ["/".join(parts[at + 1 :]) for at, part in enumerate(parts) if part == ".git"]
        inside += [low.removeprefix(root) for root in roots if low.startswith(root)]
        if any(_LEADS.match(rest) for rest in inside):
            raise _leads(name)
        if any(_ACTIVE.match(rest) for rest in inside):
            active.add(name)
    return active


def _leads(name: str) -> DataError:
    what = "this is a pointer to another repository, not a repository's content"
    return DataError(what, path=name, fix="choose the folder of the repository itself")


def _without(folder: Path, text: str) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), "the files")


def _sources(folder: Path, kind: str, report: ImportReport) -> dict[Path, str]:
    """What to read and with which connector: all as one source, or each file and folder by itself.

    Raises:
        ConfigError: no connector knows any of them.
    """
    from pfi.sources.connectors import candidates

    top = sorted(folder.iterdir())
    if (folder / ".git").is_dir():
        _repair(folder)
    for path in top:
        if (path / ".git").is_dir():
            _repair(path)
    if kind:
        return dict.fromkeys(top, kind)
    found = {path: names[0] for path in top if len(names := candidates(path)) == 1}
    if not found:
        names = candidates(top[0] if len(top) == 1 else folder)
        what = f"these may be {' or '.join(names)}" if names else "it is not clear what these are"
        raise ConfigError(what, fix="choose the kind, then try again")
    for path in top:
        if path not in found:
            report.skip("it is not clear what it is", path.name)
    return found


def _repair(repository: Path) -> None:
    """Empty folders, which git needs and browsers do not upload."""
    for name in ("refs/heads", "objects"):
        (repository / ".git" / name).mkdir(parents=True, exist_ok=True)


def _safe(name: str) -> str:
    """An uploaded file's relative path.

    Raises:
        DataError: it leads elsewhere.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise DataError("a file's name leads elsewhere", path=ascii(name))
    return str(path)


def _store(path: Path, file: UploadFile) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as target:
            shutil.copyfileobj(file.file, target)
    except OSError as error:
        raise DataError(f"cannot be stored: {error.strerror}", path=path.name) from error


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user may read, removed at the end."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Remove what processes left that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError):
            if left.stat().st_uid == os.getuid() and not _lives(int(number)):
                shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
