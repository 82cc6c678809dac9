#!/usr/bin/env python
"""What `pfi serve` takes on: 32 users with adapters of their own, side by side and one at a time.

    python benchmarks/serve/serve.py --to NAME [--users 32] [--requests 2] [--repeats 2]

The server runs in a process of its own; each user's client streams answers over a socket, one
after the other, all users at once.  Three ways take turns: all users' answers in one batch,
one answer at a time (what a runtime does that holds one adapter at a time), and the engine
without the server.  Writes `<to>.md` and `<to>.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

QUESTION = "What should I write to a friend who asks how the week has been so far?"
WAYS = {
    "batch": "`pfi serve`, all users' answers side by side",
    "one": "`pfi serve`, one answer at a time (`rows=1`)",
    "engine": "the engine alone, all users' answers side by side",
}


# The server's process -----------------------------------------------------------------


def make_homes(root: Path, users: int, rank: int) -> dict[str, Any]:
    """Profiles with four records and an adapter each; how fast they are depends on no value."""
    import torch
    from peft import get_peft_model

    from pfi.models.adapters import Adapter, AdapterConfig, lora_config
    from pfi.models.backbone import load_backbone
    from pfi.profile.adapters.files import AdapterInfo
    from pfi.profile.config import HomeConfig
    from pfi.profile.open import create_home
    from pfi.records import Record

    backbone = load_backbone("embedded")
    config = lora_config(AdapterConfig(rank=rank, alpha=rank), backbone.model)
    begin, homes = datetime(2024, 1, 1, tzinfo=UTC), {}
    for user in range(users):
        name = f"user{user:02}"
        home = create_home(name, root=root, config=HomeConfig(embedder="none"), lock="file")
        with home.open_vault() as vault:
            vault.add(
                Record(
                    f"{n}",
                    "instruction",
                    {"instruction": f"What did {name} do on day {n}?"},
                    f"On day {n} {name} went for a walk by the river and read a book.",
                    begin + timedelta(n),
                )
                for n in range(4)
            )
        torch.manual_seed(user)
        model: Any = get_peft_model(backbone.model, config)
        fresh = Adapter.of(model)
        model.unload()
        weights = {k: torch.randn_like(v) * 0.02 for k, v in fresh.weights.items()}
        info = AdapterInfo(task="instruction", backbone="embedded")
        manifest = home.personal_adapters.add(Adapter(fresh.settings, weights), info)
        home.personal_adapters.use(manifest.version)
        homes[name] = home
    return homes


def serve(root: Path, rows: int, users: int, rank: int) -> None:
    """Serve until standard input ends; says where, and at the end what it took."""
    from pfi.serve import ServeConfig, Service
    from pfi.serve.app import create_app
    from pfi.serve.auth import new_token
    from pfi.serve.server import address, listen, make_server

    homes = make_homes(root, users, rank)
    tokens = {name: new_token(home)[1] for name, home in homes.items()}
    config = ServeConfig.model_validate({"port": 0, "rows": rows, "running": 4 * users})
    service = Service(homes, config)
    service.load()
    app = create_app(service, config)
    socket = listen(config)
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    print(json.dumps({"url": address(socket), "tokens": tokens}), flush=True)
    for _ in sys.stdin:  # a line asks for the time used so far
        print(json.dumps({"cpu": cpu_seconds(), "adapters": app_loads(service)}), flush=True)
    server.should_exit = True
    thread.join()


def app_loads(service: Any) -> int:
    """Adapters that were read so far."""
    return sum(stats.adapter_loads for stats in service.stats())


def engine_alone(root: Path, users: int, rank: int, requests: int, new: int) -> dict[str, Any]:
    """The same questions put to the engine itself, made ready beforehand."""
    from pfi.inference.engine import Sampling
    from pfi.serve import ServeConfig, Service

    config = ServeConfig.model_validate({"rows": users})
    service = Service(make_homes(root, users, rank), config)
    service.load()
    prepared = {name: service.prepare(name, QUESTION) for name in service.profiles}
    firsts: list[float] = []
    counts: list[int] = []
    lasts: list[float] = []

    def ask(name: str, turns: int, tokens: int) -> None:
        for _ in range(turns):
            begun, first, count = time.perf_counter(), 0.0, 0
            for piece in service.stream(name, prepared[name], Sampling(max_tokens=tokens)):
                first = first or time.perf_counter() - begun
                count += piece.tokens
            firsts.append(first)
            counts.append(count)
            lasts.append(time.perf_counter() - begun)

    def all_at_once(turns: int, tokens: int) -> None:
        threads = [threading.Thread(target=ask, args=(n, turns, tokens)) for n in prepared]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_at_once(1, 2)  # adapters are read
    firsts.clear(), counts.clear(), lasts.clear()
    begun, used = time.perf_counter(), cpu_seconds()
    all_at_once(requests, new)
    seconds, used = time.perf_counter() - begun, cpu_seconds() - used
    service.close()
    return summary(seconds, used, counts, firsts, lasts)


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# The clients --------------------------------------------------------------------------


async def storm(url: str, tokens: dict[str, str], requests: int, new: int) -> dict[str, Any]:
    """Every user asks one question after the other, all users at once."""
    import httpx

    firsts: list[float] = []
    lasts: list[float] = []
    counts: list[int] = []
    limits = httpx.Limits(max_connections=len(tokens))
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(name: str) -> None:
            body = {
                "model": name,
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": new,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            headers = {"Authorization": f"Bearer {tokens[name]}"}
            for _ in range(requests):
                begun, first = time.perf_counter(), 0.0
                async with client.stream(
                    "POST", f"{url}/v1/chat/completions", json=body, headers=headers
                ) as reply:
                    assert reply.status_code == 200, await reply.aread()
                    async for line in reply.aiter_lines():
                        if not first and '"content":"' in line and '"content":""' not in line:
                            first = time.perf_counter() - begun
                        if '"usage":{' in line:
                            usage = json.loads(line.removeprefix("data: "))["usage"]
                            counts.append(usage["completion_tokens"])
                firsts.append(first)
                lasts.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(one(name) for name in tokens))
        seconds = time.perf_counter() - begun
    return summary(seconds, 0.0, counts, firsts, lasts)


def served(way: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the clients see of a server with so many rows."""
    rows = options.users if way == "batch" else 1
    words = [sys.executable, __file__, "--part", "serve", "--root", str(root), "--rows", str(rows)]
    words += ["--users", str(options.users), "--rank", str(options.rank)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None

        def state() -> dict[str, Any]:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            return dict(json.loads(child.stdout.readline()))

        where = json.loads(child.stdout.readline())
        asyncio.run(storm(where["url"], where["tokens"], 1, 2))  # adapters are read
        before = state()
        found = asyncio.run(
            storm(where["url"], where["tokens"], options.requests, options.new_tokens)
        )
        after = state()
        child.stdin.close()
    loads = after["adapters"] - before["adapters"]
    return {**found, "cpu": after["cpu"] - before["cpu"], "loads": loads}


def alone(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the engine does by itself, in a process of its own."""
    words = [sys.executable, __file__, "--part", "engine", "--root", str(root)]
    for name in ("users", "rank", "requests", "new_tokens"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(
    seconds: float,
    cpu: float,
    counts: Sequence[int],
    firsts: Sequence[float],
    lasts: Sequence[float],
) -> dict[str, Any]:
    """Of one storm."""
    return {
        "seconds": seconds,
        "cpu": cpu,
        "answers": len(counts),
        "tokens": sum(counts),
        "first": [quantile(firsts, 0.5), quantile(firsts, 0.95)],
        "last": [quantile(lasts, 0.5), quantile(lasts, 0.95)],
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the others does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


# The page -----------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    ways, about = found["ways"], found["about"]
    lines = [
        "# `pfi serve`: many users at once",
        "",
        f"Made by `{about['command']}`. {about['users']} users, each with an adapter of rank "
        f"{about['rank']} over the embedded backbone and four records, two of them retrieved; "
        f"every user's client streams {about['requests']} answers of up to "
        f"{about['new_tokens']} tokens, one after the other, all users at once. Server and "
        f"clients are processes of their own on one machine ({about['machine']}), which other "
        f"work may share (load {about['load'][0]:.1f} to {about['load'][1]:.1f}); CPU seconds are "
        "the server's alone and depend on that least. Ways take turns; medians of "
        f"{about['repeats']} repeats, with the range of tokens a second.",
        "",
        "| | tokens a second | range | CPU ms a token | first token, s: p50 | p95 "
        "| whole answer, s: p50 | p95 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rates = {}
    for way, title in WAYS.items():
        runs = ways[way]
        speeds = [run["tokens"] / run["seconds"] for run in runs]
        rates[way] = median(speeds), median(run["cpu"] / run["tokens"] for run in runs)
        cells = [
            f"{rates[way][0]:.0f}",
            f"{min(speeds):.0f} to {max(speeds):.0f}",
            f"{1000 * rates[way][1]:.2f}",
            *(f"{median(run[kind][at] for run in runs):.2f}" for kind in ("first", "last")
              for at in (0, 1)),
        ]  # fmt: skip
        lines.append(f"| {title} | {' | '.join(cells)} |")
    more = rates["batch"][0] / rates["one"][0]
    less = rates["one"][1] / rates["batch"][1]
    lines += [
        "",
        f"Side by side the server gives **{more:.1f} times** the tokens a second of one answer "
        f"at a time, and a token takes {less:.1f} times less of the processor. Of a token's "
        f"processor time {100 * rates['engine'][1] / rates['batch'][1]:.0f} % is the engine's; "
        "sockets, JSON, retrieval and the vault take the rest.",
        "",
        "The one-at-a-time server has the same engine, the same adapters in memory "
        f"({max(run['loads'] for run in ways['one'])} were read anew during a run) and the same "
        "cache of prompts' beginnings; only its batch has one row.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or be the server's process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/serve"))
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--part", choices=["serve", "engine"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "serve":
        serve(options.root, options.rows, options.users, options.rank)
        return
    if options.part == "engine":
        figures = engine_alone(
            options.root, options.users, options.rank, options.requests, options.new_tokens
        )
        print(json.dumps(figures))
        return
    from pfi._util.files import write_atomic, write_json

    begun = os.getloadavg()[0]
    ways: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, runs in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                runs.append(alone(root, options) if way == "engine" else served(way, root, options))
            print(way, runs[-1], file=sys.stderr)
    shown = " ".join(["python", "benchmarks/serve/serve.py", *sys.argv[1:]])
    sizes = ("users", "rank", "requests", "new_tokens", "repeats")
    about: dict[str, Any] = {name: getattr(options, name) for name in sizes}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, threads of the model: {threads}"
    about |= {"command": shown, "machine": machine, "load": [begun, os.getloadavg()[0]]}
    found = {"about": about, "ways": ways}
    write_json(options.to.with_suffix(".json"), found)
    write_atomic(options.to.with_suffix(".md"), page(found))


if __name__ == "__main__":
    main()
