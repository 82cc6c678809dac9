"""Real people of ``pfi demo --real``: commit mails of Open vSwitch as a LaMP task.

``openvswitch/`` beside this module holds the mails, their licence and how they were chosen; here
they are divided into people to learn from and people to test, and written as LaMP files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pfi.datasets.folders import write_folder
from pfi.errors import ConfigError
from pfi.tasks import get_task

#: A mail's subject is told from its text.
TASK = "LaMP_6"
#: How many mails of a person are asked about at most; those before them are the profile.
QUESTIONS = {"train": 20, "test": 8}
ABOUT = (
    "Commit mails that real people wrote for Open vSwitch, under the Apache License 2.0; "
    "their names are replaced by numbers."
)
README = f"""{ABOUT}

The task is {TASK}: tell the subject line of a mail from its text. Seed {{seed}} divided the people
of the sample: the shared adapter learns from {{train}}; {{test}} are asked about.
LICENSE and NOTICE are those of Open vSwitch, SOURCE.md says where the mails are from.
"""


@dataclass(frozen=True, slots=True)
class Mail:
    """A day as ISO 8601, a subject line and the text below it."""

    date: str
    subject: str
    text: str


def read_people() -> dict[str, list[Mail]]:
    """The people of the sample by number, each with their mails, oldest first."""
    people = json.loads(_packaged("mails.json"))
    return {person: [Mail(*mail) for mail in mails] for person, mails in people.items()}


def _packaged(name: str) -> str:
    return (resources.files("pfi.datasets") / "openvswitch" / name).read_text(encoding="utf-8")


def mail_files(*, seed: int = 0, people: int = 14, users: int = 10) -> dict[str, str]:
    """The texts of the files by name; the same arguments give the same texts.

    Args:
        seed: divides the people.
        people: of the train split, which the shared adapter learns from.
        users: of the test split, who are asked about; nobody is in both.

    Raises:
        ConfigError: the sample has fewer people, or a split would be empty.
    """
    sample = read_people()
    if min(people, users) < 1 or people + users > len(sample):
        raise ConfigError(
            f"{users} people to ask about and {people} others cannot be taken from a sample of "
            f"{len(sample)}",
            where="--users, --people",
            fix=f"ask for at least 1 of each and at most {len(sample)} in all",
        )
    drawn = random.Random(seed).sample(sorted(sample), people + users)
    splits = {"train": sorted(drawn[:people]), "test": sorted(drawn[people:])}
    said = {split: f"{len(names)} ({', '.join(names)})" for split, names in splits.items()}
    files = {"README.md": README.format(seed=seed, **said), "SOURCE.md": _packaged("README.md")}
    files |= {name: _packaged(name) for name in ("LICENSE", "NOTICE")}
    for split, names in splits.items():
        asked: list[dict[str, Any]] = []
        golds: list[dict[str, str]] = []
        for person in names:
            _ask(person, sample[person], QUESTIONS[split], asked, golds)
        files[f"{TASK}/{split}_questions.json"] = json.dumps(asked, indent=1) + "\n"
        outputs = {"task": TASK, "golds": golds}
        files[f"{TASK}/{split}_outputs.json"] = json.dumps(outputs, indent=1) + "\n"
    return files


def _ask(
    person: str,
    mails: Sequence[Mail],
    number: int,
    asked: list[dict[str, Any]],
    golds: list[dict[str, str]],
) -> None:
    """Add the questions about a person's last mails, and the subjects that they had."""
    task, index = get_task(TASK), int(person[1:])
    first = len(mails) - number
    while mails[first].date == mails[first - 1].date:  # a question is later than the whole profile
        first += 1
    profile = [
        {"id": f"{index}{5000 + at}", "title": mail.subject, "text": mail.text, "date": mail.date}
        for at, mail in enumerate(mails[:first])
    ]
    for at, mail in enumerate(mails[first:]):
        question = {"id": f"{index}{at:04}", "user_id": person}
        prompt = task.prompt({"text": mail.text})
        asked.append({**question, "input": prompt, "date": mail.date, "profile": profile})
        golds.append({"id": question["id"], "output": mail.subject})


def write_mails(folder: Path, files: Mapping[str, str]) -> None:
    """Write what ``mail_files`` gives.

    Raises:
        StorageError: the folder holds something else than such files, or cannot be written.
    """
    write_folder(folder, files, label="README.md", about=ABOUT)


def holds_mails(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a folder has these very questions; what is said of them may be worded anew."""
    return all(
        (folder / name).is_file() and (folder / name).read_text("utf-8") == text
        for name, text in files.items()
        if name.startswith(f"{TASK}/")
    )
