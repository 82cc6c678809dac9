#!/usr/bin/env python
"""Plant faults in the files that trust rests on, one at a time, and see which the tests notice.

    python scripts/mutants.py --sample 15              # 15 faults of each file; goes on if stopped
    python scripts/mutants.py --sample 15 --again      # those too that nothing noticed before
    python scripts/mutants.py --only gate,auth         # files with one of these in their path
    python scripts/mutants.py --without test_serve     # leave slow tests for --again
    python scripts/mutants.py --named --only gate      # faults of dev/mutants.named.json
    python scripts/mutants.py --show 3f2a91c07b        # a fault as a diff
    python scripts/mutants.py --report                 # write dev/mutants.md again, nothing else

Results are kept in dev/mutants.json, fault by fault, and summed up in dev/mutants.md.  A fault
that changes nothing that anybody could observe is listed with its reason in
dev/mutants.equivalent.json; faults that were once planted by hand are in dev/mutants.named.json.

Why no kept tool: mutmut 3 leaves alone what stands outside functions (here most patterns of the
redaction), and cosmic-ray starts a Python for every fault, which is ten seconds of imports here,
and deletes neither calls nor raises.  Which test runs which line is asked of coverage.

Faults are planted in a copy of the tree.  Lines that only run while a fixture is set up or a
module is imported are tried with all tests of the files that did so.
"""

from __future__ import annotations

import argparse
import difflib
import json
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutant_faults import Fault, faults, sample
from mutant_runs import ROOT, Copy, attempt, baseline, prepare

DEV = ROOT / "dev"
RESULTS, REPORT = DEV / "mutants.json", DEV / "mutants.md"
EQUIVALENT, NAMED = DEV / "mutants.equivalent.json", DEV / "mutants.named.json"
#: Files that trust rests on, and where the tests of them are.
TRUSTED: dict[str, tuple[str, ...]] = {
    "privacy/redaction/*.py": ("privacy/*.py",),
    "privacy/ledger/*.py": ("privacy/test_ledger*.py", "augment/test_teacher_client.py"),
    "privacy/crypto/*.py": ("privacy/test_sealing.py", "profile/test_keys.py"),
    "augment/client.py": ("augment/test_teacher_client.py", "augment/test_client*.py"),
    "gate/*.py": ("gate/*.py",),
    "serve/auth.py": ("serve/test_scopes.py", "serve/test_token*.py"),
    "serve/gatekeeper.py": ("serve/test_scopes.py", "serve/test_token*.py"),
    "serve/guard.py": ("serve/test_serve_guard.py", "serve/test_guard*.py", "serve/test_scopes.py"),
    "inference/generation.py": ("inference/test_generation*.py",),
    "inference/decoding.py": ("inference/test_generation*.py", "inference/test_one_decoding.py"),
    "inference/torch/sampling.py": (
        "inference/test_sampling*.py", "inference/test_generation_room.py",
    ),
    "inference/llama/sampling.py": (
        "inference/test_sampling*.py", "inference/test_generation_room.py",
    ),
    "train/optim.py": ("train/test_slot_optimizers.py",),
    "profile/learn/refresh.py": ("profile/test_refresh*.py",),
    "profile/learn/drift.py": ("profile/test_refresh*.py",),
    "profile/learn/candidates.py": ("profile/test_refresh*.py",),
    "profile/learn/gate.py": ("profile/test_device_gate.py",),
    "profile/answer/gate_file.py": ("profile/test_device_gate.py",),
    "profile/erase/*.py": ("profile/test_eras*.py", "profile/test_excluding.py"),
    "memory/store.py": ("memory/test_memory_store*.py",),
}  # fmt: skip
_HEAD = """# Planted faults

Written by `scripts/mutants.py`, which plants faults in the files that trust rests on, one at a
time, and runs the tests that reach them; its `--help` says how. Of each file a sample. Faults that
change nothing observable do not count; `mutants.equivalent.json` says why each of them does not.
A result is of the tests at the time of its run, without those that `--without` had left out: what
was missed or unreached stays so here until `--again` has tried it once more.
"""


