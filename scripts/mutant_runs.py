"""A copy of the tree with a fault in it, and the tests that may notice: what ``mutants.py`` runs.

One process imports the libraries and forks for each fault; the child imports pfi from the copy and
runs the tests that run the faulty line, the likeliest first, until one fails.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mutant_faults import Fault

ROOT = Path(__file__).resolve().parents[1]
#: Imported once, before any fork; nothing of pfi, which the faults are in.
_LIBRARIES = (
    *("numpy", "torch", "transformers", "peft", "scipy.stats", "sklearn.metrics", "pydantic"),
    *("openai", "fastapi.testclient", "hypothesis", "cryptography.fernet", "sqlcipher3", "typer"),
    *("phonenumbers", "stdnum", "gguf", "safetensors.torch", "rapidfuzz", "llguidance", "jinja2"),
    *("coverage", "pytest_timeout", "prometheus_client", "uvicorn"),
)
#: Times the tests' own time on a machine with nothing else to do: what takes longer hangs.
_PATIENCE, _LEAST_SECONDS = 10, 40


@dataclass
class Test:
    """What is known of a test from a run without faults.

    Attributes:
        seconds: of the processor that it takes, fixtures included.
        lines, fixture_lines: of each file, what it runs itself, and what its fixtures do.
    """

    seconds: float = 0.0
    lines: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    fixture_lines: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    @property
    def line_count(self) -> int:
        return sum(map(len, self.lines.values()))


class Copy:
    """A copy of what git knows or does not ignore; faults are planted in it and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = ["git", "ls-files", "-coz", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self._stamp = time.time()

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def write(self, path: str, text: bytes) -> None:
        """Write a file with a time of its own, or Python would take what it compiled before."""
        self._stamp += 10
        (self.folder / path).write_bytes(text)
        os.utime(self.folder / path, (self._stamp, self._stamp))

    def run(self, work: Callable[[int], None], seconds: float) -> bytes | None:
        """Run something in a child of this process, in the copy.

        Returns:
            What it wrote to the descriptor that it was given; None if it took too long.
        """
        with tempfile.TemporaryFile() as result:
            child = os.fork()
            if child == 0:
                os.setsid()
                os.chdir(self.folder)
                quiet = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(quiet, stream)
                try:
                    work(result.fileno())
                finally:
                    os._exit(0)
            if not _ended(child, seconds):
                return None
            result.seek(0)
            return result.read()


def _ended(child: int, seconds: float) -> bool:
    """Wait for a child; at the end of its time, or of ours, it is stopped with all it started."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                child = 0
                return True
            time.sleep(0.02)
        return False
    finally:
        if child:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def prepare(folder: Path) -> None:
    """Import what every test needs, and let pfi be imported from the copy."""
    os.environ.update(
        OMP_NUM_THREADS="1", PYTHONPATH=str(folder / "src"), TOKENIZERS_PARALLELISM="false"
    )
    sys.path[:0] = [str(folder / "src")]
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:  # an optional one; its tests are skipped then
            print(f"without {name}: {error}", file=sys.stderr)
    if loaded := [name for name in sys.modules if name.split(".")[0] == "pfi"]:
        sys.exit(f"{loaded[0]} was loaded before any fault was planted")


def _pytest(arguments: Sequence[str], plugin: Any) -> None:
    pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", "-q", *arguments], plugins=[plugin])


# Without faults -------------------------------------------------------------------------


class _Recorder:
    """A pytest plugin: which test runs which lines, how long it takes, whether it passes."""

    def __init__(self, folder: Path) -> None:
        import coverage  # in the child alone, which traces

        self.folder, self.seconds = folder, defaultdict[str, float](float)
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(data_file=None, source=[str(folder / "src" / "pfi")])
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        begun = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - begun
        return result

    def pytest_runtest_setup(self, item: Any) -> None:
        self.coverage.switch_context(f"{item.nodeid}|fixture")

    def pytest_runtest_call(self, item: Any) -> None:
        self.coverage.switch_context(f"{item.nodeid}|test")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def recorded(self) -> dict[str, Any]:
        """What was recorded, as plain values; times of tests that pass only."""
        self.coverage.stop()
        data, lines = self.coverage.get_data(), []
        for path in data.measured_files():
            name = str(Path(path).relative_to(self.folder))
            for line, contexts in data.contexts_by_lineno(path).items():
                lines += [(name, line, context) for context in contexts]
        kept = {name: s for name, s in self.seconds.items() if name not in self.failed}
        # Of the copy nothing may be imported beforehand: the faults are in it.
        outside = [
            name
            for name, module in sys.modules.items()
            if (file := getattr(module, "__file__", None)) and str(self.folder) not in file
        ]
        failed = sorted(self.failed)
        return {"seconds": kept, "lines": lines, "failed": failed, "modules": outside}


def baseline(copy: Copy, paths: Iterable[str]) -> dict[str, Test]:
    """What each test of some files and folders does in a copy without faults, by its id.

    Libraries that the tests loaded are imported here, so that no child has to.
    """

    def work(descriptor: int) -> None:
        recorder = _Recorder(copy.folder)
        _pytest(sorted(paths), recorder)
        with os.fdopen(os.dup(descriptor), "w") as file:
            json.dump(recorder.recorded(), file)

    raw = json.loads(copy.run(work, 3600) or b"null")
    if raw is None:
        sys.exit("the tests took more than an hour without any fault")
    for name in raw["failed"]:
        print(f"not used, as it does not pass or is skipped: {name}", file=sys.stderr)
    for name in raw["modules"]:
        with suppress(Exception):  # a module that minds is imported by those who need it
            importlib.import_module(name)
    tests = {name: Test(seconds) for name, seconds in raw["seconds"].items()}
    for path, line, context in raw["lines"]:
        name, _, phase = context.rpartition("|")
        if name in tests:
            own = tests[name].lines if phase == "test" else tests[name].fixture_lines
            own[path].add(line)
    return tests


# With a fault ---------------------------------------------------------------------------


class _FirstFailure:
    """A pytest plugin that writes which test failed first."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.first = descriptor, ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        # A file that cannot be collected with the fault in it is a fault noticed.
        self.first = self.first or ("" if int(exitstatus) == 0 else "collection")
        os.write(self.descriptor, f"{self.first}\n".encode())


def attempt(
    copy: Copy, tests: dict[str, Test], path: str, fault: Fault, budget: float
) -> dict[str, str]:
    """Plant one fault and run the tests.

    Args:
        copy: where.
        tests: those that may be run.
        path: of the file.
        fault: in it.
        budget: seconds of tests; the likeliest that fit are run, one at least.

    Returns:
        ``state`` (noticed, missed, hangs, unreached) and ``by``, the test that failed.
    """
    names = _within(_likeliest(tests, path, fault), tests, budget)
    if not names:
        return {"state": "unreached"}

    def work(descriptor: int) -> None:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for batch in filter(None, (names[:4], names[4:])):  # pytest would run them file by file
            plugin = _FirstFailure(descriptor)
            _pytest(["-x", *batch], plugin)
            if plugin.first:
                return

    whole = copy.read(path)
    copy.write(path, fault.planted(whole))
    try:
        seconds = _LEAST_SECONDS + _PATIENCE * sum(tests[name].seconds for name in names)
        written = copy.run(work, seconds)
    finally:
        copy.write(path, whole)
    if written is None:
        return {"state": "hangs"}
    if not written:
        return {"state": "noticed", "by": "crash"}
    by = next(filter(None, written.decode().splitlines()), "")
    return {"state": "noticed", "by": by} if by else {"state": "missed"}


def _likeliest(tests: dict[str, Test], path: str, fault: Fault) -> list[str]:
    """The tests that can notice a fault, the likeliest first: quick ones that run little else."""
    span = set(range(fault.line, fault.line + fault.before.count("\n") + 1))
    direct = {name for name, test in tests.items() if span & test.lines[path]}
    files = {_file(name) for name, test in tests.items() if span & test.fixture_lines[path]}
    if not direct and not files and fault.once:
        # It runs as the module is imported: any test that runs other lines may show it.
        files = {_file(name) for name, test in tests.items() if test.lines[path]}
    others = {name for name in tests if _file(name) in files} - direct
    return [
        *sorted(direct, key=lambda name: (tests[name].seconds > 0.5, tests[name].line_count)),
        *sorted(others, key=lambda name: tests[name].seconds),
    ]


def _within(names: Sequence[str], tests: dict[str, Test], budget: float) -> list[str]:
    kept: list[str] = []
    for name in names:
        if not kept or tests[name].seconds <= budget:
            kept.append(name)
            budget -= tests[name].seconds
    return kept


def _file(test: str) -> str:
    return test.partition("::")[0]
