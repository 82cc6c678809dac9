"""What personal adapters gain and what they make the model forget, with and without remedies.

    python benchmarks/forgetting/forgetting.py --backbone MODEL --data FOLDER

The gain is that of the loss of the true answers on a user's newest records, which are held back;
forgetting is measured by ``pfi.train.forgetting``.  Each setting of each group of users is a unit
of work that is done once: what is there is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pfi._util.files import write_atomic
from pfi.datasets.lamp import open_users
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import holding
from pfi.models.scoring import mean_losses
from pfi.tasks import Example, get_task
from pfi.train.config import ForgettingConfig, TrainConfig
from pfi.train.forgetting import GeneralProbe
from pfi.train.job import Job, as_piece
from pfi.train.precision import in_precision, precision_of
from pfi.train.trainers import get_trainer

#: A training that overdoes it.
USUAL = TrainConfig()
HARSH = {"learning_rate": 5 * USUAL.learning_rate, "epochs": 2 * USUAL.epochs}
#: By name what differs from the defaults of `pfi train`, and the weights that are measured.
SETTINGS: dict[str, tuple[dict[str, Any], Sequence[float]]] = {
    "as it comes": ({}, (1.0, 0.5)),
    "general 0.2": ({"general": 0.2}, (1.0,)),
    "rate / 3": ({"learning_rate": USUAL.learning_rate / 3}, (1.0,)),
    "harsh": (HARSH, (1.0, 0.5, 0.25)),
    "harsh, general 0.2": ({**HARSH, "general": 0.2}, (1.0,)),
}
HELD_BACK = 0.25
LONG = "long"
#: Loss that the general text may rise by, in nats a token: bounds that are compared.
BOUNDS = (0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Person:
    """Whose records are learnt from.

    Attributes:
        id: with the task.
        older, newest: examples to train on, and to measure on.
    """

    id: str
    older: list[Example]
    newest: list[Example]


def people(data: Path, tasks: Sequence[str], users: int, together: int) -> Iterator[list[Person]]:
    """The groups that are trained in one pass: some users of each task, then the long history."""
    for name in tasks:
        task = get_task(name)
        found = sorted(open_users(data / name, task, "dev"), key=lambda u: (-len(u.history), u.id))
        made = [
            (user.id, task.examples(user.history, random.Random(0)))
            for user in found[: max(users, together)]
        ]
        yield [_person(f"{name} {i}", examples) for i, examples in made[:users]]
    mixed = [example for _, examples in made[:together] for example in examples]
    random.Random(0).shuffle(mixed)
    yield [_person(LONG, mixed)]


def _person(name: str, examples: list[Example]) -> Person:
    cut = len(examples) - max(4, round(HELD_BACK * len(examples)))
    return Person(name, examples[:cut], examples[cut:])


def loss(backbone: Backbone, examples: Sequence[Example], adapter: Adapter | None) -> float:
    """Of the true answers, nats a token, as mean of examples."""
    bank, slot = holding(backbone, adapter)
    pieces = [as_piece(backbone, example, backbone.max_length) for example in examples]
    return fmean(mean_losses(bank.backbone, pieces, slots=[slot] * len(pieces)))


def run_setting(
    backbone: Backbone, probe: GeneralProbe, group: Sequence[Person], setting: str
) -> list[dict[str, Any]]:
    """Train a group's adapters in one way, and measure them."""
    changes, weights = SETTINGS[setting]
    config = TrainConfig(**changes)
    started = time.perf_counter()
    jobs = [Job(person.id, person.older) for person in group]
    trained = {
        job.id: result.adapter
        for job, result in get_trainer().train_many(backbone, jobs, config)
        if result is not None
    }
    seconds = (time.perf_counter() - started) / len(group)
    rows = []
    for person in group:
        before = loss(backbone, person.newest, None)
        for weight in weights:
            adapter = trained[person.id].scaled(weight)
            name = setting if weight == 1 else f"{setting}, weight {weight:g}"
            rows.append(
                {
                    "setting": name,
                    "person": person.id,
                    "records": len(person.older),
                    "before": before,
                    "after": loss(backbone, person.newest, adapter),
                    "seconds": seconds,
                    **probe.forgetting(adapter).figures(),
                }
            )
    return rows


