"""Connector for a git repository: one author's commits, as changes and the messages they got.

Git's output is read as it comes. Nothing of the repository is run: no hooks, no external diff
programs, no filters, no network.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

#: Length of a change's text, of its list of files, and of one of its lines, in characters.
CHANGE_LIMIT = 1200
FILES_LIMIT = 400
LINE_LIMIT = 120
LINES_A_FILE = 8
#: A first body paragraph up to this many characters belongs to the message.
BODY_LIMIT = 300

_READ = 1 << 16
_HEADER_LIMIT = 1 << 20
#: Hash, parents, author time, author e-mail as is and by mailmap, author name, message.
_FORMAT = "%x00%H%x00%P%x00%at%x00%ae%x00%aE%x00%an%x00%B%x00"
_FIELDS = 7
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_COUNTS = re.compile(r"(\d+|-)\t(\d+|-)\t(.+)")
_BOT = re.compile(
    r"\[bot\]|^(dependabot|renovate|github-actions|pre-commit-ci|greenkeeper)\b", re.I
)
_MERGE = re.compile(r"Merge (branch|branches|pull request|remote-tracking branch|tag|commit) ")
_TRAILER = re.compile(
    r"[A-Za-z][A-Za-z-]+-(by|id|on|to|with): |(fixes|closes|refs?|link|cc): ", re.I
)


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
        top = _output(path, "rev-parse", "--absolute-git-dir", required=True)
        name = Path(top).parent.name if Path(top).name == ".git" else Path(top).name
        revision = options.revision
        # A leading dash would be read as an option.
        if revision[:1] == "-" or not _output(
            path, "rev-parse", "--verify", f"{revision}^{{commit}}"
        ):
            fix = "name a branch, tag or commit; a new repository has none before its first commit"
            raise DataError(f"there is no commit {revision!r}", path=path, fix=fix)
        author = (options.author or _output(path, "config", "user.email")).strip()
        if not author:
            fix = "name an e-mail address with author"
            raise ConfigError("git does not know whose commits to read", where=str(path), fix=fix)
        for commit in _commits(path, revision, author):
            try:
                record = commit.record(f"git:{name}")
            except Unusable as problem:
                report.skip(problem.reason, f"commit {commit.hash[:12]}")
            else:
                report.read += 1
                yield record
        if not report.read and not report.skipped:
            fix = f"name one with author: {_authors(path, revision)}"
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
            Unusable: it is a merge, a revert or a bot's, or is empty or without a message.
        """
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", self.message) if p.strip()]
        if " " in self.parents or _MERGE.match(self.message):
            raise Unusable("it is a merge")
        if _BOT.search(self.author):
            raise Unusable("it is a bot's commit")
        if self.message.startswith('Revert "') or "\nThis reverts commit " in self.message:
            raise Unusable("it is a revert")
        if not self.files:
            raise Unusable("it changes nothing")
        if not paragraphs:
            raise Unusable("it has no message")
        message = " ".join(paragraphs[0].split())
        body = paragraphs[1] if len(paragraphs) > 1 else ""
        kept = [line.rstrip() for line in body.splitlines() if not _TRAILER.match(line)]
        if kept and len(body) <= BODY_LIMIT:
            message += "\n\n" + "\n".join(kept)
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


def _commits(path: Path, revision: str, author: str) -> Iterator[_Commit]:
    """The author's commits, oldest first, as git prints them."""
    arguments = [
        "log", "--reverse", "--topo-order", f"--format={_FORMAT}", "--encoding=UTF-8",
        "--no-show-signature", "--no-notes", "--no-color", "--no-ext-diff", "--no-textconv",
        "--find-renames", "--diff-algorithm=default", "--submodule=short", "--unified=0",
        "--inter-hunk-context=0", "--numstat", "--patch", "--no-diff-merges", "--no-relative",
        "--src-prefix=a/", "--dst-prefix=b/",
        "--fixed-strings", "--regexp-ignore-case", f"--author={author}",
        "--end-of-options", revision, "--",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(path, *arguments),
            env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield from _parse(process.stdout, author.lower())
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            status = process.wait()
        if status:
            errors.seek(0)
            what = f"git log failed: {_said(errors.read(4000))}"
            raise DataError(what, path=path, fix="check the repository with git fsck")


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


def _authors(path: Path, revision: str) -> str:
    """A few authors of the repository, those with most commits first."""
    said = _output(path, "shortlog", "-sne", "--end-of-options", revision)
    found = re.findall(r"<([^<>\n]*)>$", said, re.MULTILINE)
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")


def _command(path: Path, *arguments: str) -> list[str]:
    settings = [
        "-c",
        "core.quotePath=false",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "log.showRoot=true",
    ]
    return ["git", "--no-pager", "-C", str(path), *settings, *arguments]


def _environment() -> dict[str, str]:
    # Inside a hook git's own variables would point at another repository.
    ours = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in ours}
    fixed = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    return {**kept, **fixed, "GIT_NO_LAZY_FETCH": "1"}


def _output(path: Path, *arguments: str, required: bool = False) -> str:
    """What a short git command prints; empty if it fails and is not required.

    Raises:
        ConfigError: git is not installed.
        DataError: a required command fails.
    """
    try:
        done = subprocess.run(
            _command(path, *arguments),
            env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise ConfigError("git is not installed", fix="install git and try again") from None
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace").strip()
    if required:
        raise DataError(_said(done.stderr), path=path, fix="give the folder of a git repository")
    return ""


def _said(errors: bytes) -> str:
    """Git's first complaint as part of a sentence."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["git failed"]
    return lines[0].removeprefix("fatal: ").removeprefix("error: ")
