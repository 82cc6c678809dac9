#!/usr/bin/env python
"""Which questions get records: 40 about a person's notes and 40 about none, in ten languages.

    python benchmarks/backbones/off_topic_languages.py

Asked through `Runtime.prepare`, as `pfi ask` and `pfi serve` do, with the embedded backbone: which
records a prompt shows does not depend on what answers.  Each language's notes are a profile, and
all notes together are one; with few notes and with more; with words alone and with the sentence
model, where it is installed; before and after a gate is fitted that wants records.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from off_topic_languages_data import LANGUAGES, Language

from pfi._util.files import write_atomic
from pfi.gate.choices import Choice, GateConfig
from pfi.inference.engine import Engine
from pfi.memory.embedders import find_embedder
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.answer.gate_file import Fitted, write_gate
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

TASK = get_task("instruction")
FEW = 5  # fewer records than a floor is fitted on


@dataclass
class Counts:
    """What became of the questions of some profiles.

    Attributes:
        unmatched: questions about no note.
        given: of these, how many got a record.
        matched: questions about a note.
        right: of these, how many got that note.
        strangers: records in their prompts that they are not about.
        which: the questions that went wrong.
    """

    unmatched: int = 0
    given: int = 0
    matched: int = 0
    right: int = 0
    strangers: int = 0
    which: tuple[str, ...] = ()

    def add(self, runtime: Runtime, languages: Sequence[Language]) -> None:
        """Ask one profile the questions of some languages."""
        for language in languages:
            for question in language.unmatched:
                records = runtime.prepare(question, TASK, named=False).records
                self.unmatched += 1
                self.given += bool(records)
                self.which += (question,) * bool(records)
            for question, about in language.matched():
                ids = [one.id for one in runtime.prepare(question, TASK, named=False).records]
                self.matched += 1
                self.right += about in ids
                self.strangers += len({*ids} - {about})
                self.which += (question,) * (about not in ids)


def profiles(few: bool) -> Iterator[tuple[str, list[Record], Sequence[Language]]]:
    """A name, records and the languages that are asked."""
    for language in LANGUAGES:
        yield language.code, language.records()[: FEW if few else None], [language]


def together() -> Iterator[tuple[str, list[Record], Sequence[Language]]]:
    """One profile with all notes."""
    records = [record for language in LANGUAGES for record in language.records()]
    yield "all", sorted(records, key=lambda record: str(record.time)), LANGUAGES


def fit_gate(home: Home) -> None:
    """A gate as `pfi gate fit` writes it, which wants two records for every question."""
    gate = Fitted(
        task=TASK.name,
        choice=Choice(k=2),
        sure=1.0,
        gain=0.1,
        tried=8,
        users=0,
        backbone=home.config.backbone,
        personal=None,
        shared=None,
        settings=GateConfig(),  # type: ignore[call-arg]
        date=datetime.now(UTC),
    )
    write_gate(home, {TASK.name: gate})


def run(embedder: str, engine: Engine) -> Iterator[tuple[str, str, str, Counts]]:
    """Settings and counts, one after the other."""
    for records, kind in ("5 notes", True), ("12 notes", False), ("120 notes", None):
        for gate in ("none", "fitted"):
            counts = Counts()
            with tempfile.TemporaryDirectory() as folder:
                people = together() if kind is None else profiles(kind)
                for name, notes, languages in people:
                    config = HomeConfig(embedder=embedder)
                    home = create_home(name, root=Path(folder), config=config, lock="file")
                    with home.open_vault() as vault:
                        vault.add(notes)
                    if gate == "fitted":
                        fit_gate(home)
                    with closing(Runtime(home, engine)) as runtime:
                        counts.add(runtime, languages)
            yield records, embedder, gate, counts


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    out = Path("benchmarks/results/off-topic-languages.md")
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    lines = [
        "# Which questions get records, in ten languages",
        "",
        "Made by `benchmarks/backbones/off_topic_languages.py`: notes and questions in English, "
        "German, French, Spanish,",
        "Italian, Russian, Arabic, Chinese, Japanese and Korean. *Strangers* are records in the "
        "prompts of questions with",
        "a match that they are not about.",
        "",
        "| notes of a profile | search | gate | no match: got a record | a match: got it "
        "| strangers |",
        "|---|---|---|---:|---:|---:|",
    ]
    searches = ["none"] + ["auto"] * (find_embedder() is not None)
    engine = make_engine(EngineChoice.of(HomeConfig()), Path("build/off-topic"))
    with closing(engine):
        for embedder in searches:
            how = "by words" if embedder == "none" else "by words and meaning"
            for records, _, gate, counts in run(embedder, engine):
                lines.append(
                    f"| {records} | {how} | {gate} | {counts.given} of {counts.unmatched} "
                    f"| {counts.right} of {counts.matched} | {counts.strangers} |"
                )
                print(lines[-1], *counts.which, sep="\n    ", flush=True)
    write_atomic(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