def gain(row: dict[str, Any]) -> float:
    """What the loss on a user's own held-back records has fallen by."""
    return row["before"] - row["after"]


def rise(row: dict[str, Any]) -> float:
    """What the loss on general text has risen by."""
    return row["text_loss"] - row["text_loss_before"]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Means of each setting, for the users and for the long history, as Markdown."""
    lines = [
        "| histories | setting | own loss falls by | general text rises by | most "
        "| answers as before | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for long in (False, True):
        part = [row for row in rows if (row["person"] == LONG) == long]
        for setting in dict.fromkeys(row["setting"] for row in part):
            own = [row for row in part if row["setting"] == setting]
            records = sorted(row["records"] for row in own)
            who = f"{len(own)} users, {records[0]} to {records[-1]} records"
            lines.append(
                f"| {f'long, {records[0]} records' if long else who} | {setting} "
                f"| {fmean(map(gain, own)):.3f} | {fmean(map(rise, own)):+.3f} "
                f"| {max(map(rise, own)):+.3f} | {100 * fmean(r['agreement'] for r in own):.0f} % "
                f"| {fmean(r['seconds'] for r in own):.0f} |"
            )
    return lines


def bounds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many adapters are beyond each bound, and how those on either side answer."""
    lines = [
        "| bound, nats a token | beyond it | answers as before, beyond | within |",
        "|---|---:|---:|---:|",
    ]
    for bound in BOUNDS:
        beyond = [row["agreement"] for row in rows if rise(row) > bound]
        within = [row["agreement"] for row in rows if rise(row) <= bound]
        cells = [f"{100 * fmean(side):.0f} %" if side else "" for side in (beyond, within)]
        lines.append(f"| {bound:g} | {len(beyond)} of {len(rows)} | {' | '.join(cells)} |")
    return lines


def page(rows: Sequence[dict[str, Any]], backbone: str) -> str:
    """The results as Markdown."""
    return "\n".join(
        [
            "# Forgetting",
            "",
            f"Made by `benchmarks/forgetting/forgetting.py` on {backbone}, dev split, one seed.",
            "Losses in nats a token. The seconds are those of one user's training, on a machine",
            "with other work. Harsh: five times the rate, twice the epochs.",
            "",
            *table(rows),
            "",
            "All adapters above, by how much the loss on general text rose: how many tokens of its",
            "answers to general questions the model still gives as before.",
            "",
            *bounds(rows),
            "",
        ]
    )


def main() -> None:
    """Do what is left, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="LaMP-format folder")
    parser.add_argument("--tasks", nargs="+", default=["LaMP_4", "LaMP_6"])
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--together", type=int, default=5, help="users of the long history")
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("build/forgetting"))
    parser.add_argument("--name", default="forgetting", help="of the result files")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    state = options.work / f"{options.name}.json"
    done: dict[str, list[dict[str, Any]]] = json.loads(state.read_text()) if state.exists() else {}
    if not options.page:
        backbone = load_backbone(options.backbone)
        backbone = in_precision(backbone, precision_of(TrainConfig(), backbone))
        sizes = ForgettingConfig(passages=options.passages, questions=options.questions)
        probe = GeneralProbe(backbone, sizes, options.work)
        groups = people(options.data, options.tasks, options.users, options.together)
        for number, group in enumerate(groups):
            for setting in SETTINGS:
                key = f"{number} {setting}"
                if key not in done:
                    done[key] = run_setting(backbone, probe, group, setting)
                    write_atomic(state, json.dumps(done))
                    print(key, *table(done[key])[2:], sep="\n", flush=True)
    order = [*SETTINGS]
    keys = sorted(done, key=lambda key: order.index(key.partition(" ")[2]))
    rows = [row for key in keys for row in done[key]]
    results = Path("benchmarks/results")
    write_atomic(results / f"{options.name}.json", json.dumps(rows, indent=1) + "\n")
    name = Path(options.backbone).name.removesuffix(".gguf")
    write_atomic(results / f"{options.name}.md", page(rows, name))


if __name__ == "__main__":
    main()
