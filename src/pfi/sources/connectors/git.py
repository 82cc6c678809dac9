"""Connector for a git repository: one author's commits, as changes and the messages they got.

Git's output is read as it comes. Nothing of the repository is run: no hooks, no external diff
programs, no filters, no network.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.commit_message import own_message
from pfi.readers.git_repository import Repository, open_repository
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

#: Length of a change's text, of its list of files, and of one of its lines, in characters.
CHANGE_LIMIT = 1200
FILES_LIMIT = 400
LINE_LIMIT = 120
LINES_A_FILE = 8

_READ = 1 << 16
_HEADER_LIMIT = 1 << 20
#: Hash, parents, author time, author e-mail as is and by mailmap, author name, message.
_FORMAT = "%x00%H%x00%P%x00%at%x00%ae%x00%aE%x00%an%x00%B%x00"
_FIELDS = 7
_ORDER = ["--reverse", "--topo-order"]
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_COUNTS = re.compile(r"(\d+|-)\t(\d+|-)\t(.+)")


class GitOptions(Options):
    """Options of the `git` connector."""

    author: str | None = Field(
        None, description="e-mail address of the author; by default that of `git config user.email`"
    )
    revision: str = Field("HEAD", description="branch, tag or commit whose history is read")


class GitConnector(Connector[GitOptions]):
    """Reads one record a commit."""

    name = "git"
    summary = "an author's commits in a git repository, as commit messages"
    options = GitOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a repository's folder."""
        return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "refs").is_dir())

    def read(self, path: Path, options: GitOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a commit, oldest first; its id is the commit's hash.

        Raises:
            DataError: there is no repository or revision, or no commit in it can be used.
            ConfigError: git is not installed or the author is not known.
        """
        if not path.is_dir():
            raise DataError("there is no such folder", path=path, fix="give a repository's folder")
        with open_repository(path) as repository:
            revision = options.revision
            # A leading dash would be read as an option.
            if revision[:1] == "-" or not repository.output(
                "rev-parse", "--verify", f"{revision}^{{commit}}"
            ):
                fix = "name a branch, tag or commit; a new repository has none before its first"
                raise DataError(f"there is no commit {revision!r}", path=path, fix=f"{fix} commit")
            author = (options.author or repository.email).strip()
            if not author:
                fix = "name an e-mail address with author"
                raise ConfigError(
                    "git does not know whose commits to read", where=str(path), fix=fix
                )
            for commit in _readable(repository, revision, author, report):
                try:
                    if commit.hash in repository.shallow:
                        raise Unusable("its parent is not in this clone")
                    record = commit.record(f"git:{repository.name}")
                except Unusable as problem:
                    report.skip(problem.reason, f"commit {commit.hash[:12]}")
                else:
                    report.read += 1
                    yield record
            if not report.read and not report.skipped:
                fix = f"name one with author: {_authors(repository, revision)}"
                raise DataError(f"no commit is by {author}", path=path, fix=fix)
        report.require_records(path, "name another author or revision")


@dataclass
class _Commit:
    """One commit as git shows it."""

    hash: str
    parents: str
    seconds: str
    author: str
    message: str
    files: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def record(self, source: str) -> Record:
        """The commit as a record of the task `commit_message`.

        Raises:
            Unusable: its message is not its author's own, or it has no time.
        """
        parents = len(self.parents.split())
        names = [file.rpartition(" (")[0] for file in self.files]
        message = own_message(self.message, self.author, parents, names)
        time = past_time(float(self.seconds) if self.seconds else None)
        if time is None:
            raise Unusable("it has no time")
        fields = {"change": self.change()}
        return Record(self.hash, "commit_message", fields, message, time, source=source)

    def change(self) -> str:
        """The changed files with counts, then a few of the removed and added lines."""
        listed: list[str] = []
        length = 0
        for file in self.files:
            length += len(file) + 2
            if length > FILES_LIMIT and listed:
                listed.append(f"and {len(self.files) - len(listed)} more")
                break
            listed.append(file[:FILES_LIMIT])
        return "\n".join([", ".join(listed), *self.lines])[:CHANGE_LIMIT].rstrip()

    def add_line(self, line: str) -> None:
        """Keep a line of the patch while there is room."""
        if self.size < CHANGE_LIMIT:
            self.lines.append(line[:LINE_LIMIT])
            self.size += len(self.lines[-1]) + 1


def _readable(
    repository: Repository, revision: str, author: str, report: ImportReport
) -> Iterator[_Commit]:
    """The author's commits, oldest first, without those whose objects are not all there.

    Raises:
        DataError: git cannot read the repository, or no commit's objects are there.
    """
    read: set[str] = set()
    try:
        for commit in _commits(repository, [*_only(author), "--end-of-options", revision], author):
            read.add(commit.hash)
            yield commit
        return
    except DataError as error:
        failure = error
    whole, missing = _by_objects(repository, revision, author)
    if not missing or not (whole or read):
        raise _incomplete(repository, failure) from failure
    reason = f"its files are not all in this {'partial clone' if repository.partial else 'clone'}"
    for commit_hash in missing:
        report.skip(reason, f"commit {commit_hash[:12]}")
    hashes = [commit_hash for commit_hash in whole if commit_hash not in read]
    yield from _commits(repository, ["--no-walk=unsorted", "--stdin"], author, hashes)


def _incomplete(repository: Repository, failure: DataError) -> DataError:
    if not repository.partial:
        return failure
    fix = "run git fetch --refetch --no-filter in it, or give a full clone"
    what = "this is a partial clone: the files that its commits change are not in it"
    return DataError(what, path=repository.path, fix=fix)


def _by_objects(repository: Repository, revision: str, author: str) -> tuple[list[str], list[str]]:
    """The author's commits whose changed files are all there, and the others, oldest first."""
    arguments = [
        "log", *_ORDER, "--format=%x00%H", "--raw", "--no-abbrev", "--no-renames",
        "--no-show-signature", *_only(author), "--end-of-options", revision, "--",
    ]  # fmt: skip
    changed: dict[str, set[str]] = {}
    for block in repository.output(*arguments).split("\0")[1:]:
        commit_hash = block.split(maxsplit=1)[0]
        ids = re.findall(r"^:(\d+) (\d+) ([0-9a-f]+) ([0-9a-f]+) ", block, re.M)
        # Submodules' commits (mode 160000) are not objects of this repository.
        changed[commit_hash] = {
            object_id
            for old_mode, new_mode, old, new in ids
            for mode, object_id in ((old_mode, old), (new_mode, new))
            if mode != "160000" and object_id.strip("0")
        }
    wanted = "\n".join(sorted(set().union(*changed.values()))) + "\n"
    answer = repository.run("cat-file", "--batch-check=%(objectname)", text=wanted).stdout
    gone = {line.split()[0] for line in answer.decode().splitlines() if line.endswith(" missing")}
    whole = [commit_hash for commit_hash, ids in changed.items() if not ids & gone]
    return whole, [commit_hash for commit_hash in changed if commit_hash not in set(whole)]


def _only(author: str) -> list[str]:
    return ["--fixed-strings", "--regexp-ignore-case", f"--author={author}"]


def _commits(
    repository: Repository, which: list[str], author: str, hashes: list[str] | None = None
) -> Iterator[_Commit]:
    """The author's commits as git prints them.

    Raises:
        DataError: git fails.
    """
    arguments = [
        "log", *([] if hashes is not None else _ORDER), f"--format={_FORMAT}", "--encoding=UTF-8",
        "--no-show-signature", "--no-notes", "--no-color", "--no-ext-diff", "--no-textconv",
        "--find-renames", "--diff-algorithm=default", "--submodule=short", "--unified=0",
        "--inter-hunk-context=0", "--numstat", "--patch", "--no-diff-merges", "--no-relative",
        "--src-prefix=a/", "--dst-prefix=b/", *which, "--",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write("".join(f"{commit_hash}\n" for commit_hash in hashes or []).encode())
        given.seek(0)
        process = subprocess.Popen(
            repository.command(*arguments), cwd=repository.mirror, env=repository.environment,
            stdin=given, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            last: _Commit | None = None
            for commit in _parse(process.stdout, author.lower()):
                if last is not None:
                    yield last
                last = commit
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            status = process.wait()
        if status:  # the last commit may not be all that it is
            errors.seek(0)
            what = f"git log failed: {_said(errors.read(4000))}"
            raise DataError(what, path=repository.path, fix="check the repository with git fsck")
        if last is not None:
            yield last


def _parse(stream: IO[bytes], author: str) -> Iterator[_Commit]:
    """Commits out of the output of git log; lines of any length in bounded memory."""
    commit: _Commit | None = None
    header: bytes | None = None
    old = new = in_file = marks = 0  # what is left of a hunk; lines kept of a file
    start = True  # whether the piece at hand starts a line
    while piece := stream.readline(_READ):
        starts, start = start, piece.endswith(b"\n")
        if header is None and not (starts and piece.startswith(b"\0")):
            if commit is None or not starts:
                continue
            line = piece.decode("utf-8", "replace").rstrip("\r\n")
            if old or new:
                old, new = old - line.startswith("-"), new - line.startswith("+")
                if in_file < LINES_A_FILE and re.match(r"[+-].*\w", line):
                    commit.add_line(line)
                    in_file += 1
            elif hunk := _HUNK.match(piece):
                old, new = (int(n) if n is not None else 1 for n in hunk.groups())
            elif line.startswith("diff --git "):
                in_file = 0
            elif line.startswith(("+++ b/", "--- a/")):
                _name_file(commit, line[6:])
            elif counts := _COUNTS.fullmatch(line):
                plus, minus, file = counts.groups()
                changes = "binary" if plus == "-" else f"+{plus} -{minus}"
                commit.files.append(f"{file} ({changes})")
            continue
        # A header runs from one NUL to the last of its eight, over the lines of the message.
        if header is None:
            header, marks = b"", 0
        marks += piece.count(b"\0")
        if len(header) < _HEADER_LIMIT:
            header += piece
        if marks <= _FIELDS:
            continue
        if commit is not None:
            yield commit
        parts = header.decode("utf-8", "replace").split("\0")[1:]
        parts += [""] * (_FIELDS - len(parts))
        old = new = 0
        header = None
        commit = None
        if author in (parts[3].lower(), parts[4].lower()):
            commit = _Commit(parts[0], parts[1], parts[2], parts[5], parts[6].strip())
    if commit is not None:
        yield commit


def _name_file(commit: _Commit, name: str) -> None:
    """Head the lines of a file with its name; a deleted file has only the old one."""
    name = name.rstrip("\t")
    if not commit.lines or commit.lines[-1] != name:
        commit.add_line(name)


def _authors(repository: Repository, revision: str) -> str:
    """A few authors of the repository, those with most commits first."""
    said = repository.output("shortlog", "-sne", "--end-of-options", revision)
    found = re.findall(r"<([^<>\n]*)>$", said, re.MULTILINE)
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")


def _said(errors: bytes) -> str:
    """Git's complaint as part of a sentence; of several the last is the one it died of."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["git failed"]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (fatal or lines)[0].removeprefix("fatal: ").removeprefix("error: ")
