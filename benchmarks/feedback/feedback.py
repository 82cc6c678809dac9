#!/usr/bin/env python
"""The feedback loop on made-up people: a taste that flips, and batches of feedback that lie.

    python benchmarks/feedback/feedback.py         # writes benchmarks/results/feedback.md
    python benchmarks/feedback/feedback.py --split dev --people 4 --print --set replay=1

The people and the movies are those of ``pfi demo``; each likes one kind of movie and not another.
Settings were chosen on people of the dev split, the page is of the test split.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pfi._util.files import write_atomic
from pfi._util.settings import nested_settings
from pfi.datasets import demo_text
from pfi.datasets.demo import Persona, write_demo
from pfi.models.backbone import Backbone, load_backbone
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn import candidates, feedback
from pfi.profile.learn.drift import Check, unharmed
from pfi.profile.learn.measuring import answer_scores
from pfi.profile.learn.refresh import Refreshed, refresh
from pfi.profile.open import create_home, open_home
from pfi.records import Record
from pfi.tasks import Example, Task

TASK = Task(
    name="likes",
    title="Movies that a person likes",
    kind="choice",
    question="Would I like this movie? {text}",
    inputs=["text"],
    output="answer",
    labels=["yes", "no"],
    item="{text} {answer}",
    item_trim="text",
    query=["text"],
    document=["text"],
    metrics=["accuracy"],
)
ROOT = Path(__file__).resolve().parents[2]
START = datetime(2024, 1, 1, tzinfo=UTC)
BEFORE, AFTER, EVERY = 24, 20, 5  # records before and after the flip; a refresh every so many
OWN, SAID, ASKED = 6, 16, 30  # own records and corrections in a batch, questions that measure
#: Made-up tastes are rules, which a high rate learns from few records.
TRAIN = {"learning_rate": 0.005, "epochs": 6}
Taste = Callable[[str], str]


def honest(persona: Persona) -> Taste:
    """The person's own taste: the kinds of movie that they tag in their own way."""
    return lambda text: "yes" if demo_text.movie_kind(text) in persona.tags else "no"


def opposite(persona: Persona) -> Taste:
    """What they liked, they do not, and the other way round."""
    return lambda text: "no" if demo_text.movie_kind(text) in persona.tags else "yes"


@dataclass
class Person:
    """One made-up person's device.

    Attributes:
        home: the device.
        persona: their taste at first.
        rng: what their records are drawn from.
        plain: the backbone.
        settings: of refreshes.
        seconds: how long each refresh that trained took.
    """

    home: Home
    persona: Persona
    rng: random.Random
    plain: Backbone
    settings: dict[str, Any]
    seconds: list[float]
    count: int = 0

    def texts(self, count: int) -> list[str]:
        cues: dict[str, list[str]] = demo_text.phrases()["movie"]["cues"]
        liked = [kind for kind in sorted(cues) if kind in self.persona.tags]
        others = [kind for kind in sorted(cues) if kind not in self.persona.tags]
        chosen = [self.rng.choice([liked[0], others[0]]) for _ in range(count)]
        return [" ".join(self.rng.sample(cues[kind], 2)) for kind in chosen]

    def live(self, count: int, taste: Taste) -> None:
        """Do things that make own records."""
        made = []
        for text in self.texts(count):
            self.count += 1
            when = START + timedelta(hours=self.count)
            made.append(Record(f"r{self.count}", TASK.name, {"text": text}, taste(text), when))
        with self.home.open_vault() as vault:
            vault.add(made)

    def correct(self, count: int, taste: Taste, batch: str) -> None:
        """Say of answers what they should have been."""
        for text in self.texts(count):
            fields = {"text": text}
            feedback.give(self.home, TASK, fields, answer="", correction=taste(text), batch=batch)

    def refresh(self, **how: Any) -> Refreshed:
        started = time.perf_counter()
        done = refresh(self.home, TASK, self.settings, backbone=self.plain, **how)
        if done.checks:
            self.seconds.append(time.perf_counter() - started)
        return done

    def accuracy(self, questions: Sequence[Example]) -> float:
        """Share of right answers of the version in use."""
        version = self.home.personal_adapters.active(TASK.name)
        adapters = [self.home.personal_adapters.load(version)] if version else []
        model = self.plain.with_adapters(adapters)
        return answer_scores(model, TASK, questions)["accuracy"]

    def questions(self, taste: Taste) -> list[Example]:
        found = []
        for n, text in enumerate(self.texts(ASKED)):
            fields = {"text": text}
            found.append(Example(TASK.prompt(fields), taste(text), fields, f"q{n}"))
        return found

    def copy(self, name: str) -> Person:
        """The same person once more."""
        path = self.home.path.parent / f"{self.home.profile}-{name}"
        shutil.copytree(self.home.path, path)
        home = open_home(path.name, root=path.parent)
        rng = random.Random()
        rng.setstate(self.rng.getstate())
        others = (self.plain, self.settings, self.seconds, self.count)
        return Person(home, self.persona, rng, *others)


