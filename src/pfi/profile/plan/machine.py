"""What this machine has and how fast it is, measured in about two seconds.

Decoding reads all weights once a token, so memory bandwidth is its limit; training multiplies
matrices.  Limits of control groups (containers) count as the machine's own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pfi._util.memory import file_number, free_memory

#: Bytes of an array that fits most last caches, and of one that is far larger than any.
CACHED, LARGE = 1 << 24, 1 << 28
_SECONDS = 0.12  # of one measurement, at least three passes each
_POWER = Path("/sys/class")


@dataclass(frozen=True)
class Processor:
    """How fast a processor is, with all threads that PyTorch uses; bytes and FLOP a second.

    Attributes:
        read: summing an array far larger than the caches: the memory's bandwidth.
        cached: the same for an array of ``CACHED`` bytes.
        matvec: weights a float32 matrix-vector product reads from far more than the caches.
        matvec_half: the same in bfloat16.
        flops: a float32 matrix product.
        flops_half: the same in bfloat16.
    """

    read: float
    cached: float
    matvec: float
    matvec_half: float
    flops: float
    flops_half: float

    def rate(self, size: int) -> float:
        """Bytes a second when ``size`` bytes are read again and again."""
        if size <= CACHED:
            return max(self.cached, self.read)
        share = min(1.0, (size - CACHED) / (LARGE - CACHED))
        slow, fast = 1 / self.read, 1 / max(self.cached, self.read)
        return 1 / (fast + share * (slow - fast))


@dataclass(frozen=True)
class Gpu:
    """A graphics processor that PyTorch can use.

    Attributes:
        name: its maker's.
        memory_free: bytes.
        speed: measured on it.
    """

    name: str
    memory_free: int
    speed: Processor


@dataclass(frozen=True)
class Machine:
    """This machine as the planner sees it; sizes in bytes.

    Attributes:
        memory_total, memory_free: what this process may use; a container's limit counts.
        disk_free: where the profile is.
        cores: physical ones.
        threads: what PyTorch uses, at most the processor time that a container may have.
        speed: of the processor.
        base: memory of a process that has loaded the libraries and no model.
        gpu: see ``Gpu``.
        llama_cpp: whether the llama.cpp engine is installed.
        battery: whether it runs on its battery; None where there is none.
        battery_wh: what the battery still holds, watt-hours, where the system tells.
        watts: drawn while it computes on all threads, where the system tells.
    """

    memory_total: int
    memory_free: int
    disk_free: int
    cores: int
    threads: int
    speed: Processor
    base: int
    gpu: Gpu | None = None
    llama_cpp: bool = False
    battery: bool | None = None
    battery_wh: float | None = None
    watts: float | None = None


def measure_machine(folder: Path) -> Machine:
    """Measure this machine; takes about two seconds after the libraries are loaded.

    Args:
        folder: on the disk that counts.
    """
    import psutil  # type: ignore[import-untyped]
    import torch

    base = base_memory()
    free, total = free_memory()
    meter = PowerMeter()
    speed = measure_processor("cpu", min(LARGE, max(CACHED, free // 8)))
    watts = meter.watts()
    gpu = None
    if torch.cuda.is_available():
        room, _ = torch.cuda.mem_get_info()
        gpu = Gpu(torch.cuda.get_device_name(), int(room), measure_processor("cuda", 4 * LARGE))
    battery, charge = _battery()
    return Machine(
        memory_total=total,
        memory_free=free,
        disk_free=shutil.disk_usage(folder).free,
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        speed=speed,
        base=base,
        gpu=gpu,
        llama_cpp=find_spec("xllamacpp") is not None,
        battery=battery,
        battery_wh=charge,
        watts=watts,
    )


def base_memory() -> int:
    """Bytes that this process takes with the libraries and a tokenizer loaded, without weights."""
    import psutil

    from pfi.models.backbone import load_backbone

    backbone = load_backbone("embedded", device="cpu")
    weights = sum(weight.nbytes for weight in backbone.model.parameters())
    return int(psutil.Process().memory_info().rss) - weights


def measure_processor(device: str, large: int = LARGE) -> Processor:
    """The speed of ``cpu`` or ``cuda``, the best of several passes each.

    Args:
        device: which one.
        large: bytes of the array that the caches shall not hold.
    """
    import torch

    def best(run: Callable[[], Any]) -> float:
        """Seconds of the fastest pass."""
        fastest, begin, passes = float("inf"), time.perf_counter(), 0
        while passes < 3 or time.perf_counter() - begin < _SECONDS:
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            fastest, passes = min(fastest, time.perf_counter() - start), passes + 1
        return fastest

    with torch.inference_mode():
        array = torch.ones(large // 4, device=device)
        part = array[: CACHED // 4]
        matrix, half = array.view(-1, 1024), torch.ones(large // 4, device=device).bfloat16()
        row, half_row = array[:1024], half[:1024]
        square, wide = array[: 512 * 1024].view(512, 1024), array[: 1024 * 4096].view(1024, 4096)
        half_square, half_wide = square.bfloat16(), wide.bfloat16()
        products = 2 * 512 * 1024 * 4096
        return Processor(
            read=large / best(lambda: array.sum()),
            cached=CACHED / best(lambda: part.sum()),
            matvec=large / best(lambda: torch.mv(matrix, row)),
            matvec_half=large / 2 / best(lambda: torch.mv(half.view(-1, 1024), half_row)),
            flops=products / best(lambda: square @ wide),
            flops_half=products / best(lambda: half_square @ half_wide),
        )


# Limits and power that only the system knows -----------------------------------------


def _battery() -> tuple[bool | None, float | None]:
    """Whether the battery is what powers the machine, and how many watt-hours it holds."""
    import psutil  # type: ignore[import-untyped]

    state = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if state is None:
        return None, None
    charges = (file_number(file) for file in (_POWER / "power_supply").glob("BAT*/energy_now"))
    charge = sum(value for value in charges if value is not None) / 1e6
    return state.power_plugged is False, charge or None


class PowerMeter:
    """The power drawn since it was made, where the system tells: RAPL or a discharging battery.

    Args:
        root: in place of ``/sys/class``.
    """

    def __init__(self, root: Path = _POWER) -> None:
        self._root, self._begin = root, time.monotonic()
        self._packages = {
            file: value
            for file in root.glob("powercap/intel-rapl:*/energy_uj")
            if file.parent.name.count(":") == 1 and (value := file_number(file)) is not None
        }

    def watts(self) -> float | None:
        """The mean power; None where nothing tells it."""
        seconds = max(time.monotonic() - self._begin, 1e-3)
        spent = [(file_number(file) or 0) - before for file, before in self._packages.items()]
        if spent and min(spent) >= 0 and sum(spent):  # the counter starts anew now and then
            return sum(spent) / 1e6 / seconds
        for file in self._root.glob("power_supply/BAT*/power_now"):
            drawn = file_number(file)
            status = file.parent / "status"
            if drawn and status.exists() and status.read_text("utf-8").strip() == "Discharging":
                return drawn / 1e6
        return None
