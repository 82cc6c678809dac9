"""A pool of processes: order, errors, killed workers, and the end of the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfi._util.workers import WorkerPool
from pfi.errors import DataError, PfiError


class Unportable(Exception):
    """An error that cannot be pickled and read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def make() -> Callable[[float], tuple[float, int]]:
    """Work that sleeps, or has an accident, and says how many items its process has done."""
    count = 0

    def work(item: float) -> tuple[float, int]:
        nonlocal count
        count += 1
        if item == -1:
            raise DataError("an accident", record="r")
        if item == -2:
            raise Unportable("an accident", "of a bad kind")
        if item == -3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(item)
        return item, count

    return work


def test_results_come_in_order_from_processes_that_stay() -> None:
    drawn: list[float] = []

    def items() -> Iterator[float]:
        for i in range(20):
            drawn.append(0.3 if i == 0 else 0.001 * i)
            yield drawn[-1]

    with WorkerPool(make, 2) as pool:
        results = pool.map(items())
        first = next(results)
        assert len(drawn) <= 8 + 1, "only so many are begun ahead of the first"
        rest = list(results)
        again = list(pool.map([0.0, 0.0]))
    assert [item for item, _ in [first, *rest]] == drawn
    assert sum(count > 1 for _, count in [first, *rest]) >= 18
    assert all(count > 1 for _, count in again)
    assert not multiprocessing.active_children()


def test_no_more_results_are_held_than_there_are_other_processes() -> None:
    drawn: list[float] = []

    def items() -> Iterator[float]:
        for i in range(6):
            drawn.append(0.5 if i == 0 else 0.0)
            yield drawn[-1]

    with WorkerPool(make, 2, ahead=1) as pool:
        results = pool.map(items())
        next(results)
        assert len(drawn) == 2, "the second process waits for the first one's result"
        assert len(list(results)) == 5


def test_a_pool_that_nobody_closes_ends_with_its_process(tmp_path: Path) -> None:
    script = """
        import sys
        sys.path.insert(0, {tests!r})
        from test_workers import WorkerPool, make
        if __name__ == "__main__":
            pool = WorkerPool(make, 2, where="here")
            list(pool.map([0.0, 0.0]))
    """
    path = tmp_path / "run.py"
    path.write_text(textwrap.dedent(script).format(tests=str(Path(__file__).parent)))
    assert subprocess.run([sys.executable, path], check=False, timeout=60).returncode == 0


def test_asking_for_cores_loads_no_torch() -> None:
    code = "import sys; from pfi._util import workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("accident", "error", "message"),
    [
        (-1, DataError, "an accident"),
        (-2, RuntimeError, "Unportable: an accident"),
        (-3, PfiError, r"worker \d was killed by signal 9 \(SIGKILL\).*--resume"),
    ],
)
def test_after_an_error_what_had_ended_is_yielded(
    accident: float, error: type[Exception], message: str
) -> None:
    ended = []
    with WorkerPool(make, 2) as pool, pytest.raises(error, match=message):
        for result, _ in pool.map([0.0, 0.0, accident, 0.01, 0.0, 5.0]):
            ended.append(result)
    # One of the first two had ended before a worker could take the third.
    assert ended and set(ended) <= {0.0, 0.01}
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        sys.path.insert(0, {tests!r})
        from test_workers import WorkerPool, make
        if __name__ == "__main__":
            pool = WorkerPool(make, 2)
            list(pool.map([0.0, 0.0]))
            print(*[process.pid for process in pool._processes.values()], flush=True)
            for connection in list(pool._idle):
                pool._send(0, 60.0)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "run.py"
    path.write_text(textwrap.dedent(script).format(tests=str(Path(__file__).parent)))
    run = subprocess.run([sys.executable, path], stdout=subprocess.PIPE, text=True, check=False)
    workers = run.stdout.split()
    assert run.returncode == -signal.SIGKILL and len(workers) == 2
    end = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "a worker goes on without its parent"
        time.sleep(0.05)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