# What is measured ---------------------------------------------------------------------


@dataclass(frozen=True)
class Flip:
    """One person's accuracy by records since the flip, with refreshes and without."""

    before: float
    refreshed: dict[int, float]
    never: float
    outcomes: dict[int, str]


def flip(person: Person) -> Flip:
    """A person with a version in use, whose taste flips."""
    before = person.accuracy(person.questions(honest(person.persona)))
    new = opposite(person.persona)
    asked = person.questions(new)
    never = person.accuracy(asked)
    refreshed, outcomes = {0: never}, {}
    for count in range(EVERY, AFTER + 1, EVERY):
        person.live(EVERY, new)
        outcomes[count] = person.refresh().outcome
        refreshed[count] = person.accuracy(asked)
    return Flip(before, refreshed, never, outcomes)


@dataclass(frozen=True)
class Said:
    """What a batch of feedback did to one person's model."""

    outcome: str
    doubtful: bool
    before: float
    after: float


def said(person: Person, taste: Taste, *, guarded: bool = True) -> Said:
    """A person with a version in use, who gives a batch of feedback."""
    own = honest(person.persona)
    asked = person.questions(own)
    before = person.accuracy(asked)
    person.live(OWN, own)
    person.correct(SAID, taste, "said")
    check = candidates.unharmed
    if not guarded:
        candidates.unharmed = _blind
    try:
        done = person.refresh(force=True)
    finally:
        candidates.unharmed = check
    return Said(done.outcome, "said" in done.doubtful, before, person.accuracy(asked))


def _blind(of: str, *rest: Any) -> Check:
    return unharmed(of, *rest) if of == "feedback" else Check(of, 0, 0.0, 0.0, 0.0, True)


def lies(persona: Persona, kind: str, rng: random.Random) -> Taste:
    """What a batch of feedback says."""
    if kind == "honest":
        return honest(persona)
    if kind == "random":
        return lambda text: rng.choice(TASK.labels)
    if kind == "always yes":
        return lambda text: "yes"
    return opposite(persona)


KINDS = ("honest", "opposite", "random", "always yes", "opposite, unguarded")


