"""How many threads compute, how they wait, and what leaves room for other work on the machine.

OpenMP's threads (PyTorch's and llama.cpp's) spin while they wait for each other unless told
otherwise.  Where other work has a core, the one that was put aside holds up all that spin: an
answer then takes many times its time and all cores.  So threads sleep while they wait, and there
are no more of them than cores that are free.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pfi._util import cgroups
from pfi.errors import ConfigError

#: The environment's setting; `--threads` goes before it, a profile's `threads` comes after.
VARIABLE = "PFI_THREADS"
#: Seconds over which the load is measured, at the least; the kernel counts hundredths.
SAMPLE = 0.1
#: Seconds after which a long-lived engine looks again.
AGAIN = 30.0


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait; for libraries that are loaded from now on.

    What the user has set stays.  Processes that are started from now on inherit it.
    """
    environment = os.environ
    if environment.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        environment.setdefault("GOMP_SPINCOUNT", "0")
        environment.setdefault("KMP_BLOCKTIME", "0")


# What there is -----------------------------------------------------------------------


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    allowed, cores = os.sched_getaffinity(0), set()
    for cpu in allowed:
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(file.read_text(encoding="ascii").strip())
        except OSError:
            return len(allowed)
    return len(cores)


def cgroup_cpus(root: Path = cgroups.ROOT, own: Path = cgroups.OWN) -> float | None:
    """Processors' worth of time that this process's control groups allow; None: no limit."""
    groups = cgroups.control_groups("cpu", root, own)
    limits = [limit for place, version in groups for limit in _quota(place, version)]
    return min(limits, default=None)


def _quota(folder: Path, version: int) -> list[float]:
    """A control group's own limit, if it has one."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
            period = (folder / "cpu.cfs_period_us").read_text("utf-8")
        share = int(quota) / int(period)  # "max" is no number, and version 1 writes -1
    except (OSError, ValueError, ZeroDivisionError):
        return []
    return [share] if share > 0 else []


def most_threads() -> int:
    """Threads for an idle machine: physical cores, within the limits that are set.

    Those are the affinity, control groups (containers) and ``OMP_NUM_THREADS``.
    """
    most = float(physical_cores())
    quota = cgroup_cpus()
    if quota is not None:
        most = min(most, quota)
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdigit() and int(first):
        most = min(most, int(first))
    return max(1, int(most))


class LoadMeter:
    """How many cores are free, by the time that others used them since it was asked before.

    Args:
        clock: seconds.
        used: seconds of processor time so far on the processors that this process may use: of
            all processes, of this one, and with idle time; None where the system does not tell.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], tuple[float, float, float] | None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._used, self._sleep = clock, used or _used, sleep
        self._busy: float | None = None
        self._then, self._before = clock(), self._used()

    def busy(self) -> float:
        """Cores that other processes use, on average since the last call.

        The first call waits until a tenth of a second has gone by since the meter was made.
        """
        seconds = self._clock() - self._then
        if seconds < SAMPLE:
            if self._busy is not None:
                return self._busy
            self._sleep(SAMPLE - seconds)
        now, used = self._clock(), self._used()
        if used is None or self._before is None or used[2] <= self._before[2]:
            # The counters stand still in some sandboxes; the load average is slow, but there.
            self._busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        else:
            total, own = used[0] - self._before[0], used[1] - self._before[1]
            self._busy = max(0.0, total - own) / max(now - self._then, 1e-3)
        self._then, self._before = now, used
        return self._busy

    def free(self) -> int:
        """Threads that other work leaves room for, at least 1."""
        left = physical_cores() - int(self.busy() + 0.5)
        return max(1, min(most_threads(), left))


def _used() -> tuple[float, float, float] | None:
    """Processor seconds on the processors that we may use: everybody's, our own, with idle ones."""
    import psutil  # type: ignore[import-untyped]

    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError):
        return None
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    ours = [times[cpu] for cpu in allowed if cpu < len(times)]
    guests = {"guest", "guest_nice"}  # within user's
    spent = [(kind, getattr(one, kind)) for one in ours for kind in one._fields]
    counted = sum(value for kind, value in spent if kind not in guests)
    idle = sum(value for kind, value in spent if kind in ("idle", "iowait"))
    return counted - idle, time.process_time(), counted


# What is used ------------------------------------------------------------------------


@dataclass
class _Choice:
    """Of this process: what was asked for, and what was measured."""

    managed: bool = False
    flag: int | None = None
    profile: int | None = None
    measured: int | None = None


_choice = _Choice()


def manage() -> None:
    """Choose for this process, as ``pfi`` does; in a program that imports us it is the program's
    own matter unless a setting says how many.
    """
    _choice.managed = True
    wait_passively()


def choose(count: int | None) -> Callable[[], None]:
    """Compute with so many threads, before all other settings; None: as those say.

    Returns:
        what takes it back.
    """
    before, _choice.flag = _choice.flag, count
    applied = _torch_threads()
    apply_threads()

    def restore() -> None:
        _choice.flag = before
        if applied is not None:
            _set_torch(applied)

    return restore


