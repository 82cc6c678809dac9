#!/usr/bin/env python
"""Answers of many users at once: the torch engine's batch against one adapter at a time and peft.

    python benchmarks/personalize/batching.py
    python benchmarks/personalize/batching.py --models tiny --users 1 2 --new 4 --out /tmp/batching

It writes ``benchmarks/results/batching.md`` and ``.json``.  Methods take turns; a row shows the
median of the rounds.  Every user has an adapter of their own with random factors.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("batch", "one at a time", "peft adapter_names")
#: One at a time takes as long for each user, so that a few of them tell.
ALONE = 4


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one model."""
    import torch
    from personalize_data import make_model
    from personalize_measures import Endless, some_adapters
    from personalize_peers import generate_plain, mixed_model

    from pfi.inference.engine import AdapterRef, Request, Sampling, text_of
    from pfi.inference.torch.engine import TorchEngine
    from pfi.models.backbone import load_backbone

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        backbone = load_backbone(make_model(name, Path(folder), args.seed))
    adapters = some_adapters(backbone, max(args.users))
    draw = random.Random(args.seed)
    words = range(300, backbone.prompter.tokenizer.vocab_size)
    prompts = [draw.choices(words, k=args.prompt) for _ in adapters]
    mixed, names = mixed_model(
        type(backbone)(
            name, copy.deepcopy(backbone.model), backbone.tokenizer, False, backbone.max_length
        ),
        adapters,
    )
    ids = torch.tensor(prompts, device=backbone.device)
    found: list[dict[str, Any]] = []
    sizes: dict[str, Any] = {"capacity": len(adapters), "rank": 8, "precision": args.precision}
    # Without an end token every answer is as long as asked for.
    with Endless(), TorchEngine(backbone, **sizes) as batch:
        alone = TorchEngine(backbone, **sizes, max_rows=1)
        answers: dict[tuple[str, int], str] = {}

        def ask(engine: TorchEngine, users: int) -> None:
            sampling = Sampling(max_tokens=args.new)
            refs = [AdapterRef(str(i), partial(adapters.__getitem__, i)) for i in range(users)]
            streams = [
                engine.generate(Request(prompt, ref, sampling))
                for prompt, ref in zip(prompts, refs, strict=False)
            ]
            for i, stream in enumerate(streams):
                answers["batch" if engine is batch else "alone", i] = text_of(stream)

        def peft(users: int) -> None:
            more = {"adapter_names": names[:users]}
            generate_plain(mixed, ids[:users], args.new, backbone.pad_id, **more)

        ask(batch, len(adapters))  # loads the adapters
        ask(alone, min(ALONE, len(adapters)))
        for users in args.users:
            few = min(users, ALONE)
            runs: dict[str, tuple[int, Callable[[], None]]] = {
                "batch": (users, partial(ask, batch, users)),
                "one at a time": (few, partial(ask, alone, few)),
                "peft adapter_names": (users, partial(peft, users)),
            }
            times: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
            for _ in range(args.rounds):
                for method, (rows, run) in runs.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    run()
                    spent = time.perf_counter() - wall, time.process_time() - cpu
                    tokens = rows * args.new
                    times[method].append((tokens / spent[0], tokens / spent[1]))
            for method, rates in times.items():
                wall_rate, cpu_rate = (median(rate) for rate in zip(*rates, strict=True))
                row = {"model": name, "users": users, "method": method}
                found.append({**row, "tokens_per_s": wall_rate, "tokens_per_cpu_s": cpu_rate})
        alone.close()
    alike = [answers["batch", i] == answers["alone", i] for i in range(min(ALONE, len(adapters)))]
    assert all(alike), "a batch gave another answer than a row alone"
    return found


def page(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    settings = results["settings"]
    lines = [
        "# Answers of many users at once",
        "",
        f"Made by `python benchmarks/personalize/batching.py` on {results['date']}; "
        f"{settings['threads']} thread(s), {settings['precision']}; {settings['machine']}, which "
        "other work may share: then compare tokens a CPU second.",
        "",
        f"Every user has a LoRA adapter of their own (rank 8, all linear layers) and asks once: a "
        f"prompt of {settings['prompt']} tokens, {settings['new']} new ones, greedy. *batch* is "
        "the torch engine with all users' rows in one pass (prompts read in it, too); *one at a "
        "time* is the same engine with `max_rows=1`; *peft* is transformers' `generate` with "
        "`adapter_names`, which cannot let rows join or leave. Answers of *batch* and *one at a "
        "time* were the same. `m30` has 31.5 M random weights. Median of "
        f"{settings['rounds']} rounds, in which the methods took turns.",
        "",
        "| model | users | method | tokens/s | tokens/CPU s | batch is faster by (CPU) |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    rows = results["rows"]
    for row in rows:
        batch = next(
            other["tokens_per_cpu_s"]
            for other in rows
            if (other["model"], other["users"]) == (row["model"], row["users"])
        )
        factor = "" if row["method"] == "batch" else f"{batch / row['tokens_per_cpu_s']:.1f} x"
        lines.append(
            f"| {row['model']} | {row['users']} | {row['method']} | {row['tokens_per_s']:.0f} | "
            f"{row['tokens_per_cpu_s']:.0f} | {factor} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", default=["embedded", "m30"])
    parser.add_argument("--users", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "batching")
    args = parser.parse_args()

    from pfi._util.files import write_atomic, write_json

    settings = {
        key: getattr(args, key)
        for key in ("users", "prompt", "new", "rounds", "threads", "seed", "precision")
    }
    settings["machine"] = f"{os.cpu_count()} cores"
    results = {
        "date": datetime.date.today().isoformat(),
        "settings": settings,
        "rows": [row for name in args.models for row in measure(name, args)],
    }
    write_json(args.out.with_suffix(".json"), results)
    write_atomic(args.out.with_suffix(".md"), page(results))
    print(page(results))


if __name__ == "__main__":
    main()
