#!/usr/bin/env python
"""A soak of `pfi serve`: many users, every API, bad requests, clients that leave, restarts.

    python benchmarks/serve/soak.py --requests 20000 --users 50

Profiles on the embedded backbone hold planted words; a server of its own process answers; each
piece of the run is a life of the server, whose last requests come while it is told to end.  What is
asked: does any response show another user's word, does memory grow, is every record still there,
how long do answers take, and is anything answered with what it must not be?  Pieces that are done
are kept, so that the run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from soak_load import MIX, THINGS, Asked, crossed, name_of, question_of, requests, word_of

from pfi._util.files import write_atomic
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.records import Record
from pfi.serve.auth import new_token

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
EVERY = 100  # requests between two looks at the server's memory
LAST = 40  # requests of a life that come while the server is told to end


# Profiles -----------------------------------------------------------------------------------


def record_of(user: int, number: int, thing: str) -> Record:
    """A record that says whose it is."""
    text = f"In the {thing} box, beside {word_of(user)}."
    when = BEGIN + timedelta(hours=number)
    asked = {"instruction": question_of(thing)}
    return Record(f"{name_of(user)}-{number}", "instruction", asked, text, when)


def make_homes(root: Path, users: int) -> tuple[list[Home], list[str]]:
    """The profiles and a token of each; those of an earlier piece where there are some."""
    file = root / "tokens.json"
    known: list[str] = json.loads(file.read_text()) if file.exists() else []
    homes = []
    for user in range(users):
        if user < len(known):
            homes.append(open_home(name_of(user), root=root))
            continue
        config = HomeConfig(embedder="none")
        home = create_home(name_of(user), root=root, config=config, lock="file")
        with home.open_vault() as vault:
            vault.add(record_of(user, number, thing) for number, thing in enumerate(THINGS))
        known.append(new_token(home, scopes=("answer", "memory"))[1])
        homes.append(home)
        write_atomic(file, json.dumps(known).encode())
    return homes, known


def add_records(homes: Sequence[Home], piece: int) -> None:
    """A new record for every user, while the server runs."""
    for user, home in enumerate(homes):
        with home.open_vault() as vault:
            vault.add([record_of(user, len(THINGS) + piece, f"parcel of week {piece}")])


def lost_records(homes: Sequence[Home], pieces: int) -> int:
    """How many of the records that were ever added are not in the vaults as they were."""
    lost = 0
    for user, home in enumerate(homes):
        with home.open_vault() as vault:
            kept = {record.id: record for record in vault.history("instruction")}
        things = [*THINGS, *(f"parcel of week {piece}" for piece in range(pieces))]
        for number, thing in enumerate(things):
            record = record_of(user, number, thing)
            there = kept.get(record.id)
            lost += there is None or there.output != record.output
    return lost


# The server ---------------------------------------------------------------------------------


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server(root: Path, port: int, rows: int) -> Any:
    """`pfi serve` over all profiles, see ``started``."""
    # One machine plays all clients: the limits of one token are another test's.
    limits = {"requests_per_minute": 100_000, "tokens_per_minute": 100_000_000}
    return started(root, "torch", {"port": port or free_port(), "rows": rows, **limits})


@contextmanager
def started(
    root: Path, engine: str, settings: Mapping[str, Any]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`pfi serve` over all profiles of a folder; killed in the end if it does not end by itself.

    Args:
        root: the folder.
        engine: that answers.
        settings: of the server, the port among them.
    """
    port = settings["port"]
    words = [sys.executable, "-m", "pfi.cli", "serve", "--all", "--engine", engine]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    env = {**os.environ, "PFI_HOME": str(root), "OMP_NUM_THREADS": "1"}
    with (root / "server.log").open("ab") as log:
        child = subprocess.Popen(words, env=env, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 180
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=5)
                break
            except httpx.HTTPError:
                if child.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.2)
        if child.poll() is not None:
            raise SystemExit(f"another server has port {port}; see {root / 'server.log'}")
        yield url, child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def memory_of(pid: int) -> tuple[float, float, int]:
    """A process's memory now and at its most, in MiB, and its open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
        for name in ("VmRSS", "VmHWM")
    )
    return now, most, len([*Path(f"/proc/{pid}/fd").iterdir()])


# The clients --------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the requests of one piece.

    Attributes:
        seconds: of whole answers, by kind.
        statuses: how often each, by kind.
        wrong: answers that must not be, as short texts; those that crossed among them.
        crossed: how many responses showed another user's word.
        shown: of the questions with a match, how many rested on an own record.
        matched: how many questions with a match were answered.
        cut: requests that found no server, or lost it, while it was told to end.
        memory: triples of requests so far, MiB and open files.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    crossed: int = 0
    shown: int = 0
    matched: int = 0
    cut: int = 0
    memory: list[tuple[int, float, int]] = field(default_factory=list)
    done: int = 0
    ending: bool = False

    def count(self, asked: Asked, status: int, body: bytes, seconds: float) -> None:
        """One answer."""
        self.done += 1
        self.seconds.setdefault(asked.kind, []).append(round(seconds, 4))
        self.statuses.setdefault(asked.kind, Counter())[str(status)] += 1
        others = crossed(asked, body)
        self.crossed += bool(others)
        ends = self.ending and status == 503
        if others or not (status in asked.statuses or ends):
            self.wrong.append(f"{asked.kind} {asked.path} {status}: {others or body[:200]!r}")
        if asked.matches and status == 200 and asked.path.startswith("/v1"):
            self.matched += 1
            self.shown += word_of(asked.user or 0).encode() in body

    def left(self, asked: Asked) -> None:
        """A client that closed its connection."""
        self.done += 1
        self.statuses.setdefault(asked.kind, Counter())[f"left {asked.leave}"] += 1

    def failed(self, asked: Asked, error: Exception) -> None:
        """A connection that broke."""
        self.done += 1
        if self.ending:
            self.cut += 1
        else:
            self.wrong.append(f"{asked.kind} {asked.path}: {type(error).__name__} {error}")


async def send(client: httpx.AsyncClient, asked: Asked, token: str, tally: Tally) -> None:
    """One request, to its end or to where its client leaves."""
    headers = {"Content-Type": "application/json"}
    if asked.user is not None:
        headers["Authorization"] = f"Bearer {token}"
    begun, body = time.perf_counter(), b""
    method = "GET" if asked.get else "POST"
    content = None if asked.get else asked.content
    try:
        if asked.leave == "at once":
            job = client.request(method, asked.path, content=content, headers=headers)
            with suppress(TimeoutError):
                await asyncio.wait_for(job, 0.05)
            return tally.left(asked)
        async with client.stream(method, asked.path, content=content, headers=headers) as reply:
            async for chunk in reply.aiter_bytes():
                body += chunk
                if asked.leave and b"content" in body:
                    break
        if asked.leave:
            return tally.left(asked)
        tally.count(asked, reply.status_code, body, time.perf_counter() - begun)
    except httpx.HTTPError as error:
        tally.failed(asked, error)


async def drive(
    url: str, child: Any, load: Sequence[Asked], tokens: Sequence[str], side: int, tally: Tally
) -> None:
    """All requests, so many side by side; during the last ones the server is told to end."""
    queue = iter(load)
    limits = httpx.Limits(max_connections=side)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def worker() -> None:
            for asked in queue:
                await send(client, asked, tokens[asked.user or 0], tally)
                if tally.done % EVERY == 0 and child.poll() is None:
                    now, _, files = memory_of(child.pid)
                    tally.memory.append((tally.done, round(now, 1), files))
                if tally.done >= len(load) - LAST and not tally.ending:
                    tally.ending = True
                    child.send_signal(signal.SIGTERM)

        await asyncio.gather(*(worker() for _ in range(side)))


def piece(
    root: Path, homes: Sequence[Home], tokens: Sequence[str], number: int, options: Any
) -> dict[str, Any]:
    """One life of the server."""
    load = list(requests(options.piece, options.users, seed=number))
    tally = Tally()
    begun = time.perf_counter()
    with server(root, options.port, options.rows) as (url, child):
        ready = time.perf_counter() - begun

        async def both() -> None:
            adding = asyncio.to_thread(add_records, homes, number)
            await asyncio.gather(drive(url, child, load, tokens, options.side, tally), adding)

        peak = 0.0
        asyncio.run(both())
        if child.poll() is None:
            _, peak, _ = memory_of(child.pid)
        try:
            status = child.wait(60)
        except subprocess.TimeoutExpired:
            status = None
            tally.wrong.append("the server did not end within 60 s of SIGTERM")
    used = os.times()
    return {
        "requests": tally.done,
        "ready": round(ready, 2),
        "wall": round(time.perf_counter() - begun, 1),
        "cpu": round(used.children_user + used.children_system, 1),  # all servers so far
        "exit": status,
        "peak": peak,
        "lost": lost_records(homes, number + 1),
        "crossed": tally.crossed,
        "wrong": tally.wrong[:20],
        "wrong count": len(tally.wrong),
        "cut": tally.cut,
        "matched": tally.matched,
        "shown": tally.shown,
        "statuses": {kind: dict(counts) for kind, counts in tally.statuses.items()},
        "seconds": tally.seconds,
        "memory": tally.memory,
    }


# The page -----------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the others does not exceed; NaN of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


def slope(points: Sequence[Sequence[float]]) -> float:
    """MiB that a server's memory grows by in 1,000 requests, over the second half of a life."""
    half = points[len(points) // 2 :]
    if len(half) < 3:
        return float("nan")
    xs, ys = [p[0] / 1000 for p in half], [p[1] for p in half]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((at - x) ** 2 for at in xs)
    return sum((at - x) * (value - y) for at, value in zip(xs, ys, strict=True)) / spread


def page(pieces: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The results as Markdown."""
    total = sum(one["requests"] for one in pieces)
    wrong = sum(one["wrong count"] for one in pieces)
    shown, matched = (sum(one[name] for one in pieces) for name in ("shown", "matched"))
    lines = [
        "# A soak of `pfi serve`",
        "",
        f"Made by `{about['command']}`. {total} requests of {about['users']} users on the embedded "
        f"backbone, {about['side']} at a",
        f"time, in {len(pieces)} lives of one server process, each ended by SIGTERM while its last "
        f"{LAST} requests came in;",
        "a new record for every user during each life. Machine: "
        f"{about['machine']}, shared with other work, so times are",
        "upper bounds.",
        "",
        f"- Responses that showed another user's planted word: "
        f"**{sum(one['crossed'] for one in pieces)}** of {total}.",
        f"- Records lost: **{pieces[-1]['lost']}** of "
        f"{about['users'] * (len(THINGS) + len(pieces))}, compared text by text.",
        f"- Answers with a status that was not right for the request, or broken connections: "
        f"**{wrong}**.",
        f"- Questions with a match on `/v1` whose answer named the user's own record: {shown} of "
        f"{matched}.",
        f"- Requests cut or refused because the server was ending: "
        f"{sum(one['cut'] for one in pieces)} cut; exit statuses "
        f"{', '.join(str(one['exit']) for one in pieces)}.",
        "",
        "| kind | requests | statuses | p50, s | p95, s | p99, s | longest, s |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for kind in MIX:
        times = [value for one in pieces for value in one["seconds"].get(kind, ())]
        counts: Counter[str] = Counter()
        for one in pieces:
            counts.update(one["statuses"].get(kind, {}))
        cells = [f"{quantile(times, share):.2f}" for share in (0.5, 0.95, 0.99, 1.0)]
        said = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
        figures = " | ".join(cells) if times else " | ".join("-" * 4)
        lines.append(f"| {kind} | {sum(counts.values())} | {said} | {figures} |")
    lines += [
        "",
        "| life | requests | ready, s | wall, s | memory after 100, MiB | at the end | most "
        "| growth, MiB per 1,000 | open files |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, one in enumerate(pieces, 1):
        points = one["memory"]
        cells = [number, one["requests"], one["ready"], one["wall"], points[0][1], points[-1][1]]
        cells += [max(p[1] for p in points), f"{slope(points):.1f}", max(p[2] for p in points)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "Growth is the slope over the second half of a life. The engine keeps beginnings of "
        "prompts, up to 256 MiB; a life of",
        "fewer than some 1,000 requests ends while that fills, and does not show whether memory is "
        "flat afterwards.",
        "",
        "![Memory](soak.png)",
        "",
    ]
    return "\n".join(lines)


def plot(pieces: Sequence[dict[str, Any]], file: Path) -> None:
    """Memory by requests, a line a life."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    before = 0
    for one in pieces:
        axes.plot([before + p[0] for p in one["memory"]], [p[1] for p in one["memory"]])
        before += one["requests"]
    axes.set(xlabel="requests (a line is a life of the server)", ylabel="resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run the pieces that are left, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--piece", type=int, default=4_000, help="requests in a life of the server")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--side", type=int, default=16, help="requests at a time")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--port", type=int, default=0, help="any free one if 0")
    parser.add_argument("--work", type=Path, default=Path("build/soak"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve/soak"))
    options = parser.parse_args()
    root = options.work / "home"
    root.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    state = options.work / "pieces.json"
    pieces = json.loads(state.read_text()) if state.exists() else []
    homes, tokens = make_homes(root, options.users)
    about = {
        "command": "python benchmarks/serve/soak.py " + " ".join(sys.argv[1:]),
        "users": options.users,
        "side": options.side,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    while sum(one["requests"] for one in pieces) < options.requests:
        one = piece(root, homes, tokens, len(pieces), options)
        pieces.append(one)
        write_atomic(state, json.dumps(pieces).encode())
        seconds = [value for times in one["seconds"].values() for value in times]
        print(
            f"life {len(pieces)}: {one['requests']} requests in {one['wall']} s, crossed "
            f"{one['crossed']}, wrong {one['wrong count']}, p99 {quantile(seconds, 0.99):.2f} s",
            one["wrong"][:5],
            flush=True,
        )
        write_atomic(options.out.with_suffix(".md"), page(pieces, about).encode())
        shown = {"about": about, "lives": [{**p, "seconds": _times(p)} for p in pieces]}
        text = json.dumps(shown, indent=1) + "\n"
        write_atomic(options.out.with_suffix(".json"), text.encode())
        plot(pieces, options.out.with_suffix(".png"))


def _times(one: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A piece's times in short."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        kind: {name: quantile(values, share) for name, share in shares.items()}
        for kind, values in one["seconds"].items()
    }


if __name__ == "__main__":
    main()