def prefer(count: int | None) -> None:
    """What the profile that was opened says; None changes nothing."""
    if count is not None:
        _choice.profile = count


def asked() -> int | None:
    """Threads that somebody asked for: by `--threads`, ``PFI_THREADS`` or the profile.

    Raises:
        ConfigError: the environment's setting is no number.
    """
    if _choice.flag is not None:
        return _choice.flag
    if text := os.environ.get(VARIABLE, "").strip():
        if not (text.isascii() and text.isdigit() and int(text)):
            raise ConfigError(f"{text!r} is no number of threads", where=VARIABLE, fix="give 1")
        return int(text)
    return _choice.profile


def threads() -> int:
    """Threads to compute with: those asked for, else as many as cores are free now."""
    if (count := asked()) is not None:
        return count
    if _choice.measured is None:
        _choice.measured = LoadMeter().free()
    return _choice.measured


def share(processes: int) -> int:
    """Threads of each of so many processes that compute side by side."""
    count = asked() or (threads() if _choice.managed else min(cores(), most_threads()))
    return max(1, count // processes)


def apply_threads() -> None:
    """Let PyTorch, where it is loaded, compute with ``threads()``; see ``manage``."""
    if _torch_threads() is not None and (_choice.managed or asked() is not None):
        _set_torch(threads())


def renew(free: int) -> None:
    """So many cores are free now: use them from now on, unless somebody asked for a number."""
    if _choice.managed and asked() is None:
        _choice.measured = free
        apply_threads()


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _set_torch(count: int) -> None:
    if _torch_threads() != count:
        sys.modules["torch"].set_num_threads(count)


# By trial ----------------------------------------------------------------------------

_TRIES = 4  # steps of each number of threads in a trial
_FAR = 3.0  # times as slow as the fastest: not tried further
_ENOUGH = 1.15  # more threads must be so many times as fast as fewer ones
_LATE, _RECENT = 1.5, 8  # a trial is due when so many steps took so many times as long
_SOONEST = 3.0  # seconds between two trials


class ThreadChooser:
    """How many threads each step of a long-lived engine has, by trial.

    A trial takes turns through 1, 2, 4 ... threads for some steps, and settles on the fewest that
    are nearly as fast as the fastest.  It is repeated every ``AGAIN`` seconds of work, and when
    steps become slow.

    Args:
        free: threads that other work leaves room for; asked before each trial.
        clock: seconds.
    """

    def __init__(
        self, free: Callable[[], int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._free, self._clock = free, clock
        self._trial: dict[int, list[float]] = {}  # seconds a token, of those still considered
        self._warm = False
        self._usual: float | None = None  # seconds a token, when the trial ended
        self._last: list[float] = []
        self._begin()

    @property
    def trying(self) -> bool:
        """Whether a trial is under way."""
        return bool(self._trial)

    def next(self) -> int:
        """Threads of the next step."""
        if not self._trial and self._due():
            self._begin()
        if self._trial:  # the one that was tried least; of those the largest
            return min(self._trial, key=lambda count: (len(self._trial[count]), -count))
        return self.count

    def note(self, threads: int, tokens: int, seconds: float) -> None:
        """A step of so many tokens with so many threads took so long."""
        each = seconds / tokens
        if self._trial:
            if not self._warm:  # the first step reads weights from the disk, starts threads
                self._warm = True
            elif threads in self._trial:
                self._trial[threads].append(each)
                self._judge()
        else:
            self._last = [*self._last[1 - _RECENT :], each]
            if self._usual is None and len(self._last) == _RECENT:
                self._usual = median(self._last)

    def _due(self) -> bool:
        since = self._clock() - self._since
        slow = (
            self._usual is not None
            and len(self._last) == _RECENT
            and median(self._last) > _LATE * self._usual
        )
        return since >= AGAIN or (slow and since >= _SOONEST)

    def _begin(self) -> None:
        most = max(1, self._free())
        self._since, self._last, self._usual, self._warm = self._clock(), [], None, False
        counts = {most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)}
        self._trial = {count: [] for count in counts} if most > 1 else {}
        self.count = most

    def _judge(self) -> None:
        """Leave out what is far too slow, and end the trial when all were tried."""
        fastest = {count: min(tried) for count, tried in self._trial.items() if tried}
        best = min(fastest.values())
        for count, each in fastest.items():
            if each > _FAR * best and len(self._trial[count]) > 1:
                del self._trial[count]
        if all(len(tried) >= _TRIES for tried in self._trial.values()):
            times = {count: median(tried) for count, tried in self._trial.items()}
            best = min(times.values())
            self.count = min(c for c, each in times.items() if each <= _ENOUGH * best)
            self._usual, self._trial = times[self.count], {}
            self._since = self._clock()
