#!/usr/bin/env python
"""Both engines against plain transformers + peft and plain llama.cpp: speed, memory, start-up.

    python benchmarks/runtime/runtime.py
    python benchmarks/runtime/runtime.py --models embedded --rounds 1 --out /tmp/runtime

It writes ``benchmarks/results/runtime.md``, ``.json`` and ``.png`` in about ten minutes.  Files
of models and adapters are made once and kept in ``build/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from runtime_models import EMBEDDED, adapter_folders, model_folder
from runtime_page import page, plot

from pfi._util.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[2]
PROMPT, MIXED_PROMPT = 128, 64
#: Peer and the format of its weights.
PEERS = [
    ("transformers", "f32"),
    ("pfi torch", "f32"),
    ("llama.cpp", "f16"),
    ("pfi llama.cpp", "f16"),
    ("llama.cpp", "q8_0"),
    ("pfi llama.cpp", "q8_0"),
    ("llama.cpp", "q4_k_m"),
    ("pfi llama.cpp", "q4_k_m"),
]
#: Model, threads and new tokens of a repetition.
RUNS = [("embedded", 2, 64), ("m135", 2, 32), ("m135", 1, 24), ("q500", 2, 16)]
MIXED = [
    ("transformers", "f32"),
    ("pfi torch", "f32"),
    ("pfi torch", "bf16"),
    ("llama.cpp", "f16"),
    ("llama.cpp", "q8_0"),
]
MIXED_MODEL, MIXED_NEW = "m135", 32


class Process:
    """A peer in a process of its own."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job, self._began = job, time.perf_counter()
        script = str(Path(__file__).with_name("runtime_peers.py"))
        self._child = subprocess.Popen(
            [sys.executable, script, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job["threads"])},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()

    def start(self) -> dict[str, float]:
        """Import, load, read a prompt and give one token: seconds of clock and processor."""
        cpu = self.do({"do": "start", "prompt": PROMPT})["cpu"]
        return {"start": time.perf_counter() - self._began, "start_cpu": cpu}

    def do(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command and wait for it."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"a peer failed: runtime_peers.py '{json.dumps(self.job)}' says why")
        return dict(json.loads(line))


class Files:
    """Models, adapters and their GGUF files, made where they are missing."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def model(self, name: str) -> str:
        """What pfi loads a model by."""
        return name if name == "embedded" else str(model_folder(name, self.cache))

    def job(
        self, peer: str, bits: str, model: str, threads: int, adapters: int, rows: int = 1
    ) -> dict[str, Any]:
        """What a process is told."""
        folders = adapter_folders(model, self.cache, adapters) if adapters else []
        name = self.model(model)
        return {
            "peer": peer,
            "bits": bits,
            "model": name if peer.startswith("pfi") or model != "embedded" else str(EMBEDDED),
            "files": str(self.cache / "gguf"),
            "gguf": str(self.gguf(model, bits)) if "llama" in peer else "",
            "adapters": [str(folder) for folder in folders],
            "lora": [str(self.lora(model, folder)) for folder in folders]
            if peer == "llama.cpp"
            else [],
            "threads": threads,
            "rows": rows,
        }

    def gguf(self, model: str, bits: str) -> Path:
        """A model's file for llama.cpp."""
        from pfi.inference.llama.gguf_cache import backbone_file

        return backbone_file(self.model(model), self.cache / "gguf", bits)  # type: ignore[arg-type]

    def lora(self, model: str, folder: Path) -> Path:
        """An adapter's file for llama.cpp."""
        file = folder.with_suffix(".gguf")
        if not file.exists():
            from pfi.inference.llama.gguf import write_adapter
            from pfi.inference.llama.gguf_cache import load_config
            from pfi.models.adapters import Adapter

            write_adapter(Adapter.load(folder), load_config(self.model(model)), file)
        return file


def alone(files: Files, model: str, threads: int, new: int, rounds: int) -> list[dict[str, Any]]:
    """Every peer's figures for one answer at a time, without and with an adapter."""
    rows = []
    for lora in (0, 1):
        with ExitStack() as stack:
            peers = []
            for peer, bits in PEERS if threads > 1 else PEERS[:6]:
                process = stack.enter_context(Process(files.job(peer, bits, model, threads, lora)))
                row = {"model": model, "threads": threads, "peer": peer, "bits": bits, "lora": lora}
                peers.append((process, {**row, **process.start(), "runs": []}))
            for _ in range(rounds):
                for process, row in peers:
                    done = process.do({"do": "run", "prompt": PROMPT, "new": new})
                    row["runs"].append(done)
            for process, row in peers:
                row.update(process.do({"do": "memory"}), **fastest(row["runs"], PROMPT))
                rows.append(row)
        print(f"{model}, {threads} threads, {'with' if lora else 'no'} adapter", flush=True)
    return rows


def fastest(runs: Sequence[Mapping[str, float]], prompt: int) -> dict[str, float]:
    """Tokens a second of the fastest repetition, and the least processor time of one."""
    return {
        "prefill": max(prompt / run["prefill"] for run in runs),
        "decode": max(run["new"] / run["decode"] for run in runs),
        "cpu": min(run["cpu"] for run in runs),
    }


def together(files: Files, users: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Every peer's figures for many users with an adapter each, in one batch or in turn."""
    rows = []
    with ExitStack() as stack:
        peers = []
        for peer, bits in MIXED:
            job = files.job(peer, bits, MIXED_MODEL, threads, users, users)
            process = stack.enter_context(Process(job))
            process.do({"do": "start", "prompt": MIXED_PROMPT})
            peers.append((process, {"users": users, "peer": peer, "bits": bits, "runs": []}))
        command = {"do": "run", "prompt": MIXED_PROMPT, "users": users}
        for process, _ in peers:
            process.do({**command, "new": 2})  # the adapters are loaded before time is taken
        for _ in range(rounds):
            for process, row in peers:
                row["runs"].append(process.do({**command, "new": MIXED_NEW}))
        for process, row in peers:
            row["rate"] = max(users * MIXED_NEW / run["wall"] for run in row["runs"])
            row["cpu"] = min(run["cpu"] for run in row["runs"])
            row["peak"] = process.do({"do": "memory"})["peak"]
            rows.append(row)
    print(f"{users} users", flush=True)
    return rows


def bandwidth(threads: int) -> dict[str, float]:
    """What this machine reads and multiplies now; in a process that uses so many threads."""
    code = (
        "import json; from dataclasses import asdict\n"
        "from pfi.profile.plan.machine import measure_processor\n"
        "print(json.dumps(asdict(measure_processor('cpu'))))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return dict(json.loads(done.stdout))


def sizes(files: Files, models: Sequence[str]) -> dict[str, Any]:
    """What a token reads of each model in each format, in bytes."""
    from pfi.profile.plan.shapes import read_shape

    found = {}
    for model in models:
        shape = read_shape(files.model(model))
        middle = PROMPT + 16
        found[model] = {
            "parameters": shape.parameters,
            "adapter": 4 * 8 * shape.adapter_numbers,
            "token": {
                bits: shape.size(bits, streamed=True)
                + shape.cache(middle, 4 if bits == "f32" else 2)
                for bits in ("f32", "f16", "q8_0", "q4_k_m")
            },
        }
    return found


def predicted(files: Files, rows: Sequence[Mapping[str, Any]], speed: Mapping[str, float]) -> None:
    """Add to the rows of pfi with an adapter and two threads what the planner says of them."""
    from pfi.profile.plan.machine import Machine, Processor
    from pfi.profile.plan.predict import Model, Work, answering
    from pfi.profile.plan.shapes import read_shape

    machine = Machine(1 << 40, 1 << 40, 1 << 40, 2, 2, Processor(**speed), 0, llama_cpp=True)
    for row in rows:
        if row["peer"].startswith("pfi") and row["lora"] and row["threads"] == 2:
            model = Model(read_shape(files.model(row["model"])), Work())
            engine = row["peer"].removeprefix("pfi ")
            figures = answering(machine, model, engine, row["bits"], 512, 8)
            row["predicted"] = figures.decode  # type: ignore[index]


def versions() -> str:
    """Of what is compared."""
    from importlib.metadata import version

    names = ["torch", "transformers", "peft", "xllamacpp"]
    return ", ".join([f"Python {sys.version.split()[0]}", *(f"{n} {version(n)}" for n in names)])


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded", "m135", "q500"])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, of which one counts")
    parser.add_argument("--users", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "runtime-bench")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "runtime")
    parser.add_argument("--date", default="2026-11-22")
    parser.add_argument("--note", default="", help="what else the machine was doing, for the page")
    options = parser.parse_args()

    files, began = Files(options.cache), time.perf_counter()
    for model in options.models:  # before time is taken
        for peer, bits in PEERS:
            most = max([1, *options.users]) if model == MIXED_MODEL else 1
            files.job(peer, bits, model, 1, most)
    began = time.perf_counter()
    limits = {str(threads): [bandwidth(threads)] for threads in (1, 2)}
    rows: list[dict[str, Any]] = []
    for model, threads, new in RUNS:
        if model in options.models:
            rounds = options.rounds * (2 if model == "embedded" else 1)  # they are short
            rows += alone(files, model, threads, new, rounds)
    mixed: list[dict[str, Any]] = []
    if MIXED_MODEL in options.models:
        for users in options.users:
            mixed += together(files, users, 2, max(1, options.rounds - 1))
    for threads, found in limits.items():
        found.append(bandwidth(int(threads)))
    processor = {
        threads: {key: max(one[key] for one in found) for key in found[0]}
        for threads, found in limits.items()
    }
    predicted(files, rows, processor["2"])
    results = {
        "setting": {
            "command": shlex.join(["python", "benchmarks/runtime/runtime.py", *sys.argv[1:]]),
            "date": options.date,
            "note": options.note,
            "seconds": time.perf_counter() - began,
            "load": os.getloadavg()[1],
            "rounds": options.rounds,
            "prompt": PROMPT,
            "mixed_prompt": MIXED_PROMPT,
            "mixed_new": MIXED_NEW,
            "versions": versions(),
        },
        "processor": processor,
        "sizes": sizes(files, options.models),
        "alone": rows,
        "mixed": mixed,
    }
    write_json(options.out.with_suffix(".json"), results)
    plot(results, options.out.with_suffix(".png"))
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


if __name__ == "__main__":
    main()
