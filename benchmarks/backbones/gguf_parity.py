#!/usr/bin/env python
"""One GGUF file in PyTorch and in llama.cpp, without an adapter and with one.

    python benchmarks/backbones/gguf_parity.py --backbone build/models/MODEL.gguf

An adapter is trained over the dequantised weights on headlines of LaMP 4.  Then both engines answer
100 held-back prompts greedily and score the true answers: which share of answers is equal, and is
the adapter's gain in loss the same?  llama.cpp rounds what it multiplies with quantised weights to
8 bits; a third engine, llama.cpp over the very weights that PyTorch has, in a file of 32 bits,
shows what else there is.  The run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from pfi._util.files import write_atomic, write_json
from pfi.datasets.lamp import read_users
from pfi.inference.engine import AdapterRef, Engine, Request, Sampling, Scoring
from pfi.models.adapters import Adapter
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.config import HomeConfig
from pfi.tasks import Example, get_task
from pfi.train.config import TrainConfig
from pfi.train.job import train_one
from pfi.train.trainers import get_trainer

EXACT = "llama.cpp, 32 bits"
ENGINES = ("torch", "llama.cpp", EXACT)
TASK = get_task("LaMP_4")
PROMPT = 256  # tokens of a prompt, at the most


def examples_of(data: Path, trained: int, asked: int, seed: int) -> list[Example]:
    """Headlines of many users in a random order; those that are asked about last."""
    rng = random.Random(seed)
    users = read_users(data, TASK, "train")
    made = [one for user in users for one in TASK.examples(user.history, rng)]
    rng.shuffle(made)
    return made[: trained + asked]


def adapter_of(backbone: str, examples: list[Example], seed: int, work: Path) -> Adapter:
    """The adapter that is trained over the file's dequantised weights."""
    from pfi.models.backbone import load_backbone

    folder = work / "adapter"
    if not (folder / "adapter_config.json").exists():
        config = TrainConfig(
            rank=8, alpha=16, epochs=2, learning_rate=5e-4, max_length=PROMPT, precision="auto"
        )
        begun = time.time()
        plain = load_backbone(backbone, device="cpu")
        result = train_one(
            get_trainer(),
            plain,
            examples,
            config,
            seed=seed,
            state=work / "state",
            on_step=lambda step, steps, loss: print(
                f"\rstep {step} of {steps}, loss {loss:.2f}", end="", file=sys.stderr
            ),
        )
        print(f"\ntrained in {time.time() - begun:.0f} s", file=sys.stderr)
        result.adapter.save(folder)
    return Adapter.load(folder)


def ask(engine: Engine, example: Example, ref: AdapterRef | None, tokens: int) -> dict[str, Any]:
    """A greedy answer's text, and the loss of the true one in nats a token."""
    prompter = engine.prompter
    prompt = prompter.prompt_ids(example.prompt, PROMPT)
    target = prompter.target_ids(example.target, 64)
    pieces = list(engine.generate(Request(prompt, ref, Sampling(tokens))))
    (row,) = engine.score_all([Scoring(prompt, [target], ref)])
    return {"answer": "".join(piece.text for piece in pieces), "loss": -row[0] / len(target)}


def rows_of(path: Path) -> dict[tuple[str, bool, int], dict[str, Any]]:
    """What an earlier run has measured, by engine, adapter and number of the example."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {(row["engine"], row["adapter"], row["number"]): row for row in rows}


def measure(
    engine: Engine, name: str, asked: list[Example], adapter: Adapter, tokens: int, path: Path
) -> Iterator[None]:
    """Ask an engine what was not asked yet; each row is written as soon as it is there."""
    rows = rows_of(path)
    for with_adapter in (False, True):
        ref = AdapterRef("parity", lambda: adapter) if with_adapter else None
        for number, example in enumerate(asked):
            if (name, with_adapter, number) in rows:
                continue
            row = {"engine": name, "adapter": with_adapter, "number": number}
            row |= ask(engine, example, ref, tokens)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield


def summary(path: Path, count: int) -> dict[str, Any]:
    """Shares of answers that are equal to PyTorch's, and losses."""
    rows = rows_of(path)
    result: dict[str, Any] = {}
    for with_adapter in (False, True):
        part: dict[str, Any] = {"loss": {}, "equal": {}, "first words equal": {}}
        for name in ENGINES:
            pairs = [
                (rows["torch", with_adapter, at], rows[name, with_adapter, at])
                for at in range(count)
            ]
            part["loss"][name] = fmean(own["loss"] for _, own in pairs)
            part["equal"][name] = fmean(one["answer"] == own["answer"] for one, own in pairs)
            part["first words equal"][name] = fmean(
                _agreement(one["answer"].split(), own["answer"].split()) for one, own in pairs
            )
        result["with adapter" if with_adapter else "without"] = part
    plain, adapted = result["without"]["loss"], result["with adapter"]["loss"]
    result["gain"] = {name: plain[name] - adapted[name] for name in ENGINES}
    return result


def _agreement(one: list[str], other: list[str]) -> float:
    """Which share of two answers' words is the same until the first that differs."""
    same = [*takewhile(lambda two: two[0] == two[1], zip(one, other, strict=False))]
    return len(same) / max(1, len(one), len(other))


def exact_file(backbone: str, work: Path) -> Path:
    """The weights that PyTorch has, in a file of 32 bits."""
    from pfi.inference.llama.gguf import write_backbone
    from pfi.models.backbone import load_backbone

    path = work / "exact.gguf"
    if not path.exists():
        write_backbone(load_backbone(backbone, device="cpu"), path, "f32")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True, help="a GGUF file, or a model's id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lamp"))
    parser.add_argument("--work", type=Path, default=Path("build/gguf-parity"))
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--trained", type=int, default=200)
    parser.add_argument("--asked", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    about = {key: str(value) for key, value in vars(given).items() if key not in ("work", "out")}
    settings, answers = given.work / "settings.json", given.work / "answers.jsonl"
    if settings.exists() and json.loads(settings.read_text("utf-8")) != about:
        sys.exit(f"{given.work} holds a run with other settings: remove it, or give another --work")
    write_json(settings, about)
    examples = examples_of(given.data, given.trained, given.asked, given.seed)
    trained, asked = examples[: given.trained], examples[given.trained :]
    adapter = adapter_of(given.backbone, trained, given.seed, given.work)
    seconds: dict[str, float] = {}
    for name in ENGINES:
        kind, backbone = name, given.backbone
        if name == EXACT:
            kind, backbone = "llama.cpp", str(exact_file(given.backbone, given.work))
        config = HomeConfig(backbone=backbone, engine=kind, context=PROMPT + 64)
        begun = time.time()
        with make_engine(EngineChoice.of(config), given.work / "models", rows=1) as engine:
            for _ in measure(engine, name, asked, adapter, given.tokens, answers):
                print(f"\r{name}: {len(rows_of(answers))} rows", end="", file=sys.stderr)
        seconds[name] = time.time() - begun
    result = {**summary(answers, len(asked)), "seconds of this run": seconds}
    text = json.dumps(result, indent=2)
    print(f"\n{text}")
    if given.out:
        write_atomic(given.out, text + "\n")


if __name__ == "__main__":
    main()
