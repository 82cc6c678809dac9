#!/usr/bin/env python
"""Robust rules on real LoRA updates: a small federation over the embedded backbone on LaMP_2N.

    python benchmarks/robust/robust_lora.py --data ../shared/data/lamp --minutes 15

Clients train in the simulation of `pfi federate`; the fleet replaces what bad clients send.
Quality is the held-out users' mean loss. Adds its part to the files that `robust.py` writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from robust import RESULTS, Found, page

from pfi._util.files import write_atomic, write_json
from pfi._util.seeds import generator
from pfi.federate.attacks import ATTACKS, label_flip
from pfi.federate.config import FederateConfig
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation, divide
from pfi.federate.simulate import SimulatedFleet
from pfi.federate.users import Users
from pfi.models.backbone import load_backbone
from pfi.tasks import Example, get_task

SHARE, USERS = 0.2, 15
RULES = {"mean": None, "spectral (default)": {}, "nnm + geometric-median": {
    "pre": "nnm", "rule": "geometric-median"}}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "strategy": "ffa",
    "rounds": 3,
    "cohort": 10,
    "held_out": 1 / 3,
    "evaluate_every": 100,
    "local": {"rank": 4, "alpha": 8, "learning_rate": 0.005, "steps": 2, "max_length": 96},
}


class Flipped:
    """A population in which bad clients learn from flipped labels."""

    def __init__(self, users: Users, bad: set[str], labels: Sequence[str]) -> None:
        self._users, self._bad, self._labels = users, bad, labels

    def clients(self) -> Sequence[str]:
        return self._users.clients()

    def examples(self, client: str) -> Sequence[Example]:
        found = self._users.examples(client)
        return label_flip(found, self._labels) if client in self._bad else found

    def rank(self, client: str) -> int | None:
        return None


class HostileFleet:
    """A fleet whose bad clients answer with an attack on what the others send."""

    def __init__(self, fleet: SimulatedFleet, attack: str, bad: set[str], seed: int) -> None:
        self._fleet, self._attack, self._bad, self._seed = fleet, ATTACKS[attack], bad, seed
        self.strategy = fleet.strategy

    def clients(self) -> Sequence[str]:
        return self._fleet.clients()

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        kind = Message.decode(next(iter(messages.values()))).values["kind"]
        if kind != "train":
            yield from self._fleet.ask(round, messages, seconds)
            return
        asked = {client: m for client, m in messages.items() if client not in self._bad}
        honest = dict(self._fleet.ask(round, asked, seconds))
        read = [Message.decode(reply) for reply in honest.values() if isinstance(reply, bytes)]
        vectors = np.stack([message.arrays["update.vector"] for message in read])
        weight = max(message.number("weight") for message in read)
        rng = generator(self._seed, "attack", round)
        false = self._attack(vectors, len(messages) - len(asked), rng)
        made = iter([Message({"update.vector": v}, {"weight": weight}).encode() for v in false])
        for client in messages:
            yield client, honest[client] if client in asked else next(made)


def measure(data: Path, rule: str, attack: str, seed: int) -> tuple[float, float]:
    """The held-out users' mean loss before the first round and after the last."""
    task = get_task("LaMP_2N")
    users = Users(data, task, "train", limit=USERS, seed=seed)
    settings = {**SETTINGS, "seed": seed, "robust": RULES[rule]}
    config = FederateConfig.model_validate(settings)
    train, _ = divide(users.clients(), config)
    drawn = generator(seed, "bad").permutation(sorted(train))
    bad = set(drawn[: round(SHARE * len(train))].tolist()) if attack != "none" else set()
    population = Flipped(users, bad, task.labels) if attack == "label-flip" else users
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out)
        fleet: Any = SimulatedFleet(backbone(), population, config, folder / "clients")
        if attack in ATTACKS:
            fleet = HostileFleet(fleet, attack, bad, seed)
        federation = Federation(config, fleet.strategy, fleet, folder / "run")
        before = np.mean(list(federation.measure(federation.state, 0).values()))
        federation.run()
        after = np.mean(list(federation.measure(federation.state, config.rounds).values()))
    return float(before), float(after)


_LOADED: list[Any] = []


def backbone() -> Any:
    if not _LOADED:
        _LOADED.append(load_backbone("embedded", device="cpu"))
    return _LOADED[0]


def section(found: dict[str, list[float]], attacks: Sequence[str]) -> str:
    """The Markdown part."""
    seeds = sorted({name.split("|")[2] for name in found})
    lines = [
        "## Real LoRA updates",
        "",
        "`python benchmarks/robust/robust_lora.py --data ../shared/data/lamp`: LaMP_2N, embedded",
        f"model, strategy `{SETTINGS['strategy']}`, rank 4. {USERS} users: a third held out, 10",
        f"train, 2 of them bad; {SETTINGS['rounds']} rounds of {SETTINGS['local']['steps']} steps.",
        f"Mean loss of held-out users, nats a target token (seeds: {', '.join(seeds)}), and the",
        "share kept of the clean gain, which is that of the mean without attack.",
        "",
        "| rule | before | " + " | ".join(attacks) + " |",
        "| --- | ---: |" + " ---: |" * len(attacks),
    ]
    for rule in RULES:
        row = []
        start = [v[0] for name, v in found.items() if name.startswith(f"{rule}|")]
        for attack in attacks:
            values, kept = [], []
            for seed in seeds:
                here, clean = found.get(f"{rule}|{attack}|{seed}"), found.get(f"mean|none|{seed}")
                if here and clean:
                    values.append(here[1])
                    kept.append((here[0] - here[1]) / (clean[0] - clean[1]))
            row.append(f"{np.mean(values):.3f} ({100 * np.mean(kept):.0f} %)" if values else "-")
        lines.append(
            f"| {rule} | {np.mean(start):.3f} | " + " | ".join(row) + " |" if start else ""
        )
    return "\n".join(line for line in lines if line is not None) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--attacks", default="none,ipm,label-flip,alie,hidden-flip")
    parser.add_argument("--to", type=Path, default=RESULTS / "robust")
    parser.add_argument("--page-only", action="store_true", help="do not measure, only write")
    given = parser.parse_args(arguments)
    attacks = given.attacks.split(",")
    part = given.to.with_name(given.to.name + "-lora.json")
    found = json.loads(part.read_text("utf-8")) if part.exists() else {}
    started = time.monotonic()
    wanted = [(r, a, s) for s in range(given.seeds) for a in attacks for r in RULES]
    for rule, attack, seed in [] if given.page_only else wanted:
        name = f"{rule}|{attack}|{seed}"
        if name in found or time.monotonic() - started > 60 * given.minutes:
            continue
        found[name] = measure(given.data, rule, attack, seed)
        write_json(part, found)
        print(name, found[name], f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    path = given.to.with_suffix(".json")
    if path.exists():
        stored = json.loads(path.read_text("utf-8"))
        stored |= {"lora": section(found, attacks), "lora_cells": found}
        write_json(path, stored)
        write_atomic(given.to.with_suffix(".md"), page(Found(stored["cells"]), stored["lora"]))


if __name__ == "__main__":
    main()