# Results ------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def save(results: dict[str, Any]) -> None:
    """Write the results, a fault a line."""
    ordered = sorted(results.items(), key=lambda one: (one[1]["file"], one[1]["line"], one[0]))
    lines = [f"{json.dumps(key)}: {json.dumps(result)}" for key, result in ordered]
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    temporary.replace(RESULTS)


def report(results: dict[str, Any], equivalent: dict[str, str]) -> str:
    """The results as a page: a score for each file, and what nothing notices."""
    files: dict[str, list[Any]] = defaultdict(list)
    alike: dict[str, int] = defaultdict(int)
    for key, one in sorted(results.items(), key=lambda item: (item[1]["file"], item[1]["line"])):
        if "named" not in one:
            alike[one["file"]] += key in equivalent
            files[one["file"]] += [] if key in equivalent else [{**one, "key": key}]
    rows = [_row(f"`{_place(path)}`", ones, alike[path]) for path, ones in files.items()]
    everything = [one for ones in files.values() for one in ones]
    lines = [_HEAD, "| file in `src/pfi/` | faults | noticed | % | equivalent |"]
    lines += ["|---|---|---|---|---|", *rows, _row("**all**", everything, sum(alike.values()))]
    lines += ["", "## Not noticed", ""]
    lines += ['`--show KEY` prints one as a diff; "unreached": no test runs the line.', ""]
    for one in everything:
        if not _noticed(one):
            state = " (unreached)" if one["state"] == "unreached" else ""
            lines.append(f"- {one['key']} `{_place(one['file'])}:{one['line']}`{state}")
            lines.append(f"  {one['kind']}: `{_short(one['before'])}` -> `{_short(one['after'])}`")
    lines += ["", "## By name", "", "Planted by hand once; most of them nothing noticed then.", ""]
    for one in sorted(results.values(), key=lambda one: one.get("named", "")):
        if "named" in one:
            lines.append(f"- {one['named']}")
            lines.append(f"  {one['state']}: `{one.get('by', '').rpartition('::')[2]}`")
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, ones: Sequence[Any], alike: int) -> str:
    noticed = sum(map(_noticed, ones))
    share = f"{100 * noticed / len(ones):.0f}" if ones else ""
    return f"| {name} | {len(ones)} | {noticed} | {share} | {alike} |"


def _noticed(one: Any) -> bool:
    return one["state"] in ("noticed", "hangs")


def _place(path: str) -> str:
    return path.removeprefix("src/pfi/")


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("`", "'") or " "
    return line if len(line) <= 40 else f"{line[:37]}..."


# Runs -----------------------------------------------------------------------------------


def trusted(only: str = "", without: str = "") -> dict[str, tuple[str, ...]]:
    """Paths of the trusted files, with the paths of their tests that exist.

    Args:
        only: texts, parted by commas, one of which a file's path has.
        without: texts, parted by commas, none of which a test's path has; none if empty.
    """
    paths: dict[str, tuple[str, ...]] = {}
    unwanted = [text for text in without.split(",") if text]
    for pattern, tests in TRUSTED.items():
        there = [path for glob in tests for path in sorted((ROOT / "tests").glob(glob))]
        names = [str(test.relative_to(ROOT)) for test in there]
        for path in sorted((ROOT / "src" / "pfi").glob(pattern)):
            name = str(path.relative_to(ROOT))
            if path.name != "__init__.py" and any(text in name for text in only.split(",")):
                paths[name] = tuple(t for t in names if not any(text in t for text in unwanted))
    return paths


