"""How much memory this process may still take; limits of containers count as the machine's own."""

from __future__ import annotations

from pathlib import Path

from pfi._util import cgroups

#: The files of a control group's limit and of what counts against it, by version.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}


def free_memory() -> tuple[int, int]:
    """Bytes that are free for this process, and that there are in all."""
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    limit, used = cgroup_memory()
    total, free = int(memory.total), int(memory.available)
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return free, total


def mebibytes(count: int) -> str:
    """A number of bytes for people, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"


def cgroup_memory(root: Path = cgroups.ROOT, own: Path = cgroups.OWN) -> tuple[int | None, int]:
    """The smallest memory limit of this process's control groups, and what counts against it.

    Bytes; the limit is None where there is none.  Cache that the kernel can drop does not count.
    """
    found: list[tuple[int, int]] = []
    for place, version in cgroups.control_groups("memory", root, own):
        limit, usage = _FILES[version]
        most = file_number(place / limit)
        if most is not None:
            droppable = _stat(place / "memory.stat")
            found.append((most, max(0, (file_number(place / usage) or 0) - droppable)))
    # Of two limits the one that leaves least counts.
    return min(found, key=lambda one: one[0] - one[1]) if found else (None, 0)


def file_number(file: Path) -> int | None:
    """A file's number; None when it is missing or says ``max``."""
    try:
        value = int(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if value < 1 << 60 else None  # version 1 writes "no limit" as a huge number


def _stat(file: Path) -> int:
    """Bytes of file cache that are not in use, of a control group's ``memory.stat``."""
    try:
        values = dict(line.split()[:2] for line in file.read_text("utf-8").splitlines())
    except (OSError, ValueError):
        return 0
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
