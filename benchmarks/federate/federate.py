#!/usr/bin/env python
"""What a simulated round of federated LoRA training costs, against peers that compute the same.

    python -m venv build/peers && build/peers/bin/pip install pfl==0.6.0 torch peft transformers
    pip install "flwr[simulation]"
    python benchmarks/federate/federate.py --pfl build/peers/bin/python

Peers whose packages are missing are left out.  It writes ``benchmarks/results/federate.md``,
``.json`` and ``.png``; what ``--only`` leaves out stays as it was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
from federate_data import Setting

from pfi._util.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[2]
REFERENCE, PFL = "bare loop", "pfl"
#: Share of pfl's overhead that pfi may have.
BAR = 1 / 3
PARTS = ["tiny", "large", "many", "fleets"]
#: Clients and cohort of the federations whose memory is measured.
FLEETS = [(1000, 100), (10_000, 100), (10_000, 1000)]
#: How far the factors of two peers may lie apart.
TOLERANCE = 1e-5
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Process:
    """One peer in a process of its own."""

    def __init__(self, python: str, name: str, setting: Path) -> None:
        path = os.pathsep.join(map(str, (ROOT / "src", Path(__file__).parent)))
        self._child = subprocess.Popen(
            [python, str(Path(__file__).with_name("federate_peers.py")), name, str(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": path},
        )
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:  # Ray's processes end with it
            self._child.wait(60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def read(self) -> dict[str, Any]:
        """The next answer."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; run federate_peers.py to see why")
        return dict(json.loads(line))

    def do(self, command: str) -> dict[str, Any]:
        """Run a command and wait for it."""
        assert self._child.stdin is not None
        self._child.stdin.write(command + "\n")
        self._child.stdin.flush()
        return self.read()


