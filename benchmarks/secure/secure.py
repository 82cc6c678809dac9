#!/usr/bin/env python
"""What a secure sum costs, against Flower's SecAgg+ on the same updates in the same run.

    pip install "flwr>=1.41"
    OMP_NUM_THREADS=1 python benchmarks/secure/secure.py

It writes ``benchmarks/results/secure.md`` and ``.json``.  Peers take turns; figures are medians of
processor time, which what else the machine does changes little.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from secure_peers import Case, Clock, flower, pfi, sharing

from pfi._util.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "10 clients, 1,000,000 values": (Case(10, 1_000_000, 0, 7), 5),
    "30 clients, 100,000 values, 6 dropouts": (Case(30, 100_000, 6, 21), 15),
}
OURS, THEIRS, SPARSE = "pfi", "Flower SecAgg+", "Flower SecAgg+, {} neighbours"
COHORTS = (8, 16, 32, 64, 100)
#: Our stages and Flower's, by what happens in them.
STAGES = {
    "clients: keys": ("client keys", "client setup"),
    "clients: sharing secrets": ("client shares", "client share_keys"),
    "clients: masking": ("client masked", "client collect_masked_vectors"),
    "clients: signing the survivors": ("client survivors",),
    "clients: returning shares": ("client unmask",),
    "server: all": ("server",),
}


def in_turns(peers: dict[str, Callable[[], Clock]], repeats: int) -> dict[str, list[Clock]]:
    """Runs of every peer, in alternating order."""
    runs: dict[str, list[Clock]] = {name: [] for name in peers}
    for turn in range(repeats):
        for name in list(peers) if turn % 2 == 0 else reversed(list(peers)):
            runs[name].append(peers[name]())
    return runs


def figures(runs: Sequence[Clock]) -> dict[str, Any]:
    """Medians of a peer."""
    by_stage = {
        label: median(
            sum(seconds for name, seconds in run.cpu.items() if name.startswith(prefixes))
            for run in runs
        )
        for label, prefixes in STAGES.items()
    }
    return {
        "cpu": median(run.total for run in runs),
        "lowest": min(run.total for run in runs),
        "wall": median(run.wall for run in runs),
        "sent": runs[0].sent,
        "error": max(run.error for run in runs),
        "stages": by_stage,
    }


def compare(repeats: int) -> dict[str, Any]:
    """All peers on all cases."""
    found: dict[str, Any] = {}
    for label, (case, shares) in CASES.items():
        peers: dict[str, Callable[[], Clock]] = {
            OURS: lambda case=case: pfi(case),  # type: ignore[misc]
            THEIRS: lambda case=case: flower(case),  # type: ignore[misc]
            SPARSE.format(shares - 1): lambda case=case, shares=shares: flower(case, shares),  # type: ignore[misc]
        }
        found[label] = {name: figures(runs) for name, runs in in_turns(peers, repeats).items()}
        print(label, {name: round(one["cpu"], 3) for name, one in found[label].items()}, flush=True)
    return found


def cohorts() -> dict[str, Any]:
    """Our own costs by size of the cohort, with 100,000 values and a fifth dropping out."""
    found = {}
    for count in COHORTS:
        case = Case(count, 100_000, count // 5, 2 * count // 3 + 1)
        runs = [pfi(case) for _ in range(3)]
        clients = [
            sum(seconds for name, seconds in run.cpu.items() if name.startswith("client"))
            for run in runs
        ]
        found[str(count)] = {
            "client": median(clients) / count,
            "server": median(run.total - one for run, one in zip(runs, clients, strict=True)),
            "sent": runs[0].sent / count,
            "integers": min(sharing(count, case.threshold, False) for _ in range(5)),
            "limbs": min(sharing(count, case.threshold, True) for _ in range(5)),
        }
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose first column is of words."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = results["setting"]
    lines = [
        "# Secure sums against Flower's SecAgg+",
        "",
        f"Made by `{about['command']}` on {about['date']}; {about['repeats']} runs of each, in "
        f"turns; one thread; {about['cpus']} cores of {about['machine']['system']}, which other "
        f"work kept busy; Python {about['machine']['python']}, flwr {about['flwr']}, cryptography "
        f"{about['cryptography']}. Processor seconds are medians of whole runs; compare them with "
        "each other only.",
        "",
        "What is timed: all of the protocol for all clients and the server, one after another in "
        "one process, from float32 updates and weights to the weighted mean. For pfi that "
        "includes every message's encoding to bytes and decoding, both ways; Flower's own "
        "`SecAggPlusWorkflow` and `secaggplus_mod` pass message objects, and what SuperLink and "
        "network add to them is left out. Both share the secrets among all clients with the same "
        "threshold (7 of 10, 21 of 30), have a modulus of 2^32, and lose the same clients after "
        "secrets were shared, as a dropout before that ends Flower's round. pfi has one stage "
        "more (signatures under the set of survivors) and verifies signatures of all keys, which "
        "SecAgg+ does not. The rows with neighbours are SecAgg+ with secrets shared among that "
        "many clients only: less work for weaker privacy, which pfi does not offer.",
        "",
    ]
    for label, peers in results["cases"].items():
        ours = peers[OURS]
        lines += [f"## {label}", ""]
        lines += table(
            ["", "CPU s", "lowest", "wall s", "CPU / pfi's", "MB to the server", "mean's error"],
            [
                [
                    name,
                    f"{one['cpu']:.2f}",
                    f"{one['lowest']:.2f}",
                    f"{one['wall']:.2f}",
                    f"{one['cpu'] / ours['cpu']:.1f}",
                    f"{one['sent'] / 1e6:.1f}",
                    f"{one['error']:.1e}",
                ]
                for name, one in peers.items()
            ],
        )
        lines += ["CPU seconds by what is done, all clients together:", ""]
        lines += table(
            ["", *peers],
            [
                [stage, *(f"{one['stages'][stage]:.3f}" for one in peers.values())]
                for stage in STAGES
            ],
        )
    lines += [
        "The error is the largest difference of the mean to that of the float updates. pfi's steps "
        "are the finest with which 32 bits cannot overflow, Flower's are its default of 2^22.",
        "",
        "## pfi by size of the cohort",
        "",
        "100,000 values, a fifth of the clients dropping out before they send their masked vector. "
        "*Sharing* is Shamir's sharing of a client's two secrets: with plain integers, as it is "
        "done, and with five numpy limbs modulo 2^61 - 1.",
        "",
    ]
    lines += table(
        ["clients", "CPU ms a client", "CPU s of the server", "KB sent a client", "sharing, ms",
         "with limbs, ms"],
        [
            [
                count,
                f"{one['client'] * 1e3:.0f}",
                f"{one['server']:.2f}",
                f"{one['sent'] / 1e3:.0f}",
                f"{one['integers'] * 1e3:.2f}",
                f"{one['limbs'] * 1e3:.2f}",
            ]
            for count, one in results["cohorts"].items()
        ],
    )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "secure")
    parser.add_argument("--date", default="2026-11-22")
    options = parser.parse_args()

    from pfi.evaluate.study.study import machine

    logging.getLogger("flwr").setLevel(logging.ERROR)
    results: dict[str, Any] = {
        "setting": {
            "command": " ".join(["python", "benchmarks/secure/secure.py", *sys.argv[1:]]),
            "date": options.date,
            "repeats": options.repeats,
            "machine": machine(),
            "cpus": os.cpu_count(),
            "flwr": version("flwr"),
            "cryptography": version("cryptography"),
        },
        "cases": compare(options.repeats),
        "cohorts": cohorts(),
    }
    write_json(options.out.with_suffix(".json"), results)
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


if __name__ == "__main__":
    main()
