"""Make the sample of commit mails that `pfi demo --real` ships, from a git clone of Open vSwitch.

Usage: python scripts/sample_patch_mails.py CLONE [--check].  A subject line and the text below it,
as git keeps both, are one mail.  Nothing is reworded: trailers, code and logs are cut off, and a
mail that has more than that of somebody else in it (a name, an address, a link, a quotation, the
title of another commit) is left out.  The same clone gives the same file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src/pfi/datasets/openvswitch"
#: The last commit that is read; the first one is the repository's first.
LAST = "d6a632a9b16e5dca2e51eefded3a545e68ea6ba3"
SEED = 0
PEOPLE, MAILS = 24, 32
A_DAY = 4  # most mails of a person and day, so that no one series of patches is all
LENGTH = (100, 640)  # characters of a text
SUBJECT = (12, 90)
LIMIT = 290_000  # bytes of the file
_ALIKE = 0.6  # share of words of two mails of a person, from which on one of them is left out

#: What is not, or not only, under Apache-2.0, and what was brought in from elsewhere.
_ELSEWHERE = ("datapath/", "third-party/", "xenserver/", "utilities/bugtool/", "python/compat/")
_ROUTINE = re.compile(
    r"revert|merge|release|prepare for|set release|backport|authors|news|mailmap|bump|version",
    re.IGNORECASE,
)
#: A line from which on all is about the mail, not in it.
_TRAILER = re.compile(
    r"[a-z]+(-[a-z]+)*-(by|at|to|bz|jira|id|commit)\s*:|(fixes|cc|bugs?|link|upstream|issues?|"
    r"feature|onf\S*|vmware\S*|cvs?e|change|patch|submitted|reported)\s*[:#]|"
    r"(bug|issue|feature|closes|fixes) +#|-{3}|v\d+ *(:|->|-)|changes (in|since) v|"
    r"\(?cherry[ -]picked",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r"@|://|www\.|\b(wrote|writes|quot(ed?|ing)|upstream|linux commit)\b|\b[0-9a-f]{7,40}\b|"
    r"commit \S*\s*\(|\bcc\b|committer|emeritus|maintainer|[^\x20-\x7e]",
    re.IGNORECASE,
)
_BLOCK = re.compile(r" {3}|\t|[>|$#+]|\d\d+[:.]|\*{3}|={3}|<|--- |diff |@@")
_NAME = re.compile(r"[A-Za-z][A-Za-z'-]+")


@dataclass(frozen=True)
class Commit:
    """One commit as git tells of it."""

    name: str
    address: str
    date: str
    message: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Mail:
    """A day, a subject line and the text below it."""

    date: str
    subject: str
    text: str


def git(clone: Path, *words: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", "-C", str(clone), *words], check=True, capture_output=True)
    return done.stdout.decode("utf-8", "replace")


def read_commits(clone: Path) -> list[Commit]:
    """All commits up to the last one, oldest first, names and addresses as the mailmap has them."""
    form = "--format=%x01%aN%x00%aE%x00%as%x00%B%x00"
    commits = []
    log = git(clone, "log", "--no-merges", "--name-only", form, LAST, "--")
    for entry in log.split("\x01")[1:]:
        name, address, date, message, files = entry.split("\0")
        commits.append(Commit(name, address.lower(), date, message, tuple(files.split())))
    return commits[::-1]


def people_of(commits: Iterable[Commit]) -> dict[str, list[Commit]]:
    """The commits of each person; one with several addresses or spellings is one person."""
    first: dict[str, str] = {}

    def root(key: str) -> str:
        while first.setdefault(key, key) != key:
            key = first[key]
        return key

    commits = list(commits)
    for commit in commits:
        first[root(commit.name.lower())] = root(commit.address)
    found: dict[str, list[Commit]] = defaultdict(list)
    for commit in commits:
        found[root(commit.address)].append(commit)
    return found


class Names:
    """Everybody's names, as far as they are in the authors' lines and in trailers."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        tokens: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for commit in commits:
            people = re.findall(r"^[\w-]+-by: *([^<\n]+)", commit.message, re.MULTILINE | re.I)
            for name in [commit.name, *people]:
                tokens.update(_NAME.findall(name))
            tokens[commit.address.partition("@")[0]] += 1
            words.update(set(re.findall(r"(?<![\w.-])[a-z]{2,}(?![\w-])", _above(commit.message))))
        # What is written small as well is a word, unless it is the name of somebody very active.
        self.tokens = {
            token
            for token, count in tokens.items()
            if len(token) > 2 and (words[token.lower()] < 10 or (token.istitle() and count > 100))
        }

    def inside(self, text: str) -> bool:
        """Whether a text names somebody."""
        found = {*re.findall(r"[A-Za-z0-9][\w.'-]*[A-Za-z0-9]", text), *_NAME.findall(text)}
        return not self.tokens.isdisjoint(found)


