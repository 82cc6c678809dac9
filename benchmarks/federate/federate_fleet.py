"""One simulated federation over users whose records lie in a LaMP file; prints its memory.

    python benchmarks/federate/federate_fleet.py <folder> <clients> <cohort>

A process of its own, so that its largest resident size is this federation's.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import torch
from federate_data import ANSWERS, WORDS
from federate_peers import peak_bytes

TASK, SPLIT, RECORDS = "LaMP_3", "train", 10
#: Factors of this rank over the tiny backbone make updates of half a megabyte.
RANK = 128


def write_users(folder: Path, clients: int, seed: int) -> None:
    """Made-up users in the LaMP format, each with a question and ten scored texts."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(10, 30))) + " " + rng.choice(ANSWERS)

    questions, golds = [], []
    for user in range(clients):
        profile = [
            {"id": f"{user}-{n}", "text": text(), "score": str(rng.randint(1, 5))}
            for n in range(RECORDS)
        ]
        asked = f"What is the score of the following review? review: {text()}"
        questions.append({"id": str(user), "input": asked, "profile": profile})
        golds.append({"id": str(user), "output": str(rng.randint(1, 5))})
    target = folder / TASK
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{SPLIT}_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    outputs = {"task": TASK, "golds": golds}
    (target / f"{SPLIT}_outputs.json").write_text(json.dumps(outputs), encoding="utf-8")


def run(folder: Path, clients: int, cohort: int, rounds: int = 2) -> dict[str, float]:
    """The federation's figures; users and backbone are in ``folder``."""
    from pfi.federate.config import FederateConfig, LocalConfig, SimulateConfig
    from pfi.federate.rounds import Federation
    from pfi.federate.simulate import SimulatedFleet
    from pfi.federate.users import Users
    from pfi.models.backbone import load_backbone
    from pfi.tasks import get_task

    torch.set_num_threads(1)
    config = FederateConfig(
        rounds=rounds,
        cohort=cohort,
        held_out=0.0,
        local=LocalConfig(rank=RANK, steps=2, batch_size=4, optimizer="sgd", learning_rate=0.1),
        simulate=SimulateConfig(working_set=16),
    )
    users = Users(folder, get_task(TASK), SPLIT)
    assert len(users.clients()) == clients
    out = folder / f"run-{cohort}"
    fleet = SimulatedFleet(
        load_backbone(folder / "tiny", device="cpu"), users, config, out / "clients"
    )
    loaded = peak_bytes()
    federation = Federation(config, fleet.strategy, fleet, out / "run")
    started = time.perf_counter()
    federation.run()
    clock = (time.perf_counter() - started) / rounds
    fleet.close()
    size = 4 * fleet.strategy.layout.width
    return {
        "clients": clients,
        "cohort": cohort,
        "loaded": loaded,
        "peak": peak_bytes(),
        "clock": clock,
        "update": size,
    }


def main() -> None:
    """Run over users that are there and print the figures."""
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
