"""A client killed with SIGKILL again and again: nothing lost, nothing paid twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pfi.augment.cache import TeacherStore
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig
from pfi.augment.teachers.teacher import Call, Message, Reply, Unusable, Usage

KILLS = 20
CALLS = 150
BUDGET = 15 * 130 + 100  # does not reach for all of them


class SlowTeacher:
    """Takes some milliseconds, and notes the key of each call in a file when it has charged."""

    name, host, batch = "slow", None, 1

    def __init__(self, paid: Path, concurrency: int) -> None:
        self.concurrency = concurrency
        self._paid = os.open(paid, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        (call,) = calls
        number = int(call.messages[0].content.split()[1])
        time.sleep(0.002 * self.concurrency)
        os.write(self._paid, f"{call.key(self.name)}\n".encode())
        os.fsync(self._paid)
        if number % 9 == 4 and call.seed == 0:
            return [Unusable("cut off", Usage(10, 5))]
        return [Reply(f"{call.messages[0].content} {call.seed}", Usage(10, 5))]

    def price(self, usage: Usage) -> Usage:
        return replace(usage, usd=usage.tokens / 1e6)


def job(folder: Path, calls: int, concurrency: int, budget: int | None = None) -> str:
    """Ask in three portions; the replies and what was spent, as text."""
    teacher = SlowTeacher(folder / "paid", concurrency)
    asked = [Call("ada", (Message("user", f"text {i}"),), max_tokens=9) for i in range(calls)]
    with TeacherStore(folder / "teacher.db") as store:
        client = TeacherClient(teacher, AugmentConfig(budget_tokens=budget), store)
        replies = [
            reply and [reply.text, reply.usage.tokens]
            for start in range(3)
            for reply in client.ask(asked[start::3], {})
        ]
        return json.dumps([replies, store.spent().tokens])


def lives() -> None:
    """For each line (folder, calls, concurrency, budget) on stdin: fork, run the job there.

    Imports once for all lives. Prints the pid, and the exit status once it is dead.
    """
    for line in sys.stdin:
        folder, calls, concurrency, budget = json.loads(line)
        pid = os.fork()
        if pid == 0:
            result = job(Path(folder), calls, concurrency, budget)
            (Path(folder) / "result").write_text(result)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@contextmanager
def nursery() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def live(process: subprocess.Popen[str], folder: Path, concurrency: int, budget: int | None) -> int:
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([str(folder), CALLS, concurrency, budget]) + "\n")
    return int(process.stdout.readline())


def stored(folder: Path) -> set[str]:
    """The keys whose answers are in the store."""
    paid = (folder / "paid").read_text().split()
    with TeacherStore(folder / "teacher.db") as store:
        return set(store.get(paid))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("concurrency", "budget"), [(1, None), (4, None), (4, BUDGET)])
def test_killed_20_times_it_ends_as_if_never_killed(
    tmp_path: Path, concurrency: int, budget: int | None
) -> None:
    rng = random.Random(concurrency)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    file = killed / "paid"
    file.touch()
    lost: list[int] = []
    safe: set[str] = set()
    with nursery() as process:
        assert process.stdout is not None
        for _ in range(KILLS):
            before = file.stat().st_size
            pid = live(process, killed, concurrency, budget)
            wanted = before + 65 * rng.randint(0, 3)
            deadline = time.monotonic() + 20
            while file.stat().st_size < wanted:
                assert time.monotonic() < deadline, "the job stands still"
            time.sleep(rng.choice([0, 0, 0.001, 0.003, 0.006]))
            os.kill(pid, signal.SIGKILL)
            assert int(process.stdout.readline()) == -signal.SIGKILL, "it was not in its middle"
            paid = file.read_text()[before:].split()
            assert safe.isdisjoint(paid), "paid again although its answer was stored"
            safe = stored(killed)
            lost.append(len(set(paid) - safe))
        for folder in (killed, whole):
            live(process, folder, concurrency, budget)
            assert int(process.stdout.readline()) == 0
    assert (killed / "result").read_text() == (whole / "result").read_text()
    paid_killed = Counter(file.read_text().split())
    paid_whole = Counter((whole / "paid").read_text().split())
    assert set(paid_killed) == set(paid_whole)
    assert max(paid_whole.values()) == 1
    # Only what was in flight at a kill, charged and not yet stored, is paid again.
    assert sum(paid_killed.values()) - len(paid_killed) == sum(lost)
    assert max(lost) <= concurrency
    assert sum(lost) > 0, "no kill came between charge and storing: the test has lost its teeth"


def test_the_client_is_light() -> None:
    script = "import sys, pfi.augment.client; print({*sys.modules} & {'torch', 'transformers'})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "set()\n", "every worker and each life above would load it"


if __name__ == "__main__":
    lives()