def measure(setting: Setting, pythons: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Each peer's figures; all take turns, round by round.

    Raises:
        SystemExit: a peer's factors are not the bare loop's.
    """
    path = setting.save()
    processes: list[Process] = []
    rows: dict[str, dict[str, Any]] = {}
    try:
        processes += [Process(python, name, path) for name, python in pythons.items()]
        for process in processes:
            process.read()  # it is ready
        for process in processes:
            warm = process.do("round")
            process.do("idle")
            rows[process.name] = {"first_clock": warm["clock"], "rounds": [], "idle": []}
            print(f"{setting.clients} clients, {process.name} is warm", flush=True)
        far = differences(processes, Path(setting.folder))
        for at in range(rounds):
            # A process that was started later must not profit from it.
            turn = processes[at % len(processes) :] + processes[: at % len(processes)]
            for process in turn:
                rows[process.name]["rounds"].append(process.do("round"))
                rows[process.name]["idle"].append(process.do("idle"))
            print(f"{setting.clients} clients: round {at + 1} of {rounds}", flush=True)
        for name, value in differences(processes, Path(setting.folder)).items():
            rows[name]["difference"] = max(value, far[name])
    finally:
        for process in processes:
            process.__exit__()
    for row in rows.values():
        found = row["rounds"]
        row["peak"] = max(one["peak"] for one in found)
        row["cpu"] = [1000 * one["cpu"] / setting.clients for one in found]
        row["clock"] = [one["clock"] for one in found]
        row["idle"] = [1000 * one["cpu"] / setting.clients for one in row["idle"]]
        del row["rounds"]
    return {
        "model": setting.model,
        "clients": setting.clients,
        "numbers": numbers(setting),
        "steps": setting.steps,
        "rows": rows,
    }


def differences(processes: Sequence[Process], folder: Path) -> dict[str, float]:
    """How far each peer's factors are from the bare loop's, at most.

    Raises:
        SystemExit: a peer's are farther than they may.
    """
    found = {}
    for number, process in enumerate(processes):
        process.do(f"save {folder / str(number)}.npy")
        found[process.name] = np.load(folder / f"{number}.npy")
    far = {name: float(abs(one - found[REFERENCE]).max()) for name, one in found.items()}
    if odd := [name for name, value in far.items() if not value <= TOLERANCE]:
        raise SystemExit(f"{odd[0]} computes something else: off by {far[odd[0]]:.1e}")
    return far


def numbers(setting: Setting) -> int:
    """Trainable parameters."""
    from pfi.models.adapters import Adapter

    return sum(factor.numel() for factor in Adapter.load(setting.initial).weights.values())


# The page ---------------------------------------------------------------------------


def overhead(rows: Mapping[str, Mapping[str, Any]], name: str, kind: str = "cpu") -> float:
    """CPU ms a client-round beyond the bare loop's, the least disturbed rounds compared."""
    return float(min(rows[name][kind]) - min(rows[REFERENCE][kind]))


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How pfi stands to the bar, in sentences."""
    said = []
    for name in rows:
        if not name.startswith("pfi"):
            continue
        share = min(rows[name]["cpu"]) / min(rows[REFERENCE]["cpu"])
        text = f"**{name}**: {share:.2f} of the bare loop's CPU time"
        for kind, what in (("cpu", "{} ms over it"), ("idle", "around the steps {} ms")):
            own = overhead(rows, name, kind)
            text += ("; " if kind == "idle" else ", ") + what.format(f"{own:+.2f}")
            if PFL in rows:
                theirs = overhead(rows, PFL, kind)
                met = "met" if own <= BAR * max(theirs, 0) else "**missed**"
                text += f" (pfl {theirs:+.2f}: the bar of a third is {met})"
        said.append(text + ".")
    return said


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One comparison's table."""
    head = [
        "simulation", "CPU ms a client-round", "median", "over the bare loop", "around the steps",
        "median", "s a round", "median", "first round s", "peak MB", "largest difference",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, row in rows.items():
        cells = [
            name,
            f"{min(row['cpu']):.2f}",
            f"{median(row['cpu']):.2f}",
            "" if name == REFERENCE else f"{overhead(rows, name):+.2f}",
            f"{min(row['idle']):.2f}",
            f"{median(row['idle']):.2f}",
            f"{min(row['clock']):.2f}",
            f"{median(row['clock']):.2f}",
            f"{row['first_clock']:.1f}",
            f"{row['peak'] / 1e6:.0f}",
            "" if name == REFERENCE else f"{row['difference']:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(results: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    about = results["setting"]
    parts = [
        "# Simulated rounds of federated LoRA training",
        "",
        f"Made by `{about['command']}` on {about['date']}; seed {about['seed']}; one thread a "
        "process on a machine with 2 cores of an AMD EPYC and 24 GiB, which other work kept busy.",
        "",
        "All compute the same: federated averaging of LoRA factors of a causal language model, "
        f"{about['steps']} steps of plain gradient descent a client on all of its three to six "
        "short records, differences averaged by the number of records, all clients in every "
        "round. The factors were compared after the first and the last round: they are within "
        f"{TOLERANCE:.0e} of the bare loop's, or the benchmark stops (*largest difference*). The "
        "bare loop is peft and torch and nothing else. pfl and Flower train with the bare loop's "
        "own step, and measure no clients; pfi trains with its bank, writes a checkpoint every "
        "round, and sends every update as the bytes of a message. Flower's in-process row answers "
        "messages in one process, over a Grid of our own; the other is its Ray engine with one "
        "process for clients.",
        "",
        "Every simulation lives in a process of its own and they take turns, round by round; "
        "**figures are those of the round with the least processor time**, or the shortest, since "
        "other work on the machine only ever adds to it; medians stand beside them. CPU time and "
        "peak memory are those of all processes of a simulation together. *Around the steps* is a "
        "round in which clients take no local steps (the same clients, messages and averaging): "
        "what the simulation itself costs, whatever is trained.",
    ]
    for one in results["comparisons"].values():
        name = "a random llama of two blocks" if one["model"] == "tiny" else one["model"]
        title = f"{one['clients']:,} clients, {one['numbers']:,} trainable numbers"
        parts += ["", f"## {title}", "", f"Backbone: {name}.", "", *table(one["rows"])]
        if said := verdict(one["rows"]):
            parts += ["", *(f"- {text}" for text in said)]
    if fleets := results.get("fleets"):
        parts += ["", "## Memory of large fleets", "", *fleet_table(fleets)]
    parts += ["", f"Versions: {about['versions']}.", ""]
    return "\n".join(parts)


def fleet_table(fleets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Peak memory by fleet and cohort."""
    update = fleets[0]["update"] / 1e6
    lines = [
        "pfi alone: users' records (ten each) lie in a LaMP file and are read as users are asked; "
        f"two rounds each, 16 clients in a pass, an update of {update:.2f} MB, every federation in "
        "a process of its own. *Loaded* is the largest resident size before the first round. Were "
        "all updates of a round held, the cohort's size times an update would be added.",
        "",
        "| fleet | cohort | loaded MB | peak MB | grown by MB | all updates MB | s a round |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in fleets:
        lines.append(
            f"| {one['clients']:,} | {one['cohort']:,} | {one['loaded'] / 1e6:.0f} | "
            f"{one['peak'] / 1e6:.0f} | {(one['peak'] - one['loaded']) / 1e6:.0f} | "
            f"{one['cohort'] * one['update'] / 1e6:.0f} | {one['clock']:.1f} |"
        )
    return lines


def measure_fleets(folder: Path, seed: int) -> list[dict[str, Any]]:
    """The memory of federations of each size, one after the other."""
    import federate_fleet
    from federate_data import tiny_backbone

    found = []
    for clients, cohort in FLEETS:
        target = folder / str(clients)
        federate_fleet.write_users(target, clients, seed)
        tiny_backbone(target / "tiny", seed)
        path = os.pathsep.join(map(str, (ROOT / "src", Path(__file__).parent)))
        done = subprocess.run(
            [sys.executable, federate_fleet.__file__, target, str(clients), str(cohort)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **QUIET, "PYTHONPATH": path},
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{clients} clients, cohort {cohort}: {found[-1]['peak'] / 1e6:.0f} MB", flush=True)
    return found


def plot(results: Mapping[str, Any], path: Path) -> None:
    """CPU time by simulation, a panel for each comparison."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = list(results["comparisons"].values())
    if not found:
        return
    figure, panels = plt.subplots(1, len(found), figsize=(5 * len(found), 3.6), squeeze=False)
    for one, panel in zip(found, panels[0], strict=True):
        names = list(one["rows"])[::-1]
        colours = ["tab:blue" if name.startswith("pfi") else "tab:gray" for name in names]
        values = [min(one["rows"][name]["cpu"]) for name in names]
        bars = panel.barh(names, values, color=colours)
        panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        panel.axvline(min(one["rows"][REFERENCE]["cpu"]), color="black", lw=0.8, ls=":")
        panel.margins(x=0.15)
        panel.set_xlabel("CPU ms a client-round")
        panel.set_title(f"{one['clients']:,} clients, {one['numbers']:,} numbers", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def versions(pfl: str | None) -> str:
    """Of Python and the packages that are compared."""
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "transformers", "peft", "numpy", "flwr", "ray"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if pfl:
        code = "from importlib.metadata import version; print(version('pfl'))"
        done = subprocess.run([pfl, "-c", code], capture_output=True, text=True, check=True)
        found.append(f"pfl {done.stdout.strip()}")
    return ", ".join(found)


def available(pfl: str | None, wanted: Sequence[str]) -> dict[str, str]:
    """The peers that can run here, each with its Python."""
    from federate_peers import PEERS

    pythons = dict.fromkeys(PEERS, sys.executable)
    if pfl is None:
        del pythons[PFL]
    else:
        pythons[PFL] = pfl
    for name, module in (("Flower, in process", "flwr"), ("Flower, Ray", "ray")):
        if find_spec("flwr") is None or find_spec(module) is None:
            del pythons[name]
    return {name: python for name, python in pythons.items() if not wanted or name in wanted}


def comparisons(folder: Path, options: argparse.Namespace) -> dict[str, tuple[Setting, int]]:
    """Each setting with its number of timed rounds."""
    common = {"steps": options.steps, "learning_rate": 0.5, "seed": options.seed}
    return {
        "tiny": (Setting("tiny", 3, 50, folder=str(folder / "a"), **common), 2 * options.rounds),
        # A trained model: at a rate of 0.5 rounding grows beyond the tolerance.
        "large": (
            Setting(
                "embedded", 36, 50, folder=str(folder / "b"), **common | {"learning_rate": 0.02}
            ),
            options.rounds,
        ),
        "many": (Setting("tiny", 3, 1000, folder=str(folder / "c"), **common), options.rounds),
    }


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pfl", help="the Python of an environment that has pfl")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peers", nargs="+", default=[], help="only these")
    parser.add_argument("--rounds", type=int, default=6, help="timed; of 50 tiny clients twice")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "federate")
    parser.add_argument("--date", default="2026-11-22")
    options = parser.parse_args()

    file = options.out.with_suffix(".json")
    results: dict[str, Any] = {
        "setting": {
            "command": " ".join(["python", "benchmarks/federate/federate.py", *sys.argv[1:]]),
            "date": options.date,
            "seed": options.seed,
            "steps": options.steps,
            "versions": versions(options.pfl),
        },
        "comparisons": {},
    }
    if file.exists() and len(options.only) < len(PARTS):
        before = json.loads(file.read_text("utf-8"))
        results = {**before, "setting": results["setting"]}
        command = results["setting"]["command"]
        results["setting"]["command"] = f"{before['setting']['command']}`, then `{command}"
    pythons = available(options.pfl, options.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.only:
            if part == "fleets":
                results["fleets"] = measure_fleets(folder, options.seed)
            else:
                setting, rounds = comparisons(folder, options)[part]
                results["comparisons"][part] = measure(setting, pythons, rounds)
            write_json(file, results)
            write_atomic(options.out.with_suffix(".md"), page(results))
            plot(results, options.out.with_suffix(".png"))
    print(page(results))


if __name__ == "__main__":
    main()
