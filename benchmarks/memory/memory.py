#!/usr/bin/env python
"""Search in memory: latency, size, recall and changes, against other indexes on the same data.

    python benchmarks/memory/memory.py --corpus ../shared/data/pretrain
    python benchmarks/memory/memory.py --records 1000 --out /tmp/memory    # made-up sentences

It writes ``benchmarks/results/memory.md``, ``.json`` and ``.png``.  Vectors are MiniLM's for the
first 10,000 records (embedded once and kept in ``build/``); see the page for the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np
from memory_data import exact, made_up, passages, prepare
from memory_peers import PEERS, K

from pfi._util.files import write_atomic, write_json
from pfi.memory.embedders import MINILM, HashEmbedder, find_embedder

ROOT = Path(__file__).resolve().parents[2]
CHANGED = 100
#: How each is checked; what has no entry is not.
WORDS = ["pfi bm25"]
VECTORS = ["pfi dense", "numpy, exact", "faiss, flat", "faiss, HNSW", "usearch, HNSW"]
HYBRID = ["pfi hybrid"]
WITH_MODEL = ["MiniLM alone", "pfi dense, with MiniLM", "pfi hybrid, with MiniLM"]
#: These search the file of "pfi dense".
SAME_FILE = ["pfi hybrid", *WITH_MODEL[1:]]
REFERENCE = "reference words"
DEPTH = 50  # of each ranking that pfi fuses
PACKAGES = ["numpy", "torch", "faiss-cpu", "usearch", "bm25s"]


class Process:
    """One peer in a process of its own."""

    def __init__(self, name: str, source: Path, folder: Path, records: int, threads: int) -> None:
        script = str(Path(__file__).with_name("memory_peers.py"))
        self._child = subprocess.Popen(
            [sys.executable, script, name, str(source), str(folder), str(records)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()

    def do(self, command: str) -> dict[str, Any]:
        """Run a command and wait for it."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(command + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed at {command}; run memory_peers.py to see why")
        return dict(json.loads(line))


def measure(
    source: Path,
    work: Path,
    records: int,
    *,
    questions: int,
    passes: int,
    threads: int,
    with_model: bool,
) -> dict[str, dict[str, Any]]:
    """All figures by peer; they take turns, so that the machine's other work falls on all."""
    names = [name for name in PEERS if with_model or name not in WITH_MODEL]
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    processes: list[Process] = []
    try:
        for name in names:
            process = Process(name, source, work / name.replace(" ", "-"), records, threads)
            processes.append(process)
            rows[name]["build"] = process.do("build")
            opened = process.do("open")
            first = process.do(f"ask {questions * passes} {questions * passes + 1}")
            rows[name]["open"] = opened["cpu"] + first["cpu"][0]
            print(records, name, f"built in {rows[name]['build']['clock']:.1f} s", flush=True)
        for at in range(passes):
            for process in processes:
                if process.name == REFERENCE and at:
                    continue
                answer = process.do(f"ask {at * questions} {(at + 1) * questions}")
                found[process.name] += answer.pop("found")
                rows[process.name].setdefault("passes", []).append(answer)
            print(records, "pass", at + 1, flush=True)
        for process in processes:
            if process.name not in (REFERENCE, *SAME_FILE):
                for command in ("add", "delete"):
                    rows[process.name][command] = process.do(command)
                print(records, process.name, "changed", flush=True)
    finally:
        for process in processes:
            process.__exit__()
    nearest = list(exact(source, records, DEPTH, questions * passes))
    by_words = found[REFERENCE]
    for name, row in rows.items():
        row.update(latency(row["passes"]))
        del row["passes"]
        if name in VECTORS:
            row["recall"] = recall(found[name], [ids[:K] for ids in nearest])
        elif name in WORDS:
            row["recall"] = recall(found[name], [ids[:K] for ids in by_words])
        elif name in HYBRID:
            pairs = zip(by_words, nearest, strict=False)
            row["recall"] = recall(found[name], [fused(*pair) for pair in pairs])
    del rows[REFERENCE]
    return rows


