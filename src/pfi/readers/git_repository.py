"""Git repositories as strangers' data: git reads objects and references, never settings.

A repository's configuration can name programs to run (pagers, file monitors, filters, diff drivers)
and files to read (includes, mailmaps, attributes).  So git is never started in the repository, but
in an empty one of our own whose objects and references are the repository's.  Nothing is fetched.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pfi.errors import ConfigError, DataError

#: Longest file beside the objects that is read: HEAD, pointers, settings, lists of commits.
_SMALL = 1 << 20
_POINTER = re.compile(r"gitdir: (.+)")
_ATTRIBUTES = frozenset(("binary", "diff", "-diff", "!diff"))


@dataclass(frozen=True)
class Repository:
    """An empty repository of ours that stands for someone's.

    Attributes:
        path: what was given, for errors.
        name: of the repository's folder.
        mirror: the folder of ours.
        objects: where the repository's objects are.
        common: where its references and settings are.
        shallow: hashes of the commits whose parents were not cloned.
    """

    path: Path
    name: str
    mirror: Path
    objects: Path
    common: Path
    shallow: frozenset[str]

    @property
    def partial(self) -> bool:
        """Whether it was cloned without some of its objects."""
        settings = _read(self.common / "config")
        return bool(
            re.search(r"^\s*(?:promisor\s*=\s*true|partialclone\s*=)", settings, re.I | re.M)
        )

    @property
    def email(self) -> str:
        """The address of `git config user.email`; empty if none is set."""
        own = self.output("config", "--file", str(self.common / "config"), "--no-includes",
                          "user.email")  # fmt: skip
        return own or self.output("config", "user.email")

    def command(self, *arguments: str) -> list[str]:
        """A git command that reads the repository's objects and runs nothing."""
        settings = ("core.quotePath=false", "core.fsmonitor=false", "log.showRoot=true",
                    "protocol.allow=never", "gc.auto=0", "mailmap.blob=HEAD:.mailmap")  # fmt: skip
        flags = [word for setting in settings for word in ("-c", setting)]
        return ["git", "--no-pager", "--no-replace-objects", *flags, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Of this process, without git's own variables: inside a hook they name another place."""
        ours = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in ours}
        return {
            **kept,
            "LC_ALL": "C",
            "GIT_DIR": str(self.mirror),
            "GIT_OBJECT_DIRECTORY": str(self.objects),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": "none",
        }

    def run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[bytes]:
        """What a short git command does.

        Raises:
            ConfigError: git is not installed.
        """
        try:
            return subprocess.run(
                self.command(*arguments), cwd=self.mirror, env=self.environment,
                input=(text or "").encode(), capture_output=True, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise ConfigError("git is not installed", fix="install git and try again") from None

    def output(self, *arguments: str) -> str:
        """What a short git command prints; empty if it fails."""
        done = self.run(*arguments)
        return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


@contextmanager
def open_repository(path: Path) -> Iterator[Repository]:
    """The repository that a folder is in, to be read.

    Raises:
        DataError: there is none, or it takes objects from elsewhere.
        ConfigError: git is not installed.
    """
    folder = _git_folder(path)
    common = _common(folder, path)
    objects = common / "objects"
    _no_alternates(objects, path)
    shallow = _read(common / "shallow")
    name = folder.parent.name if folder.name == ".git" else folder.name
    if folder != common:  # a worktree's
        name = common.parent.name if common.name == ".git" else common.name
    with tempfile.TemporaryDirectory() as place:
        mirror = Path(place)
        (mirror / "objects").mkdir()
        for entry in ("refs", "packed-refs"):
            if (common / entry).exists():
                (mirror / entry).symlink_to(common / entry)
        (mirror / "HEAD").write_text(_head(folder, common))
        settings = "[core]\n\tbare = true\n\trepositoryformatversion = "
        if re.search(r"^\s*objectformat\s*=\s*sha256", _read(common / "config"), re.I | re.M):
            settings += "1\n[extensions]\n\tobjectFormat = sha256\n"
        else:
            settings += "0\n"
        (mirror / "config").write_text(settings)
        if shallow:
            (mirror / "shallow").write_text(shallow)
        repository = Repository(path, name, mirror, objects, common, frozenset(shallow.split()))
        (mirror / "info").mkdir()
        (mirror / "info" / "attributes").write_text(_attributes(repository))
        yield repository


def _git_folder(path: Path) -> Path:
    """The folder of git's files for a folder, or for one that it is in.

    Raises:
        DataError: there is none, or it is a pointer to a repository that knows nothing of it.
    """
    for folder in (path.resolve(), *path.resolve().parents):
        git = folder / ".git"
        if git.is_symlink():
            fix = "give the folder that it points to"
            raise DataError("its .git is a link to another folder", path=path, fix=fix)
        if git.is_dir():
            return git
        if git.is_file():
            return _pointed(git, path)
        if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
            return folder
    fix = "give the folder of a git repository"
    raise DataError("not a git repository (or any of the folders above it)", path=path, fix=fix)


def _pointed(pointer: Path, path: Path) -> Path:
    """Where the `.git` file of a worktree or submodule points to, if that points back.

    Raises:
        DataError: it does not.
    """
    match = _POINTER.match(_read(pointer))
    folder = (pointer.parent / match[1].strip()).resolve() if match else pointer
    back = _read(folder / "gitdir").strip()
    worktree = back and (folder / back).resolve() == pointer.resolve()
    above = any(
        folder.is_relative_to(parent / ".git" / "modules") for parent in pointer.parent.parents
    )
    if folder.is_dir() and (worktree or above):
        return folder
    fix = "give the folder of the repository itself"
    raise DataError("its .git points to a repository that is not its own", path=path, fix=fix)


def _common(folder: Path, path: Path) -> Path:
    """Where a worktree's repository keeps objects and references."""
    text = _read(folder / "commondir").strip()
    common = (folder / text).resolve() if text else folder
    if not (common / "objects").is_dir():
        fix = "give the folder of a git repository"
        raise DataError("not a git repository: it has no objects", path=path, fix=fix)
    return common


def _no_alternates(objects: Path, path: Path) -> None:
    """Check that a repository has its objects itself.

    Raises:
        DataError: it takes some from another folder.
    """
    others = _read(objects / "info" / "alternates").strip()
    if others or objects.is_symlink():
        what = f"it takes objects from another folder ({others.splitlines()[0] if others else ''})"
        fix = "run git repack -a -d in it and remove objects/info/alternates, or give a full clone"
        raise DataError(what, path=path, fix=fix)


def _head(folder: Path, common: Path) -> str:
    """The branch or commit at hand, as git's file HEAD says it."""
    text = _read(folder / "HEAD").strip()
    fine = re.fullmatch(r"ref: refs/[^\s~^:?*\[\\]+|[0-9a-f]{40}|[0-9a-f]{64}", text)
    return f"{text}\n" if fine and ".." not in text else "ref: refs/heads/none\n"


def _attributes(repository: Repository) -> str:
    """Which files the repository calls binary, or not to be compared; nothing else of it."""
    kept = []
    for line in repository.output("show", "HEAD:.gitattributes")[:_SMALL].splitlines():
        pattern, *words = line.split()[:20] or [""]
        words = [word for word in words if word in _ATTRIBUTES]
        if words and not pattern.startswith(("#", "[")):
            kept.append(" ".join([pattern, *words]))
    return "\n".join([*kept, ""])


def _read(file: Path) -> str:
    """A small file; empty if it is none."""
    try:
        if not file.is_file() or file.stat().st_size > _SMALL:
            return ""
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