# The page -----------------------------------------------------------------------------


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--only", choices=("flip", "said"))
    parser.add_argument("--set", action="append", default=[], help="a refresh setting")
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/feedback.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    settings = nested_settings(arguments.set)
    config = HomeConfig(backbone="embedded", records=0, embedder="none", train=TRAIN)
    flips: list[Flip] = []
    batches: dict[str, list[Said]] = {}
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = write_demo(folder / "demo", users=max(12, 2 * arguments.people))
        plain = load_backbone("embedded", device="cpu")
        found = [truth.personas[user] for user in truth.splits[arguments.split]]
        personas = [persona for persona in found if persona.tags][: arguments.people]
        for number, persona in enumerate(personas):
            home = create_home(f"person{number}", root=folder / "homes", config=config, lock="file")
            rng = random.Random(number)
            first = Person(home, persona, rng, plain, settings, spent)
            first.live(BEFORE, honest(persona))
            print(number, first.refresh().outcome, flush=True)
            if arguments.only != "said":
                flips.append(flip(first.copy("flip")))
                print(number, flips[-1], flush=True)
            for at, kind in enumerate(KINDS if arguments.only != "flip" else ()):
                taste = lies(persona, kind, random.Random(number))
                result = said(first.copy(f"said{at}"), taste, guarded="un" not in kind)
                batches.setdefault(kind, []).append(result)
                print(number, kind, result, flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    text = page(flips, batches, len(personas), fmean(spent), time.perf_counter() - started, used)
    print(text)
    if not arguments.print:
        write_atomic(arguments.out, text)


def page(
    flips: Sequence[Flip],
    batches: dict[str, list[Said]],
    people: int,
    seconds: float,
    wall: float,
    used: float,
) -> str:
    """The results as a page."""
    lines = [
        "# The feedback loop",
        "",
        f"`python benchmarks/feedback/feedback.py`: {people} made-up people of `pfi demo`'s test"
        " split. Each likes one kind of movie and not another;",
        "would they like this one? Embedded backbone, personal adapters only, nothing retrieved."
        f" Accuracy over {ASKED} new questions",
        "a person. The tastes are rules: this shows what the loop does, not how much people gain.",
        f"One thread: {wall:.0f} s in all, {used:.0f} s of CPU; a refresh that trains takes"
        f" {seconds:.1f} s.",
        "",
    ]
    if flips:
        lines += flip_lines(flips)
    if batches:
        lines += said_lines(batches)
    return "\n".join(lines)


def flip_lines(flips: Sequence[Flip]) -> list[str]:
    """The table of the flip."""
    counts = sorted(flips[0].refreshed)
    before, never = fmean(f.before for f in flips), fmean(f.never for f in flips)
    means = [fmean(f.refreshed[c] for f in flips) for c in counts]
    new = [
        sum(any(f.outcomes[d] == "accepted" for d in f.outcomes if d <= c) for f in flips)
        for c in counts
    ]
    whole = [sum(f.refreshed[c] >= f.before - 0.1 for f in flips) for c in counts]
    rows = {
        "accuracy with refreshes": [f"{mean:.2f}" for mean in means],
        "accuracy without": [f"{never:.2f}" for _ in counts],
        "people with a new version": [f"{n} of {len(flips)}" for n in new],
        "people within 0.1 of before": [f"{n} of {len(flips)}" for n in whole],
    }
    return [
        "## A taste that flips",
        "",
        f"After {BEFORE} records and a first version, accuracy {before:.2f}, each person likes what"
        " they did not like and the other way",
        f"round. `pfi refresh` runs after every {EVERY} records.",
        "",
        f"| records since | {' | '.join(map(str, counts))} |",
        "|---|" + "---|" * len(counts),
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
    ]


def said_lines(batches: dict[str, list[Said]]) -> list[str]:
    """The table of batches of feedback."""
    lines = [
        "## Batches of feedback",
        "",
        f"After {BEFORE} records and a first version come {OWN} own records and a batch of {SAID}"
        " corrections, then `pfi refresh --force`:",
        "honest ones, the opposite of the person's taste, random ones, or always yes. `unguarded`"
        " is without the checks on own",
        "records. Accuracy is by the person's own taste.",
        "",
        "| batch | new version | batch marked doubtful | accuracy before | accuracy after |",
        "|---|---|---|---|---|",
    ]
    for kind, found in batches.items():
        accepted = sum(s.outcome == "accepted" for s in found)
        doubtful = sum(s.doubtful for s in found)
        lines.append(
            f"| {kind} | {accepted} of {len(found)} | {doubtful} of {len(found)} | "
            f"{fmean(s.before for s in found):.2f} | {fmean(s.after for s in found):.2f} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
