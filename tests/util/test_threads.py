"""Threads: settings and their order, limits of the machine, load, and trials on a fake clock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pfi._util import threads
from pfi._util.threads import AGAIN, LoadMeter, ThreadChooser, cgroup_cpus, choose, prefer
from pfi._util.workers import WorkerPool
from pfi.errors import ConfigError


@pytest.fixture(autouse=True)
def unchosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of whoever runs the tests, and four idle cores without limits."""
    for name in (threads.VARIABLE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_choice", threads._Choice())
    monkeypatch.setattr(threads, "physical_cores", lambda: 4)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Settings ----------------------------------------------------------------------------


def test_a_flag_goes_before_the_environment_and_that_before_the_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert threads.asked() is None
    prefer(3)
    prefer(None)
    assert threads.asked() == threads.threads() == 3
    monkeypatch.setenv(threads.VARIABLE, "2")
    assert threads.asked() == 2
    restore = choose(1)
    assert threads.asked() == 1
    restore()
    assert threads.asked() == 2
    for wrong in ("0", "-1", "many", "1.5", "²"):
        monkeypatch.setenv(threads.VARIABLE, wrong)
        with pytest.raises(ConfigError, match=r"no number of threads.*PFI_THREADS|PFI_THREADS.*no"):
            threads.asked()


def test_pytorch_gets_what_is_asked_for_and_gets_back_what_it_had() -> None:
    torch.set_num_threads(1)
    threads.apply_threads()
    assert torch.get_num_threads() == 1, "a program that imports us keeps its own number"
    restore = choose(2)
    assert torch.get_num_threads() == 2
    restore()
    assert torch.get_num_threads() == 1


def test_pfi_itself_takes_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(LoadMeter, "busy", lambda _: 1.2)
    threads.manage()
    threads.apply_threads()
    assert torch.get_num_threads() == 3
    threads.renew(2)
    assert torch.get_num_threads() == threads.threads() == 2
    choose(1)
    threads.renew(4)
    assert torch.get_num_threads() == 1, "who asked for a number keeps it"


def test_what_the_user_says_of_waiting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    threads.wait_passively()
    assert [os.environ.get(name) for name in names] == ["PASSIVE", "0", "0"]
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_passively()
    assert [os.environ.get(name) for name in names] == ["ACTIVE", None, None]


def test_the_command_sets_it_before_any_library_with_openmp_is_loaded() -> None:
    code = """
        import os, sys
        from pfi._util import threads
        def manage():
            assert "torch" not in sys.modules and "xllamacpp" not in sys.modules
            real()
            raise SystemExit(os.environ["OMP_WAIT_POLICY"] != "PASSIVE")
        real, threads.manage = threads.manage, manage
        from pfi.cli import main
        main()
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP", "KMP"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, env=environment, check=False).returncode == 0


# Worker processes --------------------------------------------------------------------


def _look() -> Callable[[int], tuple[int, str | None]]:
    return lambda _: (torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"))


def test_processes_side_by_side_share_the_threads_and_sleep_while_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert [threads.share(n) for n in (1, 2, 9)] == [min(threads.cores(), 4), 1, 1] or (
        threads.cores() > 2
    )
    choose(4)
    assert [threads.share(n) for n in (1, 2, 3, 9)] == [4, 2, 1, 1]
    with WorkerPool(_look, 2) as pool:
        assert list(pool.map([0])) == [(2, "PASSIVE")]


# The machine -------------------------------------------------------------------------


def test_containers_limits_count(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    assert cgroup_cpus(tmp_path, own) is None
    (tmp_path / "outer" / "inner" / "cpu.max").write_text("max 100000\n")
    assert cgroup_cpus(tmp_path, own) is None
    (tmp_path / "outer" / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cpus(tmp_path, own) == 1.5
    own.write_text("3:cpu,cpuacct:/job\n2:memory:/\n")
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    for name, value in (("quota", -1), ("period", 100_000)):
        (tmp_path / "cpu" / "job" / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    assert cgroup_cpus(tmp_path, own) is None
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("50000\n")
    assert cgroup_cpus(tmp_path, own) == 0.5
    assert cgroup_cpus(tmp_path, tmp_path / "missing") is None


def test_no_more_threads_than_the_limits_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.most_threads() == 4
    for text, most in (("2", 2), ("3,1", 3), ("64", 4), ("0", 4), ("x", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads.most_threads() == most
    monkeypatch.delenv("OMP_NUM_THREADS")
    for quota, most in ((0.5, 1), (1.9, 1), (3.0, 3), (16.0, 4)):
        monkeypatch.setattr(threads, "cgroup_cpus", lambda quota=quota: quota)
        assert threads.most_threads() == most


class Machine:
    """A clock and counters of processor time."""

    def __init__(self) -> None:
        self.time = self.total = self.own = 0.0
        self.counts = True

    def clock(self) -> float:
        return self.time

    def used(self) -> tuple[float, float, float] | None:
        return (self.total, self.own, 4 * self.time) if self.counts else None

    def run(self, seconds: float, others: float = 0.0, own: float = 0.0) -> None:
        self.time += seconds
        self.total += (others + own) * seconds
        self.own += own * seconds


def test_the_cores_that_others_use_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    meter = LoadMeter(machine.clock, machine.used, lambda seconds: machine.run(seconds, 2.0))
    assert meter.busy() == pytest.approx(2.0) and machine.time == pytest.approx(0.1)
    assert meter.free() == 2
    for others, own, free in ((0.3, 3.0, 4), (0.6, 0.0, 3), (4.0, 0.0, 1), (30.0, 1.0, 1)):
        machine.run(10.0, others, own)
        assert meter.free() == free, (others, own)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine.run(10.0)
    assert meter.free() == 2
    machine.counts = False
    machine.run(10.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.2, 0.0, 0.0))
    assert meter.free() == 1, "counters that stand still: by the load average"


def test_the_real_counters_see_a_busy_process() -> None:
    meter = LoadMeter()
    assert 0 <= meter.busy() <= threads.cores() + 0.5 or threads._used() is None


# Trials ------------------------------------------------------------------------------


class Engine:
    """Steps whose time depends on the threads."""

    def __init__(self, seconds: dict[int, float], free: int = 4) -> None:
        self.seconds, self.free, self.time, self.steps = seconds, free, 0.0, 0
        self.used: list[int] = []
        self.chooser = ThreadChooser(lambda: self.free, lambda: self.time)

    def step(self, count: int = 1, tokens: int = 1) -> None:
        for _ in range(count):
            many = self.chooser.next()
            self.used.append(many)
            took = self.seconds[many] * tokens
            self.time += took
            self.chooser.note(many, tokens, took)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.1, 2: 0.05, 4: 0.03}, 4),
        ({1: 0.1, 2: 0.06, 4: 0.06}, 2),
        ({1: 0.1, 2: 0.095, 4: 0.09}, 1),  # hardly faster: the cores are for others
        ({1: 0.1, 2: 1.5, 4: 20.0}, 1),  # they wait for one that does not run
    ],
)
def test_the_fewest_threads_that_are_nearly_as_fast_as_the_fastest(
    seconds: dict[int, float], best: int
) -> None:
    engine = Engine(seconds)
    engine.step(30)
    assert engine.used[-10:] == [best] * 10 and not engine.chooser.trying
    assert engine.used.count(1) <= 6 + 30 * (best == 1) and set(engine.used) <= {1, 2, 4}
    if seconds[4] > 1:
        assert engine.used.count(4) <= 3, "what is far too slow is not tried on"


def test_where_one_core_is_free_nothing_is_tried() -> None:
    engine = Engine({1: 0.1}, free=1)
    engine.step(30)
    assert set(engine.used) == {1}


def test_it_looks_again_after_a_while_and_when_it_becomes_slow() -> None:
    engine = Engine({1: 0.1, 2: 0.05}, free=2)
    engine.step(60)
    assert engine.used[-1] == 2
    engine.seconds = {1: 0.1, 2: 2.0}  # other work takes a core
    engine.step(20)
    assert engine.used[-1] == 1
    engine.seconds, begin = {1: 0.1, 2: 0.05}, engine.time
    while engine.used[-1] == 1 and engine.time < begin + 2 * AGAIN:
        engine.step()
    engine.step(20)
    assert engine.used[-1] == 2 and engine.time < begin + 1.5 * AGAIN


def test_a_machine_that_becomes_free_is_used() -> None:
    engine = Engine({1: 0.1, 2: 0.05}, free=1)
    engine.step(20)
    engine.free = 2
    engine.time += AGAIN
    engine.step(30)
    assert engine.used[-1] == 2


def test_batches_of_different_size_are_compared_by_the_token() -> None:
    engine = Engine({1: 0.1, 2: 0.05, 4: 0.04})
    for at in range(40):
        engine.step(tokens=1 + 3 * (at % 3))
    assert engine.used[-1] == 4
    assert not engine.chooser.trying
