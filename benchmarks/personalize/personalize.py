#!/usr/bin/env python
"""Training and decoding many users' adapters: our engine beside `peft`, in one run.

    python benchmarks/personalize/personalize.py --to benchmarks/results/personalize

Every measurement has a process of its own.  Those of a group (one model, precision and scenario)
follow one another, and the group is repeated in alternating order, so that a machine whose speed
drifts is unfair to nobody.  Writes `<to>.json` (all raw figures, after every measurement),
`<to>.md` and `<to>.png`.  Needs an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personalize_data import HELD_BACK, SCENARIOS, SHORT, SIZES, make_data, make_model
from personalize_page import write_page

from pfi._util.files import write_json

LAMP = Path("../shared/data/lamp")


def third(blocks: int) -> int:
    return max(1, blocks // 3)


def groups(args: argparse.Namespace, models: dict[str, Any], data: dict[str, Path]) -> Any:
    """Lists of specs; those of a list are measured together."""
    for model, precision in ((m, p) for p in args.precisions for m in args.models):
        size = SIZES[model]
        base = {
            "model": model,
            "precision": precision,
            "people": args.people or size.people,
            "threads": args.threads,
            "device": args.device,
            "seed": args.seed,
            "epochs": args.epochs,
            "layers": "all",
            "limit_seconds": args.limit_seconds,
            "decode_seconds": args.decode_seconds,
        }
        upper = f"last:{args.adapt_layers or third(models[model]['blocks'])}"
        for scenario in args.scenarios:
            if precision == "bfloat16" and scenario not in args.bfloat16_scenarios:
                continue
            kind = SCENARIOS[scenario]
            sets = [k for k in args.working_sets if k <= kind.most]
            sets = sets or [min(args.working_sets)]
            wide = [k for k in sets if k >= 16] or [max(sets)]
            plan = [("trainer", 1, "all"), ("loop", 1, "all"), ("loop", 1, upper)]
            plan += [("bank", k, "all") for k in sets] + [("bank", k, upper) for k in wide]
            here = {
                **base,
                "kind": "train",
                "scenario": scenario,
                "data": str(data[scenario]),
                "model_path": models[model]["paths"][scenario],
                "batch_size": kind.batch_size,
                "max_length": kind.max_length,
                "examples": min(args.examples or kind.examples, size.examples, kind.examples),
            }
            specs = [
                {**here, "method": m, "working_set": k, "layers": layers}
                | {"jobs": max(k, base["people"])}
                for m, k, layers in plan
            ]
            points = [("all", k) for k in (1, *sets)] + [(upper, k) for k in (1, *wide)]
            limit = {"method": "limit", "working_set": 1, "points": list(dict.fromkeys(points))}
            specs.append({**here, "kind": "limit", **limit})
            yield specs
        if args.batches and "1x64" in data:
            here = {**base, "kind": "decode", "scenario": "decode", "data": str(data["1x64"])}
            here |= {"examples": size.examples, "working_set": 16}
            here["model_path"] = models[model]["paths"]["1x64"]
            yield [
                {**here, "method": method, "batch": batch}
                for batch in args.batches
                for method in ("base", "hf", "peft", "bank")
            ]


def in_process(spec: dict[str, Any]) -> dict[str, Any]:
    """A measurement in a new process; what went wrong under `error`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec["threads"])}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, __file__, "--measure", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": lines[-1], "trace": done.stderr[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])


