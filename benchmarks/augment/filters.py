#!/usr/bin/env python
"""Precision and recall of the filters over drafts, on planted cases.

    python benchmarks/augment/filters.py --data ../shared/data/lamp
    python benchmarks/augment/filters.py --data ../shared/data/lamp --tune

Each user keeps some of their records; others of their own stand in for good drafts, and bad ones
are planted among them.  ``--tune`` prints shares by threshold for users with even ids; the table
in ``benchmarks/results/filters.md`` is of those with odd ids.  Figures only: no text is written.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from pfi._util.files import write_atomic
from pfi.augment.config import FilterConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.filters.filters import FILTERS, Bench, apply_filters
from pfi.augment.filters.judge import BackboneJudge
from pfi.augment.filters.likeness import subject_text, whole_text
from pfi.datasets.lamp import available_tasks, read_users
from pfi.models.backbone import load_backbone
from pfi.records import History, Record, User
from pfi.tasks import Example, Task, get_task

#: Planted kinds and the filter that is meant to drop each; None: reported, nothing promised.
KINDS: dict[str, str | None] = {
    "good": None,
    "left-over placeholder": "well_formed",
    "words of a chat": "well_formed",
    "no such label": "valid_label",
    "copy, exact": "copy",
    "copy, case and punctuation": "copy",
    "copy, sentences reordered": "copy",
    "copy, 10 % of words changed": "copy",
    "copy, 20 % of words changed": "copy",
    "copy, 40 % of words changed": None,
    "duplicate of a good draft": "copy",
    "of another task": "distance",
    "of another user": None,
    "words shuffled": "perplexity",
    "output of another record": None,
}
#: Tasks whose users write the same texts.
SAME_TEXTS = [{"LaMP_2N", "LaMP_4"}, {"LaMP_1", "LaMP_5"}]
PLANTS = 2  # of each kind and user
GOOD = 8


@dataclass(frozen=True)
class Case:
    """A user with planted drafts; a draft's template is its kind."""

    subject: Subject
    drafts: list[Draft]


def changed(text: str, share: float, others: Sequence[str], rng: random.Random) -> str:
    """A text with that share of its words, at least one, replaced by others."""
    words = text.split()
    for i in rng.sample(range(len(words)), min(len(words), max(1, round(share * len(words))))):
        words[i] = rng.choice(others)
    return " ".join(words)


