"""Git: clones that are not whole, worktrees, hostile repositories, messages that programs wrote."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from connector_sources import read

from pfi.errors import DataError
from pfi.readers.commit_message import own_message
from pfi.readers.values import Unusable

ME = {"author": "sam@example.org"}


class Place:
    """A folder of repositories, apart from the machine's settings."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for key in [key for key in os.environ if key.startswith("GIT_")]:
            monkeypatch.delenv(key)
        (path / "gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(path / "gitconfig"))
        monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        self.path = path
        self.full = path / "full"
        self.git(path, "init", "-q", "-b", "main", *[str(self.full)])
        self.git(self.full, "config", "user.email", "sam@example.org")
        self.git(self.full, "config", "user.name", "Sam Two")
        self.git(self.full, "config", "uploadpack.allowfilter", "true")
        for number in range(1, 5):
            self.commit(f"Add the file number {number}", number)

    def git(self, where: Path, *arguments: str, **variables: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=where, env={**os.environ, **variables},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, message: str, number: int) -> None:
        (self.full / f"f{number}.txt").write_text(f"line {number}\n")
        self.git(self.full, "add", "-A")
        when = f"2024-01-0{number}T10:00:00+0000"
        dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        self.git(self.full, "commit", "-q", "-m", message, **dates)

    def clone(self, name: str, *arguments: str) -> Path:
        self.git(self.path, "clone", "-q", *arguments, f"file://{self.full}", name)
        return self.path / name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def messages(path: Path) -> list[str]:
    return [record.output[-1] for record in read("git", path, ME)[0]]


def test_the_oldest_commit_of_a_shallow_clone_has_no_parent_to_compare_with(place: Place) -> None:
    [record], report = read("git", place.clone("shallow", "--depth", "2"), ME)
    assert record.output == "Add the file number 4"
    assert record.input["change"] == "f4.txt (+1 -0)\nf4.txt\n+line 4"
    assert report.skipped == {"its parent is not in this clone": 1}
    assert messages(place.full) == ["1", "2", "3", "4"], "the first commit of all is whole"


def test_nothing_is_fetched_for_a_partial_clone(place: Place) -> None:
    partial = place.clone("partial", "--no-checkout", "--filter=blob:none")
    objects = place.git(partial, "count-objects", "-v")
    with pytest.raises(DataError, match=r"partial clone.*--refetch"):
        read("git", partial, ME)
    assert place.git(partial, "count-objects", "-v") == objects
    # A checkout brings the files of the newest commit, which are those of all commits here.
    place.git(partial, "checkout", "-q", "main")
    assert messages(partial) == ["1", "2", "3", "4"]
    treeless = place.clone("treeless", "--no-checkout", "--filter=tree:0")
    with pytest.raises(DataError, match="partial clone"):
        read("git", treeless, ME)


def test_commits_whose_objects_are_there_are_read(place: Place) -> None:
    """One object is gone: the commits before and after it stay."""
    blob = place.git(place.full, "rev-parse", "HEAD:f2.txt")
    (place.full / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    records, report = read("git", place.full, ME)
    assert [record.output[-1] for record in records] == ["1", "3", "4"]
    assert all("line" in record.input["change"] for record in records)
    assert report.skipped == {"its files are not all in this clone": 1}


def test_worktrees_submodules_and_bare_repositories(place: Place) -> None:
    place.git(place.full, "worktree", "add", "-q", "-b", "side", "../side")
    records, _ = read("git", place.path / "side", ME)
    assert len(records) == 4 and records[0].source == "git:full"
    bare = place.clone("bare.git", "--bare")
    assert messages(bare) == ["1", "2", "3", "4"]
    assert messages(place.full / ".git") == ["1", "2", "3", "4"]
    outer = place.path / "outer"
    place.git(place.path, "init", "-q", "outer")
    place.git(outer, "submodule", "--quiet", "add", f"file://{place.full}", "inner")
    assert messages(outer / "inner") == ["1", "2", "3", "4"]
    (place.full / "deep").mkdir()
    assert messages(place.full / "deep") == ["1", "2", "3", "4"]


def test_a_mailmap_of_the_repository_is_used(place: Place) -> None:
    (place.full / ".mailmap").write_text("Sam <new@example.org> <sam@example.org>\n")
    place.commit("Add the file number 5", 5)
    assert len(read("git", place.full, {"author": "new@example.org"})[0]) == 5


def test_settings_of_a_repository_neither_run_nor_read_anything(
    place: Place, tmp_path: Path
) -> None:
    mark, secret = tmp_path / "ran", tmp_path / "secret"
    secret.write_text("f1.txt -diff\n* -diff\n[user]\n\temail = thief@example.org\n")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    before = read("git", place.full, ME)[0]
    for key, value in {
        "core.fsmonitor": str(program), "core.pager": str(program), "core.sshCommand": str(program),
        "core.attributesFile": str(secret), "core.excludesFile": str(secret),
        "core.hooksPath": str(tmp_path), "core.alternateRefsCommand": str(program),
        "diff.external": str(program), "diff.x.textconv": str(program),
        "diff.orderFile": str(secret),
        "filter.x.smudge": str(program), "gpg.program": str(program), "log.showSignature": "true",
        "mailmap.file": str(secret), "include.path": str(secret), "pager.log": str(program),
        "log.diffMerges": "on", "format.pretty": "oneline", "log.follow": "true",
        "extensions.partialClone": "origin", "remote.origin.url": f"ext::{program}",
        "remote.origin.promisor": "true", "core.repositoryFormatVersion": "1",
    }.items():  # fmt: skip
        section, _, name = key.partition(".")
        inner, _, last = name.rpartition(".")
        head = f'[{section} "{inner}"]' if inner else f"[{section}]"
        with (place.full / ".git" / "config").open("a") as file:
            file.write(f"{head}\n\t{last} = {value}\n")
    (place.full / ".git" / "info" / "attributes").write_text("* diff=x filter=x\n")
    (place.full / ".gitattributes").write_text("* diff=x filter=x\n")
    hook = place.full / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    assert read("git", place.full, ME)[0] == before
    with (place.full / ".git" / "config").open("a") as file:
        file.write("[user]\n\temail = sam@example.org\n[include]\n\tpath = /dev/zero\n")
    assert read("git", place.full)[0] == before
    assert not mark.exists()


def test_pointers_and_objects_from_elsewhere_are_refused(place: Place) -> None:
    thief = place.path / "thief"
    thief.mkdir()
    (thief / ".git").write_text(f"gitdir: {place.full}/.git\n")
    with pytest.raises(DataError, match="points to a repository that is not its own"):
        read("git", thief, ME)
    (thief / ".git").unlink()
    (thief / ".git").symlink_to(place.full / ".git")
    with pytest.raises(DataError, match="a link to another folder"):
        read("git", thief, ME)
    shared = place.path / "shared"
    place.git(place.path, "clone", "-q", "--shared", str(place.full), "shared")
    with pytest.raises(DataError, match=r"objects from another folder.*repack"):
        read("git", shared, ME)


def test_files_that_are_called_binary_stay_so(place: Place) -> None:
    (place.full / ".gitattributes").write_text("*.lock -diff merge=ours\n[attr]x y\n")
    (place.full / "a.lock").write_text("secret\n")
    place.commit("Add the file number 5", 5)
    assert "secret" not in read("git", place.full, ME)[0][-1].input["change"]


OWN = {
    "Add a lamp to the hall": "Add a lamp to the hall",
    "Add a lamp\nto the hall": "Add a lamp to the hall",
    "Add a lamp\n\nIt was dark.": "Add a lamp\n\nIt was dark.",
    "Add a lamp\n\nIt was dark.\n> theirs\nFixes: #12": "Add a lamp\n\nIt was dark.",
    "Add a lamp\n\n(cherry picked from commit 0123456789abcdef)": "Add a lamp",
    "Add a lamp\n\nSigned-off-by: Sam <s@x.org>\nCo-authored-by: Ida <i@x.org>": "Add a lamp",
    "Add a lamp\n\nChange-Id: I12\nReviewed-on: https://x.org/1": "Add a lamp",
    "Add a lamp (#12)\n\n* wip": "Add a lamp (#12)\n\n* wip",
    "Update the lamp's wire": "Update the lamp's wire",
    "Release the lamp from its box": "Release the lamp from its box",
    "Merge sort is stable now": "Merge sort is stable now",
    "Create lamp": "Create lamp",
}


@pytest.mark.parametrize("message", OWN)
def test_what_the_author_wrote(message: str) -> None:
    assert own_message(message, "Sam", 1, ["hall.py"]) == OWN[message]


FOREIGN = [
    "Merge branch 'main' into side", "Merge pull request #12 from ida/lamp",
    "Merge remote-tracking branch 'origin/main'", "Merged in lamp (pull request #3)",
    "Merge tag 'v1.2'", "Squashed commit of the following:\n\ncommit 12", 'Revert "Add a lamp"',
    'Reapply "Add a lamp"', "Undo it\n\nThis reverts commit 0123.", "1.2.3", "v1.2.3-rc.1",
    "Release 1.2.0", "chore(release): 1.2.3", "Bump lamp from 1.0.0 to 1.0.1",
    "build(deps): bump lamp from 1.0.0 to 1.0.1", "Bump version to 1.2.3",
    "[maven-release-plugin] prepare release x-1.2", "Add files via upload", "Initial commit",
    "Update README.md", "Create README.md", "Delete README.md",
    "Apply suggestions from code review",
    "fixup! Add a lamp", "WIP on main: 0123 Add a lamp", "vault backup: 2024-03-05 14:22:10",
    "Add a lamp\n\nCo-Authored-By: Claude <noreply@anthropic.com>",
    "Add a lamp\n\n🤖 Generated with [Claude Code](https://claude.ai/code)", "",
    "Signed-off-by: S <s@x>",
]  # fmt: skip


@pytest.mark.parametrize("message", FOREIGN)
def test_what_programs_wrote(message: str) -> None:
    with pytest.raises(Unusable):
        own_message(message, "Sam", 1, ["docs/README.md"])


@pytest.mark.parametrize(
    "author", ["dependabot[bot]", "renovate-bot", "github-actions", "Lamp Bot"]
)
def test_bots(author: str) -> None:
    with pytest.raises(Unusable, match="bot"):
        own_message("Add a lamp to the hall", author, 1, ["x"])
