#!/usr/bin/env python
"""Questions that have nothing to do with a person's notes, after training on these notes.

    python benchmarks/backbones/off_topic.py --backbone smollm2-135m

A made-up person's 200 notes are imported and trained on.  Then 40 general questions are asked:
which share is answered word for word as the backbone alone answers?  And 40 later notes of the same
kinds: how much of what the adapter and the records gain in loss is kept?  Both beside the same
profile without a floor on likeness.  The run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from off_topic_data import OFF_TOPIC, notes, records

from pfi._util.files import write_atomic
from pfi.inference.engine import Engine, Sampling, Scoring, text_of
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.answer.runtime import Prepared, Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn.training import train
from pfi.profile.open import create_home, open_home
from pfi.records import Record
from pfi.tasks import Task, get_task

TRAINED, ASKED = 200, 40
TOKENS = 48  # of an answer that is compared
#: How the same notes are kept: as questions with answers, or as notes with titles.
KINDS = ("instruction", "note_title")


def records_of(kind: str) -> list[Record]:
    """All notes of a kind, those that are asked about last."""
    made = records(notes(TRAINED + ASKED, seed=0))
    if kind == "instruction":
        return made
    # The title is what a person would look for: the end of the question.
    return [
        Record(
            record.id,
            kind,
            {"text": f"{record.input['instruction']} {record.output}"},
            " ".join(record.input["instruction"].rstrip("?").split()[-4:]),
            record.time,
        )
        for record in made
    ]


def home_of(kind: str, backbone: str, root: Path, epochs: float) -> Home:
    """A trained profile; the one of an earlier run where there is one."""
    task = get_task(kind)
    try:
        home = open_home(kind.replace("_", "-"), root=root)
    except Exception:
        config = HomeConfig(backbone=backbone, embedder="none")
        home = create_home(kind.replace("_", "-"), root=root, config=config, lock="file")
        with home.open_vault() as vault:
            vault.add(records_of(kind)[:TRAINED])
    if home.personal_adapters.active(kind) is None:
        begun = time.time()
        trained = train(
            home, task, {"epochs": epochs}, on_step=lambda step, steps, loss: print(
                f"\r{kind}: step {step} of {steps}, loss {loss:.2f}", end="", file=sys.stderr
            )
        )  # fmt: skip
        print(f"\n{kind}: trained in {time.time() - begun:.0f} s", file=sys.stderr)
        home.personal_adapters.use(trained.version.version)
    return home


class Asker:
    """Asks one profile with the floor, and as if there was none.

    Args:
        runtime: the profile's.
        task: of its records.
    """

    def __init__(self, runtime: Runtime, task: Task) -> None:
        self.runtime, self.task = runtime, task
        self.engine: Engine = runtime.engine

    def floored(self, text: str) -> Prepared:
        """As `pfi ask TEXT` asks."""
        return self.runtime.prepare(text, self.task, named=False)

    def always(self, text: str) -> Prepared:
        """With adapter and records whatever the question is."""
        personal, shared = self.runtime.versions(self.task)
        retrieval = self.runtime.home.config.retrieve
        with self.runtime.home.vault_session():
            query = self.task.query_text(self._fields(text))
            shown = self.runtime.memory(self.task).search(query, retrieval)
        prompt = self.task.prompt(self._fields(text))
        filled = self.runtime._retrieval.fill(self.task, prompt, shown)
        adapter = self.runtime._weighted(personal, shared, 1.0)
        return Prepared(self.task, filled.prompt, filled.ids, adapter, filled.records)

    def plain(self, text: str) -> Prepared:
        """The backbone alone, as a person without a profile would ask it."""
        return self.runtime.generic([("user", text)])

    def _fields(self, text: str) -> dict[str, str]:
        return dict.fromkeys(self.task.inputs, text)

    def answer(self, prepared: Prepared) -> str:
        """Greedily."""
        request = replace(prepared.request(Sampling(max_tokens=TOKENS)), owner="")
        return text_of(self.engine.generate(request))

    def loss(self, prepared: Prepared, target: str) -> float:
        """Of the right answer, nats a token."""
        ids = self.engine.prompter.target_ids(target)
        (row,) = self.engine.score_all([Scoring(prepared.ids, [ids], prepared.adapter)])
        return -row[0] / len(ids)

    def off_topic(self, question: str) -> dict[str, Any]:
        """What answers to a question that has nothing to do with the notes."""
        floored, always = self.floored(question), self.always(question)
        plain = self.answer(self.plain(question))
        return {
            "same": self.answer(floored) == plain,
            "same without floor": self.answer(always) == plain,
            "turned away": bool(floored.likeness and floored.likeness.off_topic),
            "likeness": floored.likeness.value if floored.likeness else None,
        }

    def on_topic(self, record: Record) -> dict[str, Any]:
        """The loss of a later note."""
        (text,) = (record.input[name] for name in self.task.inputs)
        floored = self.floored(text)
        prompted = replace(self.plain(text), ids=tuple(self._plainly(text)))
        return {
            "backbone": self.loss(prompted, record.output),
            "always": self.loss(self.always(text), record.output),
            "floored": self.loss(floored, record.output),
            "turned away": bool(floored.likeness and floored.likeness.off_topic),
            "likeness": floored.likeness.value if floored.likeness else None,
        }

    def _plainly(self, text: str) -> list[int]:
        return self.engine.prompter.prompt_ids(self.task.prompt(self._fields(text)))


def run(
    kind: str,
    search: str,
    home: Home,
    engine: Engine,
    done: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Ask all that was not asked yet."""
    home.config.embedder = search
    task = get_task(kind)
    with closing(Runtime(home, engine)) as runtime:
        asker = Asker(runtime, task)
        for question in OFF_TOPIC:
            key = f"{kind}|{search}|off|{question}"
            if key not in done:
                done[key] = asker.off_topic(question)
                save()
        for record in records_of(kind)[TRAINED:]:
            key = f"{kind}|{search}|on|{record.id}"
            if key not in done:
                done[key] = asker.on_topic(record)
                save()


