"""One answer alone and beside busy processes: tokens a second and processor seconds, before and
after; and what llama.cpp's keys and values take.

    python benchmarks/backbones/cpu_manners.py --out benchmarks/results/cpu-manners.md

*Before* is a thread for every core, each spinning while it waits, as pfi was; *after* is pfi as it
is.  Every answer is read in a process of its own, since OpenMP reads its environment once.  Figures
of a machine with other work compare only within one run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TEXT = "Tell me in some sentences how tea is made and where it comes from."
#: What GNU's OpenMP does by itself: it turns so often before it sleeps.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
SECONDS = 8.0  # an answer is cut then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="build/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--engines", default="llama.cpp,torch", help="Comma-separated.")
    parser.add_argument("--out", type=Path, default=None, help="Where the page is written.")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(answer(args.backbone, **json.loads(args.child))))
        return
    lines = page(args.backbone, args.tokens, args.engines.split(","))
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def page(backbone: str, tokens: int, engines: list[str]) -> list[str]:
    """The results as Markdown."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# CPU manners",
        "",
        f"`python benchmarks/backbones/cpu_manners.py`, {Path(backbone).name}, {tokens} tokens,",
        f"{cores} cores, load average {os.getloadavg()[0]:.1f} before the run.",
        "",
        "| engine | beside | | threads | prompt s | tokens/s | CPU s an answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for engine in engines:
        for busy in (0, 1, 2):
            for name, threads in (("before", cores), ("after", None)):
                with Busy(busy):
                    one = run(backbone, engine=engine, threads=threads, tokens=tokens, rows=1)
                beside = ("nothing", "1 busy process", "2 busy processes")[busy]
                lines.append(
                    f"| {engine} | {beside} | {name} | {one['threads']} | {one['prompt']:.2f} "
                    f"| {one['rate']:.1f} | {one['cpu']:.1f} |"
                )
                print(lines[-1], file=sys.stderr)
    lines += ["", "| llama.cpp's rows | resident memory |", "|---|---|"]
    for name, rows in (("32 x 4096 tokens (before)", 32), ("as chosen", None)):
        one = run(backbone, engine="llama.cpp", threads=1, tokens=1, rows=rows)
        lines.append(f"| {name}: {one['rows']} x {one['length']} | {one['resident']} MiB |")
    return lines


class Busy:
    """Processes that do nothing but use a core each."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._all = [context.Process(target=_turn, daemon=True) for _ in range(count)]

    def __enter__(self) -> None:
        for process in self._all:
            process.start()
        time.sleep(0.5 if self._all else 0)

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.kill()
            process.join()


def _turn() -> None:
    while True:
        pass


def run(backbone: str, **job: Any) -> dict[str, Any]:
    """Read one answer in a process of its own."""
    drop = ("OMP_", "GOMP_", "KMP_", "PFI_THREADS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    if job["threads"] is not None and job["threads"] > 1:
        environment |= SPINNING
    command = [sys.executable, __file__, "--backbone", backbone, "--child", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(
    backbone: str, *, engine: str, threads: int | None, tokens: int, rows: int | None
) -> Any:
    """Read the second answer of an engine, as `pfi` makes it."""
    from pfi._util import threads as pfi_threads

    pfi_threads.manage()
    pfi_threads.choose(threads)
    import psutil

    from pfi.inference.engine import Request, Sampling
    from pfi.profile.answer.engines import EngineChoice, make_engine
    from pfi.profile.config import HomeConfig

    config = HomeConfig(backbone=backbone, engine=engine, context=4096 if rows == 32 else None)
    with tempfile.TemporaryDirectory() as folder:
        running: Any = make_engine(EngineChoice.of(config), Path(folder), rows=rows)
        prompt = running.prompter.prompt_ids(TEXT)

        def read(most: int) -> tuple[float, float, int, float]:
            begin, cpu, count, first = time.perf_counter(), time.process_time(), 0, 0.0
            stream = running.generate(Request(prompt, sampling=Sampling(max_tokens=most)))
            for piece in stream:
                count += piece.tokens
                first = first or time.perf_counter() - begin
                if time.perf_counter() - begin > SECONDS:
                    stream.cancel()
            return first, time.perf_counter() - begin, count, time.process_time() - cpu

        read(1)  # weights come from the disk
        first, seconds, count, cpu = read(tokens)
        taken = running.footprint()
        resident = psutil.Process().memory_info().rss >> 20
        running.close()
    return {
        "rate": (count - 1) / max(seconds - first, 1e-3),
        "cpu": cpu * tokens / max(count, 1),  # of a whole answer, where it was cut
        "prompt": first,
        "threads": taken.threads,
        "rows": taken.rows,
        "length": taken.length,
        "resident": resident,
    }


if __name__ == "__main__":
    main()