def latency(passes: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Milliseconds: of the pass whose p95 is lowest, and of the first one."""
    clocks = [np.percentile(answer["clock"], [50, 95]) * 1000 for answer in passes]
    cpus = [np.percentile(answer["cpu"], [50, 95]) * 1000 for answer in passes]
    best = min(range(len(passes)), key=lambda at: clocks[at][1])
    return {
        "p50": clocks[best][0],
        "p95": clocks[best][1],
        "first_p95": clocks[0][1],
        "cpu_p50": min(cpu[0] for cpu in cpus),
        "cpu_p95": min(cpu[1] for cpu in cpus),
    }


def recall(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """The mean share of the expected records that were found."""
    pairs = [(set(a), set(b)) for a, b in zip(found, expected, strict=False)]
    return float(np.mean([len(a & b) / len(b) for a, b in pairs if b]))


def fused(*rankings: Sequence[int]) -> list[int]:
    """Reciprocal rank fusion, written down a second time."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place in range(len(ranking)):
            scores[ranking[place]] = scores.get(ranking[place], 0) + 1 / (61 + place)
    return sorted(scores, key=lambda n: (scores[n], n), reverse=True)[:K]


# The page ---------------------------------------------------------------------------


def page(results: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    setting = results["setting"]
    parts = [
        "# Search in memory",
        "",
        "Made by `" + setting["command"] + "` on " + setting["date"] + "; seed "
        f"{setting['seed']}; {setting['threads']} thread(s) a process on a machine with 2 cores "
        "of an AMD EPYC and 24 GiB, which other work kept busy.",
        "",
        f"Records are {setting['texts']}. Questions are the first 12 words of other texts of the "
        f"same kind; {setting['passes']} passes of {setting['questions']} different questions, "
        f"k = {K}. Each index lives in a process of its own, all of them ask in turn, and a row "
        "shows the pass with the lowest p95. **CPU p95** is the processor time of a question: "
        "what the clock would show if nothing else ran. Compare rows of one table with each "
        "other; the machine's other work makes the clock's milliseconds too long.",
        "",
        f"Vectors have {setting['width']} places. They are {setting['embedder']}'s for the first "
        "10,000 records; those of later records are earlier ones with a seeded random vector of "
        "length 0.75 added (cosine 0.8), so that 100,000 texts need not be embedded. Embedding is "
        "left out everywhere else than in the rows with MiniLM.",
        "",
        "*Open* is reading the index and answering a first question. *Add* and "
        f"*delete* are of {CHANGED} records and end with a written index; beside MiniLM, *add* is "
        f"embedding that many. Recall@{K} is the share of what exact "
        "search finds: for vectors a search in single precision, for words plain FTS5, for "
        "hybrid the two fused. The rows of hybrid search and those with MiniLM use the file of "
        "`pfi dense`, which holds text, words and vectors.",
    ]
    for size, rows in by_size(results):
        parts += ["", f"## {int(size):,} records", "", *table(rows)]
    parts += [
        "",
        "FTS5 and pfi cut off endings (porter) and ask for any of the words; bm25s keeps words as "
        "they are, and ranks by its own formula. HNSW: faiss with 32 links and efSearch 64, "
        "usearch with 16 links, f16 and expansion 128. pfi keeps the scores of words that it has "
        "looked up, so its first pass is slower than the next ones. Its changes overwrite what is "
        "deleted on the disk; the others' only take it out of the index.",
        "",
        "Versions: " + setting["versions"] + ".",
        "",
    ]
    return "\n".join(parts)


def by_size(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Number of records and rows, the fewest records first."""
    return sorted(results["records"].items(), key=lambda item: int(item[0]))


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One size's table."""
    head = [
        "index", "build CPU s", "MB", "open CPU ms", "p50 ms", "p95 ms", "CPU p50 ms", "CPU p95 ms",
        "first pass p95 ms", f"recall@{K}", "add CPU ms", "delete CPU ms",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, row in rows.items():
        alone = name == "MiniLM alone"
        shared = alone or name in SAME_FILE
        cells = [
            name,
            "" if shared else f"{row['build']['cpu']:.1f}",
            "" if shared else f"{row['build']['bytes'] / 1e6:.1f}",
            "" if alone else f"{row['open'] * 1000:.0f}",
            *(f"{row[key]:.2f}" for key in ("p50", "p95", "cpu_p50", "cpu_p95", "first_p95")),
            f"{row['recall']:.3f}" if "recall" in row else "",
            change(row.get("add")),
            "" if alone else change(row.get("delete")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def change(figures: Mapping[str, float] | None) -> str:
    """A cell: what it costs to add or delete; an empty answer is that of a peer that cannot."""
    if figures is None:
        return ""
    return f"{figures['cpu'] * 1000:.0f}" if figures else "build anew"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Latency by index, a panel for each size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = by_size(results)
    figure, panels = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4.5), squeeze=False)
    for (size, rows), panel in zip(sizes, panels[0], strict=True):
        names = list(rows)[::-1]
        colours = ["tab:blue" if name.startswith("pfi") else "tab:gray" for name in names]
        panel.barh(names, [rows[name]["cpu_p95"] for name in names], color=colours, alpha=0.4)
        panel.barh(names, [rows[name]["cpu_p50"] for name in names], color=colours)
        panel.axvline(10, color="black", linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        panel.set_xlabel("CPU ms a question: p50 dark, p95 light")
        panel.set_title(f"{int(size):,} records")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def versions() -> str:
    """Of Python's SQLite and of the packages that are compared."""
    import sqlite3

    found = [f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="JSON lines with a text each; a file or folder")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--questions", type=int, default=200, help="of one pass")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "memory-bench")
    parser.add_argument("--date", default="2026-11-22")
    parser.add_argument("--add", action="store_true", help="keep the sizes measured before")
    options = parser.parse_args()

    asked = options.questions * options.passes + 1
    most = max(options.records) + CHANGED + asked
    texts = (
        passages(options.corpus, options.seed) if options.corpus else made_up(most, options.seed)
    )
    embedder = find_embedder() or HashEmbedder(384)
    setting = {
        "command": " ".join(["python", "benchmarks/memory/memory.py", *sys.argv[1:]]),
        "date": options.date,
        "seed": options.seed,
        "threads": options.threads,
        "texts": "passages of at most 40 words of public English text (books, papers, reviews, "
        "news, mails and others)"
        if options.corpus
        else "made-up sentences of a Zipf vocabulary",
        "passes": options.passes,
        "questions": options.questions,
        "width": embedder.width,
        "embedder": embedder.name,
        "versions": versions(),
    }
    results: dict[str, Any] = {"setting": setting, "records": {}}
    if options.add:
        before = json.loads(options.out.with_suffix(".json").read_text("utf-8"))
        results["records"] = before["records"]
        setting["command"] = before["setting"]["command"] + "`, then `" + setting["command"]
    for records in options.records:
        with tempfile.TemporaryDirectory(dir=options.cache.parent) as folder:
            source = Path(folder) / "data"
            prepare(
                source,
                texts,
                records=records,
                added=CHANGED,
                questions=asked,
                embedder=embedder,
                cache=options.cache,
                seed=options.seed,
            )
            results["records"][str(records)] = measure(
                source,
                Path(folder),
                records,
                questions=options.questions,
                passes=options.passes,
                threads=options.threads,
                # What a question's embedding costs does not depend on the records.
                with_model=embedder.name == MINILM and records == min(options.records),
            )
        write_json(options.out.with_suffix(".json"), results)
        plot(results, options.out.with_suffix(".png"))
        write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


if __name__ == "__main__":
    main()