def run(arguments: argparse.Namespace) -> None:
    """Try faults that were not tried yet, or with ``--again`` those not noticed, and report."""
    results, equivalent = load(RESULTS), load(EQUIVALENT)
    paths = trusted(arguments.only, arguments.without)
    to_try = (None, "missed", "unreached") if arguments.again else (None,)
    with tempfile.TemporaryDirectory(prefix="pfi-mutants-") as folder:
        copy = Copy(Path(folder))
        planned: list[tuple[str, str, Fault, str]] = []
        turns: dict[str, int] = {}
        if arguments.named:
            planned = [one for one in named(copy) if one[0] in paths]
        for path in paths if not arguments.named else ():
            keyed = faults(path, copy.read(path))
            _forget(results, path, keyed)
            keys = sample(keyed, arguments.sample, arguments.seed)
            planned += [(path, key, keyed[key], "") for key in keys if key not in equivalent]
        wanted = [one for one in planned if results.get(one[1], {}).get("state") in to_try]
        # A fault of each file in turn: stopped at any time, it has tried as many of each.
        tried: Counter[str] = Counter()
        for one in planned:
            tried[one[0]] += 1
            turns[one[1]] = tried[one[0]]
        wanted.sort(key=lambda one: turns[one[1]])
        if wanted:
            prepare(copy.folder)
            tests = baseline(copy, {test for path, *_ in wanted for test in paths[path]})
        for number, (path, key, fault, name) in enumerate(wanted, 1):
            own = {test: known for test, known in tests.items() if test.startswith(paths[path])}
            outcome = attempt(copy, own, path, fault, arguments.budget)
            known = {"file": path, "line": fault.line, "where": fault.where, "kind": fault.kind}
            results[key] = {**known, "before": fault.before, "after": fault.after, **outcome}
            results[key] |= {"named": name} if name else {}
            what = name or f"{fault.kind}: {_short(fault.before)} -> {_short(fault.after)}"
            place = f"{number}/{len(wanted)} {key} {_place(path)}:{fault.line}"
            print(f"{place} {what}: {outcome['state']} {outcome.get('by', '')}", flush=True)
            save(results)
    REPORT.write_text(report(results, equivalent))


def named(copy: Copy) -> list[tuple[str, str, Fault, str]]:
    """The faults of ``dev/mutants.named.json``: file, key, fault, and what it is.

    Exits with a message where a file has changed so that a fault cannot be planted.
    """
    planted = []
    for entry in json.loads(NAMED.read_text()):
        path, before = entry["file"], entry["before"].encode()
        source = copy.read(path)
        if source.count(before) != 1:
            times = source.count(before)
            sys.exit(f"{NAMED.name}: {entry['before']!r} is {times} times in {path}, not once")
        start = source.index(before)
        line = source[:start].count(b"\n") + 1
        end, after = start + len(before), entry["after"]
        fault = Fault(start, end, line, "", "named", entry["before"], after)
        planted.append((path, fault.key(path), fault, entry["what"]))
    return planted


def _forget(results: dict[str, Any], path: str, keyed: dict[str, Fault]) -> None:
    """Drop results of faults that the file no longer has; correct the lines of the others."""
    for key, one in list(results.items()):
        if one["file"] == path and "named" not in one:
            if key in keyed:
                one["line"] = keyed[key].line
            else:
                del results[key]


def show(key: str) -> str:
    """A fault as a diff; exits with a message where there is none of that key."""
    one = load(RESULTS).get(key)
    if one is None:
        sys.exit(f"{RESULTS.name} has no {key}")
    source = (ROOT / one["file"]).read_bytes()
    keyed = faults(one["file"], source)
    if key not in keyed:
        sys.exit(f"{one['file']} has changed since, or the fault is one of {NAMED.name}")
    old, new = source.decode().splitlines(), keyed[key].planted(source).decode().splitlines()
    return "\n".join(difflib.unified_diff(old, new, one["file"], "with the fault", lineterm=""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sample", type=int, default=15, metavar="N", help="faults of each file (15)")
    add("--seed", type=int, default=0, help="which ones (0)")
    add("--only", default="", metavar="TEXTS", help="files with one of these in their path")
    add("--without", default="", metavar="TEXTS", help="tests with none of these in their path")
    add("--again", action="store_true", help="also those that nothing noticed before")
    add("--named", action="store_true", help="the faults of dev/mutants.named.json instead")
    add("--budget", type=float, default=30, metavar="S", help="seconds of tests for a fault (30)")
    add("--report", action="store_true", help="write dev/mutants.md and end")
    add("--show", metavar="KEY", help="print a fault as a diff and end")
    arguments = parser.parse_args()
    if arguments.show:
        print(show(arguments.show))
    elif arguments.report:
        REPORT.write_text(report(load(RESULTS), load(EQUIVALENT)))
    else:
        # As Ctrl-C does: the copy of the tree is removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        run(arguments)


if __name__ == "__main__":
    main()