def _above(message: str) -> str:
    """A message without its trailers."""
    lines = message.split("\n")
    end = next((at for at, line in enumerate(lines) if at and _TRAILER.match(line)), len(lines))
    return "\n".join(lines[:end])


def clean(commit: Commit) -> Mail | None:
    """The mail without what is no prose of its author; None if little or nothing is left."""
    subject, _, rest = _above(commit.message.strip()).partition("\n")
    kept = []
    for paragraph in re.split(r"\n\s*\n", rest):
        lines = [line for line in paragraph.split("\n") if line.strip()]
        if lines and not any(_BLOCK.match(line) for line in lines):
            kept.append(" ".join(" ".join(lines).split()))
    text = " ".join(kept)
    whole = f"{subject} {text}"
    letters = sum(letter.isalpha() or letter in " ,.'-_()" for letter in text)
    if (
        any(file.startswith(_ELSEWHERE) for file in commit.files)
        or not commit.files
        or re.search(r"^co-authored-by", commit.message, re.MULTILINE | re.IGNORECASE)
        or _ROUTINE.match(subject)
        or re.match(r"(datapath|compat)\b(?!-windows)", subject)
        or _FOREIGN.search(whole)
        or not LENGTH[0] <= len(text) <= LENGTH[1]
        or not SUBJECT[0] <= len(subject) <= SUBJECT[1]
        or len(subject.split()) < 3
        or text.endswith(":")
        or letters < 0.94 * len(text)
    ):
        return None
    return Mail(commit.date, subject, text)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def latest(mails: Iterable[Mail]) -> list[Mail]:
    """The first mails of those given, without more than a few a day and without near-duplicates."""
    kept: list[Mail] = []
    words: list[tuple[frozenset[str], frozenset[str]]] = []
    days: Counter[str] = Counter()
    for mail in mails:
        here = (_words(mail.subject), _words(mail.text))
        if days[mail.date] == A_DAY or any(
            len(a & b) > _ALIKE * len(a | b)
            for other in words
            for a, b in zip(here, other, strict=True)
        ):
            continue
        kept.append(mail)
        words.append(here)
        days[mail.date] += 1
        if len(kept) == MAILS:
            break
    return kept


def choose(commits: list[Commit], names: Names) -> dict[str, list[Mail]]:
    """The last mails of some people, chosen by chance of all that have enough."""
    able = {}
    for key, own in sorted(people_of(commits).items()):
        newest = own[::-1]
        newest.sort(key=lambda commit: commit.date, reverse=True)
        cleaned = filter(None, map(clean, newest))
        mails = latest(mail for mail in cleaned if not names.inside(_whole(mail)))
        if len(mails) == MAILS:
            able[key] = mails[::-1]
    print(f"{len(able)} people have {MAILS} such mails")
    chosen = random.Random(SEED).sample(sorted(able), PEOPLE)
    return {key: able[key] for key in chosen}


def _whole(mail: Mail) -> str:
    return f"{mail.subject} {mail.text}"


def left_over(texts: Collection[str], commits: Iterable[Commit]) -> list[str]:
    """Names and addresses of these commits' authors that are in texts: whole, or a part."""
    parts = set()
    for commit in commits:
        local = commit.address.partition("@")[0]
        parts |= {commit.name, commit.address, local, *_NAME.findall(commit.name)}
    everything = " ".join(texts)
    wanted = (part for part in parts if len(part) > 2)
    return [part for part in wanted if re.search(rf"\b{re.escape(part)}\b", everything)]


def as_text(people: dict[str, list[Mail]]) -> str:
    """The file's text: a mail a line, people by number."""
    blocks = []
    for number, mails in enumerate(people.values(), 1):
        lines = [json.dumps([mail.date, mail.subject, mail.text]) for mail in mails]
        blocks.append(f' "p{number:02}": [\n  ' + ",\n  ".join(lines) + "\n ]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> int:
    """Write, or with `--check` compare, the sample; 1 if it differs or names somebody."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    commits = read_commits(arguments.clone)
    people = choose(commits, Names(commits))
    theirs = [commit for key, own in people_of(commits).items() if key in people for commit in own]
    texts = [_whole(mail) for mails in people.values() for mail in mails]
    files = {"mails.json": as_text(people)}
    for name in ("LICENSE", "NOTICE"):
        files[name] = git(arguments.clone, "show", f"{LAST}:{name}")
    size = len(files["mails.json"])
    print(f"{len(people)} people, {len(texts)} mails, {size} bytes")
    if names := left_over(texts, theirs):
        print(f"names are left: {', '.join(sorted(names))}")
    if size > LIMIT:
        print(f"more than {LIMIT} bytes")
    if names or size > LIMIT:
        return 1
    if arguments.check:
        wrong = [name for name, text in files.items() if (FOLDER / name).read_text("utf-8") != text]
        print(f"not as made: {', '.join(wrong)}" if wrong else "as made")
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in files.items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