def told(spec: dict[str, Any], found: dict[str, Any]) -> str:
    name = [spec["model"], spec["precision"], spec["scenario"], spec["method"]]
    if "batch" in spec:
        name.append(f"B={spec['batch']}")
    else:
        name += [f"K={spec['working_set']}", spec["layers"]]
    if "error" in found:
        return f"{' '.join(name)}: FAILED: {found['error']}"
    if "points" in found:
        return f"{' '.join(name[:4])}: measured"
    if "tokens_per_s" in found:
        return f"{' '.join(name)}: {found['tokens_per_s']:.0f} tokens/s"
    return f"{' '.join(name)}: {found['ms_per_user_step']:.2f} ms per user-step"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--to", type=Path, help="result files, without suffix")
    add("--data", type=Path, default=LAMP, help="LaMP-format folder; made-up people without it")
    add("--models", nargs="+", choices=SIZES)
    add("--backbone", default="smollm2-135m", help="the model called real: a name, folder or file")
    add("--scenarios", nargs="+", choices=SCENARIOS)
    add("--working-sets", nargs="+", type=int, metavar="K", help="users at once")
    add("--precisions", nargs="+", choices=["float32", "bfloat16"])
    add("--bfloat16-scenarios", nargs="*", choices=SCENARIOS, default=SHORT)
    add("--batches", nargs="*", type=int, metavar="B", help="decoding's rows; none: no decoding")
    add("--adapt-layers", type=int, metavar="N", help="default: a third of the blocks")
    add("--repeats", type=int, help="of every group, in alternating order (3)")
    add("--people", type=int, help="different users; jobs beyond them repeat them")
    add("--examples", type=int, help="a user at most")
    add("--epochs", type=float, default=3.0)
    add("--stage-steps", type=int, help="of the embedded backbone's task stage (300)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="default: as many as CPUs")
    add("--quick", action="store_true", help="a check of a minute or two: nothing to report")
    add("--gpu", action="store_true", help="larger models and working sets, on CUDA")
    add("--redraw", action="store_true", help="only write the page and plot of <to>.json anew")
    add("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.measure and not args.to:
        parser.error("--to is needed")
    defaults: dict[str, Any] = {
        "models": ["embedded", "m30", "m135"],
        "scenarios": list(SCENARIOS),
        "working_sets": [1, 4, 16, 64],
        "precisions": ["float32", "bfloat16"],
        "batches": [1, 16, 64],
        "repeats": 3,
        "stage_steps": 300,
        "threads": os.cpu_count() or 1,
    }
    if args.gpu:
        defaults |= {"models": ["m135", "q500"], "scenarios": list(SHORT)}
        defaults |= {"working_sets": [1, 16, 64, 128, 256, 512]}
    if args.quick:
        defaults |= {"models": ["embedded"], "scenarios": ["1x64"], "working_sets": [1, 4]}
        defaults |= {"precisions": ["float32"], "batches": [4], "repeats": 1, "people": 2}
        defaults |= {"examples": 4, "threads": 1, "stage_steps": 30}
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.device = "cuda" if args.gpu else "cpu"
    args.limit_seconds = 0.1 if args.quick else 1.0
    args.decode_seconds = 0.0 if args.quick else 5.0
    return args


def checked(found: dict[str, Any]) -> dict[str, Any]:
    if "error" in found:
        raise SystemExit(found["trace"])
    return found


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make models and data; says where they are and what they are of."""
    people = args.people or max(SIZES[m].people for m in args.models)
    lamp = args.data if args.data.is_dir() else None
    wanted = dict.fromkeys([*args.scenarios, *(["1x64"] if args.batches else [])])
    data = {name: make_data(name, folder, lamp, people, args.seed) for name in wanted}
    common = {"threads": args.threads, "device": args.device, "seed": args.seed}
    models = {}
    for name in args.models:
        path = args.backbone if name == "real" else make_model(name, folder, args.seed)
        paths = dict.fromkeys(wanted, path)
        if SIZES[name].staged and args.stage_steps:
            stages: dict[Any, str] = {}
            for scenario in wanted:
                kind = SCENARIOS[scenario]
                look = (kind.task, kind.max_length, kind.exact)
                if look not in stages:
                    stages[look] = str(folder / f"{name}-{scenario}")
                    spec = {**common, "kind": "stage", "model_path": path, "to": stages[look]}
                    spec |= {"data": str(data[scenario][0]), "steps": args.stage_steps}
                    checked(in_process({**spec, "max_length": kind.max_length}))
                    print(f"{name}: task stage for {scenario} done", flush=True)
                paths[scenario] = stages[look]
        about = checked(in_process({**common, "kind": "about", "model_path": path}))
        models[name] = {**about, "paths": paths}
    return {
        "models": models,
        "data": {name: path for name, (path, _) in data.items()},
        "sources": {name: source for name, (_, source) in data.items()},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make all measurements; the content of `<to>.json`."""
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="personalize-") as temporary:
        ready = prepare(args, Path(temporary))
        models = ready["models"]
        machine = next(iter(models.values()))
        page: dict[str, Any] = {
            "command": " ".join(["python", "benchmarks/personalize/personalize.py", *args.told]),
            "machine": {**machine["machine"], "cpus": machine["cpus"]},
            "versions": {key: machine[key] for key in ("transformers", "peft")},
            "seed": args.seed,
            "threads": args.threads,
            "quick": args.quick,
            "epochs": args.epochs,
            "stage_steps": args.stage_steps,
            "held_back": HELD_BACK,
            "data": ready["sources"],
            "scenarios": {name: asdict(SCENARIOS[name]) for name in args.scenarios},
            "models": {
                name: {key: found[key] for key in ("parameters", "blocks")}
                | ({"name": Path(args.backbone).name} if name == "real" else {})
                for name, found in models.items()
            },
            "results": [],
        }
        for specs in groups(args, models, ready["data"]):
            repeats = args.repeats
            if args.device == "cpu":
                repeats = min(repeats, SIZES[specs[0]["model"]].repeats)
            for repeat in range(repeats):
                for spec in specs[:: -1 if repeat % 2 else 1]:
                    found = in_process(spec)
                    print(told(spec, found), flush=True)
                    print(
                        found.pop("trace", ""), end="", file=sys.stderr
                    )  # has this machine's paths
                    hidden = ("data", "model_path", "points")
                    shown = {k: v for k, v in spec.items() if k not in hidden}
                    for point in found.get("points", [found]):
                        page["results"].append({**shown, "repeat": repeat, **point})
                    page["minutes"] = round((time.time() - started) / 60, 1)
                    write_json(args.to.with_suffix(".json"), page)
    return page


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.told = sys.argv[1:] if argv is None else argv
    if args.measure:
        from personalize_measures import measure

        print(json.dumps(measure(json.loads(args.measure))))
        return 0
    if args.redraw:
        page = json.loads(args.to.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        page = run(args)
    print(write_page(page, args.to))
    return int(any("error" in result for result in page["results"]))


if __name__ == "__main__":
    sys.exit(main())