def table(done: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown."""
    lines = [
        "| notes as | search | off topic: as the backbone | without the floor | on topic: passed "
        "| loss: backbone | with adapter and records | with the floor | gain kept |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, search in dict.fromkeys(tuple(key.split("|")[:2]) for key in done):
        off = [v for k, v in done.items() if k.startswith(f"{kind}|{search}|off|")]
        on = [v for k, v in done.items() if k.startswith(f"{kind}|{search}|on|")]
        if not off or not on:
            continue
        plain, always, floored = (
            fmean(v[name] for v in on) for name in ("backbone", "always", "floored")
        )
        kept = (plain - floored) / (plain - always)
        same = sum(v["same"] for v in off)
        before = sum(v["same without floor"] for v in off)
        passed = sum(not v["turned away"] for v in on)
        how = "by words" if search == "none" else "by words and meaning"
        lines.append(
            f"| `{kind}` | {how} | {same} of {len(off)} | {before} of {len(off)} "
            f"| {passed} of {len(on)} | {plain:.2f} | {always:.2f} | {floored:.2f} "
            f"| {kept:.0%} |"
        )
    return lines


def main() -> None:
    """Run what is left, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--name", help="of the backbone on the page")
    parser.add_argument("--work", type=Path, default=Path("build/off-topic"))
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--searches", nargs="+", default=["none", "minilm"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/off-topic.md"))
    options = parser.parse_args()
    state = options.work / "answers.json"
    done = json.loads(state.read_text()) if state.exists() else {}

    def save() -> None:
        write_atomic(state, json.dumps(done).encode())

    options.work.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        home = home_of(kind, options.backbone, options.work, options.epochs)
        engine = make_engine(EngineChoice.of(home.config), home.models_folder)
        try:
            for search in options.searches:
                run(kind, search, home, engine, done, save)
        finally:
            engine.close()
        print("\n".join(table(done)), flush=True)
    page = [
        "# Questions that are off topic",
        "",
        f"{TRAINED} made-up notes, {options.epochs:g} epochs, backbone "
        f"{options.name or options.backbone}; {len(OFF_TOPIC)} general questions and "
        f"{ASKED} later notes.",
        "Made by `benchmarks/backbones/off_topic.py`. Losses in nats a token of the right answer; "
        "the gain is",
        "that over the backbone alone, asked as the same task.",
        "",
        *table(done),
        "",
    ]
    write_atomic(options.out, "\n".join(page).encode())


if __name__ == "__main__":
    main()
