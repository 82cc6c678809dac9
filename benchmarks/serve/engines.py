#!/usr/bin/env python
"""`pfi serve` on one backbone with each engine: tokens a second, the first token, peak memory.

    python benchmarks/serve/engines.py --backbone build/models/SmolLM2-135M-Instruct.Q4_1.gguf

A server of its own process answers streams over a socket: one client after the other, then several
at once.  Prompts differ, so that none is cached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from soak import free_port, memory_of, started

from pfi._util.files import write_atomic
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home
from pfi.serve.auth import new_token

PROMPT = "Question {}: tell me in a few sentences what one should know about tea and its making."


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> dict[str, float]:
    """One stream: seconds to its first text and to its end, and its tokens."""
    body = {
        "model": "generic",
        "messages": [{"role": "user", "content": PROMPT.format(number)}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not first and '"content":"' in line and '"content":""' not in line:
                first = time.perf_counter() - begun
            if '"usage":{' in line:
                usage = json.loads(line.removeprefix("data: "))["usage"]
                count = usage["completion_tokens"]
    return {"first": first, "whole": time.perf_counter() - begun, "tokens": count}


async def asked(url: str, token: str, options: argparse.Namespace) -> dict[str, Any]:
    """Answers one after the other, and side by side."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as client:
        await ask(client, 0, 2)  # what is made when first needed
        alone = [await ask(client, n + 1, options.tokens) for n in range(options.repeats)]
        begun = time.perf_counter()
        jobs = (ask(client, 100 + n, options.tokens) for n in range(options.side))
        together = await asyncio.gather(*jobs)
        seconds = time.perf_counter() - begun
    return {
        "first": median(one["first"] for one in alone),
        "rate": median(
            (one["tokens"] - 1) / max(one["whole"] - one["first"], 1e-6) for one in alone
        ),
        "side first": median(one["first"] for one in together),
        "side rate": sum(one["tokens"] for one in together) / seconds,
        "answers": alone,
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """One engine's figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        backbone = str(Path(options.backbone).resolve())
        config = HomeConfig(backbone=backbone, embedder="none")
        home = create_home("p", root=root, config=config, lock="file")
        token = new_token(home)[1]
        begun = time.perf_counter()
        settings = {"port": free_port(), "rows": options.side, "context": 2048}
        with started(root, engine, settings) as (url, child):
            ready = time.perf_counter() - begun
            before = cpu_seconds(child.pid)
            figures = asyncio.run(asked(url, token, options))
            tokens = sum(one["tokens"] for one in figures["answers"])
            figures["cpu"] = cpu_seconds(child.pid) - before
            figures["tokens"] = tokens + options.side * options.tokens
            _, figures["peak"], _ = memory_of(child.pid)
    return {"ready": ready, **figures}


def page(found: dict[str, Any], about: dict[str, Any]) -> str:
    """The results as Markdown."""
    side = about["side"]
    lines = [
        "# `pfi serve` by engine",
        "",
        f"Made by `benchmarks/serve/engines.py`: {about['name']}, one thread, answers of "
        f"{about['tokens']} tokens streamed over",
        f"a socket; medians of {about['repeats']}. Machine: {about['machine']}, load "
        f"{about['load'][0]:.1f} to {about['load'][1]:.1f} by other work, so that times on the "
        "clock are",
        "upper bounds; CPU seconds depend on that less.",
        "",
        f"| engine | ready, s | first token, s | tokens a second | with {side} at once: first, s "
        f"| tokens a second | CPU ms a token, prompts included | peak memory, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for engine, one in found.items():
        cells = [
            f"{one['ready']:.1f}",
            f"{one['first']:.2f}",
            f"{one['rate']:.1f}",
            f"{one['side first']:.2f}",
            f"{one['side rate']:.1f}",
            f"{1000 * one['cpu'] / one['tokens']:.1f}",
            f"{one['peak']:.0f}",
        ]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both engines, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--name", help="of the backbone on the page")
    parser.add_argument("--engines", nargs="+", default=["torch", "llama.cpp"])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve/engines"))
    options = parser.parse_args()
    begun = os.getloadavg()[0]
    found = {}
    for engine in options.engines:
        found[engine] = measure(engine, options)
        print(engine, found[engine], file=sys.stderr, flush=True)
    about = {
        "name": options.name or options.backbone,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load": [begun, os.getloadavg()[0]],
        "tokens": options.tokens,
        "repeats": options.repeats,
        "side": options.side,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out.with_suffix(".md"), page(found, about).encode())
    text = json.dumps({"about": about, "engines": found}, indent=1) + "\n"
    write_atomic(options.out.with_suffix(".json"), text.encode())


if __name__ == "__main__":
    main()