def reordered(text: str, rng: random.Random) -> str:
    """A text's sentences in another order; its halves swapped if it is one sentence."""
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    if len(parts) > 1:
        return " ".join([*parts[1:], parts[0]])
    words = text.split()
    return " ".join([*words[len(words) // 2 :], *words[: len(words) // 2]])


def shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def as_draft(task: Task, record: Record, kind: str, edit: object = None) -> Draft:
    """A record as a draft; ``edit`` is applied to each of its texts, labels left alone."""
    change = edit if callable(edit) else str
    fields = {name: change(record.input.get(name, "")) for name in task.inputs}
    output = record.output if task.labels else change(record.output)
    return Draft(fields, output, "write", kind)


def foreign(task: Task, other: Task, record: Record, rng: random.Random) -> Draft:
    """A record of another task in the fields of this one."""
    long = max([*(record.input.get(n, "") for n in other.inputs), ""], key=len) or record.output
    short = record.output if not other.labels and other.inputs else long[:60]
    output = rng.choice(task.labels) if task.labels and task.output else ""
    if task.output and not task.labels:
        output = short if task.inputs else long
    asked = {name: long if "title" not in name else short for name in task.inputs}
    return Draft(asked, output, "write", "of another task")


def plant(task: Task, user: User, users: Sequence[User], elsewhere: Sequence[Draft], real: int,
          rng: random.Random) -> Case | None:  # fmt: skip
    """A case; None for a user with too few different records."""
    unique = {subject_text(task, r): r for r in user.history}
    records = list(unique.values())
    rng.shuffle(records)
    mine, good = records[:real], records[real : real + GOOD]
    if len(mine) < real or len(good) < 3:
        return None
    strangers = [r for other in users if other.id != user.id for r in other.history]
    vocabulary = [w for r in rng.sample(strangers, 20) for w in whole_text(task, r).split()]
    edits = {
        "copy, exact": str,
        "copy, case and punctuation": lambda t: re.sub(r"[.,;:!?]", "", t).upper(),
        "copy, sentences reordered": lambda t: reordered(t, rng),
        **{
            f"copy, {share} % of words changed": (
                lambda t, s=share: changed(t, s / 100, vocabulary, rng) if t else t
            )
            for share in (10, 20, 40)
        },
    }
    bad = []
    for _ in range(PLANTS):
        bad += [as_draft(task, rng.choice(mine), kind, edit) for kind, edit in edits.items()]
        own, *new = rng.choice(good), *rng.sample(strangers, 6)
        bad.append(as_draft(task, own, "duplicate of a good draft"))
        bad.append(rng.choice(elsewhere))
        bad.append(as_draft(task, new[0], "of another user"))
        bad.append(as_draft(task, new[1], "words of a chat", lambda t: f"Sure! Here is it: {t}"))
        bad.append(as_draft(task, new[2], "left-over placeholder", lambda t: f"{t} [NAME_7]"))
        bad.append(as_draft(task, own, "words shuffled", lambda t: shuffled(t, rng)))
        if task.labels and task.output:
            wrong = rng.choice([label for label in task.labels if label != own.output])
            bad.append(replace(as_draft(task, new[3], "no such label"), output=f"not {wrong}"))
            other = as_draft(task, new[4], "output of another record")
            wrong = rng.choice([label for label in task.labels if label != other.output])
            bad.append(replace(other, output=wrong))
        elif task.output and task.inputs:
            other = as_draft(task, new[4], "output of another record")
            bad.append(replace(other, output=new[5].output))
    rng.shuffle(bad)
    drafts = [*(as_draft(task, r, "good") for r in good), *bad]
    history = History(user.id, (replace(r, time=None) for r in mine))
    return Case(Subject(task, history, strangers[:1], lambda text, n: text, 0), drafts)


def cases(data: Path, split: str, real: int, most: int, half: int) -> Iterator[Case]:
    """Cases of all tasks, of the users whose id leaves ``half`` when divided by two."""
    names = available_tasks(data, split)
    users = {name: list(read_users(data, get_task(name), split)) for name in names}
    for name in names:
        task, rng = get_task(name), random.Random(name)
        others = [n for n in names if n != name and {n, name} not in SAME_TEXTS]
        elsewhere = [
            foreign(task, get_task(n), rng.choice(list(rng.choice(users[n]).history)), rng)
            for n in others
            for _ in range(20)
        ]
        found = 0
        for user in (u for u in users[name] if int(u.id) % 2 == half):
            case = plant(task, user, users[name], elsewhere, real, rng)
            if case and found < most:
                found += 1
                yield case


def dropped_by(case: Case, config: FilterConfig, judge: BackboneJudge) -> list[tuple[str, str]]:
    """Of each draft its kind and the filter that dropped it, "" if none did."""
    left = [replace(draft, source=str(i)) for i, draft in enumerate(case.drafts)]
    bench = Bench(case.subject, config, len(left), judge)
    found: dict[str, str] = {}
    for name in TABLE:
        verdicts = FILTERS[name](bench, left)
        found.update({v.draft.source: name for v in verdicts if v.reason})
        left = [v.draft for v in verdicts if not v.reason]
    return [(draft.template, found.get(str(i), "")) for i, draft in enumerate(case.drafts)]


def table(found: Sequence[Case], judge: BackboneJudge, real: int) -> list[str]:
    """The page's part on users with so many real records."""
    config, started = FilterConfig(), time.perf_counter()
    dropped = [pair for case in found for pair in dropped_by(case, config, judge)]
    seconds = time.perf_counter() - started
    kinds = Counter(kind for kind, _ in dropped)
    by = Counter(dropped)
    users = f"{len(found)} users with {real} real records each, {len(dropped)} drafts"
    lines = [f"## {users}", ""]
    lines += ["| filter | precision | recall | good drafts dropped |", "|---|---|---|---|"]
    for name in TABLE:
        own = [kind for kind, meant in KINDS.items() if meant == name]
        # What an earlier filter dropped never came to this one.
        came = sum(n for (k, who), n in by.items() if k in own and who not in _before(name))
        hits = sum(by[kind, name] for kind in own)
        bad = sum(by[kind, name] for kind, meant in KINDS.items() if meant)
        good = by["good", name]
        lines.append(f"| {name} | {_share(bad, bad + good)} | {_share(hits, came)} "
                     f"| {_share(good, kinds['good'])} |")  # fmt: skip
    lines += ["", "| planted | drafts | meant for | dropped by it | dropped by any |"]
    lines += ["|---|---|---|---|---|"]
    for kind, meant in KINDS.items():
        if kinds[kind]:
            any_ = sum(by[kind, name] for name in TABLE)
            own_ = _share(by[kind, meant], kinds[kind]) if meant else ""
            lines.append(f"| {kind} | {kinds[kind]} | {meant or ''} | {own_} "
                         f"| {_share(any_, kinds[kind])} |")  # fmt: skip
    return [*lines, "", *choosing(found, judge), "",
            f"{1000 * seconds / len(dropped):.1f} ms a draft.", ""]  # fmt: skip


def choosing(found: Sequence[Case], judge: BackboneJudge) -> list[str]:
    """What balance and diversity do to the drafts of users, as averages over them."""
    moved, spread = [], []
    for case in found:
        task, real = case.subject.task, case.subject.history
        drafts = [replace(d, confidence=1 / (1 + i)) for i, d in enumerate(case.drafts)]
        drafts = [d for d in drafts if d.template != "no such label"]
        if task.labels and task.output:
            # Twice as many again, with labels by chance that their voters were less sure of.
            rng = random.Random(case.subject.user)
            more = [replace(d, output=rng.choice(task.labels), confidence=0.0) for d in drafts * 2]
            bench = Bench(case.subject, FilterConfig(), len(drafts), judge)
            left = [v.draft for v in FILTERS["balance"](bench, drafts + more) if not v.reason]
            own = Counter(r.output for r in real)
            moved.append((_apart(own, drafts + more), _apart(own, left)))
        half = len(drafts) // 2
        bench = Bench(case.subject, FilterConfig(), half, judge)
        verdicts = FILTERS["diversity"](bench, drafts)
        chosen = [v.draft for v in verdicts if not v.reason]
        spread.append((_nearest(bench, drafts[:half]), _nearest(bench, chosen)))
    a, b = (fmean(pair[i] for pair in moved) for i in (0, 1))
    c, d = (fmean(pair[i] for pair in spread) for i in (0, 1))
    return [
        "balance, with twice as many drafts of chance labels added: labels' distance from the "
        f"user's own (total variation) {a:.2f} before, {b:.2f} after ({len(moved)} users).",
        f"diversity: likeness to the nearest other draft {c:.2f} among the first half of all "
        f"drafts, {d:.2f} among the half chosen ({len(spread)} users).",
    ]


def _before(name: str) -> tuple[str, ...]:
    return TABLE[: TABLE.index(name)]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def _apart(own: Counter[str], drafts: Sequence[Draft]) -> float:
    made = Counter(draft.output for draft in drafts)
    total, n = sum(own.values()), max(1, len(drafts))
    return sum(abs(own[label] / total - made[label] / n) for label in {*own, *made}) / 2


def _nearest(bench: Bench, drafts: Sequence[Draft]) -> float:
    vectors = bench.vectors(drafts)
    among = vectors @ vectors.T
    np.fill_diagonal(among, -1)
    return float(among.max(axis=1).mean())


_SHOWN = ("copy_rouge", "copy_jaccard", "distance", "perplexity", "balance", "diversity")
#: The filters that planted cases are made for, in the order they are applied.
TABLE = ("well_formed", "valid_label", "copy", "distance", "perplexity")


def tune(found: Sequence[Case], judge: BackboneJudge) -> None:
    """Shares of each kind beyond possible thresholds."""
    loose = FilterConfig(copy_rouge=1.0, copy_jaccard=None, agreement=None, distance=1e9,
                         perplexity=1e9, balance=None, diversity=None)  # fmt: skip
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ranges: dict[str, list[float]] = defaultdict(list)
    for case in found:
        kept = apply_filters(case.subject, case.drafts, loose, 10**6, judge).kept
        task = case.subject.task
        texts = [whole_text(task, record) for record in case.subject.history]
        losses = judge.losses([Example(task.title, text, {}, "") for text in texts])
        for draft in kept:
            for name, value in draft.scores.items():
                scores[name][draft.template].append(value)
            loss = draft.scores.get("perplexity")
            if loss is not None:
                beyond = max(loss - max(losses), min(losses) - loss)
                ranges[draft.template].append(beyond)
    grids: dict[str, tuple[float, ...]] = {
        "copy_rouge": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85),
        "copy_jaccard": (0.3, 0.4, 0.5, 0.6, 0.7),
        "distance": (0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5),
    }
    for name, grid in grids.items():
        print(f"\n{name}: share at or beyond {grid}")
        for kind in KINDS:
            if values := scores[name].get(kind):
                shares = " ".join(f"{fmean(v >= t for v in values):.3f}" for t in grid)
                print(f"  {kind:32s} {len(values):5d}  {shares}")
    grid = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    print(f"\nperplexity: share beyond a margin of {grid}")
    for kind, values in ranges.items():
        print(f"  {kind:32s} {len(values):5d}  "
              + " ".join(f"{fmean(v > t for v in values):.3f}" for t in grid))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lamp"))
    parser.add_argument("--split", default="dev")
    parser.add_argument("--users", type=int, default=20, help="most users a task")
    parser.add_argument("--real", type=int, nargs="+", default=[4, 8], help="real records of each")
    parser.add_argument("--tune", action="store_true", help="print shares by threshold instead")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/filters.md"))
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"there is no {given.data}; nothing to measure on")
        return
    judge = BackboneJudge(load_backbone("embedded"))
    if given.tune:
        for real in given.real:
            print(f"\n== {real} real records")
            tune(list(cases(given.data, given.split, real, given.users, 0)), judge)
        return
    config = FilterConfig()
    limits = ", ".join(f"{name} {getattr(config, name)}" for name in _SHOWN)
    lines = [f"# Filters on planted drafts: LaMP-format {given.split} users", "",
             "Made by `python benchmarks/augment/filters.py`, of users with odd ids, with the "
             "embedded backbone and the default "
             f"thresholds ({limits}), which were chosen on train users "
             "and on dev users with even ids.", "",
             "Good drafts are the user's own records that the filters do not see. Precision: the "
             "planted among the dropped, without kinds that no filter is meant for. Recall: of the "
             "planted that came to a filter and are meant for it.", ""]  # fmt: skip
    for real in given.real:
        found = list(cases(given.data, given.split, real, given.users, 1))
        lines += table(found, judge, real)
    write_atomic(given.to, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
